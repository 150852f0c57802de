"""Gemma 2: Llama's block with a norm before and after each half; masks alternate (`config.layer_types`)."""

from __future__ import annotations

from secateur.network.families.gated import GATED_CONFIG, GATED_HEADS, GATED_PROJECTIONS, SANDWICHED_WITHOUT
from secateur.network.family import Family

GEMMA2 = Family(
    name="gemma2",
    model_types=("gemma2",),
    blocks="layers",
    projections=GATED_PROJECTIONS,
    embeddings=("embed_tokens",),
    config=GATED_CONFIG,
    head_attributes=GATED_HEADS,
    adds=False,
    without=SANDWICHED_WITHOUT,
    norm="rms+1",
    scaled_embedding=True,
)
