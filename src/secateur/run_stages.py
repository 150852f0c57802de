"""Carries the stages of a recipe out, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from secateur.calibration.activations import Storage
from secateur.calibration.data import Windows
from secateur.calibration.precision import bf16_pays
from secateur.calibration.tables import is_table
from secateur.compression.factorize import check_factorize, factorize
from secateur.compression.stage import check_quantize, quantize_weights
from secateur.errors import UsageError, did_you_mean
from secateur.evaluation.costs import Costs, costs
from secateur.files import save_tensors
from secateur.journal import Journal
from secateur.layer_choice import check_pattern, chosen_layers, select_layers
from secateur.network.classifier import is_sequence_classifier
from secateur.network.loading import find, load, raw_config, streamable
from secateur.network.network import Network
from secateur.processes import Processes
from secateur.progress import Progress
from secateur.pruning import prune_weights
from secateur.recipe import Distill, Factorize, Lora, Prune, Quantize, Recipe, Step, Training
from secateur.result import StageReport
from secateur.run_windows import RunWindows
from secateur.stage_journal import StageJournal
from secateur.structure import prune_units
from secateur.structure.stage import check_units
from secateur.timing import timed
from secateur.training.approach import towards
from secateur.training.lora import INSTALL
from secateur.training.vocabulary import check_vocabulary, predicts
from secateur.training.zeros import zeros_of

CHECKED_TOKENS = 128  # of one window, where nothing is calibrated


@dataclass
class Stages:
    """What the stages of a run share.

    Attributes:
        recipe: The run's.
        progress: Shows progress.
        team: The processes of the run.
        storage: Where activations may be kept.
        windows: Reads data.
        load: Loads a model beside the one that is worked on; `dense` is the run's first. Streamed if asked for.
        seconds: Wall time by phase.
        notes: What the user should know.
    """

    recipe: Recipe
    progress: Progress
    team: Processes
    storage: Storage
    windows: RunWindows
    load: Callable[[str, bool], Network]
    seconds: dict[str, float]
    notes: list[str]

    def carry_out(
        self, network: Network, calibration: Windows | None, journal: Journal | StageJournal
    ) -> tuple[Network, Windows | None, tuple[StageReport, ...]]:
        """Carries out the stages that aren't done yet.

        Args:
            network: The model, after the stages that are done.
            calibration: Calibration windows.
            journal: Where the run's state is kept: block by block, or stage by stage.

        Returns:
            The model, its calibration windows and the reports of all stages.
        """
        recipe = self.recipe
        blocks, whole = (journal, None) if isinstance(journal, Journal) else (None, journal)
        if recipe.calibration.compute == "bfloat16" and calibration is not None and not bf16_pays(network.device):
            self.notes.append("bf16 products aren't faster than float32 ones on this processor.")
        done = list(journal.finished)
        first = self._first(network, calibration, done)
        for step in recipe.steps[len(done) :]:
            if step.begins and whole is not None:
                _keep(network, whole.beginning)
            if step.rewinds and whole is not None:
                _rewind(network, whole.beginning)
            if isinstance(step.settings, Prune):
                network, report = self._prune(network, step, calibration, first, blocks)
                if step.settings.unit == "token" and calibration is not None:
                    with timed(self.seconds, "calibrate"):
                        read = self.windows.read(network)[0] if self.team.first else None
                        calibration = self.team.share(read)
            elif isinstance(step.settings, Quantize):
                given = (calibration, recipe.calibration, self.progress, self.storage)
                with timed(self.seconds, "quantize"):
                    report = quantize_weights(network, step.settings, *given)
            elif isinstance(step.settings, Factorize):
                assert calibration is not None
                with timed(self.seconds, "factorize"):
                    network, report = factorize(
                        network, step.settings, calibration, recipe.calibration, self.progress, self.storage
                    )
            else:
                assert whole is not None
                report = self._recover(network, step, calibration, whole.training())
            done.append(report)
            if whole is not None:
                whole.finish_stage(report, network)
            if blocks is not None:
                blocks.finish_stage(report)
        return network, calibration, tuple(done)

    def _first(self, network: Network, calibration: Windows | None, done: list[StageReport]) -> Costs | None:
        """Returns what the run's first model cost, where a stage removes units."""
        if not any(stage.structured for stage in self.recipe.prunes):
            return None
        known = next((report.budget["first"] for report in done if report.budget is not None), None)
        if known is not None:
            return Costs(**known)
        return costs(network, calibration.length if calibration is not None else CHECKED_TOKENS)

    def _prune(
        self,
        network: Network,
        step: Step,
        calibration: Windows | None,
        first: Costs | None,
        blocks: Journal | None,
    ) -> tuple[Network, StageReport]:
        assert isinstance(step.settings, Prune)
        stage = towards(step.settings, network, step.round, step.rounds, first)
        given = (calibration, self.recipe.calibration, self.recipe.seed, self.progress)
        with timed(self.seconds, "prune"):
            if not stage.structured:
                return network, prune_weights(network, stage, *given, blocks, self.team, self.storage)
            assert first is not None
            return prune_units(network, stage, *given, first, self.team, self.storage)

    def _recover(self, network: Network, step: Step, calibration: Windows | None, folder: Path) -> StageReport:
        from secateur.training.stages import Recovery  # noqa: PLC0415 (the Trainer's import takes seconds)

        trains = isinstance(step.settings, Training)
        windows = self.windows.training(network, step.settings) if isinstance(step.settings, Training) else calibration
        assert windows is not None
        with timed(self.seconds, "train" if trains else "reconstruct"):
            return Recovery(
                network=network,
                stage=step.stage,
                windows=windows,
                dense=self.load,
                folder=folder,
                calibration=self.recipe.calibration,
                seed=self.recipe.seed,
                progress=self.progress,
                storage=self.storage,
            ).carry_out()


def check_stages(recipe: Recipe, network: Network, team: Processes, loaders: Mapping[str, Any]) -> None:
    """Raises before any work is done if a stage can't be carried out on the model as it is.

    Raises:
        UsageError: The reason.
    """
    pruned: list[Prune] = []
    for step in recipe.steps:
        stage, kind = step.settings, step.stage.kind
        if isinstance(stage, Prune):
            pruned.append(stage)
            if stage.structured:
                check_units(network, stage)
            else:
                check_pattern(select_layers(network, stage), stage)
            continue
        if isinstance(stage, Factorize):
            check_factorize(network, stage, team, pruned)
            continue
        if isinstance(stage, Quantize):
            check_quantize(network, stage, team)
            continue
        if network.store is not None:
            raise UsageError(f"{kind} trains models in memory: give --no-stream, on a machine that can hold it.")
        if team.size > 1:
            raise UsageError(
                f"{kind} runs in one process, and {team.size} were started. Prune by several, and train what comes of "
                "it with transformers' Trainer and secateur.PruningCallback, or run the whole recipe in one."
            )
        if isinstance(stage, Lora):
            if find_spec("peft") is None:
                raise UsageError(INSTALL)
            chosen_layers(network.layers(), [], stage.include, ())
        if isinstance(stage, Training):
            _check_training(recipe, stage, kind, network, stage.data in loaders)
        if isinstance(stage, Distill):
            _check_distill(network, stage, recipe.trust_remote_code)


def _check_distill(network: Network, stage: Distill, trust: bool) -> None:
    if stage.attention and network.family.objective == "permutation":
        raise UsageError("distill: the attention maps of XLNet's two streams aren't compared; leave attention out.")
    logits = predicts(network)
    if stage.top_k is not None and logits is not None and stage.top_k > logits:
        raise UsageError(f"distill: top_k={stage.top_k} is more than the {logits} logits that the model gives.")
    if stage.teacher == "dense":
        return
    path = find(stage.teacher, trust, Progress())
    if streamable(path) and not raw_config(path).get("is_encoder_decoder"):  # others are checked once they are loaded
        check_vocabulary(network, load(stage.teacher, stream=True, trust_remote_code=trust), stage.teacher)


def _check_training(recipe: Recipe, stage: Training, kind: str, network: Network, from_loader: bool) -> None:
    for name in stage.report_to:
        from transformers.integrations.integration_utils import (  # noqa: PLC0415 (a slow import)
            INTEGRATION_TO_CALLBACK,
            get_available_reporting_integrations,
        )

        if name not in INTEGRATION_TO_CALLBACK:
            raise UsageError(f"{kind}: unknown logger '{name}'.{did_you_mean(name, INTEGRATION_TO_CALLBACK)}")
        if name not in get_available_reporting_integrations():
            raise UsageError(f"{kind}: report_to {name} isn't installed; pip install {name}, or leave it out.")
    if from_loader or is_table(stage.data or recipe.calibration.data):
        return
    if is_sequence_classifier(network):
        raise UsageError(f"{kind}: {network.architecture} tells classes apart: give a table of text and label as data.")
    if network.model.get_output_embeddings() is None:
        raise UsageError(
            f"{kind}: {network.architecture} has no head that predicts tokens, so there is nothing to train on text; "
            "load a checkpoint with its language model's head, or give a table of text and label as data."
        )


def _keep(network: Network, file: Path) -> None:
    """Writes the weights that a repeat goes back to."""
    save_tensors({name: one.detach() for name, one in network.model.named_parameters()}, file, {"format": "pt"})


@torch.no_grad()
def _rewind(network: Network, file: Path) -> None:
    """Sets all weights that aren't zero back."""
    zeros = zeros_of(network)
    known = load_file(file)
    for name, parameter in network.model.named_parameters():
        parameter.copy_(known[name])
    zeros.settle()
