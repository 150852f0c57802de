"""What every run writes down: its result in files, and the versions that it ran with."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path

from secateur.network.saving import RESULT_FILE
from secateur.report.card import model_card
from secateur.report.page import write_page
from secateur.report.training import LOG, training_table
from secateur.result import Result


def write_result(result: Result, folder: Path) -> None:
    """Writes secateur.json, report.html and the model card into a folder."""
    text = json.dumps(result.to_dict(), indent=1, allow_nan=True)
    (folder / RESULT_FILE).write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(result), encoding="utf-8")
    if log := training_table(result.stages):
        (folder / LOG).write_text(log, encoding="utf-8")
    write_page(result, folder / "report.html")


def versions() -> dict[str, str]:
    """Returns the versions that figures depend on."""
    names = ("secateur", "torch", "transformers", "safetensors", "numpy")
    return {name: version(name) for name in names} | {"python": platform.python_version()}
