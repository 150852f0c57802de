"""The code that a reshaped model's checkpoint brings along, and how such a checkpoint is told from others.

Stock transformers runs that code when it is trusted; secateur itself never does, as it has the same code.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import transformers
from pydantic import BaseModel, ConfigDict, ValidationError

from secateur.errors import ModelError, UsageError
from secateur.network import reshaped
from secateur.network.plain import reshaped_class, reshaped_config_class

FILE = "modeling_secateur.py"
KEY = "secateur"  # in config.json
PREFIX = "Secateur"  # of the names of reshaped classes


class Differences(BaseModel):
    """What config.json says of a reshaped model; see network/reshaped.py."""

    model_config = ConfigDict(extra="forbid", strict=True)

    shapes: dict[str, list[int]]
    attributes: dict[str, dict[str, int]]
    replaced: dict[str, Literal["attention", "zero", "identity", "factors", "factors+weights"]]


def check_differences(raw: dict[str, Any], path: Path) -> None:
    """Raises ModelError if what a config.json says of a reshaped model makes no sense."""
    try:
        Differences.model_validate(raw[KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (KEY, *first["loc"])))
        raise ModelError(f"{path}: {where}: {first['msg']}; prune the model again.") from error


def describe_code(model: Any) -> str | None:
    """Says in a reshaped model's config which classes load it; returns the text of the file that defines them.

    A plain model needs none: None.
    """
    kind = getattr(type(model), "plain", None)
    if kind is None:
        return None
    headless = transformers.AutoModel._model_mapping[kind.config_class]  # no part of T5ForConditionalGeneration
    kinds = list(dict.fromkeys([kind, headless]))
    config = kind.config_class
    own = f"{FILE.removesuffix('.py')}.{PREFIX}"
    model.config.auto_map = {"AutoConfig": f"{own}{config.__name__}"} | {
        auto: f"{own}{one.__name__}" for one in kinds for auto in _auto_classes(one)
    }
    code = Path(reshaped.__file__).read_text(encoding="utf-8")
    names = ", ".join(sorted(one.__name__ for one in (config, *kinds)))
    parts = [f"{code}\n\nfrom transformers import {names}  # noqa: E402\n", _config_definition(config.__name__)]
    return "".join(parts + [_definition(one.__name__, config.__name__) for one in kinds])


def _config_definition(name: str) -> str:
    return (
        f"\n\nclass {PREFIX}{name}(ReshapedConfig, {name}):\n"
        f'    """{name} of a model with the shapes that it gives in `{KEY}`."""\n'
    )


def _definition(name: str, config: str) -> str:
    return (
        f"\n\nclass {PREFIX}{name}(Reshaped, {name}):\n"
        f'    """{name} with the shapes that its config gives in `{KEY}`."""\n\n'
        f"    config_class = {PREFIX}{config}\n"
    )


def _auto_classes(kind: Any) -> Iterator[str]:
    """Yields the names of transformers' Auto classes that give a model class for its config."""
    for name, auto in vars(transformers.models.auto.modeling_auto).items():
        mapping = getattr(auto, "_model_mapping", None)
        if not isinstance(auto, type) or mapping is None or name.startswith("_"):
            continue
        found = mapping.get(kind.config_class, ())
        if kind in (found if isinstance(found, tuple) else (found,)):
            yield name


def type_of(raw: dict[str, Any]) -> str | None:
    """Returns the plain model's type of what a config.json holds; None if it names none."""
    name = raw.get("model_type")
    return name.removeprefix(reshaped.TYPE) if isinstance(name, str) and KEY in raw else name


def config_of(raw: dict[str, Any], folder: Path) -> Any:
    """Returns a reshaped model's config; none of the folder's code is run."""
    return reshaped_config_class(transformers.CONFIG_MAPPING[type_of(raw)]).from_pretrained(folder)


def class_of(architecture: str, folder: Path) -> Any:
    """Returns our own class for a reshaped model's checkpoint; none of the folder's code is run.

    Raises:
        ModelError: The architecture isn't one that we could have reshaped.
    """
    plain: Any = getattr(transformers, architecture.removeprefix(PREFIX), None)
    known = isinstance(plain, type) and issubclass(plain, transformers.PreTrainedModel)
    if not architecture.startswith(PREFIX) or not known:
        raise ModelError(f"{folder / 'config.json'} has shapes of its own for '{architecture}', which nobody knows.")
    return reshaped_class(plain)


def check_plain(model: Any, name: str, option: str, advice: str) -> None:
    """Raises UsageError if a model's checkpoint would need the modeling file, though a plain one was asked for.

    Args:
        model: The transformers model, after its cut.
        name: Of the plain model, for people.
        option: What asked for it.
        advice: What to do instead.
    """
    if getattr(model.config, KEY, None):
        raise UsageError(
            f"{option}: the config of {name} can't say these widths, so the checkpoint would need the modeling file "
            f"that secateur writes beside it. {advice}"
        )
