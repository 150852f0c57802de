"""Folders of .wav files: what is heard, what is refused and why, and runs of a model that hears from end to end."""

from __future__ import annotations

import json
import shutil
import wave
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import secateur
from secateur.calibration.audio import audio_windows, read_wav, resampled, transcribe
from secateur.calibration.windows import Windows
from secateur.errors import CalibrationError, SecateurError
from secateur.network.loading import load
from secateur.network.network import Network
from secateur.progress import Progress
from tiny import FRAMES, MELS, POSITIONS, save_tiny, tiny_feature_extractor, write_wavs

OPTIONS: dict[str, Any] = {"sparsity": 0.5, "samples": 4, "length": 24}


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("whisper", tmp_path_factory.mktemp("whisper") / "dense", tokenizer=True)


@pytest.fixture
def network(whisper: Path) -> Network:
    return load(whisper)


def heard(network: Network, folder: Path, number: int = 8, length: int = 24) -> Windows:
    return audio_windows(network, str(folder), number, length, Progress())


def written(path: Path, sound: Tensor, channels: int = 1, rate: int = 16000, width: int = 2) -> Path:
    """Writes a .wav file. sound: (samples x channels,) int16 (or bytes of another width)."""
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(sound.numpy().tobytes())
    return path


def tone(hertz: float, rate: int, seconds: float = 0.5) -> Tensor:
    return torch.sin(2 * torch.pi * hertz * torch.arange(round(rate * seconds)) / rate)


def test_a_window_is_the_sound_as_the_checkpoints_own_extractor_shows_it(network: Network, tmp_path: Path) -> None:
    folder = write_wavs(tmp_path / "sounds", 3)
    windows = heard(network, folder)
    assert windows.features.shape == (3, MELS, FRAMES)
    for number, path in enumerate(sorted(folder.iterdir())):
        sound, rate = read_wav(path)
        expected = tiny_feature_extractor()(sound.numpy(), sampling_rate=rate, return_tensors="pt").input_features
        assert torch.equal(windows.features[number : number + 1], expected)
    assert windows.source == str(folder)


def test_a_windows_tokens_are_what_the_model_itself_writes_from_its_start_token_on(
    network: Network, tmp_path: Path
) -> None:
    windows = heard(network, write_wavs(tmp_path / "sounds", 3))
    assert windows.length <= 24
    start = network.model.config.decoder_start_token_id
    for number in range(3):
        alone = windows.one(number)
        plain = network.model.generate(alone.features, max_length=24)[0].tolist()
        assert alone.ids[0].tolist() == [start, *plain][: alone.length]
        assert alone.length in (24, len(plain) + 1)
        assert torch.equal(alone.ids[0], transcribe(network, alone.features, 24))


def test_windows_come_in_the_order_of_the_names_and_no_more_than_asked_for(network: Network, tmp_path: Path) -> None:
    folder = write_wavs(tmp_path / "sounds", 4)
    (folder / "notes.txt").write_text("not a sound")
    (folder / "003.wav").rename(folder / "000a.WAV")
    everything = heard(network, folder)
    assert len(everything) == 4
    first = heard(network, folder, number=2)
    assert torch.equal(first.features, everything.features[:2])


def test_a_long_file_gives_a_window_a_second_and_leaves_out_a_short_rest(network: Network, tmp_path: Path) -> None:
    for seconds, number in ((0.2, 1), (1.0, 1), (1.5, 1), (2.0, 2), (3.4, 3)):
        assert len(heard(network, write_wavs(tmp_path / f"{seconds}", 1, seconds))) == number


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = torch.tensor([1000, -2000, 3000]), torch.tensor([3000, -4000, -3000])
    path = written(tmp_path / "two.wav", torch.stack([left, right], 1).to(torch.int16), channels=2, rate=8000)
    sound, rate = read_wav(path)
    assert rate == 8000
    torch.testing.assert_close(sound * 32768, torch.tensor([2000.0, -3000.0, 0.0]))


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 16000])
def test_a_tone_stays_that_tone_at_another_rate(rate: int) -> None:
    sound = resampled(tone(1000, rate), rate, 16000)
    assert sound.shape == (8000,)
    torch.testing.assert_close(sound, tone(1000, 16000), rtol=0, atol=2e-3)


def test_what_the_lower_rate_cannot_hold_is_left_out() -> None:
    assert float(resampled(tone(12000, 48000), 48000, 16000).abs().max()) < 2e-3


def test_a_folder_that_cannot_be_used_is_an_error_that_says_what_to_do(network: Network, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "text.txt"
    text.write_text("words")
    for data, message in (
        (empty, r"empty has no \.wav file; make one with: ffmpeg"),
        (text, r"hears sounds, and '.*text\.txt' is no folder; give a folder of \.wav files"),
        (tmp_path / "nowhere", r"hears sounds, and '.*nowhere' is no folder"),
    ):
        with pytest.raises(CalibrationError, match=message):
            heard(network, data)


def test_a_file_that_cannot_be_read_is_named_with_the_reason(network: Network, tmp_path: Path) -> None:
    sound = (tone(440, 16000) * 20000).to(torch.int16)
    whole = written(tmp_path / "whole.wav", sound).read_bytes()
    cases = {
        "text.wav": (b"these are words, not a sound", "can't be read as a .wav file .*ffmpeg"),
        "nothing.wav": (b"", "can't be read as a .wav file"),
        "cut.wav": (whole[:5000], "is cut off: it has 4956 of 16000 bytes of sound"),
        "eight.wav": (written(tmp_path / "8.wav", sound.to(torch.uint8), width=1).read_bytes(), "8 bits per sample"),
        "silent.wav": (written(tmp_path / "0.wav", sound[:0]).read_bytes(), "holds no sound; remove it"),
    }
    for name, (content, message) in cases.items():
        folder = tmp_path / name.removesuffix(".wav")
        folder.mkdir()
        (folder / name).write_bytes(content)
        with pytest.raises(CalibrationError, match=f"{name}.*{message}"):
            heard(network, folder)


def test_a_missing_or_unfitting_feature_extractor_is_named(whisper: Path, tmp_path: Path) -> None:
    folder = write_wavs(tmp_path / "sounds", 1)
    without = shutil.copytree(whisper, tmp_path / "without")
    (without / "preprocessor_config.json").unlink()
    with pytest.raises(CalibrationError, match="has no feature extractor that can be read; put the model's"):
        heard(load(without), folder)
    other = shutil.copytree(whisper, tmp_path / "other")
    config = json.loads((other / "preprocessor_config.json").read_text()) | {"feature_size": 12}
    (other / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(
        CalibrationError, match=r"gives \(12, 100\) \(features, frames\), but the model hears \(8, 100\)"
    ):
        heard(load(other), folder)


def test_a_folder_for_a_model_of_text_and_self_for_one_that_hears_are_errors(whisper: Path, tmp_path: Path) -> None:
    folder = write_wavs(tmp_path / "sounds", 2)
    llama = save_tiny("llama", tmp_path / "llama", tokenizer=True)
    for model, data, message in (
        (llama, str(folder), "is a folder; give a .jsonl or text file"),
        (whisper, "self", "its encoder needs an input; give a folder of .wav files with --calibration"),
    ):
        with pytest.raises(SecateurError, match=message):
            secateur.prune(model, output=tmp_path / "out", calibration=data, **OPTIONS)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", [{"solver": "sparsegpt"}, {"solver": "admm"}, {"score": "l1"}], ids=str)
def test_a_run_from_a_folder_is_saved_with_everything_and_shows_what_was_heard(
    stage: dict[str, Any], whisper: Path, tmp_path: Path
) -> None:
    folder = write_wavs(tmp_path / "sounds", 7)
    result = secateur.prune(whisper, output=tmp_path / "out", calibration=str(folder), **OPTIONS, **stage)
    assert result.reload == 0.0
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    dense, pruned = result.comparison.dense, result.comparison.others[0]
    assert dense.perplexity > 1
    assert pruned.kl > 0
    assert pruned.zeros == pruned.weights // 2
    # What the dense model writes of the first sound that wasn't calibrated on (of all, where nothing needs them).
    kept = 4 if result.calibration else 1
    first = heard(load(whisper), folder).one(kept)
    for model, metrics in ((whisper, dense), (tmp_path / "out", pruned)):
        network = load(model)
        ids = transcribe(network, first.features, POSITIONS)[1:]
        assert metrics.sample == network.tokenizer.decode(ids, skip_special_tokens=True)


def test_one_sound_alone_is_calibrated_on_and_the_missing_evaluation_is_said(whisper: Path, tmp_path: Path) -> None:
    folder = write_wavs(tmp_path / "sounds", 1)
    result = secateur.prune(whisper, output=tmp_path / "out", calibration=str(folder), **OPTIONS)
    assert result.comparison.dense.perplexity is None
    assert any("has one window, which calibration needs" in note for note in result.notes)


def test_without_calibration_silence_is_the_probe_of_the_reload_check(whisper: Path, tmp_path: Path) -> None:
    result = secateur.prune(whisper, output=tmp_path / "out", sparsity=0.5, score="l1", solver="none", evaluate=False)
    assert result.reload == 0.0


def test_models_that_hear_are_compared_on_a_folder(whisper: Path, tmp_path: Path) -> None:
    folder = write_wavs(tmp_path / "sounds", 3)
    found = secateur.compare([whisper, whisper], text=str(folder), windows=2, length=24, speed=False)
    assert found.others[0].kl == 0.0
    assert found.others[0].sample == found.dense.sample
    windows = heard(load(whisper), folder, 2)
    assert found.dense.tokens == windows.tokens - 2 * windows.given
