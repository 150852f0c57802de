"""The stage that puts two thin matrices in the place of a wide one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from secateur.errors import UsageError
from secateur.recipe.base import Settings


class Factorize(Settings):
    """Each weight becomes the product of two thin ones that best gives its outputs on the calibration data.

    One of `params`, `energy` and `rank` says how thin. A layer that its factors wouldn't make smaller stays whole.

    Attributes:
        params: Share of the model's parameters that may be left.
        energy: Share of each layer's squared outputs that is kept.
        rank: The rank of every layer.
        allocation: How `params` is shared out: `uniform` leaves each layer the same share of its weights; `error`
            spends every rank where it keeps most of a layer's output for its parameters.
        sparse: Share of what each layer keeps that single weights take beside the factors (W = S + L, as in OATS);
            with `params`. None takes no single weights.
        rounds: How often S and L are fitted to each other.
        merged: Whether factors are multiplied: a plain checkpoint that is as large as before.
        include, exclude: Globs on the names of layers; without, all linear layers of the blocks.
    """

    params: float | None = Field(default=None, gt=0, lt=1)
    energy: float | None = Field(default=None, gt=0, lt=1)
    rank: int | None = Field(default=None, ge=1)
    allocation: Literal["uniform", "error"] = "uniform"
    sparse: float | None = Field(default=None, gt=0, lt=1)
    rounds: int = Field(default=8, ge=1)
    merged: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Factorize:
        given = [name for name in ("params", "energy", "rank") if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError(
                f"factorize: give one of params, energy and rank, not {' and '.join(given) or 'none'}: "
                "'factorize: {params: 0.8}', for instance."
            )
        if self.params is None and self.allocation != "uniform":
            raise UsageError("factorize: allocation shares out params; energy and rank already say each layer's rank.")
        if self.sparse is not None and (self.params is None or self.allocation != "uniform"):
            raise UsageError("factorize: sparse goes with params and allocation uniform.")
        if self.sparse is None and self.rounds != 8:
            raise UsageError("factorize: rounds are those of sparse; leave them out.")
        return self
