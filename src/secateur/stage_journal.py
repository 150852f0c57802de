"""The durable state of a run whose stages remove units or train: the whole model after each stage.

It is the same folder as `secateur.journal`'s, `.OUT.run`, with other things in it:

    journal.json    what the run is, how many stages are done, and their reports
    model-N/        the model after N stages, a checkpoint
    stage-N/        what the stage that follows keeps while it trains
    beginning.safetensors    what a repeat with rewind goes back to
    logs/stage-N/   files of loggers, for the output
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from secateur.calibration.activations import Storage
from secateur.files import save_text
from secateur.journal import (
    FILE,
    FORMAT,
    NOTHING_LEFT,
    begin_anew,
    in_words,
    run_folder,
    stage_report,
    state_of_same,
)
from secateur.mask import FILE as MASK_FILE
from secateur.mask import Mask, save_mask, take_mask
from secateur.network.loading import load
from secateur.network.network import Network
from secateur.network.saving import save_network
from secateur.processes import Processes
from secateur.progress import Progress
from secateur.recipe import TRAINS
from secateur.result import StageReport

BEGINNING = "beginning.safetensors"

RUNS = "runs"  # what the Trainer calls the folder of TensorBoard's files


class StageJournal:
    """A run's state, stage by stage.

    Attributes:
        folder: Where it is.
        finished: Reports of the stages that are done.
        about: What the run is.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], team: Processes, durable: bool = True) -> None:
        """
        Args:
            folder: Where it is to be.
            about: What the run is.
            team: The processes of the run.
            durable: Whether models are written; without them nothing can be taken up.
        """
        self.folder, self.durable = folder, durable
        self.finished: list[StageReport] = []
        self.about = json.loads(json.dumps(about))
        self._team = team
        self._run = team.share(uuid.uuid4().hex)

    @classmethod
    def open(
        cls, output: Path, about: Mapping[str, Any], team: Processes, resume: bool, progress: Progress
    ) -> StageJournal:
        """Begins a run, or takes up one that ended early.

        Args:
            output: The folder that the run is to write.
            about: What the run is, as plain data; a run is resumed only if it is the same, but for stages that haven't
                begun.
            team: The processes of the run.
            resume: Whether to take up what is there; otherwise it is removed.
            progress: Is told if a run goes on.

        Raises:
            ResumeError: What is there is of another recipe, model or version, or damaged.
        """
        journal = cls(run_folder(output), about, team)
        if resume and team.share((journal.folder / FILE).is_file()):
            journal._take_up()
            if journal.worth_keeping:
                progress.say(f"going on: {in_words(len(journal.finished), 0)} finished.")
        else:
            if resume:
                progress.say(NOTHING_LEFT)
            if team.first:
                begin_anew(output)
                journal._write()
        team.wait()
        return journal

    def storage(self, limit: int) -> Storage:
        """Returns where this run's activations may be kept for as long as a stage needs them."""
        return Storage(self.folder / "activations", limit, self._run, kept=False)

    def restored(self, network: Network) -> Network:
        """Returns the model after the stages that are done.

        Args:
            network: The run's first model.
        """
        if not self.finished:
            return network
        kept = load(self._model(), device=network.device.type, trust_remote_code=network.source.trust_remote_code)
        kept.source = network.source
        if (self._model() / MASK_FILE).is_file():
            take_mask(kept, Mask.load(self._model()))
        return kept

    def training(self) -> Path:
        """Returns the folder in which the next stage keeps what it goes on from."""
        return self.folder / f"stage-{len(self.finished)}"

    @property
    def logs(self) -> Path:
        """The folder of what loggers wrote in files."""
        return self.folder / "logs"

    @property
    def beginning(self) -> Path:
        """The file of weights that a repeat goes back to."""
        return self.folder / BEGINNING

    def finish_stage(self, report: StageReport, network: Network) -> None:
        """Makes durable that a stage is done."""
        before, trained = self._model(), self.training()
        self.finished.append(report)
        if self._team.first:
            if self.durable:
                shutil.rmtree(self._model(), ignore_errors=True)  # of a run that was killed
                self._model().mkdir()
                save_network(network, self._model())
                if network.quantized and network.layers():
                    save_mask(network, self._model() / MASK_FILE)
                self._write()
            if (trained / RUNS).is_dir():
                shutil.move(trained / RUNS, self.logs / f"stage-{len(self.finished)}")
            for old in (before, trained):
                shutil.rmtree(old, ignore_errors=True)
        self._team.wait()

    @property
    def worth_keeping(self) -> bool:
        """Whether a run that ends now can be resumed with less work than anew."""
        return bool(self.finished) or any(self.training().glob("checkpoint-*"))

    def close(self) -> None:
        """Removes the state: the run is done, or there is nothing to go on from."""
        if self._team.first:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _model(self) -> Path:
        return self.folder / f"model-{len(self.finished)}"

    def _write(self) -> None:
        data = {
            "format": FORMAT,
            "about": self.about,
            "stage": len(self.finished),
            "position": 0,
            "finished": [asdict(report) for report in self.finished],
        }
        save_text(json.dumps(data), self.folder / FILE)

    def _take_up(self) -> None:
        data = state_of_same(self.folder, self.about, _of_stages)
        self.finished = [stage_report(one) for one in data["finished"]]
        done = len(self.finished)
        other = _of_stages(data["about"], done + 1) != _of_stages(self.about, done + 1)
        if self._team.first:
            shutil.rmtree(self.folder / "activations", ignore_errors=True)
            if other:  # what the next stage left is of other settings
                shutil.rmtree(self.training(), ignore_errors=True)
            self._write()


def _of_stages(about: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Returns what a run is as far as its first steps go: what comes later may be another thing."""
    entries, trained, left = [], 0, steps
    for entry in about["recipe"]["stages"]:
        if left <= 0:
            break
        inner = entry["repeat"]["stages"] * entry["repeat"]["times"] if "repeat" in entry else [entry]
        trained += sum(kind in TRAINS for stage in inner[:left] for kind in stage)
        entries.append(entry)
        left -= len(inner)
    recipe = {**about["recipe"], "stages": entries}
    return {**about, "recipe": recipe, "training tokens": about["training tokens"][:trained]}
