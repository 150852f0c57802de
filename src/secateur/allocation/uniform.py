"""Uniform: every layer gives the same share."""

from __future__ import annotations

from collections.abc import Mapping


def uniform(sizes: Mapping[str, int], sparsity: float) -> dict[str, int]:
    """Returns round(sparsity · n) zeros for each layer.

    Args:
        sizes: Number of weights by layer.
        sparsity: Share of zeros.
    """
    return {name: round(sparsity * size) for name, size in sizes.items()}
