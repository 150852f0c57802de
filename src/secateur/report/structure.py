"""A model's structure, as data and as a table: what `secateur inspect` shows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import nn

from secateur.errors import UsageError
from secateur.layer_report import layer_kind
from secateur.network.family import Layout
from secateur.network.graph.network import Fixed
from secateur.network.network import Layer, Network
from secateur.network.unit_group import UnitGroup
from secateur.network.units import UNITS
from secateur.network.vision import Classifier
from secateur.report.numbers import count, percent


def structure(network: Network) -> dict[str, Any]:
    """Returns a model's facts: dimensions, and its layers with their shapes and zeros."""
    dimensions = {name: network.dimension(name) for name in network.family.config}
    for stack in network.family.encoder_decoder or ():
        dimensions |= {f"{stack.name} {name}": network.dimension(name, stack) for name in stack.config}
    return {
        **network.about(),
        "parameters": network.parameters(),
        "generates": network.generates,
        "tokenizer": network.tokenizer is not None,
        "dimensions": {name: value for name, value in dimensions.items() if value is not None},
        "layers": [_layer(layer) for layer in network.visit(network.layers())],
        "outside": [{**_layer(layer), "tied_to": network.ties(layer)} for layer in network.outside()],
    }


def classifier_structure(found: Classifier) -> dict[str, Any]:
    """Returns an image classifier's facts, as `structure` does; its layers are linear ones and convolutions."""
    example = found.example()
    layers = [
        Layer(name, module.weight, Layout.OUT_IN, name, module)  # type: ignore[arg-type]
        for name, module in found.model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ]
    return {
        "source": found.source.name,
        "architecture": type(found.model).__name__,
        "family": found.model.config.model_type,
        "dtype": found.source.dtype,
        "parameters": sum(parameter.numel() for parameter in found.model.parameters()),
        "dimensions": {
            "channels": found.channels,
            "height": example.shape[-2],
            "width": example.shape[-1],
            "labels": len(found.labels),
        },
        "layers": [_layer(layer) for layer in layers],
        "outside": [],
    }


def _layer(layer: Layer) -> dict[str, Any]:
    rows, columns = layer.shape
    return {"name": layer.name, "outputs": rows, "inputs": columns, "zeros": layer.zeros()}


def structure_table(found: dict[str, Any], every_layer: bool = False) -> RenderableType:
    """Returns tables of what `structure` gave; blocks of the same shape share a row unless `every_layer`."""
    facts = Table.grid(padding=(0, 2))
    for name in ("source", "architecture", "family", "dtype", "blocks"):
        if name in found:
            facts.add_row(name, Text(str(found[name])))
    facts.add_row("parameters", f"{found['parameters']:,}")
    facts.add_row("dimensions", ", ".join(f"{name} {value}" for name, value in found["dimensions"].items()))
    layers = Table("layer", "count", "outputs x inputs", "weights", "zeros", box=box.SIMPLE_HEAD)
    for name, group in _groups(found["layers"], every_layer).items():
        _row(layers, name, group, "")
    for layer in found["outside"]:
        tied = f" (tied to {', '.join(layer['tied_to'])})" if layer["tied_to"] else ""
        _row(layers, layer["name"], [layer], tied)
    if not found["outside"]:
        return Group(facts, layers)
    note = Text("Layers outside of the blocks are pruned only when --include names them.", style="dim")
    return Group(facts, layers, note)


def _groups(layers: list[dict[str, Any]], every_layer: bool) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for layer in layers:
        name = layer["name"] if every_layer else layer_kind(layer["name"])
        key = name if every_layer else f"{name}\t{layer['outputs']}x{layer['inputs']}"
        groups.setdefault(key, []).append(layer)
    return groups


def _row(table: Table, name: str, group: list[dict[str, Any]], suffix: str) -> None:
    weights = sum(layer["outputs"] * layer["inputs"] for layer in group)
    zeros = sum(layer["zeros"] for layer in group)
    table.add_row(
        Text(name.partition("\t")[0] + suffix, overflow="fold"),
        str(len(group)),
        f"{group[0]['outputs']} x {group[0]['inputs']}",
        count(weights),
        percent(zeros / weights),
    )


def units(network: Network) -> list[dict[str, Any]]:
    """Returns every group of units that a model has: kind, number of units, parameters that go with one."""
    found: list[dict[str, Any]] = []
    for groups_of in UNITS.values():
        try:
            groups = list(groups_of(network))
        except UsageError:
            continue  # query heads where each head has its own keys
        found += group_rows(groups)
    return found


def group_rows(groups: Iterable[UnitGroup]) -> list[dict[str, Any]]:
    """Returns a row per group: kind, number of units, parameters that go with one."""
    found: list[dict[str, Any]] = []
    for group in groups:
        each = group.parameters_each()
        found.append(
            {
                "group": group.name,
                "unit": group.unit,
                "count": group.count,
                "parameters_each": int(each.float().mean().round()),
                "parameters": int(each.sum()),
            }
        )
    return found


def units_table(found: list[dict[str, Any]], fixed: Sequence[Fixed] = (), every_group: bool = False) -> RenderableType:
    """Returns a table of what `units` gave, and of what can't be cut; those that are alike share a row unless asked."""
    table = Table("group", "unit", "groups", "units each", "parameters per unit", box=box.SIMPLE_HEAD)
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in found:
        name = one["group"] if every_group else re.sub(r"\.\d+/", ".*/", one["group"])
        rows.setdefault((name, one["unit"]), []).append(one)
    for (name, unit), groups in rows.items():
        spans = (_span(group[what] for group in groups) for what in ("count", "parameters_each"))
        table.add_row(Text(name, overflow="fold"), unit, str(len(groups)), *spans)
    if not fixed:
        return table
    rest = Table("stays as it is", "places", "units each", "why", box=box.SIMPLE_HEAD)
    alike = Counter(
        (one.name if every_group else re.sub(r"\.\d+\.", ".*.", one.name), one.count, one.reason) for one in fixed
    )
    for (name, number, reason), places in alike.items():
        rest.add_row(Text(name, overflow="fold"), str(places), f"{number:,}", Text(reason, overflow="fold"))
    return Group(table, rest)


def _span(numbers: Iterable[int]) -> str:
    """Returns a number, or the least and the largest of several."""
    least, *more = sorted(set(numbers))
    return f"{least:,} to {more[-1]:,}" if more else f"{least:,}"
