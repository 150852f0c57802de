"""The prune stage: score, allocate and solve, one block at a time on the pruned prefix."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from secateur.allocation import ALLOCATORS
from secateur.allocation.allocator import Allocator
from secateur.allocation.amounts import Amount, Pattern, Threshold
from secateur.allocation.ranking import ScoreRanking
from secateur.allocation.selection import keep_mask, lowest
from secateur.allocation.uniform import uniform
from secateur.calibration.activations import IN_MEMORY, Activations
from secateur.calibration.data import Windows
from secateur.calibration.runner import BlockRunner, loss_gradients
from secateur.calibration.statistics import GRADIENTS, INPUTS, Gradients, Needs, Statistics
from secateur.errors import NothingPrunedError, SecateurError, UsageError
from secateur.journal import Journal, layer_report
from secateur.network.network import Layer, Network
from secateur.processes import ALONE, Processes
from secateur.progress import Progress
from secateur.recipe import Calibration, Prune
from secateur.result import BlockReport, LayerReport, StageReport
from secateur.scores import SCORES, Score, score_named
from secateur.solvers import Problem, Solver, Step, chain_named, needs_of_chain, solve_chain
from secateur.training.reconstruction import reconstruct


def needs_of(stage: Prune) -> Needs:
    """Returns the statistics that a stage reads."""
    planned = ALLOCATORS[stage.allocation].needs if stage.allocation in ALLOCATORS else Needs.NOTHING
    return _solving_needs(stage) | planned


def _solving_needs(stage: Prune) -> Needs:
    score = score_named(stage.score).needs if stage.score else Needs.NOTHING
    return score | needs_of_chain(chain_named(stage.solver)) | (Needs.OUTPUTS if stage.reconstruct else Needs.NOTHING)


def prune_weights(
    network: Network,
    stage: Prune,
    windows: Windows | None,
    calibration: Calibration,
    seed: int,
    progress: Progress,
    journal: Journal | None = None,
    team: Processes = ALONE,
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

    Returns:
        What was done to each layer.

    Raises:
        NothingPrunedError: Every layer has as many zeros already.
        UsageError, PatternError, ScoreError, SolverError, CalibrationError: See the parts.
    """
    chosen = select_layers(network, stage)
    check_pattern(chosen, stage)
    work = _Work(network, stage, windows, calibration, seed, progress, chosen, journal, team)
    reports = work.carry_out()
    if all(report.zeros == report.zeros_before for report in reports):
        raise NothingPrunedError(
            f"nothing was pruned: all {len(reports)} layers already have {_extent(reports)} zeros. "
            "Ask for more, or choose other layers."
        )
    return StageReport(
        {"prune": stage.model_dump(mode="json")},
        tuple(reports),
        dict(work.seconds),
        tuple(work.notes),
        tuple(work.blocks),
    )


def select_layers(network: Network, stage: Prune) -> list[Layer]:
    """Returns the layers that a stage is about, in forward order.

    Raises:
        UsageError: A glob matches nothing, nothing is left, or an embedding would need statistics.
    """
    inside, outside = network.layers(), network.outside()
    everything = [layer.name for layer in inside + outside]
    for pattern in (*stage.include, *stage.exclude):
        if not any(fnmatchcase(name, pattern) for name in everything):
            raise UsageError(
                f"'{pattern}' matches no layer; names look like '{everything[0]}' "
                "(secateur inspect lists them), and globs look like '*q_proj'."
            )
    if stage.include:
        inside = [layer for layer in inside if any(fnmatchcase(layer.name, p) for p in stage.include)]
    outside = [layer for layer in outside if any(_names(p, layer) for p in stage.include)]
    chosen: dict[int, Layer] = {}
    for layer in inside + outside:
        if not any(fnmatchcase(layer.name, pattern) for pattern in stage.exclude):
            chosen.setdefault(id(layer.parameter), layer)  # a tied weight is pruned once
    layers = list(chosen.values())
    if not layers:
        raise UsageError("--include and --exclude leave no layer to prune.")
    for layer in layers:
        if layer.table and needs_of(stage):
            raise UsageError(
                f"{layer.name} is an embedding, whose input has no statistics; prune it with --score l1 --solver none."
            )
        if needs_of(stage) & GRADIENTS and stage.gradient == "block" and any(layer is other for other in outside):
            raise UsageError(f"{layer.name} lies outside of the blocks; score it with --gradient loss.")
    return layers


def _names(pattern: str, layer: Layer) -> bool:
    """Whether a glob names a layer outside of the blocks, rather than just sweeping over it ('*')."""
    return fnmatchcase(layer.name, pattern) and layer.name.rpartition(".")[2] in pattern


def check_pattern(layers: Sequence[Layer], stage: Prune) -> None:
    """Raises PatternError before any work is done if an N:M pattern doesn't fit a layer."""
    if stage.pattern is not None:
        for layer in layers:
            Pattern.parse(stage.pattern).check(layer.shape[1], layer.name)


@dataclass
class _Work:
    """One stage's work on one network."""

    network: Network
    stage: Prune
    windows: Windows | None
    calibration: Calibration
    seed: int
    progress: Progress
    layers: list[Layer]
    journal: Journal | None
    team: Processes

    def __post_init__(self) -> None:
        self.score: Score | None = score_named(self.stage.score) if self.stage.score else None
        self.chain: tuple[Solver, ...] = chain_named(self.stage.solver)
        self.needs = _solving_needs(self.stage)
        self.seconds: dict[str, float] = defaultdict(float)
        self.notes: list[str] = []
        self.blocks: list[BlockReport] = []
        self.index = {layer.name: number for number, layer in enumerate(self.layers)}
        self.reports: dict[str, LayerReport] = {}
        self.outputs: Activations | None = None
        self.loss_gradients: dict[str, Gradients] = {}

    def plan(self) -> dict[str, int]:
        """Returns how many weights go from each layer, where a sparsity says so; may take a pass over the model."""
        stage = self.stage
        if stage.sparsity is None:
            return {}
        sizes = {layer.name: layer.parameter.numel() for layer in self.layers}
        if stage.allocation == "uniform":
            return uniform(sizes, stage.sparsity)
        if stage.allocation == "global":
            return self._rank(round(stage.sparsity * sum(sizes.values())))
        return self._allocate(ALLOCATORS[stage.allocation](stage.sparsity))

    def _amounts(self, counts: Mapping[str, int]) -> dict[str, Amount]:
        stage = self.stage
        if stage.sparsity is not None:
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

    def _rank(self, remove: int) -> dict[str, int]:
        """Returns how many of the whole model's lowest scores lie in each layer."""
        score = self.score or SCORES["obs"]
        with self._timed("plan"), ScoreRanking() as ranking:

            def add(layer: Layer, statistics: Statistics | None) -> None:
                W = self._dense(layer)
                scores = self._scores(score, layer, W, statistics)
                if self.stage.min_per_output > 0:
                    # As many stay as any solver's guard may mark, by whatever scores it sees then.
                    reserve = min(W.numel(), W.shape[0] * self.stage.min_per_output + W.shape[1])
                    scores[lowest(-scores, reserve) & (scores != -torch.inf)] = torch.inf
                ranking.add(layer.name, scores)

            self._visit(self.layers, score.needs, add, "scoring the dense model")
            counts = ranking.lowest(remove)
        emptied = [layer.name for layer in self.layers if counts[layer.name] == layer.parameter.numel()]
        if emptied:
            self.notes.append(
                f"The global threshold takes every weight of {', '.join(emptied)}; --min-per-output prevents that."
            )
        return counts

    def _allocate(self, allocator: Allocator) -> dict[str, int]:
        """Shows an allocator every layer of the dense model."""

        def add(layer: Layer, statistics: Statistics | None) -> None:
            allocator.add(layer.name, layer.reads.rpartition("/")[0] or layer.name, self._dense(layer), statistics)

        with self._timed("plan"):
            self._visit(self.layers, allocator.needs, add, "looking at the dense model")
            return allocator.counts()

    def carry_out(self) -> list[LayerReport]:
        """Prunes all layers and returns their reports in forward order."""
        counts = self._take_up()
        if self.needs & GRADIENTS and self.stage.gradient == "loss":
            self._differentiate_loss()
        if counts is None:
            counts = self.team.share(self.plan())
            self._commit(0, counts, None)
        amounts = self._amounts(counts)

        def prune(layer: Layer, statistics: Statistics | None) -> None:
            self.reports[layer.name] = self._prune_layer(layer, amounts[layer.name], statistics)

        self._visit(self.layers, self.needs, prune, "pruning", counts)
        reports = [self.reports[layer.name] for layer in self.layers]
        self.notes += [
            f"{report.name} has {report.zeros} zeros already and was left as it is."
            for report in reports
            if not report.steps
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

    def _commit(self, position: int, counts: Mapping[str, int], runner: BlockRunner | None) -> None:
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
            self.journal.commit(position, state, None if runner is None else runner.hidden)

    def _differentiate_loss(self) -> None:
        assert self.windows is not None
        with self._timed("gradients"):
            self.loss_gradients = loss_gradients(
                self.network,
                self.layers,
                self.windows,
                self.needs,
                self.calibration.compute,
                self.progress,
                self.team,
            )

    def _visit(
        self,
        layers: list[Layer],
        needs: Needs,
        act: Callable[[Layer, Statistics | None], None],
        label: str,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """Calls `act` on each layer with its statistics, which come from the blocks before it as they are then.

        counts: Given when `act` prunes: each block is then finished and committed, and passed on as it is then.
        """
        journal = self.journal if counts is not None else None
        first = 0 if journal is None else journal.position
        blocks: list[list[Layer]] = [[] for _ in self.network.blocks]
        for layer in layers:
            if layer.block is not None:
                blocks[layer.block].append(layer)
        outside = [layer for layer in layers if layer.block is None and layer.name not in self.reports]
        end = max((number + 1 for number, some in enumerate(blocks) if some), default=0)
        passes_on = end - 1  # blocks that activations pass through
        if needs & INPUTS and outside:
            end = passes_on = len(blocks)
        runner = self._runner(needs, journal) if first < end or outside else None
        by_block = bool(needs & GRADIENTS) and not self.loss_gradients
        rebuilt = Needs.OUTPUTS in needs and counts is not None
        batches = 0 if runner is None else len(runner.hidden)
        passes = sum((number < passes_on) + bool(blocks[number]) * (1 + by_block) for number in range(first, end))
        tick = self.progress.bar(label, passes * batches + sum(map(len, blocks[first:])) + len(outside))
        tuned = self.progress.bar("reconstructing", sum(map(bool, blocks[first:]))) if rebuilt else None
        for number in range(first, end):
            some = blocks[number]
            with self.network.resident(number):
                statistics, gradients = self._gather(runner, some, needs, by_block, rebuilt, tick)
                self._act(some, statistics, gradients, act, tick, shared=counts is not None)
                if rebuilt and some and runner is not None and tuned is not None:
                    self._reconstruct(runner, some)
                    tuned()
                if journal is not None and some:
                    with self._timed("journal"):
                        journal.keep_block(number)
                if runner is not None and number < passes_on:
                    with self._timed("propagate"):
                        runner.advance(tick)
            if counts is not None:
                self._commit(number + 1, counts, runner if number < passes_on else None)
            elif runner is not None:
                runner.hidden.forget()
        if outside:
            with self._timed("gather"):
                statistics = runner.gather_outside([(layer, needs) for layer in outside], tick) if runner else {}
            self._act(outside, statistics, self.loss_gradients, act, tick, shared=counts is not None)
            if journal is not None:
                journal.keep_rest()
        if runner is not None:
            runner.hidden.close()

    def _runner(self, needs: Needs, journal: Journal | None) -> BlockRunner | None:
        """Returns a runner that stands where the journal does; None where nothing of the inputs is needed."""
        if not needs:
            return None
        assert self.windows is not None
        settings = self.calibration
        storage = IN_MEMORY if self.journal is None else self.journal.storage(settings.activation_bytes)
        name = f"plan-{self.team.rank}" if journal is None else journal.activations_name()
        with self._timed("prelude"):
            runner = BlockRunner(self.network, self.windows, settings.compute, storage, name, team=self.team)
            if journal is not None:
                journal.restore(runner.hidden)
        return runner

    def _gather(
        self,
        runner: BlockRunner | None,
        some: list[Layer],
        needs: Needs,
        by_block: bool,
        rebuilt: bool,
        tick: Callable[[], None],
    ) -> tuple[dict[str, Statistics], dict[str, Gradients]]:
        """Returns what is needed of a block's layers; keeps its dense outputs if it is to be rebuilt."""
        if runner is None or not some:
            return {}, self.loss_gradients
        with self._timed("gather"):
            readers: dict[str, tuple[Layer, Needs]] = {}
            for layer in some:
                readers.setdefault(layer.reads, (layer, needs))
            self.outputs = runner.activations(f"outputs-{self.team.rank}") if rebuilt else None
            statistics = runner.gather(readers, tick, self.outputs)
        if not by_block:
            return statistics, self.loss_gradients
        with self._timed("gradients"):
            return statistics, runner.gradients(some, needs, tick)

    def _reconstruct(self, runner: BlockRunner, some: list[Layer]) -> None:
        assert self.outputs is not None
        stage = self.stage
        with self._timed("reconstruct"), runner.differentiable():
            report = reconstruct(runner, some, self.outputs, stage.reconstruct_passes, stage.reconstruct_halves)
        self.blocks.append(report)
        self.outputs.close()

    def _act(
        self,
        layers: list[Layer],
        statistics: dict[str, Statistics],
        gradients: dict[str, Gradients],
        act: Callable[[Layer, Statistics | None], None],
        tick: Callable[[], None],
        shared: bool,
    ) -> None:
        """Acts on layers, shared out among the processes if what comes of it is their weights and reports."""
        owners = _owners(layers, self.team.size) if shared else [self.team.rank] * len(layers)
        with self._timed("solve"), torch.inference_mode():
            for layer, owner in zip(layers, owners, strict=True):
                if owner == self.team.rank:
                    known = statistics.get(layer.reads) or Statistics.empty(
                        layer.shape[1], Needs.NOTHING, self.network.device
                    )
                    act(layer, replace(known, gradients=gradients.get(layer.name)))
                tick()
            if shared and self.team.size > 1:
                for layer, owner in zip(layers, owners, strict=True):
                    self.team.send(layer.parameter.data, owner)
                    report = self.team.share(self.reports.get(layer.name), owner)
                    assert report is not None
                    self.reports[layer.name] = report

    def _dense(self, layer: Layer) -> Tensor:
        """(out, in) float32, on the compute device, contiguous."""
        return layer.matrix().to(self.network.device, torch.float32).contiguous()

    def _scores(self, score: Score, layer: Layer, W: Tensor, statistics: Statistics | None) -> Tensor:
        """The layer's scores, -inf where a weight is zero already: removing it again costs nothing."""
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + self.index[layer.name])
        scores = score.weights(W, statistics, random)
        if scores.shape != W.shape:
            raise SecateurError(f"score '{score.name}' gave {tuple(scores.shape)} for {layer.name}: {tuple(W.shape)}.")
        return torch.where(W == 0, -torch.inf, scores)

    def _prune_layer(self, layer: Layer, amount: Amount, statistics: Statistics | None) -> LayerReport:
        start = time.perf_counter()
        W = self._dense(layer)
        zeros_before = layer.zeros()
        if amount.remove is not None and zeros_before >= max(amount.remove, 1):
            return _report(layer, zeros_before, start)
        keep, threshold = None, None
        if self.score is not None:
            scores = self._scores(self.score, layer, W, statistics)
            keep, threshold = keep_mask(scores, amount, layer.name)
        problem = Problem(
            layer.name,
            W,
            statistics,
            amount,
            keep,
            damping=self.stage.damping,
            block_size=min(self.stage.block_size, W.shape[1]),
        )
        solution, steps = solve_chain(self.chain, problem)
        layer.write(solution.W.to("cpu"), solution.keep.to("cpu"))
        return _report(layer, zeros_before, start, steps, threshold)

    def _timed(self, phase: str) -> _Timer:
        return _Timer(self.seconds, phase)


class _Timer:
    """Adds the time spent inside to one phase."""

    def __init__(self, seconds: dict[str, float], phase: str) -> None:
        self.seconds, self.phase = seconds, phase

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.phase] += time.perf_counter() - self.start


def _owners(layers: Sequence[Layer], size: int) -> list[int]:
    """Shares layers out among processes, the dearest first to the one with the least work (rows x columns²)."""
    work = [0] * size
    owners = [0] * len(layers)
    for cost, number in sorted(((one.shape[0] * one.shape[1] ** 2, n) for n, one in enumerate(layers)), reverse=True):
        owner = work.index(min(work))
        owners[number] = owner
        work[owner] += cost
    return owners


def _report(
    layer: Layer,
    zeros_before: int,
    start: float,
    steps: tuple[Step, ...] = (),
    threshold: float | None = None,
) -> LayerReport:
    alive = layer.matrix() != 0
    rows, columns = layer.shape
    return LayerReport(
        name=layer.name,
        rows=rows,
        columns=columns,
        zeros_before=zeros_before,
        zeros=layer.zeros(),
        dead_rows=rows - int(alive.any(1).sum()),
        dead_columns=columns - int(alive.any(0).sum()),
        error_masked=steps[0].error_before if steps else None,
        error=steps[-1].error if steps else None,
        damping=max((step.damping for step in steps if step.damping is not None), default=None),
        threshold=threshold,
        seconds=time.perf_counter() - start,
        steps=steps,
    )


def _extent(reports: Sequence[LayerReport]) -> str:
    low = min(report.sparsity for report in reports)
    high = max(report.sparsity for report in reports)
    return f"{low:.1%}" if low == high else f"{low:.1%} to {high:.1%}"
