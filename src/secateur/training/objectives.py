"""What recovery minimises: the data's own loss, or the distance from a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import UsageError
from secateur.recipe.recovery import Distill
from secateur.training.examples import IGNORED
from secateur.training.teacher import Kept

OWN = ("labels", "places")  # of a batch: not the model's arguments


def arguments(batch: Mapping[str, Tensor], device: torch.device | None = None) -> dict[str, Tensor]:
    """Returns what of a batch the model takes, on a device if one is named."""
    return {name: value.to(device or value.device) for name, value in batch.items() if name not in OWN}


def data_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean cross-entropy over the places that have a label; 0 if none has.

    Args:
        logits: (..., classes)
        labels: (...) int64, IGNORED where there is none.
    """
    terms = functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return _mean(terms, labels.flatten() != IGNORED)


class DataLoss:
    """The data's own loss: next tokens, masked tokens, classes."""

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the mean loss over a batch's labels."""
        return data_loss(model(**arguments(batch)).logits, batch["labels"])


class Distillation:
    """The distance from a teacher's distributions, hidden states and attention maps.

    Attributes:
        projections: A linear map per layer from the student's width to the teacher's, where they differ; they are to
            be trained, too.
    """

    def __init__(
        self, settings: Distill, student: Any, teacher: Any, kept: Kept | None, probe: Mapping[str, Tensor]
    ) -> None:
        """
        Args:
            settings: The weights of the parts.
            student, teacher: Models of one vocabulary; no teacher where `kept` is all that is compared with.
            kept: The teacher's largest logits, where they were computed before.
            probe: A batch, by which their shapes are seen.

        Raises:
            UsageError: They have no attention maps, or those of other lengths.
        """
        self.settings, self.teacher, self.kept = settings, teacher, kept
        self.wanted = {"output_hidden_states": settings.hidden > 0, "output_attentions": settings.attention > 0}
        self.projections: nn.ModuleList | None = None
        if settings.hidden == 0 and settings.attention == 0:
            return
        with torch.no_grad():
            ours, theirs = (model(**arguments(probe, model.device), **self.wanted) for model in (student, teacher))
        if settings.attention and not (_maps(ours) and _maps(theirs)):
            raise UsageError("distill: these models give no attention maps; leave attention out.")
        if settings.hidden:
            widths = [(mine.shape[-1], other.shape[-1]) for mine, other in _matched(_states(ours), _states(theirs))]
            if any(mine != other for mine, other in widths):
                self.projections = nn.ModuleList(nn.Linear(mine, other) for mine, other in widths)

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the weighted sum over a batch."""
        settings = self.settings
        model.eval()  # what is compared is the model as it is used, without dropout
        student = model(**arguments(batch), **self.wanted)
        teacher: Any = None
        if self.teacher is not None:
            if self.teacher.device != student.logits.device:
                self.teacher.to(student.logits.device)
            with torch.no_grad():
                teacher = self.teacher(**arguments(batch), **self.wanted)
        where = _counting(batch)
        loss: Tensor = student.logits.new_zeros((), dtype=torch.float32)
        if settings.logits:
            if self.kept is None:
                distance = divergence(student.logits, teacher.logits, settings.temperature)
            else:
                distance = self.kept.divergence(student.logits, batch["places"])
            loss = loss + settings.logits * _mean(distance, where)
        if settings.hidden:
            loss = loss + settings.hidden * self._hidden(student, teacher)
        if settings.attention:
            loss = loss + settings.attention * _attention(student, teacher)
        if settings.labels:
            loss = loss + settings.labels * data_loss(student.logits, batch["labels"])
        return loss

    def _hidden(self, student: Any, teacher: Any) -> Tensor:
        terms = []
        for number, (mine, other) in enumerate(_matched(_states(student), _states(teacher))):
            target = other.float()
            projected = mine.float() if self.projections is None else self.projections[number](mine.float())
            terms.append((projected - target).square().mean() / target.square().mean().clamp_min(1e-12))
        return torch.stack(terms).mean()


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns temperature² times KL(teacher ‖ student) at each place: (...), of logits (..., classes)."""
    ours = functional.log_softmax(student.float() / temperature, dim=-1)
    theirs = functional.log_softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(-1)


Layers = list[tuple[Tensor, ...]]  # of each half: an encoder, a decoder, or the only one


def _states(output: Any) -> Layers:
    """Returns what a model's blocks gave, half by half."""
    names = ("encoder_hidden_states", "decoder_hidden_states", "hidden_states")
    return [some[1:] for name in names if (some := getattr(output, name, None))]


def _maps(output: Any) -> Layers:
    names = ("encoder_attentions", "decoder_attentions", "attentions")
    return [some for name in names if (some := getattr(output, name, None))]


def _attention(student: Any, teacher: Any) -> Tensor:
    """Returns the mean KL divergence between attention maps, each the mean over heads."""
    terms = []
    for mine, other in _matched(_maps(student), _maps(teacher)):
        p, q = other.float().mean(1).clamp_min(1e-9), mine.float().mean(1).clamp_min(1e-9)
        terms.append((p * (p.log() - q.log())).sum(-1).mean())
    return torch.stack(terms).mean()


def _matched(ours: Layers, theirs: Layers) -> list[tuple[Tensor, Tensor]]:
    """Returns each of the student's layers with one of the same half of the teacher's: evenly spread, the last for the
    last."""
    pairs = []
    for mine, others in zip(ours, theirs, strict=True):
        for place, one in enumerate(mine):
            pairs.append((one, others[max(0, round((place + 1) * len(others) / len(mine)) - 1)]))
    return pairs


def _counting(batch: Mapping[str, Tensor]) -> Tensor:
    """Returns where a batch holds text and not padding, or where something is to be predicted."""
    if batch["labels"].ndim == 1:  # a class for each text
        return torch.ones_like(batch["labels"])
    if "attention_mask" in batch and "decoder_input_ids" not in batch:  # else the mask is the encoder's
        return batch["attention_mask"]
    return batch["labels"] != IGNORED


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp_min(1)
