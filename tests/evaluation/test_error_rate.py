"""Word error rates of models that hear."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import WhisperForConditionalGeneration

import secateur
from secateur.calibration.audio import heard_windows, transcribe
from secateur.calibration.data import window_length
from secateur.evaluation.error_rate import transcripts, words
from secateur.network.loading import load
from tiny import save_tiny, write_wavs


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert words(" Ask not,  what your country's  doing — for YOU!\n") == "ask not what your country's doing for you"


@pytest.fixture
def said(tmp_path: Path) -> tuple[Path, Path, list[str]]:
    """A tiny Whisper that writes letters, sounds, and what it writes of each."""
    source = save_tiny("whisper", tmp_path / "model", tokenizer=True)
    sounds = write_wavs(tmp_path / "sounds", 3)
    network = load(source)
    length = window_length(network, None)
    written = [
        " ".join(
            network.tokenizer.decode(transcribe(network, features, length), skip_special_tokens=True)
            for features in heard_windows(network, path)
        )
        for path in sorted(sounds.glob("*.wav"))
    ]
    return source, sounds, written


def test_what_a_model_writes_is_held_against_what_is_said(said: tuple[Path, Path, list[str]], tmp_path: Path) -> None:
    source, sounds, written = said
    assert all(words(text) for text in written)
    files = sorted(sounds.glob("*.wav"))
    for path, text in zip(files, written, strict=True):
        path.with_suffix(".txt").write_text(f"{text.upper()}!")
    metrics = secateur.evaluate(source, text=str(sounds), windows=8, speed=False)
    assert metrics.wer == 0
    total = sum(len(words(text).split()) for text in written)
    files[0].with_suffix(".txt").write_text(f"{written[0]} and more words")
    metrics = secateur.evaluate(source, text=str(sounds), windows=8, speed=False)
    assert metrics.wer == pytest.approx(3 / (total + 3))
    all_three = secateur.compare([source], text=str(sounds), windows=3, speed=False)
    assert not any("word error rate" in note for note in all_three.notes)
    two = secateur.compare([source], text=str(sounds), windows=2, speed=False)
    assert any("of the first 2 of 3 recordings with a transcript" in note for note in two.notes)
    other = tmp_path / "other"
    model = WhisperForConditionalGeneration.from_pretrained(source)
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight.copy_(model.model.decoder.embed_tokens.weight.flip(0))
    model.save_pretrained(other)
    for file in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (other / file).write_bytes((source / file).read_bytes())
    comparison = secateur.compare([source, other], text=str(sounds), speed=False)
    assert comparison.others[0].wer != comparison.dense.wer
    assert "word error rate" in comparison.table()


def test_without_transcripts_no_rate_is_told(said: tuple[Path, Path, list[str]]) -> None:
    source, sounds, _ = said
    metrics = secateur.evaluate(source, text=str(sounds), windows=2, speed=False)
    assert metrics.wer is None
    assert metrics.perplexity is not None


def test_a_missing_counter_is_noted_and_loses_nothing(
    said: tuple[Path, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, sounds, _ = said
    (sounds / "000.txt").write_text("something")
    (sounds / "001.txt").write_text("...")  # no word
    assert list(transcripts(str(sounds))) == [sounds / "000.wav"]
    monkeypatch.setattr("secateur.evaluation.error_rate.find_spec", lambda name: None)
    comparison = secateur.compare([source, source], text=str(sounds), windows=2, speed=False)
    assert comparison.dense.wer is None
    assert comparison.dense.perplexity is not None
    assert any("pip install 'secateur[tasks]'" in note for note in comparison.notes)
