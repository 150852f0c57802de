"""Carries a recipe out: load, calibrate, prune, save, check, evaluate, report."""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from secateur.calibration.data import Windows, calibration_windows, text_windows, window_length
from secateur.errors import CalibrationError
from secateur.evaluation.comparison import bytes_on_disk, compare_networks
from secateur.mask import FILE as MASK_FILE
from secateur.mask import Mask
from secateur.network.loading import load
from secateur.network.network import Network
from secateur.network.saving import (
    RESULT_FILE,
    check_output,
    check_room,
    complete_folder,
    reload_difference,
    save_network,
)
from secateur.progress import Progress
from secateur.pruning import check_pattern, needs_of, prune_weights, select_layers
from secateur.recipe import Recipe
from secateur.report.card import model_card
from secateur.report.page import write_page
from secateur.result import Comparison, Result, StageReport

CHECKED_TOKENS = 128  # of one window, for comparing logits after reloading


@dataclass
class Run:
    """What a recipe has come to so far."""

    recipe: Recipe
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the time spent inside to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def run_recipe(recipe: Recipe, progress: Progress | None = None) -> Result:
    """Carries out a recipe.

    Args:
        recipe: What to do.
        progress: Shows progress; None shows nothing.

    Returns:
        What was done and measured; also written to the output folder, if the recipe names one.

    Raises:
        SecateurError: Something went wrong; no half-written output is left.
    """
    work = Run(recipe, progress or Progress())
    start = time.perf_counter()
    output = Path(recipe.output).expanduser() if recipe.output else None
    if output is not None:
        check_output(output, recipe.overwrite)
    with work.timed("load"):
        network = _load(recipe, work.progress)
    work.notes += network.notes
    if output is not None:
        check_output(output, recipe.overwrite, network.source.path)
        check_room(network, output)
    for stage in recipe.stages:
        check_pattern(select_layers(network, stage.prune), stage.prune)
    with work.timed("calibrate"):
        calibration, held_out = _windows(work, network)
    with work.timed("prune"):
        stages = tuple(
            prune_weights(network, stage.prune, calibration, recipe.calibration.compute, recipe.seed, work.progress)
            for stage in recipe.stages
        )
    peak = peak_memory()
    if output is None:
        with work.timed("evaluate"):
            comparison = _evaluate(work, network, held_out, None)
        return _result(work, network, stages, calibration, held_out, comparison, None, start, peak)
    with complete_folder(output) as folder:
        with work.timed("save"):
            save_network(network, folder)
            Mask.of(network).save(folder / MASK_FILE)
        with work.timed("reload"):
            difference = reload_difference(network, folder, _probe(network, calibration or held_out))
        with work.timed("evaluate"):
            comparison = _evaluate(work, network, held_out, folder)
        result = _result(work, network, stages, calibration, held_out, comparison, difference, start, peak)
        write_result(result, folder)
    return result


def write_result(result: Result, folder: Path) -> None:
    """Writes secateur.json, report.html and the model card into a folder."""
    text = json.dumps(result.to_dict(), indent=1, allow_nan=True)
    (folder / RESULT_FILE).write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(result), encoding="utf-8")
    write_page(result, folder / "report.html")


def _load(recipe: Recipe, progress: Progress) -> Network:
    return load(
        recipe.model,
        dtype=recipe.dtype,
        device=recipe.device,
        trust_remote_code=recipe.trust_remote_code,
        seed=recipe.seed,
        progress=progress,
    )


def _windows(work: Run, network: Network) -> tuple[Windows | None, Windows | None]:
    """Returns windows for calibration and for evaluation, each None where nothing needs it."""
    recipe = work.recipe
    settings, evaluate = recipe.calibration, recipe.evaluate
    evaluation: Windows | None = None
    if evaluate is not None and evaluate.text is not None:
        length = window_length(network, evaluate.length or settings.length)
        evaluation = text_windows(network, evaluate.text, evaluate.windows, length)
    needed = any(needs_of(stage.prune) for stage in recipe.stages)
    if not needed and (evaluate is None or evaluation is not None):
        return None, evaluation
    held_out = evaluate is not None and evaluation is None
    try:
        calibration, spare = calibration_windows(
            network,
            settings.data,
            settings.samples if needed else 1,
            settings.length,
            recipe.seed,
            work.progress,
            held_out=min(8, evaluate.windows) if held_out and evaluate is not None else 0,
        )
    except CalibrationError as error:
        if needed:
            raise
        work.notes.append(f"Quality wasn't measured: {error}")
        return None, None
    if needed and len(calibration) < settings.samples:
        work.notes.append(
            f"{settings.data} has text for {len(calibration)} calibration windows of {calibration.length} tokens; "
            f"{settings.samples} were asked for."
        )
    return (calibration if needed else None), (evaluation or (spare if held_out else None))


def _probe(network: Network, windows: Windows | None) -> torch.Tensor:
    """Token ids for the reload check: (1, length)."""
    if windows is not None:
        return windows.ids[:1, :CHECKED_TOKENS]
    room = network.dimension("positions") or CHECKED_TOKENS
    vocabulary = network.dimension("vocabulary") or 2
    return torch.arange(min(8, room))[None] % vocabulary


def _evaluate(work: Run, network: Network, windows: Windows | None, folder: Path | None) -> Comparison | None:
    """Loads the dense model again and measures both, window by window."""
    evaluate = work.recipe.evaluate
    if evaluate is None:
        return None
    dense = _load(work.recipe, work.progress)
    sizes = [bytes_on_disk(dense.source.path), bytes_on_disk(folder) if folder else None]
    if not network.generates:
        work.notes.append(
            f"{network.architecture} has no plain next-token perplexity; quality is the cosine similarity of its "
            "output vectors to the dense model's."
        )
    names = [work.recipe.model, work.recipe.output or "pruned"]
    return compare_networks([dense, network], windows, work.progress, evaluate.speed, sizes, names)


def _result(
    work: Run,
    network: Network,
    stages: tuple[StageReport, ...],
    calibration: Windows | None,
    held_out: Windows | None,
    comparison: Comparison | None,
    difference: float | None,
    start: float,
    peak: int,
) -> Result:
    recipe = work.recipe
    about: dict[str, Any] | None = None
    if calibration is not None:
        about = {
            "data": recipe.calibration.data,
            "windows": len(calibration),
            "length": calibration.length,
            "tokens": calibration.ids.numel(),
            "held_out": 0 if held_out is None else len(held_out),
            "compute": recipe.calibration.compute,
        }
    return Result(
        output=recipe.output,
        about=network.about(),
        recipe=recipe.to_dict(),
        calibration=about,
        stages=stages,
        comparison=comparison,
        reload=difference,
        seconds={**work.seconds, "total": time.perf_counter() - start},
        peak_memory_pruning=peak,
        peak_memory=peak_memory(),
        versions=versions(),
        notes=tuple(work.notes),
        network=network,
    )


def peak_memory() -> int:
    """Returns the process's peak resident memory so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Returns the versions that figures depend on."""
    names = ("secateur", "torch", "transformers", "safetensors", "numpy")
    return {name: version(name) for name in names} | {"python": platform.python_version()}
