"""A whole search on a tiny model: what comes out, what lies beside it, and what is refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import yaml

import secateur
from command_line import secateur as secateur_command
from feeding import random_windows
from secateur.api import single_stage
from secateur.automl.database import LevelDatabase
from secateur.automl.ladder import exact, levels_of
from secateur.automl.units import UnitSearch
from secateur.errors import ResumeError, SaveError, SearchError, SecateurError, UsageError
from secateur.network.classifier import with_classes
from secateur.network.loading import load
from secateur.network.saving import save_network
from secateur.network.surgery import Cut, cut
from secateur.progress import Progress
from secateur.recipe import Prune, Search
from secateur.report.search import search_line
from secateur.schedules import OneShot
from tiny import SENTENCE, save_tiny, tiny_recipe

UNITS = [{"prune": {"unit": "neuron", "params": 0.8}}]
TEXT = SENTENCE * 80


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    return tiny_recipe(tmp_path) | {
        "stages": [{"prune": {"sparsity": 0.6}}],
        "search": {"trials": 60, "tokens": [32, 64, 128]},
    }


def run(told: dict[str, Any], resume: bool = False, **changes: Any) -> secateur.Result:
    return secateur.run_recipe(secateur.Recipe.build({**told, **changes}), resume=resume)


def test_what_is_found_is_no_worse_than_the_start_and_exact(told: dict[str, Any], tmp_path: Path) -> None:
    result = run(told)
    assert result.search is not None
    assert result.search["best"] >= result.search["start"]
    assert result.search["trials"] == 60
    layers = result.stages[0].layers
    assert -1 < result.search["solved"] < 0
    assert result.search["solved"] != result.search["best"]
    assert sum(layer.zeros for layer in layers) == round(0.6 * sum(layer.weights for layer in layers))
    assert len({layer.zeros / layer.weights for layer in layers}) > 1
    found = json.loads((tmp_path / "out/secateur.json").read_text())
    assert found["search"]["course"][-1]["value"] == result.search["best"]
    study = optuna.load_study(study_name="secateur", storage=f"sqlite:///{tmp_path / 'out/study.db'}")
    assert len(study.trials) == 60
    assert not (tmp_path / ".out.search").exists()
    again = secateur.Recipe.read(tmp_path / "out/recipe.yaml").model_copy(update={"output": str(tmp_path / "again")})
    secateur.run_recipe(again)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert one == two


def test_candidates_are_judged_in_the_precision_that_is_asked_for(told: dict[str, Any]) -> None:
    starts = []
    for compute in ("float32", "bfloat16"):
        calibration = {**told["calibration"], "compute": compute}
        result = run(told, calibration=calibration, search={"trials": 1, "tokens": [128]}, overwrite=True)
        assert result.search is not None
        starts.append(result.search["start"])
    assert starts[0] != starts[1]
    assert starts[0] == pytest.approx(starts[1], rel=0.1)


def test_the_search_reads_what_the_run_calibrates_on_and_no_more(
    told: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a short text some windows are held back to be measured on."""
    seen = []

    def noted(network: Any, recipe: Any, solved: Any, search: Any, windows: Any) -> dict[str, Any]:
        seen.append(len(windows))
        return {"windows": len(windows)}

    monkeypatch.setattr("secateur.automl.weights.database_about", noted)
    (tmp_path / "short.txt").write_text(SENTENCE * 20)
    calibration = {**told["calibration"], "data": str(tmp_path / "short.txt"), "samples": 1000}
    result = run(told, calibration=calibration, evaluate={"windows": 4}, search={"trials": 1, "tokens": [64]})
    assert result.calibration is not None
    assert result.calibration["held_out"] > 0
    assert seen == [result.calibration["windows"]]


def test_levels_that_the_disk_has_no_room_for_are_not_begun(
    told: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(told, search={"trials": 1, "tokens": [128]})
    known = sum(path.stat().st_size for path in (tmp_path / ".secateur-levels").rglob("*.safetensors"))
    needed = []
    monkeypatch.setattr(LevelDatabase, "check_room", lambda database, bytes_: needed.append(bytes_))
    run(told, overwrite=True, search={"trials": 1, "tokens": [128], "levels": str(tmp_path / "anew")})
    assert needed[0] == pytest.approx(known, rel=0.2)  # files have a few hundred bytes each beside it
    monkeypatch.undo()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=needed[0] - 1))
    database = LevelDatabase.of(tmp_path / "levels", {})
    with pytest.raises(SaveError, match=r"solving every level needs .* name another folder with --levels"):
        database.check_room(needed[0])


def test_levels_depend_on_the_seed_only_where_something_is_drawn(told: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / ".secateur-levels"
    for seed in (0, 1):
        run(told, seed=seed, overwrite=True, search={"trials": 1, "tokens": [128]})
    assert len(list(root.iterdir())) == 1
    drawn = [{"prune": {"sparsity": 0.6, "score": "random", "solver": "sparsegpt"}}]
    for seed in (0, 1):
        run(
            told, seed=seed, overwrite=True, stages=drawn, search={"trials": 1, "tokens": [128], "level_solver": "none"}
        )
    assert len(list(root.iterdir())) == 3


def test_levels_serve_a_later_search(told: dict[str, Any], tmp_path: Path) -> None:
    run(told)
    entries = {path: path.stat().st_mtime_ns for path in (tmp_path / ".secateur-levels").rglob("*.safetensors")}
    run(told, output=str(tmp_path / "other"), stages=[{"prune": {"sparsity": 0.65}}])
    assert all(path.stat().st_mtime_ns == written for path, written in entries.items())
    assert len(list((tmp_path / ".secateur-levels").rglob("*.safetensors"))) > len(entries)


def test_a_search_that_ended_early_is_gone_on_from(told: dict[str, Any], tmp_path: Path) -> None:
    storage = {**told["search"], "storage": f"sqlite:///{tmp_path / 'shared.db'}"}
    run(told, search={**storage, "trials": 20})
    result = run(told, search={**storage, "trials": 50}, overwrite=True)
    assert result.search is not None
    assert result.search["trials"] == 50
    with pytest.raises(SearchError, match="is of another search"):
        run(told, search={**storage, "tokens": [32, 128]}, overwrite=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stages": [{"prune": {"sparsity": 0.6, "allocation": "owl"}}]}, "it finds the allocation itself"),
        ({"search": {"strategy": "evolutoin"}}, "Did you mean 'evolution'"),
        ({"search": {"tokens": [64, 32]}}, "ascending"),
        ({"search": {"tokens": [32, 10_000]}}, "candidates are judged on 10,000 tokens, and the calibration has 256"),
        ({"output": None}, "a search needs an output"),
        ({"search": {"reward": "klu"}}, "unknown reward 'klu'. Did you mean 'kl'"),
        ({"search": {"reward": "accuracy"}}, "goes with a table"),
        ({"search": {"reward": "nowhere:worth"}}, "there is no module 'nowhere'"),
        ({"search": {"weigh": ["macs"]}}, "such as macs=0.5, not 'macs'"),
        ({"search": {"weigh": {"macs": 0.5}}}, "--weigh says nothing with --unit weight"),
        ({"search": {"limit": {"macs": 1.5}}}, "a share of the dense model"),
        ({"search": {"limit": ["macs=0.5", "macs=0.6"]}}, "a measure is given twice: macs=0.5, macs=0.6"),
        ({"search": {"front": ["macs"], "strategy": "policy"}, "stages": UNITS}, "'policy' follows one goal"),
        ({"search": {"halves": False}}, "--no-halves says nothing with --unit weight"),
        (
            {"stages": [{"prune": {"unit": "neuron", "params": 0.8, "protect_first": 1}}]},
            "--protect-first says nothing",
        ),
    ],
)
def test_misuse_is_named(changes: dict[str, Any], says: str, told: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=says):
        run(told, **changes)


def test_a_reward_weighs_and_limits_what_else_a_candidate_costs(told: dict[str, Any], tmp_path: Path) -> None:
    free = run(told, stages=UNITS).search
    asked = {"weigh": {"macs": 0.1, "latency": 0.01}, "limit": {"memory": 0.9}}
    result = run(told, output=str(tmp_path / "bound"), stages=UNITS, search={**told["search"], **asked})
    assert free is not None and result.search is not None  # noqa: PT018
    assert set(free["shares"]) == {"params", "macs", "memory"}
    assert result.search["shares"]["memory"] <= 0.9
    said = "less 0.1 times the share of macs, less 0.01 times the share of latency; memory at most 90%"
    assert said in result.search["reward"]
    assert result.comparison is not None
    left = result.comparison.others[0].parameters / result.comparison.dense.parameters
    assert result.search["shares"]["params"] == pytest.approx(left, abs=1e-3)
    chosen = next(one for one in result.search["judged"] if one["trial"] == result.search["chosen"])
    assert result.search["best"] == pytest.approx(
        chosen["quality"] - 0.1 * chosen["shares"]["macs"] - 0.01 * chosen["shares"]["latency"]
    )


def test_latency_and_memory_beside_a_target_are_limits() -> None:
    given = {"params": 0.7, "latency": 0.8, "limit": ["memory=0.9"]}
    recipe = single_stage("MODEL", "OUT", "self", False, given, searches=True)
    assert recipe.search is not None
    assert recipe.search.limit == {"latency": 0.8, "memory": 0.9}
    assert recipe.stages[0].prune is not None
    assert (recipe.stages[0].prune.unit, recipe.stages[0].prune.params) == ("neuron", 0.7)
    only = single_stage("MODEL", "OUT", "self", False, {"macs": 0.6}, searches=True).stages[0].prune
    assert only is not None
    assert (only.unit, only.macs) == ("neuron", 0.6)
    both = single_stage("MODEL", "OUT", "self", False, {"params": 0.7, "macs": 0.6, "limit": None}, searches=True)
    assert both.search is not None
    assert both.search.limit == {"macs": 0.6}
    for wrong, says in (
        ({}, "search: give a target: --sparsity of single weights, or --params or --macs of units.$"),
        ({"latency": 0.8}, "give a target: .* --latency only bounds what is found"),
        ({"sparsity": 0.7, "params": 0.8}, "--params is for a search over units; leave --sparsity out, or --params"),
        ({"sparsity": 0.7, "table": "t.csv"}, "a table is for --reward accuracy, and the reward is 'kl'"),
        ({"params": 0.7, "latency": 0.8, "limit": {"latency": 0.9}}, "a measure is given twice"),
        ({"sparsity": 0.7, "latency": 0.8}, "--latency is for a search over units"),
    ):
        with pytest.raises(UsageError, match=says):
            single_stage("MODEL", "OUT", "self", False, wrong, searches=True)


def test_a_front_is_told_and_its_knee_is_taken(told: dict[str, Any], tmp_path: Path) -> None:
    result = run(told, stages=UNITS, search={**told["search"], "front": ["memory"], "tokens": [64], "trials": 60})
    assert result.search is not None
    judged = {one["trial"]: one for one in result.search["judged"]}
    assert result.search["chosen"] in result.search["front"]
    front = [judged[number] for number in result.search["front"]]
    assert not any(
        a["quality"] >= b["quality"] and a["shares"]["memory"] < b["shares"]["memory"]
        for a in judged.values()
        for b in front
    )
    study = optuna.load_study(study_name="secateur", storage=f"sqlite:///{tmp_path / 'out/study.db'}")
    assert [way.name for way in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    names = {path.name for path in (tmp_path / "out/front").iterdir()}
    assert names == {f"trial-{number}.yaml" for number in result.search["front"]}
    recipes = [secateur.Recipe.read(path) for path in (tmp_path / "out/front").iterdir()]
    assert secateur.Recipe.read(tmp_path / "out/recipe.yaml") in recipes
    assert all(recipe.search is None for recipe in recipes)
    assert "search-front-memory" in (tmp_path / "out/report.html").read_text()


def test_rewards_of_ones_own_and_perplexity(told: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def worth(network, tokens):\n    return -float(network.model.lm_head.weight.count_nonzero()) / tokens\n"
        "def lost(network, tokens):\n    raise ValueError('lost')\n"
    )
    own = run(told, search={**told["search"], "reward": f"{tmp_path / 'mine.py'}:worth", "trials": 3}).search
    assert own is not None
    head = load(told["model"]).model.lm_head.weight.count_nonzero()
    assert own["best"] == -float(head) / 128
    likely = run(told, overwrite=True, search={**told["search"], "reward": "perplexity"}).search
    assert likely is not None
    assert likely["best"] >= likely["start"]
    with pytest.raises(SearchError, match="ValueError: lost"):
        run(told, overwrite=True, search={**told["search"], "reward": f"{tmp_path / 'mine.py'}:lost"})


def test_what_fails_before_the_first_trial_leaves_nothing(told: dict[str, Any], tmp_path: Path) -> None:
    for changes in (
        {"stages": [{"prune": {"sparsity": 0.99}}]},
        {"model": str(tmp_path / "nowhere")},
        {"search": {"storage": "sqlite:////nowhere/study.db"}},
    ):
        with pytest.raises(SecateurError):
            run(told, **changes)
        assert not (tmp_path / ".out.search").exists()
        assert not (tmp_path / "out").exists()


def test_a_study_that_cannot_be_read_stays(told: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / ".out.search").mkdir()
    (tmp_path / ".out.search/study.db").write_text("no database")
    with pytest.raises(SearchError, match=r"study\.db can't be used"):
        run(told)
    assert (tmp_path / ".out.search/study.db").read_text() == "no database"


def counting(file: Path, last: str) -> str:
    """Writes a reward that counts its calls; returns its import path."""
    file.write_text(f"calls = 0\ndef worth(network, tokens):\n    global calls\n    calls += 1\n    {last}\n")
    return f"{file}:worth"


def test_trials_of_a_search_that_ended_early_are_not_lost_without_a_word(told: dict[str, Any], tmp_path: Path) -> None:
    reward = counting(tmp_path / "mine.py", "assert calls < 3, 'enough'; return calls")
    search = {**told["search"], "reward": reward}
    with pytest.raises(SearchError, match=r"AssertionError: enough \(mine.py, line 5\)"):
        run(told, search=search)
    assert (tmp_path / ".out.search").is_dir()
    with pytest.raises(ResumeError, match=r"5 trials are kept .* --resume goes on; with --overwrite"):
        run(told, search=search)
    result = run(told, overwrite=True, search={"trials": 1, "tokens": [128]})
    assert result.search is not None
    assert result.search["trials"] == 1
    assert not (tmp_path / ".out.search").exists()


def test_candidates_that_could_not_be_judged_are_told(told: dict[str, Any], tmp_path: Path) -> None:
    reward = counting(tmp_path / "mine.py", "return float('nan') if calls in (2, 5) else 1")
    found = run(told, search={"trials": 8, "tokens": [32, 128], "reward": reward}).search
    assert found is not None
    assert found["failures"] == {"its reward came out as nan": 2}
    said = search_line(found)
    assert "judged 6 candidates" in said
    assert "2 candidates couldn't be judged (its reward came out as nan)." in said


def test_units_are_searched_for_under_a_budget_of_macs(told: dict[str, Any]) -> None:
    given = {"trials": 20, "tokens": [128]}
    result = run(told, stages=[{"prune": {"unit": "neuron", "macs": 0.8}}], search=given)
    assert result.search is not None
    assert result.search["shares"]["macs"] <= 0.8
    assert result.comparison is not None
    (other,) = result.comparison.others
    assert other.macs / result.comparison.dense.macs == pytest.approx(result.search["shares"]["macs"], abs=1e-3)


def test_without_a_word_no_more_tokens_are_read_than_there_are(told: dict[str, Any]) -> None:
    result = run(told, search={"trials": 1})
    assert result.search is not None
    assert "on 256 tokens" in result.search["reward"]


def test_classifiers_are_judged_by_a_table(told: dict[str, Any], tmp_path: Path) -> None:
    network = with_classes(load(save_tiny("bert", tmp_path / "bert", tokenizer=True)), ("bad", "good"), 0)
    save_network(network, tmp_path / "classifier")
    rows = [{"text": TEXT[n : n + 40], "label": ("bad", "good")[n % 2]} for n in range(200)]
    table = tmp_path / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = {"reward": "accuracy", "table": str(table), "tokens": [256, 1024], "trials": 30}
    result = run(told, model=str(tmp_path / "classifier"), evaluate={"text": str(table)}, search=judged)
    assert result.search is not None
    assert 0 <= result.search["best"] <= 1
    assert "the share of rows that are classified right" in result.search["reward"]
    with pytest.raises(UsageError, match="classifiers are judged by --reward accuracy"):
        run(told, model=str(tmp_path / "classifier"), overwrite=True, evaluate=None)
    with pytest.raises(UsageError, match="tells no classes apart"):
        run(told, overwrite=True, search=judged)


def test_entries_come_back_to_the_bit(tmp_path: Path) -> None:
    database = LevelDatabase.of(tmp_path, {"model": "one"})
    W = torch.randn(7, 13, dtype=torch.bfloat16) * (torch.rand(7, 13) > 0.6)
    database.put("model.layers.0/mlp", 40, W, 0.25)
    assert ("model.layers.0/mlp", 40) in database
    assert torch.equal(database.get("model.layers.0/mlp", 40)[0], W)
    assert database.get("model.layers.0/mlp", 40)[1] is None
    database.put("other", 1, W, 0.0, torch.ones(7))
    assert torch.equal(database.get("other", 1)[1], torch.ones(7))  # type: ignore[arg-type]
    assert database.loss("model.layers.0/mlp", 40) == 0.25
    assert ("model.layers.0/mlp", 40) not in LevelDatabase.of(tmp_path, {"model": "two"})


def test_levels_are_in_equal_steps_and_amounts_add_up_to_the_weight() -> None:
    sizes = {"k": 1000, "q": 3000, "up": 8001}
    levels = levels_of(sizes, 0.6)
    assert levels["k"] == tuple(range(400, 801, 50))
    assert {b - a for some in levels.values() for a, b in pairwise(some)} == {50, 150, 400}
    found = exact({"k": 600, "q": 1800, "up": 4800}, sizes, 0.6)
    assert sum(found.values()) == round(0.6 * 12001)
    assert sum(exact({"k": 0, "q": 0, "up": 95}, sizes, 90 / 12001).values()) == 90  # some have nothing to give back
    assert sum(exact({"k": 1000, "q": 3000, "up": 0}, sizes, 0.9).values()) == round(0.9 * 12001)
    assert yaml.safe_load(yaml.safe_dump(found)) == found


def test_the_command_line_searches(told: dict[str, Any], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    given = [
        "--sparsity",
        0.6,
        "--trials",
        30,
        "--tokens",
        32,
        "--tokens",
        64,
        "--strategy",
        "random",
        "--losses",
        "layer",
    ]
    data = ["--calibration", text, "--samples", 8, "--length", 32, "--evaluate", text, "--windows", 2]
    done = secateur_command("search", told["model"], "-o", tmp_path / "out", *given, *data, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["search"]["trials"] == 30
    assert found["recipe"]["stages"][0]["prune"]["amounts"]
    (tmp_path / "long.txt").write_text(TEXT * 4)
    enough = [
        "--calibration",
        tmp_path / "long.txt",
        "--samples",
        150,
        "--length",
        64,
        "--no-evaluate",
    ]  # for the tokens of the default
    units = secateur_command(
        *("search", told["model"], "-o", tmp_path / "units", "--params", 0.8, "--memory", 0.95, "--trials", 25),
        *enough,
    )
    assert units.code == 0, units.err
    assert "memory at most 95%" in (tmp_path / "units/report.html").read_text()
    assert "Search: evolution judged 25 candidates" in " ".join(units.out.split())
    again = secateur_command("search", told["model"], "-o", tmp_path / "out", *given, *data)
    assert (again.code, "--overwrite" in again.err) == (2, True)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_neurons_and_halves_are_searched_for_under_a_budget_of_parameters(
    family: str, told: dict[str, Any], tmp_path: Path
) -> None:
    told["model"] = str(save_tiny(family, tmp_path / family, tokenizer=True))
    result = run(told, stages=[{"prune": {"unit": "neuron", "params": 0.8}}])
    assert result.search is not None
    assert result.search["best"] >= result.search["start"]
    assert result.comparison is not None
    (other,) = result.comparison.others
    assert other.parameters <= 0.8 * result.comparison.dense.parameters
    assert result.reload is not None
    assert result.search["solved"] > 2 * result.search["best"]  # fitted anew, on the smaller model


def test_shares_say_why_whole_halves_have_none(told: dict[str, Any]) -> None:
    model = load(told["model"]).model
    stages = [
        {"prune": {"unit": "mlp", "amounts": {"model.layers.1": 1}}},
        {"prune": {"unit": "neuron", "amounts": {"model.layers.0/neuron": 3}}},
    ]
    with pytest.raises(UsageError, match=r"halves of them \(model.layers.1\), which no pruner does .* --no-halves"):
        secateur.shares(secateur.Recipe.build({**told, "search": None, "stages": stages}), model)


def test_a_candidate_is_judged_as_the_cut_model_is(told: dict[str, Any], tmp_path: Path) -> None:
    """What stands in the model's place while it searches gives what the model gives once it is cut, unrepaired."""
    network = load(told["model"])
    stage = Prune(unit="neuron", params=0.8)
    recipe = secateur.Recipe.build({**told, "stages": [{"prune": {"unit": "neuron", "params": 0.8}}]})
    windows = random_windows("llama", 4, 32)
    work = UnitSearch.prepared(network, recipe, stage, recipe.search or Search(), windows, tmp_path, Progress())
    levels = work.space.settled(
        [len(place.costs) - 1 if n == 1 else 1 for n, place in enumerate(work.space.places)], np.random.default_rng(0)
    )
    work.stitched.stand(work.space, levels)
    assert len(work.stages(levels, stage)) >= 2
    with torch.inference_mode():
        stood = network.model(windows.ids).logits
    cuts = [
        Cut(
            group,
            torch.tensor(
                [
                    (group.tensor(group.readers[0].layer.name + ".weight")[:, group.readers[0].index[unit]] != 0)
                    .any()
                    .item()
                    for unit in range(group.count)
                ]
            ),
        )
        for group in work.groups.values()
        if group.unit == "neuron"
    ]
    assert any(not bool(one.keep.all()) for one in cuts)
    small = cut(network, [one for one in cuts if bool(one.keep.any())])
    with torch.inference_mode():
        assert torch.allclose(small.model(windows.ids).logits, stood, atol=1e-5)


@pytest.mark.parametrize("prune", [{"sparsity": 0.6}, {"unit": "neuron", "params": 0.9}])
def test_what_was_found_drives_pruning_while_it_trains(
    prune: dict[str, Any], told: dict[str, Any], tmp_path: Path
) -> None:
    whole = {"halves": False} if "unit" in prune else {}
    result = run(told, stages=[{"prune": prune}], search={**told["search"], "trials": 25, **whole})
    model = load(told["model"]).model.requires_grad_(True)
    allocation = secateur.shares(tmp_path / "out/recipe.yaml", model)
    unit = prune.get("unit", "weight")
    pruner = secateur.TrainingPruner(model, OneShot(0.5), unit=unit, allocation=allocation)
    if unit == "weight":
        assert pruner.mask().zeros == sum(layer.zeros for layer in result.stages[0].layers)
    small = pruner.finish()
    if unit == "neuron":
        widths = [layer.mlp.down_proj.in_features for layer in small.model.layers]  # type: ignore[union-attr]
        assert widths == [group.left for group in result.stages[0].groups]
    with pytest.raises(UsageError, match="one stage, which takes amounts"):
        secateur.shares(secateur.Recipe.build(told | {"search": None}), model)
