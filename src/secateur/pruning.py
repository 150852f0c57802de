"""The prune stage: score, allocate and solve, one block at a time on the pruned prefix."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from secateur.allocation import ALLOCATORS
from secateur.allocation.allocator import Allocator
from secateur.allocation.amounts import Amount, Pattern, Threshold
from secateur.allocation.ranking import ScoreRanking
from secateur.allocation.selection import keep_mask, lowest
from secateur.allocation.uniform import uniform
from secateur.calibration.data import Windows
from secateur.calibration.runner import BlockRunner, gather_outside, loss_gradients
from secateur.calibration.statistics import GRADIENTS, Gradients, Needs, Statistics
from secateur.errors import NothingPrunedError, SecateurError, UsageError
from secateur.network.network import Layer, Network
from secateur.progress import Progress
from secateur.recipe import Prune
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
    network: Network, stage: Prune, windows: Windows | None, compute: str, seed: int, progress: Progress
) -> StageReport:
    """Sets weights of `network` to zero, in place.

    Args:
        network: The model.
        stage: What to do.
        windows: Calibration windows; None if `needs_of(stage)` is NOTHING.
        compute: Precision of the calibration's forward passes.
        seed: For scores that draw.
        progress: Shows progress.

    Returns:
        What was done to each layer.

    Raises:
        NothingPrunedError: Every layer has as many zeros already.
        UsageError, PatternError, ScoreError, SolverError, CalibrationError: See the parts.
    """
    chosen = select_layers(network, stage)
    check_pattern(chosen, stage)
    work = _Work(network, stage, windows, compute, seed, progress, chosen)
    amounts = work.plan()
    reports = work.carry_out(amounts)
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
    compute: str
    seed: int
    progress: Progress
    layers: list[Layer]

    def __post_init__(self) -> None:
        self.score: Score | None = score_named(self.stage.score) if self.stage.score else None
        self.chain: tuple[Solver, ...] = chain_named(self.stage.solver)
        self.needs = _solving_needs(self.stage)
        self.seconds: dict[str, float] = defaultdict(float)
        self.notes: list[str] = []
        self.blocks: list[BlockReport] = []
        self.index = {layer.name: number for number, layer in enumerate(self.layers)}
        self.loss_gradients: dict[str, Gradients] = {}
        if self.needs & GRADIENTS and self.stage.gradient == "loss":
            assert self.windows is not None
            with self._timed("gradients"):
                self.loss_gradients = loss_gradients(
                    self.network, self.layers, self.windows, self.needs, self.compute, self.progress
                )

    def plan(self) -> dict[str, Amount]:
        """Returns each layer's amount; a global budget takes one pass over the dense model."""
        stage = self.stage
        if stage.sparsity is None:
            amount = Amount(
                threshold=Threshold.parse(stage.threshold) if stage.threshold else None,
                pattern=Pattern.parse(stage.pattern) if stage.pattern else None,
                min_per_output=stage.min_per_output,
            )
            return {layer.name: amount for layer in self.layers}
        sizes = {layer.name: layer.parameter.numel() for layer in self.layers}
        if stage.allocation == "uniform":
            counts = uniform(sizes, stage.sparsity)
        elif stage.allocation == "global":
            counts = self._rank(round(stage.sparsity * sum(sizes.values())))
        else:
            counts = self._allocate(ALLOCATORS[stage.allocation](stage.sparsity))
        return {
            name: Amount(remove=count, per=stage.per, min_per_output=stage.min_per_output)
            for name, count in counts.items()
        }

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

    def carry_out(self, amounts: Mapping[str, Amount]) -> list[LayerReport]:
        """Prunes all layers and returns their reports in forward order."""
        reports: dict[str, LayerReport] = {}

        def prune(layer: Layer, statistics: Statistics | None) -> None:
            reports[layer.name] = self._prune_layer(layer, amounts[layer.name], statistics)

        self._visit(self.layers, self.needs, prune, "pruning")
        return [reports[layer.name] for layer in self.layers]

    def _visit(
        self,
        layers: list[Layer],
        needs: Needs,
        act: Callable[[Layer, Statistics | None], None],
        label: str,
    ) -> None:
        """Calls `act` on each layer with its statistics, which come from the blocks before it as they are then."""
        if not needs:
            for layer in self.progress.track(layers, label):
                act(layer, None)
            return
        assert self.windows is not None
        with self._timed("prelude"):
            runner = BlockRunner(self.network, self.windows, self.compute)
        chosen = set(self.index)
        blocks = [
            [layer for layer in self.network.block_layers(block) if layer.name in chosen]
            for block in range(len(self.network.blocks))
        ]
        last = max((number for number, some in enumerate(blocks) if some), default=-1)
        by_block = bool(needs & GRADIENTS) and not self.loss_gradients
        rebuilt = Needs.OUTPUTS in needs
        passes = max(0, 2 * last + 1) + (last + 1) * by_block
        tick = self.progress.bar(label, passes * len(runner.hidden) + len(layers))
        tuned = self.progress.bar("reconstructing", sum(map(bool, blocks))) if rebuilt else None
        for number, some in enumerate(blocks[: last + 1]):
            with self._timed("gather"):
                readers: dict[str, tuple[Layer, Needs]] = {}
                for layer in some:
                    readers.setdefault(layer.reads, (layer, needs))
                outputs: list[Tensor] | None = [] if rebuilt and some else None
                statistics = runner.gather(readers, tick, outputs)
            gradients = self.loss_gradients
            if by_block:
                with self._timed("gradients"):
                    gradients = runner.gradients(some, needs, tick)
            self._act(some, statistics, gradients, act, tick)
            if outputs is not None and tuned is not None:
                with self._timed("reconstruct"), runner.differentiable():
                    self.blocks.append(
                        reconstruct(runner, some, outputs, self.stage.reconstruct_passes, self.stage.reconstruct_halves)
                    )
                tuned()
            if number < last:
                with self._timed("propagate"):
                    runner.advance(tick)
        outside = [layer for layer in layers if layer.module is not None and not _inside(layer, blocks)]
        if outside:
            with self._timed("gather"):
                statistics = gather_outside(
                    self.network,
                    [(layer, needs) for layer in outside],
                    self.windows,
                    self.compute,
                    self.progress,
                )
            self._act(outside, statistics, self.loss_gradients, act, tick)

    def _act(
        self,
        layers: list[Layer],
        statistics: dict[str, Statistics],
        gradients: dict[str, Gradients],
        act: Callable[[Layer, Statistics | None], None],
        tick: Callable[[], None],
    ) -> None:
        with self._timed("solve"), torch.inference_mode():
            for layer in layers:
                known = statistics.get(layer.reads) or Statistics.empty(
                    layer.shape[1], Needs.NOTHING, self.network.device
                )
                act(layer, replace(known, gradients=gradients.get(layer.name)))
                tick()

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
            self.notes.append(f"{layer.name} has {zeros_before} zeros already and was left as it is.")
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


def _inside(layer: Layer, blocks: list[list[Layer]]) -> bool:
    return any(layer.name == other.name for some in blocks for other in some)


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
