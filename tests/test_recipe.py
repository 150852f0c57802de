"""Recipes: what a file, flags and Python say is one and the same, and what makes no sense is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from secateur.api import single_stage
from secateur.errors import PatternError, UsageError
from secateur.recipe import Calibration, Evaluate, Finetune, Prune, Recipe
from secateur.scores import SCORES
from secateur.solvers import AUTO, AUTO_MASKED, SOLVERS

HALF: dict[str, Any] = {"sparsity": 0.5}


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def built(**stage: Any) -> Prune:
    return Recipe.build({"model": "m", "stages": [{"prune": stage}]}).stages[0].prune


def refusal(data: object) -> str:
    with pytest.raises(UsageError) as error:
        Recipe.build(data)
    assert "\n" not in str(error.value)
    return str(error.value)


def stage_refusal(**stage: Any) -> str:
    return refusal({"model": "m", "stages": [{"prune": stage}]})


def flags(**options: Any) -> Recipe:
    return single_stage("m", None, "self", True, options)


def test_a_file_and_flags_that_say_the_same_are_the_same_recipe(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        version: 1
        model: demo:smollm2-135m
        output: out/half
        seed: 3
        dtype: bfloat16
        device: cpu
        trust_remote_code: true
        overwrite: true
        calibration: {data: wiki.txt, samples: 16, length: 512, compute: float32}
        stages:
          - prune:
              pattern: "2:4"
              score: ria
              solver: refit
              min_per_output: 1
              include: ["*_proj"]
              exclude: ["*down_proj", "*.0.*"]
              damping: 0.1
              block_size: 64
        evaluate: {text: test.txt, windows: 5, speed: false}
        """,
    )
    from_flags = single_stage(
        "demo:smollm2-135m",
        Path("out/half"),
        "wiki.txt",
        "test.txt",
        {
            "seed": 3,
            "dtype": "bfloat16",
            "device": "cpu",
            "trust_remote_code": True,
            "overwrite": True,
            "samples": 16,
            "length": 512,
            "compute": "float32",
            "pattern": "2:4",
            "score": "ria",
            "solver": "refit",
            "min_per_output": 1,
            "include": ["*_proj"],
            "exclude": ("*down_proj", "*.0.*"),
            "damping": 0.1,
            "block_size": 64,
            "windows": 5,
            "speed": False,
            "threshold": None,
            "sparsity": None,
            "allocation": None,
        },
    )
    assert Recipe.read(path) == from_flags
    assert from_flags.output == "out/half"
    assert from_flags.stages[0].prune.exclude == ("*down_proj", "*.0.*")


def test_what_is_left_out_has_the_same_default_either_way(tmp_path: Path) -> None:
    path = written(tmp_path, "{model: m, stages: [{prune: {sparsity: 0.5}}]}")
    recipe = Recipe.read(path)
    assert recipe == flags(sparsity=0.5) == flags(sparsity=0.5, score=None, samples=None, dtype=None)
    assert recipe.calibration == Calibration()
    assert recipe.evaluate == Evaluate()
    assert recipe.seed == 0
    assert recipe.output is None


def test_no_evaluation_is_null_in_a_file_and_false_in_python(tmp_path: Path) -> None:
    path = written(tmp_path, "{model: m, stages: [{prune: {sparsity: 0.5}}], evaluate: null}")
    assert Recipe.read(path) == single_stage("m", None, "self", False, HALF)
    assert Recipe.read(path).evaluate is None


# What belongs to units that are removed, with a value that isn't the default.
STRUCTURED: dict[str, Any] = {
    **{"repair": False, "combine": "mean", "round_to": 2, "min_units": 2, "uniform": True, "pad": True},
    **{"protect_first": 2, "protect_last": 2},
}
TARGETS: dict[str, Any] = {"params": 0.5, "macs": 0.5, "memory": "4MB", "latency": 0.5, "remove": 2}
TARGETS["amounts"] = {"model.layers.0/mlp": 2}


def test_every_field_of_a_recipe_can_be_given_flat() -> None:
    fields = {*Calibration.model_fields, *Evaluate.model_fields, *Prune.model_fields} - {"data", "text"}
    common = {"sparsity": 0.5, "solver": "sparsegpt", "reconstruct": True}
    values: dict[str, Any] = {"threshold": None, "pattern": None, "score": None, "include": ["*"], "exclude": ["*"]}
    values |= {"unit": "weight", "allocation": "global", "per": "output", "compute": "float32", "speed": False}
    values |= {"gradient": "block", "reconstruct_halves": True, "activation_memory": "1GB", "images": "folder"}
    values |= {**STRUCTURED, **TARGETS}
    for field in fields - set(common):
        value = values.get(field, 2)
        given = {**common, field: value}
        if field in STRUCTURED:
            given = {"unit": "neuron", "score": "l2", "sparsity": 0.5, field: value}
        if field in TARGETS:
            given = {"unit": "neuron", field: value}
        recipe = flags(**given).to_dict()
        homes = [recipe["calibration"], recipe["stages"][0]["prune"], recipe["evaluate"]]
        expected = list(value) if isinstance(value, tuple) else value
        assert any(field in home and home[field] == expected for home in homes), field


def test_a_recipe_survives_being_written_out_and_read_again(tmp_path: Path) -> None:
    for stage in ({"sparsity": 0.3, "per": "output"}, {"pattern": "1:4"}, {"threshold": "p90", "score": "l1"}):
        recipe = flags(**stage, include=["*q_proj"], seed=5)
        assert Recipe.read(written(tmp_path, yaml.safe_dump(recipe.to_dict()))) == recipe
        assert Recipe.build(recipe.to_dict()) == recipe


def test_stages_keep_their_order() -> None:
    recipe = Recipe.build({"model": "m", "stages": [{"prune": {"sparsity": s}} for s in (0.3, 0.5, 0.7)]})
    assert [stage.prune.sparsity for stage in recipe.stages] == [0.3, 0.5, 0.7]


def test_without_a_score_sparsegpt_chooses_and_with_one_the_mask_is_all() -> None:
    assert built(sparsity=0.5).solver == AUTO
    assert built(sparsity=0.5, score="wanda").solver == "none"
    assert built(sparsity=0.5, score="wanda", solver="refit").solver == "refit"
    assert built(sparsity=0.5, solver="").solver == AUTO
    assert built(sparsity=0.5, solver=None).solver == AUTO
    assert built(sparsity=0.5, solver="auto").solver == AUTO
    assert built(sparsity=0.5, score="wanda", solver="auto").solver == AUTO_MASKED


def test_a_recipe_cannot_be_changed_once_it_is_made() -> None:
    recipe = flags(sparsity=0.5)
    with pytest.raises(ValidationError):
        recipe.seed = 4


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"model": "m", "stages": [{"prune": HALF}], "sede": 1}, "sede is not a known field"),
        (
            {"model": "m", "stages": [{"prune": {**HALF, "sparsty": 1}}]},
            "stage 1: prune.sparsty is not a known field (did you mean 'sparsity'?)",
        ),
        (
            {"model": "m", "stages": [{"prune": HALF}, {"prune": {**HALF, "x": 1}}]},
            "stage 2: prune.x is not a known field (known: unit, ",
        ),
        (
            {"model": "m", "stages": [{"prune": HALF}], "calibration": {"sample": 3}},
            "calibration.sample is not a known",
        ),
        ({"model": "m", "stages": [{"prune": HALF}], "evaluate": {"txt": "a"}}, "evaluate.txt is not a known field"),
        ({"model": "m", "stages": [{"prun": HALF}]}, "unknown stage 'prun'. Did you mean 'prune'?"),
        ({"stages": [{"prune": HALF}]}, "model is missing"),
        ({"model": "m"}, "stages is missing"),
        ({"model": "m", "stages": None}, "stages: must be a list"),
        ({"model": "m", "stages": []}, "stages: a recipe needs at least one stage"),
        ({"model": "m", "stages": [{}]}, "a stage has one kind, but got none"),
        ({"model": "m", "stages": [{"prune": HALF}], "version": 2}, "version: "),
        ({"model": "m", "stages": [{"prune": HALF}], "seed": -1}, "seed: "),
        ({"model": "m", "stages": [{"prune": HALF}], "seed": "x"}, "seed: "),
        ({"model": "m", "stages": [{"prune": HALF}], "dtype": "int8"}, "dtype: "),
        ({"model": "m", "stages": [{"prune": HALF}], "device": "tpu"}, "device: "),
        ({"model": "m", "stages": [{"prune": HALF}], "calibration": {"samples": 0}}, "calibration.samples: "),
        ({"model": "m", "stages": [{"prune": HALF}], "calibration": {"length": 1}}, "calibration.length: "),
        ({"model": "m", "stages": [{"prune": HALF}], "calibration": {"compute": "int8"}}, "calibration.compute: "),
        ({"model": "m", "stages": [{"prune": HALF}], "evaluate": {"windows": 0}}, "evaluate.windows: "),
        ("a text", "the recipe: "),
    ],
)
def test_a_field_that_is_unknown_missing_or_out_of_range_is_named(data: object, says: str) -> None:
    assert says in refusal(data)


def test_all_that_is_wrong_is_said_at_once() -> None:
    message = refusal({"stages": [{"prune": HALF}], "sede": 1, "seed": -1})
    assert "model is missing" in message
    assert "sede is not a known field" in message
    assert "seed: " in message
    assert "but got -1" in message


def test_an_unknown_flag_is_named_as_a_field() -> None:
    with pytest.raises(UsageError, match="sparcity is not a known field"):
        flags(sparcity=0.5, sparsity=0.5)


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ({"score": "wnada"}, "unknown score 'wnada' of weights. Did you mean 'wanda'?"),
        ({"solver": "sparsgpt"}, "unknown solver 'sparsgpt'. Did you mean 'sparsegpt'?"),
        ({"score": "l1", "solver": "reffit"}, "unknown solver 'reffit'. Did you mean 'refit'?"),
    ],
)
def test_an_unknown_score_or_solver_is_named_with_the_nearest(stage: dict[str, Any], says: str) -> None:
    message = stage_refusal(**HALF, **stage)
    assert says in message
    known = SOLVERS if "solver '" in message else SCORES.keys() - {"variance"}
    assert all(name in message for name in known)


@pytest.mark.parametrize("field", ["allocation", "per", "unit"])
def test_an_unknown_choice_is_named_with_the_known_ones(field: str) -> None:
    message = stage_refusal(**HALF, **{field: "nonsense"})
    assert f"stage 1: prune.{field}: " in message
    assert "'nonsense'" in message


@pytest.mark.parametrize("sparsity", [0, 1, -0.5, 1.5, 50, float("nan"), float("inf")])
def test_a_sparsity_lies_between_0_and_1(sparsity: float) -> None:
    message = stage_refusal(sparsity=sparsity)
    assert message == f"--sparsity must lie between 0 and 1 (both excluded) but got {sparsity:g}."


@pytest.mark.parametrize("sparsity", [0.001, 0.5, 0.999])
def test_any_sparsity_between_0_and_1_will_do(sparsity: float) -> None:
    assert built(sparsity=sparsity).sparsity == sparsity


@pytest.mark.parametrize(
    ("stage", "got"),
    [
        ({}, "none of them"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "--sparsity and --pattern"),
        ({"sparsity": 0.5, "threshold": "p90"}, "--sparsity and --threshold"),
        ({"threshold": "0.1", "pattern": "2:4"}, "--threshold and --pattern"),
        (
            {"sparsity": 0.5, "threshold": "0.1", "pattern": "2:4"},
            "--sparsity and --threshold and --pattern",
        ),
    ],
)
def test_exactly_one_amount_is_given(stage: dict[str, Any], got: str) -> None:
    message = f"give exactly one of --sparsity, --threshold and --pattern; got {got}."
    assert stage_refusal(score="l1", **stage) == message


UNIT_TARGETS = "--params, --macs, --memory, --latency, --sparsity, --remove and --threshold"


@pytest.mark.parametrize(
    ("stage", "got"),
    [
        ({}, "none of them"),
        ({"params": 0.5, "sparsity": 0.5}, "--sparsity and --params"),
        ({"macs": 0.5, "remove": 2}, "--macs and --remove"),
        ({"memory": "1GB", "latency": 0.5, "pattern": "2:4"}, "--pattern and --memory and --latency"),
    ],
)
def test_exactly_one_amount_of_units_is_given(stage: dict[str, Any], got: str) -> None:
    assert stage_refusal(unit="neuron", **stage) == f"give exactly one of {UNIT_TARGETS}; got {got}."


def test_an_amount_of_another_kind_of_unit_is_refused_with_those_that_fit() -> None:
    message = "--params isn't a target for --unit weight; give one of --sparsity, --threshold and --pattern."
    assert stage_refusal(params=0.5) == message
    message = f"--pattern isn't a target for --unit neuron; give one of {UNIT_TARGETS}."
    assert stage_refusal(unit="neuron", pattern="2:4") == message


@pytest.mark.parametrize("text", ["2:4", "4:8", "1:2"])
def test_a_pattern_that_yaml_took_for_a_time_asks_for_quotes(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"{{model: m, stages: [{{prune: {{pattern: {text}}}}}]}}")
    with pytest.raises(UsageError, match="write the pattern in quotes: '2:4'") as error:
        Recipe.read(path)
    assert str(path) in str(error.value)
    path = written(tmp_path, f"{{model: m, stages: [{{prune: {{pattern: '{text}'}}}}]}}")
    assert Recipe.read(path).stages[0].prune.pattern == text


@pytest.mark.parametrize("pattern", ["4:2", "2:2", "0:4", "two:four"])
def test_a_pattern_that_makes_no_sense_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError, match=pattern):
        built(pattern=pattern)


@pytest.mark.parametrize(("written_as", "read_as"), [("0.1", "0.1"), ("5", "5"), ("p90", "p90"), ("1.0e-3", "0.001")])
def test_a_threshold_may_be_a_plain_number_in_a_file(written_as: str, read_as: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"{{model: m, stages: [{{prune: {{threshold: {written_as}, score: l1}}}}]}}")
    assert Recipe.read(path).stages[0].prune.threshold == read_as


@pytest.mark.parametrize("threshold", ["p0", "p100", "high", "nan"])
def test_a_threshold_that_makes_no_sense_is_refused(threshold: str) -> None:
    assert f"'{threshold}'" in stage_refusal(threshold=threshold, score="l1")


@pytest.mark.parametrize("solver", [name for name, solver in SOLVERS.items() if not solver.chooses])
def test_a_solver_that_does_not_choose_needs_a_score(solver: str) -> None:
    assert f"solver '{solver}' needs a score" in stage_refusal(**HALF, solver=solver)


@pytest.mark.parametrize("amount", [{"threshold": "0.1"}, {"pattern": "2:4"}])
def test_sharing_out_and_comparing_need_a_sparsity(amount: dict[str, Any]) -> None:
    name = next(iter(amount))
    assert f"a --{name} already says what each layer gives" in stage_refusal(score="l1", allocation="global", **amount)
    assert f"--per output needs --sparsity; a --{name}" in stage_refusal(score="l1", per="output", **amount)


@pytest.mark.parametrize(
    "stage", [{"min_per_output": -1}, {"damping": 0}, {"damping": -0.1}, {"block_size": 0}, {"include": "*q_proj"}]
)
def test_a_setting_out_of_range_is_named_with_what_came(stage: dict[str, Any]) -> None:
    ((name, value),) = stage.items()
    message = stage_refusal(**HALF, **stage)
    assert f"stage 1: prune.{name}: " in message
    assert f"but got {value!r}" in message


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"recipe .*nowhere\.yaml can't be read"):
        Recipe.read(tmp_path / "nowhere.yaml")
    with pytest.raises(UsageError, match=r"recipe .* can't be read"):
        Recipe.read(tmp_path)


@pytest.mark.parametrize("text", ["{model: m", "stages: [", "a: b: c", "\t- x"])
def test_a_file_that_is_not_yaml_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"recipe .*recipe\.yaml is not YAML") as error:
        Recipe.read(written(tmp_path, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "just text", "- a\n- b", "7"])
def test_a_file_that_is_no_mapping_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"recipe\.yaml must be a mapping with 'model' and 'stages'"):
        Recipe.read(written(tmp_path, text))


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(UsageError, match=r"recipe .*recipe\.yaml can't be read"):
        Recipe.read(tmp_path / "recipe.yaml")


def test_a_file_may_hold_no_python_objects(tmp_path: Path) -> None:
    text = "model: !!python/object/apply:os.getcwd []\nstages: [{prune: {sparsity: 0.5}}]"
    with pytest.raises(UsageError, match="is not YAML"):
        Recipe.read(written(tmp_path, text))


def test_what_is_wrong_in_a_file_is_said_with_its_name(tmp_path: Path) -> None:
    path = written(tmp_path, "{model: m, stages: [{prune: {sparsity: 2}}], sede: 1}")
    with pytest.raises(UsageError) as error:
        Recipe.read(path)
    assert str(error.value).startswith(f"recipe {path}: ")


def test_usage_errors_exit_with_2() -> None:
    with pytest.raises(UsageError) as error:
        built(sparsity=2)
    assert error.value.exit_code == 2


def test_a_recovery_stage_without_anything_behind_it_has_all_defaults(tmp_path: Path) -> None:
    path = written(
        tmp_path, "model: m\nstages:\n  - prune: {sparsity: 0.5}\n  - finetune:\n  - distill: {minutes: 20}\n"
    )
    recipe = Recipe.read(path)
    assert [stage.kind for stage in recipe.stages] == ["prune", "finetune", "distill"]
    assert recipe.stages[1].finetune == Finetune()
    assert recipe.to_dict()["stages"][1] == {"finetune": Finetune().model_dump(mode="json")}
    assert Recipe.build(recipe.to_dict()) == recipe


def test_a_repeat_is_carried_out_round_after_round() -> None:
    stages = [{"prune": HALF}, {"reconstruct": None}, {"finetune": None}]
    recipe = Recipe.build({"model": "m", "stages": [{"repeat": 2, "rewind": True, "stages": stages}]})
    assert [(step.stage.kind, step.round, step.begins, step.rewinds) for step in recipe.steps] == [
        ("prune", 1, True, False),
        ("reconstruct", 1, False, False),
        ("finetune", 1, False, True),
        ("prune", 2, False, False),
        ("reconstruct", 2, False, False),
        ("finetune", 2, False, True),
    ]
    assert Recipe.build(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ({"prune": HALF, "finetune": None}, "a stage has one kind, but got prune and finetune"),
        ("prune", "a stage is a mapping"),
        ({"finetune": {"rat": 1}}, "finetune.rat is not a known field (did you mean 'rate'?)"),
        ({"finetune": {"steps": 0}}, "finetune.steps: "),
        ({"distill": {"top_k": 5, "logits": 0, "hidden": 1}}, "top_k is about the teacher's logits"),
        ({"repeat": 3}, "stages is missing"),
        ({"repeat": 1, "stages": [{"prune": HALF}]}, "repeat.times: "),
        ({"repeat": 2, "stages": [{"finetune": None}]}, "none of its stages prunes"),
        ({"repeat": 2, "stages": [{"prune": {"pattern": "2:4"}}]}, "rounds go towards one of"),
        ({"repeat": 9, "stages": [{"prune": {"unit": "layer", "remove": 2}}]}, "2 units can't be removed in 9 rounds"),
        ({"repeat": 2, "rewind": True, "stages": [{"prune": HALF}]}, "rewind is for what trains"),
        (
            {"repeat": 2, "rewind": True, "stages": [{"prune": {"unit": "neuron", **HALF}}, {"finetune": None}]},
            "rewind goes with --unit weight",
        ),
        ({"repeat": 2, "stages": [{"repeat": 2, "stages": [{"prune": HALF}]}]}, "can't be a repeat itself"),
    ],
)
def test_a_stage_that_makes_no_sense_is_named(stage: object, says: str) -> None:
    assert says in refusal({"model": "m", "stages": [stage]})


def test_the_command_line_names_options_and_not_places_in_a_recipe() -> None:
    with pytest.raises(UsageError, match=r"^--min-units: must be greater than or equal to"):
        single_stage("m", None, "self", True, {"unit": "neuron", "params": 0.8, "min_units": -1})
    with pytest.raises(UsageError, match=r"^--unit: unknown unit 'foo'.* weight, but got 'foo'\.$"):
        single_stage("m", None, "self", True, {"unit": "foo"})
