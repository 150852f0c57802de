"""Stages that remove units, from the user's call to the checkpoint on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

import secateur
from secateur.errors import ScoreError, UsageError
from secateur.evaluation.costs import costs, unit_costs
from secateur.network.loading import load
from secateur.network.units import unit_groups
from tiny import ALPHABET, save_tiny, write_wavs
from trained_tokenizers import loaded

TEXT = "".join(character for character in Path(__file__).read_text(encoding="utf-8") if character in ALPHABET)
IDS = torch.arange(10, 22)[None]


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def prune(model: Path, text: str, output: Path | None = None, **options: Any) -> Any:
    given = {"samples": 4, "length": 32, "calibration": text, "evaluate": False, **options}
    return secateur.prune(model, output=output, **given)


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize("target", [{"params": 0.85}, {"macs": 0.85}])
@pytest.mark.parametrize("allocation", ["uniform", "global", "error", "ramp"])
def test_a_budget_is_met_and_not_by_much(target: dict[str, float], allocation: str, text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    result = prune(model, text, unit="neuron", allocation=allocation, **target)
    budget = result.stages[0].budget
    name = "parameters" if "params" in target else "macs"
    share = budget["after"][name] / budget["before"][name]
    unit = 3 * 32 * 2 / budget["before"][name]  # one neuron of each of the two blocks
    assert 0.85 - (4 if allocation == "ramp" else 1) * unit < share <= 0.85
    assert budget["after"]["parameters"] == sum(p.numel() for p in result.model.parameters())


def test_memory_is_bytes_of_the_checkpoint(text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    result = prune(model, text, tmp_path / "out", unit="neuron", memory="75kB")
    written = (tmp_path / "out/model.safetensors").stat().st_size
    assert result.stages[0].budget["after"]["bytes"] <= 75_000
    assert 70_000 < written < 80_000  # with the header


def test_latency_is_measured_here(text: str, tmp_path: Path) -> None:
    """Nearly all of the time of this model goes into its MLPs."""
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    config = AutoConfig.from_pretrained(model)
    config.intermediate_size = 32 * 1024
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    assert sum(group.left for group in prune(model, text, unit="mlp", latency=0.8).stages[0].groups) == 1
    with pytest.raises(UsageError, match="latency"):
        prune(model, text, unit="mlp", latency=0.001)


@pytest.mark.parametrize("unit", ["neuron", "head", "query-head", "channel", "layer", "attention", "mlp"])
def test_the_saved_model_is_smaller_and_loads_in_a_fresh_process(unit: str, text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    options = {"params": 0.9} if unit in ("neuron", "channel") else {"remove": 1}
    result = prune(model, text, tmp_path / "out", unit=unit, **options)
    assert result.reload == 0.0
    dense = (model / "model.safetensors").stat().st_size
    assert (tmp_path / "out/model.safetensors").stat().st_size < 0.95 * dense
    assert ("secateur" in config_of(tmp_path / "out")) == (unit in ("attention", "mlp"))
    assert not (tmp_path / "out/secateur.mask").exists()


@pytest.mark.parametrize("family", ["gpt2", "bert", "xlnet", "t5", "whisper", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("unit", ["neuron", "head", "channel", "layer"])
def test_every_kind_of_family_loses_units_and_reloads(family: str, unit: str, text: str, tmp_path: Path) -> None:
    model = save_tiny(family, tmp_path / "dense", tokenizer=True)
    data = str(write_wavs(tmp_path / "sounds", 4)) if family == "whisper" else text
    result = prune(
        model, data, tmp_path / "out", unit=unit, **({"remove": 8} if unit in ("neuron", "channel") else {"remove": 1})
    )
    assert result.reload is not None
    assert result.reload < 1e-5
    budget = result.stages[0].budget
    assert budget["after"]["parameters"] < budget["before"]["parameters"]
    assert budget["after"]["macs"] < budget["before"]["macs"]


def test_experts_go_without_saving_multiplications(text: str, tmp_path: Path) -> None:
    model = save_tiny("mixtral", tmp_path / "dense", tokenizer=True)
    result = prune(model, text, tmp_path / "out", unit="expert", remove=1)
    assert config_of(tmp_path / "out")["num_local_experts"] == 3
    budget = result.stages[0].budget
    assert budget["after"]["macs"] == budget["before"]["macs"]  # each token is sent to as many as before
    assert budget["after"]["parameters"] < budget["before"]["parameters"]
    with pytest.raises(UsageError, match="at least 2"):
        prune(model, text, unit="expert", remove=3)


@pytest.mark.parametrize("unit", ["neuron", "head", "neuron,head"])
def test_repair_lowers_the_error_of_what_reads_removed_units(unit: str, text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    groups = prune(model, text, unit=unit, params=0.88).stages[0].groups
    known = [group for group in groups if group.error is not None]
    assert known
    assert all(group.error < group.error_before for group in known)
    unmended = prune(model, text, unit=unit, params=0.88, repair=False).stages[0].groups
    assert all(group.error is None for group in unmended)


def test_repair_by_block_reconstruction_lowers_the_error_of_blocks(text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    result = prune(model, text, unit="neuron", params=0.85, reconstruct=True, samples=128)
    blocks = result.stages[0].blocks
    assert len(blocks) == 2
    assert all(block.error <= block.error_before for block in blocks)


def test_mixed_units_share_one_budget_and_stay_plain(text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    result = prune(model, text, tmp_path / "out", unit="neuron,head", params=0.8)
    left = {unit: {g.left for g in result.stages[0].groups if g.unit == unit} for unit in ("neuron", "head")}
    assert all(len(widths) == 1 for widths in left.values())
    assert "secateur" not in config_of(tmp_path / "out")


def test_global_ranking_makes_ragged_widths_that_padding_makes_plain_with_the_same_outputs(
    text: str, tmp_path: Path
) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    options = {"unit": "neuron", "params": 0.85, "allocation": "global"}
    ragged = prune(model, text, tmp_path / "ragged", **options)
    widths = {group.left for group in ragged.stages[0].groups}
    assert len(widths) == 2
    assert "secateur" in config_of(tmp_path / "ragged")
    prune(model, text, tmp_path / "padded", pad=True, **options)
    config = config_of(tmp_path / "padded")
    assert "secateur" not in config
    assert config["intermediate_size"] == max(widths)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "padded").eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS)[0], ragged.model(IDS)[0], atol=1e-5, rtol=1e-5)
    even = prune(model, text, tmp_path / "even", uniform=True, **options)
    assert len({group.left for group in even.stages[0].groups}) == 1


def test_quality_is_measured_of_ragged_widths_too(text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "model", tokenizer=True)
    comparison = prune(model, text, unit="neuron", params=0.85, allocation="global", evaluate=text).comparison
    assert comparison is not None
    (other,) = comparison.others
    assert other.perplexity is not None
    assert other.kl is not None
    assert other.kl > 0


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"unit": "channel", "params": 0.9}, "other kinds of units may."),
        ({"unit": "head", "params": 0.95}, "other kinds of units or --allocation global may."),
        (
            {"unit": "neuron", "params": 0.95, "round_to": 16, "allocation": "global"},
            "units or a smaller --round-to may.",
        ),
    ],
)
def test_what_may_come_nearer_to_a_target_is_what_can(
    options: dict[str, Any], advice: str, text: str, tmp_path: Path
) -> None:
    model = save_tiny("bert", tmp_path / "dense", tokenizer=True)
    (note,) = (one for one in prune(model, text, **options).stages[0].notes if "come nearer" in one)
    assert note.endswith(advice)


@pytest.mark.parametrize("option", ["uniform", "pad"])
def test_what_no_config_can_say_is_not_made_plain(option: str, text: str, tmp_path: Path) -> None:
    model = save_tiny("gpt2", tmp_path / "dense", tokenizer=True)
    with pytest.raises(UsageError, match=rf"--{option}: .* Leave --{option} out"):
        prune(model, text, tmp_path / "out", unit="head", remove=1, **{option: True})
    assert not (tmp_path / "out").exists()


def test_heads_that_blocks_share_have_to_be_as_many_in_all_of_them(text: str, tmp_path: Path) -> None:
    model = save_tiny("t5", tmp_path / "dense", tokenizer=True)
    with pytest.raises(UsageError, match="all have to keep as many"):
        prune(model, text, tmp_path / "out", unit="head", remove=1, protect_first=1)
    result = prune(model, text, tmp_path / "even", unit="head", remove=1)
    assert {group.left for group in result.stages[0].groups} == {3}
    assert any("not in rounds" in note for note in result.stages[0].notes)


def test_errors_weighed_by_the_loss_choose_other_units_and_widths(text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    options = {"unit": "neuron,head", "params": 0.8, "allocation": "global"}
    plain, weighed = (prune(model, text, gradient=gradient, **options) for gradient in ("block", "loss"))
    one, two = ([group.left for group in result.stages[0].groups] for result in (plain, weighed))
    assert one != two
    assert plain.stages[0].budget["after"]["parameters"] <= 0.8 * plain.stages[0].budget["first"]["parameters"]
    assert weighed.stages[0].budget["after"]["parameters"] <= 0.8 * plain.stages[0].budget["first"]["parameters"]


def test_what_the_loss_cannot_weigh_is_refused(text: str, tmp_path: Path) -> None:
    t5 = save_tiny("t5", tmp_path / "t5", tokenizer=True)
    with pytest.raises(UsageError, match="errors can't be weighed"):
        prune(t5, text, unit="head", remove=1, gradient="loss")
    mixtral = save_tiny("mixtral", tmp_path / "mixtral", tokenizer=True)
    for options in ({"unit": "neuron", "remove": 8}, {"sparsity": 0.5, "solver": "admm", "allocation": "error"}):
        with pytest.raises(UsageError, match="can't be weighed by the next-token loss"):
            prune(mixtral, text, gradient="loss", **options)


def test_protected_blocks_keep_everything(text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    result = prune(model, text, unit="neuron", params=0.95, protect_first=1)
    assert [group.name for group in result.stages[0].groups] == ["model.layers.1/neuron"]
    assert result.model.model.layers[0].mlp.down_proj.in_features == 44


@pytest.mark.parametrize("chosen", [{"exclude": ["*layers.0.*"]}, {"include": ["*layers.1.mlp.up_proj"]}])
def test_globs_choose_groups_of_units(chosen: dict[str, Any], text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    result = prune(model, text, unit="neuron,head", remove=1, **chosen)
    names = [group.name for group in result.stages[0].groups]
    assert "model.layers.1/neuron" in names
    assert ("model.layers.1/head" in names) == ("exclude" in chosen)
    assert not any("layers.0" in name for name in names)
    assert result.model.model.layers[0].mlp.down_proj.in_features == 44
    assert result.model.model.layers[1].mlp.down_proj.in_features == 43


def test_a_threshold_takes_what_scores_below_it(text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    result = prune(model, text, unit="neuron", threshold="p25", score="l2")
    assert [group.left for group in result.stages[0].groups] == [33, 33]
    rounded = prune(model, text, unit="neuron", threshold="p25", score="l2", round_to=8)
    assert [group.left for group in rounded.stages[0].groups] == [40, 40]
    assert [group.left for group in prune(model, text, unit="neuron", threshold="p25").stages[0].groups] == [33, 33]


@pytest.mark.parametrize("unit", ["layer", "mlp"])
def test_greedy_goes_on_from_what_is_left(unit: str, text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    config = AutoConfig.from_pretrained(model)
    config.num_hidden_layers = 4
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    one, two = (prune(model, text, unit=unit, remove=n, solver="greedy").stages[0].groups[0].removed for n in (1, 2))
    assert len(two) == 2
    assert set(one) < set(two)
    assert prune(model, text, unit=unit, remove=1, score="loo-kl").stages[0].groups[0].removed == one
    budget = prune(model, text, unit=unit, params=0.95, solver="greedy").stages[0].groups[0]
    assert budget.removed == one
    with pytest.raises(UsageError, match="can't be removed"):
        prune(model, text, unit=unit, remove=3, solver="greedy", protect_first=2)


def test_a_threshold_is_taken_among_the_blocks_that_may_go(text: str, tmp_path: Path) -> None:
    model = save_tiny("t5", tmp_path / "dense", tokenizer=True)
    result = prune(model, text, unit="layer", threshold="p50", score="l2", protect_first=1)
    (group,) = result.stages[0].groups
    assert 0 not in group.removed
    assert len(group.removed) >= 1
    with pytest.raises(UsageError, match="no block to prune"):
        prune(model, text, unit="layer", threshold="p50", score="l2", protect_first=4)


def test_a_second_stage_counts_shares_of_the_first_model(text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    recipe = {
        "model": str(model),
        "calibration": {"data": text, "samples": 4, "length": 32},
        "stages": [
            {"prune": {"unit": "layer", "remove": 1}},
            {"prune": {"unit": "neuron", "params": 0.55}},
            {"prune": {"sparsity": 0.5}},
        ],
        "evaluate": None,
        "output": str(tmp_path / "out"),
    }
    result = secateur.run_recipe(secateur.Recipe.build(recipe))
    dense = secateur.load(model).parameters()
    assert 0.5 < result.network.parameters() / dense <= 0.55
    assert len(result.network.blocks) == 1
    assert result.stages[2].sparsity == pytest.approx(0.5, abs=1e-3)
    assert (tmp_path / "out/secateur.mask").is_file()


def test_tokens_that_the_text_does_not_use_go_and_the_rest_round_trips(tmp_path: Path) -> None:
    tokenizer = loaded("gpt2", tmp_path / "dense")
    save_tiny("gpt2", tmp_path / "tiny")
    config = AutoConfig.from_pretrained(tmp_path / "tiny")
    config.vocab_size = len(tokenizer)
    dense = AutoModelForCausalLM.from_config(config)
    dense.save_pretrained(tmp_path / "dense")
    data = tmp_path / "small.txt"
    data.write_text("The gardener looks at the whole tree first. " * 40)
    result = prune(tmp_path / "dense", str(data), tmp_path / "out", unit="token")
    left = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert 256 <= len(left) < len(tokenizer)
    assert result.model.config.vocab_size == len(left)
    assert left.decode(left("The gardener").input_ids) == "The gardener"
    kept = result.network.kept
    ids, old = left("The whole tree", return_tensors="pt").input_ids, tokenizer("The whole tree", return_tensors="pt")
    assert torch.equal(kept[ids], old.input_ids)
    with torch.no_grad():
        torch.testing.assert_close(result.model(ids).logits, dense.eval()(old.input_ids).logits[..., kept])


@pytest.mark.parametrize("gone", [3, 20, 40])
def test_as_many_tokens_go_as_were_asked_for(gone: int, tmp_path: Path) -> None:
    """Rare ones that the text has, too, if the others aren't enough."""
    tokenizer = loaded("gpt2", tmp_path / "dense")
    save_tiny("gpt2", tmp_path / "tiny")
    config = AutoConfig.from_pretrained(tmp_path / "tiny")
    config.vocab_size = len(tokenizer)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text(TEXT)
    result = prune(tmp_path / "dense", str(tmp_path / "text.txt"), unit="token", remove=gone)
    assert 0 <= len(tokenizer) - gone - result.stages[0].groups[0].left <= 2  # one that goes may take its parts along


@pytest.mark.parametrize("unit", ["neuron", "channel"])
def test_activations_beyond_the_memory_are_kept_in_files_and_change_nothing(
    unit: str, text: str, tmp_path: Path
) -> None:
    model = save_tiny("t5", tmp_path / "dense", tokenizer=True)
    for name, memory in (("memory", "1GB"), ("files", "1kB")):
        prune(model, text, tmp_path / name, unit=unit, remove=8, activation_memory=memory)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("memory", "files"))
    assert one == two
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "files", "memory", "text.txt"]


@pytest.mark.parametrize("params", [0.85, 0.7])
def test_two_kinds_that_share_a_budget_leave_less_of_it_than_a_neuron(params: float, text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    stage = prune(model, text, unit="neuron,head", params=params).stages[0]
    neuron = sum(unit_costs(group, "parameters", 0)[0] for group in unit_groups(load(model), "neuron"))
    rest = params * stage.budget["first"]["parameters"] - stage.budget["after"]["parameters"]
    assert 0 <= rest < neuron


def test_the_most_that_can_go_is_a_multiple_of_what_is_rounded_to(text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    count = unit_groups(load(model), "neuron")[0].count
    with pytest.raises(UsageError, match=f"Remove {count - 8} at most"):
        prune(model, text, unit="neuron", remove=count - 7, round_to=4, min_units=7)
    with pytest.raises(UsageError, match="No number of them can go"):
        prune(model, text, unit="neuron", remove=1, min_units=1000)


def test_padding_beyond_the_budget_is_said(text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    stage = prune(model, text, unit="neuron", params=0.85, allocation="global", pad=True).stages[0]
    assert stage.budget["after"]["parameters"] > 0.85 * stage.budget["first"]["parameters"]
    assert any("without the zeros of --pad the target is met" in note for note in stage.notes)


def test_the_cost_of_channels_counts_experts_by_their_share_of_the_tokens(text: str, tmp_path: Path) -> None:
    model = save_tiny("mixtral", tmp_path / "dense", tokenizer=True)
    budget = prune(model, text, unit="channel", macs=0.8).stages[0].budget
    share = budget["after"]["macs"] / budget["before"]["macs"]
    assert 0.8 - 8 / 32 < share <= 0.8  # channels of experts go by eights


@pytest.mark.parametrize("unit", ["neuron", "channel", "layer"])
def test_gradients_can_be_taken_afterwards(unit: str, text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    result = prune(model, text, unit=unit, remove=1)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    result.model.requires_grad_(True)
    result.model(IDS, labels=IDS).loss.backward()


def test_damping_changes_what_channels_are_fitted_to(text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    soft, hard = (prune(model, text, unit="channel", remove=8, damping=damping) for damping in (1e-3, 1.0))
    one, two = (result.model.model.layers[0].mlp.up_proj.weight for result in (soft, hard))
    assert not torch.allclose(one, two)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unit": "neuron", "params": 0.01}, "can't be met"),
        ({"unit": "neuron", "remove": 44}, "at least 1"),
        ({"unit": "neuron", "remove": 40, "min_units": 8}, "at least 8"),
        ({"unit": "layer", "remove": 2}, "can't be removed"),
        ({"unit": "layer", "params": 0.1}, "least that can be reached"),
        ({"unit": "channel", "params": 0.01}, "least that can be reached"),
        ({"unit": "head", "sparsity": 0.99}, "at least 1"),
        ({"unit": "expert", "remove": 1}, "no units of the kind 'expert'"),
        ({"unit": "filter", "remove": 1}, "unknown unit"),
        ({"unit": "neuron", "remove": 1, "params": 0.5}, "exactly one"),
        ({"unit": "neuron"}, "exactly one"),
        ({"unit": "layer,neuron", "params": 0.5}, "share a budget"),
        ({"unit": "layer", "remove": 1, "score": "apoz"}, "doesn't fit"),
        ({"unit": "neuron", "params": 0.9, "solver": "admm"}, "obs, greedy and none"),
        ({"unit": "neuron", "params": 0.9, "solver": "greedy"}, "layers, or halves of them"),
        ({"unit": "neuron", "params": 0.9, "pattern": "2:4"}, "exactly one"),
        ({"unit": "layer", "remove": 1, "include": ["*"]}, "--include says nothing about --unit layer"),
        ({"unit": "neuron", "params": 0.9, "exclude": ["*.9.*"]}, "matches no layer and no group of units"),
        ({"unit": "neuron", "params": 0.9, "exclude": ["*"]}, "leave no group of units"),
        ({"unit": "neuron", "params": 0.9, "allocation": "owl"}, "is for weights"),
        ({"unit": "neuron", "params": 0.9, "uniform": True, "pad": True}, "one of them"),
        ({"sparsity": 0.5, "round_to": 8}, "units that are removed"),
        ({"unit": "channel", "remove": 8, "protect_first": 1}, "--protect-first says nothing about --unit channel"),
        ({"unit": "layer", "remove": 1, "round_to": 2}, "--round-to says nothing about --unit layer"),
        ({"unit": "layer", "remove": 1, "damping": 0.1}, "--damping says nothing about --unit layer"),
        ({"unit": "token", "pad": True}, "--pad says nothing about --unit token"),
        ({"unit": "neuron", "remove": 1, "score": "l2", "repair": False, "damping": 0.1}, "nothing is damped"),
        ({"unit": "neuron", "remove": 1, "score": "l2", "gradient": "loss"}, "--gradient loss is for"),
        ({"unit": "neuron", "threshold": "p20", "solver": "obs"}, "needs a --score"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_named_before_anything_is_written(
    options: dict[str, Any], words: str, text: str, tmp_path: Path
) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    with pytest.raises(UsageError, match=words):
        prune(model, text, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("torch.ones(3)", r"has the shape \(3,\)"),
        ("torch.full((group.count,), float('nan'))", "NaN"),
        ("torch.ones(group.count)", "constant"),
        ("None", "NoneType"),
    ],
)
def test_a_score_of_the_users_own_that_says_nothing_is_an_error(
    body: str, words: str, text: str, tmp_path: Path
) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    own = tmp_path / "own.py"
    own.write_text(f"import torch\n\n\ndef score(group, statistics):\n    return {body}\n")
    with pytest.raises(ScoreError, match=words):
        prune(model, text, tmp_path / "out", unit="neuron", params=0.9, score=f"{own}:score")
    assert not (tmp_path / "out").exists()


def test_a_score_of_the_users_own_chooses(text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    own = tmp_path / "own.py"
    own.write_text("import torch\n\n\ndef score(group, statistics):\n    return torch.arange(group.count).float()\n")
    dense = secateur.load(model).model.model.layers[0].mlp.gate_proj.weight
    result = prune(model, text, unit="neuron", sparsity=0.5, score=f"{own}:score", repair=False)
    assert torch.equal(result.model.model.layers[0].mlp.gate_proj.weight, dense[22:])


def test_the_same_seed_gives_the_same_bytes(text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    for name in ("one", "two"):
        prune(model, text, tmp_path / name, unit="neuron,head", params=0.8)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_costs_are_those_of_the_model_that_is_there(tmp_path: Path) -> None:
    network = secateur.load(save_tiny("llama", tmp_path / "dense"))
    found = costs(network, 32)
    assert found.parameters == sum(parameter.numel() for parameter in network.model.parameters())
    assert found.bytes == 4 * found.parameters
    linear = sum(layer.parameter.numel() for layer in network.layers()) + 96 * 32
    assert found.macs == linear + 2 * 32 * 32  # two blocks, 32 attention channels, 32 / 2 keys and as many values


def test_amounts_say_what_each_place_gives(text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    given = {"model.layers.1/neuron": 5}
    stage = prune(model, text, unit="neuron", amounts=given).stages[0]
    assert {group.name: group.before - group.left for group in stage.groups if group.left < group.before} == given
    result = prune(model, text, unit="attention", amounts={"model.layers.1": 1})
    assert [group.removed for group in result.stages[0].groups] == [(1,)]
    assert not list(result.model.model.layers[1].self_attn.parameters())
    with pytest.raises(UsageError, match="block with a unit of the kind 'mlp'"):
        prune(model, text, unit="mlp", amounts={"model.layers.9": 1})
    with pytest.raises(UsageError, match=r"takes 999 from model.layers.1/neuron, which can give"):
        prune(model, text, unit="neuron", amounts={"model.layers.1/neuron": 999})


def test_kinds_that_share_a_budget_give_alike_where_their_scores_are_alike(text: str, tmp_path: Path) -> None:
    """A head holds more parameters than a neuron, which makes it no cheaper per parameter."""
    (tmp_path / "own.py").write_text(
        "import torch\n\ndef score(group, statistics):\n"
        "    random = torch.Generator().manual_seed(group.block + 10 * (group.unit == 'head'))\n"
        "    return torch.rand(group.count, generator=random)\n"
    )
    save_tiny("llama", tmp_path / "dense", tokenizer=True)
    config = AutoConfig.from_pretrained(tmp_path / "dense")
    config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim = 64, 16, 16, 4
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "dense")
    options = {"score": f"{tmp_path / 'own.py'}:score", "solver": "none", "repair": False, "allocation": "global"}
    groups = prune(tmp_path / "dense", text, unit="neuron,head", params=0.7, **options).stages[0].groups
    shares = [
        sum(group.left for group in groups if group.unit == unit) / sum(g.before for g in groups if g.unit == unit)
        for unit in ("neuron", "head")
    ]
    assert shares[0] == pytest.approx(shares[1], abs=0.15)


def test_what_a_user_may_not_expect_is_noted(text: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n\ndef score(group, statistics):\n    return torch.arange(group.count) + 1.0\n"
    )
    own = f"{tmp_path / 'own.py'}:score"
    gpt2, t5 = (save_tiny(family, tmp_path / family, tokenizer=True) for family in ("gpt2", "t5"))
    mixtral = save_tiny("mixtral", tmp_path / "mixtral", tokenizer=True)
    notes = prune(gpt2, text, unit="channel", remove=1).stages[0].notes
    assert any(
        note.startswith("8 channels went and not 1, as 8 of them go together, and with them 1 heads") for note in notes
    )
    notes = prune(t5, text, unit="layer", remove=1, score=own).stages[0].notes
    assert any("1 layers of the encoder and 2 of the decoder are left" in note for note in notes)
    notes = prune(mixtral, text, unit="neuron", sparsity=0.5).stages[0].notes
    assert any("Widths of experts are multiples of 8" in note for note in notes)
    notes = prune(gpt2, text, unit="neuron", sparsity=0.5, samples=1, length=8).stages[0].notes
    assert any("fitted on 8 calibration tokens, fewer than the" in note for note in notes)
    assert not any(
        "calibration tokens" in note for note in prune(gpt2, text, unit="neuron", sparsity=0.5).stages[0].notes
    )
    with pytest.raises(UsageError, match="remove them in two stages"):
        prune(mixtral, text, unit="neuron,head", params=0.9)


def test_an_encoder_of_fewer_channels_is_kept_though_its_vectors_cannot_be_compared(text: str, tmp_path: Path) -> None:
    bert = save_tiny("bert", tmp_path / "bert", tokenizer=True)
    model = AutoModel.from_pretrained(bert)
    model.save_pretrained(bert)
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean": True}))
    result = prune(bert, text, tmp_path / "out", unit="channel", remove=8, evaluate=text, windows=2)
    assert result.comparison.others[0].cosine is None
    assert any("vectors of another width" in note for note in result.comparison.notes)
    pooling = json.loads((tmp_path / "out/1_Pooling/config.json").read_text())
    assert pooling == {"word_embedding_dimension": 24, "pooling_mode_mean": True}
    table = result.table()
    assert "24 of 32 channels are left" in table


def test_coarse_units_that_overshoot_are_noted(text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    coarse = prune(model, text, unit="layer", params=0.95).stages[0]
    left, allowed = coarse.budget["after"]["parameters"], 0.95 * coarse.budget["first"]["parameters"]
    assert any(f"{left:,} parameters are left, and {allowed:,.0f} were allowed" in note for note in coarse.notes)
    fine = prune(model, text, unit="neuron", params=0.95).stages[0]
    assert not any("were allowed" in note for note in fine.notes)


def by_norm(group: Any, statistics: Any) -> torch.Tensor:
    """A score of the tests' own."""
    (reader,) = group.readers
    return reader.layer.matrix().norm(dim=0)[reader.index].sum(1)


def test_a_score_may_be_a_function_itself(text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    one, _ = (
        prune(model, text, tmp_path / out, unit="neuron", sparsity=0.5, score=score)
        for out, score in (("one", by_norm), ("two", f"{__name__}:by_norm"))
    )
    assert one.stages[0].stage["prune"]["score"] == f"{__name__}:by_norm"
    both = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("one", "two")]
    assert both[0] == both[1]
    assert one.stages[0].groups[0].removed is None  # neurons aren't listed one by one
    with pytest.raises(UsageError, match="write it as a function of a module"):
        prune(model, text, unit="neuron", sparsity=0.5, score=lambda group, statistics: torch.ones(group.count))


def test_a_loaded_network_is_refused_in_words(text: str, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    with pytest.raises(UsageError, match=r"give the name or folder that load\(\) was given"):
        secateur.prune(load(model), sparsity=0.5)  # type: ignore[arg-type]
