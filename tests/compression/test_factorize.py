"""Recipes that factorize: what is saved, what loads it, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import secateur
from secateur.errors import NothingPrunedError, UsageError
from secateur.evaluation.costs import costs
from secateur.network.loading import load
from secateur.network.reshaped import Factors
from tiny import save_tiny, tiny_recipe

FAMILIES = ("llama", "gpt2", "bert", "t5", "opt", "phi3", "gpt_neox", "gemma3", "distilbert")


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    return tiny_recipe(tmp_path) | {"overwrite": True, "evaluate": None}


def run(told: dict[str, Any], *stages: dict[str, Any], **more: Any) -> secateur.Result:
    return secateur.run_recipe(secateur.Recipe.build(told | more | {"stages": list(stages)}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("factorize", [{"params": 0.8}, {"params": 0.8, "sparse": 0.4}])
def test_factors_compute_what_their_products_do(
    family: str, factorize: dict[str, Any], told: dict[str, Any], tmp_path: Path
) -> None:
    """What is saved loads in a fresh process (`reload`), and is the plain model with the products as weights."""
    told["model"] = str(save_tiny(family, tmp_path / family, tokenizer=True))
    apart = run(told, {"factorize": factorize})
    assert apart.reload == 0
    merged = run(told, {"factorize": {**factorize, "merged": True}})
    assert merged.reload == 0
    assert not any(isinstance(module, Factors) for module in merged.model.modules())
    ids = torch.arange(4, 12)[None]
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if family == "t5" else {})
    with torch.inference_mode():
        one, other = apart.model(**inputs)[0], merged.model(**inputs)[0]
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    assert [report.rank for report in apart.stages[0].layers] == [report.rank for report in merged.stages[0].layers]
    assert all(report.error is not None and report.error < 1 for report in apart.stages[0].layers)


def test_a_checkpoint_of_factors_loads_where_secateur_is_not_installed(told: dict[str, Any], tmp_path: Path) -> None:
    result = run(told, {"factorize": {"params": 0.8}})
    ids = [[1, 2, 3, 4]]
    code = (
        "import sys, torch\nsys.modules['secateur'] = None\nfrom transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r}, trust_remote_code=True)\n"
        f"ids = torch.tensor({ids})\nprint(model(ids).logits.double().sum().item())\n"
        "assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 7)\n"
        "model(ids, labels=ids).loss.backward()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    with torch.inference_mode():
        expected = result.model(torch.tensor(ids)).logits.double().sum().item()
    assert float(done.stdout.split()[-1]) == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_factors_are_exported_and_a_gguf_has_no_place_for_them(told: dict[str, Any], tmp_path: Path) -> None:
    result = run(told, {"factorize": {"params": 0.8, "sparse": 0.5}})
    assert result.output is not None
    for to in ("onnx", "torch"):
        exported = secateur.export(result.output, output=tmp_path / to, to=to)
        assert exported.difference is not None
        assert exported.difference < 1e-3
    with pytest.raises(UsageError, match="has no place for factors"):
        secateur.export(result.output, output=tmp_path / "gguf", to="gguf")


@pytest.mark.parametrize("allocation", ["uniform", "error"])
def test_the_target_is_met(allocation: str, told: dict[str, Any]) -> None:
    dense = load(told["model"])
    result = run(told, {"factorize": {"params": 0.75, "allocation": allocation}})
    before = sum(parameter.numel() for parameter in dense.model.parameters())
    after = sum(parameter.numel() for parameter in result.model.parameters())
    step = max(sum(layer.shape) for layer in dense.layers()) * len(dense.layers())
    assert 0.75 * before - step < after <= 0.75 * before
    assert costs(result.network, 16).macs < costs(dense, 16).macs


def test_macs_of_factors_are_counted(told: dict[str, Any]) -> None:
    dense = load(told["model"])
    before = costs(dense, 16).macs
    saved = sum(layer.weights - 2 * sum(layer.shape) for layer in dense.layers())
    result = run(told, {"factorize": {"rank": 2}})
    assert costs(result.network, 16).macs == before - saved


def test_energy_is_kept_and_a_layer_that_would_not_be_smaller_stays_whole(told: dict[str, Any]) -> None:
    result = run(told, {"factorize": {"energy": 0.9, "include": ["*.0.mlp.*"]}})
    reports = result.stages[0].layers
    assert {report.name for report in reports} == {f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")}
    for report in reports:
        assert report.rank is not None
        assert report.error is not None
        assert report.error <= 0.1
    assert isinstance(result.model.model.layers[0].mlp.up_proj, Factors)
    assert isinstance(result.model.model.layers[1].mlp.up_proj, nn.Linear)
    with pytest.raises(NothingPrunedError, match="no layer's factors would be smaller"):
        run(told, {"factorize": {"energy": 0.9999999}})
    assert result.output is not None
    assert (Path(result.output) / "config.json").is_file()  # the earlier result is still there


def test_what_is_factorized_can_be_trained_quantized_and_told(told: dict[str, Any]) -> None:
    stages = [{"prune": {"unit": "neuron", "params": 0.9}}, {"factorize": {"params": 0.8}}]
    result = run(told, *stages, {"distill": {"steps": 2, "batch": 2}}, {"quantize": {"bits": 8}})
    assert result.reload == 0
    assert isinstance(result.model.model.layers[0].mlp.up_proj, Factors)
    assert result.output is not None
    card = (Path(result.output) / "README.md").read_text()
    assert "two thin matrices in the place of layers until 80 % of the parameters were left" in card
    loaded = load(result.output)
    assert sum(p.numel() for p in loaded.model.parameters()) == sum(p.numel() for p in result.model.parameters())


def test_single_weights_beside_factors_have_a_mask_and_can_be_pruned_further(told: dict[str, Any]) -> None:
    result = run(told, {"factorize": {"params": 0.8, "sparse": 0.5}})
    assert result.output is not None
    network = load(result.output)
    assert {layer.name.rpartition(".")[2] for layer in network.layers()} == {"kept"}
    secateur.Mask.load(result.output).verify(network)
    assert "takes the room of a whole one" in " ".join(result.stages[0].notes)
    zeros = sum(layer.zeros() for layer in network.layers())
    again = run(told, {"prune": {"sparsity": 0.9}}, model=result.output, output=f"{result.output}-2")
    assert sum(layer.zeros() for layer in again.network.layers()) > zeros


def test_pruned_and_factorized_layers_that_are_others_go_together(told: dict[str, Any]) -> None:
    stages = [
        {"prune": {"sparsity": 0.5, "exclude": ["*.self_attn.*"]}},
        {"factorize": {"rank": 4, "include": ["*.self_attn.*"]}},
    ]
    result = run(told, *stages, {"finetune": {"steps": 2, "batch": 2}})
    assert result.output is not None
    mask = secateur.Mask.load(result.output)
    assert all(".mlp." in name for name in mask.layers)
    assert mask.sparsity == pytest.approx(0.5, abs=1e-3)
    mask.verify(load(result.output))


def test_zeros_that_factors_bring_back_are_counted_and_no_empty_mask_is_written(told: dict[str, Any]) -> None:
    half = run(told, {"prune": {"sparsity": 0.5}})
    out = f"{told['output']}-2"
    more = {"model": half.output, "output": out, "evaluate": {"text": str(Path(out).parent / "text.txt"), "windows": 1}}
    result = run(told, {"factorize": {"rank": 4}}, **more)
    gone = sum(report.zeros_before - report.zeros for report in result.stages[0].layers)
    assert gone > 0.9 * half.stages[0].zeros
    assert f"{gone:,} weights that were zero aren't any more" in " ".join(result.stages[0].notes)
    assert result.comparison is not None
    assert result.comparison.others[0].mask is None
    assert not (Path(out) / "secateur.mask").exists()
    assert secateur.Mask({}).sparsity == 0
    assert secateur.Mask({}).describe() == "unstructured, 0.00 %"


def test_layers_that_a_rank_makes_no_smaller_are_named(told: dict[str, Any]) -> None:
    result = run(told, {"factorize": {"rank": 12}})
    (note,) = [one for one in result.stages[0].notes if "stayed whole" in one]
    assert "4 of 14 layers" in note
    assert "model.layers.0.self_attn.k_proj, model.layers.0.self_attn.v_proj" in note


def test_an_interrupted_run_goes_on_behind_the_factors(told: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [{"factorize": {"params": 0.8}}, {"distill": {"steps": 2, "batch": 2}}]
    expected = run(told, *stages).model.state_dict()
    with monkeypatch.context() as patch:
        patch.setattr("secateur.training.stages.Recovery.carry_out", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(told, *stages)
    recipe = secateur.Recipe.build(told | {"stages": stages})
    result = secateur.run_recipe(recipe, resume=True)
    assert [next(iter(stage.stage)) for stage in result.stages] == ["factorize", "distill"]
    for name, tensor in result.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])


def _interrupted(self: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([{"factorize": {}}], "give one of params, energy and rank, not none"),
        ([{"factorize": {"params": 0.8, "rank": 3}}], "not params and rank"),
        ([{"factorize": {"rank": 3, "allocation": "error"}}], "allocation shares out params"),
        ([{"factorize": {"rank": 3, "sparse": 0.5}}], "sparse goes with params"),
        ([{"factorize": {"rank": 3, "rounds": 2}}], "rounds are those of sparse"),
        ([{"factorize": {"params": 0.01}}], "can't be met: with rank 1 everywhere"),
        ([{"factorize": {"rank": 3, "include": ["lm_head"]}}], "outside of the blocks"),
        ([{"factorize": {"rank": 3, "include": ["*nothing"]}}], "matches no layer"),
        ([{"factorize": {"rank": 40}}], "rank 40 is larger than model.layers.0.self_attn.q_proj, which is 32 x 32"),
        ([{"factorize": {"rank": 19, "include": ["*_proj"], "exclude": ["*[kv]_proj"]}}], "no layer would be smaller"),
        ([{"prune": {"sparsity": 0.5}}, {"factorize": {"rank": 3}}], "zeros would be lost.*sparse: 0.7"),
        (
            [{"prune": {"sparsity": 0.5, "include": ["*.mlp.*"]}}, {"factorize": {"rank": 3, "include": ["*up_proj"]}}],
            "sets weights of model.layers.0.mlp.up_proj to zero",
        ),
        (
            [
                {"prune": {"sparsity": 0.5, "include": ["*.1.mlp.*"]}},
                {"prune": {"unit": "layer", "remove": 1}},
                {"factorize": {"rank": 3, "include": ["*.0.mlp.*"]}},
            ],
            "zeros would be lost",
        ),
        ([{"factorize": {"rank": 3}}, {"prune": {"sparsity": 0.5}}], "prune can't follow it"),
        ([{"factorize": {"rank": 3}}, {"reconstruct": {}}], "reconstruct can't follow it"),
        ([{"factorize": {"rank": 3}}, {"quantize": {"pattern": "2:4"}}], "sparsity and pattern are for whole layers"),
        (
            [{"repeat": 2, "stages": [{"prune": {"sparsity": 0.5}}, {"factorize": {"rank": 3}}]}],
            "put factorize behind it",
        ),
    ],
)
def test_misuse_is_named(stages: list[dict[str, Any]], says: str, told: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=says):
        run(told, *stages)
    assert not Path(told["output"]).exists()


def test_units_of_a_factorized_model_and_bare_weights_are_refused(told: dict[str, Any], tmp_path: Path) -> None:
    result = run(told, {"factorize": {"params": 0.8}})
    more = {"model": result.output, "output": f"{result.output}-2"}
    with pytest.raises(UsageError, match="factorized; remove them before"):
        run(told, {"prune": {"unit": "neuron", "params": 0.8}}, **more)
    with pytest.raises(UsageError, match="factorized already"):
        run(told, {"factorize": {"rank": 2}}, **more)
    with pytest.raises(UsageError, match="no linear layer to prune; what is factorized"):
        run(told, {"prune": {"sparsity": 0.5}}, **more)
    xlnet = str(save_tiny("xlnet", tmp_path / "xlnet", tokenizer=True))
    with pytest.raises(UsageError, match="a bare weight"):
        run(told, {"factorize": {"rank": 2}}, model=xlnet)
    assert isinstance(AutoModelForCausalLM.from_pretrained(told["model"]), nn.Module)
