"""The stage that puts weights on a grid of few bits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from secateur.errors import UsageError
from secateur.recipe.base import Settings


class Quantize(Settings):
    """Weights become integers times a scale; what is zero stays zero. It is a recipe's last stage.

    Attributes:
        bits: 8 or 4.
        per: What shares a scale: a `channel`, which is one output's weights, or a `group` of inputs of an output; None
            takes channels for 8 bits and groups for 4.
        group: Inputs of a group; None takes the largest of 128, 64 and 32 that divides all layers.
        method: `gptq` makes up for each rounding in the columns to come; `nearest` rounds each weight by itself.
        sparsity: Share of each layer's weights that go in the same sweep (SparseGPT's joint form), zeros that there are
            included; None removes none.
        pattern: The same as N:M, such as `2:4`.
        include, exclude: Globs on the names of layers; without, all linear layers of the blocks.
        damping: Of the Gram matrix, relative to its mean diagonal, for `gptq`; None takes 0.01.
    """

    bits: Literal[4, 8] = 8
    per: Literal["channel", "group"] | None = None
    group: int | None = Field(default=None, ge=8)
    method: Literal["gptq", "nearest"] = "gptq"
    sparsity: float | None = Field(default=None, gt=0, lt=1)
    pattern: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    damping: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Quantize:
        if self.group is not None and self.per == "channel":
            raise UsageError("quantize: group goes with per: group.")
        if self.sparsity is not None and self.pattern is not None:
            raise UsageError("quantize: give sparsity or pattern, not both.")
        if self.joint and self.method != "gptq":
            raise UsageError("quantize: sparsity and pattern go with method gptq; or prune in a stage before this one.")
        if self.damping is not None and self.method == "nearest":
            raise UsageError("quantize: damping says nothing with method nearest.")
        return self

    @property
    def joint(self) -> bool:
        """Whether weights are removed in the same sweep."""
        return self.sparsity is not None or self.pattern is not None

    @property
    def grouped(self) -> bool:
        """Whether groups of inputs share a scale."""
        return self.per == "group" or (self.per is None and (self.bits == 4 or self.group is not None))
