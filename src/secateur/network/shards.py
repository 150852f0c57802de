"""The weight files that a checkpoint's index names."""

from __future__ import annotations

import json
from pathlib import Path

from secateur.errors import ModelError

INDEX = "model.safetensors.index.json"


def indexed_shards(folder: Path, prefix: str = "") -> list[Path]:
    """Returns the weight files that a folder's index names, each of them there; none without an index.

    Args:
        folder: A checkpoint folder.
        prefix: What a file's name begins with before the name in the index.

    Raises:
        ModelError: The index can't be read, or a file is missing.
    """
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        shards = [folder / (prefix + name) for name in names]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is not a shard index: {error}.") from error
    for shard in shards:
        if not shard.is_file():
            raise ModelError(f"{shard} is missing, though {INDEX} names it; fetch it again.")
    return shards
