"""GPT-2 and DistilGPT2: Conv1D weights, stored (in, out), with q, k, v fused.

`n_inner` may be None in a config, which means 4 x hidden. The width of a head is always hidden / heads. The
cross-attention that `add_cross_attention` adds isn't described.
"""

from __future__ import annotations

from types import MappingProxyType

from secateur.network.family import Family, Layout, Projection

GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    blocks="h",
    projections=(
        Projection("attn.c_attn", rows=("q", "k", "v"), columns="attention input", layout=Layout.IN_OUT),
        Projection("attn.c_proj", rows=("residual",), columns="head", layout=Layout.IN_OUT),
        Projection("mlp.c_fc", rows=("neuron",), columns="mlp input", layout=Layout.IN_OUT),
        Projection("mlp.c_proj", rows=("residual",), columns="neuron", layout=Layout.IN_OUT),
    ),
    embeddings=("wte",),
    config=MappingProxyType(
        {
            "hidden": "n_embd",
            "layers": "n_layer",
            "heads": "n_head",
            "neurons": "n_inner",
            "positions": "n_positions",
            "vocabulary": "vocab_size",
        }
    ),
    tied_width=True,
    head_attributes=MappingProxyType({"attn.num_heads": "heads", "attn.split_size": "width"}),
    without=MappingProxyType(
        {
            "attention": {"attn": "attention", "ln_1": "identity"},
            "mlp": {"mlp": "zero", "ln_2": "identity"},
        }
    ),
)
