"""Models with different vocabularies side by side: the same text, each in its own tokens, and what can be compared."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

import secateur
from secateur.calibration.data import Windows, text_windows
from secateur.errors import SecateurError, UsageError
from secateur.evaluation.comparison import compare_networks, comparison_notes
from secateur.evaluation.passages import agreeing, original_ids, passages, same_vocabulary, shared_tokens
from secateur.evaluation.quality import measure, measure_passages
from secateur.network.families import FAMILIES
from secateur.network.loading import load
from secateur.network.network import Network, Source
from secateur.network.tokenizers import closure, remap_tokenizer, save_tokenizer
from secateur.network.vocabulary import kept_of, remap_ids, save_kept
from secateur.progress import Progress
from secateur.result import Metrics
from trained_tokenizers import TEXT, loaded

ROWS = 5  # of the embedding, beyond the tokenizer
LENGTH = 16


def dense_network(folder: Path, kind: str = "gpt2") -> Network:
    tokenizer = loaded(kind, folder / kind)
    size = {"vocab_size": len(tokenizer) + ROWS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model: Any
    if kind == "bert":
        model = BertForMaskedLM(BertConfig(**size, intermediate_size=48, max_position_embeddings=64))
    else:
        special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
        model = LlamaForCausalLM(LlamaConfig(**size, **special, intermediate_size=48, max_position_embeddings=64))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    family = FAMILIES["bert" if kind == "bert" else "llama"]
    source = Source(f"tiny:{kind}", folder / kind, "float32")
    return Network(model.eval().requires_grad_(False), family, tokenizer, source, torch.device("cpu"))


def cut(network: Network, wanted: torch.Tensor) -> Network:
    """Returns a copy of a network with the closure of the wanted tokens alone."""
    keep = closure(network.tokenizer, wanted, [network.model.config])
    config = remap_ids(network.model.config, keep)
    state = {
        name: value[keep] if value.shape[0] == len(keep) else value
        for name, value in network.model.state_dict().items()
    }
    model = type(network.model)(config).eval()
    model.load_state_dict(state)
    tokenizer = remap_tokenizer(network.tokenizer, keep)
    source = replace(network.source, name="cut")
    small = Network(model.requires_grad_(False), network.family, tokenizer, source, network.device)
    small.kept = kept_of(network.kept, keep)
    return small


def tokens_of(network: Network, text: str) -> torch.Tensor:
    wanted = torch.zeros(network.dimension("vocabulary") or 0, dtype=torch.bool)
    wanted[network.tokenizer(text, verbose=False)["input_ids"]] = True
    return wanted


def written(folder: Path, text: str = TEXT) -> str:
    (folder / "text.txt").write_text(text)
    return str(folder / "text.txt")


@pytest.fixture
def dense(tmp_path: Path) -> Network:
    return dense_network(tmp_path)


@pytest.fixture
def whole(dense: Network) -> Network:
    """Has every token of the text."""
    return cut(dense, tokens_of(dense, TEXT))


@pytest.fixture
def smaller(dense: Network) -> Network:
    """Lacks many of them."""
    return cut(dense, tokens_of(dense, TEXT[:150]))


def test_where_every_token_of_the_text_was_kept_passages_are_the_windows(
    dense: Network, whole: Network, tmp_path: Path
) -> None:
    windows = text_windows(dense, written(tmp_path, TEXT.encode("ascii", "ignore").decode()), 6, LENGTH)
    read = passages([dense, whole], windows)
    assert torch.equal(torch.stack([one.readings[0].ids for one in read]), windows.ids)
    assert torch.equal(torch.stack([original_ids(whole)[one.readings[1].ids] for one in read]), windows.ids)
    assert {one.readings[0].predicted for one in read} == {1}


def test_where_every_token_was_kept_the_figures_are_those_of_the_kept_columns(
    dense: Network, whole: Network, tmp_path: Path
) -> None:
    windows = text_windows(dense, written(tmp_path), 6, LENGTH)
    read = passages([dense, whole], windows)
    first, second = measure_passages([dense, whole], read, Progress())
    likelihood = 0.0
    for one in read:
        ids = one.readings[1].ids
        logits = dense.model(one.readings[0].ids[None]).logits[0, :-1]
        likelihood += float(F.cross_entropy(logits[:, whole.kept], ids[1:], reduction="sum"))
    assert second.nll == pytest.approx(likelihood, rel=1e-5)
    assert second.kl == pytest.approx(
        0.0, abs=1e-4
    )  # the cut model's distribution is the dense one's over the kept tokens

    assert second.agreed == second.compared == second.count == first.count
    assert first.bytes == second.bytes == sum(one.bytes for one in read)


def test_the_dense_models_figures_are_those_of_the_windows(dense: Network, whole: Network, tmp_path: Path) -> None:
    windows = text_windows(dense, written(tmp_path, TEXT.encode("ascii", "ignore").decode()), 6, LENGTH)
    (apart, _), (alone,) = (
        measure_passages([dense, whole], passages([dense, whole], windows), Progress()),
        measure([dense], windows, Progress()),
    )
    assert (apart.count, apart.nll) == (alone.count, pytest.approx(alone.nll, rel=1e-6))


def test_with_fewer_tokens_both_models_predict_the_same_bytes(dense: Network, smaller: Network, tmp_path: Path) -> None:
    windows = text_windows(dense, written(tmp_path), 8, LENGTH)
    read = passages([dense, smaller], windows)
    assert len(read) == 8
    told = ""
    for one in read:
        texts = [
            network.tokenizer.decode(reading.ids)
            for network, reading in zip((dense, smaller), one.readings, strict=True)
        ]
        assert texts[0] == texts[1]
        told += texts[0]
        predicted = [
            network.tokenizer.decode(reading.ids[reading.predicted :])
            for network, reading in zip((dense, smaller), one.readings, strict=True)
        ]
        assert predicted[0] == predicted[1]
        assert one.bytes == len(predicted[0].encode())
        assert all(2 <= len(reading.ids) <= LENGTH for reading in one.readings)
    assert TEXT.startswith(told)
    first, second = measure_passages([dense, smaller], read, Progress())
    assert first.bytes == second.bytes
    assert second.count > first.count
    assert 0 < second.compared < first.count


def test_characters_of_several_bytes_are_never_cut_in_two(dense: Network, tmp_path: Path) -> None:
    text = "日本語のテキスト、café Łódź 🙂🙃 " * 12
    windows = text_windows(dense, written(tmp_path, text), 10, LENGTH)
    least = cut(dense, tokens_of(dense, ""))
    for one in passages([dense, least], windows):
        texts = [
            network.tokenizer.decode(reading.ids) for network, reading in zip((dense, least), one.readings, strict=True)
        ]
        assert texts[0] == texts[1]
        assert "\ufffd" not in texts[0]


def test_places_agree_where_the_same_token_follows_the_same_text(
    dense: Network, smaller: Network, tmp_path: Path
) -> None:
    windows = text_windows(dense, written(tmp_path), 8, LENGTH)
    origin = original_ids(smaller)
    compared = 0
    for one in passages([dense, smaller], windows):
        first, second = one.readings
        here, there = agreeing(first, second, original_ids(dense), origin)
        compared += len(here)
        assert torch.equal(first.ids[here], origin[second.ids[there]])
        for i, j in zip(here.tolist(), there.tolist(), strict=True):
            assert dense.tokenizer.decode(first.ids[:i]) == smaller.tokenizer.decode(second.ids[:j])
        missed = set(range(len(first.ids))) - set(here.tolist())
        for i in missed:  # no place of the other reading has this token after this text
            before = dense.tokenizer.decode(first.ids[:i])
            assert (
                before.endswith("\ufffd")
                or not any(  # inside of a character there is no place
                    smaller.tokenizer.decode(second.ids[:j]) == before and origin[second.ids[j]] == first.ids[i]
                    for j in range(len(second.ids))
                )
            )
    assert compared > 0


def test_kl_is_over_the_shared_tokens_at_the_places_that_agree(
    dense: Network, smaller: Network, tmp_path: Path
) -> None:
    with torch.no_grad():
        smaller.model.lm_head.weight += 0.1 * torch.randn(smaller.model.lm_head.weight.shape)
    read = passages([dense, smaller], text_windows(dense, written(tmp_path), 8, LENGTH))
    _, found = measure_passages([dense, smaller], read, Progress())
    kl, agreed, compared = 0.0, 0, 0
    for one in read:
        first, second = one.readings
        log_p = dense.model(first.ids[None]).logits[0][:, smaller.kept].log_softmax(-1)
        log_q = smaller.model(second.ids[None]).logits[0].log_softmax(-1)
        for i, j in zip(*agreeing(first, second, original_ids(dense), original_ids(smaller)), strict=True):
            if i >= first.predicted:
                kl += float((log_p[i - 1].exp() * (log_p[i - 1] - log_q[j - 1])).sum())
                agreed += int(log_p[i - 1].argmax() == log_q[j - 1].argmax())
                compared += 1
    assert (found.agreed, found.compared) == (agreed, compared)
    assert found.kl == pytest.approx(kl, rel=1e-4)


def test_a_cut_of_a_cut_shares_its_tokens_with_both(dense: Network, whole: Network) -> None:
    wanted = torch.zeros(len(original_ids(whole)), dtype=torch.bool)
    again = cut(whole, wanted)
    for larger in (dense, whole):
        columns = shared_tokens(larger, again)
        assert columns is not None
        assert columns[1].tolist() == list(range(again.dimension("vocabulary") or 0))
        assert torch.equal(original_ids(larger)[columns[0]], original_ids(again))


def test_windows_that_are_split_are_read_from_where_they_begin(
    dense: Network, smaller: Network, tmp_path: Path
) -> None:
    windows = text_windows(dense, written(tmp_path, TEXT.encode("ascii", "ignore").decode()), 8, LENGTH)
    first, rest = windows.split(3)
    assert (first.skipped, rest.skipped, rest.split(2)[1].skipped) == (0, 3, 5)
    ((reading, _),) = (one.readings for one in passages([dense, smaller], rest.split(1)[0]))
    assert torch.equal(reading.ids, rest.ids[0][: len(reading.ids)])


def test_windows_without_a_text_are_decoded(dense: Network, smaller: Network, tmp_path: Path) -> None:
    windows = replace(text_windows(dense, written(tmp_path), 4, LENGTH), text=None)
    read = passages([dense, smaller], windows)
    assert len(read) == 4
    for one, ids in zip(read, windows.ids, strict=True):
        assert dense.tokenizer.decode(ids).startswith(dense.tokenizer.decode(one.readings[0].ids))


def test_an_encoders_outputs_are_compared_at_the_places_that_agree(tmp_path: Path) -> None:
    dense = dense_network(tmp_path, "bert")
    whole = cut(dense, tokens_of(dense, TEXT))
    windows = text_windows(dense, written(tmp_path), 5, LENGTH)
    comparison = compare_networks([dense, whole], windows, Progress())
    assert comparison.others[0].cosine == pytest.approx(1.0, abs=1e-5)
    assert comparison.dense.cosine is None
    smaller = cut(dense, tokens_of(dense, TEXT[:80]))
    read = passages([dense, smaller], windows)
    assert all(
        len(reading.ids) <= LENGTH and int(reading.ids[0]) in (2, 1, 0) for one in read for reading in one.readings
    )
    found = measure_passages([dense, smaller], read, Progress())[1]
    assert 0 < found.compared < sum(len(one.readings[0].ids) for one in read)


def test_bits_per_byte_are_those_of_the_tokens_that_are_predicted(dense: Network, tmp_path: Path) -> None:
    windows = text_windows(dense, written(tmp_path, f"{TEXT}{'!' * 5000}"), 3, LENGTH)
    found = compare_networks([dense], windows, Progress(), speed=False).dense
    size = sum(len(dense.tokenizer.decode(ids[1:]).encode()) for ids in windows.ids)
    nll = found.tokens * math.log(found.perplexity)
    assert found.bits_per_byte == pytest.approx(nll / math.log(2) / size)


def test_what_is_slower_by_no_more_than_repeats_differ_is_not_called_slower(dense: Network) -> None:
    def notes(prefill: float, spread: float) -> str:
        first = Metrics("dense", 100, 100, 0, prefill=100.0, speed_spread=spread)
        return " ".join(comparison_notes([dense, dense], [first, Metrics("small", 50, 50, 0, prefill=prefill)]))

    assert "Prefill is slower (0.70 times" in notes(70.0, 0.05)
    told = notes(70.0, 0.4)
    assert "repeats of the same differ by 40%" in told
    assert "Prefill is no faster (0.70 times the dense speed): it can't be told" in told
    assert "faster" not in notes(130.0, 0.05)


def test_comparing_says_in_words_what_was_compared(dense: Network, smaller: Network, tmp_path: Path) -> None:
    windows = text_windows(dense, written(tmp_path), 8, LENGTH)
    comparison = compare_networks([dense, copy.copy(dense), smaller], windows, Progress(), names=["d", "same", "cut"])
    same, other = comparison.others
    assert same.kl == pytest.approx(0.0, abs=1e-6)
    assert same.top1_agreement == 1.0
    assert same.bits_per_byte == comparison.dense.bits_per_byte
    assert other.bits_per_byte is not None
    assert other.tokens is not None
    assert other.perplexity is not None
    nll = other.tokens * math.log(other.perplexity)
    read = passages([dense, dense, smaller], windows)
    assert other.bits_per_byte == pytest.approx(nll / math.log(2) / sum(one.bytes for one in read))
    assert other.decode is not None
    assert other.sample is not None
    assert other.prompt == comparison.dense.prompt
    told = " ".join(comparison.notes)
    assert f"The vocabularies differ (425, 425, {len(original_ids(smaller))} tokens)" in told
    assert f"over the {len(original_ids(smaller)):,} tokens that both have" in told


def test_without_a_record_kl_is_left_out_and_the_notes_say_so(dense: Network, smaller: Network, tmp_path: Path) -> None:
    smaller.kept = None
    windows = text_windows(dense, written(tmp_path), 8, LENGTH)
    comparison = compare_networks([dense, smaller], windows, Progress(), speed=False)
    assert comparison.others[0].kl is None
    assert comparison.others[0].bits_per_byte is not None
    assert "nothing says which of the dense model's tokens it has" in " ".join(comparison.notes)


def test_a_record_whose_tokens_are_spelled_otherwise_is_not_believed(dense: Network, smaller: Network) -> None:
    assert smaller.kept is not None
    smaller.kept = smaller.kept.clone()
    smaller.kept[5:] += 1
    assert shared_tokens(dense, smaller) is None


def test_vocabularies_are_told_apart_by_size_and_by_record(dense: Network, whole: Network, smaller: Network) -> None:
    assert same_vocabulary([dense, dense])
    assert same_vocabulary([whole, copy.copy(whole)])
    assert not same_vocabulary([dense, whole])
    other = copy.copy(smaller)
    assert other.kept is not None
    other.kept = other.kept + 1
    assert not same_vocabulary([smaller, other])


def test_models_that_cant_be_compared_are_an_error_that_says_why(
    dense: Network, smaller: Network, tmp_path: Path
) -> None:
    windows = text_windows(dense, written(tmp_path), 8, LENGTH)
    short = Windows(windows.ids[:, :1], "a word", text="abc")
    with pytest.raises(SecateurError, match="no stretch of 1 tokens"):
        passages([dense, smaller], short)
    smaller.tokenizer = None
    with pytest.raises(UsageError, match="cut has no fast one"):
        passages([dense, smaller], windows)


def saved(network: Network, folder: Path) -> Path:
    network.model.save_pretrained(folder)
    save_tokenizer(network.tokenizer, folder)
    if network.kept is not None:
        save_kept(network.kept, folder)
    return folder


def test_checkpoints_are_compared_by_their_own_tokens_streamed_or_not(
    dense: Network, smaller: Network, tmp_path: Path
) -> None:
    folders = [saved(dense, tmp_path / "dense"), saved(smaller, tmp_path / "cut")]
    again = load(folders[1])
    assert again.kept is not None
    assert smaller.kept is not None
    assert torch.equal(again.kept, smaller.kept)
    options: dict[str, Any] = {"text": written(tmp_path), "windows": 6, "length": LENGTH, "speed": False}
    memory, streamed = (secateur.compare(folders, stream=stream, **options) for stream in (False, True))
    for one, other in zip((memory.dense, *memory.others), (streamed.dense, *streamed.others), strict=True):
        assert one.tokens == other.tokens
        assert other.perplexity == pytest.approx(one.perplexity, rel=1e-4)
        assert other.kl == (one.kl if one.kl is None else pytest.approx(one.kl, rel=1e-3, abs=1e-5))
    alone = secateur.compare(folders[:1], **options).dense
    assert memory.dense.bits_per_byte == pytest.approx(alone.bits_per_byte, rel=0.05)


def test_a_text_that_the_first_model_writes_is_read_by_the_other(
    dense: Network, smaller: Network, tmp_path: Path
) -> None:
    comparison = secateur.compare([dense, smaller], text="self", windows=3, length=LENGTH, speed=False)
    assert comparison.others[0].bits_per_byte is not None
    assert comparison.dense.windows == 3
