"""Regularisation that drives weights or units towards zero before they go, by the same schedules as sparsity.

Each adds the penalty's gradient to the model's, which is what a penalty in the loss comes to, without a graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import UsageError
from secateur.network.unit_group import UnitGroup
from secateur.schedules import Schedule
from secateur.training.sharded import own
from secateur.training.unit_masks import UnitMasks
from secateur.training.weight_masks import WeightMasks

Masks = WeightMasks | UnitMasks


class Regularizer(ABC):
    """A penalty on weights or units.

    Attributes:
        strength: Its factor λ: a number, or a schedule whose "sparsity" it is after each step.
        of_units: Whether it is about whole units.
        chosen: By parameter or group, bool: the weights or units that it is about; None for all.
    """

    of_units = False

    def __init__(self, strength: float | Schedule) -> None:
        """Raises UsageError if a strength isn't positive."""
        number = isinstance(strength, int | float) and strength > 0
        if not isinstance(strength, Schedule) and not number:
            raise UsageError(f"a regularizer's strength is a number above 0 or a schedule, but got {strength!r}.")
        self.strength = strength
        self.chosen: dict[str, Tensor] | None = None

    def at(self, step: int) -> float:
        """Returns λ at a step."""
        return self.strength(step) if isinstance(self.strength, Schedule) else self.strength

    def describe(self) -> dict[str, Any]:
        """Returns its kind and its strength, by which a saved pruner knows it again."""
        strength = self.strength.describe() if isinstance(self.strength, Schedule) else self.strength
        return {"kind": type(self).__name__, "strength": strength}

    def state_dict(self) -> dict[str, Any]:
        """Returns what it has decided so far."""
        return {} if self.chosen is None else {"chosen": dict(self.chosen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        self.chosen = dict(state["chosen"]) if "chosen" in state else None

    def check(self, masks: Masks, model: nn.Module, cut_during: bool) -> None:
        """Raises UsageError if there is nothing in the model that it is about.

        Args:
            masks: What is pruned.
            model: The model.
            cut_during: Whether units are removed while the model trains.
        """
        if self.of_units and not isinstance(masks, UnitMasks):
            name = type(self).__name__
            raise UsageError(f"{name} is about units: give unit='filter' or another kind, or take L1.")

    @abstractmethod
    def add_gradients(self, masks: Masks, model: nn.Module, step: int, schedule: Schedule) -> None:
        """Adds the penalty's gradient to each parameter's `grad`.

        Args:
            masks: What is pruned.
            model: The model.
            step: The step of the optimizer that comes next, counted from 1.
            schedule: The pruner's.
        """


class L1(Regularizer):
    """λ Σ |w| over the weights that are pruned, or that units are made of."""

    @torch.no_grad()
    def add_gradients(self, masks: Masks, model: nn.Module, step: int, schedule: Schedule) -> None:
        strength = self.at(step)
        for parameter in _weights(masks, model):
            w, g = own(parameter.detach()), parameter.grad
            if g is not None:
                own(g).add_(w.sign(), alpha=strength)


class GroupLasso(Regularizer):
    """λ Σ_units ‖w_unit‖₂ over all weights that go with a unit (Wen et al. 2016, arXiv 1608.03665, eq. 3)."""

    of_units = True

    @torch.no_grad()
    def add_gradients(self, masks: Masks, model: nn.Module, step: int, schedule: Schedule) -> None:
        assert isinstance(masks, UnitMasks)
        strength = self.at(step)
        factors = {
            group.name: strength / norms(group).clamp_min(1e-12) for one in masks.coupled for group in one.groups
        }
        _add_scaled(masks, model, factors)


class BatchNormScale(Regularizer):
    """λ Σ |γ| over the batch norms' scales that go with units (network slimming, Liu et al. 2017, arXiv 1708.06519)."""

    of_units = True

    def check(self, masks: Masks, model: nn.Module, cut_during: bool) -> None:
        super().check(masks, model, cut_during)
        if not any(True for _ in self._scales(masks, model)):
            raise UsageError("BatchNormScale: no batch norm has a scale per unit in this model.")

    @torch.no_grad()
    def add_gradients(self, masks: Masks, model: nn.Module, step: int, schedule: Schedule) -> None:
        strength = self.at(step)
        for parameter in self._scales(masks, model):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach().sign(), alpha=strength)

    def _scales(self, masks: Masks, model: nn.Module) -> Iterator[nn.Parameter]:
        assert isinstance(masks, UnitMasks)
        modules = dict(model.named_modules())
        names = {part.name for one in masks.coupled for group in one.groups for part in group.slices}
        for name in sorted(names):
            path, _, attribute = name.rpartition(".")
            norm = modules.get(path)
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and attribute == "weight":
                yield norm.weight


class Growing(Regularizer):
    """½ λ ‖w‖² on those weights or units that would go by the final sparsity, with a λ that grows.

    Which these are is decided at its first step, by the pruner's score. (Wang et al. 2021, arXiv 2012.09243, GReg-1.)
    """

    def __init__(self, strength: Schedule) -> None:
        """Raises UsageError if the strength doesn't grow."""
        if not isinstance(strength, Schedule):
            raise UsageError(
                "Growing takes a schedule for its strength, such as Linear(final=0.01, begin=0, end=1000)."
            )
        super().__init__(strength)

    def check(self, masks: Masks, model: nn.Module, cut_during: bool) -> None:
        super().check(masks, model, cut_during)
        if cut_during:
            raise UsageError("Growing drives the same units to zero all the way: it goes with cut='end'.")
        if masks.score is None or masks.score.needs:
            name = "movement" if masks.score is None else masks.score.name
            raise UsageError(
                f"Growing chooses at its first step, before there are gradients that '{name}' could go by: take l1."
            )

    @torch.no_grad()
    def add_gradients(self, masks: Masks, model: nn.Module, step: int, schedule: Schedule) -> None:
        if self.chosen is None:
            self.chosen = masks.lowest(step, schedule)
        strength = self.at(step)
        if isinstance(masks, WeightMasks):
            for one in masks.held:
                if one.parameter.grad is not None:
                    w = own(one.parameter.detach())
                    chosen = self.chosen[one.name].to(w.device)
                    own(one.parameter.grad).add_(torch.where(chosen, w, 0), alpha=strength)
            return
        factors = {
            group.name: strength * self.chosen[one.name].float() for one in masks.coupled for group in one.groups
        }
        _add_scaled(masks, model, factors)


def _weights(masks: Masks, model: nn.Module) -> Iterator[nn.Parameter]:
    if isinstance(masks, WeightMasks):
        yield from (one.parameter for one in masks.held)
        return
    known = dict(model.named_parameters())
    names = {part.name for one in masks.coupled for group in one.groups for part in group.weights}
    yield from (known[name] for name in sorted(names) if name in known)


def norms(group: UnitGroup) -> Tensor:
    """Returns (units,) float32: the L2 norm of all weights that go with a unit."""
    squares = torch.zeros(group.count)
    for part in group.weights:
        squares += group.vectors(part).square().sum(1).cpu()
    return squares.sqrt()


def _add_scaled(masks: UnitMasks, model: nn.Module, factors: Mapping[str, Tensor]) -> None:
    """Adds to each weight's gradient the weight itself times its unit's factor."""
    known = dict(model.named_parameters())
    by_axis: dict[tuple[str, int], Tensor] = {}
    for one in masks.coupled:
        for group in one.groups:
            for part in group.weights:
                if part.name not in known:
                    continue
                parameter = known[part.name]
                scale = by_axis.get((part.name, part.axis))
                if scale is None:
                    scale = by_axis[part.name, part.axis] = torch.zeros(parameter.shape[part.axis])
                scale[part.index] = factors[group.name][:, None].expand(part.index.shape)
    for (name, axis), scale in by_axis.items():
        parameter = known[name]
        if parameter.grad is not None:
            shape = [-1 if one == axis else 1 for one in range(parameter.ndim)]
            parameter.grad.addcmul_(parameter.detach(), scale.view(shape).to(parameter))
