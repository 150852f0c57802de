"""The report as one HTML file that needs nothing else: no network, no server, no other file."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from secateur.report.card import calibration_sentence, limits, recipe_yaml
from secateur.report.numbers import duration, percent, shorten, size, small
from secateur.report.plots import COLOURS, Plot
from secateur.report.search import search_plots
from secateur.report.stage_plots import sparsity_by_checkpoint, stage_plots
from secateur.report.terminal import FIGURES, SPEEDS, Figure, figure_rows
from secateur.report.words import (
    describe_reload,
    describe_stage,
    loaded_again,
    measured_on,
    stage_lines,
)
from secateur.result import Comparison, Metrics, Result, StageReport

NO_ERRORS = (
    "No reconstruction error was measured here: the method gathers no Gram matrix, and without one there is "
    "nothing to tell what a layer's outputs were before and after."
)
Column = tuple[str, Callable[[Any], Any], Callable[[Any], str]]  # its heading, a thing's value, that as text
LAYER_COLUMNS: tuple[Column, ...] = (
    ("outputs", lambda x: x.rows, lambda v: f"{v:,}"),
    ("inputs", lambda x: x.columns, lambda v: f"{v:,}"),
    ("zeros before", lambda x: x.zeros_before or None, lambda v: f"{v:,}"),
    ("zeros", lambda x: x.zeros, lambda v: f"{v:,}"),
    ("sparsity", lambda x: x.sparsity, percent),
    ("dead outputs", lambda x: x.dead_rows or None, lambda v: f"{v:,}"),
    ("dead inputs", lambda x: x.dead_columns or None, lambda v: f"{v:,}"),
    ("error masked", lambda x: x.error_masked, small),
    ("error", lambda x: x.error, small),
    ("damping", lambda x: x.damping, small),
    ("threshold", lambda x: x.threshold, small),
    ("seconds", lambda x: x.seconds, lambda v: f"{v:.2f}"),
)
GROUP_COLUMNS: tuple[Column, ...] = (
    ("units", lambda x: x.unit, str),
    ("before", lambda x: x.before, lambda v: f"{v:,}"),
    ("left", lambda x: x.left, lambda v: f"{v:,}"),
    ("error without repair", lambda x: x.error_before, small),
    ("error", lambda x: x.error, small),
)


def write_page(result: Result, path: Path) -> None:
    """Writes the page of a run to `path`: one file, no network.

    Raises:
        OSError: `path` can't be written.
    """
    one = result.comparison is not None and len(result.comparison.others) == 1
    context = {
        **_measurements(result.comparison, ["dense", "pruned"] if one else None, SPEEDS),
        "title": f"{result.about.get('source', 'model')}, pruned",
        "sentences": [describe_stage(stage.stage) for stage in result.stages],
        "limits": limits(result),
        "remarks": result.notes,
        "layers": None,
        "stages": [_stage(number, stage) for number, stage in enumerate(result.stages, start=1)],
        "searched": search_plots(result.search) if result.search is not None else [],
        "seconds": _seconds_plot(result.seconds),
        "facts": _facts(result),
        "recipe": recipe_yaml(result) if result.recipe else "",
    }
    _write(context, path)


def comparison_page(comparison: Comparison, path: Path) -> None:
    """Writes the page of a comparison of any number of checkpoints to `path`: one file, no network.

    Raises:
        OSError: `path` can't be written.
    """
    beside = "1 checkpoint" if len(comparison.others) == 1 else f"{len(comparison.others)} checkpoints"
    context = {
        **_measurements(comparison, None, (FIGURES[0], *SPEEDS)),
        "title": f"{comparison.dense.name}, and what is compared with it",
        "sentences": [f"{beside} beside the dense one, measured in one run."],
        "limits": comparison.notes,
        "remarks": (),
        "layers": sparsity_by_checkpoint(comparison),
        "stages": [],
        "searched": [],
        "seconds": None,
        "facts": [],
        "recipe": "",
    }
    _write(context, path)


def plots_page(
    title: str, sentences: Sequence[str], table: tuple[list[str], list[list[str]]], plots: Sequence[Plot], path: Path
) -> None:
    """Writes a page of one table (headings, and rows of cells) and plots to `path`: one file, no network.

    Raises:
        OSError: `path` can't be written.
    """
    context = {
        **_measurements(None, None, ()),
        "title": title,
        "sentences": sentences,
        "limits": (),
        "remarks": (),
        "bars": list(plots),
        "layers": None,
        "stages": [],
        "searched": [],
        "seconds": None,
        "facts": [],
        "recipe": "",
        "table": table,
    }
    _write(context, path)


def _measurements(
    comparison: Comparison | None, names: Sequence[str] | None, drawn: Sequence[Figure]
) -> dict[str, Any]:
    """Returns what the template shows of a comparison; its checkpoints go by `names`, or by their own."""
    if comparison is None:
        return {"names": [], "rows": (), "measured": "", "bars": [], "samples": []}
    names = names or [x.name for x in (comparison.dense, *comparison.others)]
    return {
        "names": names,
        "rows": figure_rows(comparison),
        "measured": measured_on(comparison),
        "bars": _bars(comparison, drawn, names),
        "samples": _samples(comparison, names),
    }


def _write(context: dict[str, Any], path: Path) -> None:
    plots: list[Plot | None] = [*context["bars"], context["layers"], *context["searched"], context["seconds"]]
    plots += [plot for stage in context["stages"] for plot in stage["plots"]]
    drawings = [{"id": x.id, "data": x.data, "layout": x.layout} for x in plots if x is not None]
    # What comes from names and texts goes through autoescape; plotly.js alone goes in as it is.
    environment = Environment(
        loader=PackageLoader("secateur.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        {"table": None, **context}, drawings=drawings, plotly_js=get_plotlyjs()
    )
    # A folder's name needn't be Unicode; what can't be written becomes a question mark.
    path.write_text(page, encoding="utf-8", errors="replace")


def _samples(comparison: Comparison, names: Sequence[str]) -> list[dict[str, str]]:
    """Returns the texts that the checkpoints wrote: whose, from what prompt, and what follows the prompt."""
    samples = []
    checkpoints: tuple[Metrics, ...] = (comparison.dense, *comparison.others)
    for name, metrics in zip(names, checkpoints, strict=True):
        if metrics.sample is not None:
            prompt = metrics.prompt or ""
            samples.append({"name": name, "prompt": prompt, "text": metrics.sample.removeprefix(prompt)})
    return samples


def _bars(comparison: Comparison, figures: Sequence[Figure], names: Sequence[str]) -> list[Plot]:
    """Returns one bar plot for each of `figures` that more than one checkpoint has."""
    labels = [html.escape(shorten(name, 22)) for name in names]
    checkpoints = (comparison.dense, *comparison.others)
    plots = []
    for number, figure in enumerate(figures):
        known = [(i, v) for i, m in enumerate(checkpoints) if (v := figure.value(m)) is not None]
        if len(known) < 2:
            continue
        trace = {
            "type": "bar",
            "x": [i for i, _ in known],
            "y": [value for _, value in known],
            "text": [figure.text(value) for _, value in known],
            "textposition": "auto",
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"color": [COLOURS[-1] if i == 0 else COLOURS[0] for i, _ in known]},
        }
        axis = {"tickvals": [i for i, _ in known], "ticktext": [labels[i] for i, _ in known]}
        layout = {"height": 280, "xaxis": axis, "yaxis": {"rangemode": "tozero"}, "bargap": 0.4}
        plots.append(Plot(f"bars-{number}", figure.label, "", [trace], layout))
    return plots


def _seconds_plot(seconds: Mapping[str, float]) -> Plot | None:
    phases = {phase: value for phase, value in seconds.items() if phase != "total"}
    if not phases:
        return None
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": list(phases.values()),
        "y": [html.escape(phase) for phase in phases],
        "text": [duration(value) for value in phases.values()],
        "textposition": "auto",
        "hovertemplate": "%{y}: %{text}<extra></extra>",
        "marker": {"color": COLOURS[0]},
    }
    axes: dict[str, Any] = {"xaxis": {"title": {"text": "seconds"}}, "yaxis": {"autorange": "reversed"}}
    layout = {"height": 90 + 34 * len(phases), **axes}
    total = f"{duration(seconds['total'])} in all." if "total" in seconds else ""
    return Plot("seconds", "Time by phase", total, [trace], layout)


def _facts(result: Result) -> list[tuple[str, str]]:
    model = ", ".join(f"{key} {value}" for key, value in result.about.items() if value is not None)
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    reload = None if result.reload is None else describe_reload(result.reload)
    facts = [
        ("Model", model),
        ("Calibration", calibration_sentence(result.calibration)),
        ("Output", result.output),
        (loaded_again(result), reload),
        ("Peak memory", size(result.peak_memory) if result.peak_memory else None),
        ("Versions", versions),
    ]
    return [(name, value) for name, value in facts if value]


def _stage(number: int, stage: StageReport) -> dict[str, Any]:
    """Returns what the template shows of one stage."""
    tables = [_table("layers", stage.layers, LAYER_COLUMNS), _table("groups", stage.groups, GROUP_COLUMNS)]
    measured = any(x.error is not None or x.error_masked is not None for x in stage.layers)
    return {
        "number": number,
        "lines": stage_lines(stage)[1:],  # the first is the page's opening sentence
        "plots": stage_plots(number, stage),
        "unmeasured": NO_ERRORS if stage.layers and not measured else "",
        "tables": [table for table in tables if table["rows"]],
    }


def _table(of: str, things: Sequence[Any], known: Sequence[Column]) -> dict[str, Any]:
    """Returns a row per thing, and the columns that say something of any."""
    columns = [column for column in known if any(column[1](one) is not None for one in things)]
    rows = []
    for one in things:
        values = [(value(one), text) for _, value, text in columns]
        rows.append((one.name, [("", "") if v is None else (v, text(v)) for v, text in values]))
    return {"of": of, "headers": [header for header, _, _ in columns], "rows": rows}
