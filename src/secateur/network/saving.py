"""Saving: a checkpoint that plain transformers loads, in a folder that appears only when it is complete."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from secateur.errors import SaveError, UsageError
from secateur.files import as_os_error
from secateur.network.modeling import FILE as MODELING_FILE
from secateur.network.modeling import describe_code
from secateur.network.network import Network
from secateur.network.quantized import quantize_files
from secateur.network.quiet import quiet_transformers
from secateur.network.streaming import assemble
from secateur.network.tokenizers import save_tokenizer
from secateur.network.vocabulary import save_kept

RESULT_FILE = "secateur.json"
TRAINING_BYTES = 28  # per parameter: float32, and twice float32 with AdamW's two moments
NOT_COPIED = (
    "*.safetensors",
    "*.index.json",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.gguf",
)
TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece*",
)
OURS = (
    "config.json",
    "generation_config.json",
    "README.md",
    "report.html",
    "secateur.mask",
    "training.csv",
    MODELING_FILE,
    RESULT_FILE,
)


def check_output(output: Path, overwrite: bool, source: Path | None = None) -> None:
    """Raises UsageError if `output` exists and may not be replaced.

    With `overwrite`, only a folder that secateur wrote (or an empty one) is replaced, and never the model's.
    """
    if not output.exists():
        return
    if source is not None and output.resolve() in (source.resolve(), *source.resolve().parents):
        raise UsageError(f"the output {output} is, or holds, the model that is read; choose another folder.")
    if not output.is_dir():
        raise UsageError(f"the output {output} exists and is not a folder; choose another name.")
    if any(output.iterdir()):
        if not overwrite:
            raise UsageError(
                f"the output {output} exists; add --overwrite (overwrite=True) to replace it, or choose another name."
            )
        if not (output / RESULT_FILE).is_file():
            raise UsageError(f"the output {output} wasn't written by secateur, so --overwrite doesn't replace it.")


@contextmanager
def complete_folder(output: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Gives a scratch folder that takes the place of `output` at the end, or vanishes on any error.

    Args:
        output: The folder to write.
        scratch: What to use as the scratch folder; None makes one beside `output`.

    Raises:
        SaveError: The disk is full, or can't be written.
    """
    folder = scratch
    new = [one for one in output.parents if not one.exists()]  # nearest first
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _uninterrupted():
            if folder is None:
                folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.partial-"))
            else:
                shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
                folder.mkdir(parents=True)
        yield folder
        folder.chmod(0o755)
        _replace(folder, output)
    except OSError as error:
        raise SaveError(explain(error, output)) from error
    finally:
        if folder is not None:
            with _uninterrupted():
                shutil.rmtree(folder, ignore_errors=True)
                for one in new:
                    with suppress(OSError):  # never with something in it
                        one.rmdir()


def _replace(scratch: Path, output: Path) -> None:
    """Puts a finished folder in the place of the old one, which is gone only when the new one stands."""
    if not output.exists():
        scratch.rename(output)
        return
    with _uninterrupted():
        old = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.old-"))
        try:
            output.rename(old / "was")
            try:
                scratch.rename(output)
            except OSError:
                (old / "was").rename(output)
                raise
            shutil.rmtree(old / "was", ignore_errors=True)
        finally:
            with suppress(OSError):  # never with something in it: that would be the user's old folder
                old.rmdir()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Lets Ctrl-C and a polite kill wait until the few system calls inside are done."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread is ever interrupted
        yield
        return
    waiting: list[int] = []
    before = {
        kind: signal.signal(kind, lambda number, frame: waiting.append(number))
        for kind in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, signal.SIG_DFL if handler is None else handler)
        for number in waiting:
            signal.raise_signal(number)


def explain(error: OSError, where: Path) -> str:
    """Says in one line what the operating system refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full while writing {where}; make room and run again. No half-written output is left."
    name = f" ({error.filename})" if error.filename else ""
    return f"can't write {where}: {error.strerror or error}{name}. No half-written output is left."


def check_room(network: Network, output: Path, trains: bool = False) -> None:
    """Raises SaveError before any work is done if the disk has no room for the checkpoint and the run's state.

    Args:
        network: The model.
        output: The folder to write.
        trains: Whether it is trained on the way, which keeps two states with their optimizer's, and the best one.
    """
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    needed = sum(parameter.nbytes for parameter in network.model.parameters())
    if network.store is None:
        needed *= 2  # the run's state has the blocks in files of its own
    if trains:
        needed += TRAINING_BYTES * network.parameters()
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SaveError(f"{output} needs {needed / 1e9:.3g} GB, but the disk of {folder} has {free / 1e9:.3g} GB free.")


def save_network(network: Network, folder: Path, parts: Sequence[Path] = ()) -> None:
    """Writes weights, config, tokenizer and whatever small files came along, into an existing folder.

    The shards are as large as the source's, those of a streamed network a block each; dtype and tensor names are the
    source's too. Beside a reshaped model stands the code that it takes to load it.

    Args:
        network: The model.
        folder: Where to.
        parts: A streamed network's weights: files that become the shards.

    Raises:
        OSError: The disk is full, or can't be written.
    """
    source = network.source.path
    left_out = TOKENIZER_FILES if network.kept is not None else ()
    if network.store is None:
        save_model(network.model, folder, source, left_out)
    else:
        try:
            with quiet_transformers():
                _save_streamed(network, folder, parts)
        except SafetensorError as error:
            raise as_os_error(error, folder) from error
        _copy_beside(source, folder, left_out)
    if network.quantized:
        quantize_files(folder, network.quantized)
    if network.kept is not None:
        save_tokenizer(network.tokenizer, folder)
        save_kept(network.kept, folder)
    elif network.tokenizer is not None and not source.is_dir():
        network.tokenizer.save_pretrained(folder)
    _readable(folder)


def save_model(model: Any, folder: Path, source: Path | None = None, left_out: Sequence[str] = ()) -> None:
    """Writes a transformers model's weights, config, and code if it takes some to load it, into an existing folder.

    Args:
        model: The model.
        folder: Where to.
        source: The checkpoint that it was read from, whose other small files are copied; None if there is none.
        left_out: Patterns of files that aren't.

    Raises:
        OSError: The disk is full, or can't be written.
    """
    code = describe_code(model)
    if code is not None:
        (folder / MODELING_FILE).write_text(code, encoding="utf-8")
    try:
        with quiet_transformers():
            model.save_pretrained(folder, max_shard_size=_shard_size(source))
    except SafetensorError as error:
        raise as_os_error(error, folder) from error
    if source is not None:
        _copy_beside(source, folder, left_out)
        _tell_pooling(model, folder)
    _readable(folder)


def _tell_pooling(model: Any, folder: Path) -> None:
    """Has the pooling of sentence-transformers, whose folder came along, say the width of what it gets."""
    width = getattr(model.config, "hidden_size", None)
    for path in folder.glob("*_Pooling/config.json"):
        told = json.loads(path.read_text(encoding="utf-8"))
        if width is not None and told.get("word_embedding_dimension") not in (None, width):
            told["word_embedding_dimension"] = width
            path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _readable(folder: Path) -> None:
    """Lets others read the files; save_pretrained leaves weights readable by the owner only."""
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(0o644)


def _shard_size(source: Path | None) -> int:
    """As large as the source's shards; one file where it has one."""
    shards = sorted(source.glob("*.safetensors")) if source is not None and source.is_dir() else []
    biggest = max((shard.stat().st_size for shard in shards), default=0)
    return biggest if len(shards) > 1 else 1 << 50


def _save_streamed(network: Network, folder: Path, parts: Sequence[Path]) -> None:
    assemble(parts, folder)
    config = network.model.config
    config.architectures = [network.architecture]
    config.dtype = network.model.dtype
    config.save_pretrained(folder)
    generation = network.source.path / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, folder / generation.name)


def _copy_beside(source: Path, folder: Path, left_out: Sequence[str]) -> None:
    """Copies tokenizer, custom code and other small files of a folder as they are; never weights or our own reports."""
    for path in sorted(source.rglob("*")) if source.is_dir() else ():
        relative = path.relative_to(source)
        if not path.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        if len(relative.parts) == 1 and path.name in OURS:
            continue
        if any(path.match(pattern) for pattern in (*NOT_COPIED, *left_out)):
            continue
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
