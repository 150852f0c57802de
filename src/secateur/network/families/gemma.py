"""Gemma 1: Llama's block; norms multiply by 1 + weight, embeddings by sqrt(hidden)."""

from __future__ import annotations

from secateur.network.families.gated import GATED_CONFIG, GATED_HEADS, GATED_PROJECTIONS, GATED_WITHOUT
from secateur.network.family import Family

GEMMA = Family(
    name="gemma",
    model_types=("gemma",),
    blocks="layers",
    projections=GATED_PROJECTIONS,
    embeddings=("embed_tokens",),
    config=GATED_CONFIG,
    head_attributes=GATED_HEADS,
    without=GATED_WITHOUT,
    norm="rms+1",
    scaled_embedding=True,
)
