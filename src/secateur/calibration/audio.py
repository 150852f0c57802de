"""Sounds for models that hear: a folder of .wav files in; features and what the model takes to be said out."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from secateur.calibration.precision import half_in_float32
from secateur.calibration.windows import Windows
from secateur.errors import CalibrationError, first_line
from secateur.network.network import Network
from secateur.network.quiet import quiet_transformers
from secateur.progress import Progress

CONVERT = "make one with: ffmpeg -i SPEECH -ar 16000 -ac 1 -c:a pcm_s16le SPEECH.wav"
LEAST_SECONDS = 1.0  # of a long file's last piece; less is left out


def audio_windows(network: Network, data: str, windows: int, length: int, progress: Progress) -> Windows:
    """Returns up to `windows` windows of sound, each with what the model itself writes when it hears it.

    A window is as long as the model hears at once (30 seconds for Whisper): a shorter file is filled up with
    silence, a longer one gives several windows. Files come in the order of their names.

    Args:
        network: The model; its checkpoint folder has its feature extractor.
        data: A folder of .wav files: 16-bit PCM, any rate, any number of channels (they are averaged).
        windows: How many at most.
        length: Tokens of a transcript at most.
        progress: Shows progress.

    Raises:
        CalibrationError: There is no such folder, no .wav file in it, a file that can't be read, or no feature
            extractor that fits the model.
    """
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise CalibrationError(
            f"{network.architecture} hears sounds, and '{data}' is no folder; give a folder of .wav files."
        )
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".wav" and path.is_file())
    if not files:
        raise CalibrationError(f"{folder} has no .wav file; {CONVERT}.")
    extractor = _extractor(network)
    sounds = list(islice((sound for path in files for sound in _pieces(path, extractor)), windows))
    features: list[Tensor] = []
    written: list[Tensor] = []
    for sound in progress.track(sounds, "transcribing"):
        features.append(_heard(network, extractor, sound))
        written.append(transcribe(network, features[-1], length))
    lengths = torch.tensor([len(ids) for ids in written])
    ids = torch.nn.utils.rnn.pad_sequence(written, batch_first=True)
    return Windows(ids, data, features=torch.cat(features), lengths=lengths, given=_given(network, written))


def heard_windows(network: Network, path: Path) -> Iterator[Tensor]:
    """Yields (1, mels, frames): what a model hears of a .wav file, piece by piece.

    Raises:
        CalibrationError: The file can't be read, or no feature extractor fits the model.
    """
    extractor = _extractor(network)
    for sound in _pieces(path, extractor):
        yield _heard(network, extractor, sound)


def _heard(network: Network, extractor: Any, sound: Tensor) -> Tensor:
    given = extractor(sound.numpy(), sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return _fitting(network, given.input_features)


def transcribe(network: Network, features: Tensor, length: int) -> Tensor:
    """Returns what the model writes when it hears features: (1, mels, frames).

    Returns:
        (tokens,) int64, at most `length`: the tokens that say what is to be done, the text, and the end.
    """
    model = network.model
    with quiet_transformers(), torch.inference_mode(), half_in_float32(model.dtype, model.device):
        written: Tensor = model.generate(
            features.to(model.dtype),
            max_length=length,
            force_unique_generate_call=True,  # or the tokens before and after the text are taken away
        )
    return written[0, :length].clone()


def read_wav(path: Path) -> tuple[Tensor, int]:
    """Returns a file's sound, (samples,) float32 in [-1, 1], and its samples per second.

    Raises:
        CalibrationError: It isn't a .wav file of 16-bit PCM, is cut off, or is empty.
    """
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate, frames = file.getparams()[:4]
            raw = file.readframes(frames)
    except (OSError, EOFError, wave.Error) as error:
        raise CalibrationError(f"{path} can't be read as a .wav file ({first_line(error)}); {CONVERT}.") from error
    if width != 2:
        raise CalibrationError(f"{path} has {8 * width} bits per sample, and only 16-bit PCM is read; {CONVERT}.")
    if len(raw) != frames * channels * width:
        raise CalibrationError(f"{path} is cut off: it has {len(raw)} of {frames * channels * width} bytes of sound.")
    if not raw:
        raise CalibrationError(f"{path} holds no sound; remove it from the folder.")
    samples = np.frombuffer(raw, "<i2").reshape(-1, channels).mean(1, dtype=np.float32)
    return torch.from_numpy(samples) / 32768, rate


def resampled(sound: Tensor, rate: int, wanted: int) -> Tensor:
    """Returns a sound at another rate, what lies above either rate's limit left out.

    Args:
        sound: (samples,) float32.
        rate: Its samples per second.
        wanted: Those of the result.
    """
    if rate == wanted:
        return sound
    samples = max(1, round(len(sound) * wanted / rate))
    found: Tensor = torch.fft.irfft(torch.fft.rfft(sound), n=samples) * (samples / len(sound))
    return found


def _pieces(path: Path, extractor: Any) -> Iterator[Tensor]:
    """Yields a file's sound in pieces as long as the model hears at once, at the rate that it hears."""
    sound = resampled(*read_wav(path), extractor.sampling_rate)
    pieces = sound.split(extractor.n_samples)
    for number, piece in enumerate(pieces):
        if number == 0 or len(piece) >= LEAST_SECONDS * extractor.sampling_rate:
            yield piece


def _extractor(network: Network) -> Any:
    folder = network.source.path
    try:
        return transformers.AutoFeatureExtractor.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(
            f"{folder} has no feature extractor that can be read; put the model's preprocessor_config.json there "
            f"({first_line(error)})."
        ) from error


def sound_shape(network: Network) -> tuple[int, int]:
    """Returns what the encoder hears at once: features per frame, and frames."""
    encoder = network.family.stacks[0]
    positions = network.dimension("positions", encoder) or 1
    return network.dimension("mels", encoder) or 1, positions * network.family.frames_per_position


def _fitting(network: Network, features: Tensor) -> Tensor:
    if tuple(features.shape[1:]) != sound_shape(network):
        raise CalibrationError(
            f"the feature extractor in {network.source.path} gives {tuple(features.shape[1:])} (features, frames), but "
            f"the model hears {sound_shape(network)}; they don't belong together."
        )
    return features


def _given(network: Network, written: list[Tensor]) -> int:
    """Returns how many tokens before a text only say what is to be done; one at least."""
    special = set() if network.tokenizer is None else set(network.tokenizer.all_special_ids)
    counts = [next((n for n, token in enumerate(ids.tolist()) if token not in special), 1) for ids in written]
    return max(1, min(*counts, *(len(ids) - 1 for ids in written)))
