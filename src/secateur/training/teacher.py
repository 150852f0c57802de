"""A teacher's largest logits, computed once and kept on the disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

ARRAYS = ("values", "classes")
DONE = "logits-are-kept"  # a file that says so


class Kept:
    """The largest logits at each place of each example, and the logarithm of the sum of all others' exponentials.

    The rest of the vocabulary counts as one class, so that the divergence is exact for what is looked at and a lower
    bound for the whole distribution.
    """

    def __init__(self, folder: Path, temperature: float) -> None:
        """
        Args:
            folder: Where the arrays lie, perhaps from an earlier run that was killed; it has to exist.
            temperature: That of both distributions.
        """
        self.folder, self.temperature = folder, temperature
        self._arrays: dict[str, Any] = {}
        if self.full:
            self._arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}

    @property
    def full(self) -> bool:
        """Whether all is computed."""
        return (self.folder / DONE).is_file()

    @torch.inference_mode()
    def fill(
        self,
        teacher: Any,
        batch_of: Callable[[list[int]], Mapping[str, Tensor]],
        examples: int,
        batch: int,
        top_k: int,
        tick: Callable[[], None],
    ) -> None:
        """Computes and writes the logits of all examples.

        Args:
            teacher: The model.
            batch_of: Gives its arguments for some examples, on its device.
            examples: How many there are.
            batch: How many at a time.
            top_k: Logits at each place, at most as many as there are.
            tick: Called after each batch.
        """
        for start in range(0, examples, batch):
            places = list(range(start, min(start + batch, examples)))
            logits = teacher(**batch_of(places)).logits.float() / self.temperature
            top = logits.topk(top_k, dim=-1)
            parts = {
                "values": (top.values - logits.logsumexp(-1, keepdim=True)).half(),  # logarithms of probabilities
                "classes": top.indices.int(),
            }
            for name, part in parts.items():
                if start == 0:
                    shape, kind = (examples, *part.shape[1:]), part.cpu().numpy().dtype
                    self._arrays[name] = np.lib.format.open_memmap(
                        self.folder / f"{name}.npy", mode="w+", dtype=kind, shape=shape
                    )
                self._arrays[name][places] = part.cpu().numpy()
            tick()
        for array in self._arrays.values():
            array.flush()
        (self.folder / DONE).touch()

    def divergence(self, student: Tensor, places: Tensor) -> Tensor:
        """Returns temperature² times KL(teacher ‖ student) at each place over the kept classes and the rest: (...).

        Args:
            student: (examples, ..., classes) logits.
            places: (examples,) which examples they are.
        """
        index = places.cpu().numpy()
        theirs = torch.from_numpy(np.asarray(self._arrays["values"][index])).to(student.device, torch.float32)
        classes = torch.from_numpy(np.asarray(self._arrays["classes"][index])).to(student.device, torch.int64)
        ours = functional.log_softmax(student.float() / self.temperature, dim=-1).gather(-1, classes)
        within = (theirs.exp() * (theirs - ours)).sum(-1)
        p_rest = (1 - theirs.exp().sum(-1)).clamp_min(1e-7)
        q_rest = (1 - ours.exp().sum(-1)).clamp_min(1e-7)
        return self.temperature**2 * (within + p_rest * (p_rest.log() - q_rest.log()))
