"""Which places of tensors are one unit.

Every axis of every tensor in a traced network has a label per place: 0 where nothing can be cut, otherwise a number.
Labels that have to stay or go together are joined (a union-find), and some are frozen, with the reason.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

Axes = tuple[Tensor | None, ...]  # by axis of a tensor: (size,) int64 labels; None where no place has one


@dataclass(frozen=True)
class Count:
    """A number in the model's code that depends on how many units there are.

    Attributes:
        labels: (places,) of the axes that it comes from.
        exact: Whether it is the size of one axis.
    """

    labels: Tensor
    exact: bool


class Labels:
    """The labels of one traced network.

    Attributes:
        reasons: Why units are frozen, by their root.
    """

    def __init__(self) -> None:
        self._parents = [0]
        self._loose: set[int] = set()  # roots of what only stored tensors have
        self._table: Tensor | None = None  # by label: its root, once nothing is joined any more
        self.reasons: dict[int, str] = {}

    def fresh(self, number: int, loose: bool = False) -> Tensor:
        """Returns (number,) new labels.

        Args:
            number: How many.
            loose: Whether they are of a stored tensor, that may never meet units.
        """
        start = len(self._parents)
        self._parents.extend(range(start, start + number))
        if loose:
            self._loose.update(range(start, start + number))
        return torch.arange(start, start + number)

    def root(self, label: int) -> int:
        """Returns the number that all labels joined with this one have in common."""
        parents = self._parents
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label

    def roots(self, labels: Tensor) -> Tensor:
        """Returns the roots of labels, in the same shape."""
        if self._table is not None:
            return self._table[labels]
        some, places = labels.unique(return_inverse=True)
        return torch.tensor([self.root(label) for label in some.tolist()], dtype=torch.int64)[places]

    def close(self) -> None:
        """Has roots be looked up faster from now on: nothing is joined any more."""
        self._table = torch.tensor([self.root(label) for label in range(len(self._parents))])

    def frozen(self, roots: Tensor) -> Tensor:
        """Returns (n,) bool: which of some roots can't be cut."""
        return torch.isin(roots, torch.tensor([0, *self.reasons], dtype=torch.int64))

    def join(self, first: Tensor, second: Tensor, reason: str) -> None:
        """Joins labels pair by pair; what is joined with 0 is frozen for this reason."""
        pairs = torch.stack([first.flatten(), second.flatten()], 1).unique(dim=0)
        for a, b in pairs.tolist():
            if a and b:
                one, two = sorted((self.root(a), self.root(b)))
                self._parents[two] = one
                if one != two and not {one, two} <= self._loose:
                    self._loose -= {one, two}
                if two in self.reasons:
                    self.reasons.setdefault(one, self.reasons.pop(two))
            elif a or b:
                self._freeze(a or b, reason)

    def _all_loose(self, labels: Tensor | None) -> bool:
        return labels is not None and set(self.roots(labels).tolist()) <= self._loose

    def meet(self, some: Sequence[Tensor | None], size: int, reason: str) -> Tensor | None:
        """Joins axes of one size that meet place by place; returns their labels."""
        known = [labels for labels in some if labels is not None]
        if not known:
            return None
        for labels in some:
            if labels is not known[0]:
                self.join(known[0], torch.zeros(size, dtype=torch.int64) if labels is None else labels, reason)
        return known[0]

    def freeze(self, labels: Tensor | None, reason: str) -> None:
        """Has the units of some labels stay, whatever is asked for."""
        if labels is not None:
            for label in labels.unique().tolist():
                if label:
                    self._freeze(label, reason)

    def _freeze(self, label: int, reason: str) -> None:
        self.reasons.setdefault(self.root(label), reason)

    def tie(self, grid: Tensor, axis: int) -> Tensor:
        """Joins labels along an axis of a grid of them; returns the first along it."""
        first = grid.narrow(axis, 0, 1)
        self.join(first.expand_as(grid), grid, "it shares a weight with what can't be cut")
        return first.squeeze(axis)

    def reshaped(
        self, axes: Axes, old: Sequence[int], new: Sequence[int], reason: str, keep: Sequence[int] = ()
    ) -> tuple[Axes, set[int]]:
        """Follows a tensor's labels through a reshape.

        Where an axis is parted in several, units stay apart along one of them only, and those at the same place of it
        stay or go together.

        Args:
            axes: Before.
            old, new: The shapes before and after.
            reason: Why what can't be followed is frozen.
            keep: Along which axes of the new shape units rather stay apart, the most wanted first; else the last one.

        Returns:
            The labels, and those new axes along which units could have stayed apart, where there was a choice.
        """
        found: list[Tensor | None] = []
        choices: set[int] = set()
        for before, after in _segments(old, new):
            some = [axes[axis] for axis in before]
            sizes, wanted = [old[axis] for axis in before], [new[axis] for axis in after]
            order = [after.index(axis) for axis in keep if axis in after]
            parted, among = self._segment(some, sizes, wanted, reason, order)
            found += parted
            choices |= {after[axis] for axis in among if len(among) > 1}
        return tuple(found), choices

    def _segment(
        self, some: list[Tensor | None], sizes: list[int], wanted: list[int], reason: str, order: list[int]
    ) -> tuple[list[Tensor | None], list[int]]:
        labelled = [axis for axis, labels in enumerate(some) if labels is not None]
        if len(labelled) > 1:  # what only a stored tensor has, may as well stay
            for axis in [axis for axis in labelled if self._all_loose(some[axis])]:
                self.freeze(some[axis], reason)
                labelled.remove(axis)
        found: list[Tensor | None] = [None] * len(wanted)
        if not labelled:
            return found, []
        if len(labelled) > 1 or not wanted:
            for axis in labelled:
                self.freeze(some[axis], reason)
            return found, []
        labels = self.roots(some[labelled[0]])  # type: ignore[arg-type]
        shape = [1] * len(sizes)
        shape[labelled[0]] = -1
        grid = labels.reshape(shape).expand(sizes).reshape(wanted)
        varying = [axis for axis in range(len(wanted)) if bool((grid != grid.narrow(axis, 0, 1)).any())]
        if not varying:  # one unit on all of it
            varying = [max(range(len(wanted)), key=lambda axis: wanted[axis])]
        chosen = next((axis for axis in order if axis in varying), varying[-1])
        for axis in varying:
            if axis != chosen:
                grid = self.tie(grid, axis).unsqueeze(axis).expand(wanted)
        for axis in range(len(wanted)):
            if axis != chosen:
                grid = grid.narrow(axis, 0, 1)
        found[chosen] = grid.flatten()
        return found, varying


def _segments(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Returns the runs of axes of two shapes that hold the same elements."""
    ends = {prod(old[:end]) for end in range(len(old) + 1)} & {prod(new[:end]) for end in range(len(new) + 1)}
    found: dict[int, tuple[list[int], list[int]]] = {end: ([], []) for end in sorted(ends)}
    order = sorted(ends)
    for side, shape in ((0, old), (1, new)):
        for axis, product in enumerate(accumulate(shape, operator.mul, initial=1)):
            if axis < len(shape):
                # an axis belongs to the last run that begins at or before it
                start = max(end for end in order if end <= product)
                found[start][side].append(axis)
    return [found[end] for end in order if found[end][0] or found[end][1]]


__all__ = ["Axes", "Count", "Labels"]
