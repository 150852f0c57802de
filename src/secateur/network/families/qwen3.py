"""Qwen 3, dense: Llama's block with a norm over each head's q and k (one weight for all heads)."""

from __future__ import annotations

from secateur.network.families.gated import GATED_CONFIG, GATED_HEADS, GATED_PROJECTIONS, GATED_WITHOUT
from secateur.network.family import Family

QWEN3 = Family(
    name="qwen3",
    model_types=("qwen3",),
    blocks="layers",
    projections=GATED_PROJECTIONS,
    embeddings=("embed_tokens",),
    config=GATED_CONFIG,
    head_attributes=GATED_HEADS,
    without=GATED_WITHOUT,
    norm="rms",
)
