"""The prune stage: score, allocate and solve, one block at a time on the pruned prefix."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch

from secateur.allocation import ALLOCATORS
from secateur.allocation.allocator import Allocator
from secateur.allocation.amounts import Amount, Pattern, Threshold
from secateur.allocation.error import MarginalError
from secateur.allocation.ranking import ScoreRanking
from secateur.allocation.selection import lowest
from secateur.allocation.uniform import uniform
from secateur.calibration.activations import IN_MEMORY, Activations, Storage
from secateur.calibration.data import Windows
from secateur.calibration.loss import output_sensitivity
from secateur.calibration.runner import BlockRunner
from secateur.calibration.statistics import GRADIENTS, Gradients, Statistics
from secateur.errors import NothingPrunedError, UsageError
from secateur.journal import Journal, layer_report
from secateur.layer_choice import amounts_of, check_pattern, select_layers
from secateur.layer_report import report_of
from secateur.layer_work import LayerWork
from secateur.network.network import Layer, Network
from secateur.processes import ALONE, Processes
from secateur.progress import Progress
from secateur.recipe import Calibration, Prune
from secateur.result import BlockReport, LayerReport, StageReport
from secateur.route import Route
from secateur.scores import SCORES
from secateur.training.reconstruction import reconstruct
from secateur.unreached import even_counts, notes, unreached


def prune_weights(
    network: Network,
    stage: Prune,
    windows: Windows | None,
    calibration: Calibration,
    seed: int,
    progress: Progress,
    journal: Journal | None = None,
    team: Processes = ALONE,
    storage: Storage = IN_MEMORY,
) -> StageReport:
    """Sets weights of `network` to zero, in place.

    Args:
        network: The model.
        stage: What to do.
        windows: Calibration windows; None if `needs_of(stage)` is NOTHING.
        calibration: Precision of the forward passes, and the memory that activations may take.
        seed: For scores that draw.
        progress: Shows progress.
        journal: Takes up each finished block; pruning goes on from where it stands. A streamed network needs one.
        team: The processes that share the work.
        storage: Where calibration activations may be kept.

    Returns:
        What was done to each layer.

    Raises:
        NothingPrunedError: Every layer has as many zeros already.
        UsageError, PatternError, ScoreError, SolverError, CalibrationError: See the parts.
    """
    chosen = select_layers(network, stage)
    check_pattern(chosen, stage)
    work = _Pruning(network, stage, windows, calibration, seed, progress, chosen, team, storage, journal=journal)
    reports = work.carry_out()
    if all(report.zeros == report.zeros_before for report in reports):
        raise NothingPrunedError(
            f"nothing was pruned: all {len(reports)} layers already have {_extent(reports)} zeros. "
            "Ask for more, or choose other layers."
        )
    for layer in chosen:
        if layer.block is None and (tied := network.ties(layer)):
            work.notes.append(f"{layer.name} is tied to {', '.join(tied)}: its zeros are there, too.")
    whole = [report.name for report in reports if report.zeros == report.rows * report.columns]
    if len(whole) == len(reports):
        raise UsageError(
            f"every weight of all {len(reports)} layers would be zero: the threshold lies above all scores; lower it."
        )
    if whole and stage.threshold is not None:
        work.notes.append(f"Nothing is left of {', '.join(whole[:4])}{' and others' if len(whole) > 4 else ''}.")
    return StageReport(
        {"prune": stage.model_dump(mode="json")},
        tuple(reports),
        dict(work.seconds),
        tuple(work.notes),
        tuple(work.blocks),
    )


@dataclass
class _Pruning(LayerWork):
    """Plans how much goes from each layer, and prunes.

    Attributes:
        journal: Takes up each finished block, if there is one.
        blocks: What reconstruction came to.
    """

    journal: Journal | None = None
    blocks: list[BlockReport] = field(default_factory=list)

    def plan(self) -> dict[str, int]:
        """Returns how many weights go from each layer, where a sparsity says so; may take a pass over the model."""
        stage = self.stage
        sizes = {layer.name: layer.weights for layer in self.layers}
        if stage.amounts is not None:
            return amounts_of(stage.amounts, sizes, "layer")
        if stage.sparsity is None:
            return {}
        if stage.allocation == "uniform":
            return uniform(sizes, stage.sparsity)
        counts = (
            self._rank(stage.sparsity)
            if stage.allocation == "global"
            else self._allocate(self._allocator(stage.sparsity))
        )
        rest = {name: size for name, size in sizes.items() if name not in counts}  # of experts that weren't reached
        counts |= even_counts(rest, round(stage.sparsity * sum(sizes.values())) - sum(counts.values()))
        return {name: counts[name] for name in sizes}

    def _amounts(self, counts: Mapping[str, int]) -> dict[str, Amount]:
        stage = self.stage
        if stage.sparsity is not None or stage.amounts is not None:
            return {
                name: Amount(remove=count, per=stage.per, min_per_output=stage.min_per_output)
                for name, count in counts.items()
            }
        amount = Amount(
            threshold=Threshold.parse(stage.threshold) if stage.threshold else None,
            pattern=Pattern.parse(stage.pattern) if stage.pattern else None,
            min_per_output=stage.min_per_output,
        )
        return {layer.name: amount for layer in self.layers}

    def _rank(self, sparsity: float) -> dict[str, int]:
        """Returns how many of the whole model's lowest scores lie in each layer, less experts that aren't reached."""
        score = self.score or SCORES["obs"]
        sizes: dict[str, int] = {}
        with self._timed("plan"), ScoreRanking() as ranking:

            def add(layer: Layer, statistics: Statistics) -> None:
                W = self.dense(layer)
                scores = self._scores(score, layer, W, statistics)
                if self.stage.min_per_output > 0:
                    # As many stay as any solver's guard may mark, by whatever scores it sees then.
                    reserve = min(W.numel(), W.shape[0] * self.stage.min_per_output + W.shape[1])
                    scores[lowest(-scores, reserve) & (scores != -torch.inf)] = torch.inf
                ranking.add(layer.name, scores)
                sizes[layer.name] = W.numel()

            self.look(score.needs, add, "scoring the dense model")
            counts = ranking.lowest(round(sparsity * sum(sizes.values())))
        emptied = [name for name, size in sizes.items() if counts[name] == size]
        if emptied:
            self.notes.append(
                f"The global threshold takes every weight of {', '.join(emptied)}; --min-per-output prevents that."
            )
        return counts

    def _allocator(self, sparsity: float) -> Allocator:
        if self.stage.allocation != MarginalError.name or self.stage.gradient != "loss":
            return ALLOCATORS[self.stage.allocation](sparsity)
        assert self.windows is not None
        rest = (self.windows, self.calibration.compute, self.progress, self.team)
        with self._timed("gradients"):
            return MarginalError(sparsity, output_sensitivity(self.network, self.layers, *rest))

    def _allocate(self, allocator: Allocator) -> dict[str, int]:
        """Shows an allocator every layer of the dense model."""

        def add(layer: Layer, statistics: Statistics) -> None:
            allocator.add(layer.name, layer.reads.rpartition("/")[0] or layer.name, self.dense(layer), statistics)

        with self._timed("plan"):
            self.look(allocator.needs, add, "looking at the dense model")
            return allocator.counts() if allocator.sizes else {}

    def carry_out(self) -> list[LayerReport]:
        """Prunes all layers and returns their reports in forward order."""
        counts = self._take_up()
        if self.needs & GRADIENTS and self.stage.gradient == "loss":
            self.differentiate_loss()
        if counts is None:
            counts = self.team.share(self.plan())
            self._commit(0, counts)
        self._prune(counts)
        reports = [self.reports[layer.name] for layer in self.layers]
        self.notes += [
            f"{report.name} has {report.zeros} zeros already and was left as it is."
            for report in reports
            if not report.steps and report.zeros_before
        ]
        return reports

    def _take_up(self) -> dict[str, int] | None:
        """Takes up what the journal knows of this stage; returns the planned counts if there are any."""
        if self.journal is None or not self.journal.state:
            return None
        state = self.journal.state
        self.reports = {one["name"]: layer_report(one) for one in state["layers"]}
        self.blocks = [BlockReport(**one) for one in state["blocks"]]
        self.notes = list(state["notes"])
        self.seconds.update(state["seconds"])
        counts: dict[str, int] = state["counts"]
        return counts

    def _commit(self, position: int, counts: Mapping[str, int], *runners: BlockRunner | None) -> None:
        if self.journal is None:
            return
        with self._timed("journal"):
            state = {
                "counts": counts,
                "layers": [asdict(report) for report in self.reports.values()],
                "blocks": [asdict(report) for report in self.blocks],
                "notes": self.notes,
                "seconds": self.seconds,
            }
            self.journal.commit(position, state, [runner.hidden for runner in runners if runner is not None])

    def _prune(self, counts: Mapping[str, int]) -> None:
        """Prunes each layer by the statistics that the pruned blocks before it leave; commits block by block."""
        amounts = self._amounts(counts)

        def prune(layer: Layer, statistics: Statistics) -> None:
            self.reports[layer.name] = self._prune_layer(layer, amounts[layer.name], statistics)

        route = Route(self.network, self.layers, self.needs)
        first = 0 if self.journal is None else self.journal.position
        going = first < route.end or bool(route.outside)
        runner = self._runner(self.needs, "hidden", first) if going else None
        dense = self._runner(self.needs, "dense", first) if going and self.stage.reconstruct else None
        tick = self.progress.bar("pruning", route.ticks(first, self.needs, 0 if runner is None else len(runner.hidden)))
        tuned = self.progress.bar("reconstructing", route.end - first) if dense is not None else None
        for number in range(first, route.end):
            some = route.blocks[number]
            with self.network.resident(number):
                statistics, gradients = self._gather(runner, some, self.needs, tick)
                if dense is not None:
                    with self._timed("propagate"):
                        dense.advance(tick)
                self._act(some, statistics, gradients, prune, tick, shared=True)
                self._note_unreached(some, statistics, gradients)
                if runner is not None and dense is not None and tuned is not None and some:
                    self._reconstruct(runner, some, dense.outputs)
                    tuned()
                if self.journal is not None and some:
                    with self._timed("journal"):
                        self.journal.keep_block(number)
                if runner is not None and number < route.passed:
                    with self._timed("propagate"):
                        runner.advance(tick)
            self._commit(number + 1, counts, *((runner, dense) if number < route.passed else ()))
        self._prune_outside(runner, route.outside, prune, tick)
        for one in (runner, dense):
            if one is not None:
                one.close()

    def _note_unreached(
        self, layers: list[Layer], statistics: dict[str, Statistics], gradients: dict[str, Gradients]
    ) -> None:
        """Notes which of a block's experts no token was routed to."""
        blind = [layer for layer in layers if unreached(layer, self._known(layer, statistics, gradients), self.needs)]
        self.notes += notes(blind, [layer.name for layer in blind if self.reports[layer.name].steps])

    def _prune_outside(
        self,
        runner: BlockRunner | None,
        outside: list[Layer],
        prune: Callable[[Layer, Statistics], None],
        tick: Callable[[], None],
    ) -> None:
        if not outside:
            return
        self._act(outside, *self._gather_outside(runner, outside, self.needs, tick), prune, tick, shared=True)
        if self.journal is not None:
            self.journal.keep_rest()

    def _reconstruct(self, runner: BlockRunner, some: list[Layer], targets: Activations) -> None:
        stage = self.stage
        with self._timed("reconstruct"), runner.differentiable():
            report = reconstruct(runner, some, targets, stage.reconstruct_passes, stage.reconstruct_halves)
        self.blocks.append(report)

    def _prune_layer(self, layer: Layer, amount: Amount, statistics: Statistics | None) -> LayerReport:
        start = time.perf_counter()
        W = self.dense(layer)
        zeros_before = layer.zeros()
        if amount.remove is not None and zeros_before >= max(amount.remove, 1):
            return report_of(layer, zeros_before, start)
        by_inputs = self.score is None or self.score.needs
        blind = statistics is not None and unreached(layer, statistics, self.needs)
        if blind and by_inputs and amount.threshold is not None and amount.threshold.kind == "value":
            return report_of(layer, zeros_before, start)
        solution, steps, threshold = self.solve(layer, W, amount, statistics)
        layer.write(solution.W.to("cpu"), solution.keep.to("cpu"))
        return report_of(layer, zeros_before, start, steps, threshold)


def _extent(reports: Sequence[LayerReport]) -> str:
    low = min(report.sparsity for report in reports)
    high = max(report.sparsity for report in reports)
    return f"{low:.1%}" if low == high else f"{low:.1%} to {high:.1%}"
