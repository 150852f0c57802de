"""A search over how many units each group of a traced network gives: every candidate is cut, repaired and measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from secateur.automl.pieces import pieces_of
from secateur.automl.reward import Reward, Worth
from secateur.automl.space import Levels, Place, Space
from secateur.automl.strategies import Proposal
from secateur.calibration.batches import Batch, Loss, default_loss
from secateur.errors import UsageError
from secateur.network.graph.network import GraphNetwork
from secateur.network.graph.tracing import evaluating
from secateur.network.unit_group import UnitGroup
from secateur.recipe import Prune
from secateur.structure.traced import prune_traced, unit_scores
from secateur.structure.traced_job import TracedJob, traced_groups
from secateur.structure.traced_widths import are_losses, time_ratio

PARTS = 8  # of a group's units that go one by one
MEASURES = {"params": "parameters", "macs": "macs"}


class NetworkSearch:
    """What a search over a network's widths works on.

    A candidate is worth minus its loss on examples: it is cut, what reads units that went is fitted anew on as large a
    share of the other examples, and the loss is that of its outputs against the targets, or where there are none
    against the dense network's outputs.

    Attributes:
        space: What is chosen from.
        fixed: Groups that can't give any units, as too few would be left.
    """

    def __init__(
        self, network: GraphNetwork, stage: Prune, batches: Sequence[Batch], loss: Loss | None, seed: int
    ) -> None:
        """
        Args:
            network: The network.
            stage: What is searched for: units, score or solver, and `params` or `macs`.
            batches: Calibration data; the last half of them judges.
            loss: Of (output, target); None takes cross-entropy for classes, half the squared error for other targets.
            seed: For scores that draw.

        Raises:
            UsageError: The target is another one, or there is too little data.
        """
        name = next((name for name in MEASURES if getattr(stage, name) is not None), None)
        if name is None:
            raise UsageError("a search of a network's widths goes by --params or --macs.")
        measure, goal = MEASURES[name], getattr(stage, name)
        if len(batches) == 1:
            batches = _halved(batches[0])
        if len(batches) < 2:
            raise UsageError("a search needs two examples of calibration data: some to fit on, some to judge on.")
        self.network, self.stage, self.loss, self.seed = network, stage, loss or default_loss, seed
        half = (len(batches) + 1) // 2
        self.fitted, self.judged = list(batches[:half]), [self._answered(batch) for batch in batches[half:]]
        job = TracedJob(network, stage, self.fitted, self.loss, seed)
        groups = traced_groups(job)
        with evaluating(network.model):
            self.scores = unit_scores(job, groups)
        groups = [group for group in groups if group.name in self.scores]
        self.counter, self.counts = network.costs, {group.name: group.count for group in groups}
        dense = self.counter.of()
        self.dense = {what: int(getattr(dense, what)) for what in MEASURES.values()}
        whole = self.dense[measure]
        self.fixed = [group.name for group in groups if len(_amounts(group, stage)) == 1]
        self.places: list[Place] = []
        for number, group in enumerate(groups):
            amounts = _amounts(group, stage)
            left = (self.counter.of({group.name: group.count - amount}) for amount in amounts)
            costs = tuple(whole - int(getattr(one, measure)) for one in left)
            depth = number / max(1, len(groups) - 1)
            losses = _losses(self.scores[group.name], amounts, costs, are_losses(stage))
            share = costs[-1] / whole
            self.places.append(Place(group.name, amounts, costs, losses, (depth, depth * depth, share, 1.0)))

        def together(levels: Sequence[int]) -> int:
            return self._taken(tuple(levels), measure)

        self.space = Space(
            self.places,
            math.ceil(whole - goal * whole),
            together,
            target=lambda cost: f"--{name} {1 - cost / whole:.3g}",
        )

    def stage_of(self, levels: Levels) -> Prune:
        """Returns the stage that removes what a candidate says."""
        amounts = self.space.amounts(levels)
        update = {"params": None, "macs": None, "amounts": amounts, "allocation": "uniform"}
        return self.stage.model_copy(update=update)

    @property
    def examples(self) -> int:
        """How many examples judge."""
        return sum(batch.size for batch in self.judged)

    def judged_as(self, proposal: Proposal, reward: Reward) -> Worth:
        """Returns what a candidate is worth: by minus its mean loss on as many examples as it is to be judged on."""
        levels, examples = proposal.levels, proposal.tokens
        shares = {name: 1 - self._taken(levels, what) / self.dense[what] for name, what in MEASURES.items()}
        if not reward.measures <= {"latency", *shares}:
            raise UsageError("a network's candidates are measured by params, macs and latency.")
        if "latency" not in reward.measures and reward.excess(shares) > 0:
            return reward.beyond(shares)
        some = self.fitted[: max(1, math.ceil(len(self.fitted) * examples / self.examples))]
        job = TracedJob(self.network, self.stage_of(levels), some, self.loss, self.seed, scores=self.scores)
        small, _, _ = prune_traced(job)
        small.eval()
        if "latency" in reward.measures:
            shares["latency"] = time_ratio(self.network.model, small, self.judged[0].inputs)
        if reward.excess(shares) > 0:
            return reward.beyond(shares)
        total, count = 0.0, 0
        with torch.inference_mode():
            for number in pieces_of([batch.size for batch in self.judged], examples, proposal.text):
                batch = self.judged[number]
                total += float(self.loss(small(*batch.inputs), batch.target)) * batch.size
                count += batch.size
        return reward.of(-total / count, shares)

    def _taken(self, levels: Levels, what: str) -> int:
        """Returns what a candidate takes off parameters or multiply-accumulates."""
        widths = {p.name: self.counts[p.name] - p.amounts[level] for p, level in zip(self.places, levels, strict=True)}
        return self.dense[what] - int(getattr(self.counter.of(widths), what))

    def _answered(self, batch: Batch) -> Batch:
        """Returns a batch with the dense network's outputs as targets, if it has none."""
        if batch.target is not None:
            return batch
        with torch.inference_mode():
            output = self.network.model(*batch.inputs)
        if not isinstance(output, Tensor):
            raise UsageError("candidates are judged by their outputs: give calibration data with targets.")
        return replace(batch, target=output)


def _amounts(group: UnitGroup, stage: Prune) -> tuple[int, ...]:
    """Returns how many units may go: none, or about eighths of them that leave a multiple of `round_to`."""
    step = max(1, group.count // PARTS // stage.round_to) * stage.round_to
    most = group.count - max(1, stage.min_units)
    return (0, *range(group.count % stage.round_to or step, most + 1, step))


def _losses(scores: Tensor, amounts: Sequence[int], costs: Sequence[int], losses: bool) -> tuple[float, ...]:
    """Returns what a group costs in quality at each level, by the scores of the units that go.

    Scores that are losses add up. Others have scales of their own: a step's loss per cost is then what the units that
    go in it are relative to their group's mean, as in `--allocation global`.
    """
    ordered = scores.double().sort().values
    found = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])[list(amounts)]
    if not losses:
        scale = (float(ordered.abs().mean()) or 1.0) * torch.tensor(amounts).diff()
        found = torch.cat([found[:1], (found.diff() / scale * torch.tensor(costs).diff()).cumsum(0)])
    return tuple(found.tolist())


def _halved(batch: Batch) -> list[Batch]:
    """Returns a batch's two halves; of one example itself."""
    half = (batch.size + 1) // 2
    parts = [slice(0, half), slice(half, None)] if batch.size > 1 else [slice(None)]
    return [
        Batch(
            tuple(one[part] if isinstance(one, Tensor) else one for one in batch.inputs),
            batch.target[part] if isinstance(batch.target, Tensor) else batch.target,
        )
        for part in parts
    ]
