"""Image classifiers of the Hugging Face kind: a checkpoint becomes a model, and what makes images into its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from secateur.errors import ModelError, UsageError, first_line
from secateur.network.families import IMAGE_TYPES
from secateur.network.loading import (
    DTYPES,
    check_shards,
    find,
    raw_config,
    read_config,
    refuse_mismatched,
    refuse_nan,
)
from secateur.network.modeling import KEY, PREFIX, class_of, type_of
from secateur.network.network import Source
from secateur.network.packed import is_packed
from secateur.network.quiet import quiet_transformers
from secateur.progress import Progress

PROCESSOR_FILE = "preprocessor_config.json"
USUAL_SIZE = 224  # of images, where a config says nothing of it


@dataclass(frozen=True)
class Classifier:
    """A model that gives images classes.

    Attributes:
        model: The transformers model, in eval mode.
        source: Where it came from.
    """

    model: Any
    source: Source

    @property
    def channels(self) -> int:
        """Channels of its images."""
        return int(getattr(_vision(self.model.config), "num_channels", 3))

    @property
    def labels(self) -> dict[str, int]:
        """The number of each class, by its name."""
        return {str(name): int(number) for number, name in self.model.config.id2label.items()}

    def example(self) -> Tensor:
        """Returns two empty images of the size that it takes: (2, channels, height, width)."""
        size = getattr(_vision(self.model.config), "image_size", None) or USUAL_SIZE
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return torch.zeros(2, self.channels, height, width, dtype=self.model.dtype)

    def processor(self) -> Any:
        """Returns what makes images into its inputs: its checkpoint's own image processor.

        Raises:
            UsageError: Pillow isn't installed.
            ModelError: The checkpoint has none, or it can't be read.
        """
        if find_spec("PIL") is None:
            raise UsageError("images are read by Pillow, which isn't installed: pip install 'secateur[images]'.")
        folder = self.source.path
        if not (folder / PROCESSOR_FILE).is_file():
            raise ModelError(
                f"{folder} has no {PROCESSOR_FILE}, so nothing says how its images are scaled and normalised; save "
                "the model's image processor there."
            )
        try:
            with quiet_transformers():
                return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise ModelError(f"the image processor in {folder} can't be read: {first_line(error)}") from error


def is_classifier(model: str, trust_remote_code: bool, progress: Progress) -> bool:
    """Whether what a name stands for is an image classifier's checkpoint."""
    path = find(model, trust_remote_code, progress)
    return path.is_dir() and not is_packed(path) and type_of(raw_config(path)) in IMAGE_TYPES


def load_classifier(
    model: str,
    *,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Classifier:
    """Loads an image classifier.

    Args:
        model: A hub id, or a checkpoint folder.
        dtype: `float32`, `bfloat16` or `float16`; None keeps the checkpoint's own.
        trust_remote_code: Whether code that comes with the checkpoint may run; ours never does.
        seed: For whatever a model draws when it is built.
        progress: Shows a download's progress.

    Raises:
        UsageError: It isn't an image classifier, or `dtype` is unknown.
        ModelError: It is missing, corrupt, incomplete, or has NaN weights.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{dtype}'. Known: {', '.join(DTYPES)}.")
    path = find(model, trust_remote_code, progress or Progress())
    if not path.is_dir() or is_packed(path):
        raise UsageError(f"{model} isn't a folder of safetensors files, which an image classifier is read from.")

    def check_type(model_type: str) -> None:
        if model_type not in IMAGE_TYPES:
            raise UsageError(f"{model} is a '{model_type}' model, which doesn't classify images: leave --images out.")

    config = read_config(path, trust_remote_code, check_type)
    check_shards(path)
    kind = _class(path, config)
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            loaded, info = kind.from_pretrained(
                path,
                config=config,
                dtype=DTYPES[dtype] if dtype else "auto",
                output_loading_info=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # to name them ourselves
            )
        except (OSError, ValueError, RuntimeError, KeyError, AttributeError, SafetensorError) as error:
            raise ModelError(f"{path} can't be loaded: {first_line(error)}") from error
    refuse_mismatched(path, info)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{path} lacks {len(missing)} weights, {missing[0]} among them; it is incomplete.")
    refuse_nan(loaded)
    source = Source(model, path, str(loaded.dtype).removeprefix("torch."), trust_remote_code)
    return Classifier(loaded.eval(), source)


def _class(path: Path, config: Any) -> Any:
    """Returns the class that a checkpoint was saved from."""
    name = str((config.architectures or [""])[0])
    known = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(config.model_type, ())
    if name.removeprefix(PREFIX) not in ((known,) if isinstance(known, str) else known):
        raise ModelError(
            f"{path} holds '{name}', not an image classifier with its head. Models with code of their own are pruned "
            "in memory: secateur.prune(model, example_inputs=images)."
        )
    return class_of(name, path) if hasattr(config, KEY) else getattr(transformers, name)


def _vision(config: Any) -> Any:
    """Returns the part of a config that is about images."""
    return getattr(config, "vision_config", config)
