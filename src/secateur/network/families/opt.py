"""OPT: separate q, k, v, and an MLP whose input comes flattened to (windows x positions, hidden).

The table of positions has two rows more than the config says. `word_embed_proj_dim` (OPT-350m) is the
embedding's width where it isn't hidden's. The width of a head is always hidden / heads.
"""

from __future__ import annotations

from types import MappingProxyType

from secateur.network.family import Family, Projection

OPT = Family(
    name="opt",
    model_types=("opt",),
    blocks="decoder.layers",
    projections=(
        Projection("self_attn.q_proj", rows=("q",), columns="attention input"),
        Projection("self_attn.k_proj", rows=("k",), columns="attention input"),
        Projection("self_attn.v_proj", rows=("v",), columns="attention input"),
        Projection("self_attn.out_proj", rows=("residual",), columns="head"),
        Projection("fc1", rows=("neuron",), columns="mlp input"),
        Projection("fc2", rows=("residual",), columns="neuron"),
    ),
    embeddings=("decoder.embed_tokens",),
    config=MappingProxyType(
        {
            "hidden": "hidden_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "neurons": "ffn_dim",
            "positions": "max_position_embeddings",
            "vocabulary": "vocab_size",
        }
    ),
    tied_width=True,
    with_hidden=("word_embed_proj_dim",),
    head_attributes=MappingProxyType({"self_attn.num_heads": "heads"}),
    without=MappingProxyType(
        {
            "attention": {"self_attn": "attention", "self_attn_layer_norm": "identity"},
            "mlp": {"fc1": "identity", "fc2": "zero", "final_layer_norm": "identity"},
        }
    ),
    pre_norm="do_layer_norm_before",
)
