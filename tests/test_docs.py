"""What the README says is what was measured, and what it calls exists."""

import json
import re
import runpy
from importlib import import_module
from pathlib import Path

import pytest
from typer.main import get_command

import cuts_of_networks
from cuts import proof_table
from secateur.cli import app

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes bench/ importable, which isn't a package."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))


@pytest.mark.usefixtures("bench")
def test_the_figures_in_the_readme_are_those_that_the_benchmarks_wrote() -> None:
    parts = import_module("readme_table").measured()
    assert len(parts) >= 3
    for part in parts:
        assert part in (ROOT / "README.md").read_text()


PAGES = {
    "solvers": "solvers",
    "structure": "units",
    "whisper": "units",
    "recovery": "recovery",
    "vision": "vision",
    "search": "search",
    "strategies": "search",
    "compress": "deploying",
    "shipping": "deploying",
    "tasks": "deploying",
}


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize(("name", "page"), PAGES.items())
def test_the_tables_of_a_page_are_those_that_the_benchmark_wrote(name: str, page: str) -> None:
    module = import_module(name)
    text = (ROOT / f"docs/{page}.md").read_text()
    named = f"bench/results/{name}.json"
    if not module.RESULTS.is_file():
        assert named not in text  # no figure without the file that it comes from
        return
    assert named in text
    results = json.loads(module.RESULTS.read_text())
    found = module.tables(results) if hasattr(module, "tables") else [module.table(results)]
    assert found
    for table in found.values() if isinstance(found, dict) else found:
        assert table in text


def test_the_table_of_proofs_is_that_of_the_tests() -> None:
    assert proof_table() in (ROOT / "docs/units.md").read_text()


def test_the_tables_of_networks_are_those_of_the_tests_and_of_the_registries() -> None:
    page = (ROOT / "docs/networks.md").read_text()
    assert cuts_of_networks.proof_table() in page
    assert cuts_of_networks.operations_table() in page


def code_blocks(text: str) -> list[str]:
    """Returns fenced and indented blocks."""
    found: list[str] = re.findall(r"^```[^`]*^```$|(?:^ {4}.*\n)+", text, re.MULTILINE)
    return [block.rstrip("\n") for block in found]


def test_the_chinese_readme_has_the_same_commands_options_and_links() -> None:
    english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md"))
    assert len(code_blocks(english)) > 5
    assert code_blocks(chinese) == code_blocks(english)
    english = re.sub(r"(?s)## Figures.*?(?=## What is pruned how)", "", english)
    for pattern in (r"(?<![\w`-])--[a-z][\w-]+", r"\]\((docs/[^)]*)\)", r"secateur\[\w+\]"):
        assert set(re.findall(pattern, chinese)) >= set(re.findall(pattern, english))


def test_every_command_and_option_in_the_readme_exists() -> None:
    commands = get_command(app).commands
    lines = re.findall(r"^ {4}secateur (\w+)(.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert lines
    reports = runpy.run_path(str(ROOT / "docs/gallery.py"))["REPORTS"]
    lines += [command.split(maxsplit=1) for _, command in reports.values()]
    for name, rest in lines:
        options = {text for option in commands[name].params for text in option.opts}
        for option in re.findall(r"(?<=\s)(--?[a-z][\w-]*)", rest):
            assert option in options, f"secateur {name} has no {option}"


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([\w-]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test"} <= named <= targets


def test_the_picture_of_the_schedules_is_what_its_script_draws() -> None:
    drawing = runpy.run_path(str(ROOT / "docs/schedules.py"))["drawing"]
    assert (ROOT / "docs/schedules.svg").read_text(encoding="utf-8") == drawing()
