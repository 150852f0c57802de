"""The stages that win quality back: fine-tuning, LoRA, distillation, block reconstruction."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from secateur.errors import UsageError
from secateur.recipe.base import Settings


class Training(Settings):
    """What all training stages share. Whichever of `epochs`, `steps` and `minutes` ends first ends the stage; if none
    is given, one epoch is trained.

    Attributes:
        data: Text (.jsonl or plain, a hub data set), or a table of text and label (.tsv, .csv, .jsonl with `label`),
            which makes a classifier; `self` lets the dense model write it; None takes what calibration left of its own
            data, or more that the model writes where that is `self`.
        samples: Windows, or rows of a table, at most; None takes all rows, 4096 windows, or 128 that the model writes.
        length: Tokens per window; None takes the calibration's. Of a table: tokens of a row at most.
        epochs: Passes over the data.
        steps: Steps of the optimizer at most.
        minutes: Wall time at most, judging included.
        batch: Windows or rows per step, in `accumulate` portions each.
        accumulate: Portions of a step.
        rate: AdamW's learning rate at its peak.
        warmup: Share of the steps in which it rises.
        decay: Weight decay.
        schedule: How the rate falls: `cosine`, `linear`, or not at all: `constant`.
        held_out: Windows or rows that aren't trained on, but judge.
        judged: How often, evenly over the stage.
        keep: Which state stays: the `best` by the loss on what is held out, or the `last`. Of classifiers that were
            trained before, the loss may rise while more of their answers are right.
        patience: Stops when so many judgements in a row weren't better; None never does.
        compute: Precision of products: `auto`, `float32` or `bfloat16`.
        report_to: Loggers of transformers' Trainer: `tensorboard`, `mlflow`, `trackio` ...
    """

    data: str | None = None
    samples: int | None = Field(default=None, ge=1)
    length: int | None = Field(default=None, ge=2)
    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    batch: int = Field(default=8, ge=1)
    accumulate: int = Field(default=1, ge=1)
    rate: float = Field(default=5e-5, gt=0)
    warmup: float = Field(default=0.05, ge=0, le=1)
    decay: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    held_out: int = Field(default=32, ge=1)
    judged: int = Field(default=8, ge=1)
    keep: Literal["best", "last"] = "best"
    patience: int | None = Field(default=None, ge=1)
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    report_to: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _divides(self) -> Training:
        if self.batch % self.accumulate:
            raise UsageError(f"batch {self.batch} can't be shared out over {self.accumulate} portions (accumulate).")
        if self.keep == "last" and self.patience is not None:
            raise UsageError("patience is about the best state, and keep: last doesn't ask for it.")
        return self


class Finetune(Training):
    """All weights are trained on the data's own loss; zeros stay zero."""


class Lora(Training):
    """Low-rank updates of the blocks' linear layers are trained, and added to the weights at the end (Hu et al. 2021).

    Where weights are zero the update is, too, while it is trained and when it is added, so the mask holds.

    Attributes:
        rank: Of the update.
        alpha: The update is scaled by alpha / rank.
        dropout: Of the update's input; not where weights are zero.
        include: Globs on the names of layers; none takes all.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    include: tuple[str, ...] = ()
    rate: float = Field(default=2e-4, gt=0)


class Distill(Training):
    """All weights are trained to give what a teacher gives (Hinton et al. 2015, arXiv 1503.02531); zeros stay zero.

    Attributes:
        teacher: `dense`, the run's first model, or another one of the same vocabulary.
        logits: Weight of the KL divergence from the teacher's distribution to the student's, times temperature².
        temperature: Of both distributions.
        hidden: Weight of the mean squared error of hidden states, relative to the teacher's mean square; where widths
            differ, behind a learned projection.
        attention: Weight of the KL divergence between attention maps, averaged over heads.
        labels: Weight of the data's own loss.
        top_k: How many of the teacher's logits are looked at, the rest of the vocabulary as one; they are computed once
            and kept on the disk. None takes all, computed each time.
    """

    teacher: str = "dense"
    logits: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    hidden: float = Field(default=0.0, ge=0)
    attention: float = Field(default=0.0, ge=0)
    labels: float = Field(default=0.0, ge=0)
    top_k: int | None = Field(default=None, ge=1)
    rate: float = Field(default=1e-4, gt=0)

    @model_validator(mode="after")
    def _something(self) -> Distill:
        if self.logits == self.hidden == self.attention == 0:
            raise UsageError("distill: one of logits, hidden and attention has to weigh more than 0.")
        if self.top_k is not None and self.logits == 0:
            raise UsageError("distill: top_k is about the teacher's logits, which weigh nothing here.")
        return self


class Reconstruct(Settings):
    """Each block's weights are tuned until it gives what it gives in the dense model; zeros stay zero.

    Attributes:
        passes: Passes over the calibration's activations at most.
        halves: Whether attention and MLP are tuned one after the other instead of together.
    """

    passes: int = Field(default=6, ge=1)
    halves: bool = False
