"""Vocabulary rows: what the calibration text uses stays, with all that the tokenizer needs to make it."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.calibration.tokens import token_counts, window_counts
from secateur.errors import NothingPrunedError, UsageError
from secateur.network.network import Network
from secateur.network.surgery import Cut
from secateur.network.tokenizers import closure, remap_tokenizer
from secateur.network.unit_group import UnitGroup
from secateur.network.units import unit_groups
from secateur.network.vocabulary import kept_of, remap_ids
from secateur.scores.units import scored
from secateur.structure.budget import budget_of
from secateur.structure.choosing import kept_by_score
from secateur.structure.job import Job


def choose_tokens(job: Job) -> list[Cut]:
    """Returns which tokens stay.

    Raises:
        UsageError: The tokenizer can't be made smaller, or the target takes tokens that others are made of.
    """
    (group,) = unit_groups(job.network, "token")
    remap_tokenizer(job.network.tokenizer, torch.ones(group.count, dtype=torch.bool))  # raises before any work
    with job.timed("score"):
        counts = _counts(job, group)
        scores = scored(job.score, group, job.statistics(group, {}, tokens=counts))
    wanted = kept_by_score(scores, *_target(job, group, scores), job, group)
    keep = _closed(job, wanted)
    if bool(keep.all()):
        raise NothingPrunedError(
            "nothing was pruned: the text and the tokenizer need every token. Say how many are to go, by --remove or "
            "--params: those that the text has least often go first."
        )
    if added := int((keep & ~wanted).sum()):
        job.notes.append(f"{added:,} more tokens stay, as the tokenizer makes others of them or falls back on them.")
    seen = float(counts[keep].sum()) / max(1.0, float(counts.sum()))
    job.notes.append(
        f"{int(keep.sum()):,} of {group.count:,} tokens stay; they are {seen:.2%} of the tokens of the calibration "
        "text, all of which was counted: windows held out of it say nothing of other texts."
    )
    if job.network.generates:
        job.notes.append("Perplexity per token isn't comparable with the dense model's: compare bits per byte.")
    job.report(group, keep)
    return [Cut(group, keep)]


def _closed(job: Job, keep: Tensor) -> Tensor:
    """Returns (units,) bool: tokens to keep and all that they, the tokenizer and the configs need."""
    model = job.network.model
    configs = [model.config, *([model.generation_config] if model.can_generate() else [])]
    return closure(job.network.tokenizer, keep, configs)


def _counts(job: Job, group: UnitGroup) -> Tensor:
    """Returns (units,) how often each token occurs in the whole calibration text."""
    if job.calibration.data != "self":
        return token_counts(job.network, job.calibration.data, job.progress)
    if job.windows is None:
        raise UsageError("--unit token counts what a text uses; give --calibration.")
    return window_counts(job.windows.ids, group.count)


def _target(job: Job, group: UnitGroup, scores: Tensor) -> tuple[int | None, str | None]:
    """Returns how many tokens stay, or the threshold."""
    stage = job.stage
    if stage.threshold is not None:
        return None, stage.threshold
    if stage.remove is not None or stage.sparsity is not None:
        gone = stage.remove if stage.remove is not None else round(group.count * (stage.sparsity or 0))
        left = group.count - gone
    else:
        budget, (each,) = budget_of(job, [group])
        gone = -int(-(budget.now - budget.limit) // float(each.mean()))
        if gone <= 0:
            raise NothingPrunedError(f"nothing was pruned: {budget.words} is met as it is. Ask for less.")
        left = group.count - gone
    needed = int(_closed(job, torch.zeros(group.count, dtype=torch.bool)).sum())
    if left < max(needed, stage.min_units):
        raise UsageError(
            f"{max(left, 0):,} of {group.count:,} tokens would stay, and the tokenizer needs "
            f"{max(needed, stage.min_units):,} at least. Let fewer go."
        )
    return _most(job, group, scores, left), None


def _most(job: Job, group: UnitGroup, scores: Tensor, left: int) -> int:
    """Returns how many of the best tokens can stay so that, with all that they need, no more than `left` do."""
    fits, fails = 0, left + 1
    tick = job.progress.bar("fitting the vocabulary", left.bit_length())
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if int(_closed(job, kept_by_score(scores, middle, None, job, group)).sum()) <= left:
            fits = middle
        else:
            fails = middle
        tick()
    return fits


def with_new_vocabulary(before: Network, small: Network, keep: Tensor) -> Network:
    """Returns a cut model with its tokenizer and the new special ids.

    Args:
        before: The model before the cut.
        small: The cut model.
        keep: (old vocabulary,) bool.
    """
    small.tokenizer = remap_tokenizer(before.tokenizer, keep)
    small.kept = kept_of(before.kept, keep)
    small.model.config = remap_ids(small.model.config, keep)
    if small.model.can_generate():
        small.model.generation_config = remap_ids(small.model.generation_config, keep)
    return small
