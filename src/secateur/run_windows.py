"""The windows that a run reads: to calibrate on, to measure on, and to train on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secateur.calibration.data import (
    Windows,
    calibration_windows,
    read_windows,
    self_generated,
    special_tokens,
    window_length,
)
from secateur.calibration.loaders import Loaded, TrainingData, loaded
from secateur.calibration.tables import Table, is_table, read_table
from secateur.errors import CalibrationError, UsageError
from secateur.evaluation.classes import check_classes
from secateur.layer_choice import needs_of
from secateur.network.classifier import class_names, is_sequence_classifier, with_classes
from secateur.network.network import Network
from secateur.progress import Progress
from secateur.recipe import Factorize, Prune, Quantize, Recipe, Reconstruct, Training
from secateur.recipe.base import changed
from secateur.structure.stage import needs_windows

MOST = 4096  # windows that are trained on, where nothing is said
SELF_WRITTEN = 128  # the same where the model writes them


@dataclass
class RunWindows:
    """What of its data a run has read.

    Attributes:
        recipe: The run's.
        progress: Shows progress.
        notes: What the user should know.
        taken: Windows at the beginning of the calibration's data that are for calibration and evaluation.
        length: Tokens of each of them.
        loaders: DataLoaders that stages train on, by the names that they have as `data`.
    """

    recipe: Recipe
    progress: Progress
    notes: list[str]
    taken: int = 0
    length: int = 0
    loaders: Mapping[str, Any] = field(default_factory=dict)
    _training: dict[tuple[str, int | None, int | None], TrainingData] = field(default_factory=dict)

    @property
    def judged_on(self) -> str | None:
        """The table that the models are measured on, if one is named."""
        evaluate = self.recipe.evaluate
        return evaluate.text if evaluate is not None and is_table(evaluate.text) else None

    def fitting(self, network: Network) -> Network:
        """Returns the model, with a head for the classes of the table that a stage trains it on if it has none."""
        named = (
            step.settings.data or self.recipe.calibration.data
            for step in self.recipe.steps
            if isinstance(step.settings, Training)
        )
        table = next((data for data in named if is_table(data)), None)
        if table is None or is_sequence_classifier(network):
            return network
        return with_classes(network, read_table(table, None, None).names, self.recipe.seed)

    def table(self, network: Network) -> Table | None:
        """Returns the rows that the models are measured on."""
        if self.judged_on is None:
            return None
        if self.recipe.evaluate is not None and "windows" in changed(self.recipe.evaluate):
            raise UsageError(
                f"evaluate: {self.judged_on} is a table of text and label, all rows of which are read; leave windows "
                "out."
            )
        check_classes([network], self.judged_on)
        return read_table(self.judged_on, None, class_names(network))

    @property
    def calibrates(self) -> bool:
        """Whether a stage needs statistics."""
        return any(
            isinstance(step.settings, (Reconstruct, Factorize))
            or (isinstance(step.settings, Quantize) and step.settings.method == "gptq")
            or (isinstance(step.settings, Prune) and _needs_statistics(step.settings))
            for step in self.recipe.steps
        )

    def read(self, network: Network) -> tuple[Windows | None, Windows | None]:
        """Returns windows for calibration and for evaluation, each None where nothing needs it."""
        recipe = self.recipe
        settings, evaluate, needed = recipe.calibration, recipe.evaluate, self.calibrates
        evaluation: Windows | None = None
        if self.judged_on is not None:
            evaluate = None
        if evaluate is not None and evaluate.text is not None:
            length = window_length(network, evaluate.length or settings.length)
            evaluation = read_windows(network, evaluate.text, evaluate.windows, length, self.progress)
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
                self.progress,
                held_out=min(8, evaluate.windows) if held_out and evaluate is not None else 0,
            )
        except CalibrationError as error:
            if needed:
                raise
            self.notes.append(f"Quality wasn't measured: {error}")
            return None, None
        self.taken, self.length = len(calibration) + len(spare), calibration.length
        if needed and len(calibration) < settings.samples:
            kind = "text" if calibration.features is None else "sound"
            self.notes.append(
                f"{settings.data} has {kind} for {len(calibration)} calibration windows of {calibration.length} "
                f"tokens; {settings.samples} were asked for."
            )
        if held_out and not len(spare):
            self.notes.append(
                f"Quality wasn't measured: {settings.data} has one window, which calibration needs; give data to "
                "measure on with --evaluate."
            )
        return (calibration if needed else None), (evaluation or spare or None)

    def read_training(self, network: Network) -> list[TrainingData]:
        """Reads what the stages train on, as the run's first model sees it.

        Raises:
            UsageError: A stage can't train on it.
            CalibrationError: It is missing, or nothing is left of it.
        """
        cut = False
        for step in self.recipe.steps:
            cut = cut or (isinstance(step.settings, Prune) and step.settings.unit == "token")
            if isinstance(step.settings, Training):
                if cut:
                    raise UsageError(
                        f"{step.stage.kind}: an earlier stage cuts the vocabulary, and training after that isn't "
                        "there yet; let the stage that removes tokens be the last."
                    )
                self.training(network, step.settings)
        return list(self._training.values())

    def training(self, network: Network, settings: Training) -> TrainingData:
        """Returns what a stage trains on."""
        data = settings.data or self.recipe.calibration.data
        if data in self.loaders:
            return self._of_loader(data, settings.samples)
        if is_table(data):
            return self._read_table(network, data, settings)
        most = settings.samples or (SELF_WRITTEN if data == "self" else MOST)
        if settings.steps is not None:
            most = min(most, settings.steps * settings.batch + settings.held_out)
        key = (data, settings.length, most)
        if key not in self._training:
            self._training[key] = self._read_training(network, data, settings.length, most)
        return self._training[key]

    def _of_loader(self, name: str, samples: int | None) -> Loaded:
        key = (name, None, samples)
        found = self._training.get(key)
        if not isinstance(found, Loaded):
            found = loaded(self.loaders[name], name, samples)
            self._training[key] = found
        return found

    def _read_table(self, network: Network, data: str, settings: Training) -> Table:
        key = (data, settings.length, settings.samples)
        found = self._training.get(key)
        if not isinstance(found, Table):
            found = read_table(data, settings.samples, class_names(network))
            self._training[key] = found
        return found

    def _read_training(self, network: Network, data: str, length: int | None, most: int) -> Windows:
        size = window_length(network, length or self.recipe.calibration.length)
        if data == "self":
            return self_generated(network, most, size, self.recipe.seed + 1, self.progress)
        skipped = self._skipped(network, size) if data == self.recipe.calibration.data else 0
        found = read_windows(network, data, skipped + most, size, self.progress).split(skipped)[1]
        if len(found) < 2:
            behind = f", {skipped} of which calibration and evaluation take" if skipped else ""
            raise CalibrationError(
                f"{data} has {skipped + len(found)} windows of {size} tokens{behind}; training needs two more: name "
                "other data in the stage, or give it a smaller length."
            )
        return found

    def _skipped(self, network: Network, length: int) -> int:
        """Returns how many windows of a length cover what calibration and evaluation took."""
        if network.family.inputs == "audio":
            return self.taken
        around = sum(map(len, special_tokens(network)))
        return -(-self.taken * (self.length - around) // (length - around))


def _needs_statistics(stage: Prune) -> bool:
    return needs_windows(stage) if stage.structured else bool(needs_of(stage))
