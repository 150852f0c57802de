"""What a run did, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.report.numbers import count, duration, number_of, percent, size, small
from secateur.report.training import describe_recovery, training_line
from secateur.result import Comparison, Result, StageReport

SHARES = {"uniform": "the same share in every layer", "global": "wherever in the model they are least"}
GRADIENTS_OF = {"block": "each block by itself", "loss": "the next-token loss"}
GRADIENT_SCORES = ("taylor", "fisher", "snip")


def measured_on(comparison: Comparison) -> str:
    """Returns on what the quality was measured, in words; empty where it wasn't."""
    dense = comparison.dense
    if dense.examples is not None:
        return f"Quality was measured on {number_of(dense.examples, 'example')}."
    if dense.text is None:
        return ""
    windows = "" if dense.windows is None else f", {number_of(dense.windows, 'window')}"
    tokens = "" if dense.tokens is None else f", {number_of(dense.tokens, 'predicted token')}"
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
    of = given.get("gradient", "block")
    return f"{score} of {GRADIENTS_OF.get(of, of)}"


def _allocated(given: Mapping[str, Any]) -> str:
    """Names an allocation, and what it weighs errors by."""
    weighed = given["allocation"] == "error" and given.get("gradient") == "loss"
    return f"{given['allocation']}{' weighed by the next-token loss' if weighed else ''}"


def units_in_words(unit: str, number: int = 2) -> str:
    """Returns what one or more of a kind of unit, or of several, are called: `neurons and heads`."""
    named = {"attention": "attention half", "mlp": "MLP half", "query-head": "query head", "hidden": "hidden unit"}
    words = []
    for kind in unit.split(","):
        one = named.get(kind, kind)
        many = f"{one.removesuffix('half')}halves of layers" if one.endswith("half") else f"{one}s"
        words.append(one if number == 1 else many)
    return " and ".join(words)


def _protects(given: Mapping[str, Any]) -> bool:
    return any(given.get(name) for name in ("protect_first", "protect_last", "include", "exclude"))


def _describe_removal(unit: str, given: Mapping[str, Any]) -> str:
    """Returns what a stage that removes units does, in words."""
    units = units_in_words(unit)
    inner = unit in ("neuron", "head", "query-head", "expert") or "," in unit
    every = " of every layer that isn't protected" if _protects(given) else " of every layer"
    amounts = {
        "params": lambda v: f"{units} until {100 * v:g} % of the parameters were left",
        "macs": lambda v: f"{units} until {100 * v:g} % of the multiply-accumulates were left",
        "memory": lambda v: f"{units} until the weights took {v}",
        "latency": lambda v: f"{units} until a forward pass should take {100 * v:g} % of the time",
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
        words.append(f"shared out by {_allocated(given)}{', then evened' if given.get('uniform') else ''}")
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
        zeros = f"{stage.zeros:,} of {stage.weights:,} weights zero"
        lines.append(f"{number_of(len(stage.layers), 'layer')}, {zeros} ({share}).")
    ranks = [layer.rank for layer in stage.layers if layer.rank is not None]
    if ranks:
        lines.append(f"{len(ranks)} of them stand as factors, of rank {min(ranks):,} to {max(ranks):,}.")
    lines += width_lines(stage)
    lines += _repair_lines(stage)
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


def width_lines(stage: StageReport) -> list[str]:
    """Returns how many units of each kind are left, and where."""
    lines = []
    for unit in dict.fromkeys(group.unit for group in stage.groups):
        some = [group for group in stage.groups if group.unit == unit]
        before, left = sum(group.before for group in some), sum(group.left for group in some)
        widths = sorted({group.left for group in some})
        each = (
            "" if len(some) == 1 else f", {widths[0]:,}" + (f" to {widths[-1]:,}" if len(widths) > 1 else "") + " each"
        )
        which = ""
        if len(some) == 1 and some[0].removed and len(some[0].removed) <= 32:
            which = f" (went: {', '.join(map(str, some[0].removed))})"
        lines.append(f"{left:,} of {before:,} {units_in_words(unit)} are left{each}{which}.")
    return lines


def _repair_lines(stage: StageReport) -> list[str]:
    """Returns what the repair made of what reads the units, and what their removal saved."""
    lines = []
    for unit in dict.fromkeys(group.unit for group in stage.groups):
        some = [group for group in stage.groups if group.unit == unit]
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
        lines.append(f"{parts[0][0].upper()}{', '.join(parts)[1:]}.")
    return lines


def all_notes(result: Result) -> tuple[str, ...]:
    """Returns what the user should know: the comparison's notes, the stages', the run's; each once."""
    notes = list(result.comparison.notes) if result.comparison else []
    for number, stage in enumerate(result.stages, start=1):
        notes += [f"stage {number}: {note}" if len(result.stages) > 1 else note for note in stage.notes]
    return tuple(dict.fromkeys([*notes, *result.notes]))
