"""Whether one model can teach another: they have to predict the same things."""

from __future__ import annotations

from secateur.errors import UsageError
from secateur.network.classifier import is_sequence_classifier
from secateur.network.network import Network


def check_vocabulary(student: Network, teacher: Network, name: str) -> None:
    """Raises UsageError if the two read or predict other things."""
    outputs = [_outputs(student), _outputs(teacher)]
    if outputs[1] is None:
        raise UsageError(
            f"distill: the teacher {name} ({teacher.architecture}) has no head that predicts tokens or classes, so it "
            "teaches nothing."
        )
    words = [None if one.tokenizer is None else one.tokenizer.get_vocab() for one in (student, teacher)]
    if outputs[0] != outputs[1] or (None not in words and words[0] != words[1]):
        raise UsageError(
            f"distill: the teacher {name} has another vocabulary ({outputs[1]}) than the model ({outputs[0]}), so "
            "their distributions can't be compared; take teacher: dense, or another model with the same tokenizer."
        )
    if student.family.objective != teacher.family.objective:
        raise UsageError(
            f"distill: the teacher {name} predicts as a {teacher.family.objective} model does, the model as a "
            f"{student.family.objective} one."
        )


def _outputs(network: Network) -> str | None:
    """Returns what a model predicts, in words; None if it predicts nothing."""
    if is_sequence_classifier(network):
        return f"{network.model.config.num_labels} classes"
    head = network.model.get_output_embeddings()
    return None if head is None else f"{head.weight.shape[0]} tokens"
