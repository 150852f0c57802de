"""XLNet: bare attention parameters of three axes, read by einsum, and positions before windows.

q, k, v and r are (hidden, heads, head_dim), in to out; o has the same shape, out to in. r's input is the
encoding of relative positions, the same in every block and about twice as long as the text. The order given
is that of the content stream alone. With a `target_mapping` a second stream, the queries, runs through q, o
and the MLP again, so that those see two inputs; with `mems`, k and v read the memory too, and no longer q's
input.

The config's `d_head` must be hidden / heads, so it can't say another width. There is no limit on positions.
"""

from __future__ import annotations

from types import MappingProxyType

from secateur.network.family import Family, Layout, Projection

XLNET = Family(
    name="xlnet",
    model_types=("xlnet",),
    blocks="layer",
    projections=(
        Projection("rel_attn.q", rows=("q",), columns="attention input", layout=Layout.IN_OUT),
        Projection("rel_attn.k", rows=("k",), columns="attention input", layout=Layout.IN_OUT),
        Projection("rel_attn.v", rows=("v",), columns="attention input", layout=Layout.IN_OUT),
        Projection("rel_attn.r", rows=("r",), columns="position", layout=Layout.IN_OUT),
        Projection("rel_attn.o", rows=("residual",), columns="head"),
        Projection("ff.layer_1", rows=("neuron",), columns="mlp input"),
        Projection("ff.layer_2", rows=("residual",), columns="neuron"),
    ),
    embeddings=("word_embedding",),
    heads=("lm_loss",),
    objective="permutation",
    config=MappingProxyType(
        {
            "hidden": "d_model",
            "layers": "n_layer",
            "heads": "n_head",
            "neurons": "d_inner",
            "vocabulary": "vocab_size",
        }
    ),
    tied_width=True,
    head_attributes=MappingProxyType({"rel_attn.n_head": "heads"}),
    head_tensors=(
        ("rel_attn.r_w_bias", 0),
        ("rel_attn.r_r_bias", 0),
        ("rel_attn.r_s_bias", 0),
        ("rel_attn.seg_embed", 1),
    ),
    # its attention holds the norm of the residual stream, so it stays, without a head
    adds=False,
    without=MappingProxyType({"attention": {}, "mlp": {"ff.layer_1": "identity", "ff.layer_2": "zero"}}),
    position_width="d_model",
    block_returns=2,  # the content stream and the query stream, which is None without a target_mapping
    batch_axis=1,
)
