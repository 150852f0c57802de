"""Calibration and evaluation text: documents in, windows of exactly `length` tokens out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.calibration.audio import audio_windows
from secateur.calibration.tables import is_table, read_table
from secateur.calibration.windows import Windows
from secateur.errors import CalibrationError, UsageError, first_line
from secateur.network.network import Network
from secateur.progress import Progress

__all__ = ["Windows", "calibration_windows", "read_windows", "self_generated", "text_windows", "window_length"]

BETWEEN = "\n\n"  # documents that are joined
HELD_OUT = 8  # windows kept back from calibration for the evaluation after it, where there are enough
CHARACTERS_PER_TOKEN = 8  # generous, so that one round of reading is nearly always enough
DEFAULT_LENGTH = 1024
BETWEEN = "\n\n"  # documents that are joined
CACHE_BYTES = 1 << 30  # of the key-value cache while the model writes its own text


def window_length(network: Network, length: int | None) -> int:
    """Returns the window length to use: what was asked for, or the default as far as the model holds it.

    Raises:
        UsageError: The model has no room for so many tokens.
    """
    room = network.dimension("positions")
    if room is not None and network.family.name == "roberta":
        room -= network.model.config.pad_token_id + 1  # its position table begins after the padding index
    if length is None:
        return min(DEFAULT_LENGTH, room or DEFAULT_LENGTH)
    if length < 2:
        raise UsageError(f"--length must be at least 2 tokens but got {length}.")
    if room is not None and length > room:
        raise UsageError(f"--length {length} is more than the model's {room} positions; use at most {room}.")
    return length


def calibration_windows(
    network: Network,
    data: str,
    samples: int,
    length: int | None,
    seed: int,
    progress: Progress,
    held_out: int = HELD_OUT,
) -> tuple[Windows, Windows]:
    """Returns windows to calibrate on, and windows held back from them.

    The windows come in the data's own order: the first `samples` are for calibration, the next ones (at most
    `held_out`) are held back. A text too short for that gives up an eighth of its windows.

    Args:
        network: The model, whose tokenizer is used; `data="self"` lets it write the text.
        data: `self`, a file (.jsonl with `text` or `input_ids`; anything else is plain text), or a hub data
            set (`owner/name` or `owner/name:split`). For a model that hears, a folder of .wav files.
        samples: Number of windows.
        length: Tokens per window; None takes 1024, or what the model holds if that is less.
        seed: For `self`.
        progress: Shows progress.
        held_out: Windows to hold back.

    Raises:
        UsageError: The arguments make no sense together.
        CalibrationError: The data is missing, empty, or too short for one window.
    """
    size = window_length(network, length)
    wanted = samples + held_out
    if data == "self":
        return self_generated(network, wanted, size, seed, progress).split(samples)
    windows = read_windows(network, data, wanted, size, progress)
    spare = len(windows) - samples
    if held_out == 0:
        return windows.split(samples)
    return windows.split(samples if spare > 0 else max(1, len(windows) - max(1, len(windows) // 8)))


def read_windows(network: Network, data: str, windows: int, length: int, progress: Progress) -> Windows:
    """Returns up to `windows` windows of what the model reads or hears; see `text_windows` and `audio_windows`."""
    if network.family.inputs == "audio":
        return audio_windows(network, data, windows, length, progress)
    return text_windows(network, data, windows, length)


def text_windows(network: Network, data: str, windows: int, length: int) -> Windows:
    """Returns up to `windows` windows from a file or a hub data set.

    Raises:
        CalibrationError: The data is missing, empty, or too short for one window.
    """
    found = documents(data)
    text: str | None = None
    sizes: list[int] | None = None
    if found.ids is not None:
        ids = list(islice(found.ids, windows * length))
        vocabulary = network.dimension("vocabulary")
        if vocabulary is not None and ids and max(ids) >= vocabulary:
            raise CalibrationError(f"{data} holds token id {max(ids)}; the model's vocabulary has {vocabulary}.")
    else:
        ids, sizes, text = _tokenize(network, found.texts, windows, length, data)
    special = special_tokens(network) if found.ids is None else ([], [])
    content = length - len(special[0]) - len(special[1])
    if content < 1:
        raise UsageError(f"--length {length} has no room beside the {length - content} special tokens of each window.")
    count = min(windows, len(ids) // content)
    if count == 0:
        raise CalibrationError(
            f"{data} has {len(ids)} tokens, fewer than one window of {length}; "
            f"give more text or --length {max(2, len(ids))} or less."
        )

    def cut(values: list[int], before: list[int], after: list[int]) -> Tensor:
        middle = torch.tensor(values[: count * content]).view(count, content)
        first, last = (torch.tensor(part, dtype=torch.int64).expand(count, -1) for part in (before, after))
        return torch.cat([first, middle, last], dim=1)

    nothing = ([0] * len(special[0]), [0] * len(special[1]))
    return Windows(cut(ids, *special), data, None if sizes is None else cut(sizes, *nothing), text=text)


def self_generated(network: Network, windows: int, length: int, seed: int, progress: Progress) -> Windows:
    """Lets the model write `windows` texts of `length` tokens from its start token, sampled at temperature 1.

    Raises:
        CalibrationError: The model can't generate, or has no start token.
    """
    if network.store is not None:
        raise CalibrationError(
            "a streamed model can't write its own calibration text, as every token would read it whole; "
            "give a text or jsonl file with --calibration FILE."
        )
    if network.family.inputs != "text":
        given = "a folder of .wav files" if network.family.inputs == "audio" else "a text or jsonl file"
        raise CalibrationError(
            f"{network.architecture} can't write its own calibration data, as its encoder needs an input; give "
            f"{given} with --calibration."
        )
    if not network.generates:
        raise CalibrationError(
            f"{network.architecture} can't write its own calibration text; "
            "give a text or jsonl file with --calibration FILE."
        )
    config = network.model.generation_config
    starts = (config.bos_token_id, network.model.config.bos_token_id, network.model.config.eos_token_id)
    start = next((token for token in starts if isinstance(token, int)), None)
    if start is None:
        raise CalibrationError(
            f"{network.source.name} has no start token to write from; give a file with --calibration FILE."
        )
    batches = -(-windows // max(1, CACHE_BYTES // (_cache_bytes(network) * length)))
    batch = -(-windows // batches)
    parts = []
    devices = [network.device] if network.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        for first in progress.track(range(0, windows, batch), "writing calibration text"):
            rows = min(batch, windows - first)
            parts.append(_sample(network.model, torch.full((rows, 1), start), length))
    return Windows(torch.cat(parts), "self")


def _cache_bytes(network: Network) -> int:
    """Bytes that one token takes in the key-value cache."""
    heads = network.dimension("kv_heads") or network.dimension("heads") or 1
    hidden = network.dimension("hidden") or 1
    head_dim = network.dimension("head_dim") or hidden // (network.dimension("heads") or 1)
    return 2 * len(network.blocks) * heads * head_dim * int(network.model.dtype.itemsize)


def _sample(model: Any, prompt: Tensor, length: int) -> Tensor:
    """Continues `prompt` to exactly `length` tokens; end tokens don't stop it."""
    written: Tensor = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=length - prompt.shape[1],
        min_new_tokens=length - prompt.shape[1],
        eos_token_id=None,
        pad_token_id=0,
        use_cache=True,
    )
    return written


@dataclass(frozen=True)
class Documents:
    """Either texts or one long run of token ids, read as they are asked for."""

    texts: Iterator[str]
    ids: Iterator[int] | None = None


def documents(data: str) -> Documents:
    """Opens a file (.jsonl with `text` or `input_ids`; anything else is plain text) or a hub data set.

    Raises:
        CalibrationError: The data is missing, empty, or not what its name says; some of it shows only on reading.
    """
    path = Path(data).expanduser()
    if path.is_file():
        if path.suffix in (".jsonl", ".json"):
            return _jsonl(path)
        return Documents(iter(read_table(data, None, None).texts if is_table(data) else [_read(path)]))
    if path.is_dir():
        raise CalibrationError(
            f"{data} is a folder; give a .jsonl or text file (folders of .wav files are for models that hear)."
        )
    check_there(data)
    return Documents(_hub_texts(data))


def check_there(data: str) -> None:
    """Raises CalibrationError if it names neither a file or folder that is there nor a data set that a hub may have."""
    path = Path(data).expanduser()
    named = data.count("/") == 1 and not data.startswith((".", "/", "~")) and not path.suffix
    if data != "self" and not named and not (path.is_file() or path.is_dir()):
        raise CalibrationError(
            f"no file '{data}'. Give 'self', a .jsonl or text file, a table (.tsv, .csv), or a hub data set."
        )


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is not UTF-8 text: {error}.") from error
    if not text.strip():
        raise CalibrationError(f"{path} is empty.")
    return text


def _jsonl(path: Path) -> Documents:
    """Reads `text`, or token ids under `input_ids`, one JSON object a line."""
    rows = _rows(path)
    start = next(rows, None)
    if start is None:
        raise CalibrationError(f"{path} is empty.")
    number, first = start
    key = next((key for key in ("input_ids", "text") if key in first), None)
    if key is None:
        has = ", ".join(first) or "nothing"
        raise CalibrationError(f"{path}:{number} has neither 'text' nor 'input_ids' (it has {has}).")
    values = (_value(row, key, number, path) for number, row in chain([start], rows))
    if key == "text":
        return Documents(values)
    return Documents(iter(()), (token for row in values for token in row))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields each object with the number of its line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise CalibrationError(f"{path} is not UTF-8 text (line {number}): {error}.") from error
            except json.JSONDecodeError as error:
                raise CalibrationError(f"{path}:{number} is not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise CalibrationError(f"{path}:{number} is not a JSON object.")
            yield number, row


def _value(row: dict[str, Any], key: str, number: int, path: Path) -> Any:
    value = row.get(key)
    good = isinstance(value, str) if key == "text" else _are_ids(value)
    if not good:
        what = "a string" if key == "text" else "a list of token ids"
        raise CalibrationError(f"{path}:{number} has no '{key}' that is {what}.")
    return value


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(token) is int and token >= 0 for token in value)


def _hub_texts(data: str) -> Iterator[str]:
    """Streams a hub data set's `text` column; `owner/name:split` names another split than `train`."""
    try:
        from datasets import load_dataset  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise CalibrationError(
            f"'{data}' is no file, and hub data sets need an extra: pip install 'secateur[hub]'."
        ) from error
    from datasets.exceptions import DatasetNotFoundError  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    name, _, split = data.partition(":")
    try:
        rows = load_dataset(name, split=split or "train", streaming=True)
        for row in rows:
            if "text" not in row:
                raise CalibrationError(f"the data set {name} has no 'text' column.")
            yield row["text"]
    except (DatasetNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = first_line(error)
        raise CalibrationError(f"'{data}' is no file, and no data set that the hub gives us: {reason}") from error


def text_tokenizer(network: Network, data: str) -> Any:
    """Returns the network's tokenizer, or raises CalibrationError if it has none to read `data` with."""
    if network.tokenizer is None:
        raise CalibrationError(
            f"{network.source.name} has no tokenizer that is a file (tokenizer.json), so {data} can't be read as text; "
            "give a .jsonl file with token ids under 'input_ids'."
        )
    return network.tokenizer


def _tokenize(
    network: Network, texts: Iterable[str], windows: int, length: int, data: str
) -> tuple[list[int], list[int] | None, str]:
    """Joins documents and tokenizes what `windows` windows need; returns ids, each one's bytes, and their text."""
    tokenizer = text_tokenizer(network, data)
    fast = getattr(tokenizer, "is_fast", False)  # only such tokenizers say what a token stands for
    source = iter(texts)
    text, wanted = "", windows * length + 1
    characters = wanted * CHARACTERS_PER_TOKEN
    while True:
        for document in source:
            text = f"{text}{BETWEEN}{document}" if text else document
            if len(text) >= characters:
                break
        whole = len(text) < characters
        part = text[:characters]
        found = tokenizer(
            part,
            add_special_tokens=network.family.objective == "causal",
            return_offsets_mapping=fast,
            verbose=False,
        )
        if not found.input_ids:
            raise CalibrationError(f"{data} is empty.")
        if whole or len(found.input_ids) >= wanted:
            return found.input_ids, _bytes(part, found.offset_mapping) if fast else None, part
        characters *= 2


def _bytes(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Returns the bytes of UTF-8 that each token adds to those before it.

    Args:
        text: What was tokenized.
        offsets: Each token's first character and the one behind its last; tokens may share one, and leave some out.
    """
    codes = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32)
    sizes = 1 + (codes >= 0x80).long() + (codes >= 0x800).long() + (codes >= 0x10000).long()
    before = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    ends = torch.tensor([end for _, end in offsets]).cummax(0).values
    found: list[int] = before[ends].diff(prepend=torch.zeros(1, dtype=torch.int64)).tolist()
    return found


def special_tokens(network: Network) -> tuple[list[int], list[int]]:
    """Returns the tokens that an encoder wants before and after each window, such as [CLS] and [SEP]."""
    if network.family.objective == "causal" or network.tokenizer is None:
        return [], []
    probe = network.tokenizer("a", add_special_tokens=False).input_ids
    whole = network.tokenizer("a").input_ids
    at = next((i for i in range(len(whole)) if whole[i : i + len(probe)] == probe), 0)
    return whole[:at], whole[at + len(probe) :]
