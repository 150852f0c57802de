"""Recovery stages train on a DataLoader of the user's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import DataCollatorForLanguageModeling

import secateur
from secateur.calibration.loaders import loaded
from secateur.calibration.windows import Windows
from secateur.errors import UsageError
from secateur.network.loading import load
from secateur.training.examples import TextExamples, examples_of
from tiny import save_tiny

SHORT = {"data": "mine", "steps": 12, "rate": 3e-3, "held_out": 8, "batch": 8, "judged": 3}
ROWS = [{"input_ids": [5 + (start + 3 * place) % 80 for place in range(16)]} for start in range(64)]


class Stream(IterableDataset[dict[str, list[int]]]):
    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        return iter(ROWS)


def stacked(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids, "labels": ids}


def run(model: Path, loader: Any, tmp_path: Path, **more: Any) -> secateur.Result:
    ids = tmp_path / "ids.jsonl"
    ids.write_text("\n".join(json.dumps(row) for row in ROWS))
    told = {
        "model": str(model),
        "calibration": {"data": str(ids), "samples": 4, "length": 16},
        "evaluate": None,
        "stages": [{"prune": {"sparsity": 0.5, "score": "l1"}}, {"finetune": {**SHORT, **more}}],
    }
    return secateur.run_recipe(secateur.Recipe.build(told), loaders={"mine": loader})


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_model_learns_from_a_loader_as_from_the_same_text(family: str, tmp_path: Path) -> None:
    model = save_tiny(family, tmp_path / family, tokenizer=True)
    result = run(model, DataLoader(ROWS, batch_size=4, collate_fn=stacked), tmp_path)  # type: ignore[arg-type]
    training = result.stages[1].training
    assert training is not None
    assert (training.data, training.trained, training.judged) == ("mine", 56, 8)
    assert training.after < training.before
    assert result.stages[0].zeros == sum(int((layer.matrix() == 0).sum()) for layer in result.network.layers())


def test_labels_as_transformers_has_them_say_the_next_token(tmp_path: Path) -> None:
    network = load(str(save_tiny("llama", tmp_path / "llama", tokenizer=True)))
    rows = loaded(DataLoader(ROWS, batch_size=4, collate_fn=stacked), "mine", None)  # type: ignore[arg-type]
    ours = examples_of(network, rows, None, False, 0).batch([3, 5])
    text = TextExamples(network, Windows(torch.tensor([row["input_ids"] for row in ROWS]), "text")).batch([3, 5])
    assert torch.equal(ours["input_ids"], text["input_ids"])
    assert torch.equal(ours["labels"], text["labels"])


def test_a_stream_is_read_as_far_as_it_is_asked_for(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "llama", tokenizer=True)
    loader = DataLoader(Stream(), batch_size=4, collate_fn=stacked)  # type: ignore[arg-type]
    training = run(model, loader, tmp_path, samples=40).stages[1].training
    assert training is not None
    assert training.trained + training.judged == 40


def test_random_collators_draw_the_same_for_the_same_rows_and_epoch(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path / "bert", tokenizer=True)
    network = load(str(folder))
    masking = DataCollatorForLanguageModeling(network.tokenizer, mlm_probability=0.3)
    examples = examples_of(network, loaded(DataLoader(ROWS, 4, collate_fn=masking), "mine", None), None, False, 0)  # type: ignore[arg-type]
    one, same, later = (examples.batch([1, 2], [epoch, epoch]) for epoch in (0, 0, 1))
    assert torch.equal(one["input_ids"], same["input_ids"])
    assert not torch.equal(one["input_ids"], later["input_ids"])


@pytest.mark.parametrize(
    ("loader", "more", "says"),
    [
        (ROWS, {}, "is a list; give a torch"),
        (DataLoader(ROWS, batch_size=None), {}, "has no batch_size"),  # type: ignore[arg-type]
        (DataLoader(ROWS, batch_size=4, collate_fn=lambda rows: rows), {}, "gives a list; a dict"),  # type: ignore[arg-type]
        (DataLoader(ROWS, batch_size=4, collate_fn=lambda rows: {"input_ids": rows}), {}, "no labels"),  # type: ignore[arg-type]
        (DataLoader(ROWS, batch_size=4, collate_fn=stacked), {"data": "self"}, "named as data by no stage"),  # type: ignore[arg-type]
    ],
)
def test_misuse_is_named(loader: Any, more: dict[str, Any], says: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "llama", tokenizer=True)
    with pytest.raises(UsageError, match=says):
        run(model, loader, tmp_path, **more)
