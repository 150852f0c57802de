"""A result as tables of text, and the words and figures that the page and the model card show too.

Whatever comes from outside (names, paths, notes) goes into `Text`, never into a markup string: a checkpoint
may well be called `out[bold]`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from secateur.network.packed import PackedSize
from secateur.report.training import describe_recovery, training_line
from secateur.result import Comparison, Exported, LayerReport, Metrics, Result, StageReport

WIDTH = 100
SHARES = {"uniform": "the same share in every layer", "global": "wherever in the model they are least"}
GRADIENT_SCORES = ("taylor", "fisher", "snip")
MOST_LAYERS = 40  # a longer table groups its layers by kind
MOST_COLUMNS = 3  # more checkpoints than these become rows
GAP = 3  # between a table's columns


def scaled(value: float, suffixes: Sequence[str]) -> str:
    """Returns `value` in the largest step of 1000 that fits: `134.5 M` for the suffixes `("", "k", "M")`."""
    step = 0
    while abs(value) >= 999.95 and step < len(suffixes) - 1:
        value, step = value / 1000, step + 1
    digits = 0 if step == 0 else 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f} {suffixes[step]}".strip()


def count(value: float) -> str:
    """Returns a number of things, e.g. `134.5 M`."""
    return scaled(value, ("", "k", "M", "B", "T"))


def size(value: float) -> str:
    """Returns a number of bytes, in powers of 1000: `538.1 MB`."""
    return scaled(value, ("bytes", "kB", "MB", "GB", "TB"))


def percent(value: float) -> str:
    """Returns a share, e.g. `47.0 %`. A share that isn't quite nothing or all never reads as if it were."""
    if 0 < value < 0.0005 or 0.9995 <= value < 1:
        return "<0.1 %" if value < 0.5 else ">99.9 %"
    return f"{100 * value:.1f} %"


def decimal(value: float) -> str:
    """Returns a figure such as a perplexity or a rate: `23.23`, `1,234`, `3.1e+12`."""
    if not math.isfinite(value) or abs(value) >= 1e9:
        return f"{value:.2g}"
    return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def small(value: float) -> str:
    """Returns a figure that may be tiny, such as an error: `0.0213`, `3.1e-06`, `0`."""
    return f"{value:.4f}" if 0.001 <= abs(value) < 1000 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Returns a time, e.g. `0.8 s`, `4 min 05 s`, `2 h 10 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def shorten(text: str, width: int) -> str:
    """Returns `text` on one line of at most `width` columns, its middle left out where it is too long."""
    text = "".join(letter if letter.isprintable() else "�" for letter in text)
    if cell_len(text) <= width:
        return text
    head = (width - 1) // 3  # a path says more at its end
    tail = width - 1 - head
    return set_cell_size(text, head).rstrip() + "…" + set_cell_size(text[::-1], tail)[::-1].lstrip()


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


def measured_on(comparison: Comparison) -> str:
    """Returns on what the quality was measured, in words; empty where it wasn't."""
    dense = comparison.dense
    if dense.examples is not None:
        return f"Quality was measured on {dense.examples:,} examples."
    if dense.text is None:
        return ""
    windows = "" if dense.windows is None else f", {dense.windows:,} windows"
    tokens = "" if dense.tokens is None else f", {dense.tokens:,} predicted tokens"
    return f"Quality was measured on {dense.text}{windows}{tokens}."


def describe_stage(stage: Mapping[str, Any]) -> str:
    """Returns what a stage of a recipe does, in words.

    Args:
        stage: One stage as in `StageReport.stage`, e.g. `{"prune": {"unit": "weight", "sparsity": 0.5}}`.
    """
    kind, settings = next(iter(stage.items()))
    given = {name: value for name, value in settings.items() if value is not None}
    if kind != "prune":
        return describe_recovery(kind, given)
    unit = given.get("unit", "weight")
    if unit != "weight":
        return _describe_removal(unit, given)
    score, solver = given.get("score"), given.get("solver", "none")
    chain = solver.split("+")
    if "pattern" in given:
        amount = f"weights, in the {given['pattern']} pattern"
    elif "threshold" in given:
        amount = f"every weight whose score is below {given['threshold']}"
    elif "amounts" in given:
        amount = f"{sum(given['amounts'].values()):,} weights, shared out as the recipe lists them"
    elif "sparsity" in given:
        amount = f"{100 * given['sparsity']:.4g} % of the weights"
    else:
        amount = "weights"
    words = [f"Zeroed {amount}"]
    if score is not None:
        words.append(f"scored by {_scored(score, given)}")
    elif chain != ["none"]:
        words.append(f"chosen by {chain[0]}'s own score")
    if "sparsity" in given:
        words.append(SHARES.get(given.get("allocation", "uniform")) or f"shared out by {_allocated(given)}")
    if given.get("per", "layer") != "layer":
        words.append(f"compared within each {given['per']}")
    rest = [] if solver == "none" else [f"What stayed was corrected by {' and then '.join(chain)}."]
    if given.get("reconstruct"):
        rest.append(f"{'Then each' if rest else 'Each'} block was tuned to give the dense block's outputs.")
    return f"{', '.join(words)}. {' '.join(rest or ['What stayed is as it was.'])}"


def _scored(score: str, given: Mapping[str, Any]) -> str:
    """Names a score, and whose gradient it takes."""
    if score not in GRADIENT_SCORES:
        return score
    return f"{score} of {'the next-token loss' if given.get('gradient') == 'loss' else 'each block by itself'}"


def _allocated(given: Mapping[str, Any]) -> str:
    """Names an allocation, and what it weighs errors by."""
    weighed = given["allocation"] == "error" and given.get("gradient") == "loss"
    return f"{given['allocation']}{' weighed by the next-token loss' if weighed else ''}"


def units_in_words(unit: str, number: int = 2) -> str:
    """Returns what one or more of a kind of unit, or of several, are called: `neurons and heads`."""
    named = {"attention": "attention half", "mlp": "MLP half", "query-head": "query head"}
    words = []
    for kind in unit.split(","):
        one = named.get(kind, kind)
        many = f"{one.removesuffix('half')}halves of layers" if one.endswith("half") else f"{one}s"
        words.append(one if number == 1 else many)
    return " and ".join(words)


def _protects(given: Mapping[str, Any]) -> bool:
    return any(given.get(f"protect_{side}") for side in ("first", "last"))


def _describe_removal(unit: str, given: Mapping[str, Any]) -> str:
    """Returns what a stage that removes units does, in words."""
    units = units_in_words(unit)
    inner = unit in ("neuron", "head", "query-head", "expert") or "," in unit
    every = " of every layer that isn't protected" if _protects(given) else " of every layer"
    amounts = {
        "params": lambda v: f"{units} until {100 * v:g} % of the parameters were left",
        "macs": lambda v: f"{units} until {100 * v:g} % of the multiply-accumulates were left",
        "memory": lambda v: f"{units} until the weights took {v}",
        "latency": lambda v: f"{units} until reading a window should take {100 * v:g} % of the time",
        "sparsity": lambda v: f"{100 * v:.4g} % of the {units}",
        "remove": lambda v: f"{v} {units_in_words(unit, v)}{every if inner else ''}",
        "threshold": lambda v: f"{units} whose score is below {v}",
        "amounts": lambda v: f"{sum(v.values()):,} {units_in_words(unit, sum(v.values()))}, as the recipe lists them,",
    }
    name = next((name for name in amounts if name in given), None)
    words = [f"Removed {units if name is None else amounts[name](given[name])} for good"]
    if given.get("solver") == "obs":
        words.append("chosen in rounds by the error that the best correction leaves")
    elif "score" in given:
        words.append(f"scored by {_scored(given['score'], given)}")
    if given.get("allocation", "uniform") != "uniform":
        words.append(f"shared out by {_allocated(given)}")
    fitted = given.get("repair", True) and (
        unit == "channel" or set(unit.split(",")) <= {"neuron", "head", "query-head", "filter", "hidden"}
    )
    rest = "What reads them was fitted anew by least squares." if fitted else "What stayed is as it was."
    return f"{', '.join(words)}. {rest}"


def loaded_again(result: Result) -> str:
    """Returns how what was saved was loaded again, in words."""
    how = "secateur.rebuild" if result.about.get("kind") == "network" else "plain transformers"
    code = (
        ", with trust_remote_code=True for the modeling_secateur.py beside it" if result.about.get("reshaped") else ""
    )
    return f"Saved, and loaded again by {how}{code}"


def describe_reload(difference: float) -> str:
    """Returns how well the saved checkpoint gave the model in memory again, in words."""
    if difference == 0:
        return "the outputs are the same to the last bit"
    return f"outputs differ by at most {small(difference)}"


def final_errors(stage: StageReport) -> list[tuple[float, str]]:
    """Returns each layer's reconstruction error as it left the stage, with the layer's name."""
    pairs = [(x.error_masked if x.error is None else x.error, x.name) for x in stage.layers]
    return [(error, name) for error, name in pairs if error is not None]


def stage_lines(stage: StageReport) -> tuple[str, ...]:
    """Returns what a stage did, in a few lines of words."""
    lines = [describe_stage(stage.stage)]
    if stage.layers:
        share = percent(stage.sparsity)
        lines.append(f"{len(stage.layers)} layers, {stage.zeros:,} of {stage.weights:,} weights zero ({share}).")
    lines += _group_lines(stage)
    if stage.training is not None:
        lines.append(training_line(stage.training))
    if stage.blocks:
        before, after = (sum(getattr(one, name) for one in stage.blocks) for name in ("error_before", "error"))
        number = len(stage.blocks)
        lines.append(
            f"Error of {number} blocks' outputs: {small(before / number)} before, {small(after / number)} after."
        )
    errors = final_errors(stage)
    if errors:
        mean, (worst, where) = sum(error for error, _ in errors) / len(errors), max(errors)
        lines.append(f"Reconstruction error: {small(mean)} on average, {small(worst)} at worst, in {where}.")
    if stage.seconds:
        lines.append("Time: " + ", ".join(f"{phase} {duration(s)}" for phase, s in stage.seconds.items()) + ".")
    return (*lines, *stage.notes)


def _group_lines(stage: StageReport) -> list[str]:
    """Returns how many units went, and what that saved."""
    lines = []
    for unit in dict.fromkeys(group.unit for group in stage.groups):
        some = [group for group in stage.groups if group.unit == unit]
        before, left = sum(group.before for group in some), sum(group.left for group in some)
        widths = sorted({group.left for group in some})
        each = (
            "" if len(some) == 1 else f", {widths[0]:,}" + (f" to {widths[-1]:,}" if len(widths) > 1 else "") + " each"
        )
        which = ""
        if len(some) == 1 and 0 < len(some[0].removed) <= 32:
            which = f" (went: {', '.join(map(str, some[0].removed))})"
        lines.append(f"{left:,} of {before:,} {units_in_words(unit)} are left{each}{which}.")
        known = [(g.error_before, g.error) for g in some if g.error_before is not None and g.error is not None]
        if known:
            bare, mended = (sum(values) / len(known) for values in zip(*known, strict=True))
            lines.append(
                f"Error of what reads them: {small(bare)} with them merely gone, {small(mended)} after the repair."
            )
    if stage.budget is not None:
        old, new = stage.budget["before"], stage.budget["after"]
        parts = [
            f"{words} {text(old[name])} to {text(new[name])} ({new[name] / old[name]:.3f})"
            for name, words, text in (
                ("parameters", "parameters", count),
                ("macs", f"multiply-accumulates per {'token' if new['length'] else 'example'}", count),
                ("bytes", "bytes", size),
            )
        ]
        lines.append(f"{', '.join(parts)}.".capitalize())
    return lines


def all_notes(result: Result) -> tuple[str, ...]:
    """Returns what the user should know: the comparison's notes, the stages', the run's; each once."""
    notes = list(result.comparison.notes) if result.comparison else []
    for number, stage in enumerate(result.stages, start=1):
        notes += [f"stage {number}: {note}" if len(result.stages) > 1 else note for note in stage.notes]
    return tuple(dict.fromkeys([*notes, *result.notes]))


def layer_kind(name: str) -> str:
    """Returns a layer's name with its numbers as stars: `model.layers.*.self_attn.q_proj`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


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
        from secateur.report.search import search_line  # noqa: PLC0415 (it takes words from here)

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
