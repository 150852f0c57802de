"""Masks of whole units, which hold while a model trains, and their cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.allocation.amounts import Threshold
from secateur.allocation.selection import lowest
from secateur.calibration.statistics import GRADIENTS, Gradients, Needs, Statistics
from secateur.errors import ScoreError, UsageError, did_you_mean
from secateur.network.graph.network import GraphNetwork, cut_graph
from secateur.network.network import Network
from secateur.network.surgery import Cut, cut
from secateur.network.unit_group import UnitGroup
from secateur.schedules import Schedule
from secateur.scores.units import UNIT_SCORES, UnitScore, UnitStatistics, check_fit, scored, unit_score_named
from secateur.scores.units.own import Own, own_score
from secateur.training.gradients import NOT_FINITE, all_finite, gradient_of
from secateur.training.weight_masks import check_shares


@dataclass
class Coupled:
    """Groups that lose the same units: one, but where blocks share what goes with a unit (T5's position biases).

    Attributes:
        name: The group's, or that of what they share.
        groups: They.
        pruned: (units,) bool.
        removed: How many units have been cut already.
    """

    name: str
    groups: list[UnitGroup]
    pruned: Tensor
    removed: int

    @property
    def count(self) -> int:
        """How many units there are."""
        return self.groups[0].count

    @property
    def total(self) -> int:
        """How many units there were at first."""
        return self.count + self.removed


class UnitMasks:
    """Chooses which units are zero, keeps them so, and cuts them.

    Attributes:
        network: What knows how to cut.
        coupled: The groups.
    """

    def __init__(
        self,
        network: Network | GraphNetwork,
        groups: Sequence[UnitGroup],
        *,
        score: str | Callable[[UnitGroup, UnitStatistics], Tensor],
        threshold: str | None,
        allocation: str | Mapping[str, float],
        min_units: int,
        round_to: int,
        seed: int,
        removed: Mapping[str, int],
    ) -> None:
        """
        Args:
            network: The model.
            groups: What is pruned.
            score: A score of units that reads weights or gradients, by name, or a function of the user's own.
            threshold: Everything that scores below it goes.
            allocation: `uniform`, `global`, or each group's share at the end.
            min_units: Every group keeps so many at least.
            round_to: Groups keep multiples of it.
            seed: Of scores that draw.
            removed: By group, how many units have been cut already.

        Raises:
            UsageError: The score reads something else, or these don't go together.
        """
        self.score = _score(score)
        for group in groups:
            check_fit(self.score, group.unit)
        self.threshold = Threshold.parse(threshold) if threshold is not None else None
        self.min_units, self.round_to, self.seed = max(1, min_units), round_to, seed
        self.network = network
        self.coupled = _coupled(groups, removed)
        self.allocation = allocation
        if not isinstance(allocation, str):
            check_shares(allocation, [one.name for one in self.coupled], "groups")
        self._parameters = dict(network.model.named_parameters())
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}
        self.gradients = self._no_sums()
        self._unread = 0  # steps since the last pruning whose gradients weren't finite

    def _no_sums(self) -> dict[str, Gradients]:
        """Returns sums over no steps, by the names of the weights that read units; none where the score reads none."""
        if not self.score.needs:
            return {}
        stored = {
            self._names[id(reader.layer.parameter)]: reader.layer.parameter
            for one in self.coupled
            for group in one.groups
            for reader in group.readers
        }
        return {
            name: Gradients.empty(tuple(one.shape), self.score.needs, one.device)  # type: ignore[arg-type]
            for name, one in stored.items()
        }

    @property
    def units(self) -> int:
        """How many units there were at first."""
        return sum(one.total for one in self.coupled)

    def pruned(self) -> int:
        """Returns how many units the masks hold at zero."""
        return sum(int(one.pruned.sum()) for one in self.coupled)

    @property
    def removed(self) -> int:
        """How many units have been cut already."""
        return sum(one.removed for one in self.coupled)

    def watch(self) -> None:
        """Adds the gradients of one step to what the score reads; not those that are NaN or infinite anywhere, as of a
        step that a GradScaler skips.

        Raises:
            UsageError: There are no gradients.
        """
        if not self.gradients:
            return
        gradients = {name: gradient_of(name, self._parameters[name]) for name in self.gradients}
        if not all_finite(list(gradients.values()), [self._parameters[name] for name in gradients]):
            self._unread += 1
            return
        for name, sums in self.gradients.items():
            sums.add(gradients[name])

    @torch.no_grad()
    def prune(self, step: int, schedule: Schedule) -> int:
        """Chooses anew which units are zero; those that are stay so.

        Args:
            step: The training step.
            schedule: Says the share of units.

        Returns:
            How many units were set to zero by it.
        """
        scores = {one.name: self._scores(number, one, step) for number, one in enumerate(self.coupled)}
        gone = self._counts(scores, schedule(step), schedule(step) / schedule.final)
        added = 0
        for one in self.coupled:
            values = torch.where(one.pruned, -torch.inf, scores[one.name])
            pruned = lowest(values, gone[one.name])
            added += int((pruned & ~one.pruned).sum())
            one.pruned = pruned
        self.gradients, self._unread = self._no_sums(), 0
        return added

    @torch.no_grad()
    def lowest(self, step: int, schedule: Schedule) -> dict[str, Tensor]:
        """Returns by group, (units,) bool: the units that would go now, were it the last pruning."""
        scores = {one.name: self._scores(number, one, step) for number, one in enumerate(self.coupled)}
        gone = self._counts(scores, schedule.final, 1.0)
        return {name: lowest(values, gone[name]) for name, values in scores.items()}

    def _scores(self, number: int, one: Coupled, step: int) -> Tensor:
        """Returns (units,): the sum of the coupled groups' scores."""
        total = torch.zeros(one.count)
        for place, group in enumerate(one.groups):
            inputs = []
            for reader in group.readers if self.gradients else ():
                layer = reader.layer
                sums = self.gradients[self._names[id(layer.parameter)]]
                if sums.count == 0 and self._unread:
                    raise ScoreError(NOT_FINITE.format(steps=self._unread, step=step))
                if sums.count == 0:
                    raise UsageError(
                        f"the score '{self.score.name}' reads gradients, and there are none at step {step}: let the "
                        "schedule begin at step 1 or later."
                    )
                parts = [
                    None if part is None else layer.as_matrix(part) for part in (sums.total, sums.sizes, sums.squares)
                ]
                known = Statistics.empty(layer.shape[1], Needs.NOTHING, layer.parameter.device)
                known.gradients = Gradients(sums.count, *parts)
                inputs.append(known)
            random = torch.Generator().manual_seed((self.seed * 1_000_003 + 1_009 * number + place) * 65_537 + step)
            total += scored(self.score, group, UnitStatistics(tuple(inputs), random=random))
        return total

    def _counts(self, scores: Mapping[str, Tensor], share: float, way: float) -> dict[str, int]:
        """Returns how many units of each group are zero at a share of all units, `way` of the final one."""
        if self.threshold is not None:
            wanted = {}
            for one in self.coupled:
                values = scores[one.name]
                known = torch.where(one.pruned, 0.0, values)  # what is pruned scored nothing
                least = self.threshold.value(torch.cat([known, known.new_zeros(one.removed)]))
                least = least * way if self.threshold.kind == "value" else least
                wanted[one.name] = int(((values < least) | one.pruned).sum())
        elif self.allocation == "global":
            wanted = self._ranked(scores, round(share * self.units) - self.removed)
        elif self.allocation == "uniform":
            wanted = {one.name: round(share * one.total) - one.removed for one in self.coupled}
        else:
            assert not isinstance(self.allocation, str)
            shares = self.allocation
            wanted = {one.name: round(way * shares[one.name] * one.total) - one.removed for one in self.coupled}
        return {one.name: max(int(one.pruned.sum()), self.rounded(one, wanted[one.name])) for one in self.coupled}

    def _ranked(self, scores: Mapping[str, Tensor], number: int) -> dict[str, int]:
        """Returns how many of the lowest scores, relative to their group's mean, lie in each group."""
        values = []
        for one in self.coupled:
            alive = scores[one.name][~one.pruned]
            relative = scores[one.name] / (float(alive.abs().mean()) or 1.0)
            relative = torch.where(one.pruned, -torch.inf, relative)
            stays = relative.argsort(stable=True)[one.count - min(one.count, self.min_units) :]
            relative[stays] = torch.inf
            values.append(relative)
        marked = lowest(torch.cat(values), min(number, sum(int((one < torch.inf).sum()) for one in values)))
        counts = [int(part.sum()) for part in marked.split([one.count for one in self.coupled])]
        return {one.name: count for one, count in zip(self.coupled, counts, strict=True)}

    def rounded(self, one: Coupled, gone: int) -> int:
        """Returns how many units go so that what stays is a multiple of `round_to`, and enough."""
        if gone <= 0:
            return 0
        left = max(one.count - gone, self.min_units)
        return one.count - min(one.count, -(-left // self.round_to) * self.round_to)

    def hold(self) -> None:
        """Sets all that goes with pruned units to zero, whatever the optimizer made of it."""
        with torch.no_grad():
            for one in self.coupled:
                if bool(one.pruned.any()):
                    for group in one.groups:
                        for part in group.slices:
                            if part.name in self._parameters:
                                parameter = self._parameters[part.name].detach()
                                at = part.index[one.pruned].flatten().to(parameter.device)
                                parameter.index_fill_(part.axis, at, 0)

    def places(self) -> dict[tuple[str, int], Tensor]:
        """Returns by parameter and axis which places stay: bool."""
        stays: dict[tuple[str, int], Tensor] = {}
        for one in self.coupled:
            for group in one.groups:
                for part in group.slices:
                    if part.name in self._parameters:
                        size = self._parameters[part.name].shape[part.axis]
                        keep = stays.setdefault((part.name, part.axis), torch.ones(size, dtype=torch.bool))
                        keep[part.index[one.pruned].flatten()] = False
        return stays

    def cut(self) -> nn.Module:
        """Returns the model without the pruned units; it may share tensors with the one that was trained."""
        kept = {group.name: ~one.pruned for one in self.coupled for group in one.groups}
        if isinstance(self.network, GraphNetwork):
            return cut_graph(self.network, kept)
        cuts = [Cut(group, kept[group.name]) for one in self.coupled for group in one.groups]
        small: nn.Module = cut(self.network, [one for one in cuts if not bool(one.keep.all())]).model
        return small

    def state_dict(self) -> dict[str, Any]:
        """Returns masks and sums."""
        sums = {name: vars(one).copy() for name, one in self.gradients.items()}
        return {"pruned": {one.name: one.pruned.clone() for one in self.coupled}, "gradients": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned.

        Raises:
            UsageError: It is of other groups.
        """
        sizes = {one.name: one.count for one in self.coupled}
        found = {name: len(pruned) for name, pruned in state["pruned"].items()}
        if sizes != found:
            odd = next(name for name in (*sizes, *found) if sizes.get(name) != found.get(name))
            raise UsageError(
                f"the state is of another model: {odd} has {found.get(odd, 'no')} units there, and "
                f"{sizes.get(odd, 'none')} here."
            )
        for one in self.coupled:
            one.pruned = state["pruned"][one.name].cpu()
        for name, sums in state["gradients"].items():
            device = self._parameters[name].device
            parts = {kind: part.to(device) if isinstance(part, Tensor) else part for kind, part in sums.items()}
            self.gradients[name] = Gradients(**parts)  # type: ignore[arg-type]


def _score(given: str | Callable[[UnitGroup, UnitStatistics], Tensor]) -> UnitScore:
    """Returns a score that can be had while training.

    Raises:
        UsageError: It reads what only a calibration pass gathers, or there is none of the name.
    """
    if not isinstance(given, str):
        score: UnitScore = Own(getattr(given, "__qualname__", "score"), given, Needs.NOTHING)
    elif ":" in given:
        score = own_score(given, Needs.NOTHING)
    else:
        known = [name for name, one in UNIT_SCORES.items() if not one.needs & ~GRADIENTS]
        if given not in UNIT_SCORES:
            raise UsageError(f"unknown score '{given}' of units.{did_you_mean(given, known)}")
        score = unit_score_named(given)
    if score.needs & ~GRADIENTS:
        raise UsageError(
            f"the score '{score.name}' needs statistics of a calibration pass, which training doesn't gather; take l1, "
            "l2, taylor, fisher, snip or a function of your own that reads the weights."
        )
    return score


def _coupled(groups: Sequence[UnitGroup], removed: Mapping[str, int]) -> list[Coupled]:
    by_name: dict[str, list[UnitGroup]] = defaultdict(list)
    for group in groups:
        by_name[group.shared or group.name].append(group)
    return [
        Coupled(name, some, torch.zeros(some[0].count, dtype=torch.bool), removed.get(name, 0))
        for name, some in by_name.items()
    ]
