"""Packed checkpoints: pruned weights stored as a bit mask and the values that are left, and back to the same bytes.

A folder of packed files looks like the checkpoint that it was made of, but each `NAME.safetensors` has become
`packed-NAME.safetensors`, a safetensors file, too:

* a weight `w` that gets smaller is stored as `w#mask` (uint8, one bit per weight in row-major order, the lowest bit
  first, 1 for what is kept) and `w#values` (the kept weights in the same order, dtype as before). Kept is whatever
  isn't a zero of all bits clear, so a negative zero comes back as one;
* every other tensor is stored as it is;
* the metadata say `secateur`: `packed-1`, `header`: the original file's header, byte for byte, and `sha256`: the
  hash of the whole original file. What is restored is held against it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from secateur.errors import ModelError
from secateur.network.saving import check_output, complete_folder
from secateur.network.shards import indexed_shards
from secateur.progress import Progress

FORMAT = "packed-1"
PREFIX = "packed-"
NOTE_FILE = "PACKED.md"
NOTE = """# A packed checkpoint

Its pruned weights are stored as bit masks and kept values. Other tools read it after

    secateur unpack THIS_FOLDER -o FOLDER

which gives the same bytes as before; secateur itself reads it as it is. README.md is the card of what comes out.
"""
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of the dtypes that are packed
INTEGERS = {8: np.uint64, 4: np.uint32, 2: np.uint16}
CHUNK = 1 << 24

Bits = npt.NDArray[Any]


@dataclass(frozen=True)
class PackedSize:
    """What packing or unpacking came to.

    Attributes:
        output: The folder that was written.
        seconds: Wall time.
        plain, packed: Bytes of the weight files in either form.
        layers_plain, layers_packed: Bytes of those tensors that are smaller when packed.
        tensors: How many they are.
    """

    output: str
    seconds: float
    plain: int
    packed: int
    layers_plain: int
    layers_packed: int
    tensors: int


def is_packed(folder: Path) -> bool:
    """Whether a folder holds a packed checkpoint."""
    return folder.is_dir() and any(folder.glob(f"{PREFIX}*.safetensors"))


def pack(folder: Path, output: Path, overwrite: bool, progress: Progress) -> PackedSize:
    """Packs a checkpoint's pruned weights, one tensor at a time.

    Args:
        folder: A checkpoint folder with safetensors files.
        output: The folder to write; it appears only when complete.
        overwrite: Whether an existing output of ours may be replaced.
        progress: Shows progress.

    Returns:
        The sizes.

    Raises:
        ModelError: There is nothing to pack: no weight gets smaller. Or a file is missing or corrupt.
        SaveError: The disk is full, or can't be written.
        UsageError: The output exists.
    """
    start = time.perf_counter()
    check_output(output, overwrite, folder)
    if is_packed(folder):
        raise ModelError(f"{folder} is packed already.")
    indexed_shards(folder)  # none is missing
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise ModelError(f"{folder} has no .safetensors file to pack.")
    sizes = [0, 0, 0, 0, 0]
    with complete_folder(output) as scratch:
        tick = progress.bar("packing", sum(len(_Original(shard).tensors) for shard in shards))
        for shard in shards:
            found = _pack_file(_Original(shard), scratch / f"{PREFIX}{shard.name}", tick)
            sizes = [a + b for a, b in zip(sizes, found, strict=True)]
        if sizes[4] == 0:
            raise ModelError(f"{folder}: no weight has enough zeros to be smaller when packed. Prune it first.")
        _copy_rest(folder, scratch, shards)
        (scratch / NOTE_FILE).write_text(NOTE, encoding="utf-8")
    return PackedSize(str(output), time.perf_counter() - start, *sizes)


def unpack(folder: Path, output: Path, overwrite: bool, progress: Progress) -> PackedSize:
    """Restores the checkpoint that a packed one was made of, to the same bytes, one tensor at a time.

    Raises:
        ModelError: A file is missing, truncated, tampered with, or isn't a packed one.
        SaveError: The disk is full, or can't be written.
        UsageError: The output exists.
    """
    start = time.perf_counter()
    check_output(output, overwrite, folder)
    with complete_folder(output) as scratch:
        sizes = unpack_into(folder, scratch, progress)
    return PackedSize(str(output), time.perf_counter() - start, *sizes)


def unpack_into(folder: Path, output: Path, progress: Progress) -> list[int]:
    """As `unpack`, into a folder that exists; returns the sizes of `PackedSize` in their order."""
    packed = sorted(folder.glob(f"{PREFIX}*.safetensors")) if folder.is_dir() else []
    if not packed:
        raise ModelError(f"{folder} holds no packed checkpoint ({PREFIX}*.safetensors).")
    indexed_shards(folder, PREFIX)  # none is missing
    files = [_Packed(path) for path in packed]
    tick = progress.bar("unpacking", sum(len(file.original) for file in files))
    sizes = [0, 0, 0, 0, 0]
    for file in files:
        target = output / file.path.name.removeprefix(PREFIX)
        found = file.restore(target, tick)
        sizes = [a + b for a, b in zip(sizes, found, strict=True)]
    _copy_rest(folder, output, packed)
    return sizes


def _copy_rest(folder: Path, output: Path, shards: Sequence[Path]) -> None:
    """Copies what isn't weights as it is, but not the note of a packed folder."""
    names = {shard.name for shard in shards} | {NOTE_FILE}
    shutil.copytree(
        folder, output, dirs_exist_ok=True, ignore=lambda where, some: names if Path(where) == folder else ()
    )


def _header(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Returns a safetensors file's header as bytes and as JSON, checked against the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length) if 0 < length <= size - 8 else b""
    try:
        header: Any = json.loads(raw)
        ends = [about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{path} is not a whole safetensors file: its header can't be read.") from error
    if 8 + length + max(ends, default=0) != size:
        raise ModelError(f"{path} is truncated: its header promises {8 + length + max(ends, default=0):,} bytes.")
    return raw, header


class _Original:
    """A safetensors file that is to be packed.

    Attributes:
        tensors: (name, about) in the order of their data.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw, header = _header(path)
        header.pop("__metadata__", None)
        self.tensors: list[tuple[str, dict[str, Any]]] = sorted(header.items(), key=lambda x: x[1]["data_offsets"])
        self.start = 8 + len(self.raw)

    def data(self, about: dict[str, Any]) -> npt.NDArray[np.uint8]:
        """Maps a tensor's bytes."""
        begin, end = about["data_offsets"]
        if begin == end:
            return np.zeros(0, np.uint8)
        return np.memmap(self.path, np.uint8, "r", self.start + begin, (end - begin,))


def _pack_file(original: _Original, output: Path, tick: Any) -> tuple[int, int, int, int, int]:
    """Writes one packed file; returns bytes before and after, of all and of packed tensors, and their number."""
    digest = hashlib.sha256(len(original.raw).to_bytes(8, "little") + original.raw)
    header: dict[str, Any] = {}
    offset, layers_before, layers_after, packed = 0, 0, 0, set()

    def place(name: str, dtype: str, shape: list[int], size: int) -> None:
        nonlocal offset
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size

    for name, about in original.tensors:
        data = original.data(about)
        digest.update(data.data)
        width = WIDTHS.get(about["dtype"])
        kept = 0 if width is None else int(np.count_nonzero(data.view(INTEGERS[width])))
        size = data.size if width is None else math.ceil(data.size // width / 8) + kept * width
        if size < data.size:
            packed.add(name)
            layers_before += data.size
            layers_after += size
            place(f"{name}#values", about["dtype"], [kept], kept * (width or 0))
            place(f"{name}#mask", "U8", [size - kept * (width or 0)], size - kept * (width or 0))
        else:
            place(name, about["dtype"], about["shape"], data.size)
    header["__metadata__"] = {
        "secateur": FORMAT,
        "header": original.raw.decode("utf-8"),
        "sha256": digest.hexdigest(),
    }
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with output.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name, about in original.tensors:
            data = original.data(about)
            if name in packed:
                bits = data.view(INTEGERS[WIDTHS[about["dtype"]]])
                keep = bits != 0
                file.write(bits[keep].tobytes())
                file.write(np.packbits(keep, bitorder="little").tobytes())
            else:
                for begin in range(0, data.size, CHUNK):
                    file.write(data[begin : begin + CHUNK].tobytes())
            tick()
        _flush(file)
    return original.path.stat().st_size, output.stat().st_size, layers_before, layers_after, len(packed)


class _Packed:
    """A packed file.

    Attributes:
        original: (name, about) of the original's tensors in the order of their data.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        raw, self.header = _header(path)
        self.start = 8 + len(raw)
        about = self.header.get("__metadata__", {})
        if about.get("secateur") != FORMAT:
            raise ModelError(f"{path} isn't a packed file of a kind that this version knows.")
        try:
            self.raw = about["header"].encode("utf-8")
            self.digest = about["sha256"]
            header = json.loads(self.raw)
            header.pop("__metadata__", None)
            self.original: list[tuple[str, dict[str, Any]]] = sorted(header.items(), key=lambda x: x[1]["data_offsets"])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise self._damaged() from error

    def _damaged(self) -> ModelError:
        return ModelError(f"{self.path} is damaged: what it holds isn't what was packed. Pack the checkpoint again.")

    def restore(self, output: Path, tick: Any) -> tuple[int, int, int, int, int]:
        """Writes the original file, and returns sizes as `_pack_file`."""
        digest = hashlib.sha256()
        with output.open("wb") as file:
            for part in self._parts(tick):
                digest.update(part)
                file.write(part)
            _flush(file)
        if digest.hexdigest() != self.digest:
            output.unlink()
            raise self._damaged()
        packed = [name.removesuffix("#mask") for name in self.header if name.endswith("#mask")]
        plain = sum(
            end - begin for name, about in self.original if name in packed for begin, end in [about["data_offsets"]]
        )
        stored = sum(
            end - begin
            for name in packed
            for part in ("mask", "values")
            for begin, end in [self.header[f"{name}#{part}"]["data_offsets"]]
        )
        return output.stat().st_size, self.path.stat().st_size, plain, stored, len(packed)

    def _parts(self, tick: Any) -> Iterator[bytes | memoryview]:
        """Yields the original's bytes in order."""
        yield len(self.raw).to_bytes(8, "little") + self.raw
        for name, about in self.original:
            try:
                yield self._tensor(name, about).view(np.uint8).data
            except (KeyError, ValueError, IndexError, TypeError) as error:
                raise self._damaged() from error
            tick()

    def _tensor(self, name: str, about: dict[str, Any]) -> Bits:
        if name in self.header:
            return np.ascontiguousarray(self._data(name))
        kind = INTEGERS[WIDTHS[about["dtype"]]]
        number = math.prod(about["shape"])
        keep = np.unpackbits(self._data(f"{name}#mask"), count=number, bitorder="little").view(np.bool_)
        bits: Bits = np.zeros(number, kind)
        bits[keep] = self._data(f"{name}#values").view(kind)
        return bits

    def _data(self, name: str) -> npt.NDArray[np.uint8]:
        begin, end = self.header[name]["data_offsets"]
        return np.fromfile(self.path, np.uint8, end - begin, offset=self.start + begin)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
