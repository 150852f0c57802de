"""T5 and mT5: an encoder and a decoder of the same block, the decoder's with a second attention.

The first block of either makes the biases of relative positions, which all others are handed. There is no limit
on positions. Version 1.0's MLP is plain; that of 1.1, of Flan-T5 and of mT5 is gated, which the config tells.
"""

from __future__ import annotations

from types import MappingProxyType

from secateur.network.family import Family, Projection, Stack

_SELF_ATTENTION: tuple[Projection, ...] = (
    Projection("layer.0.SelfAttention.q", rows=("q",), columns="attention input"),
    Projection("layer.0.SelfAttention.k", rows=("k",), columns="attention input"),
    Projection("layer.0.SelfAttention.v", rows=("v",), columns="attention input"),
    Projection("layer.0.SelfAttention.o", rows=("residual",), columns="head"),
)
_CROSS_ATTENTION: tuple[Projection, ...] = (
    Projection("layer.1.EncDecAttention.q", rows=("cross q",), columns="cross attention input"),
    Projection("layer.1.EncDecAttention.k", rows=("cross k",), columns="encoder output"),
    Projection("layer.1.EncDecAttention.v", rows=("cross v",), columns="encoder output"),
    Projection("layer.1.EncDecAttention.o", rows=("residual",), columns="cross head"),
)


def _plain(layer: str) -> tuple[Projection, ...]:
    return (
        Projection(f"{layer}.DenseReluDense.wi", rows=("neuron",), columns="mlp input"),
        Projection(f"{layer}.DenseReluDense.wo", rows=("residual",), columns="neuron"),
    )


def _gated(layer: str) -> tuple[Projection, ...]:
    return (
        Projection(f"{layer}.DenseReluDense.wi_0", rows=("gate",), columns="mlp input"),
        Projection(f"{layer}.DenseReluDense.wi_1", rows=("up",), columns="mlp input"),
        Projection(f"{layer}.DenseReluDense.wo", rows=("residual",), columns="neuron"),
    )


def _stacks(encoder_mlp: tuple[Projection, ...], decoder_mlp: tuple[Projection, ...]) -> tuple[Stack, Stack]:
    fields = {"heads": "num_heads", "head_dim": "d_kv", "neurons": "d_ff"}
    encoder = Stack(
        "encoder",
        "encoder.block",
        (*_SELF_ATTENTION, *encoder_mlp),
        MappingProxyType({"layers": "num_layers", **fields}),
        block_returns=3,  # the hidden states, and the position biases of both attentions
        carries=True,
        without=MappingProxyType({"mlp": {"layer.1": "identity"}}),
    )
    decoder = Stack(
        "decoder",
        "decoder.block",
        (*_SELF_ATTENTION, *_CROSS_ATTENTION, *decoder_mlp),
        MappingProxyType({"layers": "num_decoder_layers", **fields}),
        block_returns=3,
        carries=True,
    )
    return encoder, decoder


def _family(name: str, stacks: tuple[Stack, Stack], gated: bool) -> Family:
    return Family(
        name=name,
        model_types=("t5", "mt5"),
        embeddings=("shared",),
        objective="seq2seq",
        config=MappingProxyType({"hidden": "d_model", "vocabulary": "vocab_size"}),
        head_attributes=MappingProxyType(
            {
                "layer.0.SelfAttention.n_heads": "heads",
                "layer.0.SelfAttention.inner_dim": "width",
                "layer.1.EncDecAttention.n_heads": "cross heads",
                "layer.1.EncDecAttention.inner_dim": "cross width",
            }
        ),
        head_tensors=(("layer.0.SelfAttention.relative_attention_bias.weight", 1),),
        # the attention of the first block makes the biases of positions for all, so attention halves stay
        without=MappingProxyType({"mlp": {"layer.2": "identity"}}),
        norm="rms",
        scaled_head="scale_decoder_outputs",
        encoder_decoder=stacks,
        inputs="halves",
        when=MappingProxyType({"is_gated_act": gated}),
    )


T5 = _family("t5", _stacks(_plain("layer.1"), _plain("layer.2")), gated=False)
T5_GATED = _family("t5_gated", _stacks(_gated("layer.1"), _gated("layer.2")), gated=True)
