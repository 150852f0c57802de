"""Neurons and heads: chosen and repaired block by block on the pruned prefix, cut when all are known.

A removed unit's slices are set to zero as soon as it is chosen. That is exactly what cutting it does to the outputs, so
the blocks behind see the smaller model's activations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import lcm

import torch
from torch import Tensor

from secateur.allocation.amounts import Threshold
from secateur.allocation.widths import Budget, Place, cost_of, even_widths, ramp, ranked_widths
from secateur.calibration.loss import loss_gradients, output_sensitivity
from secateur.calibration.runner import BlockRunner
from secateur.calibration.statistics import GRADIENTS, INPUTS, Needs, Statistics
from secateur.calibration.targets import Moments, output_moments
from secateur.errors import NothingPrunedError, UsageError
from secateur.layer_choice import amounts_of
from secateur.linear_algebra import DAMPING
from secateur.network.network import Layer, Network
from secateur.network.surgery import Cut
from secateur.network.units import Reader, UnitGroup, unit_groups
from secateur.scores.units import scored
from secateur.solvers.removal import elimination, refit
from secateur.structure.budget import budget_of
from secateur.structure.job import Job
from secateur.training.reconstruction import reconstruct

ORDER = ("head", "query-head", "neuron")  # in which a block computes them
PLAN_ROUNDS = 32
ALIGNED = 8  # widths of experts are multiples of it: the product of all experts at once takes aligned rows only


def choose_inner(job: Job) -> list[Cut]:
    """Chooses, repairs and zeroes neurons and heads; returns what is to be cut."""
    groups = _groups(job)
    if job.stage.gradient == "loss":
        if job.stage.solver == "obs" and any(group.shared is not None for group in groups):
            raise UsageError(
                f"heads that several blocks of {job.network.architecture} lose together go by a score, not in "
                "rounds, so their errors can't be weighed; leave --gradient loss out."
            )
        _differentiate_loss(job, [reader.layer for group in groups for reader in group.readers])
    counts = _counts(job, groups)
    _note_widths(job, groups, counts)
    return _walk(job, groups, counts)


def _differentiate_loss(job: Job, layers: Sequence[Layer]) -> None:
    """Finds what the score or the solver needs of the next-token loss."""
    assert job.windows is not None
    rest = (job.calibration.compute, job.progress, job.team)
    with job.timed("gradients"):
        if job.stage.solver == "obs":
            job.sensitivity = output_sensitivity(job.network, layers, job.windows, *rest)
        else:
            job.gradients = loss_gradients(job.network, layers, job.windows, job.score.needs, *rest)


def _groups(job: Job) -> list[UnitGroup]:
    """Returns the groups that may give units, in the order of computation."""
    stage = job.stage
    first, last = stage.protect_first, len(job.network.blocks) - stage.protect_last
    found = [group for kind in ORDER if kind in stage.kinds for group in unit_groups(job.network, kind)]
    groups = [group for group in found if group.block is not None and first <= group.block < last]
    if not groups:
        raise UsageError("--protect-first and --protect-last leave no block to prune.")
    return groups


def _counts(job: Job, groups: Sequence[UnitGroup]) -> dict[str, int] | None:
    """Returns how many units each group keeps, by name; None where a threshold decides group by group."""
    stage = job.stage
    if stage.threshold is not None:
        return None
    if stage.amounts is not None:
        most = {group.name: group.count - max(1, stage.min_units) for group in groups}
        gone = amounts_of(stage.amounts, most, "group of units")
        return {group.name: group.count - gone[group.name] for group in groups}
    if stage.remove is not None or (stage.sparsity is not None and stage.allocation == "uniform"):
        return {group.name: _own_width(job, group) for group in groups}
    budget, each = budget_of(job, groups)
    mixed = len(stage.kinds) > 1
    values: list[tuple[float, ...]] = [()] * len(groups)
    if stage.allocation in ("global", "error") or mixed:
        values = _values(job, groups, each)
    places = [
        Place(group.name, group.count, float(cost.mean()), min(group.count, max(1, stage.min_units)), value)
        for group, cost, value in zip(groups, each, values, strict=True)
    ]
    if stage.allocation == "ramp":
        widths = _ramped(job, groups, places, budget)
    elif stage.allocation == "uniform" and not mixed:
        widths = even_widths(places, budget, _step(job, groups))
    else:
        widths = ranked_widths(places, budget, _step(job, groups))
    if stage.uniform or (mixed and stage.allocation == "uniform"):
        widths = _evened(job, groups, widths, places, budget)
    return {group.name: width for group, width in zip(groups, widths, strict=True)}


def _note_widths(job: Job, groups: Sequence[UnitGroup], counts: Mapping[str, int] | None) -> None:
    """Notes what the user may not expect of the widths."""
    if (step := _step(job, groups)) > job.stage.round_to:
        job.notes.append(f"Widths of experts are multiples of {step}: the product of all experts takes no others.")
    if counts is None or len(job.stage.kinds) == 1:
        return
    least = max(1, job.stage.min_units)
    for kind in job.stage.kinds:
        some = [group for group in groups if group.unit == kind]
        if any(counts[group.name] <= least < group.count for group in some):
            job.notes.append(f"Units of the kind '{kind}' went down to the least that is allowed ({least}) somewhere.")


def _step(job: Job, groups: Sequence[UnitGroup]) -> int:
    """Returns what widths are a multiple of."""
    experts = any(reader.layer.expert is not None for group in groups for reader in group.readers)
    return lcm(job.stage.round_to, ALIGNED) if experts else job.stage.round_to


def _own_width(job: Job, group: UnitGroup) -> int:
    """Returns a group's width where its share or its number is its own: `sparsity` and `remove`."""
    stage = job.stage
    gone = stage.remove if stage.remove is not None else round(group.count * (stage.sparsity or 0))
    step = _step(job, [group])
    width = (group.count - gone) // step * step
    least = max(1, stage.min_units)
    if width < least:
        fewest = -(-least // step) * step
        rounded = f" (a multiple of {step})" if step > 1 else ""
        advice = f"Remove {group.count - fewest} at most." if fewest < group.count else "No number of them can go."
        raise UsageError(
            f"{group.name} has {group.count} units: removing {gone} of them leaves {max(width, 0)}{rounded}, and at "
            f"least {least} have to stay. {advice}"
        )
    return width


def _evened(
    job: Job, groups: Sequence[UnitGroup], widths: Sequence[int], places: Sequence[Place], budget: Budget
) -> list[int]:
    """Gives all groups of a kind their mean width, rounded down, and then what is left of the budget, dearest first."""
    total: dict[str, list[int]] = defaultdict(list)
    for group, width in zip(groups, widths, strict=True):
        total[group.unit].append(width)
    step = _step(job, groups)
    even = {kind: max(1, job.stage.min_units, sum(w) // len(w) // step * step) for kind, w in total.items()}

    def kept(even: dict[str, int]) -> list[int]:
        return [min(group.count, even[group.unit]) for group in groups]

    each = {group.unit: place.cost for group, place in zip(groups, places, strict=True)}
    most = {kind: max(group.count for group in groups if group.unit == kind) for kind in even}
    for kind in sorted(even, key=lambda kind: -each[kind]):
        for width in range(even[kind] + step, most[kind] + step, step):
            wider = {**even, kind: width}
            if cost_of(places, kept(wider), budget) > budget.limit:
                break
            even = wider
    return kept(even)


def _ramped(job: Job, groups: Sequence[UnitGroup], places: Sequence[Place], budget: Budget) -> list[int]:
    """Removes more from later blocks: by a common factor on the ramp, the least that meets the budget."""
    blocks = sorted({group.block for group in groups if group.block is not None})
    shares = dict(zip(blocks, ramp(len(blocks)), strict=True))
    step = _step(job, groups)

    def kept(factor: float) -> list[int]:
        return [
            max(place.least, int(place.count * (1 - min(1.0, factor * shares[group.block or 0]))) // step * step)
            for group, place in zip(groups, places, strict=True)
        ]

    def cost(widths: Sequence[int]) -> float:
        return budget.now - sum((p.count - w) * p.cost for p, w in zip(places, widths, strict=True))

    low, high = 0.0, 1 / min(shares.values())
    if cost(kept(high)) > budget.limit:
        even_widths(places, budget, step)  # says what is the nearest
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(kept(middle)) <= budget.limit else (middle, high)
    return kept(high)


def _values(job: Job, groups: Sequence[UnitGroup], costs: Sequence[Tensor]) -> list[tuple[float, ...]]:
    """Returns what each group's removals cost in quality, in the order in which they would go, from the dense model.

    Kinds whose values are on different scales are brought to the same mean per parameter, or what the target counts.

    Args:
        job: The stage's work.
        groups: The groups.
        costs: (units,) by group: what goes with each unit.
    """
    by_error = job.stage.allocation == "error" or job.stage.solver == "obs"
    if by_error and any(len(group.readers) > 1 for group in groups):
        if len(job.stage.kinds) > 1:
            raise UsageError(
                "the neurons of experts have no error that could be held against that of heads: remove them in two "
                "stages, or give --solver none with a --score."
            )
        raise UsageError("the neurons of experts share one budget evenly; leave --allocation out.")
    found: dict[str, Tensor] = {}
    for group, inputs in _dense(job, groups, Needs.GRAM if by_error else job.score.needs):
        with job.timed("plan"):
            if by_error:
                (reader,) = group.readers
                W = _weighed(job, reader.layer, _weights(job, reader.layer)[0])
                most = group.count - max(1, job.stage.min_units)
                G = inputs[reader.layer.reads].G
                path = elimination(W, G, reader.index, most, _damping(job), PLAN_ROUNDS)
                relative = job.stage.allocation == "error" and not job.sensitivity and path.energy > 0
                found[group.name] = path.losses / (path.energy if relative else 1.0)
            else:
                scores = scored(job.score, group, job.statistics(group, inputs))
                found[group.name] = scores.sort().values.double()
    for kind in {group.unit for group in groups}:
        if job.stage.allocation != "error" and not job.sensitivity:
            some = [(group.name, cost) for group, cost in zip(groups, costs, strict=True) if group.unit == kind]
            mean = float(torch.cat([found[name] for name, _ in some]).mean())
            each = float(torch.cat([cost for _, cost in some]).mean())
            for name, _ in some:
                found[name] = found[name] * each / (mean or 1.0)
    return [tuple(found[group.name].tolist()) for group in groups]


def _dense(job: Job, groups: Sequence[UnitGroup], needs: Needs) -> Iterator[tuple[UnitGroup, dict[str, Statistics]]]:
    """Yields each group with statistics of what its readers read in the model as it is now."""
    by_block = _by_block(groups)
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


@dataclass(frozen=True)
class UnitLevel:
    """A group of units at one of several levels.

    Attributes:
        W: (out, in) float32: the reader's weights, fitted anew on what stays, zero where units go.
        bias: (out,) float32, or None.
        loss: By how much that raises the squared error of the reader's outputs, weighed as the stage says.
    """

    W: Tensor
    bias: Tensor | None
    loss: float


def solve_unit_levels(
    job: Job,
    groups: Sequence[UnitGroup],
    levels: Mapping[str, Sequence[int]],
    take: Callable[[UnitGroup, int, UnitLevel], None],
) -> None:
    """Solves groups at several numbers of removed units each, on the dense model, which stays as it is.

    Args:
        job: The work; its stage says how readers are fitted, and whether errors are weighed by the next-token loss.
        groups: Groups with one reader each, in the order of computation.
        levels: Numbers of units that go, by group; all of them stand for a reader that gives nothing.
        take: Is called with the group, the number, and what came of it.

    Raises:
        UsageError: Units of a group have several readers.
    """
    if any(len(group.readers) != 1 for group in groups):
        raise UsageError("levels are solved for units that one layer reads, not for those of experts.")
    if job.stage.gradient == "loss":
        _differentiate_loss(job, [reader.layer for group in groups for reader in group.readers])
    for group, inputs in _dense(job, groups, Needs.GRAM):
        (reader,) = group.readers
        moments = _moments(job, reader, inputs)
        if moments is None or not levels.get(group.name):
            continue
        W, b = _weights(job, reader.layer)
        every = torch.ones(W.shape[1], dtype=torch.bool)
        with job.timed("solve"), torch.inference_mode():
            start = _weighed(job, reader.layer, refit(W, b, moments, every, _damping(job)).W)
            G = moments.G if b is None else moments.centred().G
            most = max((amount for amount in levels[group.name] if amount < group.count), default=0)
            path = elimination(start, G, reader.index, most, _damping(job), PLAN_ROUNDS)
            for amount in levels[group.name]:
                if amount == group.count:
                    nothing = None if b is None else torch.zeros_like(b)
                    take(group, amount, UnitLevel(torch.zeros_like(W), nothing, path.energy))
                    continue
                columns = every.clone()
                columns[reader.index[path.order[:amount]].flatten()] = False
                done = refit(W, b, moments, columns, _damping(job))
                take(group, amount, UnitLevel(done.W, done.bias, float(path.losses[:amount].sum())))


def _shared(job: Job, groups: Sequence[UnitGroup], counts: dict[str, int] | None) -> dict[str, Tensor]:
    """Returns, by the name of what they share, which units stay in groups that lose the same ones.

    They are scored on the dense model, and their scores added up.
    """
    some = [group for group in groups if group.shared is not None]
    if not some:
        return {}
    if counts is None:
        raise UsageError("a --threshold can't choose units that several blocks lose together; give another target.")
    every = [group for kind in {group.unit for group in some} for group in unit_groups(job.network, kind)]
    for name in {group.shared for group in some}:
        if len({counts.get(group.name, group.count) for group in every if group.shared == name}) > 1:
            raise UsageError(
                f"the blocks of {job.network.architecture} share what belongs to a head, so all have to keep as many: "
                "leave --allocation, --protect-first and --protect-last out, or give --uniform."
            )
    if job.stage.solver == "obs":
        job.notes.append("Heads that several blocks lose together go by the score obs at once, not in rounds.")
    total: dict[str, Tensor] = {}
    for group, inputs in _dense(job, some, job.score.needs):
        assert group.shared is not None
        scores = scored(job.score, group, job.statistics(group, inputs))
        total[group.shared] = total.get(group.shared, torch.zeros(group.count)) + scores
    return {
        group.shared: kept_by_score(total[group.shared], counts[group.name], None, job, group)
        for group in some
        if group.shared is not None
    }


def _by_block(groups: Sequence[UnitGroup]) -> dict[int, list[UnitGroup]]:
    found: dict[int, list[UnitGroup]] = defaultdict(list)
    for group in groups:
        assert group.block is not None
        found[group.block].append(group)
    return found


def _walk(job: Job, groups: Sequence[UnitGroup], counts: dict[str, int] | None) -> list[Cut]:
    """Goes through the blocks, each on the activations that the smaller ones before it leave."""
    if counts is not None and all(counts[group.name] == group.count for group in groups):
        raise NothingPrunedError("nothing was pruned: every group keeps all of its units. Ask for more.")
    stage, by_block = job.stage, _by_block(groups)
    needs = job.score.needs | (Needs.GRAM if stage.repair or stage.solver == "obs" else Needs.NOTHING)
    fixed = _shared(job, groups, counts)
    runner = job.runner() if needs or stage.reconstruct else None
    towards_dense = _adds(job) and "neuron" in stage.kinds
    dense = job.runner() if runner is not None and (towards_dense or stage.reconstruct) else None
    last = max(by_block)
    cuts = []
    for block in job.progress.track(range(last + 1), "pruning"):
        some = by_block.get(block, [])
        if dense is not None:
            with job.timed("propagate"):
                dense.advance(lambda: None)
        for kind in ORDER:
            for group in (one for one in some if one.unit == kind):
                cuts.append(_remove(job, group, counts, runner, dense, needs, fixed.get(group.shared or "")))
        if stage.reconstruct and runner is not None and dense is not None and some:
            with job.timed("reconstruct"), runner.differentiable():
                layers = job.network.block_layers(block)
                job.blocks.append(
                    reconstruct(runner, layers, dense.outputs, stage.reconstruct_passes, stage.reconstruct_halves)
                )
        if runner is not None and block < last:
            with job.timed("propagate"):
                runner.advance(lambda: None)
    if all(bool(one.keep.all()) for one in cuts):
        raise NothingPrunedError(f"nothing was pruned: no unit scores below --threshold {stage.threshold}.")
    return cuts


def _remove(
    job: Job,
    group: UnitGroup,
    counts: dict[str, int] | None,
    runner: BlockRunner | None,
    dense: BlockRunner | None,
    needs: Needs,
    fixed: Tensor | None,
) -> Cut:
    """Chooses a group's units, repairs what reads them, and sets what goes to zero.

    Args:
        job: The stage's work.
        group: The group.
        counts: How many units each group keeps; None where the threshold decides.
        runner: Stands before the group's block in the model so far.
        dense: Stands behind it in the dense model, if the repair is to make up for earlier errors.
        needs: What is gathered.
        fixed: (units,) bool where it has been chosen already.
    """
    stage = job.stage
    if counts is not None and counts[group.name] == group.count:
        keep = torch.ones(group.count, dtype=torch.bool)
        job.report(group, keep)
        return Cut(group, keep)
    towards = None
    single = len(group.readers) == 1
    if runner is not None and dense is not None and group.unit == "neuron" and single and _adds(job):
        with job.timed("gather"):
            towards = output_moments(runner, group.readers[0].layer, dense.outputs, lambda: None)
    known = towards is not None and (stage.solver == "obs" or fixed is not None)  # all that is needed
    inputs = job.gather(runner, [group], needs) if runner is not None and not known else {}
    with job.timed("solve"), torch.inference_mode():
        moments = [_moments(job, reader, inputs) if towards is None else towards for reader in group.readers]
        keep = _chosen(job, group, counts, inputs, moments) if fixed is None else fixed
        errors = [
            _refitted(job, reader, one, keep)
            for reader, one in zip(group.readers, moments, strict=True)
            if stage.repair and one is not None and one.count
        ]
        if errors:
            before, after = (sum(pair) / len(errors) for pair in zip(*errors, strict=True))
            job.report(group, keep, before, after)
        else:
            job.report(group, keep)
        _zero(group, keep)
    return Cut(group, keep)


def adds_plainly(network: Network) -> bool:
    """Whether what the halves of blocks give is added to the hidden states as it is, without a norm behind it."""
    before = network.family.pre_norm
    pre_norm = before is None or bool(getattr(network.model.config, before))
    return network.family.adds and pre_norm


def _adds(job: Job) -> bool:
    """Whether the repair of neurons can make up for earlier errors."""
    return job.stage.repair and adds_plainly(job.network)


def _weights(job: Job, layer: Layer) -> tuple[Tensor, Tensor | None]:
    """Returns a layer's weight (out, in) and bias (out,), float32, on the compute device; experts have no bias."""
    W = layer.matrix().to(job.network.device, torch.float32)
    bias = None if layer.expert is not None else getattr(layer.module, "bias", None)
    return W, None if bias is None else bias.detach().to(job.network.device, torch.float32)


def _moments(job: Job, reader: Reader, inputs: dict[str, Statistics]) -> Moments | None:
    known = inputs.get(reader.layer.reads)
    if known is None or known.gram is None:
        return None
    W, b = _weights(job, reader.layer)
    return Moments.of_outputs(W, b, known.count, known.G, known.total.float())


def _refitted(job: Job, reader: Reader, moments: Moments, keep: Tensor) -> tuple[float, float]:
    """Fits a layer anew on the units that stay; returns the relative error before and after."""
    columns = torch.zeros(reader.layer.shape[1], dtype=torch.bool)
    columns[reader.index[keep].flatten()] = True
    return refit_layer(job, reader.layer, moments, columns)


def refit_layer(job: Job, layer: Layer, moments: Moments, columns: Tensor) -> tuple[float, float]:
    """Fits a layer's weight, and its bias if it has one, anew on some of its inputs, in place.

    Args:
        job: The stage's work.
        layer: The layer.
        moments: Of what it reads and should give.
        columns: (in,) bool: the inputs that stay.

    Returns:
        The relative error before and after.
    """
    W, b = _weights(job, layer)
    done = refit(W, b, moments, columns, _damping(job))
    if layer.expert is None and moments.count < int(columns.sum()) and not job.scarce:
        job.scarce = True
        job.notes.append(
            f"Layers are fitted on {moments.count:,} calibration tokens, fewer than the {int(columns.sum()):,} inputs "
            f"of {layer.name}: give more --samples."
        )
    with torch.no_grad():
        layer.matrix().copy_(done.W.to(layer.parameter.dtype))
    if done.bias is not None:
        bias = layer.module.bias  # type: ignore[union-attr]
        assert isinstance(bias, Tensor)
        with torch.no_grad():
            bias.copy_(done.bias.to(bias.dtype))
    return done.error_before, done.error


def _weighed(job: Job, layer: Layer, W: Tensor) -> Tensor:
    """Returns (out, in): rows as large as an error of theirs is dear, where the solver goes by the next-token loss."""
    known = job.sensitivity.get(layer.name)
    return W if known is None else W * known.sqrt().to(W.device)[:, None]


def _damping(job: Job) -> float:
    return DAMPING if job.stage.damping is None else job.stage.damping


def _chosen(
    job: Job,
    group: UnitGroup,
    counts: dict[str, int] | None,
    inputs: dict[str, Statistics],
    moments: Sequence[Moments | None],
) -> Tensor:
    """Returns (units,) bool: which units stay."""
    if job.stage.solver == "obs" and counts is not None and len(moments) == 1:
        (reader,), (own,) = group.readers, moments
        assert own is not None
        W, b = _weights(job, reader.layer)
        every = torch.ones(W.shape[1], dtype=torch.bool)
        start = _weighed(job, reader.layer, refit(W, b, own, every, _damping(job)).W if job.stage.repair else W)
        G = own.G if b is None else own.centred().G
        remove = group.count - counts[group.name]
        path = elimination(start, G, reader.index, remove, _damping(job))
        keep = torch.ones(group.count, dtype=torch.bool)
        keep[path.order] = False
        return keep
    scores = scored(job.score, group, job.statistics(group, inputs))
    if counts is not None:
        return kept_by_score(scores, counts[group.name], None, job, group)
    left, step = int(kept_by_score(scores, None, job.stage.threshold, job, group).sum()), _step(job, [group])
    return kept_by_score(scores, min(group.count, -(-left // step) * step), None, job, group)


def kept_by_score(scores: Tensor, left: int | None, threshold: str | None, job: Job, group: UnitGroup) -> Tensor:
    """Returns (units,) bool: the `left` best units, or those that reach a threshold. Ties go by position.

    Raises:
        UsageError: The threshold takes more than the group may give.
    """
    scores = scores.cpu()
    if left is None:
        assert threshold is not None
        free = scores[scores.isfinite()]  # protected units are infinite
        if not len(free):
            raise UsageError("--protect-first and --protect-last leave no block to prune.")
        keep = scores >= Threshold.parse(threshold).value(free)
        least = max(1, job.stage.min_units)
        if int(keep.sum()) < least:
            raise UsageError(
                f"--threshold {threshold} leaves {int(keep.sum())} of the {group.count} units of {group.name}, and at "
                f"least {least} have to stay; their scores lie between {float(free.min()):.4g} and "
                f"{float(free.max()):.4g}."
            )
        return keep
    keep = torch.zeros(len(scores), dtype=torch.bool)
    keep[scores.sort(descending=True, stable=True).indices[:left]] = True
    return keep


def _zero(group: UnitGroup, keep: Tensor) -> None:
    """Sets the slices of the units that go to zero."""
    gone = ~keep
    for part in group.slices:
        tensor = group.tensor(part.name)
        tensor.index_fill_(part.axis, part.index[gone].flatten().to(tensor.device), 0.0)
