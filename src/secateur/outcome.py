"""What every run writes down: its result in files, the memory that it took, the versions that it ran with."""

from __future__ import annotations

import json
import platform
import resource
import sys
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


def peak_memory() -> int:
    """Returns the process's peak resident memory so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Returns the versions that figures depend on."""
    names = ("secateur", "torch", "transformers", "safetensors", "numpy")
    return {name: version(name) for name in names} | {"python": platform.python_version()}
