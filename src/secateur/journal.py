"""The durable state of a run: what `--resume` goes on from after a kill, a full disk or a Ctrl-C.

It is a folder beside the output, `.OUT.run`:

    journal.json               what the run is, how far it has come, and the reports so far
    stage-S/block-B.safetensors    the blocks that are finished
    hidden-R-B/                    rank R's calibration activations before block B
    dense-R-B/                     the same in the dense model, for --reconstruct
    encoded-hidden-R-B/, encoded-dense-R-B/    what an encoder gave, which all blocks of its decoder read

After every block its weights and the activations behind it are written, then the journal, each under another name
first. So whenever the run ends, the journal tells of files that are whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from secateur.calibration.activations import Activations, Storage
from secateur.calibration.data import Windows
from secateur.calibration.loaders import Loaded, TrainingData
from secateur.calibration.tables import Table
from secateur.errors import ResumeError, first_line
from secateur.files import save_tensors, save_text
from secateur.network.network import Network
from secateur.processes import Processes
from secateur.progress import Progress
from secateur.recipe import Recipe
from secateur.result import BlockReport, GroupReport, LayerReport, StageReport, TrainingReport
from secateur.solvers import Step

FORMAT = "secateur-run-3"
FILE = "journal.json"
NOTHING_LEFT = "there is nothing to go on from: starting anew."
REST = "rest"  # the weights outside of the blocks


def run_folder(output: Path) -> Path:
    """Returns the folder of the state of a run that writes `output`."""
    return output.parent / f".{output.name}.run"


def left_over(output: Path) -> str | None:
    """Says what a run that ended early left for `--resume`; None if it left nothing."""
    try:
        state = json.loads((run_folder(output) / FILE).read_text(encoding="utf-8"))
        done, stage = int(state["position"]), int(state["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    trained = any(run_folder(output).glob("stage-*/checkpoint-*"))
    if not done and not stage and not trained:
        return None
    return (
        f"{in_words(stage, done)} finished and kept in {run_folder(output)}: the same command with --resume goes on; "
        "with --overwrite, starts anew."
    )


def read_state(folder: Path) -> dict[str, Any]:
    """Returns what a journal says.

    Raises:
        ResumeError: It can't be read.
    """
    try:
        data = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise KeyError("format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResumeError(
            f"{folder / FILE} can't be read ({first_line(error)}); --overwrite instead of --resume starts anew."
        ) from error
    found: dict[str, Any] = data
    return found


def check_left_over(output: Path, resume: bool, overwrite: bool) -> None:
    """Raises ResumeError if an earlier run left something that would be lost without a word."""
    if not resume and not overwrite and (lost := left_over(output)) is not None:
        raise ResumeError(f"of an earlier run, {lost}")


def begin_anew(output: Path) -> None:
    """Makes a run's folder empty."""
    shutil.rmtree(run_folder(output), ignore_errors=True)
    run_folder(output).mkdir(parents=True)


def state_of_same(
    folder: Path,
    about: dict[str, Any],
    relevant: Callable[[dict[str, Any], int], dict[str, Any]] = lambda about, done: about,
) -> dict[str, Any]:
    """Returns what the journal of a run says.

    Args:
        folder: Where it is.
        about: What the run that is to go on is, as plain data; gets the numbers of threads that it had before.
        relevant: Returns what of that has to be the same, once so many stages are done.

    Raises:
        ResumeError: It is of another run, or can't be read.
    """
    data = read_state(folder)
    about["threads"] = data["about"]["threads"] = sorted({*data["about"]["threads"], *about["threads"]})
    done = len(data["finished"])
    if changed := differences(relevant(data["about"], done), relevant(about, done)):
        raise ResumeError(
            f"{folder} holds another run: {'; '.join(changed[:3])}. Give the same command, or --overwrite instead "
            "of --resume to start anew."
        )
    return data


def in_words(stages: int, blocks: int) -> str:
    """Says how far a run came: `1 of its stages and 4 blocks of the next are`."""
    parts = [f"{stages} of its stages"] if stages else []
    if not stages and not blocks:
        return "a part of its first stage is"
    if blocks:
        parts.append(f"{blocks} blocks of the next" if stages else f"{blocks} of its blocks")
    return f"{' and '.join(parts)} {'is' if stages + blocks == 1 else 'are'}"


class Journal:
    """A run's state, on the disk.

    Attributes:
        folder: Where it is.
        stage: The stage that the run is in.
        position: The block of that stage that comes next.
        finished: Reports of the stages that are done.
        state: What the stage said of itself at the last commit; empty at its beginning.
        about: What the run is.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], network: Network, team: Processes) -> None:
        self.folder = folder
        self.stage = 0
        self.position = 0
        self.finished: list[StageReport] = []
        self.state: dict[str, Any] = {}
        self._run = team.share(uuid.uuid4().hex)
        self.about = dict(about)
        self._network = network
        self._team = team
        self._files: dict[str, str] = {}  # by block (or REST): the file of its latest weights

    @classmethod
    def open(
        cls,
        output: Path,
        about: Mapping[str, Any],
        network: Network,
        team: Processes,
        resume: bool,
        progress: Progress,
    ) -> Journal:
        """Begins a run, or takes up one that ended early.

        Args:
            output: The folder that the run is to write.
            about: What the run is, as plain data; a run is resumed only if it is the same.
            network: The model, as loaded; it gets the weights of the blocks that are finished.
            team: The processes of the run.
            resume: Whether to take up what is there; otherwise it is removed.
            progress: Is told if a run goes on.

        Raises:
            ResumeError: What is there is of another recipe, model or version, or damaged.
        """
        folder = run_folder(output)
        about = json.loads(json.dumps(about))
        journal = cls(folder, about, network, team)
        there = team.share((folder / FILE).is_file())
        if resume and there:
            journal._take_up()
            if journal.stage or journal.position:
                progress.say(f"going on: {in_words(journal.stage, journal.position)} finished.")
            return journal
        if resume:
            progress.say(NOTHING_LEFT)
        if team.first:
            begin_anew(output)
        team.wait()
        return journal

    def storage(self, limit: int) -> Storage:
        """Returns where this run's activations may be kept."""
        return Storage(self.folder, limit, self._run)

    def keep_block(self, block: int) -> None:
        """Writes a finished block's weights; it counts from the next commit on."""
        prefix = f"{self._network.block_name(block)}."
        tensors = {
            name: tensor
            for name, tensor in self._network.model.state_dict(keep_vars=False).items()
            if name.startswith(prefix)
        }
        self._keep(str(block), tensors)

    def keep_rest(self) -> None:
        """Writes the weights outside of the blocks; they count from the next commit on."""
        seen: set[int] = set()
        tensors = {}
        for name, tensor in self._network.model.named_parameters(remove_duplicate=False):
            if not self._network.inside(name) and id(tensor) not in seen and self._network.filed(name):
                seen.add(id(tensor))
                tensors[name] = tensor.detach()
        self._keep(REST, tensors)

    def _keep(self, part: str, tensors: Mapping[str, torch.Tensor]) -> None:
        relative = f"stage-{self.stage}/{part}.safetensors"
        self._files[part] = relative
        if self._team.first:
            named: dict[str, torch.Tensor] = {}
            for name, tensor in tensors.items():
                named |= self._network.as_filed(name, tensor)
            save_tensors(named, self.folder / relative, {"format": "pt"})

    def commit(self, position: int, state: Mapping[str, Any], hidden: Sequence[Activations]) -> None:
        """Makes durable that all blocks before `position` are finished.

        Args:
            position: The block that comes next.
            state: What the stage has to say of itself, as plain data.
            hidden: The activations before that block; empty where the rest of the stage needs none.
        """
        for one in hidden:
            one.save()
        self._team.wait()
        self.position, self.state = position, dict(state)
        self._write()
        self._team.wait()
        for one in hidden:
            one.forget()

    def finish_stage(self, report: StageReport) -> None:
        """Makes durable that a stage is done."""
        self.finished.append(report)
        self.stage, self.position, self.state = self.stage + 1, 0, {}
        self._write()
        self._team.wait()
        self._take_weights()

    def parts(self) -> list[Path]:
        """Returns the files of all blocks and of the rest, those that no stage changed written now."""
        for block in range(len(self._network.blocks)):
            if str(block) not in self._files:
                with self._network.resident(block):
                    self.keep_block(block)
        if REST not in self._files:
            self.keep_rest()
        names = [*map(str, range(len(self._network.blocks))), REST]
        return [self.folder / self._files[name] for name in names]

    @property
    def worth_keeping(self) -> bool:
        """Whether a run that ends now can be resumed with less work than anew."""
        return bool(self.position or self.stage)

    def close(self) -> None:
        """Removes the state: the run is done, or there is nothing to go on from."""
        if self._team.first:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self) -> None:
        if not self._team.first:
            return
        before = read_state(self.folder) if (self.folder / FILE).is_file() else {}
        data = {
            "format": FORMAT,
            "run": self._run,
            "about": self.about,
            "stage": self.stage,
            "position": self.position,
            "finished": [asdict(report) for report in self.finished],
            "state": self.state,
            "files": self._files,
            "random": b64encode(torch.get_rng_state().numpy().tobytes()).decode(),
        }
        save_text(json.dumps(data), self.folder / FILE)
        for relative in set(before.get("files", {}).values()) - set(self._files.values()):
            (self.folder / relative).unlink(missing_ok=True)  # of an earlier stage

    def _take_up(self) -> None:
        data = state_of_same(self.folder, self.about)
        self._run = data["run"]
        self.stage, self.position, self.state = data["stage"], data["position"], data["state"]
        self._files = data["files"]
        self.finished = [stage_report(one) for one in data["finished"]]
        random = torch.frombuffer(bytearray(b64decode(data["random"])), dtype=torch.uint8)
        torch.set_rng_state(random)
        self._take_weights()
        if not self._network.store:
            self._load_weights()

    def _take_weights(self) -> None:
        """Has a streamed network read finished blocks from here."""
        store = self._network.store
        if store is None:
            return
        for part, relative in self._files.items():
            if part == REST:
                continue
            prefix = f"{self._network.block_name(int(part))}."
            for name in (*store.names, *store.pieces):
                if name.startswith(prefix):
                    store.files |= dict.fromkeys(store.known(name), self.folder / relative)

    def _load_weights(self) -> None:
        """Puts the finished blocks' weights into a network in memory."""
        for relative in self._files.values():
            path = self.folder / relative
            try:
                tensors = load_file(path)
            except (OSError, SafetensorError) as error:
                raise ResumeError(
                    f"{path} can't be read: {first_line(error)}; --overwrite instead of --resume starts anew."
                ) from error
            held = self._network.model.state_dict()
            with torch.no_grad():
                for name, tensor in tensors.items():
                    held[name].copy_(tensor)


def identity(
    recipe: Recipe, network: Network, windows: Windows | None, team: Processes, training: Sequence[TrainingData] = ()
) -> dict[str, Any]:
    """Returns what a run is, as plain data: recipe, model, tokens that are read, versions, processes and threads."""
    return {
        "recipe": {key: value for key, value in recipe.to_dict().items() if key != "overwrite"},
        "model": weight_files(network),
        "calibration tokens": _digest(windows),
        "training tokens": [_digest(one) for one in training],
        "torch": torch.__version__,
        "processes": team.size,
        "threads": [torch.get_num_threads()],
        "streamed": network.store is not None,
    }


def weight_files(network: Network) -> dict[str, list[int]]:
    """Returns size and time of writing (ns) of a model's weight files, by name."""
    path = network.source.path
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def _digest(windows: TrainingData | None) -> str:
    if isinstance(windows, Loaded):
        return f"{len(windows)} rows of {windows.source}"  # a collator may give them differently each time
    if isinstance(windows, Table):
        return hashlib.sha256("\n".join((*windows.texts, *map(str, windows.classes.tolist()))).encode()).hexdigest()
    parts = () if windows is None else (windows.ids, windows.features, windows.lengths)
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts if part is not None)).hexdigest()


def differences(one: Any, two: Any, where: str = "") -> list[str]:
    """Names the fields in which two pieces of plain data differ."""
    if isinstance(one, dict) and isinstance(two, dict):
        found = []
        for key in sorted(one.keys() | two.keys()):
            found += differences(one.get(key), two.get(key), f"{where}.{key}" if where else str(key))
        return found
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return [
            text for n, pair in enumerate(zip(one, two, strict=True)) for text in differences(*pair, f"{where}.{n}")
        ]
    return [] if one == two else [f"{where} was {_short(one)} and is {_short(two)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def stage_report(data: Mapping[str, Any]) -> StageReport:
    """Returns a stage's report from plain data."""
    training = data["training"]
    return StageReport(
        stage=data["stage"],
        layers=tuple(layer_report(one) for one in data["layers"]),
        seconds=data["seconds"],
        notes=tuple(data["notes"]),
        blocks=tuple(BlockReport(**one) for one in data["blocks"]),
        groups=tuple(_group_report(one) for one in data["groups"]),
        budget=data["budget"],
        training=None if training is None else TrainingReport(**{**training, "log": tuple(training["log"])}),
    )


def _group_report(data: Mapping[str, Any]) -> GroupReport:
    removed = data["removed"]
    return GroupReport(**{**data, "removed": None if removed is None else tuple(removed)})


def layer_report(data: Mapping[str, Any]) -> LayerReport:
    """Returns a layer's report from plain data."""
    return LayerReport(**{**data, "steps": tuple(Step(**step) for step in data["steps"])})
