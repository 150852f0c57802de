"""The model card: README.md in the output folder, as the Hugging Face hub reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from secateur.recipe import Prune
from secateur.report.numbers import number_of
from secateur.report.terminal import figure_rows
from secateur.report.words import all_notes, describe_stage, measured_on
from secateur.result import Result

ZEROS_SAVE_NOTHING = (
    "Pruned weights are zeros, and zeros that are stored in a dense file save nothing by themselves: the "
    "file is as large as before, and stock kernels multiply by a zero as slowly as by anything else."
)
AUTO_CLASSES = {  # how an architecture's name ends -> the class that loads it
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForPreTraining": "AutoModelForPreTraining",
    "ForImageClassification": "AutoModelForImageClassification",
}  # any other is loaded by its own class


def model_card(result: Result) -> str:
    """Returns the README.md of a pruned checkpoint: front matter, then what was done, kept and not gained.

    `base_model` is given only where the source looks like a hub id (`owner/name`, and no such folder here).
    """
    source = str(result.about.get("source", "a model"))
    parts = [_front_matter(result, source), f"# {_code(source)}, pruned", _what_was_done(result)]
    if result.comparison is not None:
        parts += ["## Before and after", _figures_table(result)]
    limited = limits(result)
    others = [note for note in all_notes(result) if note not in limited]
    for title, notes in (("What is not smaller or faster, and why", limited), ("Also to know", others)):
        if notes:
            parts += [f"## {title}", "\n".join(f"- {_line(note)}" for note in notes)]
    parts += ["## How to load it", _how_to_load(result), "## How to reproduce it", _how_to_reproduce(result)]
    return "\n\n".join(parts) + "\n"


def limits(result: Result) -> tuple[str, ...]:
    """Returns what is not smaller or faster, and why: the comparison's notes.

    That stored zeros save nothing is said even where nobody measured it.
    """
    if result.comparison is not None and result.comparison.notes:
        return result.comparison.notes
    zeroed = any(stage.stage.get("prune", {}).get("unit") == "weight" for stage in result.stages)
    return (ZEROS_SAVE_NOTHING,) if zeroed else ()


def calibration_sentence(calibration: dict[str, Any] | None) -> str:
    """Returns on what the model was calibrated, in words."""
    if calibration is None:
        return "Nothing was calibrated: the method looks at the weights alone."
    data = calibration.get("data", "self")
    words = "text that the model wrote itself" if data == "self" else str(data)
    if "examples" in calibration:
        return f"Calibrated on {words}: {number_of(calibration['examples'], 'example')}."
    windows = f" {number_of(calibration['windows'], 'window')}" if "windows" in calibration else ""
    length = f" of {number_of(calibration['length'], 'token')}" if windows and "length" in calibration else ""
    tokens = f", {number_of(calibration['tokens'], 'token')} in all" if "tokens" in calibration else ""
    held_out = f"; {calibration['held_out']:,} windows were held out" if calibration.get("held_out") else ""
    return f"Calibrated on {words}{':' if windows else ''}{windows}{length}{tokens}{held_out}."


def recipe_yaml(result: Result) -> str:
    """Returns the recipe as the YAML that `secateur run` reads."""
    plain = json.loads(json.dumps(result.recipe))  # YAML's safe writer knows no tuples
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).strip()


def _front_matter(result: Result, source: str) -> str:
    library = "pytorch" if result.about.get("kind") == "network" else "transformers"
    matter: dict[str, Any] = {"library_name": library, "tags": ["pruned", "secateur"]}
    if looks_like_hub_id(source):
        matter["base_model"] = source
    return f"---\n{yaml.safe_dump(matter, sort_keys=False).strip()}\n---"


def looks_like_hub_id(source: str) -> bool:
    """Says whether `source` can be a model on the Hugging Face hub rather than a folder or a file."""
    part = r"[A-Za-z0-9][\w.-]*"
    named = len(source) <= 96 and re.fullmatch(f"{part}/{part}", source) and not source.endswith(".gguf")
    return bool(named) and not Path(source).exists()


def _what_was_done(result: Result) -> str:
    lines = [_line(describe_stage(stage.stage)) for stage in result.stages]
    if len(lines) > 1:
        lines = ["\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))]
    architecture = result.about.get("architecture")
    kind = f"; what came out is a {_code(architecture)}" if architecture else ""
    opening = f"{_code(result.about.get('source', 'a model'))}, pruned with secateur{kind}."
    return "\n\n".join([opening, *lines, _line(calibration_sentence(result.calibration))])


def _figures_table(result: Result) -> str:
    comparison = result.comparison
    if comparison is None:
        return ""
    others = [other.name for other in comparison.others]
    names = ["pruned"] if len(others) == 1 else [_code(name).replace("|", "\\|") for name in others]
    lines = [["", "dense", *(cell for name in names for cell in (name, "change"))]]
    lines.append(["---"] + ["---:"] * (len(lines[0]) - 1))
    for row in figure_rows(comparison):
        pairs = zip(row.texts[1:], row.changes[1:], strict=True)
        lines.append([row.figure.label, row.texts[0], *(cell for pair in pairs for cell in pair)])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    measured = measured_on(comparison)
    return f"{table}\n\n{_line(measured)}" if measured else table


def _how_to_load(result: Result) -> str:
    architecture = str(result.about.get("architecture", ""))
    if result.about.get("kind") == "network":
        code = (
            "import secateur\n\n"
            f"model = {architecture}(...)  # built as it was before pruning\n"
            f"model = secateur.rebuild(model, {result.output or 'path/to/this/folder'!r})"
        )
        return (
            "The dense network, freshly built, is brought to the shapes in `shapes.json` and takes the weights.\n\n"
            + _fenced(code, "python")
        )
    ending = next((ending for ending in AUTO_CLASSES if architecture.endswith(ending)), None)
    reshaped = result.about.get("reshaped", False)
    name = AUTO_CLASSES[ending] if ending else "AutoModel" if reshaped or not architecture else architecture
    folder = result.output or "path/to/this/folder"
    trust = ", trust_remote_code=True" if reshaped else ""
    lines = [f"model = {name}.from_pretrained({folder!r}{trust})"]
    names = [name]
    if (reader := _reader(result)) is not None:
        what, kind = reader
        names.append(kind)
        lines.append(f"{what} = {kind}.from_pretrained({folder!r}{trust})")
    code = "\n".join([f"from transformers import {', '.join(sorted(names))}", "", *lines])
    text = "Plain transformers loads it; secateur isn't needed."
    if trust:
        text += " Its config can't say its shapes, so it runs `modeling_secateur.py` from this folder."
    return f"{text}\n\n{_fenced(code, 'python')}"


def _reader(result: Result) -> tuple[str, str] | None:
    """Returns what makes the model's inputs, and the class that loads it; None where nothing of it was saved."""
    readers = {"text": ("tokenizer", "AutoTokenizer"), "images": ("processor", "AutoImageProcessor")}
    return readers.get(result.about.get("reads", "text"))


def _how_to_reproduce(result: Result) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    made = f"\n\nMade with {versions}." if versions else ""
    if not result.recipe:
        return f"Call this:\n\n{_fenced(_call(result), 'python')}{made}"
    text = "Save this as `recipe.yaml` and run `secateur run recipe.yaml`:"
    return f"{text}\n\n{_fenced(recipe_yaml(result), 'yaml')}{made}"


def _call(result: Result) -> str:
    """Returns the call of the API that does the same to a network in memory."""
    usual = {name: field.default for name, field in Prune.model_fields.items()}
    (stage,) = result.stages
    given = {name: value for name, value in stage.stage["prune"].items() if value != usual[name] and value != []}
    options = [f"{name}={value!r}" for name, value in given.items()]
    data = ["calibration=data"] if result.calibration else []
    return f"secateur.prune(model, example_inputs=inputs, {', '.join([*options, *data])})"


def _fenced(text: str, language: str) -> str:
    """Returns a code block whose fence is longer than any run of backticks inside."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _code(text: object) -> str:
    """Returns `text` as inline code, on one line."""
    return f"`{' '.join(str(text).replace('`', chr(39)).split())}`"


def _line(text: str) -> str:
    """Returns `text` on one line, as words: what would be HTML in Markdown is escaped."""
    return " ".join(text.split()).replace("<", "&lt;")
