"""Work on the layers of a network, one block after the other: look at them with their statistics, or solve them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from secateur.allocation.amounts import Amount
from secateur.allocation.selection import keep_mask
from secateur.calibration.activations import IN_MEMORY, Storage
from secateur.calibration.data import Windows
from secateur.calibration.loss import loss_gradients
from secateur.calibration.runner import BlockRunner
from secateur.calibration.statistics import GRADIENTS, Gradients, Needs, Statistics
from secateur.errors import SecateurError
from secateur.layer_choice import select_layers, solving_needs
from secateur.network.network import Layer, Network
from secateur.processes import ALONE, Processes
from secateur.progress import Progress
from secateur.recipe import Calibration, Prune
from secateur.result import LayerReport
from secateur.route import Route, owners
from secateur.scores import SCORES, Score, score_named
from secateur.solvers import Problem, Solution, Solver, Step, chain_named, solve_chain
from secateur.timing import timed
from secateur.unreached import unreached


@dataclass
class LayerWork:
    """One stage's work on the layers of one network.

    Attributes:
        network: The model.
        stage: What to do.
        windows: Calibration windows; None if the stage needs none.
        calibration: Precision of the forward passes, and the memory that activations may take.
        seed: For scores that draw.
        progress: Shows progress.
        layers: Which layers, in forward order.
        team: The processes that share the work.
        storage: Where calibration activations may be kept.
        reports: What was done to each layer, by name.
        notes: What users should know.
        seconds: Time spent, by phase.
    """

    network: Network
    stage: Prune
    windows: Windows | None
    calibration: Calibration
    seed: int
    progress: Progress
    layers: list[Layer]
    team: Processes = ALONE
    storage: Storage = IN_MEMORY
    reports: dict[str, LayerReport] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def __post_init__(self) -> None:
        self.score: Score | None = score_named(self.stage.score) if self.stage.score else None
        self.chain: tuple[Solver, ...] = chain_named(self.stage.solver)
        self.needs = solving_needs(self.stage)
        self.index = {layer.name: number for number, layer in enumerate(self.layers)}
        self.loss_gradients: dict[str, Gradients] = {}

    def differentiate_loss(self) -> None:
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

    def look(self, needs: Needs, act: Callable[[Layer, Statistics], None], label: str) -> None:
        """Calls `act` on each layer of the dense model with its statistics, but not on experts that aren't reached."""

        def reached(layer: Layer, statistics: Statistics) -> None:
            if not unreached(layer, statistics, needs):
                act(layer, statistics)

        route = Route(self.network, self.layers, needs)
        runner = self._runner(needs, "plan")
        tick = self.progress.bar(label, route.ticks(0, needs, 0 if runner is None else len(runner.hidden)))
        for number in range(route.end):
            with self.network.resident(number):
                statistics, gradients = self._gather(runner, route.blocks[number], needs, tick)
                self._act(route.blocks[number], statistics, gradients, reached, tick)
                if runner is not None and number < route.passed:
                    with self._timed("propagate"):
                        runner.advance(tick)
                        runner.hidden.forget()
        self._act(route.outside, *self._gather_outside(runner, route.outside, needs, tick), reached, tick)
        if runner is not None:
            runner.close()

    def solve(
        self, layer: Layer, W: Tensor, amount: Amount, statistics: Statistics | None
    ) -> tuple[Solution, tuple[Step, ...], float | None]:
        """Returns a layer's new weights, what each solver came to, and the score below which weights went.

        An expert that no token reached goes by the size of its weights.
        """
        score, chain = self.score, self.chain
        if statistics is not None and unreached(layer, statistics, self.needs):
            score, chain = score if score is not None and not score.needs else SCORES["l1"], chain_named("none")
            statistics = None
        keep, threshold = None, None
        if score is not None:
            scores = self._scores(score, layer, W, statistics)
            keep, threshold = keep_mask(scores, amount, layer.name)
        block_size = min(self.stage.block_size, W.shape[1])
        problem = Problem(layer.name, W, statistics, amount, keep, damping=self.stage.damping, block_size=block_size)
        return (*solve_chain(chain, problem), threshold)

    def dense(self, layer: Layer) -> Tensor:
        """(out, in) float32, on the compute device, contiguous."""
        return layer.matrix().to(self.network.device, torch.float32).contiguous()

    def _runner(self, needs: Needs, name: str, position: int = 0) -> BlockRunner | None:
        """Returns a runner before a block, by what was stored of it; None where nothing of the inputs is needed."""
        if not needs:
            return None
        assert self.windows is not None
        given = (self.windows, self.calibration.compute, self.storage, f"{name}-{self.team.rank}")
        with self._timed("prelude"):
            runner = BlockRunner(self.network, *given, team=self.team)
            if position:
                runner.restore(position)
        return runner

    def _gather(
        self, runner: BlockRunner | None, some: list[Layer], needs: Needs, tick: Callable[[], None]
    ) -> tuple[dict[str, Statistics], dict[str, Gradients]]:
        """Returns what is needed of a block's layers."""
        if runner is None or not some:
            return {}, self.loss_gradients
        with self._timed("gather"):
            readers: dict[str, tuple[Layer, Needs]] = {}
            for layer in some:
                readers.setdefault(layer.reads, (layer, needs))
            statistics = runner.gather(readers, tick)
        if self.loss_gradients or not needs & GRADIENTS:
            return statistics, self.loss_gradients
        with self._timed("gradients"):
            return statistics, runner.gradients(some, needs, tick)

    def _gather_outside(
        self, runner: BlockRunner | None, outside: list[Layer], needs: Needs, tick: Callable[[], None]
    ) -> tuple[dict[str, Statistics], dict[str, Gradients]]:
        if runner is None:
            return {}, self.loss_gradients
        with self._timed("gather"):
            return runner.gather_outside([(layer, needs) for layer in outside], tick), self.loss_gradients

    def _act(
        self,
        layers: list[Layer],
        statistics: dict[str, Statistics],
        gradients: dict[str, Gradients],
        act: Callable[[Layer, Statistics], None],
        tick: Callable[[], None],
        shared: bool = False,
    ) -> None:
        """Acts on layers, shared out among the processes if what comes of it is their weights and reports."""
        owning = owners(layers, self.team.size) if shared else [self.team.rank] * len(layers)
        with self._timed("solve"), torch.inference_mode():
            for layer, owner in zip(layers, owning, strict=True):
                if owner == self.team.rank:
                    act(layer, self._known(layer, statistics, gradients))
                tick()
            if shared and self.team.size > 1:
                for layer, owner in zip(layers, owning, strict=True):
                    self.team.send(layer.part(layer.parameter.data), owner)
                    report = self.team.share(self.reports.get(layer.name), owner)
                    assert report is not None
                    self.reports[layer.name] = report

    def _known(
        self, layer: Layer, statistics: Mapping[str, Statistics], gradients: Mapping[str, Gradients]
    ) -> Statistics:
        """Returns what was gathered of a layer; of no tokens where nothing was."""
        known = statistics.get(layer.reads) or Statistics.empty(layer.shape[1], Needs.NOTHING, self.network.device)
        return replace(known, gradients=gradients.get(layer.name))

    def _scores(self, score: Score, layer: Layer, W: Tensor, statistics: Statistics | None) -> Tensor:
        """The layer's scores, -inf where a weight is zero already: removing it again costs nothing."""
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + self.index[layer.name])
        scores = score.weights(W, statistics, random)
        if scores.shape != W.shape:
            raise SecateurError(f"score '{score.name}' gave {tuple(scores.shape)} for {layer.name}: {tuple(W.shape)}.")
        return torch.where(W == 0, -torch.inf, scores)

    def _timed(self, phase: str) -> AbstractContextManager[None]:
        return timed(self.seconds, phase)


def solve_levels(
    network: Network,
    stage: Prune,
    windows: Windows | None,
    calibration: Calibration,
    seed: int,
    progress: Progress,
    levels: Mapping[str, Sequence[int]],
    take: Callable[[Layer, int, Tensor, Tensor, Statistics], None],
    storage: Storage = IN_MEMORY,
) -> None:
    """Solves layers at several numbers of zeros each, by the statistics of the dense model, which stays as it is.

    Args:
        network, windows, calibration, seed, progress, storage: As for `prune_weights`.
        stage: How layers are solved; its target says nothing here.
        levels: Numbers of zeros, by layer.
        take: Is called with the layer, the number of zeros, its weights before and after (out, in), and the statistics
            of its input, which have their Gram matrix whatever the stage reads.
    """
    chosen = [layer for layer in select_layers(network, stage) if levels.get(layer.name)]
    if not chosen:
        return
    work = LayerWork(network, stage, windows, calibration, seed, progress, chosen, storage=storage)
    if work.needs & GRADIENTS and stage.gradient == "loss":
        work.differentiate_loss()

    def act(layer: Layer, statistics: Statistics) -> None:
        W = work.dense(layer)
        for zeros in levels[layer.name]:
            solution, _, _ = work.solve(layer, W, Amount(remove=zeros), statistics)
            take(layer, zeros, W, solution.W, statistics)

    work.look(work.needs | Needs.GRAM, act, "solving every level")
