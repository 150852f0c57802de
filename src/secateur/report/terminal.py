"""A result as tables of text, and the figures that the page and the model card show too.

Whatever comes from outside (names, paths, notes) goes into `Text`, never into a markup string: a checkpoint
may well be called `out[bold]`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from secateur.layer_report import layer_kind
from secateur.network.packed import PackedSize
from secateur.report.numbers import count, decimal, duration, percent, shorten, size, small
from secateur.report.search import search_line
from secateur.report.training import training_line
from secateur.report.words import (
    all_notes,
    describe_reload,
    describe_stage,
    final_errors,
    loaded_again,
    measured_on,
    units_in_words,
    width_lines,
)
from secateur.result import Comparison, Exported, LayerReport, Metrics, Result, StageReport

WIDTH = 100
MOST_LAYERS = 40  # a longer table groups its layers by kind
MOST_COLUMNS = 3  # more checkpoints than these become rows
GAP = 3  # between a table's columns


def _ratio(dense: float, other: float) -> str | None:
    return f"{other / dense:.2f}x" if dense else None


def _points(dense: float, other: float) -> str | None:
    return f"{100 * (other - dense):+.1f} points"


def _no_change(dense: float, other: float) -> str | None:
    return None


@dataclass(frozen=True)
class Figure:
    """One figure of a checkpoint: where it comes from and how it is written.

    Attributes:
        label, short: Its name, and a name for narrow columns.
        value: Reads it from the metrics; None where it wasn't measured.
        text: Writes it.
        change: Writes what became of the dense model's figure; None where there is nothing to say.
    """

    label: str
    short: str
    value: Callable[[Metrics], float | None]
    text: Callable[[float], str]
    change: Callable[[float, float], str | None] = _no_change


FIGURES = (
    Figure("perplexity", "ppl", lambda m: m.perplexity, decimal, _ratio),
    Figure("bits per byte", "bits/B", lambda m: m.bits_per_byte, lambda v: f"{v:.3f}", _ratio),
    Figure("KL to dense", "KL", lambda m: m.kl, small),
    Figure("top-1 agreement", "top-1", lambda m: m.top1_agreement, percent),
    Figure("cosine to dense", "cosine", lambda m: m.cosine, lambda v: f"{v:.4f}"),
    Figure("accuracy", "accuracy", lambda m: m.accuracy, percent, _points),
    Figure("F1", "F1", lambda m: m.f1, percent, _points),
    Figure("Matthews correlation", "Matthews", lambda m: m.matthews, lambda v: f"{v:.3f}"),
    Figure("word error rate", "WER", lambda m: m.wer, percent, _points),
    Figure("metric", "metric", lambda m: m.metric, decimal),
    Figure("loss", "loss", lambda m: m.loss, small, _ratio),
    Figure("sparsity of block weights", "zeros", lambda m: m.sparsity if m.weights else None, percent, _points),
    Figure("parameters", "params", lambda m: m.parameters, count, _ratio),
    Figure("MACs per token", "MACs", lambda m: m.macs, count, _ratio),
    Figure("MACs per example", "MACs", lambda m: m.macs_each, count, _ratio),
    Figure("bytes on disk", "disk", lambda m: m.bytes_on_disk, size, _ratio),
    Figure("prefill tokens/s, 1 thread", "prefill 1", lambda m: m.prefill_one, decimal, _ratio),
    Figure("decode tokens/s, 1 thread", "decode 1", lambda m: m.decode_one, decimal, _ratio),
    Figure("prefill tokens/s", "prefill", lambda m: m.prefill, decimal, _ratio),
    Figure("decode tokens/s", "decode", lambda m: m.decode, decimal, _ratio),
    Figure("examples/s, batch of 1", "batch 1", lambda m: m.batch_one, decimal, _ratio),
    Figure("examples/s, batch of 64", "batch 64", lambda m: m.batch_many, decimal, _ratio),
)
SPEEDS = FIGURES[-4:]


@dataclass(frozen=True)
class Row:
    """One figure of all checkpoints as text: the dense one's first; empty where it has none."""

    figure: Figure
    texts: tuple[str, ...]
    changes: tuple[str, ...]


def figure_rows(comparison: Comparison) -> tuple[Row, ...]:
    """Returns the rows of a before / after table; a figure that no checkpoint has gives no row."""
    checkpoints = (comparison.dense, *comparison.others)
    rows = []
    for figure in (*FIGURES, *_task_figures(checkpoints)):
        values = [figure.value(metrics) for metrics in checkpoints]
        if all(value is None for value in values):
            continue
        dense = values[0]
        changes = [None if dense is None or v is None else figure.change(dense, v) for v in values[1:]]
        texts = tuple("" if value is None else figure.text(value) for value in values)
        rows.append(Row(figure, texts, ("", *(change or "" for change in changes))))
    return tuple(rows)


def _task_figures(checkpoints: Sequence[Metrics]) -> list[Figure]:
    """Returns a figure per task and metric."""
    names = dict.fromkeys(name for metrics in checkpoints for name in metrics.tasks)

    def text(value: float) -> str:
        return percent(value) if 0 <= value <= 1 else decimal(value)

    def reader(name: str) -> Callable[[Metrics], float | None]:
        return lambda metrics: metrics.tasks.get(name)

    return [Figure(name, name, reader(name), text, _points) for name in names]


def plain_table(*columns: str) -> Table:
    """Returns an empty table with headings, the first column on the left."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if number else "left")
    return table


def _add(table: Table, cells: Iterable[str]) -> None:
    table.add_row(*(Text(cell) for cell in cells))


def _notes(notes: Iterable[str]) -> list[RenderableType]:
    grid = Table.grid(padding=(0, 1))
    for note in notes:
        grid.add_row(Text("-"), Text(shorten(note, 1000)))
    return [grid] if grid.row_count else []


def result_table(result: Result) -> RenderableType:
    """Returns the before / after table, and under it what the user should know.

    A run that measured nothing gives a table of its stages instead.
    """
    parts: list[RenderableType] = [Text(shorten(str(result.about.get("source", "model")), WIDTH), style="bold")]
    parts += [Padding(Text(shorten(describe_stage(stage.stage), 1000)), (0, 0, 0, 2)) for stage in result.stages]
    for stage in result.stages if result.comparison is not None else ():
        parts += [Padding(Text(shorten(line, 2 * WIDTH)), (0, 0, 0, 2)) for line in width_lines(stage)]
    if result.comparison is None:
        parts.append(Padding(_stages_table(result.stages), (1, 0)))
    elif len(result.comparison.others) == 1:
        table = plain_table("figure", "dense", "pruned", "change")
        for row in figure_rows(result.comparison):
            _add(table, (row.figure.label, *row.texts, row.changes[1]))
        parts.append(Padding(table, (1, 0)))
        parts += [Text(shorten(line, 2 * WIDTH)) for line in [measured_on(result.comparison)] if line]
    else:
        parts.append(_figures(result.comparison))
    for number, stage in enumerate(result.stages, start=1):
        if stage.training is not None:
            parts.append(Text(shorten(f"Stage {number}: {training_line(stage.training)}", 2 * WIDTH)))
    if result.search is not None:
        parts.append(Text(shorten(search_line(result.search), 4 * WIDTH)))
    if result.reload is not None:
        parts.append(Text(f"{loaded_again(result)}: {describe_reload(result.reload)}."))
    return Group(*parts, *_notes(all_notes(result)))


def _stages_table(stages: Sequence[StageReport]) -> Table:
    if any(stage.groups for stage in stages):
        table = plain_table("stage", "units", "before", "left", "parameters", "MACs")
        for number, stage in enumerate(stages, start=1):
            for unit in dict.fromkeys(group.unit for group in stage.groups):
                some = [group for group in stage.groups if group.unit == unit]
                before, left = sum(group.before for group in some), sum(group.left for group in some)
                old, new = (stage.budget or {}).get("before"), (stage.budget or {}).get("after")
                ratios = [f"{new[k] / old[k]:.3f}x" if old and new else "" for k in ("parameters", "macs")]
                _add(table, (f"{number} prune", units_in_words(unit), f"{before:,}", f"{left:,}", *ratios))
            if stage.layers:
                _add(
                    table,
                    (f"{number} prune", "weights", f"{stage.weights:,}", f"{stage.weights - stage.zeros:,}", "", ""),
                )
        return table
    table = plain_table("stage", "layers pruned", "zeros", "sparsity", "mean error", "worst error")
    for number, stage in enumerate(stages, start=1):
        errors = [error for error, _ in final_errors(stage)]
        kind = shorten(next(iter(stage.stage)), 20)
        if not stage.layers:
            _add(table, (f"{number} {kind}", "", "", "", "", ""))
            continue
        known = (small(sum(errors) / len(errors)), small(max(errors))) if errors else ("not measured", "")
        share = percent(stage.sparsity) if stage.weights else ""
        _add(table, (f"{number} {kind}", f"{len(stage.layers)}", f"{stage.zeros:,}", share, *known))
    return table


def packed_table(sizes: PackedSize) -> RenderableType:
    """Returns what packing or unpacking came to."""
    table = plain_table("", "plain", "packed", "ratio")
    rows = (
        ("all weight files", sizes.plain, sizes.packed),
        ("packed tensors", sizes.layers_plain, sizes.layers_packed),
    )
    for name, plain, packed in rows:
        _add(table, (name, size(plain), size(packed), f"{packed / plain:.3f}" if plain else ""))
    speed = f"{sizes.tensors} tensors are packed; {duration(sizes.seconds)}, {size(sizes.plain / sizes.seconds)}/s."
    return Group(table, Text(speed), Text(f"checkpoint: {shorten(sizes.output, WIDTH - 12)}"))


def exported_table(exported: Exported) -> RenderableType:
    """Returns what an export came to."""
    table = plain_table("file", "size")
    for name, number in exported.files.items():
        _add(table, (name, size(number)))
    if exported.difference is None:
        checked = "Not verified: nothing here runs it."
    else:
        checked = f"{exported.verified_by} gives what torch gives, to {exported.difference:.1e} of the largest output."
    return Group(table, Text(checked), Text(f"folder: {shorten(exported.output, WIDTH - 8)}"), *_notes(exported.notes))


def comparison_table(comparison: Comparison) -> RenderableType:
    """Returns all checkpoints' figures beside one another (many: below one another), and the notes."""
    return Group(_figures(comparison), *_notes(comparison.notes))


def _figures(comparison: Comparison) -> RenderableType:
    names = [comparison.dense.name, *(other.name for other in comparison.others)]
    rows = figure_rows(comparison)
    if len(comparison.others) <= MOST_COLUMNS:
        labels, legend = _labels(names, (WIDTH - max(len(row.figure.label) for row in rows)) // len(names) - GAP)
        table = plain_table("figure", *labels)
        for row in rows:
            told = [f" ({c})" if c and row.figure.change is _ratio else "" for c in row.changes]
            _add(
                table,
                (row.figure.label, *(text + change for text, change in zip(row.texts, told, strict=True))),
            )
    else:
        taken = sum(GAP + max(len(text) for text in (row.figure.short, *row.texts)) for row in rows)
        labels, legend = _labels(names, max(WIDTH - taken, 12))
        table = plain_table("checkpoint", *(row.figure.short for row in rows))
        for number, label in enumerate(labels):
            _add(table, (label, *(row.texts[number] for row in rows)))
    line = measured_on(comparison)
    return Group(Padding(table, (1, 0)), *legend, *([Text(shorten(line, 2 * WIDTH))] if line else []))


def _labels(names: Sequence[str], room: int) -> tuple[list[str], list[RenderableType]]:
    """Returns names that fit and, where one is shortened, lines that give each number's longer name."""
    if all(cell_len(name) <= room for name in names) and len(set(names)) == len(names):
        return [shorten(name, room) for name in names], []
    labels = [f"{n} {shorten(name, room - 3)}" for n, name in enumerate(names)]
    return labels, [Text(f"{n:>3}  {shorten(name, WIDTH - 6)}") for n, name in enumerate(names)]


def _mean(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return small(sum(known) / len(known)) if known else ""


def _shape(layers: Sequence[LayerReport]) -> str:
    shapes = {f"{layer.rows} × {layer.columns}" for layer in layers}
    return shapes.pop() if len(shapes) == 1 else f"{len(shapes)} shapes"


def layers_table(stage: StageReport) -> RenderableType:
    """Returns a stage's layers, one per row; more than `MOST_LAYERS` are grouped by kind."""
    grouped = len(stage.layers) > MOST_LAYERS
    groups: dict[str, list[LayerReport]] = {}
    for layer in stage.layers:
        groups.setdefault(layer_kind(layer.name) if grouped else layer.name, []).append(layer)
    table = plain_table("layer", "shape", "zeros", "sparsity", "error masked", "error")
    for name, layers in groups.items():
        low, high = percent(min(x.sparsity for x in layers)), percent(max(x.sparsity for x in layers))
        label = f"{shorten(name, 31)} ×{len(layers)}" if grouped else shorten(name, 40)
        errors = _mean(x.error_masked for x in layers), _mean(x.error for x in layers)
        share = low if low == high else f"{low.removesuffix(' %')} to {high}"
        zeros = sum(x.zeros for x in layers)
        _add(table, (label, _shape(layers), count(zeros) if grouped else f"{zeros:,}", share, *errors))
    if not grouped:
        return table
    line = f"{len(stage.layers)} layers grouped by kind, * being any number; errors are means over a kind."
    return Group(table, Padding(Text(line), (1, 0, 0, 0)))


def to_text(renderable: RenderableType, width: int = WIDTH) -> str:
    """Returns what `rich` would print, as plain text of at most `width` columns, without escape codes."""
    file = io.StringIO()
    console = Console(
        file=file, width=width, color_system=None, force_terminal=False, force_jupyter=False, highlight=False
    )
    console.print(renderable)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
