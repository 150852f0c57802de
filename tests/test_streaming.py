"""Streamed runs against runs in memory: the same weights, the same figures, for every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
from secateur.errors import CalibrationError, MaskError, ModelError, UsageError
from secateur.network.families import FAMILIES
from secateur.network.loading import load
from tiny import TINY, save_tiny

TEXT = "Pruning takes away what a model can do without, one weight at a time; the rest is tuned. " * 60
OPTIONS = {"samples": 6, "length": 16, "evaluate": False}


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns all tensors of a checkpoint's files."""
    found: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        found |= load_file(shard)
    return found


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """Returns a checkpoint's weights by their names in the model."""
    state: dict[str, torch.Tensor] = load(folder).model.state_dict()
    return state


def compare(source: Path, out: Path, text: str, **options: Any) -> None:
    """Holds a streamed run against one that stays in memory."""
    dense, expected = loaded(source), secateur.prune(source, calibration=text, **OPTIONS, **options).model.state_dict()
    result = secateur.prune(source, output=out, calibration=text, stream=True, **OPTIONS, **options)
    assert result.reload == 0.0
    found = loaded(out)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert any(not torch.equal(dense[name], tensor) for name, tensor in found.items())


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if not family.encoder_decoder])
def test_a_streamed_run_gives_the_same_weights(family: str, tmp_path: Path, text: str) -> None:
    source = save_tiny(family, tmp_path / "source", tokenizer=True)
    compare(source, tmp_path / "out", text, sparsity=0.5)
    assert weights(tmp_path / "out").keys() == weights(source).keys()
    assert secateur.Mask.load(tmp_path / "out") == secateur.Mask.of(load(tmp_path / "out"))


def test_blocks_are_nan_without_memory_outside_of_their_turn(tmp_path: Path) -> None:
    network = load(save_tiny("llama", tmp_path / "source"), stream=True)
    layer = network.layers()[0]
    assert bool(layer.parameter.isnan().all())
    assert layer.parameter.untyped_storage().nbytes() == layer.parameter.element_size()
    with network.resident(0):
        assert bool(layer.parameter.isfinite().all())
    assert bool(layer.parameter.isnan().all())


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.5, "allocation": "owl"},
        {"sparsity": 0.5, "allocation": "global", "score": "l1"},
        {"pattern": "2:4", "score": "wanda", "solver": "swap+refit"},
        {"sparsity": 0.5, "score": "l1"},
        {"sparsity": 0.5, "reconstruct": True},
        {"sparsity": 0.5, "score": "fisher"},
        {"sparsity": 0.5, "include": ["*q_proj", "lm_head"]},
        {"threshold": "p30", "score": "l1", "include": ["*embed_tokens"]},
    ],
    ids=str,
)
def test_every_kind_of_stage_streams(options: dict[str, object], tmp_path: Path, text: str) -> None:
    compare(save_tiny("llama", tmp_path / "source", tokenizer=True), tmp_path / "out", text, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.5, "allocation": "owl", "reconstruct": True},
        {"pattern": "2:4", "score": "fisher"},
        {"threshold": "p30", "score": "l1", "include": ["*experts*"]},
    ],
    ids=str,
)
def test_experts_stream_in_every_kind_of_stage(options: dict[str, object], tmp_path: Path, text: str) -> None:
    compare(save_tiny("mixtral", tmp_path / "source", tokenizer=True), tmp_path / "out", text, **options)


def test_experts_that_files_hold_together_stream(tmp_path: Path, text: str) -> None:
    source = save_tiny("mixtral", tmp_path / "source", tokenizer=True)
    together = {name: tensor.clone() for name, tensor in loaded(source).items()}
    save_file(together, source / "model.safetensors", metadata={"format": "pt"})
    compare(source, tmp_path / "out", text, sparsity=0.5)
    assert weights(tmp_path / "out").keys() == together.keys()


def test_a_streamed_experts_broken_weight_is_named(tmp_path: Path, text: str) -> None:
    source = save_tiny("qwen3_moe", tmp_path / "source", tokenizer=True)
    path, name = source / "model.safetensors", "model.layers.1.mlp.experts.2.up_proj.weight"
    tensors = load_file(path)
    for broken, message in (
        (tensors[name].clone().fill_(torch.nan), name),
        (tensors[name][1:].clone(), "has the shape"),
    ):
        save_file(tensors | {name: broken}, path, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=message):
            secateur.prune(source, output=tmp_path / "out", sparsity=0.5, stream=True, calibration=text, **OPTIONS)
    save_file({one: tensor for one, tensor in tensors.items() if one != name}, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no weight by the name of model\.layers\.1\.mlp\.experts\.gate_up_proj"):
        secateur.prune(source, output=tmp_path / "out", sparsity=0.5, stream=True, calibration=text, **OPTIONS)


def test_activations_in_files_change_nothing(tmp_path: Path, text: str) -> None:
    source = save_tiny("qwen3", tmp_path / "source", tokenizer=True)
    for name, memory in (("memory", "1GB"), ("files", "1kB")):
        secateur.prune(
            source,
            output=tmp_path / name,
            sparsity=0.5,
            calibration=text,
            activation_memory=memory,
            allocation="owl",
            reconstruct=True,
            **OPTIONS,
        )
    one, two = weights(tmp_path / "memory"), weights(tmp_path / "files")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_two_stages_stream(tmp_path: Path, text: str) -> None:
    source = save_tiny("llama", tmp_path / "source", tokenizer=True)
    for name, stream in (("memory", False), ("streamed", True)):
        recipe = secateur.Recipe.build(
            {
                "model": str(source),
                "output": str(tmp_path / name),
                "stream": stream,
                "calibration": {"data": text, "samples": 6, "length": 16},
                "stages": [
                    {"prune": {"sparsity": 0.4, "include": ["*q_proj"]}},
                    {"prune": {"sparsity": 0.5}},
                ],
                "evaluate": None,
            }
        )
        secateur.run_recipe(recipe)
    one, two = weights(tmp_path / "memory"), weights(tmp_path / "streamed")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("family", ["llama", "bert", "xlnet"])
def test_evaluation_streams(family: str, tmp_path: Path, text: str) -> None:
    source = save_tiny(family, tmp_path / "source", tokenizer=True)
    for name, stream in (("memory", False), ("streamed", True)):
        secateur.prune(
            source,
            output=tmp_path / name,
            sparsity=0.5,
            score="l1",
            evaluate=text,
            length=16,
            speed=False,
            stream=stream,
        )
    one, two = (
        json.loads((tmp_path / name / "secateur.json").read_text())["comparison"] for name in ("memory", "streamed")
    )
    for kind in ("dense", "others"):
        for key in ("perplexity", "kl", "top1_agreement", "cosine", "zeros", "tokens"):
            first, second = (found[kind] if kind == "dense" else found[kind][0] for found in (one, two))
            assert first[key] == (None if second[key] is None else pytest.approx(second[key], rel=1e-5)), key
    alone = secateur.evaluate(tmp_path / "streamed", text=text, length=16, stream=True)
    assert alone.mask is not None
    assert "held" in alone.mask
    assert alone.prefill is None


def test_a_large_checkpoint_streams_by_itself(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_tiny("llama", tmp_path / "source", tokenizer=True)
    size = (source / "model.safetensors").stat().st_size

    class Memory:
        available = size  # half of it is less than the checkpoint

    monkeypatch.setattr("secateur.network.loading.psutil.virtual_memory", Memory)
    result = secateur.prune(source, output=tmp_path / "out", sparsity=0.5, calibration=text, **OPTIONS)
    assert any("streamed" in note for note in result.notes)
    Memory.available = 3 * size
    result = secateur.prune(source, output=tmp_path / "out2", sparsity=0.5, calibration=text, **OPTIONS)
    assert not any("streamed" in note for note in result.notes)


def test_what_cannot_be_streamed_is_said(tmp_path: Path, text: str) -> None:
    source = save_tiny("llama", tmp_path / "source", tokenizer=True)
    with pytest.raises(UsageError, match="needs an output"):
        secateur.prune(source, sparsity=0.5, stream=True)
    with pytest.raises(CalibrationError, match="--calibration FILE"):
        secateur.prune(source, output=tmp_path / "out", sparsity=0.5, stream=True)
    with pytest.raises(UsageError, match="whole model in memory"):
        secateur.prune(
            source,
            output=tmp_path / "out",
            sparsity=0.5,
            score="snip",
            gradient="loss",
            stream=True,
            calibration=text,
            **OPTIONS,
        )
    with pytest.raises(MaskError, match="in memory"):
        secateur.Mask({}).apply(load(source, stream=True))
    with pytest.raises(UsageError, match="not a size"):
        secateur.prune(source, output=tmp_path / "out", sparsity=0.5, activation_memory="much")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.encoder_decoder])
def test_an_encoder_decoder_cannot_be_streamed(family: str, tmp_path: Path, text: str) -> None:
    source = save_tiny(family, tmp_path / "source", tokenizer=True)
    with pytest.raises(UsageError, match="is an encoder-decoder, which can't be streamed; --no-stream loads it whole"):
        secateur.prune(source, output=tmp_path / "out", sparsity=0.5, stream=True, calibration=text, **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_streamed_block_with_nan_is_named(tmp_path: Path, text: str) -> None:
    source = save_tiny("llama", tmp_path / "source", tokenizer=True)
    path = source / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][0, 0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=name):
        secateur.prune(source, output=tmp_path / "out", sparsity=0.5, stream=True, calibration=text, **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_all_families_are_tried() -> None:
    assert TINY.keys() == FAMILIES.keys()
