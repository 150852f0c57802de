"""Carries a recipe out: load, calibrate, prune, save, check, evaluate, report."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from secateur.calibration.activations import IN_MEMORY, Storage
from secateur.calibration.audio import sound_shape
from secateur.calibration.data import Windows, check_there
from secateur.calibration.loaders import TrainingData, check_loaders
from secateur.errors import ProcessError, ResumeError, SaveError, SecateurError, UsageError
from secateur.evaluation.classes import add_accuracy
from secateur.evaluation.comparison import compare_networks
from secateur.evaluation.error_rate import add_error_rate
from secateur.evaluation.reloading import reload_difference
from secateur.journal import Journal, check_left_over, identity, in_words, run_folder
from secateur.lock import only_run
from secateur.mask import FILE as MASK_FILE
from secateur.mask import has_mask, save_mask
from secateur.memory import peak_memory
from secateur.network.classifier import is_sequence_classifier
from secateur.network.loading import load, streamable
from secateur.network.network import Network
from secateur.network.saving import (
    RESULT_FILE,
    check_output,
    check_room,
    complete_folder,
    explain,
    save_network,
)
from secateur.outcome import versions, write_result
from secateur.processes import ALONE, Processes, processes
from secateur.progress import Progress
from secateur.recipe import Quantize, Recipe, Training
from secateur.result import Comparison, Result, StageReport
from secateur.run_images import run_images
from secateur.run_stages import CHECKED_TOKENS, Stages, check_stages
from secateur.run_windows import RunWindows
from secateur.stage_journal import StageJournal
from secateur.timing import timed

if TYPE_CHECKING:
    from secateur.run_search import Found

# A run can go on after them; a progress bar raises SystemExit on a closed pipe.
INTERRUPTIONS = (
    KeyboardInterrupt,
    SystemExit,
    OSError,
    MemoryError,
    SaveError,
    ProcessError,
)


@dataclass
class Run:
    """What a recipe has come to so far."""

    recipe: Recipe
    progress: Progress
    team: Processes = ALONE
    resume: bool = False
    loaders: Mapping[str, DataLoader[Any]] = field(default_factory=dict)
    found: Found | None = None
    storage: Storage = IN_MEMORY
    start: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.windows = RunWindows(self.recipe, self.progress, self.notes, loaders=self.loaders)
        self.training: list[TrainingData] = []

    def timed(self, phase: str) -> AbstractContextManager[None]:
        """Adds the time spent inside to a phase."""
        return timed(self.seconds, phase)

    def in_memory(self) -> Result:
        """Carries out a recipe that names no output."""
        if self.recipe.stream:
            raise UsageError("a streamed model doesn't fit in memory, so it needs an output to be written to.")
        if self.resume:
            raise UsageError("there is nothing to resume without an output.")
        if any("tensorboard" in getattr(step.settings, "report_to", ()) for step in self.recipe.steps):
            raise UsageError("report_to tensorboard writes files into the output, and none is named.")
        network, calibration, held_out = self._prepared(None)
        with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
            journal = StageJournal(Path(folder), {}, self.team, durable=False)
            network, calibration, stages = self._stages(network, calibration, journal)
        peak = peak_memory()
        comparison = None
        if self.team.first:
            with self.timed("evaluate"):
                comparison = _evaluate(self, network, held_out, None)
        return _result(self, network, stages, calibration, held_out, comparison, None, peak)

    def into(self, output: Path) -> Result:
        """Carries out a recipe that writes a folder, which no other run may do meanwhile."""
        self._check_resume(output)
        check_output(output, self.recipe.overwrite)
        if self.found is None:
            check_left_over(output, self.resume, self.recipe.overwrite)
        network, calibration, held_out = self._prepared(output)
        with _full_disk(output):
            about = identity(self.recipe, network, calibration, self.team, self.training)
            journal: Journal | StageJournal
            if block_by_block(self.recipe):
                journal = Journal.open(output, about, network, self.team, self.resume, self.progress)
            else:
                journal = StageJournal.open(output, about, self.team, self.resume, self.progress)
                network = journal.restored(network)
            if len(threads := journal.about["threads"]) > 1:
                self.notes.append(
                    f"Carried out by {' and '.join(map(str, threads))} threads in turn, so its last digits may differ "
                    "from an uninterrupted run's."
                )
            self.storage = journal.storage(self.recipe.calibration.activation_bytes)
            try:
                result = self._write(output, network, calibration, held_out, journal)
            except INTERRUPTIONS:
                if not journal.worth_keeping:
                    journal.close()
                raise
            except SecateurError as error:
                if not isinstance(journal, StageJournal) or not journal.finished:
                    journal.close()  # the same would happen again
                    raise
                kept = f"{in_words(len(journal.finished), 0)} finished and kept"
                raise type(error)(f"{error} Of the run, {kept}: mend what comes after, and add --resume.") from error
            except BaseException:
                journal.close()
                raise
            journal.close()
            return result

    def _write(
        self,
        output: Path,
        network: Network,
        calibration: Windows | None,
        held_out: Windows | None,
        journal: Journal | StageJournal,
    ) -> Result:
        network, calibration, stages = self._stages(network, calibration, journal)
        peak = peak_memory()
        if not self.team.first:
            return _result(self, network, stages, calibration, held_out, None, None, peak)
        self._check_still_free(output)
        with complete_folder(output, journal.folder / "output") as folder:
            tick = self.progress.bar("saving and loading again", 2)
            with self.timed("save"):
                save_network(network, folder, journal.parts() if network.store and isinstance(journal, Journal) else ())
                if self._masked(network):
                    save_mask(network, folder / MASK_FILE)
            tick()
            with self.timed("reload"):
                probe = _probe(network, calibration or held_out)
                difference = reload_difference(network, folder, probe, self.progress)
            tick()
            with self.timed("evaluate"):
                comparison = _evaluate(self, network, held_out, folder)
                if self.found is not None and network.store is None:
                    self.found.judge(network)
            result = _result(self, network, stages, calibration, held_out, comparison, difference, peak)
            write_result(result, folder)
            if self.found is not None:
                self.found.write(folder)
            if isinstance(journal, StageJournal) and journal.logs.is_dir():
                shutil.copytree(journal.logs, folder / journal.logs.name)
        return result

    def _masked(self, network: Network) -> bool:
        """Whether there is a mask to be written: of weights that went in this run, or before it."""
        pruned = self.recipe.prunes
        joint = any(isinstance(one.settings, Quantize) and one.settings.joint for one in self.recipe.steps)
        if joint or any(not stage.structured for stage in pruned):
            return bool(network.layers())
        return not pruned and has_mask(network)

    def _check_still_free(self, output: Path) -> None:
        """Raises SaveError, which a run can go on after, if something else took the output's place meanwhile."""
        try:
            check_output(output, self.recipe.overwrite)
        except UsageError as error:
            raise SaveError(f"when the run was done, {error} What it has finished is kept for --resume.") from error

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
        trained = [step.settings.data for step in recipe.steps if isinstance(step.settings, Training)]
        check_loaders(self.loaders, trained)
        for data in (recipe.calibration.data, recipe.evaluate.text if recipe.evaluate else None, *trained):
            if data is not None and data not in self.loaders:
                check_there(data)
        with self.timed("load"):
            network = _load(recipe, self.progress, recipe.stream if recipe.output else False)
            network = self.windows.fitting(network)
            self.table = self.windows.table(network)
        self.source = network.source.path
        if network.quantized:
            network.quantized = {}
            self.notes.append("The model was quantized; what is written is plain unless a stage quantizes it again.")
        self.notes += network.notes
        if output is not None:
            check_output(output, recipe.overwrite, network.source.path)
            check_room(network, output, trains=any(isinstance(step.settings, Training) for step in recipe.steps))
        check_stages(recipe, network, self.team, self.loaders)
        with self.timed("calibrate"):
            found = self.windows.read(network) if self.team.first else (None, None)
            calibration, held_out = self.team.share(found)
        with self.timed("read training data"):
            self.training = self.windows.read_training(network)
        return network, calibration, held_out

    def _stages(
        self, network: Network, calibration: Windows | None, journal: Journal | StageJournal
    ) -> tuple[Network, Windows | None, tuple[StageReport, ...]]:
        """Carries out the stages that aren't done yet; returns the model, its calibration windows and the reports."""
        stages = Stages(
            recipe=self.recipe,
            progress=self.progress,
            team=self.team,
            storage=self.storage,
            windows=self.windows,
            load=self._load_beside,
            seconds=self.seconds,
            notes=self.notes,
        )
        return stages.carry_out(network, calibration, journal)

    def _load_beside(self, model: str, stream: bool) -> Network:
        """Loads another model, or the dense one again, beside the one that is worked on."""
        recipe = self.recipe if model == "dense" else self.recipe.model_copy(update={"model": model, "dtype": None})
        return _load(recipe, self.progress, stream and streamable(self.source))


@contextmanager
def _full_disk(output: Path) -> Iterator[None]:
    """Says what the operating system refused."""
    try:
        yield
    except OSError as error:
        raise SaveError(explain(error, output)) from error


def run_recipe(
    recipe: Recipe,
    progress: Progress | None = None,
    resume: bool = False,
    loaders: Mapping[str, DataLoader[Any]] | None = None,
) -> Result:
    """Carries out a recipe.

    Started by torchrun, several processes share the calibration and the solving; the first one does the rest.

    Args:
        recipe: What to do.
        progress: Shows progress; None shows nothing.
        resume: Whether to go on from what an earlier run of the same recipe left, if it ended early.
        loaders: DataLoaders that stages train on: the name that a stage has as its `data`, and the loader. Its data set
            and its collator are taken, which gives dicts of the model's arguments and `labels`; batches, their order
            and what judges go by the stage's settings.

    Returns:
        What was done and measured; also written to the output folder, if the recipe names one. Only the first of
        several processes has evaluated anything.

    Raises:
        SecateurError: Something went wrong; no half-written output is left. The blocks that were finished are kept
            beside the output for `resume`.
    """
    if recipe.calibration.images is not None or recipe.search is not None:
        check_loaders(loaders or {}, [])  # nothing trains there
    if recipe.calibration.images is not None:
        return run_images(recipe, progress or Progress(), resume)
    if recipe.search is not None:
        return _searched(recipe, progress or Progress(), resume)
    with processes(recipe.device) as team:
        shown = progress if progress is not None and team.first else Progress()
        work = Run(recipe, shown, team, resume, loaders or {})
        if recipe.output is None:
            return work.in_memory()
        output = Path(recipe.output).expanduser()
        with only_run(output, team):
            return work.into(output)


def _searched(recipe: Recipe, progress: Progress, resume: bool) -> Result:
    from secateur.run_search import find_recipe, tidied  # noqa: PLC0415 (Optuna's import takes a second)

    with processes(recipe.device) as team:
        if team.size > 1:
            raise UsageError("a search runs in one process; workers that share a --storage search together.")
        if recipe.output is None:
            raise UsageError("a search needs an output to keep its study in; give -o FOLDER.")
        output = Path(recipe.output).expanduser()
        with only_run(output):
            with tidied(output):
                final, found = find_recipe(recipe, progress, resume)
            try:
                result = Run(final, progress, team, found=found).into(output)
            finally:
                found.close()
            found.forget()
        return result


def block_by_block(recipe: Recipe) -> bool:
    """Whether all stages set weights to zero, block after block, so that a run can be taken up between two blocks."""
    return all(stage.prune is not None and not stage.prune.structured for stage in recipe.stages)


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
    folders = [dense.source.path, folder]
    names = [work.recipe.model, work.recipe.output or "pruned"]
    if work.table is not None or is_sequence_classifier(network) != is_sequence_classifier(dense):
        none = compare_networks([dense, network], None, work.progress, False, folders, names, work.storage)
        if work.table is None:
            work.notes.append("Quality wasn't measured: the dense model tells no classes apart; evaluate on a table.")
            return none
        return add_accuracy(none, [dense, network], work.table, evaluate.length, work.progress)
    if not network.generates:
        work.notes.append(
            f"{network.architecture} has no plain next-token perplexity; quality is the cosine similarity of its "
            "output vectors to the dense model's."
        )
    both = [dense, network]
    found = compare_networks(both, windows, work.progress, evaluate.speed, folders, names, work.storage)
    if evaluate.text is not None and dense.family.inputs == "audio":
        found = add_error_rate(found, both, evaluate.text, evaluate.windows, work.progress)
    return found


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
        search=None if work.found is None else work.found.told,
        network=None if network.store else network,
    )
