"""Which places of tensors are one unit.

Every axis of every tensor in a traced network has a label per place: 0 where nothing can be cut, otherwise a number.
Labels that have to stay or go together are joined (a union-find), and some are frozen, with the reason.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

Axes = tuple[Tensor | None, ...]  # by axis of a tensor: (size,) int64 labels; None where no place has one


class Labels:
    """The labels of one traced network."""

    def __init__(self) -> None:
        self._parents = [0]
        self.reasons: dict[int, str] = {}

    def fresh(self, number: int) -> Tensor:
        """Returns (number,) new labels."""
        start = len(self._parents)
        self._parents.extend(range(start, start + number))
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
        some, places = labels.unique(return_inverse=True)
        return torch.tensor([self.root(label) for label in some.tolist()], dtype=torch.int64)[places]

    def join(self, first: Tensor, second: Tensor, reason: str) -> None:
        """Joins labels pair by pair; what is joined with 0 is frozen for this reason."""
        pairs = torch.stack([first.flatten(), second.flatten()], 1).unique(dim=0)
        for a, b in pairs.tolist():
            if a and b:
                one, two = sorted((self.root(a), self.root(b)))
                self._parents[two] = one
                if two in self.reasons:
                    self.reasons.setdefault(one, self.reasons.pop(two))
            elif a or b:
                self._freeze(a or b, reason)

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

    def reshaped(self, axes: Axes, old: Sequence[int], new: Sequence[int], reason: str) -> Axes:
        """Returns a tensor's labels after a reshape.

        Where an axis is parted in two, units at the same place of the second one stay or go together.

        Args:
            axes: Before.
            old, new: The shapes before and after.
            reason: Why what can't be followed is frozen.
        """
        found: list[Tensor | None] = []
        for before, after in _segments(old, new):
            some = [axes[axis] for axis in before]
            sizes, wanted = [old[axis] for axis in before], [new[axis] for axis in after]
            found += self._segment(some, sizes, wanted, reason)
        return tuple(found)

    def _segment(
        self, some: list[Tensor | None], sizes: list[int], wanted: list[int], reason: str
    ) -> list[Tensor | None]:
        labelled = [axis for axis, labels in enumerate(some) if labels is not None]
        nothing: list[Tensor | None] = [None] * len(wanted)
        if not labelled:
            return nothing
        if len(labelled) > 1:
            for axis in labelled:
                self.freeze(some[axis], reason)
            return nothing
        if not wanted:
            self.freeze(some[labelled[0]], reason)
            return nothing
        labels = self.roots(some[labelled[0]])  # type: ignore[arg-type]
        shape = [1] * len(sizes)
        shape[labelled[0]] = -1
        grid = labels.reshape(shape).expand(sizes).reshape(wanted)
        varying = [axis for axis in range(len(wanted)) if bool((grid != grid.narrow(axis, 0, 1)).any())]
        if not varying:  # one unit on all of it
            varying = [max(range(len(wanted)), key=lambda axis: wanted[axis])]
        while len(varying) > 1:
            first = self.tie(grid, varying[0])
            grid = first.unsqueeze(varying.pop(0)).expand(wanted)
        for axis in range(len(wanted)):
            if axis != varying[0]:
                grid = grid.narrow(axis, 0, 1)
        nothing[varying[0]] = grid.flatten()
        return nothing


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


__all__ = ["Axes", "Labels"]
