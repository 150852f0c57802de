"""Small random models of every family, and a tokenizer that fits them: `from tiny import tiny_model`.

Every model has 2 blocks, hidden 32, 4 heads, a vocabulary of 96 and at least 64 positions. Families with
grouped heads have 2 KV heads; some have heads wider than hidden / heads, some tie their output head, as the
real ones do. Those with experts have 4, of which each token is sent to 2.
Those with an encoder and a decoder have 2 blocks in each, but for one with a longer decoder.
Whisper hears a second of sound.
"""

from __future__ import annotations

import string
import wave
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, WhisperFeatureExtractor

from secateur.network.families import FAMILIES

LAYERS = 2
HIDDEN = 32
HEADS = 4
KV_HEADS = 2
VOCABULARY = 96
POSITIONS = 64
EXPERTS = 4

SPECIAL = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
_SPECIAL_IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# Printable ASCII and the line feed, less five characters that texts seldom need: 91, and 5 special tokens.
ALPHABET = "".join(sorted((set(string.printable[:95]) | {"\n"}) - set("^`|~\\")))

_COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, **_SPECIAL_IDS}
_GATED: dict[str, Any] = {
    **_COMMON,
    "hidden_size": HIDDEN,
    "intermediate_size": 44,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": POSITIONS,
}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "tie_word_embeddings": False}
_PLAIN: dict[str, Any] = {
    **_COMMON,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
}
_T5: dict[str, Any] = {
    **_COMMON,
    "d_model": HIDDEN,
    "d_kv": 16,
    "d_ff": 48,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "decoder_start_token_id": 0,
}
MELS, FRAMES = 8, 100  # of the second of sound that Whisper hears
_WINDOWED: dict[str, Any] = {
    "sliding_window": 16,
    "query_pre_attn_scalar": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}


def _builder(model: str, config: str, **fields: Any) -> Callable[[], PreTrainedModel]:
    """Returns a function that builds the model: `transformers`' classes, by name, on these fields."""

    def build() -> PreTrainedModel:
        return getattr(transformers, model)(getattr(transformers, config)(**fields))

    return build


TINY: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": _builder("LlamaForCausalLM", "LlamaConfig", **_GATED, head_dim=8, tie_word_embeddings=False),
    "mistral": _builder("MistralForCausalLM", "MistralConfig", **_GATED, head_dim=8, sliding_window=32),
    "qwen2": _builder("Qwen2ForCausalLM", "Qwen2Config", **_GATED, tie_word_embeddings=True),
    "qwen3": _builder("Qwen3ForCausalLM", "Qwen3Config", **_GATED, head_dim=16, tie_word_embeddings=True),
    "mixtral": _builder(
        "MixtralForCausalLM", "MixtralConfig", **_GATED, **_EXPERTS, head_dim=8, num_local_experts=EXPERTS
    ),
    # The first block has a dense MLP.
    "qwen3_moe": _builder(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        **_GATED,
        **_EXPERTS,
        head_dim=16,
        num_experts=EXPERTS,
        moe_intermediate_size=20,
        mlp_only_layers=[0],
    ),
    "gemma": _builder("GemmaForCausalLM", "GemmaConfig", **_GATED, head_dim=8),
    "gemma2": _builder("Gemma2ForCausalLM", "Gemma2Config", **_GATED, **_WINDOWED, head_dim=16),
    "gemma3": _builder("Gemma3ForCausalLM", "Gemma3TextConfig", **_GATED, **_WINDOWED, head_dim=16),
    "phi3": _builder("Phi3ForCausalLM", "Phi3Config", **_GATED, original_max_position_embeddings=POSITIONS),
    "gpt2": _builder(
        "GPT2LMHeadModel",
        "GPT2Config",
        **_COMMON,
        n_embd=HIDDEN,
        n_inner=48,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=POSITIONS,
    ),
    "gpt_neox": _builder("GPTNeoXForCausalLM", "GPTNeoXConfig", **_PLAIN),
    "opt": _builder(
        "OPTForCausalLM",
        "OPTConfig",
        **_COMMON,
        hidden_size=HIDDEN,
        word_embed_proj_dim=HIDDEN,
        ffn_dim=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
    ),
    "bert": _builder("BertForMaskedLM", "BertConfig", **_PLAIN),
    # One position more: the pad token's row isn't used.
    "roberta": _builder("RobertaForMaskedLM", "RobertaConfig", **{**_PLAIN, "max_position_embeddings": POSITIONS + 1}),
    "distilbert": _builder(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        **_COMMON,
        dim=HIDDEN,
        hidden_dim=48,
        n_layers=LAYERS,
        n_heads=HEADS,
        max_position_embeddings=POSITIONS,
    ),
    "xlnet": _builder(
        "XLNetLMHeadModel",
        "XLNetConfig",
        **_COMMON,
        d_model=HIDDEN,
        d_inner=48,
        n_layer=LAYERS,
        n_head=HEADS,
        mem_len=None,
    ),
    "t5": _builder("T5ForConditionalGeneration", "T5Config", **_T5, feed_forward_proj="relu"),
    "t5_gated": _builder(
        "T5ForConditionalGeneration",
        "T5Config",
        **_T5,
        num_decoder_layers=3,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,  # as in T5 1.1, where it means that the decoder's output isn't scaled
    ),
    "whisper": _builder(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        **_COMMON,
        d_model=HIDDEN,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=48,
        decoder_ffn_dim=40,
        num_mel_bins=MELS,
        max_source_positions=FRAMES // 2,
        max_target_positions=POSITIONS,
        decoder_start_token_id=1,
        begin_suppress_tokens=None,
    ),
}


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """Returns a family's small model in eval mode, float32, the same for the same seed.

    Every parameter is random, with a standard deviation of 0.2: matrices and tables around 0; norms and
    biases around what they start from (0 or 1). With hidden 32 a matrix then keeps the size of its input.
    """
    with torch.random.fork_rng(devices=[]):
        model = TINY[family]().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.2 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE without merges, so one token per character, and five special ones: 96 in all.

    It adds no special tokens by itself. Text in ALPHABET comes back from `decode` as it was. It is a BPE,
    since `AutoTokenizer` rebuilds whatever lies beside a Qwen2 model as one.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    characters = [byte_level.pre_tokenize_str(character)[0][0] for character in ALPHABET]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL.values(), *characters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=POSITIONS, clean_up_tokenization_spaces=False, **SPECIAL
    )


def tiny_feature_extractor() -> WhisperFeatureExtractor:
    """Returns one that makes of a second of sound what the tiny Whisper hears."""
    return WhisperFeatureExtractor(feature_size=MELS, chunk_length=1)


def write_wavs(folder: Path, number: int, seconds: float = 0.6, rate: int = 16000) -> Path:
    """Writes .wav files, each of a few random tones; returns the folder."""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(number)
    times = torch.arange(round(seconds * rate)) / rate
    for index in range(number):
        tones = 100 + 3000 * torch.rand(4, 1, generator=generator)
        sound = (torch.sin(2 * torch.pi * tones * times).mean(0) * 20000).to(torch.int16)
        with wave.open(str(folder / f"{index:03}.wav"), "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", ""))
            file.writeframes(sound.numpy().tobytes())
    return folder


def save_tiny(family: str, folder: str | Path, tokenizer: bool = False, seed: int = 0) -> Path:
    """Saves `tiny_model` as a Hugging Face checkpoint, if asked with `tiny_tokenizer`; returns the folder.

    A model that hears has its feature extractor beside it.
    """
    folder = Path(folder)
    tiny_model(family, seed).save_pretrained(folder)
    if family == "whisper":
        tiny_feature_extractor().save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return folder


def filed(family: str, layer: str, names: Iterable[str]) -> list[str]:
    """Returns the names in a checkpoint's files of the tensors that a layer's weight is made of."""
    found = [name for name in (layer, f"{layer}.weight") if name in set(names)]
    if found:
        return found
    path, _, expert = layer.rpartition(".")
    (parts,) = [parts for place, parts in FAMILIES[family].files.items() if path.endswith(f".{place}")]
    block = ".".join(path.split(".")[:3])  # model.layers.0
    return [f"{block}.{part.format(expert)}" for part in parts]


def has(block: nn.Module, path: str) -> bool:
    """Whether a block has a module or a weight of this path."""
    return any(name == path for name, _ in (*block.named_modules(), *block.named_parameters()))


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether outputs are equal but for the rounding of experts' sums, which depends on where weights lie in memory."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=2e-6)


SENTENCE = "What is cut off is gone; what is left must carry on as if nothing had happened. "


def tiny_recipe(folder: Path) -> dict[str, Any]:
    """Writes a tiny llama and a text into a folder, and returns what recipes on them have in common."""
    text = folder / "text.txt"
    text.write_text(SENTENCE * 80)
    return {
        "model": str(save_tiny("llama", folder / "dense", tokenizer=True)),
        "output": str(folder / "out"),
        "calibration": {"data": str(text), "samples": 8, "length": 32},
        "evaluate": {"text": str(text), "windows": 2, "length": 32, "speed": False},
    }
