"""Recipes that quantize: what is saved, what loads it, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import secateur
from secateur.errors import ModelError, PatternError, UsageError
from secateur.mask import Mask
from secateur.network.loading import load
from secateur.network.quantized import is_quantized
from tiny import save_tiny, tiny_recipe


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    return tiny_recipe(tmp_path) | {
        "overwrite": True,
        "stages": [{"prune": {"pattern": "2:4"}}, {"quantize": {}}],
    }


def run(told: dict[str, Any], *stages: dict[str, Any]) -> secateur.Result:
    return secateur.run_recipe(secateur.Recipe.build(told | ({"stages": list(stages)} if stages else {})))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantize", [{}, {"bits": 4, "per": "channel"}, {"method": "nearest"}])
def test_a_mask_is_kept_and_stock_transformers_load_the_integers(
    quantize: dict[str, Any], dtype: str, told: dict[str, Any], tmp_path: Path
) -> None:
    told["dtype"] = dtype
    result = run(told, {"prune": {"pattern": "2:4"}}, {"quantize": quantize})
    out = tmp_path / "out"
    assert result.reload == 0
    stored = load_file(out / "model.safetensors")
    assert "model.layers.0.mlp.up_proj.weight" not in stored
    assert stored["model.layers.0.mlp.up_proj.weight_packed"].dtype == torch.int32
    model = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, result.model(ids).logits)
    network = load(out)
    assert len(network.quantized) == len(network.layers())
    for layer in network.layers():
        groups = layer.matrix().unfold(1, 4, 4)
        assert bool(((groups == 0).sum(-1) >= 2).all())
    evaluated = secateur.evaluate(out, text=str(tmp_path / "text.txt"), windows=2, length=32, speed=False)
    assert result.comparison is not None
    assert evaluated.perplexity == pytest.approx(result.comparison.others[0].perplexity, rel=1e-4)


def test_the_joint_sweep_prunes_too(told: dict[str, Any]) -> None:
    result = run(told, {"quantize": {"bits": 4, "per": "channel", "sparsity": 0.5}})
    assert result.comparison is not None
    (other,) = result.comparison.others
    assert other.zeros >= 0.5 * other.weights
    assert "int4 and 50 % of the weights removed" in (Path(told["output"]) / "README.md").read_text()


def test_the_mask_is_that_of_before_rounding(told: dict[str, Any], tmp_path: Path) -> None:
    prune, quantize = {"prune": {"sparsity": 0.5}}, {"quantize": {"bits": 4, "per": "channel"}}
    run(told | {"output": str(tmp_path / "half")}, prune)
    result = run(told, prune, quantize)
    mask = Mask.load(tmp_path / "out")
    assert mask == Mask.load(tmp_path / "half")
    zeros = sum(layer.zeros() for layer in load(tmp_path / "out").layers())
    assert zeros > mask.zeros
    assert f"{zeros - mask.zeros:,} more zeros by rounding" in " ".join(result.stages[1].notes)
    assert result.comparison is not None
    assert result.comparison.others[0].mask == "unstructured, 50.00 %; held"


def test_the_mask_of_a_joint_sweep_is_what_it_removed(told: dict[str, Any]) -> None:
    run(told, {"quantize": {"bits": 4, "per": "channel", "sparsity": 0.5}})
    mask = Mask.load(told["output"])
    assert {round(layer.zeros / layer.weights, 3) for layer in mask.layers.values()} == {0.5}
    mask.verify(load(told["output"]))


def test_a_dense_model_that_is_only_quantized_has_no_mask(told: dict[str, Any], tmp_path: Path) -> None:
    result = run(told, {"quantize": {"bits": 4, "per": "channel"}})
    assert "more zeros by rounding" in " ".join(result.stages[0].notes)
    assert not (tmp_path / "out/secateur.mask").exists()


def test_a_run_that_ends_behind_quantization_still_knows_its_mask(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [{"prune": {"sparsity": 0.5}}, {"quantize": {"bits": 4, "per": "channel"}}]
    run(told, *stages)
    expected = Mask.load(told["output"])
    with monkeypatch.context() as patch:
        patch.setattr("secateur.run._evaluate", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(told, *stages)
    secateur.run_recipe(secateur.Recipe.build(told | {"stages": stages}), resume=True)
    assert Mask.load(told["output"]) == expected


def _interrupted(*given: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("pattern", [{"sparsity": 0.4}, {"pattern": "3:4"}])
def test_a_joint_sweep_keeps_zeros_that_are_more_than_it_asks_for(
    pattern: dict[str, Any], told: dict[str, Any]
) -> None:
    result = run(told, {"prune": {"pattern": "2:4"}}, {"quantize": {"bits": 8, **pattern}})
    assert result.comparison is not None
    (other,) = result.comparison.others
    assert other.pattern == "2:4"
    assert other.mask == "2:4 in 100 % of groups, 50.00 %; held"


FACTORS = [
    {"bits": 8},
    {"bits": 4, "per": "channel"},
    {"bits": 8, "method": "nearest", "include": ["*.mlp.*_proj"]},
    {"bits": 4, "group": 16, "exclude": ["*.down_proj"]},
]


@pytest.mark.parametrize("factorize", [{"params": 0.8}, {"params": 0.8, "sparse": 0.5}])
@pytest.mark.parametrize("quantize", FACTORS)
def test_factors_are_quantized_and_stock_transformers_load_them(
    quantize: dict[str, Any], factorize: dict[str, Any], told: dict[str, Any], tmp_path: Path
) -> None:
    result = run(told, {"factorize": factorize}, {"quantize": quantize})
    assert result.reload == 0
    stored = load_file(tmp_path / "out/model.safetensors")
    for part in ("down", "up", *(["kept"] if "sparse" in factorize else [])):
        assert f"model.layers.0.mlp.up_proj.{part}.weight" not in stored
        assert stored[f"model.layers.0.mlp.up_proj.{part}.weight_packed"].dtype == torch.int32
    code = (
        "import sys, torch\nsys.modules['secateur'] = None\nfrom transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r}, trust_remote_code=True)\n"
        "print(model(torch.arange(8)[None]).logits.double().sum().item())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with torch.inference_mode():
        expected = result.model(torch.arange(8)[None]).logits.double().sum().item()
    assert float(done.stdout.split()[-1]) == pytest.approx(expected, rel=1e-6, abs=1e-4)
    network = load(tmp_path / "out")
    assert network.quantized.keys() == result.network.quantized.keys()
    if "sparse" in factorize:
        Mask.load(tmp_path / "out").verify(network)
    if quantize.get("group"):
        assert "Groups of 16 inputs share a scale" in " ".join(result.stages[1].notes)


def test_factors_by_gptq_are_closer_than_to_nearest(told: dict[str, Any]) -> None:
    errors = {}
    for method in ("gptq", "nearest"):
        result = run(
            told, {"factorize": {"params": 0.8}}, {"quantize": {"bits": 4, "per": "channel", "method": method}}
        )
        assert result.comparison is not None
        errors[method] = result.comparison.others[0].kl
    assert errors["gptq"] < errors["nearest"]


def test_what_is_larger_than_a_gguf_is_not_called_plain(told: dict[str, Any], tmp_path: Path) -> None:
    secateur.export(told["model"], output=tmp_path / "gguf", to="gguf")
    file = tmp_path / "gguf/model.gguf"
    comparison = run(told | {"model": str(file)}, {"quantize": {"bits": 8, "exclude": ["*.mlp.*"]}}).comparison
    assert comparison is not None
    (said,) = [note for note in comparison.notes if "The file is larger" in note]
    assert "integers of its quantized layers and float32 for the rest" in said


def test_what_was_quantized_is_plain_once_it_is_pruned_again(told: dict[str, Any], tmp_path: Path) -> None:
    run(told)
    again = run(told | {"model": told["output"], "output": str(tmp_path / "again")}, {"prune": {"sparsity": 0.7}})
    assert any("was quantized" in note for note in again.notes)
    assert not is_quantized(tmp_path / "again")


@pytest.mark.parametrize(
    ("stages", "error", "says"),
    [
        ([{"quantize": {}}, {"finetune": {"steps": 1}}], UsageError, "quantize comes last: finetune after it"),
        ([{"quantize": {"bits": 5}}], UsageError, "bits"),
        ([{"quantize": {"group": 32, "per": "channel"}}], UsageError, "group goes with per: group"),
        ([{"quantize": {"bits": 4}}], UsageError, "none of 128, 64 and 32 divides"),
        ([{"quantize": {"bits": 4, "group": 24}}], UsageError, "groups of 24 don't divide the 32 inputs"),
        ([{"quantize": {"sparsity": 0.5, "method": "nearest"}}], UsageError, "go with method gptq"),
        ([{"quantize": {"pattern": "2:5"}}], PatternError, "2:5"),
        ([{"quantize": {"include": ["*nothing*"]}}], UsageError, "matches no layer"),
    ],
)
def test_misuse_is_named(
    stages: list[dict[str, Any]], error: type[Exception], says: str, told: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        run(told, *stages)
    assert not (tmp_path / "out").exists()


def test_a_head_that_is_the_embedding_is_refused(told: dict[str, Any], tmp_path: Path) -> None:
    told["model"] = str(save_tiny("qwen2", tmp_path / "qwen2", tokenizer=True))
    with pytest.raises(UsageError, match="lm_head shares its weight with model"):
        run(told, {"quantize": {"include": ["*.mlp.*", "lm_head"]}})


def test_layers_that_are_no_linear_modules_are_refused(told: dict[str, Any], tmp_path: Path) -> None:
    told["model"] = str(save_tiny("gpt2", tmp_path / "gpt2", tokenizer=True))
    with pytest.raises(UsageError, match=r"is a Conv1D.*--to gguf"):
        run(told, {"quantize": {}})


def test_checkpoints_of_others_and_damaged_ones_are_refused(told: dict[str, Any], tmp_path: Path) -> None:
    run(told)
    out = tmp_path / "out"
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = False
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="in a way that secateur doesn't read"):
        load(out)
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = True
    (out / "config.json").write_text(json.dumps(config))
    stored = load_file(out / "model.safetensors")
    del stored["model.layers.0.mlp.up_proj.weight_scale"]
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="but no scale of it"):
        load(out)
