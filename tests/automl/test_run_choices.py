"""Recipes that leave choices open, carried out from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from command_line import secateur as secateur_command
from secateur.errors import SearchError, UsageError
from secateur.recipe import Recipe
from secateur.run_choices import run_choices, scaled
from tiny import tiny_recipe


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    return tiny_recipe(tmp_path) | {
        "stages": [
            {"prune": {"sparsity": 0.6, "score": {"choice": ["wanda", "l1", "random"]}}},
            {"finetune": {"steps": 4, "batch": 2, "rate": {"float": [1e-4, 1e-2], "log": True}}},
        ],
        "search": {"trials": 8, "judge": {"windows": 2}},
    }


def test_the_command_line_carries_out_the_best_choices(told: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(told))
    done = secateur_command("run", path, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    search = found["search"]
    assert search["trials"] == 8
    score, rate = search["params"]["stages.0.prune.score"], search["params"]["stages.1.finetune.rate"]
    assert found["recipe"]["stages"][0]["prune"]["score"] == score != "random"
    assert found["recipe"]["stages"][1]["finetune"]["rate"] == rate
    study = optuna.load_study(study_name="secateur", storage=f"sqlite:///{tmp_path / 'out/study.db'}")
    assert study.best_value == search["best"] == search["course"][-1]["value"]
    assert all(0 in trial.intermediate_values for trial in study.trials)  # on a quarter of the training
    assert Recipe.read(tmp_path / "out/recipe.yaml").search is None
    assert (tmp_path / "out/model.safetensors").is_file()
    page = (tmp_path / "out/report.html").read_text()
    assert "search-trials" in page
    assert not (tmp_path / ".out.search").exists()


def test_ones_own_reward_goes_by_the_whole_outcome_and_limits_hold(told: dict[str, Any], tmp_path: Path) -> None:
    told["stages"] = [{"prune": {"unit": "neuron", "remove": {"int": [1, 8]}}}]
    (tmp_path / "mine.py").write_text("def worth(result):\n    return -result.comparison.others[0].parameters\n")
    told["search"] |= {"reward": f"{tmp_path / 'mine.py'}:worth", "budgets": [1.0], "trials": 12, "strategy": "random"}
    told["search"] |= {"limit": {"params": 0.99, "macs": 1.0}}
    result = run_choices(told)
    assert result.search is not None
    assert result.comparison is not None
    assert result.comparison.others[0].parameters <= 0.99 * result.comparison.dense.parameters
    assert result.search["params"]["stages.0.prune.remove"] == max(
        trial.params["stages.0.prune.remove"]
        for trial in optuna.load_study(study_name="secateur", storage=f"sqlite:///{tmp_path / 'out/study.db'}").trials
    )


def test_workers_with_outputs_of_their_own_share_a_study_if_values_mean_the_same(
    told: dict[str, Any], tmp_path: Path
) -> None:
    told["stages"] = [{"prune": {"unit": "neuron", "remove": {"int": [1, 8]}}}]
    told["search"] |= {"budgets": [1.0], "storage": f"sqlite:///{tmp_path / 'shared.db'}"}
    run_choices({**told, "search": {**told["search"], "trials": 2}})
    result = run_choices({**told, "output": str(tmp_path / "other"), "search": {**told["search"], "trials": 4}})
    assert result.search is not None
    assert result.search["trials"] == 4
    with pytest.raises(SearchError, match=r"is of another search \(judge differ\)"):
        run_choices({**told, "overwrite": True, "search": {**told["search"], "judge": {"windows": 1}}})


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"stages": [{"prune": {"sparsity": 0.6}}]}, UsageError, "leaves nothing open"),
        ({"output": None}, UsageError, "a search needs an output"),
        ({"search": {"budgets": [0.5]}}, UsageError, "whose last is 1"),
        ({"search": {"strategy": "evolution"}}, UsageError, r"search\.strategy: "),
        ({"search": {"trails": 3}}, UsageError, r"search\.trails is not a known field \(did you mean 'trials'"),
        ({"search": {"reward": "accurate"}}, UsageError, "Did you mean 'accuracy'"),
        ({"search": {"reward": "accuracy", "trials": 5}}, SearchError, "measures no accuracy"),
    ],
)
def test_misuse_is_named(changes: dict[str, Any], error: type[Exception], says: str, told: dict[str, Any]) -> None:
    with pytest.raises(error, match=says):
        run_choices({**told, **changes})
    assert not Path(told["output"]).exists()


def test_a_share_of_the_budget_is_of_training_or_else_of_calibration() -> None:
    trains = {"stages": [{"prune": {}}, {"repeat": 2, "stages": [{"distill": {"steps": 10, "minutes": 4.0}}]}]}
    (_, repeat) = scaled(trains, 0.25)["stages"]
    assert repeat["stages"] == [{"distill": {"steps": 2, "minutes": 1.0}}]
    assert scaled({"stages": [{"finetune": None}]}, 0.25)["stages"] == [{"finetune": {"epochs": 0.25}}]
    assert scaled({"stages": [{"prune": {}}]}, 0.25)["calibration"] == {"samples": 8}
