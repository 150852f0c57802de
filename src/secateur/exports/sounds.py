"""What is exported of Whisper: its encoder, its decoder at the beginning, and its decoder that goes on from a cache.

Files and tensors are named as ONNX's generation libraries know them: at the beginning what was heard is
`encoder_hidden_states`, and from then on keys and values of it (`present.0.encoder.key`), which stay as they are,
beside those of what was written (`present.0.decoder.key`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from secateur.calibration.audio import sound_shape
from secateur.exports.program import Free, Program, example_ids
from secateur.network.network import Network


class Hearing(nn.Module):
    """Whisper's encoder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, input_features: Tensor) -> Any:
        """Returns (batch, frames, width) from (batch, mels, samples)."""
        return (self.encoder(input_features, return_dict=False)[0],)


class Writing(nn.Module):
    """Whisper's decoder and head."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder: Any = model.get_decoder()
        self.head: Any = model.get_output_embeddings()

    def read(self, input_ids: Tensor, heard: Tensor, written: list[Tensor], known: list[Tensor]) -> Any:
        """Returns logits, keys and values of what was written, and those of what was heard.

        Args:
            input_ids: (batch, length)
            heard: What was heard; once its keys and values are known, any tensor.
            written: (batch, heads, past, width) keys and values layer by layer.
            known: The same of what was heard; of length 0 where they aren't known.
        """
        caches = [_cache(tensors) for tensors in (written, known)]
        cache = EncoderDecoderCache(*caches)
        cache.is_updated = dict.fromkeys(range(len(caches[0].layers)), known[0].shape[2] > 0)
        past, length = written[0].shape[2], input_ids.shape[1]
        places = torch.arange(past + length, device=input_ids.device)
        reads = places[past:]
        dtype = self.head.weight.dtype
        mask = torch.where(places[None] <= reads[:, None], 0.0, torch.finfo(dtype).min).to(dtype)
        output = self.decoder(
            input_ids=input_ids,
            attention_mask=mask[None, None].expand(input_ids.shape[0], 1, length, past + length),
            position_ids=reads[None].expand(input_ids.shape[0], length),
            encoder_hidden_states=heard,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
        )
        after = [[tensor for layer in one.layers for tensor in (layer.keys, layer.values)] for one in caches]
        return self.head(output.last_hidden_state), *after


def _cache(tensors: list[Tensor]) -> DynamicCache:
    layers = list(zip(tensors[::2], tensors[1::2], strict=True))
    cache = DynamicCache(ddp_cache_data=layers)
    for layer, (keys, values) in zip(cache.layers, layers, strict=True):
        layer.keys, layer.values = keys, values  # as they are, not put behind an empty tensor
    return cache


class Beginning(Writing):
    """The decoder that knows nothing but what was heard."""

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor) -> Any:
        """Returns (batch, length, vocabulary) logits, and by layer keys and values of what was written, and heard."""
        batch = input_ids.shape[0]
        empty: list[list[Tensor]] = []
        for part in ("self_attn", "encoder_attn"):
            attentions = [getattr(layer, part) for layer in self.decoder.layers]
            shapes = [(batch, one.num_heads, 0, one.head_dim) for one in attentions for _ in range(2)]
            empty.append([encoder_hidden_states.new_zeros(shape) for shape in shapes])
        logits, written, known = self.read(input_ids, encoder_hidden_states, *empty)
        return (logits, *_by_layer(written, known))


class GoingOn(Writing):
    """The decoder that has a cache."""

    def forward(self, input_ids: Tensor, *past: Tensor) -> Any:
        """Returns (batch, length, vocabulary) logits, and keys and values of all that was written.

        Args:
            input_ids: (batch, length)
            past: Of each layer keys and values of what was written, then those of what was heard.
        """
        written = [one for number, one in enumerate(past) if number % 4 < 2]
        known = [one for number, one in enumerate(past) if number % 4 >= 2]
        logits, written, _ = self.read(input_ids, known[0], written, known)
        return (logits, *written)


def _by_layer(written: list[Tensor], known: list[Tensor]) -> Iterator[Tensor]:
    for number in range(0, len(written), 2):
        yield from (*written[number : number + 2], *known[number : number + 2])


def of_sounds(network: Network, seed: int) -> Iterator[Program]:
    """Yields the encoder, the decoder at the beginning, and the decoder that goes on."""
    dtype = network.model.dtype
    random = torch.Generator().manual_seed(seed)
    sounds = [torch.randn(batch, *sound_shape(network), generator=random).to(dtype) for batch in (2, 1)]
    hearing, beginning = Hearing(network.model).eval(), Beginning(network.model).eval()
    with torch.inference_mode():
        heard = [hearing(sound)[0] for sound in sounds]
    batch: Free = {0: "batch"}
    text: Free = {0: "batch", 1: "length"}
    yield Program(
        "encoder_model",
        hearing,
        ("input_features",),
        ("last_hidden_state",),
        (batch,),
        tuple((sound,) for sound in sounds),
    )
    begins = [(example_ids(network, len(one), length, seed), one) for one, length in zip(heard, (5, 9), strict=True)]
    layers = range(len(beginning.decoder.layers))
    names = [f"{n}.{who}.{what}" for n in layers for who in ("decoder", "encoder") for what in ("key", "value")]
    given: tuple[str, ...] = ("input_ids", "encoder_hidden_states")
    gives = ("logits", *(f"present.{name}" for name in names))
    yield Program("decoder_model", beginning, given, gives, (text, batch), tuple(begins))
    with torch.inference_mode():
        caches = [beginning(*one)[1:] for one in begins]
    goes_on = tuple(
        (example_ids(network, len(one), length, seed), *cache)
        for one, length, cache in zip(heard, (2, 1), caches, strict=True)
    )
    free = (text, *({0: "batch", 2: "past"} if ".decoder." in name else batch for name in names))
    given = ("input_ids", *(f"past_key_values.{name}" for name in names))
    gives = ("logits", *(f"present.{name}" for name in names if ".decoder." in name))
    yield Program("decoder_with_past_model", GoingOn(network.model).eval(), given, gives, free, goes_on)
