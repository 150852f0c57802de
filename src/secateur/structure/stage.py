"""The stage as a whole."""

from __future__ import annotations

from secateur.calibration.activations import IN_MEMORY, Storage
from secateur.calibration.statistics import GRADIENTS, Needs
from secateur.calibration.windows import Windows
from secateur.errors import UsageError
from secateur.evaluation.costs import Costs, costs
from secateur.network.modeling import check_plain
from secateur.network.network import Network
from secateur.network.surgery import cut, pad_to_plain
from secateur.network.units import unit_groups
from secateur.processes import ALONE, Processes
from secateur.progress import Progress
from secateur.recipe import INNER_UNITS, Calibration, Prune
from secateur.result import StageReport
from secateur.scores.units import check_fit, unit_score_named
from secateur.structure.budget import SHARES, share_named, share_of
from secateur.structure.channels import choose_channels, repair_channels
from secateur.structure.depth import choose_depth
from secateur.structure.experts import choose_experts
from secateur.structure.inner import choose_inner
from secateur.structure.job import Job
from secateur.structure.tokens import choose_tokens, with_new_vocabulary

COARSE = 0.02  # of what the run's first model costs: more below the target than that is worth a note
CHOOSE = {
    "channel": choose_channels,
    "layer": choose_depth,
    "attention": choose_depth,
    "mlp": choose_depth,
    "expert": choose_experts,
    "token": choose_tokens,
}


def needs_windows(stage: Prune) -> bool:
    """Whether a stage that removes units needs calibration windows."""
    score = unit_score_named(stage.score or "obs", stage.combine)
    inner = set(stage.kinds) <= INNER_UNITS
    return (
        stage.solver == "obs"
        or stage.latency is not None
        or stage.reconstruct
        or (stage.repair and (inner or stage.unit == "channel"))
        or stage.allocation == "error"
        or score.needs != Needs.NOTHING
        or score.name in ("block-influence", "loo-kl", "reap", "frequency")
    )


def check_units(network: Network, stage: Prune) -> None:
    """Raises before any work is done if the model has no such units, or the score doesn't fit them.

    Raises:
        UsageError: The reason.
    """
    score = unit_score_named(stage.score or "obs", stage.combine)
    if network.store is not None:
        raise UsageError("units are removed from models in memory: give --no-stream, on a machine that can hold it.")
    if stage.gradient == "loss" and stage.solver != "obs" and not score.needs & GRADIENTS:
        raise UsageError("--gradient loss is for the solver obs and for the scores taylor, fisher and snip.")
    for kind in stage.kinds:
        unit_groups(network, kind)
        check_fit(score, kind)


def prune_units(
    network: Network,
    stage: Prune,
    windows: Windows | None,
    calibration: Calibration,
    seed: int,
    progress: Progress,
    first: Costs,
    team: Processes = ALONE,
    storage: Storage = IN_MEMORY,
) -> tuple[Network, StageReport]:
    """Removes units of a model for good.

    Args:
        network: The model; it isn't to be used afterwards.
        stage: What to do.
        windows: Calibration windows; None if `needs_windows` says so.
        calibration: Precision of the forward passes, and where the text comes from.
        seed: For scores that draw.
        progress: Shows progress.
        first: What the run's first model costs: shares are shares of it.
        team: The processes that share the calibration.
        storage: Where calibration activations may be kept.

    Returns:
        The smaller model, and what was done.

    Raises:
        UsageError: The target can't be met; the message says the nearest.
        NothingPrunedError: Nothing would go.
    """
    job = Job(network, stage, windows, calibration, seed, progress, first, team, storage)
    cuts = (choose_inner if set(stage.kinds) <= INNER_UNITS else CHOOSE[stage.unit])(job)
    if stage.pad:
        cuts = pad_to_plain(cuts)
    with job.timed("cut"):
        small = cut(network, cuts)
    if stage.uniform or stage.pad:
        option = "--uniform" if stage.uniform else "--pad"
        check_plain(small.model, network.architecture, option, f"Leave {option} out.")
    if stage.unit == "channel" and stage.repair:
        repair_channels(job, network, small, cuts[0].keep)
    if stage.unit == "token":
        small = with_new_vocabulary(network, small, cuts[0].keep)
    before, after = costs(network, first.length), costs(small, first.length)
    _check_target(job, before, after)
    report = StageReport(
        {"prune": stage.model_dump(mode="json")},
        (),
        dict(job.seconds),
        tuple(job.notes),
        tuple(job.blocks),
        tuple(job.groups),
        {"first": vars(first), "before": vars(before), "after": vars(after)},
    )
    return small, report


def _check_target(job: Job, before: Costs, after: Costs) -> None:
    """Raises if the cut model costs more than was asked for, and notes if it costs far less.

    Zeros that --pad added are merely noted, too.

    Raises:
        UsageError: The target was missed.
    """
    stage = job.stage
    if stage.params is None and stage.macs is None and stage.memory is None:
        return
    budget = share_of(stage, job.first, before)
    left = getattr(after, SHARES[share_named(stage)])
    if left <= budget.limit:
        if budget.limit - left > COARSE * getattr(job.first, SHARES[share_named(stage)]):
            others = ["other kinds of units"]
            if set(stage.kinds) <= INNER_UNITS and stage.allocation == "uniform":
                others.append("--allocation global")
            if stage.round_to > 1:
                others.append("a smaller --round-to")
            job.notes.append(
                f"{budget.words}: {left:,.0f} {budget.unit} are left, and {budget.limit:,.0f} were allowed: whole "
                f"units don't come nearer; {' or '.join(others)} may."
            )
        return
    words = f"{budget.words}: {left:,.0f} {budget.unit} are left, and {budget.limit:,.0f} were asked for"
    if not stage.pad:
        raise UsageError(f"{words}. Ask for less.")
    job.notes.append(f"{words}; without the zeros of --pad the target is met.")
