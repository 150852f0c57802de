"""GPT-NeoX and Pythia: q, k, v fused head by head, attention and MLP side by side.

Both halves read the block's input, each through its own norm, so their inputs differ. The head is `lm_head`
in memory and `embed_out` in files (older versions of transformers: in memory too). The width of a head is
always hidden / heads: the attention ignores a `head_dim`, though its rotary embedding would read one.
"""

from __future__ import annotations

from types import MappingProxyType

from secateur.network.family import Family, Projection

GPT_NEOX = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    blocks="layers",
    projections=(
        Projection("attention.query_key_value", rows=("q", "k", "v"), columns="attention input", per_head=True),
        Projection("attention.dense", rows=("residual",), columns="head"),
        Projection("mlp.dense_h_to_4h", rows=("neuron",), columns="mlp input"),
        Projection("mlp.dense_4h_to_h", rows=("residual",), columns="neuron"),
    ),
    embeddings=("embed_in",),
    heads=("lm_head", "embed_out"),
    config=MappingProxyType(
        {
            "hidden": "hidden_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "neurons": "intermediate_size",
            "positions": "max_position_embeddings",
            "vocabulary": "vocab_size",
        }
    ),
    tied_width=True,
    without=MappingProxyType(
        {
            "attention": {"attention": "attention", "input_layernorm": "identity"},
            "mlp": {"mlp": "zero", "post_attention_layernorm": "identity"},
        }
    ),
)
