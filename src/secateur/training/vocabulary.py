"""Whether one model can teach another: they have to predict the same things."""

from __future__ import annotations

from secateur.errors import UsageError
from secateur.network.classifier import is_sequence_classifier
from secateur.network.network import Network

ADVICE = "their distributions can't be compared; take teacher: dense, or another model with the same tokenizer."


def check_vocabulary(student: Network, teacher: Network, name: str) -> None:
    """Raises UsageError if the two read or predict other things."""
    outputs = [_outputs(student), _outputs(teacher)]
    if outputs[1] is None:
        raise UsageError(
            f"distill: the teacher {name} ({teacher.architecture}) has no head that predicts tokens or classes, so it "
            "teaches nothing."
        )
    words = [None if one.tokenizer is None else one.tokenizer.get_vocab() for one in (student, teacher)]
    if outputs[0] != outputs[1]:
        raise UsageError(
            f"distill: the teacher {name} has another vocabulary ({outputs[1]}) than the model ({outputs[0]}), so "
            f"{ADVICE}"
        )
    if words[0] is not None and words[1] is not None and words[0] != words[1]:
        odd = min(words[0].items() ^ words[1].items(), key=lambda one: (one[1], one[0]))[0]
        raise UsageError(
            f"distill: the teacher {name} has another vocabulary than the model: of as many tokens, '{odd}' isn't the "
            f"same one in both, so {ADVICE}"
        )
    if student.family.objective != teacher.family.objective:
        raise UsageError(
            f"distill: the teacher {name} predicts as a {teacher.family.objective} model does, the model as a "
            f"{student.family.objective} one."
        )


def predicts(network: Network) -> int | None:
    """Returns among how many tokens or classes a model predicts; None if it predicts nothing."""
    if is_sequence_classifier(network):
        return int(network.model.config.num_labels)
    head = network.model.get_output_embeddings()
    return None if head is None else int(head.weight.shape[0])


def _outputs(network: Network) -> str | None:
    """Returns what a model predicts, in words; None if it predicts nothing."""
    number = predicts(network)
    return None if number is None else f"{number} {'classes' if is_sequence_classifier(network) else 'tokens'}"
