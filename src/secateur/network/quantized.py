"""Quantized checkpoints: integers and scales in the `pack-quantized` layout of compressed-tensors, and back.

transformers loads such a folder where the package compressed-tensors is installed, and vLLM does by itself. A quantized
layer's `weight` is stored as

* `weight_packed` (out, in * bits / 32) int32: integers plus 2^(bits - 1), the first input in the lowest bits;
* `weight_scale` (out, groups), in the checkpoint's dtype;
* `weight_shape` (2,) int64.

In memory its weights are the integers times the scales, in the checkpoint's dtype: bit for bit what comes of the file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.compression.grid import Grid
from secateur.errors import ModelError
from secateur.network.shards import INDEX

METHOD, LAYOUT = "compressed-tensors", "pack-quantized"
INSTALL = "the package compressed-tensors is missing: pip install 'secateur[quant]'."
CONFIG = "config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class OnGrid:
    """Where a layer's weights lie.

    Attributes:
        grid: The grid.
        scales: (out, groups) float32.
        keep: uint8, a bit per weight as in `secateur.mask.MaskedLayer`: what was no zero before it was rounded; None of
            a checkpoint that was loaded.
    """

    grid: Grid
    scales: Tensor
    keep: Tensor | None = None


def packed(integers: Tensor, bits: int) -> Tensor:
    """Returns (out, words) int32 from (out, in) integers, 32 / bits of them per word."""
    out, inputs = integers.shape
    each = 32 // bits
    shifted = torch.full((out, -(-inputs // each) * each), 0, dtype=torch.int64)
    shifted[:, :inputs] = integers.to(torch.int64) + (1 << (bits - 1))
    words = (shifted.reshape(out, -1, each) << (bits * torch.arange(each))).sum(2)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def unpacked(words: Tensor, bits: int, inputs: int) -> Tensor:
    """Returns (out, in) int64 integers from `packed`."""
    each = 32 // bits
    parts = (words.to(torch.int64)[:, :, None] >> (bits * torch.arange(each))) & ((1 << bits) - 1)
    return parts.flatten(1)[:, :inputs] - (1 << (bits - 1))


def quantize_files(folder: Path, layers: Mapping[str, OnGrid]) -> None:
    """Puts integers in the place of quantized layers' weights in a checkpoint folder that was just written.

    Args:
        folder: The checkpoint.
        layers: By the names of modules.
    """
    places: dict[str, str] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors: dict[str, Tensor] = {}
        with safe_open(shard, framework="pt") as file:
            metadata = file.metadata()
            for name in file.keys():  # noqa: SIM118 (a safetensors file, not a dict)
                layer, _, kind = name.rpartition(".")
                if layer in layers and kind == "weight":
                    tensors |= _stored(layer, file.get_tensor(name), layers[layer])
                else:
                    tensors[name] = file.get_tensor(name)
        save_file(tensors, shard, metadata=metadata)
        places |= dict.fromkeys(tensors, shard.name)
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"] = places
        index["metadata"]["total_size"] = sum(shard.stat().st_size for shard in folder.glob("*.safetensors"))
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    config = json.loads((folder / CONFIG).read_text())
    config["quantization_config"] = _described(layers)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _stored(layer: str, W: Tensor, on: OnGrid) -> dict[str, Tensor]:
    scale = on.grid.spread(on.scales, W.shape[1])
    integers = on.grid.integers(W.float(), scale)
    return {
        f"{layer}.weight_packed": packed(integers, on.grid.bits),
        f"{layer}.weight_scale": on.scales.to(on.grid.dtype).contiguous(),
        f"{layer}.weight_shape": torch.tensor(W.shape),
    }


def _described(layers: Mapping[str, OnGrid]) -> dict[str, Any]:
    """Returns what config.json says of the layers."""
    kinds: dict[tuple[int, int | None], list[str]] = {}
    for name, on in layers.items():
        kinds.setdefault((on.grid.bits, on.grid.group), []).append(name)
    groups = {
        f"group_{number}": {
            "targets": names,
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": True,
                "strategy": "channel" if group is None else "group",
                "group_size": group,
                "dynamic": False,
            },
            "input_activations": None,
            "output_activations": None,
            "format": LAYOUT,
        }
        for number, ((bits, group), names) in enumerate(kinds.items())
    }
    return {
        "quant_method": METHOD,
        "format": LAYOUT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [],
        "kv_cache_scheme": None,
    }


def is_quantized(folder: Path) -> bool:
    """Whether a folder holds a checkpoint in the layout of `quantize_files`."""
    path = folder / CONFIG
    if not path.is_file():
        return False
    try:
        said = json.loads(path.read_text()).get("quantization_config") or {}
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        return False
    return bool(said.get("quant_method") == METHOD and said.get("format") == LAYOUT)


def dequantize_into(folder: Path, scratch: Path) -> dict[str, OnGrid]:
    """Writes a quantized checkpoint as a plain one, and returns where its layers' weights lie, by module.

    Raises:
        ModelError: It is quantized in a way that isn't known here, or damaged.
    """
    config = json.loads((folder / CONFIG).read_text())
    said = config.pop("quantization_config")
    grids = _grids(folder, said, str(config.get("dtype") or config.get("torch_dtype") or "float32"))
    found: dict[str, OnGrid] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix != ".safetensors" and path.name not in (CONFIG, INDEX):
            shutil.copyfile(path, scratch / path.name)
    places: dict[str, str] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors: dict[str, Tensor] = {}
        with safe_open(shard, framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names):
                layer, _, kind = name.rpartition(".")
                if kind == "weight_packed":
                    if layer not in grids or f"{layer}.weight_scale" not in names:
                        raise ModelError(f"{shard} has {name}, but no scale of it, or config.json doesn't name it.")
                    scales = file.get_tensor(f"{layer}.weight_scale")
                    shape = file.get_tensor(f"{layer}.weight_shape").tolist()
                    grid = grids[layer]
                    integers = unpacked(file.get_tensor(name), grid.bits, shape[1]).to(grid.dtype)
                    tensors[f"{layer}.weight"] = integers * grid.spread(scales.to(grid.dtype), shape[1])
                    found[layer] = OnGrid(grid, scales.float())
                elif kind not in ("weight_scale", "weight_shape"):
                    tensors[name] = file.get_tensor(name)
        save_file(tensors, scratch / shard.name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, shard.name)
    if (folder / INDEX).is_file():
        (scratch / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (scratch / CONFIG).write_text(json.dumps(config))
    return found


def _grids(folder: Path, said: Mapping[str, Any], dtype: str) -> dict[str, Grid]:
    found: dict[str, Grid] = {}
    for group in said["config_groups"].values():
        weights = group["weights"]
        known = weights["type"] == "int" and weights["symmetric"] and weights["num_bits"] in (4, 8)
        if not known or group.get("input_activations") or any(one == "Linear" for one in group["targets"]):
            raise ModelError(
                f"{folder} is quantized in a way that secateur doesn't read (it reads its own: symmetric int4 and "
                "int8, weights only, layers by name); prune the model that it was made of."
            )
        size = weights["group_size"] if weights["strategy"] == "group" else None
        found |= dict.fromkeys(group["targets"], Grid(weights["num_bits"], size, DTYPES[dtype]))
    return found
