"""From scores to masks: which weights stay, exact to the weight, ties broken in a fixed order."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from secateur.allocation.amounts import Amount, Pattern, row_counts
from secateur.errors import ScoreError, UsageError


def keep_mask(scores: Tensor, amount: Amount, layer: str) -> tuple[Tensor, float | None]:
    """Returns which weights stay.

    Args:
        scores: (out, in), higher is more important; -inf for weights that are zero already.
        amount: How much to remove.
        layer: The layer's name, for errors.

    Returns:
        (out, in) bool, and the threshold that a threshold amount came to (else None).

    Raises:
        ScoreError: A score is NaN.
        PatternError: The pattern doesn't divide the width.
        UsageError: So much can't be removed while `min_per_output` holds.
    """
    if bool(torch.isnan(scores).any()):
        raise ScoreError(f"{layer}: a score is NaN. Try --compute float32 or another score.")
    if amount.pattern is not None:
        amount.pattern.check(scores.shape[1], layer)
        check_rows_hold(amount, scores.shape, layer)
        # What is zero already stays so, even where that leaves a group less than N.
        return ~lowest_of_groups(scores, amount.pattern) & (scores != -torch.inf), None
    guarded = guard(scores, amount.min_per_output)
    if amount.threshold is not None:
        threshold = amount.threshold.value(scores[torch.isfinite(scores)] if scores.isinf().any() else scores)
        return guarded >= threshold, threshold
    assert amount.remove is not None
    check_room(amount.remove, guarded, layer)
    if amount.per == "output":
        counts = row_counts(amount.remove, guarded)
        prune = lowest_of_rows(guarded, counts)
        check_room_in_rows(prune, guarded, layer)
        return ~prune, None
    return ~lowest(guarded, amount.remove), None


def lowest(scores: Tensor, count: int) -> Tensor:
    """Marks the `count` lowest scores; of equal ones, those that come first.

    Args:
        scores: Any shape.
        count: How many.

    Returns:
        A bool mask of the same shape with exactly `count` True.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    flat = scores.flatten()
    if flat.device.type == "cpu":  # numpy's introselect beats torch's kthvalue several times
        threshold = torch.from_numpy(np.partition(flat.numpy(), count - 1)[count - 1 : count]).item()
    else:
        threshold = flat.kthvalue(count).values.item()
    marked = flat < threshold
    ties = (flat == threshold).nonzero().flatten()
    marked[ties[: count - int(marked.sum())]] = True
    return marked.view(scores.shape)


def lowest_of_rows(scores: Tensor, counts: Tensor) -> Tensor:
    """Marks the counts[i] lowest scores of each row i; of equal ones, those that come first.

    Args:
        scores: (rows, columns).
        counts: (rows,) int64.
    """
    order = scores.argsort(dim=1, stable=True)
    taken = torch.arange(scores.shape[1], device=scores.device) < counts[:, None]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, taken)


def lowest_of_groups(scores: Tensor, pattern: Pattern) -> Tensor:
    """Marks the M - N lowest scores of every M consecutive ones in a row.

    Args:
        scores: (rows, columns), M divides the columns.
    """
    groups = scores.reshape(-1, pattern.m)
    counts = torch.full((groups.shape[0],), pattern.m - pattern.n, device=scores.device)
    return lowest_of_rows(groups, counts).view(scores.shape)


def guard(scores: Tensor, min_per_output: int) -> Tensor:
    """Returns the scores with +inf where a weight must stay so that no output or input dies.

    Each row's `min_per_output` highest stay, and each column's highest if `min_per_output` is positive. What
    is zero already (-inf) isn't brought back.
    """
    if min_per_output <= 0:
        return scores
    guarded = scores.clone()
    top = scores.topk(min(min_per_output, scores.shape[1]), dim=1).indices
    guarded.scatter_(1, top, float("inf"))
    guarded.scatter_(0, scores.argmax(0, keepdim=True), float("inf"))
    return guarded.masked_fill_(scores == -torch.inf, -torch.inf)


def check_room(remove: int, guarded: Tensor, layer: str) -> None:
    """Raises UsageError if fewer than `remove` weights aren't guarded."""
    room = int((guarded != float("inf")).sum())
    if remove > room:
        raise UsageError(
            f"{layer}: --min-per-output leaves {room} of {guarded.numel()} weights to remove, but {remove} "
            f"are asked for; lower --min-per-output, or the sparsity to {room / guarded.numel():.4f}."
        )


def check_room_in_rows(prune: Tensor, guarded: Tensor, layer: str) -> None:
    """Raises UsageError if a row had to give up a guarded weight."""
    if bool((prune & (guarded == float("inf"))).any()):
        raise UsageError(
            f"{layer}: with --per output, --min-per-output asks for more weights than an output keeps; "
            "lower one of them, or use --per layer."
        )


def check_rows_hold(amount: Amount, shape: torch.Size, layer: str) -> None:
    """Raises UsageError if a pattern leaves an output fewer weights than `min_per_output`."""
    assert amount.pattern is not None
    kept = shape[1] // amount.pattern.m * amount.pattern.n
    if kept < amount.min_per_output:
        raise UsageError(
            f"{layer}: pattern {amount.pattern} keeps {kept} weights per output, "
            f"fewer than --min-per-output {amount.min_per_output}."
        )
