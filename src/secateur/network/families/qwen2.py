"""Qwen 2 and 2.5: Llama's block with biases on q, k and v.

The config doesn't declare `head_dim` (see gated).
"""

from __future__ import annotations

from secateur.network.families.gated import GATED_CONFIG, GATED_HEADS, GATED_PROJECTIONS, GATED_WITHOUT
from secateur.network.family import Family

QWEN2 = Family(
    name="qwen2",
    model_types=("qwen2",),
    blocks="layers",
    projections=GATED_PROJECTIONS,
    embeddings=("embed_tokens",),
    config=GATED_CONFIG,
    head_attributes=GATED_HEADS,
    without=GATED_WITHOUT,
    norm="rms",
)
