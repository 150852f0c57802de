"""The examples run: as written on the demo model when slow tests are asked for, on a tiny one always."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

import secateur
from shared_data import DATA, needs_data
from tiny import save_tiny, write_wavs
from trained_tokenizers import loaded

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_recipe_prunes_a_tiny_model_of_the_same_family(path: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(path.read_text())
    data |= {"model": str(tiny_of(path.stem, tmp_path)), "output": str(tmp_path / "out")}
    data["calibration"] |= {"samples": 4, "length": 32}
    if path.stem == "speech":
        data["calibration"]["data"] = str(write_wavs(tmp_path / "wavs", 8))
    elif data["calibration"]["data"] != "self":
        (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "The gardener looks at the whole tree first. " * 40}))
        data["calibration"]["data"] = str(tmp_path / "texts.jsonl")
    for stage in data["stages"]:
        if "round_to" in stage.get("prune", {}):
            stage["prune"]["round_to"] = 4
        if "quantize" in stage:
            stage["quantize"]["per"] = "channel"
        if "distill" in stage:
            stage["distill"] = {**stage["distill"], "minutes": None, "steps": 3, "samples": 8}
    result = secateur.run_recipe(secateur.Recipe.build(data))
    assert len(result.stages) == len(data["stages"])
    assert all(stage.layers or stage.blocks or stage.groups or stage.training for stage in result.stages)
    assert result.reload is not None
    assert result.reload < 1e-4


def tiny_of(recipe: str, tmp_path: Path) -> Path:
    """Writes a tiny model that a recipe is for: with tokens to spare where some are to go."""
    if recipe != "tiny":
        family = {"encoder": "bert", "speech": "whisper"}.get(recipe, "llama")
        return save_tiny(family, tmp_path / "dense", tokenizer=True)
    tokenizer = loaded("gpt2", tmp_path / "dense")
    config = AutoConfig.from_pretrained(save_tiny("llama", tmp_path / "tiny"))
    config.vocab_size = len(tokenizer)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def test_the_python_example_runs_on_a_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    monkeypatch.setattr(sys, "argv", ["prune_in_python.py", str(model)])
    source = (EXAMPLES / "prune_in_python.py").read_text().replace("length=128", "length=32")
    script = tmp_path / "example.py"
    script.write_text(source)
    runpy.run_path(str(script), run_name="__main__")
    assert "sparsity of block weights" in capsys.readouterr().out


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_neurons_go_while_digits_are_learnt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_script(monkeypatch, "digits_neurons", 12)
    said = capsys.readouterr().out
    assert "[64, 32, 10] outputs" in said
    (right,) = re.findall(r"epoch 12: .*, ([\d.]+)%", said)
    assert float(right) > 80


def test_filters_go_while_images_are_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = np.random.default_rng(0)
    rows = {
        f"{what}_{part}": chance.integers(0, high, shape, dtype=np.uint8)
        for part, number in (("train", 128), ("test", 64))
        for what, high, shape in (("x", 256, (number, 8, 8, 3)), ("y", 10, (number,)))
    }
    np.savez(tmp_path / "images.npz", **rows)
    run_script(monkeypatch, "cifar_filters", tmp_path / "images.npz", 4, tmp_path / "out")
    said = capsys.readouterr().out
    filters = [int(number) for number in re.findall(r"epoch 4: filters \[([\d, ]+)\]", said)[0].split(", ")]
    assert sum(filters) == 144
    assert "saved and read again: True" in said


@pytest.mark.parametrize("kind", ["gpt2", "xlnet"])
def test_a_model_is_pruned_while_it_is_trained_from_scratch(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("What is cut off is gone; what is left must carry on as if nothing had happened. " * 60)
    run_script(monkeypatch, "from_scratch", kind, text, 4, tmp_path / "out")
    said = capsys.readouterr().out
    assert "50.0% of the blocks' zero" in said
    loss, entropy = (float(number) for number in re.findall(r"([\d.]+)(?= nats|\n$)", said)[-2:])
    assert loss < entropy + 2
    assert secateur.evaluate(tmp_path / "out", text=str(text), windows=2, length=32).sparsity == pytest.approx(0.5)


def test_a_classifier_is_pruned_in_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["sentence\tlabel", *(f"{'good and great' if good else 'bad and sad'}\t{good}" for good in (0, 1) * 48)]
    (tmp_path / "rows.tsv").write_text("\n".join(rows))
    model = save_tiny("bert", tmp_path / "bert", tokenizer=True)
    run_script(monkeypatch, "sst2", tmp_path / "rows.tsv", tmp_path / "rows.tsv", model, 96, tmp_path / "out")
    for name, share in (("weights-50", 0.5), ("weights-70", 0.7), ("weights-90", 0.9)):
        mask = secateur.Mask.load(tmp_path / "out" / name / "secateur.mask")
        assert mask.sparsity == pytest.approx(share, abs=1e-3)
    configs = [json.loads((tmp_path / "out" / name / "config.json").read_text()) for name in ("dense", "neurons-50")]
    assert configs[1]["intermediate_size"] == configs[0]["intermediate_size"] // 2
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_recipe_runs_as_written(path: Path, tmp_path: Path) -> None:
    recipe = secateur.Recipe.read(path).model_copy(update={"output": str(tmp_path / "out")})
    assert secateur.run_recipe(recipe).comparison is not None


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cifar_filters", ["images/cifar10_small.npz"]),
        ("cifar_filters", ["images/mnist.npz", "1"]),
        ("from_scratch", ["gpt2", "text/wiki.valid.raw"]),
        ("from_scratch", ["xlnet", "text/wiki.valid.raw"]),
        ("sst2", ["classification/sst2/train.tsv", "classification/sst2/test.tsv"]),
    ],
    ids=str,
)
def test_an_example_that_needs_data_runs_as_written(
    name: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_script(monkeypatch, name, *(DATA / one if "/" in one else one for one in arguments))
