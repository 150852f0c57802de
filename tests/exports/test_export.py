"""Exports, each run by its runtime and held against torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import numpy_helper

import secateur
from command_line import secateur as secateur_command
from secateur.benchmark.named_runner import NamedRunner
from secateur.benchmark.runners import kind_of
from secateur.errors import ExportError, UsageError
from secateur.exports import onnx_int8
from secateur.exports.onnx import Onnx
from secateur.network.loading import load
from tiny import save_tiny
from zoo import ZOO

TEXT = "What is cut off is gone; what is left must carry on as if nothing had happened. " * 40
EXPORTED = ["gpt2", "gpt_neox", "opt", "mistral", "gemma3", "qwen3", "phi3", "mixtral", "qwen3_moe", "bert", "whisper"]


KV = ("key", "value")


def ragged(tmp_path: Path, family: str = "llama") -> Path:
    """A checkpoint whose MLPs differ in width."""
    (tmp_path / "text.txt").write_text(TEXT)
    secateur.prune(
        save_tiny(family, tmp_path / "dense", tokenizer=True),
        output=tmp_path / "ragged",
        unit="neuron",
        amounts={"model.layers.0/neuron": 12, "model.layers.1/neuron": 4},
        calibration=str(tmp_path / "text.txt"),
        samples=4,
        length=16,
        evaluate=False,
    )
    return tmp_path / "ragged"


def generated(ask: Any, network: Any, names: list[str], start: list[int], steps: int = 6) -> list[int]:
    """Generates greedily through a runtime, by the cache that it gives back."""
    config = network.model.config
    past = {
        name: np.zeros((1, config.num_key_value_heads, 0, config.head_dim), np.float32)
        for name in names
        if name.startswith("past")
    }
    ids, seen = list(start), 0
    for _ in range(steps):
        new = np.array([ids[seen:]], np.int64)
        told = {
            "input_ids": new,
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(seen, len(ids), dtype=np.int64)[None],
        }
        found = ask({**told, **past})
        seen = len(ids)
        ids.append(int(found["logits"][0, -1].argmax()))
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
    return ids


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_ragged_language_model_generates_with_its_cache(to: str, tmp_path: Path) -> None:
    source = ragged(tmp_path)
    result = secateur.export(source, output=tmp_path / "out", to=to)
    assert result.difference is not None
    assert result.difference < 1e-4
    network = load(source)
    if to == "onnx":
        session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
        names = [one.name for one in session.get_inputs()]
        shown = {one.name: one.shape for one in session.get_inputs()}
        assert shown["input_ids"] == ["batch", "length"]
        outputs = [one.name for one in session.get_outputs()]

        def ask(told: dict[str, Any]) -> dict[str, Any]:
            return dict(zip(outputs, session.run(None, told), strict=True))
    else:
        compiled = openvino.Core().compile_model(tmp_path / "out/model.xml", "CPU")
        names = [one.any_name for one in compiled.inputs]

        def ask(told: dict[str, Any]) -> dict[str, Any]:
            found = compiled(told)
            return {one.any_name: found[one].copy() for one in compiled.outputs}

    start = [5, 9, 3]
    wanted = network.model.generate(torch.tensor([start]), max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert generated(ask, network, names, start) == wanted[0].tolist()
    assert (tmp_path / "out/tokenizer.json").is_file()
    told = json.loads((tmp_path / "out/secateur.json").read_text())
    assert told["export"]["verified_by"] in ("onnxruntime", "openvino")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino", "torch"])
@pytest.mark.parametrize("family", EXPORTED)
def test_every_kind_of_model_gives_what_torch_gives(family: str, to: str, tmp_path: Path) -> None:
    result = secateur.export(save_tiny(family, tmp_path / "m"), output=tmp_path / "out", to=to)
    assert result.difference is not None
    assert result.difference < 1e-4


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_what_hears_writes_on_from_its_cache(to: str, tmp_path: Path) -> None:
    source = save_tiny("whisper", tmp_path / "m")
    result = secateur.export(source, output=tmp_path / "out", to=to)
    assert result.difference is not None
    assert result.difference < 1e-4
    runner = kind_of(str(tmp_path / "out")).runner()(str(tmp_path / "out"), 1)
    assert isinstance(runner, NamedRunner)
    sound = runner.example(1, 0, 3)
    (heard,) = runner.hear({"input_features": sound}).values()
    ids, past, found = np.array([[1, 5, 9, 7, 3, 8]]), {"encoder_hidden_states": heard}, []
    for some in np.split(ids, [3, 4, 5], 1):
        logits, past = runner.say(some, past)
        found.append(torch.from_numpy(logits))
    keys = {f"past_key_values.{n}.{who}.{what}": who for n in (0, 1) for who in ("decoder", "encoder") for what in KV}
    assert set(past) == set(keys)
    assert {past[name].shape[2] for name, who in keys.items() if who == "decoder"} == {6}
    with torch.no_grad():
        told = {"input_features": torch.from_numpy(sound), "decoder_input_ids": torch.from_numpy(ids)}
        near = 1e-4 if runner.dtype in (None, "float32") else 0.1  # OpenVINO takes bf16 where the processor has it
        torch.testing.assert_close(torch.cat(found, 1), load(source).model(**told).logits, atol=near, rtol=1e-3)


def test_an_encoder_reads_padded_texts(tmp_path: Path) -> None:
    result = secateur.export(save_tiny("bert", tmp_path / "m", tokenizer=True), output=tmp_path / "out", to="onnx")
    assert result.difference is not None
    assert result.difference < 1e-4
    assert set(result.files) == {"model.onnx", "model.onnx.data"}


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_a_gguf_holds_the_model(kind: str, tmp_path: Path) -> None:
    source, dense = tmp_path / "half", save_tiny("llama", tmp_path / "m", tokenizer=True)
    secateur.prune(dense, output=source, sparsity=0.5, score="l1", evaluate=False)
    result = secateur.export(source, output=tmp_path / "out", to="gguf", kind=kind)
    assert result.difference is not None
    assert result.difference < 1e-3
    network = load(source)
    reader = gguf.GGUFReader(tmp_path / "out/model.gguf")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    up = stored["blk.0.ffn_up.weight"]
    back = gguf.quants.dequantize(up.data, up.tensor_type)
    weight = network.model.model.layers[0].mlp.up_proj.weight.float().numpy()
    assert np.abs(back - weight).max() <= np.abs(weight).max() * {"f16": 1e-3, "q8_0": 1e-2, "q4_0": 0.15}[kind]
    assert (weight == 0).mean() > 0.4
    assert (back[weight == 0] == 0).all()


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_int8_products_keep_what_is_zero(family: str, tmp_path: Path) -> None:
    source, dense = tmp_path / "half", save_tiny(family, tmp_path / "m", tokenizer=True)
    secateur.prune(dense, output=source, sparsity=0.5, score="l1", evaluate=False)
    plain = secateur.export(source, output=tmp_path / "plain", to="onnx")
    result = secateur.export(source, output=tmp_path / "out", to="onnx", kind="int8")
    assert result.difference is not None
    assert result.difference < 1e-4
    assert "matrices are int8, and what was zero is zero" in result.notes[0]
    assert set(result.files) == {"model.onnx", "model.onnx.data"}
    assert result.files["model.onnx.data"] < plain.files["model.onnx.data"]
    model = onnx.load(tmp_path / "out/model.onnx")
    integers = [numpy_helper.to_array(one) for one in model.graph.initializer if one.name.endswith("_quantized")]
    sparse = [one for one in integers if (one == 0).mean() > 0.45]
    assert len(sparse) == len(load(source).layers())
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    assert all(one.shape[0] in (0, "batch") for one in session.get_inputs())


def openvino_matrices(file: Path) -> list[np.ndarray]:
    """The int8 matrices of an OpenVINO file."""
    found = openvino.Core().read_model(file).get_ops()
    constants = [one for one in found if one.get_type_name() == "Constant"]
    return [one.data.copy() for one in constants if one.get_element_type().get_type_name() == "i8"]


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_openvino_int8_keeps_what_is_zero(family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, dense = tmp_path / "half", save_tiny(family, tmp_path / "m", tokenizer=True)
    secateur.prune(dense, output=source, sparsity=0.5, score="l1", evaluate=False)
    plain = secateur.export(source, output=tmp_path / "plain", to="openvino")
    capfd.readouterr()
    result = secateur.export(source, output=tmp_path / "out", to="openvino", kind="int8")
    assert "Weight" not in capfd.readouterr().out  # the quantizer's own tables
    assert result.difference is not None
    assert result.difference < 1e-4
    assert "matrices are int8, and what was zero is zero" in result.notes[0]
    assert set(result.files) == {"model.xml", "model.bin"}
    assert result.files["model.bin"] < 0.5 * plain.files["model.bin"]
    sparse = [one for one in openvino_matrices(tmp_path / "out/model.xml") if (one == 0).mean() > 0.45]
    assert len(sparse) == len(load(source).layers())


def test_int8_that_loses_a_zero_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, dense = tmp_path / "half", save_tiny("llama", tmp_path / "m", tokenizer=True)
    secateur.prune(dense, output=source, sparsity=0.5, score="l1", evaluate=False)
    plainly = onnx_int8.quantize_dynamic

    def lopsided(*args: Any, **given: Any) -> None:
        plainly(*args, **{**given, "weight_type": onnx_int8.QuantType.QUInt8})

    monkeypatch.setattr(onnx_int8, "quantize_dynamic", lopsided)
    with pytest.raises(ExportError, match="a weight that was zero isn't any more"):
        secateur.export(source, output=tmp_path / "out", to="onnx", kind="int8")
    assert not (tmp_path / "out").exists()


def test_a_ragged_gguf_names_each_layers_width(tmp_path: Path) -> None:
    source = ragged(tmp_path)
    secateur.export(source, output=tmp_path / "out", to="gguf")
    reader = gguf.GGUFReader(tmp_path / "out/model.gguf")
    field = reader.fields["llama.feed_forward_length"]
    widths = [int(field.parts[place][0]) for place in field.data]
    assert widths == [layer.mlp.up_proj.out_features for layer in load(source).model.model.layers]
    assert len(set(widths)) == 2


def test_the_command_line_exports_and_tells(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "m", tokenizer=True)
    done = secateur_command("export", source, "--to", "torch", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert "torch gives what torch gives" in " ".join(done.out.split())
    again = secateur_command("export", source, "--to", "torch", "-o", tmp_path / "out")
    assert again.code == 2
    assert "--overwrite" in again.err
    told = secateur_command("export", source, "--to", "torch", "-o", tmp_path / "out", "--overwrite", "--json")
    assert json.loads(told.out)["files"]["model.pt2"] == (tmp_path / "out/model.pt2").stat().st_size


@pytest.mark.parametrize(
    ("family", "given", "says"),
    [
        ("llama", {"to": "onxx"}, "Did you mean 'onnx'"),
        ("llama", {"to": "onnx", "kind": "q8_0"}, "There are float32, int8"),
        ("llama", {"to": "torch", "kind": "int8"}, "torch has no type 'int8'"),
        ("llama", {"to": "gguf", "kind": "q3_0"}, "There are f16, q8_0, q4_0"),
        ("bert", {"to": "gguf"}, "goes --to onnx or openvino"),
        ("t5", {"to": "onnx"}, "an encoder-decoder of text"),
        ("xlnet", {"to": "onnx"}, "in any order"),
    ],
)
def test_misuse_is_named(family: str, given: dict[str, Any], says: str, tmp_path: Path) -> None:
    source = save_tiny(family, tmp_path / "m", tokenizer=family in ("llama", "bert"))
    with pytest.raises(UsageError, match=says):
        secateur.export(source, output=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["onnx", "openvino", "torch"])
def test_a_network_in_memory_is_exported_after_it_was_pruned(to: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, example = ZOO["resnet20"]
    x = example()
    result = secateur.prune(build(), example_inputs=x, unit="filter", macs=0.6)
    small = result.model.train()
    told = secateur.export(small, example_inputs=x[:1], output=tmp_path / "out", to=to)
    assert told.difference < 1e-3
    assert small.training
    if to == "onnx":
        session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
        found = torch.from_numpy(session.run(["output"], {session.get_inputs()[0].name: x.numpy()})[0])
        with torch.no_grad():
            torch.testing.assert_close(found, small.eval()(x), atol=1e-4, rtol=1e-3)
    if to != "torch":
        timed = secateur.bench([tmp_path / "out"], repeats=1, batch=2, threads=1).models[0]
        assert (timed.kind, timed.decode) == ("images", None)
        assert timed.batch > 0


def test_a_network_of_several_inputs_and_outputs_keeps_their_names(tmp_path: Path) -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Linear(4, 3), torch.nn.Linear(5, 3)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": self.one(left) + self.two(right), "left": self.one(left)}

    secateur.export(Both(), example_inputs=(torch.randn(2, 4), torch.randn(2, 5)), output=tmp_path / "out", to="onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    assert [(one.name, one.shape) for one in session.get_inputs()] == [("left", ["batch", 4]), ("right", ["batch", 5])]
    assert [one.name for one in session.get_outputs()] == ["output.0", "output.1"]


@pytest.mark.parametrize(
    ("network", "given", "says"),
    [
        (torch.nn.Linear(4, 3), {}, "example_inputs= takes a tensor"),
        (torch.nn.Linear(4, 3), {"example_inputs": torch.randn(2, 5)}, "Linear doesn't take these example inputs"),
        (torch.nn.Linear(4, 3).bfloat16(), {"example_inputs": torch.randn(2, 4)}, r"give model\.float\(\)"),
        (torch.nn.Linear(4, 3), {"example_inputs": torch.randn(2, 4), "to": "gguf"}, "for checkpoints of language"),
    ],
)
def test_misuse_of_networks_in_memory_is_named(
    network: torch.nn.Module, given: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=says):
        secateur.export(network, output=tmp_path / "out", **{"to": "onnx", **given})
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Onnx, "writes_with", ("no_such_package",))
    with pytest.raises(UsageError, match=r"takes no_such_package: pip install 'secateur\[export\]'"):
        secateur.export(save_tiny("llama", tmp_path / "m"), output=tmp_path / "out", to="onnx")


def test_without_a_runtime_an_export_is_kept_and_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Onnx, "runs_with", ("no_such_package",))
    result = secateur.export(save_tiny("bert", tmp_path / "m"), output=tmp_path / "out", to="onnx")
    assert result.difference is None
    assert any("Nothing has run it yet" in note for note in result.notes)


def test_what_gives_other_outputs_is_kept_out_of_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = Onnx.outputs
    monkeypatch.setattr(Onnx, "outputs", lambda *given: [[one + 1 for one in some] for some in outputs(*given)])
    with pytest.raises(ExportError, match="model: the outputs differ from torch's by"):
        secateur.export(save_tiny("bert", tmp_path / "m"), output=tmp_path / "out", to="onnx")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.failed/model.onnx").is_file()
