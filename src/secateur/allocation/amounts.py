"""How much to remove, as the user says it: a count, a threshold, an N:M pattern."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from secateur.errors import PatternError, UsageError


@dataclass(frozen=True)
class Pattern:
    """N:M sparsity: of every M consecutive inputs of an output, N are kept."""

    n: int
    m: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Reads `2:4`.

        Raises:
            PatternError: It isn't N:M with 0 < N < M.
        """
        found = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
        if found is None:
            raise PatternError(f"a pattern is written N:M, for instance 2:4, but got '{text}'.")
        n, m = int(found[1]), int(found[2])
        if not 0 < n < m:
            raise PatternError(f"a pattern N:M keeps N of every M weights, with 0 < N < M, but got {n}:{m}.")
        return cls(n, m)

    def check(self, width: int, layer: str) -> None:
        """Raises PatternError if M doesn't divide a layer's number of inputs."""
        if width % self.m:
            raise PatternError(
                f"pattern {self.n}:{self.m}: {layer} has {width} inputs, which {self.m} doesn't divide. "
                f"Leave it out with --exclude '{layer}', or take another pattern."
            )

    def check_all(self, widths: Mapping[str, int]) -> None:
        """Raises PatternError, which names them all, if M doesn't divide the inputs of some of these layers."""
        wrong = [name for name, width in widths.items() if width % self.m]
        if len(wrong) == 1:
            self.check(widths[wrong[0]], wrong[0])
        if wrong:
            some = ", ".join(f"{name} ({widths[name]})" for name in wrong[:8])
            more = f" and {len(wrong) - 8} others" if len(wrong) > 8 else ""
            globs = dict.fromkeys(_glob(name, wrong, widths) for name in wrong)
            excluded = " ".join(f"--exclude '{glob}'" for glob in globs)
            raise PatternError(
                f"pattern {self.n}:{self.m}: {self.m} doesn't divide the inputs of {some}{more}. "
                f"Leave them out with {excluded}, or take another pattern."
            )

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def _glob(name: str, wrong: Sequence[str], every: Iterable[str]) -> str:
    """Returns a glob for a layer and its like in other blocks if all of these are wrong; else the layer's name."""
    glob = re.sub(r"\.\d+\.", ".*.", name)
    return glob if set(fnmatch.filter(every, glob)) <= set(wrong) else name


@dataclass(frozen=True)
class Threshold:
    """Everything that scores below it goes: a number, a percentile, or a distance from the mean.

    Attributes:
        kind: `value`, `percentile` or `deviations`.
        number: The value, the percentile (0 to 100), or the signed number of standard deviations from the
            mean. Percentiles, means and deviations are those of the layer's scores.
    """

    kind: Literal["value", "percentile", "deviations"]
    number: float

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Reads `0.01`, `p90` or `mean-1std`.

        Raises:
            UsageError: It is none of these.
        """
        text = text.strip()
        if found := re.fullmatch(r"p(\d+(?:\.\d+)?)", text):
            if not 0 < float(found[1]) < 100:
                raise UsageError(f"--threshold pX takes a percentile between 0 and 100 but got '{text}'.")
            return cls("percentile", float(found[1]))
        if found := re.fullmatch(r"mean(?:([+-]\d*(?:\.\d+)?)std)?", text):
            step = found[1] or "0"
            return cls("deviations", float(step + "1" if step in "+-" else step))
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not math.isfinite(value):
            raise UsageError(f"--threshold takes a number, pX or mean-Xstd but got '{text}'.")
        return cls("value", value)

    def value(self, scores: Tensor) -> float:
        """Returns the threshold for a layer's scores; 0 for none at all, if it is relative to them."""
        if self.kind == "value":
            return self.number
        flat = scores.flatten().double()
        if flat.numel() == 0:
            return 0.0
        if self.kind == "deviations":
            return float(flat.mean() + self.number * flat.std(correction=0))
        rank = (flat.numel() - 1) * self.number / 100  # linear interpolation, as numpy.percentile does
        low, high = (float(flat.kthvalue(1 + k).values) for k in (int(rank), min(int(rank) + 1, flat.numel() - 1)))
        return low + (high - low) * (rank - int(rank))


@dataclass(frozen=True)
class Amount:
    """What to remove from one layer; exactly one of the first three is given.

    Attributes:
        remove: The number of zeros to end with.
        threshold: Everything that scores below it goes.
        pattern: N:M.
        per: `layer` compares all the layer's weights with each other, `output` those of one row.
        min_per_output: Weights that each output keeps at least; if it is positive, each input keeps one too,
            except with a pattern, where inputs that die are only counted.
    """

    remove: int | None = None
    threshold: Threshold | None = None
    pattern: Pattern | None = None
    per: Literal["layer", "output"] = "layer"
    min_per_output: int = field(default=0)


def row_counts(remove: int, scores: Tensor) -> Tensor:
    """Shares `remove` zeros out over the rows, which differ by one at most.

    The rows that give one more are those whose next lowest score is lowest.

    Args:
        remove: Zeros in all.
        scores: (out, in).

    Returns:
        (out,) int64.
    """
    rows = scores.shape[0]
    base, more = divmod(remove, rows)
    counts = torch.full((rows,), base, dtype=torch.long, device=scores.device)
    if more:
        next_lowest = scores.kthvalue(base + 1, dim=1).values
        counts[next_lowest.argsort(stable=True)[:more]] += 1
    return counts
