"""Pages of the site that are made of the registries and of the files that benchmarks wrote."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import gallery
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from secateur.automl.strategies import STRATEGIES
from secateur.network.units import UNITS
from secateur.solvers import SOLVERS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
EXAMPLES = ROOT / "examples"
GALLERY = ROOT / "out" / "gallery"
# What somebody wants, what to say, the file and the row (and column) that say what it costs.
CHOICES = (
    ("half of the weights zero", "--sparsity 0.5", "solvers", ("admm", "50 %")),
    (
        "the same at its best, and slower",
        "--sparsity 0.5 --reconstruct",
        "solvers",
        ("admm, reconstruct", "50 %"),
    ),
    ("2:4, which NVIDIA's kernels speed up", "--pattern 2:4", "solvers", ("admm", "2:4")),
    ("2:4, a little better", "--pattern 2:4 --solver alps", "solvers", ("alps", "2:4")),
    (
        "70 % zeros",
        "--sparsity 0.7 --allocation error --gradient loss",
        "solvers",
        ("admm, error by the loss", "70 %"),
    ),
    ("a smaller file by fewer tokens", "--unit token", "structure", ("vocabulary of the calibration text",)),
    (
        "four fifths of the parameters, faster everywhere",
        "--unit neuron --params 0.8 --allocation global --gradient loss --reconstruct",
        "structure",
        ("neurons 80 %, by the loss, reconstruct",),
    ),
)


def choosing_table() -> str:
    """Returns the table of docs/choosing.md."""
    lines = ["| you want | say | perplexity | parameters left |", "|---|---|---:|---:|"]
    for want, say, file, place in CHOICES:
        row: Any = json.loads((RESULTS / f"{file}.json").read_text())["rows"]
        for key in place:
            row = row[key]
        left = f"{row['parameters']:.0%}" if "parameters" in row else f"100% ({row['sparsity']:.0%} zeros)"
        lines.append(f"| {want} | `{say}` | {row['perplexity']:.1f} | {left} |")
    return "\n".join(lines)


def recipes_text() -> str:
    """Returns the examples' recipes, each under its own comment."""
    parts = []
    for path in sorted(EXAMPLES.glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        said = [line.removeprefix("# ") for line in lines if line.startswith("#") and "secateur run" not in line]
        rest = [line for line in lines if not line.startswith("#")]
        parts.append(f"## {path.name}\n\n{' '.join(said)}\n\n    secateur run examples/{path.name}\n")
        parts.append("```yaml\n" + "\n".join(rest) + "\n```\n")
    return "\n".join(parts)


def pages() -> dict[str, str]:
    """Returns a page per solver, strategy and unit, by its path below docs/."""
    found = {f"solvers/{name}.md": _solver_page(name) for name in SOLVERS}
    found |= {f"strategies/{name}.md": _strategy_page(name) for name in STRATEGIES}
    return found | {f"units/{name}.md": _unit_page(name) for name in UNITS}


def _doc(thing: object) -> str:
    return inspect.cleandoc(getattr(thing, "__doc__", None) or "")


def _as_written(text: str) -> str:
    """Returns a docstring as a page shows it: formulas and tables keep their columns."""
    return "\n".join(f"    {line}" if line.startswith(" ") else line for line in text.splitlines())


def _solver_page(name: str) -> str:
    solver = SOLVERS[name]
    facts = [
        ("chooses what goes by itself", solver.chooses),
        ("changes a mask that it is given", solver.moves),
        ("makes sense behind another solver", solver.follows),
        ("can put weights on a grid (quantize)", solver.rounds),
    ]
    score = "" if solver.chooses or name == "none" else " --score wanda"
    score = " --score l1" if name == "none" else score
    rows = json.loads((RESULTS / "solvers.json").read_text())["rows"]
    measured = [
        f"| `{cell['options']}` | {column} | {cell['perplexity']:.2f} |"
        for row in rows.values()
        for column, cell in row.items()
        if name in cell["options"].rpartition("--solver ")[2].split(" ")[0].split("+")
    ]
    lines = [f"# {name}", "", f"{solver.about[0].upper()}{solver.about[1:]}.", ""]
    lines += [f"    secateur prune MODEL -o OUT --sparsity 0.5{score} --solver {name}", ""]
    lines += [_as_written(_doc(sys.modules[type(solver).__module__])), ""]
    lines += ["| | |", "|---|---|", *(f"| {what} | {'yes' if does else 'no'} |" for what, does in facts)]
    lines += [f"| damping where none is said | {solver.damping:g} |", ""]
    if measured:
        lines += ["On SmolLM2-135M, dense 23.23 ([all of them](../solvers.md)):", ""]
        lines += ["| options | amount | perplexity |", "|---|---|---:|", *measured, ""]
    return "\n".join(lines)


def _strategy_page(name: str) -> str:
    kind = STRATEGIES[name]
    lines = [f"# {name}", "", f"{kind.about[0].upper()}{kind.about[1:]}.", ""]
    lines += [f"    secateur search MODEL -o OUT --sparsity 0.7 --strategy {name} --seconds 1200", ""]
    lines += [_as_written(_doc(sys.modules[kind.__module__])), "", _as_written(_doc(kind)), ""]
    lines += ["What all strategies share is told [here](../search.md).", ""]
    return "\n".join(lines)


def _unit_page(name: str) -> str:
    page = (ROOT / "docs" / "units.md").read_text(encoding="utf-8").splitlines()
    told = next(line for line in page if line.startswith("| `") and f"`{name}`" in line.split("|")[1])
    what, plain = (cell.strip() for cell in told.split("|")[2:4])
    results = json.loads((RESULTS / "structure.json").read_text())["rows"]
    measured = [
        f"| {label} | {row['parameters']:.1%} | {row['perplexity']:.1f} | {row['bits_per_byte']:.3f} |"
        for label, row in results.items()
        if any(name in stage["unit"].split(",") for stage in row.get("stages", ()))
    ]
    amount = "--params 0.9" if name in ("neuron", "head", "query-head", "channel", "token") else "--remove 2"
    lines = [f"# {name}", "", f"One is {what}. A plain checkpoint comes of it: {plain}.", ""]
    lines += [f"    secateur prune MODEL -o OUT --unit {name} {amount}", ""]
    if measured:
        lines += ["On SmolLM2-135M, dense 23.23 ([all of them](../units.md#smollm2-135m)):", ""]
        lines += ["| cut | parameters | perplexity | bits per byte |", "|---|---:|---:|---:|", *measured, ""]
    lines += ["Targets, scores, repair and what is checked: [units](../units.md).", ""]
    return "\n".join(lines)


def gallery_list() -> str:
    """Returns the reports of docs/gallery.md: links to those that were made, and how each is made."""
    lines = []
    for name, (title, command) in gallery.REPORTS.items():
        made = (GALLERY / f"{name}.html").is_file()
        lines.append(f"- {f'[{title}](gallery/{name}.html)' if made else title}: `secateur {command}`")
    return "\n".join(lines)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the made pages behind the one that tells of all of their kind."""
    sections = {"Single weights": "solvers", "Units": "units", "Search": "strategies"}
    assert config.nav is not None
    for entry in config.nav:
        for title, folder in sections.items():
            if title in entry:
                entry[title] += [page for page in pages() if page.startswith(f"{folder}/")]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the made pages."""
    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    for path in GALLERY.glob("*.html"):
        files.append(File.generated(config, f"gallery/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in the gallery; names files of the project that aren't pages, instead of linking to them."""
    markdown = markdown.replace("<!-- reports -->", gallery_list())
    return re.sub(r"\[[^\]]*\]\(\.\./((?:examples|bench)/[^)]*)\)", r"`\1`", markdown)


if __name__ == "__main__":
    print(choosing_table() if "--choosing" in sys.argv else recipes_text())
