"""The factorize stage: one block at a time on the prefix that is factorized already."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateur.calibration.activations import IN_MEMORY, Storage
from secateur.calibration.runner import BlockRunner
from secateur.calibration.statistics import Needs, Statistics
from secateur.calibration.windows import Windows
from secateur.compression.factored import with_factors
from secateur.compression.low_rank import (
    Decomposition,
    break_even,
    energies,
    low_rank,
    ranks_by_error,
    sparse_and_low_rank,
)
from secateur.errors import CalibrationError, NothingPrunedError, UsageError
from secateur.layer_choice import chosen_layers, select_layers
from secateur.layer_report import layer_kind, report_of
from secateur.linear_algebra import relative_error
from secateur.network.network import Layer, Network
from secateur.processes import Processes
from secateur.progress import Progress
from secateur.recipe import Calibration, Factorize, Prune
from secateur.result import LayerReport, StageReport
from secateur.route import Route
from secateur.timing import timed


def factorize(
    network: Network,
    stage: Factorize,
    windows: Windows,
    calibration: Calibration,
    progress: Progress,
    storage: Storage = IN_MEMORY,
) -> tuple[Network, StageReport]:
    """Puts factors in the place of layers; the network that was given isn't to be used afterwards.

    Args:
        network: The model.
        stage: How.
        windows: Calibration windows.
        calibration: Precision of the forward passes, and the memory that activations may take.
        progress: Shows progress.
        storage: Where calibration activations may be kept.

    Returns:
        The network, and what was done to each layer.

    Raises:
        UsageError: The stage can't be carried out on the model, see `factorizable`.
        NothingPrunedError: No layer would be smaller.
    """
    work = _Work(network, stage, windows, calibration, progress, storage, factorizable(network, stage))
    reports = work.carry_out()
    if not work.factors:
        raise NothingPrunedError(
            "nothing was factorized: no layer's factors would be smaller than the layer. Ask for less energy, "
            "or a lower rank."
        )
    notes = _notes(reports)
    if stage.merged:
        notes.append("The factors were multiplied, so the checkpoint is plain, and as large and as fast as before.")
    elif stage.sparse is not None:
        notes.append(
            "Single weights lie beside the factors in a matrix of zeros, which takes the room of a whole one: "
            "secateur pack makes the file smaller."
        )
    told = StageReport({"factorize": stage.model_dump(mode="json")}, tuple(reports), dict(work.seconds), tuple(notes))
    return (network if stage.merged else with_factors(network, work.factors)), told


def _notes(reports: Sequence[LayerReport]) -> list[str]:
    """Says which layers stayed whole, and what became of zeros."""
    notes = []
    whole = [report.name for report in reports if report.rank is None]
    if whole:
        more = f" and {len(whole) - 3} more" if len(whole) > 3 else ""
        notes.append(
            f"{len(whole)} of {len(reports)} layers stayed whole, as their factors would be no smaller: "
            f"{', '.join(whole[:3])}{more}."
        )
    gone = sum(max(0, report.zeros_before - report.zeros) for report in reports)
    if gone:
        notes.append(f"{gone:,} weights that were zero aren't any more: factors bring them back.")
    return notes


def check_factorize(network: Network, stage: Factorize, team: Processes, before: Sequence[Prune] = ()) -> None:
    """Raises UsageError before any work is done if the model can't be factorized.

    Args:
        network: The model as it is before all stages.
        stage: How it is to be factorized.
        team: The processes of the run.
        before: The stages before it that prune.
    """
    if network.store is not None:
        raise UsageError("factorize works in memory: give --no-stream, on a machine that can hold the model.")
    if team.size > 1:
        raise UsageError(f"factorize runs in one process, and {team.size} were started.")
    if network.factorized:
        raise UsageError("factorize: the model is factorized already; take the one that it was made of.")
    layers = factorizable(network, stage)
    _check_rank(stage, layers)
    _check_zeros(network, layers, before)
    _budget(network, stage, layers)


def _check_rank(stage: Factorize, layers: Sequence[Layer]) -> None:
    """Raises UsageError if a layer hasn't got such a rank, or none would be smaller."""
    if stage.rank is None:
        return
    for layer in layers:
        if stage.rank > min(layer.shape):
            out, inputs = layer.shape
            raise UsageError(
                f"factorize: rank {stage.rank} is larger than {layer.name}, which is {out} x {inputs}; its factors are "
                f"smaller than it up to rank {break_even(layer.shape)}."
            )
    best = max(layers, key=lambda layer: break_even(layer.shape))
    if stage.rank > break_even(best.shape):
        raise UsageError(
            f"factorize: with rank {stage.rank} no layer would be smaller; {best.name} is up to rank "
            f"{break_even(best.shape)}."
        )


def _check_zeros(network: Network, layers: Sequence[Layer], before: Sequence[Prune]) -> None:
    """Raises UsageError if stages before set weights to zero that factors, which are dense, would bring back."""
    removed = any("layer" in stage.unit.split(",") for stage in before)  # then blocks count anew
    same = layer_kind if removed else str
    names = {same(layer.name) for layer in layers}
    for stage in before:
        lost = [] if stage.structured else [one for one in select_layers(network, stage) if same(one.name) in names]
        if lost:
            raise UsageError(
                f"factorize: the prune stage before it sets weights of {lost[0].name} to zero, and the product of "
                "factors has none, so the zeros would be lost. Have factorize keep single weights beside the factors "
                "(sparse: 0.7) instead of pruning them before, prune units, or give both stages include and exclude "
                "so that they are about different layers."
            )


def factorizable(network: Network, stage: Factorize) -> list[Layer]:
    """Returns the layers that a stage is about, in forward order.

    Raises:
        UsageError: A glob matches nothing, or a layer is no linear module of a block.
    """
    layers = chosen_layers(network.layers(), network.outside(), stage.include, stage.exclude)
    for layer in layers:
        plain = type(layer.module) is nn.Linear or type(layer.module).__name__ == "Conv1D"
        if not plain or layer.block is None:
            kind = "a bare weight" if layer.module is None else f"a {type(layer.module).__name__}"
            where = "" if layer.block is not None else " outside of the blocks"
            raise UsageError(
                f"factorize: {layer.name} is {kind}{where}, and only linear modules of blocks can stand as factors; "
                "leave it out with exclude."
            )
    return layers


def _budget(network: Network, stage: Factorize, layers: Sequence[Layer]) -> int | None:
    """Returns how many parameters all layers may have together; None where nothing says so.

    Raises:
        UsageError: The target can't be met even with rank 1.
    """
    if stage.params is None:
        return None
    whole: int = sum(parameter.numel() for parameter in network.model.parameters())
    rest = whole - sum(layer.weights for layer in layers)
    budget, least = round(stage.params * whole) - rest, sum(sum(layer.shape) for layer in layers)
    if budget < least:
        raise UsageError(
            f"factorize: params {stage.params:g} can't be met: with rank 1 everywhere {(rest + least) / whole:.3g} of "
            "the parameters are left, as only layers inside of the blocks get factors."
        )
    return budget


@dataclass
class _Work:
    """One stage's work on one network."""

    network: Network
    stage: Factorize
    windows: Windows
    calibration: Calibration
    progress: Progress
    storage: Storage
    layers: Sequence[Layer]

    def __post_init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.factors: dict[str, Decomposition] = {}
        self.reports: dict[str, LayerReport] = {}
        self.budget = _budget(self.network, self.stage, self.layers)
        self.ranks: dict[str, int | None] | None = None

    def carry_out(self) -> list[LayerReport]:
        """Finds factors of every layer, and leaves what they stand for in its place."""
        if self.stage.allocation == "error":
            assert self.budget is not None
            spectra: dict[str, Tensor] = {}

            def note(layer: Layer, statistics: Statistics) -> None:
                spectra[layer.name] = energies(self._dense(layer), statistics.G)[0]

            self._walk(note, "looking at the dense model")
            self.ranks = ranks_by_error(spectra, {layer.name: layer.shape for layer in self.layers}, self.budget)
        self._walk(self._factorize, "factorizing")
        return [self.reports[layer.name] for layer in self.layers]

    def _walk(self, act: Callable[[Layer, Statistics], None], label: str) -> None:
        """Calls `act` on each layer, with the statistics that the blocks before it leave."""
        route = Route(self.network, self.layers, Needs.GRAM)
        with timed(self.seconds, "prelude"):
            runner = BlockRunner(self.network, self.windows, self.calibration.compute, self.storage, "factorize")
        tick = self.progress.bar(label, route.ticks(0, Needs.GRAM, len(runner.hidden)))
        for number in range(route.end):
            some = route.blocks[number]
            found: Mapping[str, Statistics] = {}
            if some:
                with timed(self.seconds, "gather"):
                    found = runner.gather({layer.reads: (layer, Needs.GRAM) for layer in some}, tick)
            with timed(self.seconds, "solve"), torch.no_grad():
                for layer in some:
                    act(layer, found[layer.reads])
                    tick()
            if number < route.passed:
                with timed(self.seconds, "propagate"):
                    runner.advance(tick)
        runner.close()

    def _dense(self, layer: Layer) -> Tensor:
        return layer.matrix().to(self.network.device, torch.float32).contiguous()

    def _factorize(self, layer: Layer, statistics: Statistics) -> None:
        start, zeros = time.perf_counter(), layer.zeros()
        W, G = self._dense(layer), statistics.G
        factors = self._found(layer, W, G)
        if factors is None:
            self.reports[layer.name] = report_of(layer, zeros, start)
            return
        if not bool(torch.isfinite(factors.W).all()):
            raise CalibrationError(
                f"{layer.name}: the factors came out as NaN or infinite; use other calibration data."
            )
        self.factors[layer.name] = replace(
            factors,
            up=factors.up.cpu(),
            down=factors.down.cpu(),
            kept=None if factors.kept is None else factors.kept.cpu(),
        )
        layer.matrix().copy_(factors.W.to(layer.parameter.dtype))
        error = relative_error(W, factors.W, G)
        told = report_of(layer, zeros, start)
        self.reports[layer.name] = replace(told, error_masked=error, error=error, rank=factors.rank)

    def _found(self, layer: Layer, W: Tensor, G: Tensor) -> Decomposition | None:
        """Returns a layer's factors; None if it stays whole."""
        stage, most = self.stage, break_even(layer.shape)
        if self.ranks is not None:
            rank = self.ranks[layer.name]
            return None if rank is None else low_rank(W, G, rank)
        if self.budget is not None:
            room = layer.weights * self.budget / sum(one.weights for one in self.layers)
            if stage.sparse is not None:
                rank = max(1, int((1 - stage.sparse) * room / sum(layer.shape)))
                kept = max(1, int(room) - rank * sum(layer.shape))
                return sparse_and_low_rank(W, G, rank, kept, stage.rounds)
            rank = max(1, int(room / sum(layer.shape)))
            return low_rank(W, G, rank) if rank <= most else None
        if stage.rank is not None:
            return low_rank(W, G, stage.rank) if stage.rank <= most else None
        assert stage.energy is not None
        values, U = energies(W, G)
        rank = int((values.cumsum(0) < stage.energy * values.sum()).sum()) + 1
        if rank > most:
            return None
        U = U[:, :rank].contiguous()
        return Decomposition(U, U.T @ W)
