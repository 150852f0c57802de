"""Global: the lowest scores of the whole model go, wherever they are.

The dense model's scores are written to a temporary file layer by layer, and the exact threshold is found by
counting, so that memory holds one layer's scores at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from secateur.errors import ScoreError

Keys: TypeAlias = npt.NDArray[np.uint32]
BITS = 16  # the order-preserving 32-bit keys are counted by their upper, then by their lower half


class ScoreRanking:
    """The scores of a whole model, on disk; a context manager that removes them at the end."""

    def __init__(self, folder: Path | None = None) -> None:
        """Opens an empty ranking; `folder` is where its file goes (None: the system's temporary folder)."""
        self._scratch = tempfile.TemporaryDirectory(prefix="secateur-scores-", dir=folder)
        self._files: dict[str, Path] = {}

    def __enter__(self) -> ScoreRanking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scratch.cleanup()

    def add(self, layer: str, scores: Tensor) -> None:
        """Adds a layer's scores: any shape, float32, -inf where a weight is zero already.

        Raises:
            ScoreError: A score is NaN.
        """
        values = scores.detach().cpu().float().contiguous().numpy().ravel()
        if np.isnan(values).any():
            raise ScoreError(f"{layer}: a score is NaN. Try --compute float32 or another score.")
        path = Path(self._scratch.name) / f"{len(self._files)}.f32"
        (values + 0.0).tofile(path)  # -0.0 becomes 0.0, which it equals
        self._files[layer] = path

    def lowest(self, remove: int) -> dict[str, int]:
        """Returns how many of the model's `remove` lowest scores lie in each layer.

        Of equal scores those of earlier layers come first. The numbers add up to `remove` exactly.
        """
        below, high = self._bin(remove, lambda keys: keys >> np.uint32(BITS))
        more, low = self._bin(remove - below, lambda keys: keys[keys >> np.uint32(BITS) == high] & np.uint32(0xFFFF))
        threshold = (high << BITS) | low
        ties = remove - below - more
        counts = {}
        for layer, path in self._files.items():
            keys = _keys(path)
            equal = min(ties, int((keys == threshold).sum()))
            ties -= equal
            counts[layer] = int((keys < threshold).sum()) + equal
        return counts

    def _bin(self, rank: int, part: Callable[[Keys], Keys]) -> tuple[int, int]:
        """Returns the bin that holds the rank-th lowest key (counted from 1), and the keys in bins before it."""
        counts = np.zeros(1 << BITS, dtype=np.int64)
        for path in self._files.values():
            counts += np.bincount(part(_keys(path)), minlength=1 << BITS)
        before = np.cumsum(counts)
        found = int(np.searchsorted(before, rank))
        return int(before[found] - counts[found]), found


def _keys(path: Path) -> Keys:
    """Maps float32 scores to unsigned integers of the same order."""
    bits = np.fromfile(path, dtype=np.uint32)
    return np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))
