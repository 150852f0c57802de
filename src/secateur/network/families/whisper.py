"""Whisper: an encoder that hears 30 seconds of sound, and a decoder that writes what was said.

Two convolutions, the second of which takes every other frame, come before the encoder's blocks; they aren't
described, and stay as they are. The width of a head is always hidden / heads. k has no bias.
"""

from __future__ import annotations

from types import MappingProxyType

from secateur.network.family import Family, Projection, Stack

_SELF_ATTENTION: tuple[Projection, ...] = (
    Projection("self_attn.q_proj", rows=("q",), columns="attention input"),
    Projection("self_attn.k_proj", rows=("k",), columns="attention input"),
    Projection("self_attn.v_proj", rows=("v",), columns="attention input"),
    Projection("self_attn.out_proj", rows=("residual",), columns="head"),
)
_CROSS_ATTENTION: tuple[Projection, ...] = (
    Projection("encoder_attn.q_proj", rows=("cross q",), columns="cross attention input"),
    Projection("encoder_attn.k_proj", rows=("cross k",), columns="encoder output"),
    Projection("encoder_attn.v_proj", rows=("cross v",), columns="encoder output"),
    Projection("encoder_attn.out_proj", rows=("residual",), columns="cross head"),
)
_MLP: tuple[Projection, ...] = (
    Projection("fc1", rows=("neuron",), columns="mlp input"),
    Projection("fc2", rows=("residual",), columns="neuron"),
)

WHISPER = Family(
    name="whisper",
    model_types=("whisper",),
    embeddings=("decoder.embed_tokens",),
    heads=("proj_out",),
    objective="seq2seq",
    config=MappingProxyType({"hidden": "d_model", "vocabulary": "vocab_size", "positions": "max_target_positions"}),
    encoder_decoder=(
        Stack(
            "encoder",
            "encoder.layers",
            (*_SELF_ATTENTION, *_MLP),
            MappingProxyType(
                {
                    "layers": "encoder_layers",
                    "heads": "encoder_attention_heads",
                    "neurons": "encoder_ffn_dim",
                    "positions": "max_source_positions",
                    "mels": "num_mel_bins",
                }
            ),
        ),
        Stack(
            "decoder",
            "decoder.layers",
            (*_SELF_ATTENTION, *_CROSS_ATTENTION, *_MLP),
            MappingProxyType(
                {
                    "layers": "decoder_layers",
                    "heads": "decoder_attention_heads",
                    "neurons": "decoder_ffn_dim",
                    "positions": "max_target_positions",
                }
            ),
        ),
    ),
    tied_width=True,
    head_attributes=MappingProxyType({"self_attn.num_heads": "heads", "encoder_attn.num_heads": "cross heads"}),
    without=MappingProxyType(
        {
            "attention": {"self_attn": "attention", "self_attn_layer_norm": "identity"},
            "mlp": {"fc1": "identity", "fc2": "zero", "final_layer_norm": "identity"},
        }
    ),
    inputs="audio",
    frames_per_position=2,
)
