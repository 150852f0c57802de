"""The quantize stage: one block at a time on the quantized prefix."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import nn

from secateur.allocation.amounts import Amount, Pattern
from secateur.calibration.activations import IN_MEMORY, Storage
from secateur.calibration.runner import BlockRunner
from secateur.calibration.statistics import Needs, Statistics
from secateur.calibration.windows import Windows
from secateur.compression.grid import Grid, group_for
from secateur.compression.layers import chosen_linear_layers
from secateur.errors import SolverError, UsageError
from secateur.layer_report import report_of
from secateur.linear_algebra import relative_error
from secateur.mask import MaskedLayer
from secateur.network.network import Layer, Network
from secateur.network.quantized import INSTALL, OnGrid
from secateur.processes import Processes
from secateur.progress import Progress
from secateur.recipe import Calibration, Quantize
from secateur.result import LayerReport, StageReport
from secateur.route import Route
from secateur.solvers.base import Problem
from secateur.solvers.sparsegpt import SparseGPT
from secateur.timing import timed


def quantize_weights(
    network: Network,
    stage: Quantize,
    windows: Windows | None,
    calibration: Calibration,
    progress: Progress,
    storage: Storage = IN_MEMORY,
) -> StageReport:
    """Puts the weights of `network` on a grid, in place; what is zero stays zero, and the network says what lies where.

    Args:
        network: The model.
        stage: How.
        windows: Calibration windows; None if the method is `nearest`.
        calibration: Precision of the forward passes, and the memory that activations may take.
        progress: Shows progress.
        storage: Where calibration activations may be kept.

    Returns:
        What was done to each layer.

    Raises:
        UsageError: A layer can't be quantized, see `quantizable`.
        SolverError: A zero would have been lost, or a Gram matrix can't be factorised.
    """
    grids = quantizable(network, stage)
    layers = [layer for layer, _ in grids]
    seconds: dict[str, float] = defaultdict(float)
    on = {layer.name: grid for layer, grid in grids}
    reports: dict[str, LayerReport] = {}
    rounded: dict[str, int] = {}
    needs = Needs.GRAM if stage.method == "gptq" else Needs.NOTHING
    route = Route(network, layers, needs)
    runner: BlockRunner | None = None
    if needs:
        assert windows is not None
        with timed(seconds, "prelude"):
            runner = BlockRunner(network, windows, calibration.compute, storage, "quantize")
    tick = progress.bar("quantizing", route.ticks(0, needs, 0 if runner is None else len(runner.hidden)))

    def act(some: Sequence[Layer], statistics: dict[str, Statistics]) -> None:
        with timed(seconds, "solve"), torch.inference_mode():
            for layer in some:
                found = _quantize(network, layer, stage, on[layer.name], statistics.get(layer.reads))
                reports[layer.name], rounded[layer.name] = found
                tick()

    for number in range(route.end):
        some = route.blocks[number]
        found: dict[str, Statistics] = {}
        if runner is not None and some:
            with timed(seconds, "gather"):
                readers: dict[str, tuple[Layer, Needs]] = {}
                for layer in some:
                    readers.setdefault(layer.reads, (layer, needs))  # the first to read it: what follows may end a pass
                found = runner.gather(readers, tick)
        act(some, found)
        if runner is not None and number < route.passed:
            with timed(seconds, "propagate"):
                runner.advance(tick)
    if route.outside:
        found = {}
        if runner is not None:
            with timed(seconds, "gather"):
                found = runner.gather_outside([(layer, needs) for layer in route.outside], tick)
        act(route.outside, found)
    if runner is not None:
        runner.close()
    ordered = tuple(reports[layer.name] for layer in layers)
    notes = _notes(on, sum(rounded.values()))
    if needs and (blind := [one.name for one in ordered if one.error is None]):
        notes.append(f"No token of the calibration reaches {', '.join(blind)}: rounded to nearest.")
    return StageReport({"quantize": stage.model_dump(mode="json")}, ordered, dict(seconds), tuple(notes))


def _notes(on: Mapping[str, Grid], rounded: int) -> list[str]:
    """Says what shares a scale, and how many weights only rounding made zero."""
    notes = []
    sizes = sorted({grid.group for grid in on.values() if grid.group is not None})
    if sizes:
        alone = sum(grid.group is None for grid in on.values())
        rest = f"; in {alone} factors whose rank they don't divide all inputs of an output do" if alone else ""
        notes.append(f"Groups of {' or '.join(map(str, sizes))} inputs share a scale{rest}.")
    if rounded:
        notes.append(f"{rounded:,} more zeros by rounding, which aren't a mask's.")
    return notes


def check_quantize(network: Network, stage: Quantize, team: Processes) -> None:
    """Raises UsageError before any work is done if the model can't be quantized, or its checkpoint not be checked."""
    if network.store is not None:
        raise UsageError("quantize works in memory: give --no-stream, on a machine that can hold the model.")
    if team.size > 1:
        raise UsageError(f"quantize runs in one process, and {team.size} were started.")
    if find_spec("compressed_tensors") is None:
        raise UsageError(f"quantize: {INSTALL}")
    quantizable(network, stage)


def quantizable(network: Network, stage: Quantize) -> list[tuple[Layer, Grid]]:
    """Returns the layers that a stage is about, each with the grid that its weights are put on.

    Raises:
        UsageError: A glob matches nothing, a layer is no plain linear module or shares its weight, a group doesn't
            divide its inputs, or factors are to be pruned.
        PatternError: A pattern doesn't fit a layer.
    """
    layers = chosen_linear_layers(network, stage.include, stage.exclude)
    whole = {layer.name for layer in (*network.layers(), *network.outside())}
    for layer in layers:
        if type(layer.module) is not nn.Linear:
            kind = "a bare weight" if layer.module is None else f"a {type(layer.module).__name__}"
            raise UsageError(
                f"quantize: {layer.name} is {kind}, and the layout that is saved has integers of linear modules only; "
                "leave it out with exclude, or export the checkpoint: secateur export DIR --to gguf."
            )
        if layer.table:
            raise UsageError(f"quantize: {layer.name} is an embedding; leave it out.")
        if ties := network.ties(layer):
            raise UsageError(
                f"quantize: {layer.name} shares its weight with {ties[0]}, which can't be integers; leave it out."
            )
        if stage.joint and layer.name not in whole:
            raise UsageError(
                f"quantize: {layer.name} is a factor, and sparsity and pattern are for whole layers; leave them out."
            )
        if stage.pattern is not None:
            Pattern.parse(stage.pattern).check(layer.shape[1], layer.name)
    ranks = {layer.name for layer in layers if layer.name not in whole and layer.name.endswith(".up")}
    columns = {layer.name: layer.shape[1] for layer in layers if layer.name not in ranks}
    group = group_for(columns, stage.group) if stage.grouped else None

    def grid(layer: Layer) -> Grid:
        fits = group is not None and (layer.name not in ranks or layer.shape[1] % group == 0)
        return Grid(stage.bits, group if fits else None, network.model.dtype)

    return [(layer, grid(layer)) for layer in layers]


def _amount(stage: Quantize, layer: Layer) -> Amount:
    """Returns how much of a layer goes in the sweep; what is zero already stays so, even if that is more."""
    if stage.pattern is not None:
        return Amount(pattern=Pattern.parse(stage.pattern))
    return (
        Amount() if stage.sparsity is None else Amount(remove=max(round(stage.sparsity * layer.weights), layer.zeros()))
    )


def _quantize(
    network: Network, layer: Layer, stage: Quantize, grid: Grid, statistics: Statistics | None
) -> tuple[LayerReport, int]:
    """Puts a layer on its grid; returns its report, and how many of the weights that stay are rounded to zero."""
    start = time.perf_counter()
    W = layer.matrix().to(network.device, torch.float32).contiguous()
    keep = W != 0
    damping: float | None = None
    error: float | None = None
    if stage.method == "gptq" and statistics is not None and statistics.count:
        mask = None if stage.joint else keep
        problem = Problem(layer.name, W, statistics, _amount(stage, layer), mask, damping=stage.damping, grid=grid)
        solution = SparseGPT().solve(problem)
        assert solution.scales is not None
        quantized, scales, damping = solution.W, solution.scales, solution.damping
        keep &= solution.keep
        error = relative_error(W, quantized, statistics.G)
    elif stage.joint:
        raise UsageError(f"quantize: no token of the calibration reaches {layer.name}; prune it in a stage of its own.")
    else:
        scales = grid.all_scales(W)
        quantized = grid.rounded(W, grid.spread(scales, W.shape[1]))
    stored = quantized.to(layer.parameter.dtype)
    if bool((stored[~keep] != 0).any()):
        raise SolverError(f"{layer.name}: a weight that was zero isn't any more; the mask would be lost.")
    zeros_before = layer.zeros()
    layer.matrix().copy_(stored)
    network.quantized[layer.name] = OnGrid(grid, scales.cpu(), MaskedLayer.of(keep).packed)
    report = replace(report_of(layer, zeros_before, start), error_masked=error, error=error, damping=damping)
    return report, int((keep & (stored == 0)).sum())
