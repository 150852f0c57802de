"""Packed checkpoints: smaller, back to the same bytes, and never wrong weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

import secateur
from secateur.errors import ModelError, SaveError, UsageError
from secateur.network.packed import is_packed, pack, unpack
from secateur.progress import Progress
from tiny import save_tiny


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """A small Llama, half of its weights zero, in bfloat16 and two shards."""
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    secateur.prune(model, sparsity=0.5, score="l1", dtype="bfloat16", output=tmp_path / "half", evaluate=False)
    return tmp_path / "half"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_unpacking_gives_back_every_byte_of_every_file(pruned: Path, tmp_path: Path) -> None:
    size = pack(pruned, tmp_path / "packed", False, Progress())
    assert is_packed(tmp_path / "packed")
    assert not is_packed(pruned)
    assert size.tensors == 14
    assert size.layers_packed / size.layers_plain == pytest.approx(0.5 + 1 / 16, rel=0.01)
    assert size.packed < size.plain
    back = unpack(tmp_path / "packed", tmp_path / "back", False, Progress())
    assert files(tmp_path / "back") == files(pruned)
    assert (back.plain, back.packed, back.layers_plain, back.layers_packed, back.tensors) == (
        *(size.plain, size.packed, size.layers_plain, size.layers_packed, size.tensors),
    )


def test_a_packed_checkpoint_loads_as_the_plain_one_and_no_tool_mistakes_it(pruned: Path, tmp_path: Path) -> None:
    pack(pruned, tmp_path / "packed", False, Progress())
    plain, loaded = secateur.load(pruned), secateur.load(tmp_path / "packed")
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name
    assert loaded.source.path == tmp_path / "packed"
    assert not (tmp_path / "packed" / "model.safetensors").exists()
    again = secateur.prune(tmp_path / "packed", sparsity=0.7, score="l1", output=tmp_path / "more", evaluate=False)
    assert again.reload == 0.0
    assert not is_packed(tmp_path / "more")


def test_the_layout_is_the_documented_one(pruned: Path, tmp_path: Path) -> None:
    pack(pruned, tmp_path / "packed", False, Progress())
    name = "model.layers.0.self_attn.q_proj.weight"
    dense = load_file(pruned / "model.safetensors")[name]
    with safe_open(tmp_path / "packed" / "packed-model.safetensors", "pt") as file:
        mask, values = file.get_tensor(f"{name}#mask"), file.get_tensor(f"{name}#values")
        assert file.metadata()["secateur"] == "packed-1"
        assert "model.embed_tokens.weight" in file.keys()  # noqa: SIM118 (not a dict)
    keep = np.unpackbits(mask.numpy(), bitorder="little")[: dense.numel()].astype(bool)
    assert torch.equal(torch.from_numpy(keep).view(dense.shape), dense != 0)
    assert torch.equal(values, dense[dense != 0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_negative_zeros_odd_sizes_empty_tensors_and_other_dtypes_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    random = torch.Generator().manual_seed(0)
    some = torch.randn(7, 11, generator=random).to(dtype)
    some[some < 0.8] = 0
    some[0, 0] = -0.0
    tensors = {
        "a": some,
        "b": torch.zeros(3, 5, dtype=dtype),
        "c": torch.arange(5),
        "d": torch.zeros(0, 4, dtype=dtype),
    }
    save_file(tensors, tmp_path / "in" / "model.safetensors", metadata={"format": "pt", "über": "ß"})
    pack(tmp_path / "in", tmp_path / "packed", False, Progress())
    unpack(tmp_path / "packed", tmp_path / "back", False, Progress())
    assert files(tmp_path / "back") == files(tmp_path / "in")


def test_every_tampered_byte_and_every_truncation_is_an_error(pruned: Path, tmp_path: Path) -> None:
    pack(pruned, tmp_path / "packed", False, Progress())
    path = tmp_path / "packed" / "packed-model.safetensors"
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for position in [0, 3, 9, 200, len(whole) - 1, *random.integers(0, len(whole), 40)]:
        broken = bytearray(whole)
        broken[position] ^= 1 << int(random.integers(8))
        path.write_bytes(broken)
        try:
            unpack(tmp_path / "packed", tmp_path / "back", False, Progress())
        except ModelError:
            assert not (tmp_path / "back").exists()
        else:  # a byte that says nothing, such as one of a JSON header's spaces
            assert (tmp_path / "back" / "model.safetensors").read_bytes() == (pruned / "model.safetensors").read_bytes()
            shutil.rmtree(tmp_path / "back")
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"packed-model\.safetensors"):
            secateur.load(tmp_path / "packed")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["dense", "half", "packed"]


def test_what_has_nothing_to_pack_is_refused(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense")
    with pytest.raises(ModelError, match="Prune it first"):
        pack(model, tmp_path / "out", False, Progress())
    with pytest.raises(ModelError, match="holds no packed checkpoint"):
        unpack(model, tmp_path / "out", False, Progress())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no \.safetensors file"):
        pack(tmp_path / "empty", tmp_path / "out", False, Progress())
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_kept_and_packing_twice_is_refused(pruned: Path, tmp_path: Path) -> None:
    pack(pruned, tmp_path / "packed", False, Progress())
    with pytest.raises(UsageError, match="--overwrite"):
        pack(pruned, tmp_path / "packed", False, Progress())
    pack(pruned, tmp_path / "packed", True, Progress())
    with pytest.raises(ModelError, match="packed already"):
        pack(tmp_path / "packed", tmp_path / "twice", False, Progress())
    with pytest.raises((UsageError, SaveError)):
        unpack(tmp_path / "packed", tmp_path / "packed", True, Progress())


def test_shards_stay_shards(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense")
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    tensors = {name: tensor * (tensor.abs() > tensor.abs().median()) for name, tensor in tensors.items()}
    parts = {"model-00001-of-00002.safetensors": names[:8], "model-00002-of-00002.safetensors": names[8:]}
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, model / file, metadata={"format": "pt"})
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, some in parts.items() for name in some}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    pack(model, tmp_path / "packed", False, Progress())
    unpack(tmp_path / "packed", tmp_path / "back", False, Progress())
    assert files(tmp_path / "back") == files(model)
    assert len(secateur.load(tmp_path / "packed").layers()) == 14


def test_a_missing_shard_is_named_whether_packed_or_not(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    text = tmp_path / "text.txt"
    text.write_text("many words of one text, and words again. " * 400)
    half = tmp_path / "half"
    options: dict[str, object] = {"stream": True, "samples": 2, "length": 16, "evaluate": False}
    secateur.prune(model, sparsity=0.5, score="wanda", calibration=str(text), output=half, **options)
    shards = sorted(half.glob("*.safetensors"))
    assert len(shards) > 1
    pack(half, tmp_path / "packed", False, Progress())
    (tmp_path / "packed" / f"packed-{shards[1].name}").unlink()
    with pytest.raises(ModelError, match=rf"packed/packed-{shards[1].name} is missing"):
        unpack(tmp_path / "packed", tmp_path / "back", False, Progress())
    with pytest.raises(ModelError, match=rf"packed/packed-{shards[1].name} is missing"):
        secateur.load(tmp_path / "packed")
    shards[1].unlink()
    with pytest.raises(ModelError, match=rf"half/{shards[1].name} is missing"):
        pack(half, tmp_path / "again", False, Progress())
    assert not (tmp_path / "back").exists()
    assert not (tmp_path / "again").exists()
