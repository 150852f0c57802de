"""What was measured side by side, as a table and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.benchmark.bench import Bench, Timed
from secateur.report.numbers import number_of, shorten, size
from secateur.report.page import plots_page
from secateur.report.plots import COLOURS, Plot
from secateur.report.terminal import WIDTH, plain_table

SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
NOTE = "Medians of turns; in brackets, relative to the first. Below {spread:.0%} a difference says nothing here."


def bench_table(bench: Bench) -> RenderableType:
    """Returns the figures, a row per checkpoint or export."""
    first = bench.models[0]
    heads = ["checkpoint", "runtime", *(head for head, _ in _columns(first)), "peak", "size"]
    quality = any(one.perplexity is not None for one in bench.models)
    table: Table = plain_table(*heads, *(["perplexity"] if quality else []))
    for one in bench.models:
        cells = [_cell(value, base) for (_, value), (_, base) in zip(_columns(one), _columns(first), strict=True)]
        last = [] if not quality else ["" if one.perplexity is None else f"{one.perplexity:.2f}"]
        table.add_row(shorten(one.name, 24), _runtime(one), *cells, size(one.peak), size(one.bytes), *last)
    told = bench.settings
    tokens = f"{told['prompt']} tokens read, {told['tokens']} written, " if bench.models[0].kind == "text" else ""
    turns = f"{number_of(told['threads'], 'thread')}, {number_of(told['repeats'], 'turn')}"
    how = f"{turns}, {tokens}batches of {told['batch']}."
    spread = max(one.spread for one in bench.models)
    return Group(table, Text(shorten(how, WIDTH)), Text(NOTE.format(spread=spread)))


def _runtime(one: Timed) -> str:
    """Returns what ran a checkpoint, and in which dtype."""
    return one.runtime if one.dtype is None else f"{one.runtime} {SHORT.get(one.dtype, one.dtype)}"


def _columns(one: Timed) -> list[tuple[str, tuple[float, str] | None]]:
    """Returns headings with values, each as a number in which more is better and in words."""
    first = (1 / one.first, f"{1000 * one.first:.1f} ms")
    if one.kind == "sound":
        assert one.real_time is not None
        decode = None if one.decode is None else (one.decode, f"{one.decode:.1f}/s")
        return [("encode", first), ("decode", decode), ("real time", (1 / one.real_time, f"{one.real_time:.3f}x"))]
    batch = None if one.batch is None else (one.batch, f"{one.batch:,.0f}/s")
    if one.kind != "text":
        return [("one", first), ("batch", batch)]
    decode = None if one.decode is None else (one.decode, f"{one.decode:.1f}/s")
    return [("first token", first), ("decode", decode), ("batch", batch)]


def _cell(value: tuple[float, str] | None, base: tuple[float, str] | None) -> str:
    if value is None:
        return ""
    return value[1] if base is None or value is base else f"{value[1]} ({value[0] / base[0]:.2f}x)"


def bench_page(bench: Bench, path: Path) -> None:
    """Writes the figures as a page with plots, of quality against speed where quality was measured.

    Raises:
        OSError: `path` can't be written.
    """
    names = [f"{Path(one.name).name} ({_runtime(one)})" for one in bench.models]
    plots = []
    for key, head in (("decode", "tokens written per second"), ("batch", "read per second, in batches")):
        values = [getattr(one, key) for one in bench.models]
        if all(value is not None for value in values):
            trace = {"type": "bar", "x": names, "y": values, "marker": {"color": COLOURS[0]}}
            plots.append(Plot(f"bench-{key}", head.capitalize(), head, [trace], {"height": 320}))
    known = [(one, name) for one, name in zip(bench.models, names, strict=True) if one.perplexity is not None]
    if len(known) > 1:
        plots.append(_front(known))
    told = ", ".join(f"{name} {value}" for name, value in bench.settings.items() if value is not None)
    plots_page("Speed, memory and size side by side", [f"Measured in turns: {told}."], _rows(bench), plots, path)


def _rows(bench: Bench) -> tuple[list[str], list[list[str]]]:
    heads = ["checkpoint", "runtime", *(head for head, _ in _columns(bench.models[0])), "peak memory", "size"]
    rows = [
        [
            one.name,
            _runtime(one),
            *("" if value is None else value[1] for _, value in _columns(one)),
            size(one.peak),
            size(one.bytes),
        ]
        for one in bench.models
    ]
    return heads, rows


def _front(known: list[tuple[Timed, str]]) -> Plot:
    """Returns perplexity against decoding speed, with those that none beats by both joined by a line."""
    points: list[tuple[float, float, str]] = [(one.decode or 0.0, one.perplexity or 0.0, name) for one, name in known]
    best = sorted(
        (speed, quality, name)
        for speed, quality, name in points
        if not any(s >= speed and q <= quality and (s, q) != (speed, quality) for s, q, _ in points)
    )
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": "checkpoints",
            "x": [speed for speed, _, _ in points],
            "y": [quality for _, quality, _ in points],
            "text": [name for _, _, name in points],
            "textposition": "top center",
            "marker": {"color": COLOURS[1], "size": 10},
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": "Pareto front",
            "x": [speed for speed, _, _ in best],
            "y": [quality for _, quality, _ in best],
            "line": {"color": COLOURS[0]},
        },
    ]
    layout = {
        "height": 420,
        "xaxis": {"title": {"text": "tokens written per second"}},
        "yaxis": {"title": {"text": "perplexity"}, "type": "log"},
    }
    return Plot("bench-front", "Quality against speed", "Perplexity against decoding speed", traces, layout)
