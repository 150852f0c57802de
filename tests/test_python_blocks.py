"""Every block of Python that README and docs show is carried out, on tiny models and with few steps."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)

import secateur
from secateur.schedules import Cubic
from test_commands import PAGES, prepared
from test_docs import ROOT
from zoo import ZOO

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FEW = {
    '"demo:smollm2-135m", sparsity=0.5': '"dense", sparsity=0.5, samples=4, length=32, calibration="wiki.test.raw"',
    '"demo:smollm2-135m"': '"dense"',
    "begin=100, end=2000, every=50": "begin=0, end=2, every=1",
    "...  # loss": "loss(model, x)",  # the reader's own loop
    "trials=30": "trials=4",
}
SHOWN = [(page, len(BLOCK.findall((ROOT / page).read_text()))) for page in PAGES]


def names_of(page: str) -> dict[str, Any]:
    """Returns what a page's blocks speak of: networks, data, and what trains them."""
    torch.manual_seed(0)
    build, example = ZOO["resnet18"]
    x = example()
    classes = torch.arange(len(x)) % 3
    names: dict[str, Any] = {"Network": build, "network": build(), "x": x, "images": x, "classes": classes}
    names |= {"secateur": secateur, "Cubic": Cubic, "Trainer": Trainer}
    if page in ("docs/search.md", "docs/training.md"):
        names |= {"model": AutoModelForCausalLM.from_pretrained("dense"), "batches": [torch.arange(16)[None]] * 4}
        names["loss"] = lambda model, batch: model(input_ids=batch, labels=batch).loss
    elif page == "README.md":
        names["model"] = build()
        names["loss"] = lambda model, batch: nn.functional.cross_entropy(model(batch), classes)
    if "model" in names:
        names["optimizer"] = torch.optim.SGD(names["model"].parameters(), 0.01)
    return names


def given(page: str, place: Path) -> dict[str, Any]:
    """Returns the names that a page's blocks find, and makes the files that they read."""
    prepared(place, page)
    calibration = {"calibration": "wiki.test.raw", "samples": 4, "length": 32, "evaluate": False}
    names = names_of(page)
    shutil.rmtree("out", ignore_errors=True)
    secateur.prune("dense", output="out/half", sparsity=0.5, score="l1", **calibration)
    secateur.prune("dense", output="out/two-four", pattern="2:4", score="l1", **calibration)
    if page == "docs/search.md":
        options = {"sparsity": 0.5, "trials": 4, "seconds": 60, "tokens": [64]}
        secateur.search("dense", output="out/found", **options, **calibration)
    if page == "docs/training.md":
        names["tokenizer"] = AutoTokenizer.from_pretrained("dense")
        names["arguments"] = TrainingArguments("out/training", max_steps=4, report_to=[])
    if page == "docs/search.md":
        names["train"] = lambda score, every, report: float(every) if score == "l1" else 0.0
    return names


@pytest.mark.parametrize("page", [page for page, count in SHOWN if count])
def test_the_python_of_a_page_does_what_it_should(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = given(page, tmp_path)
    for number, block in enumerate(BLOCK.findall((ROOT / page).read_text())):
        code = block
        for long, few in FEW.items():
            code = code.replace(long, few)
        if "Trainer(" in code:
            model = AutoModelForSequenceClassification.from_pretrained("dense", num_labels=2, pad_token_id=0)
            ids = torch.arange(8)
            names |= {"model": model, "data": [{"input_ids": ids + row, "labels": row % 2} for row in range(16)]}
        exec(compile(code, f"{page}, block {number}", "exec"), dict(names))
        if "def score(" in block:
            Path("score.py").write_text("import torch\n" + block)
            unit = "layer" if "group.whole" in block else "neuron"
            told = secateur.prune(
                "dense", unit=unit, remove=1, score="score.py:score", solver="none", repair=False,
                calibration="wiki.test.raw", samples=4, length=32, evaluate=False,
            )  # fmt: skip
            assert all(group.left < group.before for group in told.stages[0].groups)
