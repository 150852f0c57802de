"""Phi-3 and Phi-3.5 mini, Phi-4: Llama's block with q, k, v fused and gate, up fused.

The config doesn't declare `head_dim` (see gated).
"""

from __future__ import annotations

from types import MappingProxyType

from secateur.network.families.gated import GATED_CONFIG, GATED_WITHOUT
from secateur.network.family import Family, Projection

PHI3 = Family(
    name="phi3",
    model_types=("phi3",),
    blocks="layers",
    projections=(
        Projection("self_attn.qkv_proj", rows=("q", "k", "v"), columns="attention input"),
        Projection("self_attn.o_proj", rows=("residual",), columns="head"),
        Projection("mlp.gate_up_proj", rows=("gate", "up"), columns="mlp input"),
        Projection("mlp.down_proj", rows=("residual",), columns="neuron"),
    ),
    embeddings=("embed_tokens",),
    config=GATED_CONFIG,
    head_attributes=MappingProxyType(
        {
            "self_attn.config.num_attention_heads": "heads",
            "self_attn.num_key_value_heads": "kv_heads",
            "self_attn.num_key_value_groups": "group",
        }
    ),
    without=GATED_WITHOUT,
    norm="rms",
)
