"""The recovery stages: what each trains, on what, and with what to compare."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.calibration.activations import IN_MEMORY, Storage
from secateur.calibration.loaders import TrainingData
from secateur.calibration.precision import bf16_pays
from secateur.calibration.runner import BlockRunner
from secateur.calibration.windows import Windows
from secateur.errors import UsageError
from secateur.network.network import Network
from secateur.progress import Progress
from secateur.recipe import Calibration, Distill, Lora, Reconstruct, Stage, Training
from secateur.result import BlockReport, StageReport, TrainingReport
from secateur.timing import timed
from secateur.training.examples import Examples, examples_of
from secateur.training.lora import Adapters
from secateur.training.objectives import DataLoss, Distillation, arguments
from secateur.training.reconstruction import reconstruct
from secateur.training.recovery import Trained, train
from secateur.training.teacher import Kept
from secateur.training.vocabulary import check_vocabulary
from secateur.training.zeros import trainable, zeros_of

PROJECTIONS = "secateur_projections"  # the module's name in a model that is being distilled
LABELS = {"finetune": "fine-tuning", "lora": "training LoRA", "distill": "distilling"}


@dataclass
class Recovery:
    """What a recovery stage works with.

    Attributes:
        network: The model.
        stage: What to do.
        windows: What is trained on, or for block reconstruction calibrated on.
        dense: Loads the run's first model again, or another one; streamed if that is asked for and can be.
        folder: For what a killed run goes on from.
        calibration: Precision of the forward passes of block reconstruction.
        seed: Of whatever draws.
        progress: Shows progress.
        storage: Where calibration activations may be kept.
    """

    network: Network
    stage: Stage
    windows: TrainingData
    dense: Callable[[str, bool], Network]
    folder: Path
    calibration: Calibration
    seed: int
    progress: Progress
    storage: Storage = IN_MEMORY
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def carry_out(self) -> StageReport:
        """Trains the model in place, and returns what was done.

        Raises:
            UsageError: The stage doesn't fit the model, its data or its teacher.
            TrainingError: The loss was NaN.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.stage.settings
        blocks: Sequence[BlockReport] = ()
        training: TrainingReport | None = None
        notes: tuple[str, ...] = ()
        if isinstance(settings, Reconstruct):
            with timed(self.seconds, "reconstruct"):
                blocks = self._reconstruct(settings)
        else:
            assert isinstance(settings, Training)
            trained = self._train(settings)
            training = TrainingReport(
                data=self.windows.source,
                trained=trained.trained,
                judged=trained.judged,
                steps=trained.steps,
                best=trained.best,
                before=trained.before,
                after=trained.after,
                log=trained.log,
            )
            notes = trained.notes
        told = {self.stage.kind: settings.model_dump(mode="json")}
        return StageReport(told, (), dict(self.seconds), notes, tuple(blocks), training=training)

    def _train(self, settings: Training) -> Trained:
        network = self.network
        cached = isinstance(settings, Distill) and settings.top_k is not None
        length = settings.length or self.calibration.length
        examples = examples_of(network, self.windows, length, cached, self.seed)
        zeros = zeros_of(network)
        low = network.model.dtype == torch.bfloat16
        wanted = settings.compute == "bfloat16" or (settings.compute == "auto" and low)
        bf16 = wanted and (settings.compute == "bfloat16" or bf16_pays(network.device))
        given: dict[str, Any] = {
            "batch_of": examples.batch,
            "examples": len(examples),
            "zeros": zeros,
            "settings": settings,
            "folder": self.folder,
            "seed": self.seed,
            "device": network.device.type,
            "bf16": bf16,
            "label": LABELS[self.stage.kind],
            "progress": self.progress,
        }
        if isinstance(settings, Distill):
            return self._distill(settings, examples, given)
        with timed(self.seconds, "train"), trainable(network, zeros):
            if not isinstance(settings, Lora):
                return train(network.model, DataLoss(), **given)
            adapters = Adapters(network, settings, self.seed)
            trained = train(network.model, DataLoss(), **given)
            adapters.merge()
            return trained

    def _distill(self, settings: Distill, examples: Examples, given: dict[str, Any]) -> Trained:
        model: Any = self.network.model
        teacher, kept = self._teacher(settings, examples, given["bf16"])
        with timed(self.seconds, "train"), trainable(self.network, given["zeros"]), _eager(settings, model, teacher):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                probe = examples.batch(range(min(2, len(examples))))
                loss = Distillation(settings, model, teacher, kept, probe)
            if loss.projections is not None:
                setattr(model, PROJECTIONS, loss.projections)
            try:
                return train(model, loss, **given)
            finally:
                if loss.projections is not None:
                    delattr(model, PROJECTIONS)

    def _teacher(self, settings: Distill, examples: Examples, bf16: bool) -> tuple[Any, Kept | None]:
        """Returns the teacher, None where its logits on the disk are all that is needed, and these."""
        kept = None if settings.top_k is None else Kept(self.folder, settings.temperature)
        beside = settings.hidden > 0 or settings.attention > 0
        if kept is not None and kept.full and not beside:
            return None, kept
        with timed(self.seconds, "load teacher"):
            teacher = self.dense(settings.teacher, False)
        check_vocabulary(self.network, teacher, settings.teacher)
        model = teacher.model.to(torch.bfloat16 if bf16 else torch.float32)
        if kept is not None and not kept.full:
            assert settings.top_k is not None
            batch = settings.batch // settings.accumulate

            def batch_of(places: list[int]) -> dict[str, Tensor]:
                return arguments(examples.batch(places), teacher.device)

            tick = self.progress.bar("the teacher reads", -(-len(examples) // batch))
            with timed(self.seconds, "teacher"):
                model.to(teacher.device)
                kept.fill(model, batch_of, len(examples), batch, settings.top_k, tick)
        return (model if kept is None or beside else None), kept

    def _reconstruct(self, settings: Reconstruct) -> list[BlockReport]:
        network, reports = self.network, []
        dense = self.dense("dense", network.family.encoder_decoder is None)
        if len(network.blocks) != len(dense.blocks):
            raise UsageError(
                f"reconstruct compares block by block, and {len(network.blocks)} of {len(dense.blocks)} blocks are "
                "left; take distill, which compares what the whole models give."
            )
        assert isinstance(self.windows, Windows)
        given = (self.windows, self.calibration.compute, self.storage)
        runner = BlockRunner(network, *given, "recovered")
        beside = BlockRunner(dense, *given, "dense")
        if runner.hidden[0].shape != beside.hidden[0].shape:
            raise UsageError("reconstruct compares hidden states, whose width was cut; take distill.")
        last = len(network.blocks) - 1
        for block in self.progress.track(range(last + 1), "reconstructing"):
            with dense.resident(block):
                beside.advance(lambda: None)
            layers = network.block_layers(block)
            if layers:
                with runner.differentiable():
                    reports.append(reconstruct(runner, layers, beside.outputs, settings.passes, settings.halves))
            if block < last:
                runner.advance(lambda: None)
        for one in (runner, beside):
            one.close()
        return reports


@contextmanager
def _eager(settings: Distill, *models: Any) -> Iterator[None]:
    """While it lasts, models compute attention so that its maps can be had, if they are asked for."""
    some = [model for model in models if settings.attention and model is not None]
    before = [model.config._attn_implementation for model in some]
    for model in some:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        for model, implementation in zip(some, before, strict=True):
            model.set_attn_implementation(implementation)
