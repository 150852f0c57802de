"""Masks: which weights of a network stay, one bit each; saved with a run, checked, applied, compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.errors import MaskError, UsageError, first_line
from secateur.network.network import Layer, Network

FILE = "secateur.mask"  # a safetensors file by another name, so that no tool takes it for weights
FORMAT = "secateur-mask-1"
GROUPS = (4, 8, 16, 32)  # sizes M of N:M groups that a description looks for
BY_CHANCE = 0.01  # share of zeros that a model may have that nobody pruned: rounding to few bits made them


@dataclass(frozen=True)
class MaskedLayer:
    """One layer's mask: `packed` holds a bit per weight of (rows, columns) = (out, in), row-major, low bit first."""

    rows: int
    columns: int
    packed: Tensor

    @classmethod
    def of(cls, keep: Tensor) -> MaskedLayer:
        """Packs keep: (out, in) bool."""
        bits = np.packbits(keep.detach().cpu().contiguous().numpy(), bitorder="little")
        return cls(keep.shape[0], keep.shape[1], torch.from_numpy(bits))

    @property
    def keep(self) -> Tensor:
        """(out, in) bool."""
        bits = np.unpackbits(self.packed.numpy(), count=self.rows * self.columns, bitorder="little")
        return torch.from_numpy(bits.view(np.bool_)).view(self.rows, self.columns)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.rows * self.columns

    @property
    def zeros(self) -> int:
        """Number of weights that go."""
        return self.weights - int(np.unpackbits(self.packed.numpy(), count=self.weights, bitorder="little").sum())


class Mask:
    """Which weights of a network's layers stay.

    Layers go by their names in the network (`secateur inspect --layers`), and are (out, in) whatever way
    they are stored.

    Example:
        >>> mask = secateur.Mask.of(secateur.load("out/half"))
        >>> print(mask.describe())
        >>> mask.verify(network)          # raises MaskError if a weight came back
    """

    def __init__(self, layers: Mapping[str, MaskedLayer]) -> None:
        self.layers = dict(layers)

    @classmethod
    def of(cls, network: Network, names: list[str] | None = None) -> Mask:
        """Reads a network's zeros: of the layers named, or of all inside the blocks."""
        _check(network)
        found = _layers(network)
        return cls(
            {
                layer.name: MaskedLayer.of(layer.matrix() != 0)
                for layer in network.visit([found[name] for name in names] if names else network.layers())
            }
        )

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(layer.weights for layer in self.layers.values())

    @property
    def zeros(self) -> int:
        """Number of weights that go."""
        return sum(layer.zeros for layer in self.layers.values())

    @property
    def sparsity(self) -> float:
        """Share of weights that go."""
        return self.zeros / self.weights if self.weights else 0.0

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Mask)
            and self.layers.keys() == other.layers.keys()
            and all(
                (one.rows, one.columns) == (two.rows, two.columns) and torch.equal(one.packed, two.packed)
                for one, two in ((self.layers[name], other.layers[name]) for name in self.layers)
            )
        )

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: Mask) -> Mask:
        """Returns the mask of what both keep; layers that only one of them has stay as they are there.

        Raises:
            MaskError: A layer's shapes differ.
        """
        layers = {**self.layers, **other.layers}
        for name in self.layers.keys() & other.layers.keys():
            one, two = self.layers[name], other.layers[name]
            if (one.rows, one.columns) != (two.rows, two.columns):
                raise MaskError(f"{name} has {one.rows} x {one.columns} weights in one mask, not so in the other.")
            layers[name] = MaskedLayer(one.rows, one.columns, one.packed & two.packed)
        return Mask(layers)

    def apply(self, network: Network) -> None:
        """Sets what goes to zero, in place; what stays is left as it is.

        Raises:
            MaskError: The network has no layer of a name, or one of another shape.
        """
        _check(network)
        if network.store is not None:
            raise MaskError("a mask is applied to a network in memory; load it without streaming.")
        for layer, masked in self._matched(network):
            layer.matrix().masked_fill_(~masked.keep, 0)

    def violations(self, network: Network) -> dict[str, int]:
        """Returns by layer how many weights aren't zero though the mask says so; layers without any left out."""
        masks = {layer.name: masked for layer, masked in self._matched(network)}
        layers = [layer for layer, _ in self._matched(network)]
        counts = {
            layer.name: int((layer.matrix()[~masks[layer.name].keep] != 0).sum()) for layer in network.visit(layers)
        }
        return {name: count for name, count in counts.items() if count}

    def verify(self, network: Network) -> None:
        """Raises MaskError if a weight that should be zero isn't."""
        found = self.violations(network)
        if found:
            name = next(iter(found))
            raise MaskError(
                f"{sum(found.values())} weights in {len(found)} layers aren't zero though the mask says so "
                f"({found[name]} in {name})."
            )

    def _matched(self, network: Network) -> list[tuple[Layer, MaskedLayer]]:
        _check(network)
        known = _layers(network)
        pairs = []
        for name, masked in self.layers.items():
            if name not in known:
                raise MaskError(f"the network has no layer '{name}'; is the mask that of another model?")
            if known[name].shape != (masked.rows, masked.columns):
                raise MaskError(f"{name} is {known[name].shape} (out, in), but its mask {masked.rows, masked.columns}.")
            pairs.append((known[name], masked))
        return pairs

    @property
    def pattern(self) -> str | None:
        """The N:M pattern that every single group holds, such as `2:4`; None where there is none."""
        found = self._groups
        return f"{found[0]}:{found[1]}" if found is not None and found[2] == found[3] else None

    def describe(self) -> str:
        """Says it in words, such as `2:4 in 100 % of groups, 50.00 %`; 100 stands for each of them."""
        share = f"{100 * self.sparsity:.2f} %"
        found = self._groups
        if found is None:
            return f"unstructured, {share}"
        kept, size, fitting, groups = found
        of = "100" if fitting == groups else f"{min(100 * fitting / groups, 99.99):.4g}"
        full = self.sparsity < 1 - (kept - 0.5) / size  # else most groups hold fewer than the pattern lets them
        return f"{'' if full else 'at most '}{kept}:{size} in {of} % of groups, {share}"

    @cached_property
    def _groups(self) -> tuple[int, int, int, int] | None:
        """Returns N and M of the pattern that nine of ten groups hold, how many hold it, and how many there are."""
        for size in GROUPS:
            if any(layer.columns % size for layer in self.layers.values()):
                continue
            groups, fullest = 0, np.zeros(size + 1, np.int64)
            for layer in self.layers.values():
                kept = layer.keep.view(-1, size).sum(1)
                groups += kept.numel()
                fullest += np.bincount(kept.numpy(), minlength=size + 1)
            usual = int(fullest.argmax())
            fitting = int(fullest[: usual + 1].sum())
            if 0 < usual < size and fitting > 0.9 * groups:
                return usual, size, fitting, groups
        return None

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file: a uint8 tensor per layer, shapes in the metadata."""
        shapes = {name: (layer.rows, layer.columns) for name, layer in self.layers.items()}
        _write(Path(path), shapes, (layer.packed for layer in self.layers.values()))

    @classmethod
    def load(cls, path: str | Path) -> Mask:
        """Reads what `save` wrote; a folder stands for the mask in it.

        Raises:
            MaskError: There is none, or it is damaged.
        """
        path = Path(path) / FILE if Path(path).is_dir() else Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if about.get("format") != FORMAT:
                    raise MaskError(f"{path} holds no secateur mask.")
                layers = {
                    name: MaskedLayer(rows, columns, file.get_tensor(name))
                    for name, (rows, columns) in json.loads(about["shapes"]).items()
                }
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise MaskError(f"{path} can't be read as a mask: {first_line(error)}.") from error
        for name, layer in layers.items():
            if layer.packed.dtype != torch.uint8 or layer.packed.numel() != -(-layer.weights // 8):
                raise MaskError(f"{path}: the mask of {name} is damaged.")
        return cls(layers)


def save_mask(network: Network, path: Path) -> None:
    """Writes the zeros of a network's blocks, of quantized layers those that there were before they were rounded.

    As `Mask.of(network).save(path)` of a network that isn't quantized, but holds one layer's mask at a time.
    """
    layers = network.layers()
    packed = (_masked(network, layer).packed for layer in network.visit(layers))
    _write(path, {layer.name: layer.shape for layer in layers}, packed)


def has_mask(network: Network) -> bool:
    """Whether a network that nothing was pruned of has a mask to be held: one beside its source, or many zeros."""
    layers = network.layers()
    if not layers or (network.source.path / FILE).is_file():
        return bool(layers)
    zeros = sum(_masked(network, layer).zeros for layer in network.visit(layers))
    return zeros > BY_CHANCE * sum(layer.weights for layer in layers)


def _masked(network: Network, layer: Layer) -> MaskedLayer:
    on = network.quantized.get(layer.name)
    if on is None or on.keep is None:
        return MaskedLayer.of(layer.matrix() != 0)
    return MaskedLayer(*layer.shape, on.keep)


def take_mask(network: Network, mask: Mask) -> None:
    """Tells a quantized network that was loaded what was no zero before its weights were rounded."""
    for name, on in network.quantized.items():
        if name in mask.layers:
            network.quantized[name] = replace(on, keep=mask.layers[name].packed)


def _write(path: Path, shapes: Mapping[str, tuple[int, int]], packed: Iterable[Tensor]) -> None:
    """Writes the layers one after the other behind a header that is known before."""
    header: dict[str, Any] = {"__metadata__": {"format": FORMAT, "shapes": json.dumps(shapes)}}
    end = 0
    for name, (rows, columns) in shapes.items():
        begin, end = end, end + -(-rows * columns // 8)
        header[name] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for bits in packed:
            file.write(bits.numpy().data)


def _layers(network: Network) -> dict[str, Layer]:
    return {layer.name: layer for layer in (*network.layers(), *network.outside())}


def _check(network: object) -> None:
    if not isinstance(network, Network):
        raise UsageError(
            f"a mask is of what secateur.load gives, but got a {type(network).__name__}: save a transformers model "
            "with save_pretrained and load the folder."
        )
