"""Saving: a checkpoint that plain transformers loads, in a folder that appears only when it is complete."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from secateur.errors import SaveError, UsageError
from secateur.network import reload
from secateur.network.network import Network
from secateur.network.quiet import quiet_transformers

RESULT_FILE = "secateur.json"
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
OURS = ("config.json", "generation_config.json", "README.md", "report.html", "secateur.mask", RESULT_FILE)
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}  # of the largest logit


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
            raise UsageError(f"the output {output} exists; add --overwrite to replace it, or choose another name.")
        if not (output / RESULT_FILE).is_file():
            raise UsageError(f"the output {output} wasn't written by secateur, so --overwrite doesn't replace it.")


@contextmanager
def complete_folder(output: Path) -> Iterator[Path]:
    """Gives a scratch folder beside `output` that takes its place at the end, or vanishes on any error.

    Raises:
        SaveError: The disk is full, or can't be written.
    """
    scratch: Path | None = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _uninterrupted():
            scratch = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.partial-"))
        yield scratch
        scratch.chmod(0o755)
        _replace(scratch, output)
    except OSError as error:
        raise SaveError(explain(error, output)) from error
    finally:
        if scratch is not None:
            with _uninterrupted():
                shutil.rmtree(scratch, ignore_errors=True)


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
        return f"the disk is full while writing {where}; make room and run again. Nothing was left behind."
    name = f" ({error.filename})" if error.filename else ""
    return f"can't write {where}: {error.strerror or error}{name}. Nothing was left behind."


def check_room(network: Network, output: Path) -> None:
    """Raises SaveError before any work is done if the disk has no room for the checkpoint."""
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    needed = sum(parameter.nbytes for parameter in network.model.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SaveError(f"{output} needs {needed / 1e9:.2f} GB, but the disk of {folder} has {free / 1e9:.2f} GB free.")


def save_network(network: Network, folder: Path) -> None:
    """Writes weights, config, tokenizer and whatever small files came along, into an existing folder.

    The shards are as large as the source's; dtype and tensor names are the source's too.

    Raises:
        SaveError: The disk is full, or can't be written.
    """
    source = network.source.path
    shards = sorted(source.glob("*.safetensors")) if source.is_dir() else []
    biggest = max((shard.stat().st_size for shard in shards), default=0)
    shard_size = biggest if len(shards) > 1 else 1 << 50
    try:
        with quiet_transformers():
            network.model.save_pretrained(folder, max_shard_size=shard_size)
    except OSError as error:
        raise SaveError(explain(error, folder)) from error
    except SafetensorError as error:  # its writer puts the operating system's words into a text
        full = "os error 28" in str(error) or "os error 122" in str(error)
        raise SaveError(explain(OSError(errno.ENOSPC if full else errno.EIO, str(error)), folder)) from error
    if source.is_dir():
        _copy_beside(source, folder)
    elif network.tokenizer is not None:
        network.tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(0o644)  # save_pretrained leaves weights readable by the owner only


def _copy_beside(source: Path, folder: Path) -> None:
    """Copies tokenizer, custom code and other small files as they are; never weights or our own reports."""
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if not path.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        if len(relative.parts) == 1 and path.name in OURS:
            continue
        if any(path.match(pattern) for pattern in NOT_COPIED):
            continue
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def reload_difference(network: Network, folder: Path, ids: Tensor) -> float:
    """Loads the saved checkpoint in a fresh process without secateur and compares its output on `ids`.

    Args:
        network: The model in memory, as it was saved.
        folder: The checkpoint.
        ids: (windows, length) to feed both.

    Returns:
        The largest absolute difference.

    Raises:
        SaveError: The checkpoint doesn't load, or gives other outputs.
    """
    with torch.inference_mode():
        expected = network.model(ids)[0].float()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "output.safetensors"
        trust = "1" if network.source.trust_remote_code else "0"
        done = subprocess.run(
            [sys.executable, "-I", reload.__file__, str(folder.absolute()), trust, str(out)],
            input=json.dumps(ids.tolist()),
            text=True,
            capture_output=True,
            check=False,
            cwd=scratch,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums in another order differ in the last bit
            },
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise SaveError(f"the saved checkpoint doesn't load in a fresh process: {lines[-1]}")
        found = load_file(out)["output"]
    difference = float((found - expected).abs().max())
    allowed = TOLERANCE[network.model.dtype] * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise SaveError(f"the saved checkpoint gives other outputs than the model in memory (by {difference:g}).")
    return difference
