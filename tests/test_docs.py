"""What the README says is what was measured, and what it calls exists."""

import re
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from secateur.cli import app

ROOT = Path(__file__).parents[1]


def test_the_table_in_the_readme_is_the_one_that_the_benchmark_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    sys.modules.pop("readme_table", None)
    from readme_table import side_by_side, table  # noqa: PLC0415 (bench isn't a package)

    readme = (ROOT / "README.md").read_text()
    assert table() in readme
    assert side_by_side() in readme


def test_every_command_and_option_in_the_readme_exists() -> None:
    commands = get_command(app).commands
    lines = re.findall(r"^ {4}secateur (\w+)(.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert lines
    for name, rest in lines:
        options = {text for option in commands[name].params for text in option.opts}
        for option in re.findall(r"(?<=\s)(--?[a-z][\w-]*)", rest):
            assert option in options, f"secateur {name} has no {option}"


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([\w-]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test"} <= named <= targets
