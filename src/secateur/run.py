"""Carries a recipe out: load, calibrate, prune, save, check, evaluate, report."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from secateur.calibration.activations import IN_MEMORY, Storage
from secateur.calibration.audio import sound_shape
from secateur.calibration.data import Windows, calibration_windows, check_there, read_windows, window_length
from secateur.calibration.precision import bf16_pays
from secateur.errors import CalibrationError, ProcessError, ResumeError, SaveError, UsageError
from secateur.evaluation.comparison import compare_networks
from secateur.evaluation.costs import costs
from secateur.evaluation.reloading import reload_difference
from secateur.journal import Journal, identity, run_folder
from secateur.mask import FILE as MASK_FILE
from secateur.mask import save_mask
from secateur.network.loading import load, weight_bytes
from secateur.network.network import Network
from secateur.network.saving import (
    RESULT_FILE,
    check_output,
    check_room,
    complete_folder,
    explain,
    save_network,
)
from secateur.outcome import peak_memory, versions, write_result
from secateur.processes import ALONE, Processes, processes
from secateur.progress import Progress
from secateur.pruning import check_pattern, needs_of, prune_weights, select_layers
from secateur.recipe import Recipe
from secateur.result import Comparison, Result, StageReport
from secateur.run_images import run_images
from secateur.structure import prune_units
from secateur.structure.stage import check_units, needs_windows
from secateur.timing import timed

INTERRUPTIONS = (KeyboardInterrupt, OSError, MemoryError, SaveError, ProcessError)  # a run can go on after them
CHECKED_TOKENS = 128  # of one window, for comparing logits after reloading


@dataclass
class Run:
    """What a recipe has come to so far."""

    recipe: Recipe
    progress: Progress
    team: Processes = ALONE
    resume: bool = False
    storage: Storage = IN_MEMORY
    start: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def timed(self, phase: str) -> AbstractContextManager[None]:
        """Adds the time spent inside to a phase."""
        return timed(self.seconds, phase)

    def in_memory(self) -> Result:
        """Carries out a recipe that names no output."""
        if self.recipe.stream:
            raise UsageError("a streamed model doesn't fit in memory, so it needs an output to be written to.")
        if self.resume:
            raise UsageError("there is nothing to resume without an output.")
        network, calibration, held_out = self._prepared(None)
        network, calibration, stages = self._pruned(network, calibration, None)
        peak = peak_memory()
        comparison = None
        if self.team.first:
            with self.timed("evaluate"):
                comparison = _evaluate(self, network, held_out, None)
        return _result(self, network, stages, calibration, held_out, comparison, None, peak)

    def into(self, output: Path) -> Result:
        """Carries out a recipe that writes a folder."""
        self._check_resume(output)
        check_output(output, self.recipe.overwrite)
        network, calibration, held_out = self._prepared(output)
        if any(stage.prune.structured for stage in self.recipe.stages):
            if self.resume:
                self.notes.append("A run that removes units keeps no state on the way, so it started afresh.")
            with _full_disk(output), self._passing_storage(output):
                return self._write(output, network, calibration, held_out, None)
        with _full_disk(output):
            about = identity(self.recipe, network, calibration, self.team)
            journal = Journal.open(output, about, network, self.team, self.resume, self.progress)
            self.storage = journal.storage(self.recipe.calibration.activation_bytes)
            try:
                result = self._write(output, network, calibration, held_out, journal)
            except INTERRUPTIONS:
                if not journal.worth_keeping:
                    journal.close()
                raise
            except BaseException:
                journal.close()  # the same would happen again
                raise
            journal.close()
            return result

    @contextmanager
    def _passing_storage(self, output: Path) -> Iterator[None]:
        """Keeps activations beyond `activation_memory` in files beside the output, for as long as it runs."""
        folder = run_folder(output)
        self.storage = Storage(folder, self.recipe.calibration.activation_bytes, uuid.uuid4().hex, kept=False)
        try:
            if self.team.first:
                shutil.rmtree(folder, ignore_errors=True)
            self.team.wait()
            yield
        finally:
            if self.team.first:
                shutil.rmtree(folder, ignore_errors=True)

    def _write(
        self,
        output: Path,
        network: Network,
        calibration: Windows | None,
        held_out: Windows | None,
        journal: Journal | None,
    ) -> Result:
        network, calibration, stages = self._pruned(network, calibration, journal)
        peak = peak_memory()
        if not self.team.first:
            return _result(self, network, stages, calibration, held_out, None, None, peak)
        with complete_folder(output, journal.folder / "output" if journal else None) as folder:
            tick = self.progress.bar("saving and loading again", 2)
            with self.timed("save"):
                save_network(network, folder, journal.parts() if network.store and journal else ())
                if any(not stage.prune.structured for stage in self.recipe.stages):
                    save_mask(network, folder / MASK_FILE)
            tick()
            with self.timed("reload"):
                probe = _probe(network, calibration or held_out)
                difference = reload_difference(network, folder, probe, self.progress)
            tick()
            with self.timed("evaluate"):
                comparison = _evaluate(self, network, held_out, folder)
            result = _result(self, network, stages, calibration, held_out, comparison, difference, peak)
            write_result(result, folder)
        return result

    def _check_resume(self, output: Path) -> None:
        """Raises ResumeError if the run that is to be resumed is finished."""
        if not self.resume or not (output / RESULT_FILE).is_file() or self.recipe.overwrite:
            return
        if self.team.first:
            shutil.rmtree(run_folder(output), ignore_errors=True)
        raise ResumeError(f"{output} is finished: there is nothing to resume. Run with --overwrite to make it anew.")

    def _prepared(self, output: Path | None) -> tuple[Network, Windows | None, Windows | None]:
        """Loads the model and its calibration data, and checks what can be checked before any work."""
        recipe = self.recipe
        for data in (recipe.calibration.data, recipe.evaluate.text if recipe.evaluate else None):
            if data is not None:
                check_there(data)
        with self.timed("load"):
            network = _load(recipe, self.progress, recipe.stream if recipe.output else False)
        self.notes += network.notes
        if output is not None:
            check_output(output, recipe.overwrite, network.source.path)
            check_room(network, output)
        for stage in recipe.stages:
            if stage.prune.structured:
                check_units(network, stage.prune)
            else:
                check_pattern(select_layers(network, stage.prune), stage.prune)
        with self.timed("calibrate"):
            calibration, held_out = self.team.share(_windows(self, network) if self.team.first else (None, None))
        return network, calibration, held_out

    def _pruned(
        self, network: Network, calibration: Windows | None, journal: Journal | None
    ) -> tuple[Network, Windows | None, tuple[StageReport, ...]]:
        """Carries out the stages that aren't done yet; returns the model, its calibration windows and the reports."""
        recipe = self.recipe
        if recipe.calibration.compute == "bfloat16" and calibration is not None and not bf16_pays(network.device):
            self.notes.append("bf16 products aren't faster than float32 ones on this processor, which has no AMX.")
        done = [] if journal is None else list(journal.finished)
        length = calibration.length if calibration is not None else CHECKED_TOKENS
        structured = any(stage.prune.structured for stage in recipe.stages)
        first = costs(network, length) if structured else None
        for stage in recipe.stages[len(done) :]:
            given = (calibration, recipe.calibration, recipe.seed, self.progress)
            with self.timed("prune"):
                if stage.prune.structured:
                    assert first is not None
                    network, report = prune_units(network, stage.prune, *given, first, self.team, self.storage)
                else:
                    report = prune_weights(network, stage.prune, *given, journal, self.team, self.storage)
            if stage.prune.unit == "token" and calibration is not None:
                with self.timed("calibrate"):
                    calibration = self.team.share(_windows(self, network)[0] if self.team.first else None)
            done.append(report)
            if journal is not None:
                journal.finish_stage(report)
        return network, calibration, tuple(done)


@contextmanager
def _full_disk(output: Path) -> Iterator[None]:
    """Says what the operating system refused."""
    try:
        yield
    except OSError as error:
        raise SaveError(explain(error, output)) from error


def run_recipe(recipe: Recipe, progress: Progress | None = None, resume: bool = False) -> Result:
    """Carries out a recipe.

    Started by torchrun, several processes share the calibration and the solving; the first one does the rest.

    Args:
        recipe: What to do.
        progress: Shows progress; None shows nothing.
        resume: Whether to go on from what an earlier run of the same recipe left, if it ended early.

    Returns:
        What was done and measured; also written to the output folder, if the recipe names one. Only the first of
        several processes has evaluated anything.

    Raises:
        SecateurError: Something went wrong; no half-written output is left. The blocks that were finished are kept
            beside the output for `resume`.
    """
    if recipe.calibration.images is not None:
        return run_images(recipe, progress or Progress(), resume)
    with processes(recipe.device) as team:
        work = Run(recipe, progress if progress is not None and team.first else Progress(), team, resume)
        return work.in_memory() if recipe.output is None else work.into(Path(recipe.output).expanduser())


def _load(recipe: Recipe, progress: Progress, stream: bool | None) -> Network:
    return load(
        recipe.model,
        dtype=recipe.dtype,
        device=recipe.device,
        trust_remote_code=recipe.trust_remote_code,
        seed=recipe.seed,
        stream=stream,
        progress=progress,
    )


def _windows(work: Run, network: Network) -> tuple[Windows | None, Windows | None]:
    """Returns windows for calibration and for evaluation, each None where nothing needs it."""
    recipe = work.recipe
    settings, evaluate = recipe.calibration, recipe.evaluate
    evaluation: Windows | None = None
    if evaluate is not None and evaluate.text is not None:
        length = window_length(network, evaluate.length or settings.length)
        evaluation = read_windows(network, evaluate.text, evaluate.windows, length, work.progress)
    needed = any(
        needs_windows(stage.prune) if stage.prune.structured else bool(needs_of(stage.prune)) for stage in recipe.stages
    )
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
        kind = "text" if calibration.features is None else "sound"
        work.notes.append(
            f"{settings.data} has {kind} for {len(calibration)} calibration windows of {calibration.length} tokens; "
            f"{settings.samples} were asked for."
        )
    if held_out and not len(spare):
        work.notes.append(
            f"Quality wasn't measured: {settings.data} has one window, which calibration needs; give data to measure "
            "on with --evaluate."
        )
    return (calibration if needed else None), (evaluation or spare or None)


def _probe(network: Network, windows: Windows | None) -> Windows:
    """One window for the reload check, without padding."""
    if windows is not None:
        one = windows.one(0)
        return replace(one, ids=one.ids[:, :CHECKED_TOKENS])
    room = network.dimension("positions") or CHECKED_TOKENS
    vocabulary = network.dimension("vocabulary") or 2
    silence = torch.zeros(1, *sound_shape(network)) if network.family.inputs == "audio" else None
    return Windows(torch.arange(min(8, room))[None] % vocabulary, "probe", features=silence)


def _evaluate(work: Run, network: Network, windows: Windows | None, folder: Path | None) -> Comparison | None:
    """Loads the dense model again and measures both, window by window."""
    evaluate = work.recipe.evaluate
    if evaluate is None:
        return None
    dense = _load(work.recipe, work.progress, network.store is not None)
    sizes = [weight_bytes(dense.source.path), weight_bytes(folder) if folder else None]
    if not network.generates:
        work.notes.append(
            f"{network.architecture} has no plain next-token perplexity; quality is the cosine similarity of its "
            "output vectors to the dense model's."
        )
    names = [work.recipe.model, work.recipe.output or "pruned"]
    return compare_networks([dense, network], windows, work.progress, evaluate.speed, sizes, names, work.storage)


def _result(
    work: Run,
    network: Network,
    stages: tuple[StageReport, ...],
    calibration: Windows | None,
    held_out: Windows | None,
    comparison: Comparison | None,
    difference: float | None,
    peak: int,
) -> Result:
    recipe = work.recipe
    about: dict[str, Any] | None = None
    if calibration is not None:
        about = {
            "data": recipe.calibration.data,
            "windows": len(calibration),
            "length": calibration.length,
            "tokens": calibration.tokens,
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
        seconds={**work.seconds, "total": time.perf_counter() - work.start},
        peak_memory_pruning=peak,
        peak_memory=peak_memory(),
        versions=versions(),
        notes=tuple(work.notes),
        network=None if network.store else network,
    )
