"""A tokenizer as llama.cpp has it."""

from __future__ import annotations

import json
from typing import Any

from secateur.errors import UsageError
from secateur.network.network import Network

SPECIALS = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unk_token_id", "pad": "pad_token_id"}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def add_tokenizer(writer: Any, network: Network) -> None:
    """Writes tokens, merges and special ids.

    Raises:
        UsageError: The tokenizer is of a kind that llama.cpp hasn't.
    """
    tokenizer = network.tokenizer
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise UsageError(f"export --to gguf takes a BPE tokenizer, and the checkpoint's is {model['type']}.")
    size = network.dimension("vocabulary") or len(tokenizer)
    named = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens = [named.get(number, f"[PAD{number}]") for number in range(size)]
    bytewise = bool(model.get("byte_fallback"))
    special = {one["id"]: one["special"] for one in described.get("added_tokens", [])}
    kinds = [_kind(number, named, special, bytewise) for number in range(size)]
    writer.add_tokenizer_model("llama" if bytewise else "gpt2")
    writer.add_tokenizer_pre("default" if bytewise else pre_tokenizer(described.get("pre_tokenizer")))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if bytewise:
        writer.add_token_scores([-float(number) for number in range(size)])
    else:
        merges = model["merges"]
        writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    for name, attribute in SPECIALS.items():
        number = getattr(tokenizer, attribute, None)
        if isinstance(number, int):
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(_begins(tokenizer))
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _begins(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a beginning before a text."""
    ids = tokenizer("a").input_ids
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def _kind(number: int, named: dict[int, str], special: dict[int, bool], bytewise: bool) -> int:
    if number not in named:
        return UNUSED
    if number in special:
        return CONTROL if special[number] else USER_DEFINED
    token = named[number]
    if bytewise and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return BYTE
    return NORMAL


def pre_tokenizer(described: dict[str, Any] | None) -> str:
    """Returns llama.cpp's name for how a text is split before byte pairs are merged.

    Raises:
        UsageError: It has none that is known here.
    """
    text = json.dumps(described or {})
    if '"Digits"' in text and '"ByteLevel"' in text:
        return "smollm"
    if "{1,3}" in text:
        return "llama-bpe"
    if "\\\\p{N}" in text and '"Split"' in text:
        return "qwen2"
    if '"ByteLevel"' in text:
        return "gpt-2"
    raise UsageError(f"export --to gguf: llama.cpp's name for this way of splitting text isn't known: {text[:120]}")
