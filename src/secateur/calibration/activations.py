"""Calibration activations: the hidden states before a block, in memory or in files that are mapped batch by batch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.errors import CalibrationError, first_line
from secateur.files import save_tensors


@dataclass(frozen=True)
class Storage:
    """Where activations may be kept.

    Attributes:
        folder: For files; None keeps everything in memory.
        limit: Bytes that may be held in memory; more go to files.
        run: Identifies the run, so that files of another one are never taken for its own.
        kept: Whether files stay until `forget`, for a run that may be resumed; else each position's go with the next.
    """

    folder: Path | None = None
    limit: int = 1 << 62
    run: str = ""
    kept: bool = True


IN_MEMORY = Storage()
ANEW = "--overwrite instead of --resume starts anew"


class Activations:
    """One tensor per batch, before one block (`position`); `advance` makes those behind it the current ones.

    In files, the tensors of one position are a folder `NAME-POSITION` with a safetensors file per batch.
    """

    def __init__(self, name: str, storage: Storage, size: int, position: int = 0) -> None:
        """Starts empty.

        Args:
            name: Tells these activations from others in the same folder.
            storage: Where they may be kept.
            size: Bytes that they are going to take.
            position: Index of the block that they stand before.
        """
        self.name = name
        self.storage = storage
        self.position = position
        self._memory: list[Tensor] | None = [] if storage.folder is None or size <= storage.limit else None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, batch: int) -> Tensor:
        return self._memory[batch] if self._memory is not None else self._read(batch)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[batch] for batch in range(self._count))

    def append(self, tensor: Tensor) -> None:
        """Adds a batch before the current block."""
        if self._memory is not None:
            self._memory.append(tensor)
        else:
            self._write(self.position, self._count, tensor)
        self._count += 1

    def put(self, batch: int, tensor: Tensor) -> None:
        """Gives a batch's tensor behind the current block; it can't be read before `advance`."""
        if self._memory is not None:
            self._memory[batch] = tensor
        else:
            self._write(self.position + 1, batch, tensor)

    def advance(self) -> None:
        """Stands before the next block, for which every batch has been put."""
        self.position += 1
        if not self.storage.kept:
            self.forget()

    def save(self) -> None:
        """Makes the current position durable."""
        if self._memory is not None:
            for batch, tensor in enumerate(self._memory):
                self._write(self.position, batch, tensor)

    def forget(self) -> None:
        """Removes the files of all positions but the current one."""
        if self.storage.folder is not None:
            for folder in self.storage.folder.glob(f"{self.name}-*"):
                if folder != self._folder(self.position):
                    shutil.rmtree(folder)

    def close(self) -> None:
        """Removes all files and gives up the memory."""
        self._memory, self._count = [], 0
        if self.storage.folder is not None:
            for folder in self.storage.folder.glob(f"{self.name}-*"):
                shutil.rmtree(folder)

    def restore(self, position: int, count: int) -> None:
        """Takes up what `save` left at a position.

        Raises:
            CalibrationError: It isn't whole, or another run's.
        """
        self.position, self._count = position, count
        if self._memory is not None:
            self._memory = [self._read(batch).clone() for batch in range(count)]
        else:
            for batch in range(count):
                self._read(batch)

    def _folder(self, position: int) -> Path:
        assert self.storage.folder is not None
        return self.storage.folder / f"{self.name}-{position:05}"

    def _write(self, position: int, batch: int, tensor: Tensor) -> None:
        path = self._folder(position) / f"{batch:05}.safetensors"
        save_tensors({"hidden": tensor.cpu()}, path, {"run": self.storage.run})

    def _read(self, batch: int) -> Tensor:
        path = self._folder(self.position) / f"{batch:05}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("run") != self.storage.run:
                    raise CalibrationError(f"{path} is an activation file of another run; {ANEW}.")
                found: Tensor = file.get_tensor("hidden")
        except (OSError, SafetensorError) as error:
            raise CalibrationError(f"the activation file {path} can't be read: {first_line(error)}; {ANEW}.") from error
        return found
