"""Experts that no calibration token was routed to: nothing is known of their inputs, so their magnitudes must do.

Such a layer is pruned by the stage's own score if that needs no statistics, by `l1` otherwise, and what stays keeps its
value. Where a plan shares out a sparsity, it gets the model's; a threshold on other scores says nothing about it, so
that leaves it as it is. The stage's notes name the experts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from secateur.calibration.statistics import GRADIENTS, INPUTS, Needs, Statistics
from secateur.network.network import Layer


def unreached(layer: Layer, statistics: Statistics, needs: Needs) -> bool:
    """Whether a layer is an expert's and saw no token in the pass that was to gather what `needs` names."""
    if layer.expert is None:
        return False
    blind = bool(needs & INPUTS) and statistics.count == 0
    gradients = statistics.gradients
    return blind or (bool(needs & GRADIENTS) and gradients is not None and gradients.nothing)


def even_counts(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Shares `total` zeros out over layers in proportion to their weights, exactly.

    Args:
        sizes: Weights by layer.
        total: Zeros in all.
    """
    counts, before, passed, whole = {}, 0, 0, sum(sizes.values())
    for name, size in sizes.items():
        passed += size
        upto = round(total * passed / whole)
        counts[name] = upto - before
        before = upto
    return counts


def notes(layers: Sequence[Layer], done: Iterable[str]) -> list[str]:
    """Says in words, by block, which experts weren't reached, and what became of them.

    Args:
        layers: Layers of unreached experts.
        done: The names of those that were pruned all the same.
    """
    done = set(done)
    blocks: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for layer in layers:
        found = blocks[layer.reads.rpartition("/")[0], layer.name in done]
        if layer.expert is not None and layer.expert not in found:
            found.append(layer.expert)
    return [
        f"{block}: no calibration token reached expert{'s' * (len(experts) > 1)} {', '.join(map(str, experts))}: "
        + ("pruned by magnitude alone." if pruned else "left as it was.")
        + " More calibration windows may help."
        for (block, pruned), experts in blocks.items()
    ]
