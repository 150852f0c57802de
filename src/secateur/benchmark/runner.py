"""The contract of what runs a checkpoint or an export: it reads many tokens at once, and writes one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

SOUND = 30.0  # seconds that an encoder of sounds hears at once
State = Any
Array = npt.NDArray[Any]


class Runner(ABC):
    """A loaded model.

    Attributes:
        name: Of the runtime.
        kind: `text` (generates), `encoder` (reads text), `sound`, or `images` (or what else is a network's only input).
        dtype: That a checkpoint's weights are held in, or that the runtime multiplies in; None where it doesn't say.
    """

    name: ClassVar[str]
    kind: str
    dtype: str | None = None

    @abstractmethod
    def __init__(self, folder: str, threads: int) -> None:
        """Loads what is in a folder, or a model by another name, to be run by so many threads."""

    @abstractmethod
    def example(self, batch: int, length: int, seed: int) -> Any:
        """Returns random inputs: tokens, images, or sounds; of one model and seed the same in all runtimes."""

    @abstractmethod
    def read(self, inputs: Any) -> State:
        """Reads inputs, and returns what `write` goes on from."""

    @abstractmethod
    def write(self, state: State, tokens: int) -> None:
        """Writes so many tokens one after the other, the likeliest each time."""


def random_tokens(vocabulary: int, batch: int, length: int, seed: int) -> Array:
    """Returns (batch, length) int64."""
    return np.random.default_rng(seed).integers(0, vocabulary, (batch, length), np.int64)


def random_numbers(shape: tuple[int, ...], seed: int) -> Array:
    """Returns float32 of a shape, normally distributed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
