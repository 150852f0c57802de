"""Mistral: Llama's block; one sliding window, or none, for all blocks."""

from __future__ import annotations

from secateur.network.families.gated import GATED_CONFIG, GATED_HEADS, GATED_PROJECTIONS, GATED_WITHOUT
from secateur.network.family import Family

MISTRAL = Family(
    name="mistral",
    model_types=("mistral",),
    blocks="layers",
    projections=GATED_PROJECTIONS,
    embeddings=("embed_tokens",),
    config=GATED_CONFIG,
    head_attributes=GATED_HEADS,
    without=GATED_WITHOUT,
    norm="rms",
)
