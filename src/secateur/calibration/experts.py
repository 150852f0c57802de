"""Mixtures of experts: the inputs of single experts, and how much each is used.

A router sends every token to a few experts. What is known of an expert comes from its own tokens alone. All of it is
taken from the call of the module that applies the experts, so that it doesn't matter how that computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import CalibrationError
from secateur.network.family import Family
from secateur.network.network import Layer
from secateur.processes import Processes


@dataclass(frozen=True)
class ExpertUsage:
    """Sums over the calibration tokens of what one block's experts add: each (experts,) float64.

    Attributes:
        count: Tokens that were routed to each expert.
        contribution: Sum over them of g ||f||, the router's weight times the norm of the expert's output.
        weight: Sum over them of the router's weight g, as the model uses it.
    """

    count: Tensor
    contribution: Tensor
    weight: Tensor

    @classmethod
    def empty(cls, experts: int) -> ExpertUsage:
        """Returns sums over no tokens."""
        return cls(*(torch.zeros(experts, dtype=torch.float64) for _ in range(3)))

    @property
    def score(self) -> Tensor:
        """(experts,): the mean contribution to a token (REAP, Lasby et al. 2025, arXiv 2510.13999); 0 if unused."""
        return self.contribution / self.count.clamp(min=1)

    def add_up(self, team: Processes) -> None:
        """Adds up all processes' tokens, in place."""
        for part in (self.count, self.contribution, self.weight):
            team.sum(part)

    def __add__(self, other: ExpertUsage) -> ExpertUsage:
        """Returns the sums over both passes' tokens."""
        return ExpertUsage(self.count + other.count, self.contribution + other.contribution, self.weight + other.weight)


@dataclass(frozen=True)
class Routing:
    """One call of the experts.

    Attributes:
        hidden: (tokens, hidden), their input.
        index: (tokens, chosen) int64, each token's experts.
        weight: (tokens, chosen), the router's weights for them.
    """

    hidden: Tensor
    index: Tensor
    weight: Tensor

    def of(self, expert: int) -> tuple[Tensor, Tensor]:
        """Returns one expert's tokens, (its tokens, hidden), and the router's weights for them, (its tokens,)."""
        tokens, place = torch.where(self.index == expert)
        return self.hidden[tokens], self.weight[tokens, place]


@contextmanager
def watching_experts(experts: nn.Module, look: Callable[[Routing], None], calls: int) -> Iterator[None]:
    """Calls `look` before each call of the module that applies a block's experts, while it lasts.

    Args:
        experts: The module.
        look: What is to be called.
        calls: How many calls of the module there will be.

    Raises:
        CalibrationError: The module isn't called, or not as `Family.experts` says.
    """
    seen = 0

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal seen
        seen += 1
        call = (*args, *kwargs.values())
        if [getattr(one, "ndim", None) for one in call] != [2, 2, 2] or call[1].shape != call[2].shape:
            raise CalibrationError(
                f"{type(experts).__name__} is called in a way that this version of secateur doesn't know: not with "
                "tokens, the indices of their experts and the router's weights."
            )
        look(Routing(*call))

    handle = experts.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
    if seen != calls:
        raise CalibrationError(f"{type(experts).__name__} was called {seen} times for {calls} batches.")


def expert_inputs(
    block: nn.Module, family: Family, layers: Mapping[str, Layer], routing: Routing
) -> Iterator[tuple[str, Tensor]]:
    """Yields the inputs of single experts' layers, by name: (the expert's tokens, in).

    An expert's neurons are act_fn(gate) · up of its tokens.

    Args:
        block: The block.
        family: Its family.
        layers: By input name (`Layer.reads`), a layer that reads it.
        routing: The call of the block's experts.
    """
    (first,) = (one for one in family.projections if one.experts and one.columns == "expert input")
    assert first.rows == ("gate", "up")
    assert family.experts is not None
    act: Any = block.get_submodule(family.experts).act_fn
    gate_up = block.get_parameter(first.path)  # (experts, 2 * neurons, hidden)
    for name, layer in layers.items():
        assert layer.expert is not None
        x, _ = routing.of(layer.expert)
        if layer.parameter is not gate_up:
            gate, up = functional.linear(x, gate_up[layer.expert]).chunk(2, dim=-1)
            x = act(gate) * up
        yield name, x


def add_usage(usage: ExpertUsage, experts: nn.Module, routing: Routing) -> None:
    """Adds one call of a block's experts to sums, in place.

    Each expert is run by the module itself, on its own tokens with a weight of 1.
    """
    for expert in range(len(usage.count)):
        x, g = routing.of(expert)
        if len(x) == 0:
            continue
        index = torch.full((len(x), 1), expert, dtype=routing.index.dtype, device=x.device)
        f = experts.forward(x, index, torch.ones_like(index, dtype=routing.weight.dtype))
        norms = f.double().norm(dim=-1) if f.device.type != "mps" else f.float().norm(dim=-1)
        usage.count[expert] += len(x)
        usage.contribution[expert] += float((g.to(norms) * norms).sum())
        usage.weight[expert] += float(g.to(norms).sum())
