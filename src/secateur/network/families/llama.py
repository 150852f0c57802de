"""Llama 1 to 3, and what shares its `model_type`: TinyLlama, SmolLM, Vicuna ..."""

from __future__ import annotations

from secateur.network.families.gated import GATED_CONFIG, GATED_HEADS, GATED_PROJECTIONS, GATED_WITHOUT
from secateur.network.family import Family

LLAMA = Family(
    name="llama",
    model_types=("llama",),
    blocks="layers",
    projections=GATED_PROJECTIONS,
    embeddings=("embed_tokens",),
    config=GATED_CONFIG,
    head_attributes=GATED_HEADS,
    without=GATED_WITHOUT,
    norm="rms",
)
