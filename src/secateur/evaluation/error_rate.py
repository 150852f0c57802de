"""Word error rate: how much of what was said a model that hears writes down wrongly."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from secateur.calibration.audio import heard_windows, transcribe
from secateur.calibration.data import window_length
from secateur.network.network import Network
from secateur.progress import Progress
from secateur.result import Comparison, Metrics


def transcripts(data: str) -> dict[Path, str]:
    """Returns what is said in a folder's .wav files that have a .txt of the same name beside them."""
    sounds = (path for path in sorted(Path(data).expanduser().iterdir()) if path.suffix.lower() == ".wav")
    told = ((path, path.with_suffix(".txt")) for path in sounds)
    known = ((path, text.read_text(encoding="utf-8")) for path, text in told if text.is_file())
    return {path: text for path, text in known if words(text)}


def add_error_rate(
    comparison: Comparison, networks: Sequence[Network], data: str, files: int, progress: Progress
) -> Comparison:
    """Adds the word error rate to a comparison of models that hear, where the folder says what is said.

    Args:
        comparison: Of the models.
        networks: The models, in its order.
        data: A folder of .wav files, each with a .txt beside it; without any the comparison stays as it is.
        files: How many are heard at most.
        progress: Shows progress.

    Returns:
        The comparison with the rates, and a note where more is told than was heard, or the package that counts is
        missing.
    """
    told = transcripts(data)
    if not told:
        return comparison
    if find_spec("jiwer") is None:
        note = "The word error rate wasn't counted, which takes jiwer: pip install 'secateur[tasks]'."
        return replace(comparison, notes=(*comparison.notes, note))
    said = dict(islice(told.items(), files))
    known = [
        _measured(metrics, network, said, progress)
        for metrics, network in zip((comparison.dense, *comparison.others), networks, strict=True)
    ]
    notes = comparison.notes
    if len(said) < len(told):
        notes = (
            *notes,
            f"The word error rate is of the first {len(said)} of {len(told)} recordings with a transcript: windows "
            "says how many are heard.",
        )
    return replace(comparison, dense=known[0], others=tuple(known[1:]), notes=notes)


def _measured(metrics: Metrics, network: Network, said: dict[Path, str], progress: Progress) -> Metrics:
    import jiwer  # noqa: PLC0415 (an extra)

    length = window_length(network, None)
    written = [
        " ".join(
            network.tokenizer.decode(transcribe(network, features, length), skip_special_tokens=True)
            for features in heard_windows(network, path)
        )
        for path in progress.track(list(said), "writing down what is said")
    ]
    return replace(metrics, wer=jiwer.wer([*map(words, said.values())], [*map(words, written)]))


def words(text: str) -> str:
    """Returns a text's words in small letters, without punctuation, one space between them."""
    plain = "".join(" " if unicodedata.category(one)[0] in "PS" and one != "'" else one for one in text.lower())
    return re.sub(r"\s+", " ", plain).strip()
