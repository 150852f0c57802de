"""The level database: every place solved at every level once, so that a candidate is put together, not solved.

Frantar, Kurtic and Alistarh 2022, "Optimal Brain Compression" (arXiv 2208.11580, section 6) stitch models from such a
database; Sieberling et al. 2024 (arXiv 2410.14649) search over one. Each entry is a file of its own: a bit per weight
that stays, and the weights that stay. What was solved once serves later searches for other targets, too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.calibration.windows import Windows
from secateur.errors import ModelError, SaveError
from secateur.files import save_tensors, save_text
from secateur.journal import weight_files
from secateur.network.network import Network
from secateur.recipe import Prune, Recipe, Search

INDEX = "about.json"


class LevelDatabase:
    """A folder of solved layers, by place and by what goes.

    Attributes:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, root: Path, about: Mapping[str, Any]) -> LevelDatabase:
        """Returns the database for one model, calibration and way to solve, which its folder is named after.

        Args:
            root: Where databases are kept.
            about: What all of its entries depend on, as plain data.
        """
        text = json.dumps(about, indent=1, sort_keys=True)
        folder = root / hashlib.sha256(text.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / INDEX).is_file():
            save_text(text, folder / INDEX)
        return cls(folder)

    def __contains__(self, entry: tuple[str, int]) -> bool:
        return self._path(*entry).is_file()

    def check_room(self, needed: int) -> None:
        """Raises SaveError if the disk has no room for so many bytes of further entries."""
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise SaveError(
                f"solving every level needs {needed / 1e9:.3g} GB in {self.folder}, whose disk has {free / 1e9:.3g} GB "
                "free; make room, or name another folder with --levels."
            )

    def put(self, place: str, amount: int, W: Tensor, loss: float, bias: Tensor | None = None) -> None:
        """Keeps a place's weights (out, in) at an amount, and what that costs in quality."""
        stays = W != 0
        packed = np.packbits(stays.cpu().numpy().reshape(-1), bitorder="little")
        tensors = {"mask": torch.from_numpy(packed), "values": W[stays].cpu()}
        tensors |= {} if bias is None else {"bias": bias.cpu()}
        about = {"rows": str(W.shape[0]), "columns": str(W.shape[1]), "loss": repr(loss)}
        save_tensors(tensors, self._path(place, amount), about)

    def loss(self, place: str, amount: int) -> float:
        """Returns what was measured when an entry was solved."""
        with self._open(place, amount) as file:
            return float(file.metadata()["loss"])

    def get(self, place: str, amount: int) -> tuple[Tensor, Tensor | None]:
        """Returns a place's weights (out, in) and bias at an amount.

        Raises:
            ModelError: The entry is missing or damaged.
        """
        with self._open(place, amount) as file:
            about = file.metadata()
            mask, values = file.get_tensor("mask"), file.get_tensor("values")
            bias = file.get_tensor("bias") if "bias" in file.keys() else None  # noqa: SIM118 (it is no dict)
        rows, columns = int(about["rows"]), int(about["columns"])
        stays = np.unpackbits(mask.numpy(), count=rows * columns, bitorder="little").view(np.bool_)
        W = torch.zeros(rows * columns, dtype=values.dtype).masked_scatter_(torch.from_numpy(stays), values)
        return W.view(rows, columns), bias

    @contextmanager
    def _open(self, place: str, amount: int) -> Iterator[Any]:
        path = self._path(place, amount)
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} can't be read ({error}); remove it, and it is solved again.") from error

    def _path(self, place: str, amount: int) -> Path:
        return self.folder / place.replace("/", "-") / f"{amount}.safetensors"


def database_about(network: Network, recipe: Recipe, solved: Prune, search: Search, windows: Windows) -> dict[str, Any]:
    """Returns what all entries of a level database depend on."""
    told = solved.model_dump(mode="json", exclude={"sparsity", "params"})
    draws = recipe.calibration.data == "self" or solved.score == "random" or ":" in (solved.score or "")
    return {
        "model": weight_files(network),
        "dtype": str(network.model.dtype),
        "solved": told,
        "losses": search.losses,
        "calibration": recipe.calibration.model_dump(mode="json", exclude={"activation_memory"}),
        "tokens": int(windows.ids.sum()),
        "seed": recipe.seed if draws else None,
    }


def entry_bytes(weights: int, stay: int, size: int) -> int:
    """Returns the bytes of an entry of the database: of how many weights, how many of which stay, of how many bytes."""
    return -(-weights // 8) + stay * size
