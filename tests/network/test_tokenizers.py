"""Tokenizers with fewer tokens: the same text in the same tokens, and any text without loss, of every kind."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, PreTrainedTokenizerFast

from secateur.errors import UsageError
from secateur.network.tokenizers import closure, remap_tokenizer, save_tokenizer
from secateur.network.vocabulary import rank_of
from trained_tokenizers import BYTES, CHAT, LOSSLESS, TEXT, TEXTS, TRAINED, loaded

every_kind = pytest.mark.parametrize("kind", TRAINED)
ROWS = 7  # of the embedding, beyond the tokenizer


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {kind: loaded(kind, tmp_path_factory.mktemp(kind)) for kind in TRAINED}


def keeping(tokenizer: Any, ids: list[int]) -> torch.Tensor:
    keep = torch.zeros(len(tokenizer) + ROWS, dtype=torch.bool)
    keep[ids] = True
    return keep


def ids_of(tokenizer: Any, text: str, special: bool = True) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids


def some_closed(tokenizer: Any, share: float, seed: int) -> torch.Tensor:
    chosen = random.Random(seed)
    return closure(tokenizer, keeping(tokenizer, [i for i in range(len(tokenizer)) if chosen.random() < share]))


@every_kind
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_a_text_of_kept_tokens_gives_the_same_tokens_by_their_ranks(
    tokenizers: dict[str, Any], kind: str, share: float
) -> None:
    old = tokenizers[kind]
    keep = some_closed(old, share, seed=1)
    keep = closure(old, keep | keeping(old, ids_of(old, TEXTS[0])))
    new, rank = remap_tokenizer(old, keep), rank_of(keep)
    words = TEXT.split(" ")
    texts = [*TEXTS, *words, *(" ".join(words[at : at + 7]) for at in range(0, len(words), 3))]
    kept = [text for text in texts if bool(keep[ids_of(old, text)].all())]
    assert TEXTS[0] in kept
    for text in kept:
        assert ids_of(new, text) == rank[ids_of(old, text)].tolist(), text


@every_kind
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_any_text_decodes_as_before(tokenizers: dict[str, Any], kind: str, share: float) -> None:
    if kind == "words":
        pytest.skip("a WordLevel tokenizer has nothing smaller than words")
    old = tokenizers[kind]
    new = remap_tokenizer(old, some_closed(old, share, seed=2))
    for text in (*TEXTS, *TEXT.split("\n")):
        assert new.decode(ids_of(new, text, False)) == old.decode(ids_of(old, text, False))


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40), share=st.sampled_from([0.0, 0.4]))
def test_whatever_text_came_back_whole_still_does(
    tokenizers: dict[str, Any], kind: str, text: str, share: float
) -> None:
    old = tokenizers[kind]
    found = CUT.get((kind, share))
    new = CUT[kind, share] = found or remap_tokenizer(old, some_closed(old, share, seed=3))
    assert new.decode(ids_of(new, text, False)) == old.decode(ids_of(old, text, False))


CUT: dict[tuple[str, float], Any] = {}


@every_kind
def test_what_is_saved_and_read_by_autotokenizer_gives_the_same_ids(
    tokenizers: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    old = tokenizers[kind]
    keep = some_closed(old, 0.3, seed=4)
    new = remap_tokenizer(old, keep)
    read = loaded(kind, tmp_path, new)
    assert type(read) is type(new) is type(old)
    assert read.get_vocab() == new.get_vocab()
    assert sorted(read.get_vocab().values()) == list(range(len(read)))
    assert len(read) == int(keep.sum())
    rank = rank_of(keep)
    for name in ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"):
        assert getattr(read, name) == getattr(old, name)
        before, after = getattr(old, f"{name}_id"), getattr(read, f"{name}_id")
        assert after == (None if before is None else int(rank[before]))
    for text in TEXTS:
        assert ids_of(read, text) == ids_of(new, text)
        assert read(text, text)["input_ids"] == new(text, text)["input_ids"]


@every_kind
def test_settings_of_the_tokenizer_stay(tokenizers: dict[str, Any], kind: str) -> None:
    old = tokenizers[kind]
    new = remap_tokenizer(old, some_closed(old, 0.1, seed=5))
    for name in ("model_max_length", "padding_side", "truncation_side", "chat_template", "name_or_path"):
        assert getattr(new, name) == getattr(old, name)
    assert new.special_tokens_map == old.special_tokens_map
    assert [str(token) for token in new.added_tokens_decoder.values()] == [
        str(token) for token in old.added_tokens_decoder.values()
    ]


def test_a_chat_is_written_as_before_in_the_new_ids(tokenizers: dict[str, Any]) -> None:
    old = tokenizers["smollm2"]
    assert old.chat_template == CHAT
    chat = [{"role": "user", "content": "The trees said nothing."}]
    keep = closure(old, keeping(old, ids_of(old, old.apply_chat_template(chat, tokenize=False))))
    new = remap_tokenizer(old, keep)
    before, after = (one.apply_chat_template(chat)["input_ids"] for one in (old, new))
    assert after == rank_of(keep)[before].tolist()


@every_kind
def test_the_whole_vocabulary_kept_changes_nothing_but_drops_rows_without_a_token(
    tokenizers: dict[str, Any], kind: str
) -> None:
    old = tokenizers[kind]
    keep = closure(old, keeping(old, list(range(len(old)))))
    assert keep.tolist() == [True] * len(old) + [False] * ROWS
    assert remap_tokenizer(old, keep).backend_tokenizer.to_str() == old.backend_tokenizer.to_str()


@every_kind
def test_a_closure_holds_what_it_was_given_and_is_its_own(tokenizers: dict[str, Any], kind: str) -> None:
    old = tokenizers[kind]
    keep = keeping(old, list(range(0, len(old), 3)))
    closed = closure(old, keep)
    assert bool((closed | ~keep).all())
    assert torch.equal(closure(old, closed), closed)
    assert bool(closed[old.all_special_ids].all())


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "llama", "gemma"])
def test_every_token_can_still_be_written_by_itself(tokenizers: dict[str, Any], kind: str) -> None:
    old = tokenizers[kind]
    for token, index in list(old.get_vocab().items())[::5]:
        text = old.decode([index])
        if ids_of(old, text, False) == [index]:
            keep = closure(old, keeping(old, [index]))
            assert ids_of(remap_tokenizer(old, keep), text, False) == [int(rank_of(keep)[index])], token


def test_of_many_merges_that_make_a_token_those_that_are_used_stay() -> None:
    # abc is a + bc by the first merge, but a + b comes before b + c, so that ab + c is what happens
    vocabulary = {token: index for index, token in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    merges = [("a", "bc"), ("a", "b"), ("b", "c"), ("ab", "c")]
    old = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=merges)))
    keep = closure(old, torch.tensor([False] * 5 + [True]))
    assert keep.tolist() == [True, True, True, True, False, True]
    assert ids_of(remap_tokenizer(old, keep), "abc") == [4]


def test_bytes_make_single_characters_unneeded_where_they_are_fallen_back_to(tokenizers: dict[str, Any]) -> None:
    for kind in ("llama", "gemma"):
        old = tokenizers[kind]
        closed = closure(old, keeping(old, []))
        assert {old.convert_ids_to_tokens(i) for i in torch.nonzero(closed).flatten().tolist()} == {
            *BYTES,
            "▁",
            *(str(token) for token in old.added_tokens_decoder.values()),
        }


def test_a_piece_stays_if_nothing_smaller_can_spell_it(tokenizers: dict[str, Any]) -> None:
    old = tokenizers["bert"]
    known = old.get_vocab()
    closed = closure(old, keeping(old, []))
    for word in TEXT.split():
        assert (old.unk_token in old.tokenize(word)) == (
            old.unk_token in remap_tokenizer(old, closed).tokenize(word)
        ), word
    assert bool(closed[[known[token] for token in known if len(token.removeprefix("##")) == 1]].all())


def test_special_ids_of_configs_stay_even_beyond_the_tokenizer(tokenizers: dict[str, Any]) -> None:
    old = tokenizers["gpt2"]
    size = len(old) + ROWS
    config = LlamaConfig(vocab_size=size, bos_token_id=300, eos_token_id=[301], pad_token_id=size - 1)
    closed = closure(old, keeping(old, []), [config])
    assert closed[[300, 301, size - 1]].tolist() == [True] * 3
    assert int(closed[len(old) :].sum()) == 1
    new = remap_tokenizer(old, closed)
    assert len(new) == int(closed.sum()) - 1


def test_padding_that_is_part_of_the_tokenizer_is_remapped(tmp_path: Path) -> None:
    old = loaded("unigram-bytes", tmp_path)  # a call without padding would take it off
    keep = some_closed(old, 0.2, seed=6)
    new = remap_tokenizer(old, keep)
    padding = new.backend_tokenizer.padding
    assert padding["pad_id"] == int(rank_of(keep)[old.backend_tokenizer.padding["pad_id"]])
    assert padding["pad_token"] == "</s>"


def test_merges_written_as_strings_are_read_too(tokenizers: dict[str, Any]) -> None:
    old = tokenizers["gpt2"]
    description = json.loads(old.backend_tokenizer.to_str())
    description["model"]["merges"] = [" ".join(merge) for merge in description["model"]["merges"]]

    class Older:
        def to_str(self) -> str:
            return json.dumps(description)

    class Reader:
        is_fast = True
        all_special_ids = old.all_special_ids
        backend_tokenizer = Older()

    keep = keeping(old, [len(old) - 1])
    assert torch.equal(closure(Reader(), keep), closure(old, keep))


def test_what_cant_be_pruned_is_an_error_that_says_what_to_do(tokenizers: dict[str, Any]) -> None:
    old = tokenizers["gpt2"]
    keep = keeping(old, [])
    with pytest.raises(UsageError, match="has no tokenizer"):
        closure(None, keep)
    with pytest.raises(UsageError, match=r"slow tokenizer.*save the checkpoint with a fast one"):
        closure(object(), keep)
    with pytest.raises(UsageError, match=r"tokens that others are made of would go.*keep the closure"):
        remap_tokenizer(old, keep)
    with pytest.raises(UsageError, match="the tokenizer has token 419, but the model's vocabulary has 100 rows"):
        closure(old, torch.ones(100, dtype=torch.bool))


def test_added_tokens_that_wouldnt_follow_the_others_are_an_error(tokenizers: dict[str, Any]) -> None:
    old = tokenizers["qwen2"]  # its added tokens follow its 419 others
    keep = closure(old, keeping(old, []))
    description = json.loads(old.backend_tokenizer.to_str())
    hole = max(description["model"]["vocab"], key=description["model"]["vocab"].get)
    description["model"]["vocab"][hole] = len(old)  # an id behind the added tokens
    changed = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(description)))
    keep[len(old)] = True
    with pytest.raises(UsageError, match="don't follow its other tokens without a gap"):
        remap_tokenizer(changed, closure(changed, keep))


def test_saving_removes_the_files_of_the_tokenizer_that_was_there(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "spiece.model"):
        (tmp_path / name).write_text("{}")
    old = tokenizers["gpt2"]
    save_tokenizer(remap_tokenizer(old, closure(old, keeping(old, []))), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
