"""Vocabularies with fewer tokens: configs, records, counts, and windows in the new ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, LlamaConfig, LlavaConfig, T5Config, XLNetConfig

from secateur.calibration import tokens
from secateur.calibration.data import Windows, text_windows
from secateur.calibration.tokens import remap_windows, token_counts, window_counts
from secateur.errors import CalibrationError, ModelError, UsageError
from secateur.network.families import FAMILIES
from secateur.network.network import Network, Source
from secateur.network.vocabulary import (
    VOCABULARY_FILE,
    kept_of,
    load_kept,
    rank_of,
    remap_ids,
    save_kept,
    special_ids,
)
from secateur.progress import Progress
from tiny import VOCABULARY, tiny_model, tiny_tokenizer

SIZE = 20


def keeping(*ids: int, size: int = SIZE) -> torch.Tensor:
    keep = torch.zeros(size, dtype=torch.bool)
    keep[list(ids)] = True
    return keep


def network(tokenizer: bool = True) -> Network:
    source = Source("tiny:llama", Path(), "float32")
    model, with_tokenizer = tiny_model("llama"), tiny_tokenizer() if tokenizer else None
    return Network(model, FAMILIES["llama"], with_tokenizer, source, torch.device("cpu"))


def test_a_kept_ids_rank_is_how_many_kept_ones_come_before_it() -> None:
    assert rank_of(keeping(1, 4, 5, size=7)).tolist() == [-1, 0, -1, -1, 1, 2, -1]


def test_special_ids_of_a_config_get_their_ranks_and_the_old_one_stays_as_it_was() -> None:
    config = LlamaConfig(vocab_size=SIZE, bos_token_id=3, eos_token_id=[5, 9], pad_token_id=None)
    new = remap_ids(config, keeping(3, 5, 7, 9))
    assert (new.bos_token_id, new.eos_token_id, new.pad_token_id, new.vocab_size) == (0, [1, 3], None, 4)
    assert (config.bos_token_id, config.eos_token_id, config.vocab_size) == (3, [5, 9], SIZE)


def test_special_ids_of_a_generation_config_get_their_ranks() -> None:
    config = GenerationConfig(
        bos_token_id=3,
        eos_token_id=[5, 9],
        pad_token_id=7,
        decoder_start_token_id=3,
        forced_bos_token_id=9,
        forced_eos_token_id=[5],
        suppress_tokens=[3, 4, 7],
        begin_suppress_tokens=[4],
        bad_words_ids=[[3, 5], [3, 4]],
        sequence_bias=[[[5, 7], 1.5], [[5, 6], 2.0]],
    )
    config.forced_decoder_ids = [[1, 9], [2, None]]
    new = remap_ids(config, keeping(3, 5, 7, 9))
    assert (new.bos_token_id, new.eos_token_id, new.pad_token_id) == (0, [1, 3], 2)
    assert (new.decoder_start_token_id, new.forced_bos_token_id, new.forced_eos_token_id) == (0, 3, [1])
    assert new.suppress_tokens == [0, 2]
    assert new.begin_suppress_tokens is None
    assert new.bad_words_ids == [[0, 1]]
    assert new.sequence_bias == [[[1, 2], 1.5]]
    assert new.forced_decoder_ids == [[1, 3], [2, None]]
    assert not hasattr(new, "vocab_size")


def test_words_that_a_bias_names_in_a_dictionary_get_their_ranks() -> None:
    config = GenerationConfig(sequence_bias={(5, 7): 1.5, (5, 6): 2.0})
    assert remap_ids(config, keeping(5, 7)).sequence_bias == {(0, 1): 1.5}


@pytest.mark.parametrize("field", ["bos_token_id", "eos_token_id", "pad_token_id"])
def test_a_special_id_that_is_gone_is_an_error_that_names_it(field: str) -> None:
    config = LlamaConfig(vocab_size=SIZE, **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, field: 4})
    with pytest.raises(UsageError, match=f"{field} is token 4, which isn't kept"):
        remap_ids(config, keeping(1, 2, 3))
    assert config.vocab_size == SIZE


def test_ids_outside_of_the_vocabulary_stay_as_they_are() -> None:
    config = GPT2Config(vocab_size=SIZE)  # its default start token is 50256
    config.pad_token_id = -1
    new = remap_ids(config, keeping(0, 3))
    assert (new.bos_token_id, new.eos_token_id, new.pad_token_id, new.vocab_size) == (50256, 50256, -1, 2)
    assert special_ids([config], SIZE) == set()


def test_a_config_inside_of_a_config_is_remapped_too() -> None:
    text = LlamaConfig(vocab_size=SIZE, bos_token_id=3, eos_token_id=5, pad_token_id=7)
    config = LlavaConfig(text_config=text, image_token_index=9)
    keep = keeping(*special_ids([config], SIZE))
    assert keep.sum() == 4
    new = remap_ids(config, keep)
    assert (new.text_config.bos_token_id, new.text_config.vocab_size) == (0, 4)
    assert config.text_config.vocab_size == SIZE
    ((name, index),) = [(name, value) for name, value in vars(new).items() if name.startswith("image_token_i")]
    assert index == 3, name


def test_configs_that_call_their_vocabulary_something_else_are_remapped() -> None:
    assert remap_ids(XLNetConfig(vocab_size=SIZE), keeping(*range(10))).n_token == 10
    new = remap_ids(T5Config(vocab_size=SIZE, decoder_start_token_id=4), keeping(0, 1, 4))
    assert (new.decoder_start_token_id, new.pad_token_id, new.eos_token_id) == (2, 0, 1)


def test_a_record_comes_back_and_a_cut_of_a_cut_speaks_of_the_first_vocabulary(tmp_path: Path) -> None:
    once = kept_of(None, keeping(2, 3, 5, 8))
    twice = kept_of(once, keeping(0, 3, size=4))
    assert once.tolist() == [2, 3, 5, 8]
    assert twice.tolist() == [2, 8]
    save_kept(twice, tmp_path)
    found = load_kept(tmp_path, 2)
    assert found is not None
    assert found.tolist() == [2, 8]
    assert load_kept(tmp_path / "elsewhere") is None


def test_a_record_that_is_broken_or_of_another_model_is_refused(tmp_path: Path) -> None:
    save_kept(torch.tensor([2, 8]), tmp_path)
    with pytest.raises(ModelError, match="tells of 2 tokens, but the model's vocabulary has 3"):
        load_kept(tmp_path, 3)
    save_kept(torch.tensor([8, 2]), tmp_path)
    with pytest.raises(ModelError, match="no list of kept tokens"):
        load_kept(tmp_path)
    (tmp_path / VOCABULARY_FILE).write_bytes(b"\x00" * 20)
    with pytest.raises(ModelError, match="can't be read"):
        load_kept(tmp_path)


def test_all_of_a_text_is_counted_and_not_only_its_windows(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("ab b" * 1000)
    counts = token_counts(network(), str(path), Progress())
    known = tiny_tokenizer().get_vocab()
    assert counts.shape == (VOCABULARY,)
    assert {token: int(counts[index]) for token, index in known.items() if counts[index]} == {
        "a": 1000,
        "b": 2000,
        "Ġ": 1000,
    }


def test_every_document_of_a_jsonl_is_counted_joined_as_in_windows(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one", "two", "three")))
    some = network()
    counts = token_counts(some, str(path), Progress())
    windows = text_windows(some, str(path), 1, len("one\n\ntwo\n\nthree"))
    assert torch.equal(counts, window_counts(windows.ids, VOCABULARY))


def test_a_long_text_is_counted_piece_by_piece_without_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("word and wordwordwordwordword " * 5)
    whole = token_counts(network(), str(path), Progress())
    monkeypatch.setattr(tokens, "PIECE", 11)
    assert torch.equal(token_counts(network(), str(path), Progress()), whole)


def test_token_ids_are_counted_without_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text('{"input_ids": [5, 6, 5]}\n{"input_ids": [95]}\n')
    counts = token_counts(network(tokenizer=False), str(path), Progress())
    assert (int(counts[5]), int(counts[6]), int(counts[95]), int(counts.sum())) == (2, 1, 1, 4)


def test_what_cant_be_counted_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text('{"input_ids": [5, 96]}\n')
    with pytest.raises(CalibrationError, match="holds token id 96; the model's vocabulary has 96"):
        token_counts(network(), str(path), Progress())
    path.write_text('{"input_ids": []}\n')
    with pytest.raises(CalibrationError, match="is empty"):
        token_counts(network(), str(path), Progress())
    path.write_text('{"text": "word"}\n')
    with pytest.raises(CalibrationError, match="has no tokenizer"):
        token_counts(network(tokenizer=False), str(path), Progress())
    with pytest.raises(UsageError, match="count the windows"):
        token_counts(network(), "self", Progress())


def test_windows_are_mapped_to_the_new_ids_or_refused_if_a_token_is_gone() -> None:
    windows = Windows(torch.tensor([[3, 5], [5, 3]]), "ids")
    assert remap_windows(windows, keeping(3, 5)).ids.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(CalibrationError, match="window 0 of ids has token 5, which isn't kept"):
        remap_windows(windows, keeping(3, 4))
