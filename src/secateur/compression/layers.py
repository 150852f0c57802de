"""The linear modules that can lie on a grid: whole layers, and the factors of those that stand as such."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from secateur.layer_choice import chosen_layers
from secateur.network.family import Layout
from secateur.network.network import Layer, Network

PARTS = ("down", "up", "kept")  # of `network.reshaped.Factors`


def linear_layers(network: Network) -> list[Layer]:
    """Returns the linear layers of all blocks in forward order, of factors `down`, `up` and, with weights, `kept`."""
    return [layer for block in range(len(network.blocks)) for layer in _of_block(network, block)]


def _of_block(network: Network, block: int) -> Iterator[Layer]:
    factors = {projection.path: module for projection, module in network.factors(block)}
    known = network.described_layers(block)
    for projection in network.stack_of(block).projections:
        path, own = projection.path, network.block_name(block)
        if path in factors:
            down, up = factors[path].down, factors[path].up
            yield _layer(f"{own}.{path}.down", down, f"{own}/{projection.columns}", block)
            yield _layer(f"{own}.{path}.up", up, f"{own}.{path}.up", block)
        yield from (layer for one, layer in known if one.path in (path, f"{path}.kept"))


def _layer(name: str, module: nn.Linear, reads: str, block: int) -> Layer:
    assert isinstance(module.weight, nn.Parameter)
    return Layer(name, module.weight, Layout.OUT_IN, reads, module, block=block)


def chosen_linear_layers(network: Network, include: Sequence[str], exclude: Sequence[str]) -> list[Layer]:
    """Returns the layers that globs choose; the name of a layer that stands as factors is that of all of its parts.

    Raises:
        UsageError: A glob matches nothing, or nothing is left.
    """
    inside, outside = linear_layers(network), network.outside()
    names = [layer.name for layer in (*inside, *outside)]

    def known(globs: Sequence[str]) -> list[str]:
        found = []
        for glob in globs:
            parts = (glob, *(f"{glob}.{part}" for part in PARTS))
            found += [one for one in parts if any(fnmatchcase(name, one) for name in names)] or [glob]
        return found

    return chosen_layers(inside, outside, known(include), known(exclude))
