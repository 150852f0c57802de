"""Gemma 3, text only (`gemma3_text`): Gemma 2's block with a norm over each head's q and k.

A block's mask and its rotary embedding depend on its entry in `config.layer_types`. The multimodal model
(`gemma3`) isn't covered: its text blocks are one level deeper, its dimensions in `config.text_config`, and
its vision tower is another architecture.
"""

from __future__ import annotations

from secateur.network.families.gated import GATED_CONFIG, GATED_HEADS, GATED_PROJECTIONS, SANDWICHED_WITHOUT
from secateur.network.family import Family

GEMMA3 = Family(
    name="gemma3",
    model_types=("gemma3_text",),
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
