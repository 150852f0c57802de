"""What one calibration pass leaves behind of a layer's input: additive sums."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, fields
from enum import Flag, auto
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import CalibrationError
from secateur.processes import Processes

GRAM_TILE = 384  # columns per tile of the lower triangle: half of the products, each still a large one
BINS = 32  # of a histogram: 16 powers of two for each sign
LEAST, MOST = -12, 3  # exponents of the outermost bins, which take what lies beyond, too


class Needs(Flag):
    """What a score or a solver reads; the last four are of units, not of a layer's input."""

    NOTHING = 0
    MOMENTS = auto()  # count, sum and sum of squares of each input
    GRAM = auto()  # X Xᵀ; brings the moments along
    GRADIENT = auto()  # sum of the weight's gradients over the batches
    GRADIENT_SIZE = auto()  # sum of their absolute values
    GRADIENT_SQUARE = auto()  # sum of their squares
    OUTPUTS = auto()  # the dense block's outputs, for reconstructing them
    SIZES = auto()  # sum of each input's |x|
    ACTIVE = auto()  # how often each input is positive
    HISTOGRAM = auto()  # how often each input has which sign and power of two
    BLOCK_INFLUENCE = auto()  # how far each block, or half of one, turns the hidden states
    LEAVE_ONE_OUT = auto()  # the KL divergence from the dense model when each one is left out
    USAGE = auto()  # which experts are used, and for how much
    TOKENS = auto()  # how often each token of the vocabulary occurs


INPUTS = Needs.MOMENTS | Needs.GRAM | Needs.SIZES | Needs.ACTIVE | Needs.HISTOGRAM
GRADIENTS = Needs.GRADIENT | Needs.GRADIENT_SIZE | Needs.GRADIENT_SQUARE


@dataclass
class Gradients:
    """Sums over calibration batches of the gradient g of a loss with respect to one weight: (out, in) float32.

    Attributes:
        count: Number of batches.
        total, sizes, squares: Sums of g, |g| and g²; None where it isn't needed.
    """

    count: int
    total: Tensor | None = None
    sizes: Tensor | None = None
    squares: Tensor | None = None

    @classmethod
    def empty(cls, shape: tuple[int, int], needs: Needs, device: torch.device) -> Gradients:
        """Returns sums over no batches."""
        parts = (Needs.GRADIENT, Needs.GRADIENT_SIZE, Needs.GRADIENT_SQUARE)
        return cls(0, *(torch.zeros(shape, device=device) if part in needs else None for part in parts))

    def add(self, g: Tensor) -> None:
        """Adds one batch's gradient: (out, in)."""
        g = g.float()
        self.count += 1
        if self.total is not None:
            self.total += g
        if self.sizes is not None:
            self.sizes += g.abs()
        if self.squares is not None:
            self.squares.addcmul_(g, g)

    @property
    def nothing(self) -> bool:
        """Whether all gradients were zero: the loss doesn't depend on the weight."""
        return not any(bool(part.any()) for part in (self.total, self.sizes, self.squares) if part is not None)

    def add_up(self, team: Processes) -> None:
        """Adds up all processes' batches, in place."""
        self.count = _total(self.count, team)
        for part in (self.total, self.sizes, self.squares):
            if part is not None:
                team.sum(part)

    def check(self, name: str) -> None:
        """Raises CalibrationError if a sum isn't finite."""
        for part in (self.total, self.sizes, self.squares):
            if part is not None and not bool(torch.isfinite(part).all()):
                raise CalibrationError(
                    f"the gradients of {name} are NaN or infinite on the calibration data; try --compute float32."
                )


@dataclass
class Statistics:
    """Sums over the calibration tokens of one layer's input x: (in,).

    Additive: passes, ranks and files add up with `+`.

    Attributes:
        count: Number of tokens.
        total: (in,) float64, sum of x.
        squares: (in,) float64, sum of x².
        gram: (in, in) float32, the sum of x xᵀ, of which only the lower triangle's tiles are kept up to date
            while tokens are added; read it through `G`. None where it isn't needed.
        gradients: Those of one layer's weight, where a score asks for them. Not part of sums and files.
        sizes: (in,) float64, sum of |x|. This and the next two are None where they aren't needed.
        active: (in,) int64, the number of tokens with x > 0.
        histogram: (in, BINS) int64, the number of tokens by sign and power of two: bin 0 holds 0 <= x < 2^-11, bin k
            2^(k-12) <= x < 2^(k-11), bin 15 x >= 8; bins 16 to 31 the same of -x, without 0. It needs no range.
    """

    count: int
    total: Tensor
    squares: Tensor
    gram: Tensor | None = None
    gradients: Gradients | None = None
    sizes: Tensor | None = None
    active: Tensor | None = None
    histogram: Tensor | None = None

    @classmethod
    def empty(cls, width: int, needs: Needs, device: torch.device) -> Statistics:
        """Returns statistics of no tokens."""
        # mps has no float64
        exact = torch.float32 if device.type == "mps" else torch.float64
        zeros = torch.zeros(width, dtype=exact, device=device)
        gram = torch.zeros(width, width, device=device) if Needs.GRAM in needs else None
        counts = torch.zeros(width, BINS, dtype=torch.int64, device=device)
        return cls(
            0,
            zeros,
            zeros.clone(),
            gram,
            sizes=zeros.clone() if Needs.SIZES in needs else None,
            active=counts[:, 0].clone() if Needs.ACTIVE in needs else None,
            histogram=counts if Needs.HISTOGRAM in needs else None,
        )

    def add(self, x: Tensor) -> None:
        """Adds tokens. x: (tokens, in), any floating dtype."""
        x = x.float()
        self.count += x.shape[0]
        self.total += x.sum(0)
        if self.sizes is not None:
            self.sizes += x.abs().sum(0)
        if self.active is not None:
            self.active += (x > 0).float().sum(0).to(self.active)  # exact to 2²⁴ tokens, faster than whole numbers
        if self.histogram is not None:
            _count_bins(x, self.histogram)
        if self.gram is None:
            self.squares += x.square().sum(0)
            return
        for start in range(0, x.shape[1], GRAM_TILE):
            end = min(start + GRAM_TILE, x.shape[1])
            self.gram[start:end, :end].addmm_(x[:, start:end].T, x[:, :end])

    @property
    def G(self) -> Tensor:
        """(in, in) float32: the Gram matrix X Xᵀ; read it, but don't write to it.

        Raises:
            CalibrationError: No Gram matrix was gathered.
        """
        if self.gram is None:
            raise CalibrationError("these statistics hold no Gram matrix; gather them with Needs.GRAM.")
        for start in range(0, self.gram.shape[0], GRAM_TILE):  # in place, so that no second matrix is held
            end = min(start + GRAM_TILE, self.gram.shape[0])
            self.gram[:start, start:end] = self.gram[start:end, :start].T
            tile = self.gram[start:end, start:end]
            tile.copy_(tile.tril() + tile.tril(-1).T)
        return self.gram

    @property
    def norms(self) -> Tensor:
        """(in,) float32: the L2 norm of each input over all tokens, ||X_j||."""
        squares = self.squares if self.gram is None else self.gram.diagonal()
        return squares.sqrt().float()

    @property
    def mean(self) -> Tensor:
        """(in,) float32: the mean of each input."""
        return (self.total / max(self.count, 1)).float()

    @property
    def mean_squares(self) -> Tensor:
        """(in,) float32: the mean of each input's square."""
        squares = self.squares if self.gram is None else self.gram.diagonal()
        return (squares / max(self.count, 1)).float()

    @property
    def variance(self) -> Tensor:
        """(in,) float32: the population variance of each input."""
        squares = self.squares if self.gram is None else self.gram.diagonal().to(self.total)
        count = max(self.count, 1)
        return (squares / count - (self.total / count).square()).clamp_min(0).float()

    def sums(self) -> dict[str, Tensor]:
        """Returns the sums that were gathered, by attribute."""
        parts = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: part for name, part in parts.items() if isinstance(part, Tensor)}

    def add_up(self, team: Processes) -> None:
        """Adds up all processes' tokens, in place."""
        self.count = _total(self.count, team)
        for part in self.sums().values():
            team.sum(part)

    def check(self, name: str) -> None:
        """Raises CalibrationError if there are no tokens, or if a sum isn't finite."""
        if self.count == 0:
            raise CalibrationError(f"{name} saw no calibration token.")
        sums = self.squares if self.gram is None else self.gram.diagonal()
        if not bool(torch.isfinite(sums).all() and torch.isfinite(self.total).all()):
            raise CalibrationError(
                f"the inputs of {name} are NaN or infinite on the calibration data; "
                "try --compute float32, or look for outliers in the data."
            )

    def __add__(self, other: Statistics) -> Statistics:
        """Returns the statistics of both passes' tokens together."""
        mine, others = self.sums(), other.sums()
        if mine.keys() != others.keys() or self.total.shape != other.total.shape:
            raise CalibrationError("these statistics are of different inputs and can't be added.")
        both: dict[str, Any] = {name: part + others[name] for name, part in mine.items()}
        return Statistics(self.count + other.count, **both)


def _count_bins(x: Tensor, histogram: Tensor) -> None:
    """Adds tokens x: (tokens, in) float32 to a histogram: (in, BINS) int64, in place.

    A float's power of two is read from its bits, which is exact and much faster than a logarithm.
    """
    features = torch.arange(x.shape[1], device=x.device) * BINS
    for part in x.split(256):  # the numbers of bins are as wide as two floats
        exponent = (part.contiguous().view(torch.int32) >> 23 & 0xFF) - 127
        bins = exponent.clamp_(LEAST, MOST) - LEAST + (part < 0) * (BINS // 2)
        histogram += torch.bincount((bins + features).flatten(), minlength=histogram.numel()).view_as(histogram)


def _total(count: int, team: Processes) -> int:
    numbers = torch.tensor(count)
    team.sum(numbers)
    return int(numbers)


def save_statistics(statistics: dict[str, Statistics], path: Path) -> None:
    """Writes statistics by input name to a safetensors file."""
    tensors: dict[str, Tensor] = {}
    for name, one in statistics.items():
        tensors[f"{name}:count"] = torch.tensor(one.count)
        tensors |= {f"{name}:{part}": tensor.cpu() for part, tensor in one.sums().items()}
    save_file(tensors, path, metadata={"format": "secateur-statistics-1"})


def load_statistics(path: Path) -> dict[str, Statistics]:
    """Reads what `save_statistics` wrote.

    Raises:
        CalibrationError: The file is missing, corrupt or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") != "secateur-statistics-1":
                raise CalibrationError(f"{path} holds no secateur statistics.")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise CalibrationError(f"{path} can't be read as statistics: {error}") from error
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(":")
        parts[name][part] = tensor
    return {name: _assemble(parts[name], name, path) for name in sorted(parts)}


def _assemble(parts: dict[str, Tensor], name: str, path: Path) -> Statistics:
    """Returns the statistics of one input from its tensors, which must all be there and fit each other."""
    width = parts["total"].numel() if "total" in parts else 0
    needed = {"count": (), "total": (width,), "squares": (width,)}
    shapes: dict[str, tuple[int, ...]] = {
        **needed,
        "gram": (width, width),
        "sizes": (width,),
        "active": (width,),
        "histogram": (width, BINS),
    }
    missing = needed.keys() - parts.keys()
    misfits = [part for part, tensor in parts.items() if tuple(tensor.shape) != shapes.get(part)]
    if missing or misfits:
        raise CalibrationError(
            f"{path}: the statistics of {name} are damaged ({', '.join([*sorted(missing), *misfits])})."
        )
    found: dict[str, Any] = {part: tensor for part, tensor in parts.items() if part != "count"}
    return Statistics(int(parts["count"]), **found)
