"""Recipes: what a user asks for, as data. The one place where defaults live."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from secateur.allocation.amounts import Pattern, Threshold
from secateur.calibration.statistics import GRADIENTS
from secateur.errors import SecateurError, UsageError, did_you_mean
from secateur.scores import score_named
from secateur.solvers import AUTO, AUTO_MASKED, chain_named

if TYPE_CHECKING:
    from typing_extensions import Self

_SIZE = re.compile(r"([\d.]+)\s*(k|m|g|t|)(i?)b?", re.IGNORECASE)


def bytes_of(text: str) -> int:
    """Returns the bytes that `500MB`, `2GiB` or `1000000` stand for.

    Raises:
        UsageError: It isn't a size.
    """
    found = _SIZE.fullmatch(text.strip())
    try:
        number = float(found[1]) if found else -1.0
    except ValueError:
        number = -1.0
    if found is None or number < 0:
        raise UsageError(f"'{text}' is not a size; write 500MB, 2GB or a number of bytes.")
    return int(number * (1024 if found[3] else 1000) ** " kmgt".index(found[2].lower() or " "))


SAMPLED_IMAGES = 256
WEIGHT_TARGETS = ("sparsity", "threshold", "pattern")
STRUCTURED_TARGETS = ("params", "macs", "memory", "latency", "sparsity", "remove", "threshold")
TARGETS = (*WEIGHT_TARGETS, "params", "macs", "memory", "latency", "remove")
INNER_UNITS = {"neuron", "head", "query-head", "filter", "hidden"}  # read by linear or convolutional layers
TRACED_UNITS = ("filter", "neuron", "hidden")  # of networks that aren't described by a family
DEFAULT_SCORES = {
    "neuron": "wanda",
    "filter": "wanda",
    "hidden": "wanda",
    "head": "wanda",
    "query-head": "wanda",
    "channel": "wanda",
    "layer": "block-influence",
    "attention": "block-influence",
    "mlp": "block-influence",
    "expert": "reap",
    "token": "frequency",
}
STRUCTURED_ONLY = {"repair", "combine", "round_to", "min_units", "uniform", "pad", "protect_first", "protect_last"}
DEPTH_UNITS = {"layer", "attention", "mlp"}
UNIT_OPTIONS = {  # which units an option says something about
    "protect_first": INNER_UNITS | DEPTH_UNITS,
    "protect_last": INNER_UNITS | DEPTH_UNITS,
    "round_to": INNER_UNITS | {"channel", "expert"},
    "pad": INNER_UNITS,
    "damping": INNER_UNITS | {"channel"},
}
WEIGHTS_ONLY = {"per", "min_per_output", "include", "exclude", "block_size", "pattern"}


def _listed(names: Sequence[str]) -> str:
    """Returns options as a list in words: `--a, --b and --c`."""
    options = ["--" + name.replace("_", "-") for name in names]
    return " and ".join([", ".join(options[:-1]), options[-1]] if len(options) > 1 else options)


class _Settings(BaseModel):
    """Unknown fields are errors; an option that nobody reads would be worse."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def build(cls, data: object) -> Self:
        """Makes settings from plain data.

        Raises:
            UsageError: A field is unknown, missing or out of range; the message names it.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise UsageError(_explain(error)) from error


def _refuse(settings: _Settings, name: str, fields: Sequence[str]) -> None:
    """Raises UsageError if a field differs from its default that says nothing of images."""
    for field in fields:
        if getattr(settings, field) != type(settings).model_fields[field].default:
            raise UsageError(f"{name}: {field} says nothing of images; leave it out.")


class Calibration(_Settings):
    """Where the statistics come from.

    Attributes:
        data: `self` (the model writes its own text), a file, a hub data set, or a folder of .wav files.
        images: For image classifiers, a folder of images (.jpg, .jpeg, .png): flat, or with a subfolder per class.
        samples: Windows to calibrate on, or images; 32, or 256 images, if nothing is said.
        length: Tokens per window; None takes 1024, or the model's positions if they are fewer.
        compute: Precision of the forward passes: `auto`, `float32` or `bfloat16`.
        activation_memory: What the activations may take of the memory, such as `2GB`; more are kept in files.
    """

    data: str = "self"
    images: str | None = None
    samples: int = Field(default=32, ge=1)
    length: int | None = Field(default=None, ge=2)
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    activation_memory: str = "2GB"

    @field_validator("activation_memory", mode="before")
    @classmethod
    def _size(cls, value: object) -> str:
        bytes_of(str(value))
        return str(value)

    @model_validator(mode="before")
    @classmethod
    def _more_images(cls, data: Any) -> Any:
        seen = isinstance(data, dict) and data.get("images") is not None and data.get("samples") is None
        return {**data, "samples": SAMPLED_IMAGES} if seen else data

    @model_validator(mode="after")
    def _images_alone(self) -> Calibration:
        if self.images is not None:
            _refuse(self, "calibration", ("data", "length", "compute", "activation_memory"))
        return self

    @property
    def activation_bytes(self) -> int:
        """`activation_memory` in bytes."""
        return bytes_of(self.activation_memory)


class Prune(_Settings):
    """One pruning stage. Exactly one target is given: `sparsity`, `threshold`, or for weights `pattern`, or for other
    units `params`, `macs`, `memory`, `latency` or `remove`.

    Attributes:
        unit: What is removed. `weight` sets single weights to zero; `neuron`, `head`, `query-head`, `channel`, `layer`,
            `attention`, `mlp`, `expert` and `token` go for good, and of networks other than language models `filter`,
            `neuron` and `hidden` (of recurrent layers); `neuron,head` share one budget.
        sparsity: Share of zeros to end with, or of units to remove, between 0 and 1.
        threshold: Everything that scores below it goes: a number, `p90`, `mean-1std`.
        pattern: `N:M` keeps N of every M consecutive inputs.
        params, macs: Share of the parameters, or multiply-accumulates, of the run's first model that may be left.
        memory: What the weights may take: `400MB`.
        latency: Share of the time that this machine takes to read one window that may be left.
        remove: How many units go: layers, halves, channels and tokens of the model, neurons, heads and experts of every
            layer.
        repair: Whether what reads removed units is fitted anew by least squares, biases included.
        combine: How a score over a unit's coupled tensors becomes one: `sum`, `mean` or `max`.
        round_to: Numbers of units left are multiples of it.
        min_units: Units that every group keeps at least.
        uniform: Whether the result has to be a plain checkpoint: the same width everywhere.
        pad: Whether widths that differ are made up to the largest by zeros, which gives a plain checkpoint, too.
        protect_first, protect_last: Blocks at the ends that keep everything.
        score: Importance; None lets the solver choose by its own. For units also `module:function` or
            `file.py:function`, a function of a group and its statistics.
        solver: For units `obs` (rounds of optimal brain surgeon), the default for neurons and heads without a score or
            a threshold; `greedy` (scored again after each removal) for layers and their halves; or `none`. For weights
            one solver, or several that follow each other: `sparsegpt+refit`; None is `auto` without a score, `none`
            with one. `auto` is written out as the chain that it stands for.
        gradient: What gradient scores differentiate: `block`, each block's own reconstruction loss, or `loss`, the
            next-token loss through the whole model. With the solver obs of units, and with `--allocation error` of
            weights, `loss` weighs errors by what they add to that loss, so that those of all layers can be compared.
        allocation: `uniform` (every layer the same share), `global` (the model's lowest scores), `error` (by measured
            error), for weights `owl` and `alpha` (see secateur.allocation), for units `ramp` (later layers give more).
        reconstruct: Whether each block's kept weights are tuned to give the dense block's outputs.
        reconstruct_passes: Passes over the activations at most.
        reconstruct_halves: Whether attention and MLP are tuned one after the other instead of together.
        per: `layer` or `output`: what a weight's score is compared with.
        min_per_output: Weights that every output keeps; if positive, every input keeps one too (with a pattern
            inputs that die are only counted).
        include, exclude: Globs on layer names; the embedding and the head only if named.
        damping: Added to the Gram matrix's diagonal, relative to its mean; None is each solver's own (0.01, admm 0.1).
        block_size: Columns that sparsegpt handles at once.
    """

    unit: str = "weight"
    sparsity: float | None = None
    threshold: str | None = None
    pattern: str | None = None
    params: float | None = None
    macs: float | None = None
    memory: str | None = None
    latency: float | None = None
    remove: int | None = Field(default=None, ge=1)
    repair: bool = True
    combine: Literal["sum", "mean", "max"] = "sum"
    round_to: int = Field(default=1, ge=1)
    min_units: int = Field(default=1, ge=1)
    uniform: bool = False
    pad: bool = False
    protect_first: int = Field(default=0, ge=0)
    protect_last: int = Field(default=0, ge=0)
    score: str | None = None
    solver: str = ""
    gradient: Literal["block", "loss"] = "block"
    allocation: Literal["uniform", "global", "owl", "alpha", "error", "ramp"] = "uniform"
    reconstruct: bool = False
    reconstruct_passes: int = Field(default=6, ge=1)
    reconstruct_halves: bool = False
    per: Literal["layer", "output"] = "layer"
    min_per_output: int = Field(default=0, ge=0)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    damping: float | None = Field(default=None, gt=0)
    block_size: int = Field(default=128, ge=1)

    @field_validator("threshold", mode="before")
    @classmethod
    def _number_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int | float) else value

    @field_validator("pattern", mode="before")
    @classmethod
    def _clock_as_pattern(cls, value: object) -> object:
        """YAML 1.1 reads an unquoted 2:4 as 124 minutes."""
        if isinstance(value, int):
            raise ValueError("write the pattern in quotes: '2:4' (YAML reads 2:4 as a time of day)")
        return value

    @field_validator("unit")
    @classmethod
    def _known_units(cls, value: str) -> str:
        known = ["weight", *DEFAULT_SCORES]
        unknown = [kind for kind in value.split(",") if kind not in known]
        if unknown or ("weight" in value.split(",") and value != "weight"):
            name = unknown[0] if unknown else value
            raise ValueError(f"unknown unit '{name}'.{did_you_mean(name, known)}")
        return value

    @field_validator("memory", mode="before")
    @classmethod
    def _size(cls, value: object) -> object:
        if value is not None:
            bytes_of(str(value))
        return None if value is None else str(value)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kinds = str(data.get("unit", "weight")).replace(" ", "").split(",")
        data = {**data, **({"unit": ",".join(kinds)} if "unit" in data else {})}
        if kinds == ["weight"]:
            if not data.get("solver"):
                data["solver"] = "none" if data.get("score") else "auto"
            if data["solver"] == "auto":
                data["solver"] = AUTO_MASKED if data.get("score") else AUTO
            return data
        inner = set(kinds) <= INNER_UNITS
        in_rounds = inner and not data.get("score") and data.get("threshold") is None
        if data.get("solver") in (None, "", "auto"):
            data["solver"] = "obs" if in_rounds else "none"
        if not data.get("score") and data["solver"] == "greedy":
            data["score"] = "loo-kl"
        if not data.get("score") and data["solver"] == "none":
            data["score"] = "wanda" if inner else DEFAULT_SCORES.get(kinds[0])
        if kinds == ["token"] and not any(data.get(name) is not None for name in TARGETS):
            data["threshold"] = "1"  # what the calibration text doesn't use
        return data

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of unit."""
        return tuple(self.unit.split(","))

    @property
    def structured(self) -> bool:
        """Whether units go for good, instead of single weights being set to zero."""
        return self.unit != "weight"

    @model_validator(mode="after")
    def _consistent(self) -> Prune:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        wanted = STRUCTURED_TARGETS if self.structured else WEIGHT_TARGETS
        if len(given) != 1:
            have = " and ".join("--" + name for name in given) or "none of them"
            raise UsageError(f"give exactly one of {_listed(wanted)}; got {have}.")
        if given[0] not in wanted:
            raise UsageError(f"--{given[0]} isn't a target for --unit {self.unit}; give one of {_listed(wanted)}.")
        for name in ("sparsity", "params", "macs", "latency"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise UsageError(f"--{name} must lie between 0 and 1 (both excluded) but got {share:g}.")
        if self.threshold is not None:
            Threshold.parse(self.threshold)
        if self.structured:
            self._consistent_units()
        else:
            self._consistent_weights(given[0])
        if not self.reconstruct and {"reconstruct_passes", "reconstruct_halves"} & self._changed():
            raise UsageError("--reconstruct-passes and --reconstruct-halves go with --reconstruct.")
        return self

    def _consistent_weights(self, target: str) -> None:
        if self.pattern is not None:
            Pattern.parse(self.pattern)
        if misplaced := STRUCTURED_ONLY & self._changed():
            raise UsageError(f"{_listed(sorted(misplaced))} goes with units that are removed, not with --unit weight.")
        if self.allocation == "ramp":
            raise UsageError("--allocation ramp is for units; weights take uniform, global, owl, alpha or error.")
        if self.allocation != "uniform" and self.sparsity is None:
            raise UsageError(
                f"--allocation {self.allocation} shares out a --sparsity; "
                f"a --{target} already says what each layer gives."
            )
        if self.per == "output" and self.sparsity is None:
            raise UsageError(f"--per output needs --sparsity; a --{target} doesn't compare weights with each other.")
        first = chain_named(self.solver)[0]
        by_gradients = self.score is not None and bool(score_named(self.score).needs & GRADIENTS)
        if self.gradient == "loss" and not by_gradients and self.allocation != "error":
            raise UsageError(
                "--gradient loss is for gradient scores and --allocation error: add --score taylor, fisher or snip."
            )
        if self.score is not None:
            score_named(self.score)
        elif not first.chooses:
            raise UsageError(f"solver '{first.name}' needs a score: add --score wanda, for instance.")

    def _consistent_units(self) -> None:
        if len(self.kinds) > 1 and not set(self.kinds) <= INNER_UNITS:
            raise UsageError(
                f"--unit {self.unit}: only neurons and heads share a budget; remove the others in a stage of their own "
                "(a recipe has several)."
            )
        if len(set(self.kinds)) < len(self.kinds) or {"head", "query-head"} <= set(self.kinds):
            raise UsageError(f"--unit {self.unit} names heads or another kind twice.")
        if self.solver not in ("obs", "none", "greedy"):
            raise UsageError(f"units are removed by the solvers obs, greedy and none, not '{self.solver}'.")
        if self.solver == "greedy" and (not set(self.kinds) <= DEPTH_UNITS or self.threshold is not None):
            raise UsageError("--solver greedy removes layers, or halves of them, one by one: a number or a budget.")
        if self.solver == "obs" and not set(self.kinds) <= INNER_UNITS:
            raise UsageError(f"--solver obs removes neurons and heads, not {self.unit}; leave it out.")
        if self.solver == "obs" and self.score not in (None, "obs"):
            raise UsageError("--solver obs goes by its own score; leave --score out, or take --solver none.")
        if self.solver == "obs" and self.threshold is not None:
            raise UsageError("--solver obs removes a number of units in rounds; a --threshold needs a --score.")
        self._consistent_options()
        self._consistent_widths()

    def _consistent_options(self) -> None:
        """Raises UsageError if an option says nothing about the stage's units."""
        if misplaced := WEIGHTS_ONLY & self._changed():
            raise UsageError(f"{_listed(sorted(misplaced))} goes with --unit weight only.")
        for option, kinds in UNIT_OPTIONS.items():
            if option in self._changed() and not set(self.kinds) <= kinds:
                known = ", ".join(sorted(kinds))
                raise UsageError(f"{_listed([option])} says nothing about --unit {self.unit}, only about {known}.")
        damped = self.repair or self.solver == "obs" or self.allocation == "error"
        if self.damping is not None and not damped:
            raise UsageError("--damping is for fits and for the solver obs; without them nothing is damped.")

    def _consistent_widths(self) -> None:
        inner = set(self.kinds) <= INNER_UNITS
        if self.allocation in ("owl", "alpha"):
            raise UsageError(
                f"--allocation {self.allocation} is for weights; units take uniform, global, error or ramp."
            )
        if self.allocation != "uniform" and (not inner or self.threshold is not None or self.remove is not None):
            raise UsageError(
                f"--allocation {self.allocation} shares a budget out over the widths of neurons and heads."
            )
        if self.uniform and self.pad:
            raise UsageError("--uniform and --pad both make plain checkpoints; give one of them.")
        if self.reconstruct and not inner:
            raise UsageError("--reconstruct tunes blocks whose neurons or heads are removed.")

    def _changed(self) -> set[str]:
        """The fields that differ from their defaults."""
        return {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}


class Evaluate(_Settings):
    """What quality is measured on.

    Attributes:
        text: A file (text, .jsonl), hub data set or folder of .wav files; None takes what calibration held back.
        images: For image classifiers, a folder of images, as for calibration; None takes what calibration held back.
        windows: Windows to evaluate at most.
        length: Tokens per window; None takes the calibration's.
        speed: Whether to measure prefill and decode speed.
    """

    text: str | None = None
    images: str | None = None
    windows: int = Field(default=20, ge=1)
    length: int | None = Field(default=None, ge=2)
    speed: bool = True

    @model_validator(mode="after")
    def _images_alone(self) -> Evaluate:
        if self.images is not None:
            _refuse(self, "evaluate", ("text", "windows", "length"))
        return self


class Stage(_Settings):
    """One stage: a mapping with one key, the stage's kind."""

    prune: Prune


class Recipe(_Settings):
    """A whole run.

    Attributes:
        version: Of the recipe format.
        model: A hub id, a checkpoint folder, a .gguf file, or `demo:NAME`.
        output: The folder to write; None keeps the result in memory.
        seed: Of everything that draws.
        dtype: None keeps the checkpoint's; a GGUF becomes float32.
        device: Where blocks are computed: `auto`, `cpu`, `cuda`, `mps`.
        trust_remote_code: Whether code from the checkpoint may run.
        overwrite: Whether an existing output may be replaced.
        stream: Whether blocks are read from the files when their turn comes and written when they are done; None does
            so if the checkpoint is larger than half of the free memory.
        calibration: Where statistics come from; not read if no stage needs any.
        stages: What to do, in order.
        evaluate: What quality is measured on; None skips the evaluation.
    """

    version: Literal[1] = 1
    model: str
    output: str | None = None
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    trust_remote_code: bool = False
    overwrite: bool = False
    stream: bool | None = None
    calibration: Calibration = Calibration()
    stages: tuple[Stage, ...]
    evaluate: Evaluate | None = Evaluate()

    @field_validator("stages")
    @classmethod
    def _some_stage(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        if not value:
            raise ValueError("a recipe needs at least one stage")
        return value

    @model_validator(mode="after")
    def _images_everywhere(self) -> Recipe:
        if self.calibration.images is None:
            if self.evaluate is not None and self.evaluate.images is not None:
                raise UsageError("evaluate: images go with calibration images: give --images FOLDER, too.")
        elif self.evaluate is not None:
            _refuse(self.evaluate, "evaluate", ("text", "windows", "length"))
        return self

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Reads a recipe from a YAML file.

        Raises:
            UsageError: The file is missing, isn't YAML, or isn't a recipe.
        """
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"recipe {path} can't be read: {error}.") from error
        except yaml.YAMLError as error:
            raise UsageError(f"recipe {path} is not YAML: {' '.join(str(error).split())}.") from error
        if not isinstance(data, dict):
            raise UsageError(f"recipe {path} must be a mapping with 'model' and 'stages'.")
        try:
            return cls.build(data)
        except SecateurError as error:
            raise UsageError(f"recipe {path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON and YAML, defaults written out."""
        return self.model_dump(mode="json")


def _explain(error: ValidationError) -> str:
    """Puts pydantic's findings into one line that names the fields."""
    parts = []
    for found in error.errors():
        where = ".".join(str(part) for part in found["loc"]) or "the recipe"
        if found["type"] == "extra_forbidden":
            parts.append(f"{where} is not a known field")
        elif found["type"] == "missing":
            parts.append(f"{where} is missing")
        else:
            parts.append(f"{where}: {found['msg'].removeprefix('Value error, ')}, but got {found['input']!r}")
    return "; ".join(parts) + "."
