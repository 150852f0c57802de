"""Looks at the model as it is before anything goes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from secateur.calibration.loss import loss_gradients, output_sensitivity
from secateur.calibration.statistics import GRADIENTS, INPUTS, Needs, Statistics
from secateur.network.network import Layer
from secateur.network.unit_group import UnitGroup
from secateur.structure.job import Job


def differentiate_loss(job: Job, layers: Sequence[Layer]) -> None:
    """Finds what the score or the solver needs of the next-token loss."""
    assert job.windows is not None
    rest = (job.calibration.compute, job.progress, job.team)
    with job.timed("gradients"):
        if job.stage.solver == "obs":
            job.sensitivity = output_sensitivity(job.network, layers, job.windows, *rest)
        else:
            job.gradients = loss_gradients(job.network, layers, job.windows, job.score.needs, *rest)


def on_the_dense_model(
    job: Job, groups: Sequence[UnitGroup], needs: Needs
) -> Iterator[tuple[UnitGroup, dict[str, Statistics]]]:
    """Yields each group with statistics of what its readers read in the model as it is now."""
    by_block = blocks_of(groups)
    by_block_loss = job.stage.gradient == "block"
    runner = job.runner() if needs & (INPUTS | GRADIENTS if by_block_loss else INPUTS) else None
    last = max(by_block)
    for block in job.progress.track(range(last + 1), "looking at the dense model"):
        some = by_block.get(block, [])
        inputs = job.gather(runner, some, needs) if runner is not None and some else {}
        for group in some:
            yield group, inputs
        if runner is not None and block < last:
            with job.timed("propagate"):
                runner.advance(lambda: None)


def blocks_of(groups: Sequence[UnitGroup]) -> dict[int, list[UnitGroup]]:
    """Returns the groups of each block."""
    found: dict[int, list[UnitGroup]] = defaultdict(list)
    for group in groups:
        assert group.block is not None
        found[group.block].append(group)
    return found
