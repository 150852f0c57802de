"""Llama's block, which many families share: separate q, k, v and o, then a gated MLP.

A family with this layout differs in its norms, biases, masks and activations, none of which matter here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from secateur.network.family import Projection

GATED_PROJECTIONS: tuple[Projection, ...] = (
    Projection("self_attn.q_proj", rows=("q",), columns="attention input"),
    Projection("self_attn.k_proj", rows=("k",), columns="attention input"),
    Projection("self_attn.v_proj", rows=("v",), columns="attention input"),
    Projection("self_attn.o_proj", rows=("residual",), columns="head"),
    Projection("mlp.gate_proj", rows=("gate",), columns="mlp input"),
    Projection("mlp.up_proj", rows=("up",), columns="mlp input"),
    Projection("mlp.down_proj", rows=("residual",), columns="neuron"),
)

# Qwen2's and Phi-3's configs don't declare `head_dim`, yet keep it when it is given and their attention reads
# it: the attribute is missing until someone sets it, and means hidden // heads then.
GATED_CONFIG: Mapping[str, str] = MappingProxyType(
    {
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "neurons": "intermediate_size",
        "positions": "max_position_embeddings",
        "vocabulary": "vocab_size",
    }
)

GATED_HEADS: Mapping[str, str] = MappingProxyType({"self_attn.num_key_value_groups": "group"})

GATED_WITHOUT: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "attention": {"self_attn": "attention", "input_layernorm": "identity"},
        "mlp": {"mlp": "zero", "post_attention_layernorm": "identity"},
    }
)

# Gemma 2 and 3 have a norm behind each half, too.
SANDWICHED_WITHOUT: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "attention": {
            "self_attn": "attention",
            "input_layernorm": "identity",
            "post_attention_layernorm": "identity",
        },
        "mlp": {
            "mlp": "zero",
            "pre_feedforward_layernorm": "identity",
            "post_feedforward_layernorm": "identity",
        },
    }
)
