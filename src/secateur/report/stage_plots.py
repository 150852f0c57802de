"""Pictures of what stages did to blocks and layers."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from secateur.layer_report import layer_kind
from secateur.report.numbers import percent, shorten, small
from secateur.report.plots import COLOURS, Plot
from secateur.report.words import units_in_words
from secateur.result import Comparison, StageReport


@dataclass(frozen=True)
class Series:
    """Dots of one colour: values by layer name, and more to say on hovering."""

    label: str
    colour: int
    values: Mapping[str, float]
    hover: Mapping[str, str]
    symbol: str = "circle"
    legend: bool = True


def stage_plots(number: int, stage: StageReport) -> list[Plot]:
    """Returns the pictures of what one stage did: widths, sparsity and errors of layers, blocks, training."""
    return [
        *_widths(number, stage),
        *(_layer_plots(number, stage) if stage.layers else _rebuilt(number, stage)),
        *_training(number, stage),
    ]


def block_numbers(names: Iterable[str]) -> dict[str, int]:
    """Returns the number of each layer's block, a decoder's behind its encoder's; layers outside of them are left out.

    Args:
        names: Layer names in forward order.
    """
    matches = {name: re.match(r"(?:(.*?)\.)?(\d+)(?:\.|$)", name) for name in names}
    found = {name: (match[1] or "", int(match[2])) for name, match in matches.items() if match}
    sizes: dict[str, int] = {}
    for path, index in found.values():
        sizes[path] = max(sizes.get(path, 0), index + 1)
    starts = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
    return {name: starts[path] + index for name, (path, index) in found.items()}


def kind_labels(names: Sequence[str]) -> dict[str, str]:
    """Returns a short label of each layer's kind: `q_proj`, or more of the name where that is ambiguous.

    Args:
        names: Layer names, e.g. `model.layers.0.self_attn.q_proj`.
    """
    kinds = list(dict.fromkeys(layer_kind(name) for name in names))
    last = {kind: kind.removesuffix(".*").rpartition(".")[2] for kind in kinds}
    ends = list(last.values())
    short = {kind: last[kind] if ends.count(last[kind]) == 1 else kind.partition("*.")[2] or kind for kind in kinds}
    lists = {kind: kind.partition(".*.")[0].split(".") for kind in kinds}
    full = {}
    for kind, label in short.items():  # an encoder's and a decoder's may be alike
        alike = [lists[other] for other in kinds if short[other] == label]
        own = next((part for part in lists[kind] if any(part not in other for other in alike)), None)
        full[kind] = f"{own} {label}" if own else label
    return {name: full[layer_kind(name)] for name in names}


def _widths(number: int, stage: StageReport) -> list[Plot]:
    """Returns pictures of how many units each block had and has, a kind a plot; for the whole model's, bars alone."""
    plots = []
    for at, unit in enumerate(dict.fromkeys(group.unit for group in stage.groups)):
        some = [group for group in stage.groups if group.unit == unit]
        if unit in ("layer", "attention", "mlp"):
            (group,) = some
            values = [0 if index in (group.removed or ()) else 1 for index in range(group.before)]
            traces: list[dict[str, Any]] = [
                {"type": "bar", "x": list(range(group.before)), "y": [1] * group.before, "name": "before"},
                {"type": "bar", "x": list(range(group.before)), "y": values, "name": "left"},
            ]
            names = [f"{unit} {index}" for index in range(group.before)]
        else:
            names = [group.name for group in some]
            traces = [
                {"type": "bar", "x": list(range(len(some))), "y": [group.before for group in some], "name": "before"},
                {"type": "bar", "x": list(range(len(some))), "y": [group.left for group in some], "name": "left"},
            ]
        for trace, colour in zip(traces, (COLOURS[-1], COLOURS[at % len(COLOURS)]), strict=True):
            trace |= {
                "marker": {"color": colour},
                "customdata": [html.escape(name) for name in names],
                "hovertemplate": "%{customdata}: %{y}<extra>%{fullData.name}</extra>",
            }
        layout = {
            "height": 300,
            "barmode": "overlay",
            "xaxis": {"title": {"text": "place"}},
            "yaxis": {"rangemode": "tozero"},
        }
        title = f"{units_in_words(unit).capitalize()} before and after"
        plots.append(
            Plot(f"widths-{number}-{at}", title, "What is left stands in front of what was there.", traces, layout)
        )
    return plots


def _layer_plots(number: int, stage: StageReport) -> list[Plot]:
    labels = kind_labels([layer.name for layer in stage.layers])
    kinds = {kind: [x for x in stage.layers if labels[x.name] == kind] for kind in dict.fromkeys(labels.values())}
    hover = {x.name: f"{x.rows} × {x.columns}, {x.zeros:,} zeros ({percent(x.sparsity)})" for x in stage.layers}
    zeros = [
        Series(kind, colour, {x.name: x.sparsity for x in layers}, hover)
        for colour, (kind, layers) in enumerate(kinds.items())
    ]
    yaxis: dict[str, Any] = {"range": [0, 1.03], "tickformat": ".0%"}
    caption = "Share of each layer's weights that are zero. A block's layers stand side by side."
    plots = [_dots(f"sparsity-{number}", "Sparsity per layer", caption, zeros, yaxis)]
    masked = {x.name: x.error_masked for x in stage.layers if x.error_masked is not None}
    solved = {x.name: x.error for x in stage.layers if x.error is not None}
    told = {
        x.name: ", ".join(
            f"{words} {small(value)}"
            for words, value in (("mask alone", x.error_masked), ("after the solver", x.error))
            if value is not None
        )
        for x in stage.layers
    }
    errors = []
    for values, symbol in ((masked, "circle-open"), (solved, "circle")):
        for colour, (kind, layers) in enumerate(kinds.items()):
            mine = {x.name: values[x.name] for x in layers if x.name in values}
            if mine:
                errors.append(Series(kind, colour, mine, told, symbol, legend=symbol == "circle" or not solved))
    if not errors:
        return [*plots, *_rebuilt(number, stage)]
    words = [w for w, known in (("hollow: the mask alone", masked), ("filled: after the solver", solved)) if known]
    caption = f"||(W − W′)X||² / ||WX||² on the calibration text; {', '.join(words)}."
    none = sum(value <= 0 for value in (*masked.values(), *solved.values()))
    caption += f" {none} of the values are 0, which a log scale can't show." if none else ""
    shown = [value for value in (*masked.values(), *solved.values()) if value > 0]
    near = not shown or max(shown) / min(shown) < 1000  # few decades: label 1, 2 and 5 of each
    yaxis = {"type": "log", "tickformat": ".1g", "dtick": "D2" if near else 1}
    plots.append(_dots(f"errors-{number}", "Reconstruction error per layer", caption, errors, yaxis))
    return [*plots, *_rebuilt(number, stage)]


def _rebuilt(number: int, stage: StageReport) -> list[Plot]:
    """Returns the plot of what reconstruction did to each block, if it was asked for."""
    if not stage.blocks:
        return []
    told = {
        x.name: f"before {small(x.error_before)}, after {small(x.error)}, {x.passes} passes over the activations"
        for x in stage.blocks
    }
    series = [
        Series("before", 0, {x.name: x.error_before for x in stage.blocks}, told, "circle-open"),
        Series("after", 0, {x.name: x.error for x in stage.blocks}, told),
    ]
    caption = (
        "Squared error of each pruned block's output against the dense model's, relative to what the block adds, on "
        "windows that weren't trained on. The errors of the blocks before it are in it."
    )
    return [_dots(f"blocks-{number}", "Block reconstruction", caption, series, {"rangemode": "tozero"})]


def _training(number: int, stage: StageReport) -> list[Plot]:
    """Returns the plot of the loss over the steps of training, if the stage trained."""
    if stage.training is None:
        return []
    traces: list[dict[str, Any]] = []
    for name, label, mode in (("loss", "trained on", "lines"), ("eval_loss", "held out", "lines+markers")):
        some = [entry for entry in stage.training.log if name in entry]
        traces.append(
            {
                "type": "scatter",
                "mode": mode,
                "name": label,
                "x": [entry["step"] for entry in some],
                "y": [entry[name] for entry in some],
                "line": {"color": COLOURS[len(traces)]},
            }
        )
    caption = f"Mean loss; the state after step {stage.training.best:,}, with the least on what was held out, was kept."
    axes = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": "loss, nats"}}}
    return [Plot(f"training-{number}", "Loss while it trained", caption, traces, {"height": 380, **axes})]


def sparsity_by_checkpoint(comparison: Comparison) -> Plot | None:
    pruned = [x for x in (comparison.dense, *comparison.others) if any(x.sparsity_by_layer.values())]
    series = [
        Series(
            shorten(x.name, 40),
            n,
            x.sparsity_by_layer,
            {k: percent(v) for k, v in x.sparsity_by_layer.items()},
        )
        for n, x in enumerate(pruned)
    ]
    caption = "Share of each layer's weights that are zero, for each checkpoint that has zeros."
    yaxis = {"range": [0, 1.03], "tickformat": ".0%"}
    return _dots("layers", "Sparsity per layer", caption, series, yaxis) if series else None


def _dots(id: str, title: str, caption: str, series: Sequence[Series], yaxis: dict[str, Any]) -> Plot:
    """Returns a plot of values over blocks. Colours stand side by side within a block, or they would hide."""
    numbers = block_numbers(name for one in series for name in one.values)
    after = max(numbers.values(), default=-1) + 1  # where a layer outside the blocks stands
    colours = max((one.colour for one in series), default=0) + 1
    width = 7 if sum(len(one.values) for one in series) <= 100 else 5
    traces: list[dict[str, Any]] = []
    for one in series:
        colour = COLOURS[one.colour % len(COLOURS)]
        shift = 0.8 * (one.colour - (colours - 1) / 2) / colours
        at = [numbers.get(name, after) for name in one.values]
        trace = {
            "type": "scatter",
            "mode": "markers",
            "name": html.escape(one.label),
            "legendgroup": str(one.colour),
            "showlegend": one.legend,
            "opacity": 0.6 if one.symbol == "circle-open" and not one.legend else 1,
            "x": [round(block + shift, 3) for block in at],
            "y": list(one.values.values()),
            "customdata": [[html.escape(name), html.escape(one.hover[name])] for name in one.values],
            "hovertemplate": "%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
            "marker": {
                "color": colour,
                "size": width,
                "symbol": one.symbol,
                "line": {"color": colour, "width": 1.5},
            },
        }
        traces.append(trace)
    last = round(max((x for trace in traces for x in trace["x"]), default=0))
    step = next(n for n in (1, 2, 5, 10, 20, 50, after + 1) if after <= 20 * n)
    xaxis = {"title": {"text": "block"}, "zeroline": False, "dtick": step, "range": [-0.6, last + 0.6]}
    return Plot(id, title, caption, traces, {"height": 380, "xaxis": xaxis, "yaxis": yaxis})
