"""What a run calibrates and measures on."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from secateur.recipe.base import Settings, bytes_of, refuse

SAMPLED_IMAGES = 256


class Calibration(Settings):
    """Where the statistics come from.

    Attributes:
        data: `self` (the model writes its own text), a file, a hub data set, or a folder of .wav files.
        images: For image classifiers, a folder of images (.jpg, .jpeg, .png): flat, or with a subfolder per class.
        samples: Windows to calibrate on, or images; 32, or 256 images, if nothing is said. Of a folder that has no
            more, a fifth is held back to measure quality on, unless images are named for that.
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
            refuse(self, "calibration", ("data", "length", "compute", "activation_memory"))
        return self

    @property
    def activation_bytes(self) -> int:
        """`activation_memory` in bytes."""
        return bytes_of(self.activation_memory)


class Evaluate(Settings):
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
            refuse(self, "evaluate", ("text", "windows", "length"))
        return self
