"""What a stage on a traced network works with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from torch import Tensor

from secateur.calibration.batches import Batch, Loss, default_loss
from secateur.errors import UsageError
from secateur.evaluation.costs import Costs
from secateur.layer_choice import chosen_groups
from secateur.network.graph.network import GraphNetwork
from secateur.network.unit_group import UnitGroup
from secateur.progress import Progress
from secateur.recipe import Prune
from secateur.scores.units import UnitScore, unit_score_named
from secateur.timing import timed


@dataclass
class TracedJob:
    """One stage's work on a traced network.

    Attributes:
        network: The network; it isn't changed.
        stage: What to do.
        batches: Calibration batches.
        loss: What gradient scores differentiate.
        seed: For scores that draw.
        progress: Shows progress.
        first: What the run's first network cost, of which targets are shares; None if it is this one.
        scores: (units,) float32 by group, if they are known; None computes them.
    """

    network: GraphNetwork
    stage: Prune
    batches: Sequence[Batch]
    loss: Loss = default_loss
    seed: int = 0
    progress: Progress = field(default_factory=Progress)
    first: Costs | None = None
    scores: Mapping[str, Tensor] | None = None
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    notes: list[str] = field(default_factory=list)

    def timed(self, phase: str) -> AbstractContextManager[None]:
        """Adds the time spent inside to a phase."""
        return timed(self.seconds, phase)


def traced_groups(job: TracedJob) -> list[UnitGroup]:
    """Returns the groups that may give units.

    Raises:
        UsageError: There are none.
    """
    groups = [group for group in job.network.groups if group.unit in job.stage.kinds and group.count > 1]
    if not groups:
        known = sorted({group.unit for group in job.network.groups})
        reasons = "".join(f" {one.name}: {one.reason}." for one in job.network.fixed[:3])
        raise UsageError(
            f"{job.network.architecture} has no units of the kind '{job.stage.unit}' that can be cut; it has "
            f"{', '.join(known) or 'none at all'}.{reasons}"
        )
    groups = chosen_groups(groups, job.stage.include, job.stage.exclude)
    first, last = job.stage.protect_first, job.stage.protect_last
    if first + last >= len(groups):
        raise UsageError(f"protect_first and protect_last leave none of the {len(groups)} groups to prune.")
    return groups[first : len(groups) - last]


def score_of(stage: Prune) -> UnitScore:
    """Returns the score that a stage goes by."""
    return unit_score_named(stage.score or "obs", stage.combine)
