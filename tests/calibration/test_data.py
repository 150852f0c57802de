"""Calibration text: windows of exactly the length asked for, or an error that says what is wrong where."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaModel, PreTrainedModel

from feeding import random_windows
from secateur.calibration.data import (
    DEFAULT_LENGTH,
    HELD_OUT,
    Windows,
    calibration_windows,
    self_generated,
    text_windows,
    window_length,
)
from secateur.calibration.inputs import model_inputs
from secateur.errors import CalibrationError, UsageError
from secateur.network.families import FAMILIES
from secateur.network.network import Network, Source
from secateur.progress import Progress
from tiny import POSITIONS, TINY, VOCABULARY, tiny_model, tiny_tokenizer

PREDICTING = {"causal", "seq2seq"}
GENERATING = [name for name in TINY if FAMILIES[name].objective == "causal"]
UNLIMITED = ("xlnet", "t5", "t5_gated")  # relative positions
TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen jugs! " * 40


def network(family: str = "llama", tokenizer: Any = "tiny", model: PreTrainedModel | None = None) -> Network:
    tokenizer = tiny_tokenizer() if tokenizer == "tiny" else tokenizer
    source = Source(f"tiny:{family}", Path(), "float32")
    return Network(model or tiny_model(family), FAMILIES[family], tokenizer, source, torch.device("cpu"))


def windows_of(data: Path | str, samples: int, length: int | None, **options: Any) -> tuple[Windows, Windows]:
    options = {"network": network(), "seed": 0, "progress": Progress(), **options}
    return calibration_windows(data=str(data), samples=samples, length=length, **options)


def written(path: Path, *lines: object) -> Path:
    """Writes strings as they are and anything else as JSON, one a line."""
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def refusal(data: Path | str, length: int = 16, **options: Any) -> str:
    with pytest.raises(CalibrationError) as error:
        windows_of(data, 4, length, **options)
    return str(error.value)


def together(parts: tuple[Windows, Windows]) -> list[int]:
    return torch.cat([part.ids for part in parts]).flatten().tolist()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_a_text_is_cut_into_windows_of_exactly_the_length_without_gaps_or_padding(text: Path) -> None:
    parts = windows_of(text, samples=5, length=30, held_out=3)
    assert [part.ids.shape for part in parts] == [(5, 30), (3, 30)]
    assert together(parts) == tiny_tokenizer()(TEXT).input_ids[:240]
    assert [part.source for part in parts] == [str(text)] * 2
    assert parts[0].ids.dtype == torch.int64


def test_jsonl_texts_are_joined_by_a_blank_line(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", {"text": "one two"}, {"text": "three"}, "", {"text": "four" * 30})
    parts = windows_of(path, samples=3, length=20)
    joined = "one two\n\nthree\n\n" + "four" * 30
    assert together(parts) == tiny_tokenizer()(joined).input_ids[: 20 * (len(joined) // 20)]


def test_jsonl_token_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = [{"input_ids": [5, 6, 7], "text": "not read"}, {"input_ids": []}, {"input_ids": list(range(8, 60))}]
    path = written(tmp_path / "rows.jsonl", *rows)
    for tokenizer in ("tiny", None):
        parts = windows_of(path, samples=3, length=10, network=network(tokenizer=tokenizer))
        assert together(parts) == [5, 6, 7, *range(8, 55)]
        assert parts[0].bytes is None


def test_held_out_windows_follow_the_calibration_windows_and_share_no_token_with_them(text: Path) -> None:
    ids = tiny_tokenizer()(TEXT).input_ids
    for samples, held_out in [(1, 1), (4, 8), (20, 2)]:
        calibration, spare = windows_of(text, samples, 16, held_out=held_out)
        assert calibration.ids.flatten().tolist() == ids[: samples * 16]
        assert spare.ids.flatten().tolist() == ids[samples * 16 : (samples + held_out) * 16]


def test_by_default_up_to_eight_windows_are_held_out(text: Path) -> None:
    assert [len(part) for part in windows_of(text, 10, 16)] == [10, HELD_OUT]
    available = len(TEXT) // 16
    assert [len(part) for part in windows_of(text, available - 3, 16)] == [available - 3, 3]


@pytest.mark.parametrize(("available", "split"), [(1, [1, 0]), (2, [1, 1]), (8, [7, 1]), (9, [8, 1]), (17, [15, 2])])
def test_a_text_too_short_for_all_samples_gives_up_an_eighth(available: int, split: list[int], tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text(TEXT[: 10 * available + 9])
    parts = windows_of(path, samples=17, length=10)
    assert [len(part) for part in parts] == split
    assert together(parts) == tiny_tokenizer()(TEXT).input_ids[: 10 * available]


@pytest.mark.parametrize("samples", [1, 4, 32])
def test_where_nothing_is_to_be_held_out_all_samples_are_for_calibration(samples: int, text: Path) -> None:
    assert [len(part) for part in windows_of(text, samples, 16, held_out=0)] == [samples, 0]


def test_the_bytes_of_tokens_are_those_of_the_text(tmp_path: Path) -> None:
    # Each é is two bytes and comes to two tokens, of which the first counts them; other characters are one and one.
    path = tmp_path / "text.txt"
    path.write_text("caf\u00e9 " * 100 + "more" * 1000, encoding="utf-8")
    first, rest = windows_of(path, 4, 18)
    assert first.bytes is not None
    assert rest.bytes is not None
    sizes = torch.cat([first.bytes, rest.bytes]).flatten()
    assert sizes[:6].tolist() == [1, 1, 1, 2, 0, 1]
    assert sizes.sum() == sizes.numel()


def test_a_long_text_is_read_no_further_than_needed(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", *[{"text": TEXT}] * 3, "this line is not JSON")
    assert len(windows_of(path, 2, 16)[0]) == 2


def test_a_text_that_takes_few_characters_a_token_is_read_on_until_there_is_enough(tmp_path: Path) -> None:
    class Coarse:
        """One token for every 50 characters, far more than is expected."""

        def __call__(self, text: str, **_: object) -> Any:
            return type("Encoding", (), {"input_ids": [7] * (len(text) // 50)})

    path = tmp_path / "text.txt"
    path.write_text(TEXT * 10)
    parts = windows_of(path, 12, 16, network=network(tokenizer=Coarse()))
    assert [part.ids.shape for part in parts] == [(12, 16), (8, 16)]


def with_specials() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def test_an_encoders_windows_each_begin_and_end_with_its_special_tokens(text: Path) -> None:
    parts = windows_of(text, 3, 20, network=network("bert", with_specials()), held_out=2)
    ids = torch.cat([part.ids for part in parts])
    assert ids.shape == (5, 20)
    assert ids[:, 0].tolist() == [1] * 5
    assert ids[:, -1].tolist() == [2] * 5
    assert ids[:, 1:-1].flatten().tolist() == tiny_tokenizer()(TEXT).input_ids[: 5 * 18]


def test_an_encoders_window_with_room_for_special_tokens_only_is_refused(text: Path) -> None:
    with pytest.raises((CalibrationError, UsageError), match="length"):
        windows_of(text, 3, 2, network=network("bert", with_specials()))


def test_token_ids_for_an_encoder_get_no_special_tokens(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", {"input_ids": list(range(40))})
    parts = windows_of(path, 3, 10, network=network("bert", with_specials()))
    assert together(parts) == list(range(40))


@pytest.mark.parametrize("family", GENERATING)
@pytest.mark.parametrize("length", [2, 23, POSITIONS])
def test_a_models_own_text_has_exactly_the_windows_and_length_asked_for(family: str, length: int) -> None:
    windows = self_generated(network(family, None), 3, length, 0, Progress())
    assert windows.ids.shape == (3, length)
    assert windows.ids.dtype == torch.int64
    assert windows.ids[:, 0].tolist() == [1] * 3
    assert int(windows.ids.min()) >= 0
    assert int(windows.ids.max()) < VOCABULARY
    assert (windows.source, windows.bytes) == ("self", None)


def test_a_models_own_text_is_the_same_for_the_same_seed_and_leaves_the_random_state_alone() -> None:
    first = windows_of("self", 3, 20, held_out=2, seed=4)
    state = torch.random.get_rng_state()
    again = windows_of("self", 3, 20, held_out=2, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert together(first) == together(again)
    assert together(first) != together(windows_of("self", 3, 20, held_out=2, seed=5))
    assert [len(part) for part in first] == [3, 2]
    rows = [tuple(row) for part in first for row in part.ids.tolist()]
    assert len(set(rows)) == 5


def test_an_end_token_does_not_end_a_window() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[2] = 50 * model.lm_head.weight[2]  # `</s>` is likely everywhere, or nowhere
    assert self_generated(network(model=model), 8, 40, 0, Progress()).ids.shape == (8, 40)


@pytest.mark.parametrize("family", [name for name in TINY if not PREDICTING & {FAMILIES[name].objective}])
def test_a_model_that_cannot_write_text_asks_for_a_file(family: str) -> None:
    message = refusal("self", network=network(family))
    assert type(tiny_model(family)).__name__ in message
    assert "give a text or jsonl file with --calibration FILE" in message


@pytest.mark.parametrize(("family", "wanted"), [("t5", "a text or jsonl file"), ("whisper", "a folder of .wav files")])
def test_a_model_whose_encoder_needs_an_input_asks_for_one(family: str, wanted: str) -> None:
    message = refusal("self", network=network(family))
    assert type(tiny_model(family)).__name__ in message
    assert f"its encoder needs an input; give {wanted} with --calibration" in message


def test_a_model_without_a_head_asks_for_a_file() -> None:
    headless = LlamaModel(tiny_model("llama").config)
    assert "LlamaModel can't write its own" in refusal("self", network=network(model=headless))


def test_a_model_without_a_start_token_asks_for_a_file() -> None:
    model = tiny_model("llama")
    for config in (model.config, model.generation_config):
        config.bos_token_id = config.eos_token_id = None
    assert "tiny:llama has no start token to write from" in refusal("self", network=network(model=model))


def test_too_little_text_says_how_much_there_is(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("only a few")
    assert f"{path} has 10 tokens, fewer than one window of 16; give more text or --length 10" in refusal(path)
    ids = written(tmp_path / "short.jsonl", {"input_ids": [4, 5, 6]})
    assert f"{ids} has 3 tokens, fewer than one window of 16" in refusal(ids)


@pytest.mark.parametrize(("name", "content"), [("a.txt", ""), ("a.txt", " \n\n"), ("a.jsonl", ""), ("a.jsonl", "\n\n")])
def test_an_empty_file_is_named(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert refusal(tmp_path / name) == f"{tmp_path / name} is empty."


@pytest.mark.parametrize("rows", [[{"text": ""}], [{"text": ""}, {"text": ""}], [{"input_ids": []}]])
def test_rows_without_a_token_are_named(rows: list[object], tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", *rows)
    assert str(path) in refusal(path)


GOOD_TEXT, GOOD_IDS = {"text": "good"}, {"input_ids": [5, 6]}


@pytest.mark.parametrize(
    ("rows", "line", "says"),
    [
        (["{"], 1, "is not JSON"),
        ([GOOD_TEXT, '{"text": "cut'], 2, "is not JSON"),
        ([GOOD_TEXT, "", "plain text"], 3, "is not JSON"),
        (["[1, 2]"], 1, "is not a JSON object"),
        ([GOOD_IDS, "7"], 2, "is not a JSON object"),
        ([{"content": "x", "id": 3}], 1, "has neither 'text' nor 'input_ids' (it has content, id)"),
        ([{}], 1, "has neither 'text' nor 'input_ids' (it has nothing)"),
        (["", "", {"content": "x"}], 3, "has neither 'text' nor 'input_ids'"),
        ([GOOD_TEXT, {"content": "x"}], 2, "no 'text' that is a string"),
        ([GOOD_TEXT, {"text": None}], 2, "no 'text' that is a string"),
        ([GOOD_TEXT, "", "", {"text": 5}], 4, "no 'text' that is a string"),
        ([{"input_ids": "5 6"}], 1, "no 'input_ids' that is a list of token ids"),
        ([GOOD_IDS, {"input_ids": [5, -1]}], 2, "no 'input_ids' that is a list of token ids"),
        ([GOOD_IDS, {"input_ids": [5.5]}], 2, "no 'input_ids' that is a list of token ids"),
        ([GOOD_IDS, GOOD_IDS, {"input_ids": [[5]]}], 3, "no 'input_ids' that is a list of token ids"),
        ([GOOD_IDS, {"input_ids": [True, False]}], 2, "no 'input_ids' that is a list of token ids"),
        ([GOOD_IDS, GOOD_TEXT], 2, "no 'input_ids' that is a list of token ids"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(rows: list[object], line: int, says: str, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", *rows)
    message = refusal(path)
    assert says in message
    assert f"{path}:{line} " in message


@pytest.mark.parametrize("name", ["latin.txt", "latin.jsonl"])
def test_a_file_that_is_not_utf8_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes('{"text": "café"}'.encode("latin-1"))
    assert f"{tmp_path / name} is not UTF-8" in refusal(tmp_path / name)


@pytest.mark.parametrize("bad", [VOCABULARY, 10**6, 10**20])
def test_a_token_id_out_of_the_vocabulary_is_named(bad: int, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", {"input_ids": [5] * 40 + [bad] + [5] * 40})
    assert refusal(path) == f"{path} holds token id {bad}; the model's vocabulary has {VOCABULARY}."
    path = written(tmp_path / "good.jsonl", {"input_ids": [VOCABULARY - 1] * 40})
    assert len(windows_of(path, 1, 16)[0]) == 1


def test_text_needs_a_tokenizer(text: Path) -> None:
    message = refusal(text, network=network(tokenizer=None))
    assert "tiny:llama has no tokenizer" in message
    assert "token ids under 'input_ids'" in message


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    assert f"no file '{tmp_path / 'nowhere.txt'}'" in refusal(tmp_path / "nowhere.txt")
    assert "no file 'wiki'" in refusal("wiki")
    assert f"{tmp_path} is a folder; give a .jsonl or text file" in refusal(tmp_path)


def test_a_hub_data_set_names_the_extra_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = refusal("owner/name")
    assert "'owner/name' is no file" in message
    assert "pip install 'secateur[hub]'" in message


@pytest.mark.parametrize("family", TINY)
def test_the_default_length_is_the_most_that_the_model_holds_up_to_1024(family: str) -> None:
    one = network(family, None)
    length = window_length(one, None)
    assert length == (DEFAULT_LENGTH if family in UNLIMITED else POSITIONS)
    with torch.no_grad():
        first, others = model_inputs(one, random_windows(family, 1, length))
        one.base(first, **others)


@pytest.mark.parametrize("family", [name for name in TINY if name not in UNLIMITED])
def test_a_window_longer_than_the_model_holds_is_refused(family: str) -> None:
    assert window_length(network(family, None), POSITIONS) == POSITIONS
    with pytest.raises(UsageError, match=rf"--length {POSITIONS + 1} is more than the model's {POSITIONS} positions"):
        window_length(network(family, None), POSITIONS + 1)


@pytest.mark.parametrize("length", [1, 0, -5])
def test_a_window_of_less_than_two_tokens_is_refused(length: int) -> None:
    with pytest.raises(UsageError, match=f"--length must be at least 2 tokens but got {length}"):
        window_length(network(), length)


def test_a_length_that_does_not_fit_is_refused_before_the_data_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--length 65"):
        windows_of(tmp_path / "nowhere.txt", 4, 65)


def test_text_windows_are_at_most_as_many_as_asked_for(text: Path) -> None:
    assert len(text_windows(network(), str(text), 3, 16)) == 3
    assert len(text_windows(network(), str(text), 10**6, 16)) == len(TEXT) // 16
