"""Checkpoints and exports timed side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import secateur
from command_line import secateur as secateur_command
from secateur.benchmark.bench import rotated
from secateur.benchmark.runners import kind_of
from secateur.errors import UsageError
from secateur.memory import peak_memory
from tiny import save_tiny

FEW = {"repeats": 2, "prompt": 8, "tokens": 3, "batch": 2, "threads": 1}


def test_a_checkpoint_and_its_exports_are_timed_in_their_runtimes(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "m", tokenizer=True)
    for to in ("onnx", "openvino"):
        secateur.export(source, output=tmp_path / to, to=to)
    found = secateur.bench([source, tmp_path / "onnx", tmp_path / "openvino"], **FEW)
    assert [one.runtime for one in found.models] == ["torch", "onnxruntime", "openvino"]
    assert [one.dtype for one in found.models[:2]] == ["float32", None]
    assert found.models[2].dtype in ("float32", "bfloat16")  # as the processor has it
    torch_peak, *others = (one.peak for one in found.models)
    assert max(others) < 0.7 * torch_peak  # they haven't imported torch, nor inherit this process's peak
    for one in found.models:
        assert one.kind == "text"
        assert one.first > 0
        assert one.decode is not None
        assert one.decode > 0
        assert one.batch is not None
        assert one.peak > 20e6
        assert one.bytes > 0
        assert one.real_time is None


@pytest.mark.parametrize(("family", "kind"), [("bert", "encoder"), ("whisper", "sound")])
def test_what_reads_or_hears_is_timed_as_such(family: str, kind: str, tmp_path: Path) -> None:
    (one,) = secateur.bench([save_tiny(family, tmp_path / "m")], **FEW).models
    assert one.kind == kind
    assert (one.decode is None) == (kind == "encoder")
    assert (one.real_time is None) == (kind == "encoder")


def test_exports_of_a_model_that_hears_are_timed_beside_it(tmp_path: Path) -> None:
    source = save_tiny("whisper", tmp_path / "m")
    for to in ("onnx", "openvino"):
        secateur.export(source, output=tmp_path / to, to=to)
    found = secateur.bench([source, tmp_path / "onnx", tmp_path / "openvino"], **FEW)
    assert [(one.runtime, one.kind) for one in found.models] == [
        ("torch", "sound"), ("onnxruntime", "sound"), ("openvino", "sound"),
    ]  # fmt: skip
    assert all(one.real_time is not None and one.real_time > 0 for one in found.models)


def test_the_command_line_shows_a_table_and_writes_a_page(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("What is cut off is gone; what is left carries on. " * 80)
    models = [save_tiny("llama", tmp_path / name, tokenizer=True) for name in ("one", "two")]
    few = [part for name, value in FEW.items() for part in (f"--{name}", value)]
    page = tmp_path / "page.html"
    done = secateur_command("bench", *models, *few, "--text", tmp_path / "text.txt", "--report", page)
    assert done.code == 0, done.err
    assert "first token" in done.out
    assert "torch f32" in done.out
    assert max(map(len, done.out.splitlines())) <= 100
    assert "bench-front" in page.read_text()
    told = secateur_command("bench", models[0], *few, "--json")
    assert json.loads(told.out)["settings"]["tokens"] == 3


def test_what_runs_exports_takes_neither_torch_nor_transformers(tmp_path: Path) -> None:
    secateur.export(save_tiny("bert", tmp_path / "m"), output=tmp_path / "onnx", to="onnx")
    code = (
        "import sys\nfrom secateur.benchmark import worker\nfrom secateur.benchmark.runners import kind_of\n"
        f"runner = kind_of({str(tmp_path / 'onnx')!r}).runner()({str(tmp_path / 'onnx')!r}, 1)\n"
        "worker.answered(runner, {'batch': 1, 'length': 4, 'seed': 0, 'tokens': 0})\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_all_runtimes_read_the_same(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "m", tokenizer=True)
    secateur.export(source, output=tmp_path / "onnx", to="onnx")
    one, other = (kind_of(str(name)).runner()(str(name), 1) for name in (source, tmp_path / "onnx"))
    assert one.example(2, 7, 3).tolist() == other.example(2, 7, 3).tolist()
    assert one.example(2, 7, 3).tolist() != one.example(2, 7, 4).tolist()


def test_a_process_has_its_own_peak(tmp_path: Path) -> None:
    ballast = b"x" * 300_000_000
    code = "from secateur.memory import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < len(ballast) < peak_memory()


def test_rounds_begin_with_another_and_neighbours_change() -> None:
    orders = [tuple(rotated(["a", "b", "c"], number)) for number in range(6)]
    assert len(set(orders)) == 6  # all that there are


def test_misuse_is_named(tmp_path: Path) -> None:
    text, encoder = (save_tiny(family, tmp_path / family) for family in ("llama", "bert"))
    with pytest.raises(UsageError, match="models of one kind"):
        secateur.bench([text, encoder], **FEW)
    with pytest.raises(UsageError, match="needs a checkpoint"):
        secateur.bench([])
    secateur.export(encoder, output=tmp_path / "torch", to="torch")
    with pytest.raises(UsageError, match="isn't timed; time the checkpoint"):
        secateur.bench([tmp_path / "torch"], **FEW)
    done = secateur_command("bench", tmp_path / "nowhere")
    assert done.code != 0
    assert "no model at" in done.err
