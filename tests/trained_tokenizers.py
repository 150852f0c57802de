"""Small tokenizers of the kinds that checkpoints bring, trained on a text: `from trained_tokenizers import loaded`.

Each is built by the class of transformers that a checkpoint of its kind names, saved beside that kind's config, and
read back by `AutoTokenizer`, as it is before any pruning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TEXT = """
Pruning takes a branch away so that the tree bears more. The gardener looks at the whole tree first, then at each of
its branches, and cuts where two of them want the same light. What is cut too late bleeds; what is cut too early comes
back. A café in Zürich sells naïve paintings of pear trees for 1,250 francs, and the painter says: "They're only
pears!" In the orchard behind the house there were apples, quinces, plums and cherries, and every winter the ladders
were carried out again, the shears were sharpened, and the branches fell. Nobody counted them. It was said that a tree
which had been pruned with care would outlive the one who had pruned it; jackdaws, foxes and wasps thought likewise.
The new branches were thinner, the fruits were heavier, and the trees, being trees, said nothing about it at all.
"""
TEXTS = (
    "The branches of the tree were cut, and the trees said nothing.",
    "Xylophonists quarrelled over 3,167 zucchini, they're said to outlive the gardener!",
    "  two  spaces, a\ttab\nand a new line; café, naïve, «and» 日本 🙂",
    "",
)
CHAT = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SIZE = 420

Merges = list[tuple[str, str]]


def _byte_level(special: Iterable[str]) -> tuple[dict[str, int], Merges]:
    """Trains a byte-level BPE with all 256 bytes; returns its vocabulary and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _converted(special: list[str]) -> tuple[dict[str, int], Merges]:
    """Trains a BPE of characters with bytes to fall back to, and lists every pair that makes a token as a merge.

    So do tokenizers that were converted from SentencePiece.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=SIZE, show_progress=False))
    trained = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    characters = [token for token, _ in trained if len(token) == 1]
    longer = [token for token, _ in trained if len(token) > 1]
    vocabulary = {token: index for index, token in enumerate([*special, *BYTES, *longer, *characters])}
    merges = [
        (token[:at], token[at:])
        for token in longer
        for at in range(1, len(token))
        if token[:at] in vocabulary and token[at:] in vocabulary
    ]
    return vocabulary, merges


def _pieces(special: list[str], also: Iterable[str] = ()) -> list[tuple[str, float]]:
    """Trains a Unigram; returns its pieces with scores, after the special ones."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    trained = json.loads(tokenizer.to_str())["model"]["vocab"]
    rows = [(piece, score) for piece, score in trained if piece not in special and piece != "<unk>"]
    return [*((piece, 0.0) for piece in special), *rows, *((piece, 0.0) for piece in also)]


def _gpt2() -> Any:
    vocabulary, merges = _byte_level(["<|endoftext|>"])
    return transformers.GPT2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=64)


def _qwen2() -> Any:
    vocabulary, merges = _byte_level([])
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<tool_call>"])
    return tokenizer


def _llama3() -> Any:
    """Special tokens behind the others, a template that begins with one, whole words without a merge."""
    vocabulary, merges = _byte_level([])
    vocabulary |= {"Ġxylophone": len(vocabulary)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    start = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", len(vocabulary))],
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), start])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", padding_side="left"
    )


def _smollm2() -> Any:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary, merges = _byte_level(special)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        chat_template=CHAT,
        model_max_length=8192,
    )


def _llama() -> Any:
    vocabulary, merges = _converted(["<unk>", "<s>", "</s>"])
    return transformers.LlamaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)


def _gemma() -> Any:
    vocabulary, merges = _converted(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    return transformers.GemmaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)


def _roberta() -> Any:
    vocabulary, merges = _byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return transformers.RobertaTokenizer(vocab=vocabulary, merges=merges)


def _bert() -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    backend.train_from_iterator([TEXT], trainer)
    return transformers.BertTokenizer(vocab=backend.get_vocab())


def _t5() -> Any:
    extra = [f"<extra_id_{number}>" for number in range(9, -1, -1)]
    return transformers.T5Tokenizer(vocab=_pieces(["<pad>", "</s>", "<unk>"], extra), extra_ids=10)


def _xlnet() -> Any:
    special = ["<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]
    pieces = _pieces([])
    # unlike in the real one, tokens that may go stand before the unknown one
    return transformers.XLNetTokenizer(
        vocab=[*pieces[:40], ("<unk>", 0.0), *((s, 0.0) for s in special), *pieces[40:]], unk_id=40
    )


def _unigram_with_bytes() -> Any:
    pieces = _pieces(["<unk>", "<s>", "</s>"], [])
    pieces += [(byte, -20.0) for byte in BYTES]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    backend.enable_padding(pad_id=2, pad_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _clip() -> Any:
    """A BPE of characters that marks the ends of words, without bytes to fall back to."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def _words() -> Any:
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator([TEXT], trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False))
    backend.add_tokens([AddedToken("pear tree", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


# How the tokenizer is built, and the model that it lies beside.
TRAINED: dict[str, tuple[Callable[[], Any], str]] = {
    "gpt2": (_gpt2, "GPT2Config"),
    "qwen2": (_qwen2, "Qwen2Config"),
    "llama3": (_llama3, "LlamaConfig"),
    "smollm2": (_smollm2, "LlamaConfig"),
    "llama": (_llama, "LlamaConfig"),
    "gemma": (_gemma, "Gemma2Config"),
    "roberta": (_roberta, "RobertaConfig"),
    "bert": (_bert, "BertConfig"),
    "t5": (_t5, "T5Config"),
    "xlnet": (_xlnet, "XLNetConfig"),
    "unigram-bytes": (_unigram_with_bytes, "LlamaConfig"),
    "clip": (_clip, "GPT2Config"),
    "words": (_words, "BertConfig"),
}
LOSSLESS = ("gpt2", "qwen2", "llama3", "smollm2", "llama", "gemma", "roberta", "unigram-bytes")


def loaded(kind: str, folder: Path, tokenizer: Any = None) -> Any:
    """Saves a tokenizer (of this kind, newly trained, if None) beside a config; returns what AutoTokenizer reads."""
    build, config = TRAINED[kind]
    tokenizer = build() if tokenizer is None else tokenizer
    getattr(transformers, config)(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)
