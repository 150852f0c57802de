"""What recovery stages did, in words and as a table of their steps."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.recipe import Quantize
from secateur.report.numbers import number_of
from secateur.result import StageReport, TrainingReport

COLUMNS = ("stage", "kind", "step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")
LOG = "training.csv"


def describe_recovery(kind: str, given: Mapping[str, Any]) -> str:
    """Returns what a recovery stage does, in words.

    Args:
        kind: `finetune`, `lora`, `distill`, `reconstruct`, `quantize` or `factorize`.
        given: Its settings, less those that are None.
    """
    if kind == "quantize":
        alike = f"groups of {given.get('group') or 'as many inputs as fit'}" if _grouped(given) else "outputs"
        how = "each rounding made up for (GPTQ)" if given.get("method", "gptq") == "gptq" else "rounded to nearest"
        share = f" and {100 * given['sparsity']:.4g} % of the weights removed" if "sparsity" in given else ""
        share = f" and pruned to {given['pattern']}" if "pattern" in given else share
        return f"Quantized to int{given.get('bits', 8)}{share} with scales by {alike}, {how}; zeros stayed zero."
    if kind == "factorize":
        return _describe_factors(given)
    if kind == "reconstruct":
        return "Tuned each block to give the dense block's outputs; zeros stayed zero."
    if kind == "distill":
        teacher = given.get("teacher", "dense")
        whose = "the dense model" if teacher == "dense" else str(teacher)
        what = {
            "logits": "distributions",
            "hidden": "hidden states",
            "attention": "attention maps",
            "labels": "the text",
        }
        parts = [f"{words} ({given[name]:g})" for name, words in what.items() if given.get(name)]
        weighed = f", by {', '.join(parts)}" if parts else ""
        return f"Distilled from {whose}{weighed}{_length(given)}; zeros stayed zero."
    if kind == "lora":
        rank = given.get("rank", 8)
        return f"Trained low-rank updates (LoRA, rank {rank}){_length(given)} and added them; zeros stayed zero."
    return f"Fine-tuned{_length(given)}; zeros stayed zero."


def _describe_factors(given: Mapping[str, Any]) -> str:
    amounts = {
        "params": lambda v: f"until {100 * v:g} % of the parameters were left",
        "energy": lambda v: f"so that each kept {100 * v:g} % of its squared outputs",
        "rank": lambda v: f"of rank {v}",
    }
    name = next(name for name in amounts if name in given)
    shared = ", shared out by the error of each" if given.get("allocation") == "error" else ""
    single = f", {100 * given['sparse']:g} % of what is left in single weights beside them" if "sparse" in given else ""
    rest = " Then the factors were multiplied." if given.get("merged") else ""
    amount = amounts[name](given[name])
    return f"Put the product of two thin matrices in the place of layers {amount}{shared}{single}.{rest}"


def _grouped(given: Mapping[str, Any]) -> bool:
    return Quantize.build(dict(given)).grouped


def _length(given: Mapping[str, Any]) -> str:
    limits = [number_of(given["steps"], "step")] if "steps" in given else []
    limits += [f"{given['minutes']:g} minute{'' if given['minutes'] == 1 else 's'}"] if "minutes" in given else []
    return f" for at most {' or '.join(limits)}" if limits else ""


def training_line(training: TrainingReport) -> str:
    """Returns what training came to, in a line of words."""
    kept = "as it was" if training.best == 0 else f"after step {training.best:,}"
    learnt = f"{number_of(training.steps, 'step')} on {number_of(training.trained, 'example')} of {training.data}"
    losses = f"{training.before:.4f} before, {training.after:.4f} {kept}"
    return f"{learnt}; loss on {number_of(training.judged, 'other')} {losses}."


def training_table(stages: Sequence[StageReport]) -> str:
    """Returns all that was logged as CSV; empty where nothing was trained."""
    rows = [
        {"stage": number, "kind": next(iter(stage.stage)), **entry}
        for number, stage in enumerate(stages, start=1)
        if stage.training is not None
        for entry in stage.training.log
    ]
    if not rows:
        return ""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
