"""The examples run: as written on the demo model when slow tests are asked for, on a tiny one always."""

import runpy
import sys
from pathlib import Path

import pytest
import yaml

import secateur
from tiny import save_tiny

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_recipe_prunes_a_tiny_model_of_the_same_family(path: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(path.read_text())
    data |= {"model": str(save_tiny("llama", tmp_path / "dense", tokenizer=True)), "output": str(tmp_path / "out")}
    data["calibration"] |= {"samples": 4, "length": 32}
    for stage in data["stages"]:
        if "distill" in stage:
            stage["distill"] = {**stage["distill"], "minutes": None, "steps": 3, "samples": 8}
    result = secateur.run_recipe(secateur.Recipe.build(data))
    assert len(result.stages) == len(data["stages"])
    assert all(stage.zeros > 0 or stage.groups or stage.training for stage in result.stages)


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


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_recipe_runs_as_written(path: Path, tmp_path: Path) -> None:
    recipe = secateur.Recipe.read(path).model_copy(update={"output": str(tmp_path / "out")})
    assert secateur.run_recipe(recipe).comparison is not None
