"""Tables of text and label: an encoder learns their classes, is pruned, taught and measured on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from secateur.calibration.tables import is_table, read_table
from secateur.errors import CalibrationError, UsageError
from secateur.network.classifier import with_classes
from secateur.network.loading import load
from secateur.result import Result
from tiny import save_tiny

ROWS = [("good and great, well done", "yes"), ("bad and sad, not at all", "no")] * 40
SHORT = {"steps": 24, "rate": 3e-3, "held_out": 16, "batch": 8, "judged": 3, "length": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables")
    save_tiny("bert", path / "bert", tokenizer=True)
    write(path / "rows.tsv", "sentence\tlabel", [f"{text}\t{label}" for text, label in ROWS])
    return path


def write(path: Path, head: str, rows: list[str]) -> str:
    path.write_text("\n".join([head, *rows]) + "\n")
    return str(path)


def run(folder: Path, *stages: dict[str, Any], **more: Any) -> Result:
    told = {
        "model": str(folder / "bert"),
        "calibration": {"data": str(folder / "rows.tsv"), "samples": 4, "length": 16},
        "evaluate": {"text": str(folder / "rows.tsv"), "length": 32},
        "stages": list(stages),
    }
    return secateur.run_recipe(secateur.Recipe.build({**told, **more}))


def test_an_encoder_learns_the_classes_of_a_table_is_cut_and_taught(folder: Path, tmp_path: Path) -> None:
    table = str(folder / "rows.tsv")
    finetuned = run(folder, {"finetune": {**SHORT, "data": table}}, output=str(tmp_path / "dense"))
    assert finetuned.comparison is not None
    (figures,) = finetuned.comparison.others
    assert finetuned.comparison.dense.accuracy is None
    assert figures.accuracy == 1
    assert figures.examples == 80
    assert finetuned.model.config.id2label == {0: "no", 1: "yes"}
    told = json.loads((tmp_path / "dense/config.json").read_text())
    assert told["architectures"] == ["BertForSequenceClassification"]
    again = secateur.evaluate(tmp_path / "dense", text=table)
    assert (again.accuracy, again.examples, again.perplexity) == (1, 80, None)
    assert again.loss == pytest.approx(figures.loss, rel=1e-4)

    cut = {"prune": {"unit": "neuron,head", "sparsity": 0.5}}
    taught = {"distill": {**SHORT, "data": table, "rate": 1e-3, "hidden": 0.1, "top_k": 2}}
    result = run(folder, cut, {"prune": {"sparsity": 0.3}}, taught, model=str(tmp_path / "dense"))
    assert result.comparison is not None
    assert result.comparison.dense.accuracy == 1
    assert result.comparison.others[0].accuracy == 1
    training = result.stages[2].training
    assert training is not None
    assert training.after < training.before
    assert "accuracy" in result.table()


def test_a_setting_that_the_data_or_the_teacher_cannot_meet_is_told(folder: Path, tmp_path: Path) -> None:
    table, dense = str(folder / "rows.tsv"), str(tmp_path / "dense")
    result = run(folder, {"finetune": {**SHORT, "data": table, "held_out": 60}}, output=dense)
    assert any(note.startswith("10 of the 80 examples judge, not 60 (held_out)") for note in result.stages[0].notes)
    cut = {"prune": {"sparsity": 0.3}}
    with pytest.raises(UsageError, match="top_k=3 is more than the 2 logits"):
        run(folder, cut, {"distill": {**SHORT, "data": table, "top_k": 3}}, model=dense)


def test_the_head_is_new_and_the_encoder_is_as_it_was(folder: Path) -> None:
    network = load(str(folder / "bert"))
    found = with_classes(network, ("a", "b", "c"), seed=0)
    assert found.model.classifier.weight.shape == (3, 32)
    ours = found.model.base_model.state_dict()
    assert all(torch.equal(ours[name], one) for name, one in network.base.state_dict().items())
    again = with_classes(network, ("a", "b", "c"), seed=0)
    assert torch.equal(found.model.classifier.weight, again.model.classifier.weight)


def test_a_table_is_read_from_each_kind_of_file(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "a.tsv", "label\ttext", ['yes\tsays "so', "no\tno, never"]),
        write(tmp_path / "a.csv", "label,text", ['yes,"says ""so"', 'no,"no, never"']),
        write(tmp_path / "a.jsonl", '{"text": "says \\"so", "label": "yes"}', ['{"text": "no, never", "label": "no"}']),
    ]
    for file in files:
        assert is_table(file)
        table = read_table(file, None, None)
        assert table.texts == ('says "so', "no, never")
        assert table.names == ("no", "yes")
        assert table.classes.tolist() == [1, 0]
    numbers = write(tmp_path / "b.tsv", "text\tlabel", ["a\t1", "b\t0"])
    assert read_table(numbers, None, ("NEGATIVE", "POSITIVE")).classes.tolist() == [1, 0]
    assert len(read_table(numbers, 1, ("NEGATIVE", "POSITIVE"))) == 1


def test_what_is_no_table_is_a_text(tmp_path: Path) -> None:
    assert not is_table(write(tmp_path / "a.jsonl", '{"text": "a"}', []))
    assert not is_table(str(tmp_path / "nowhere.tsv"))
    assert not is_table(None)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["fine\t2"], "label '2', which is none of a, b"),
        (["no label"], "a table has columns text and label"),
        (["too\tmany\tfields"], "row 1 has more fields than the header"),
        (["fine\ta", "empty\t"], "row 2 has no label"),
        ([], "has no rows"),
    ],
)
def test_a_table_with_faults_is_an_error(rows: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=says):
        read_table(write(tmp_path / "a.tsv", "text\tlabel", rows), None, ("a", "b"))


def test_numbers_that_aren_t_whole_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"has the label 0.5: classes are names or whole numbers"):
        read_table(write(tmp_path / "a.tsv", "text\tlabel", ["a\t0.5", "b\t1.5"]), None, None)


def test_a_table_without_labels_is_no_text_to_train_on(folder: Path) -> None:
    data = write(folder / "nolabel.tsv", "one\ttwo", ["1\t2"] * 40)
    with pytest.raises(CalibrationError, match="a table has columns text and label; this has one, two"):
        run(folder, {"finetune": {**SHORT, "data": data}})


def test_models_that_tell_no_classes_apart_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tells no classes apart"):
        run(folder, {"prune": {"sparsity": 0.5, "score": "l1"}})
    with pytest.raises(UsageError, match="tells no classes apart"):
        secateur.compare([folder / "bert", folder / "bert"], text=str(folder / "rows.tsv"))
    llama = str(save_tiny("llama", tmp_path / "llama", tokenizer=True))
    with pytest.raises(UsageError, match="that is for encoders"):
        run(folder, {"finetune": {**SHORT, "data": str(folder / "rows.tsv")}}, model=llama)


def test_a_number_of_windows_says_nothing_about_a_table(folder: Path) -> None:
    table = str(folder / "rows.tsv")
    with pytest.raises(UsageError, match="all of its rows are read"):
        secateur.evaluate(folder / "bert", text=table, windows=4)
    stages = ({"finetune": {**SHORT, "data": table}},)
    with pytest.raises(UsageError, match="all rows of which are read"):
        run(folder, *stages, evaluate={"text": table, "windows": 4, "length": 32})
