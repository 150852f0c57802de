"""Bad input gets one line that says what, where and what to do, an exit code, and leaves nothing behind."""

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur import cli
from tiny import save_tiny

Call = Callable[..., tuple[int, str]]
QUICK = ["--samples", "4", "--length", "16", "--no-evaluate", "--quiet"]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Runs the command line in this process; gives the exit code and what went to the error stream."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["secateur", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0), capsys.readouterr().err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama", tokenizer=True)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--sparsity", "1.5"], 2, ["--sparsity", "between 0 and 1"]),
        (["--sparsity", "0"], 2, ["--sparsity", "between 0 and 1"]),
        (["--sparsity", "0.5", "--threshold", "0.1"], 2, ["exactly one", "--sparsity", "--threshold"]),
        ([], 2, ["exactly one"]),
        (["--sparsity", "0.5", "--solver", "sparsgpt"], 2, ["Did you mean 'sparsegpt'"]),
        (["--sparsity", "0.5", "--score", "wnda"], 2, ["Did you mean 'wanda'"]),
        (["--sparsity", "0.5", "--score", "variance"], 1, ["variance", "single weight"]),
        (["--pattern", "3:5"], 2, ["3:5", "self_attn.q_proj", "--exclude"]),
        (["--pattern", "4:2"], 2, ["0 < N < M"]),
        (["--threshold", "often"], 2, ["--threshold", "often"]),
        (["--sparsity", "0.5", "--include", "*.nothing"], 2, ["*.nothing", "matches no layer"]),
        (["--sparsity", "0.5", "--calibration", "missing.txt"], 1, ["missing.txt", "no file"]),
        (["--sparsity", "0.5", "--length", "100000"], 2, ["100000", "positions"]),
        (["--threshold", "0", "--score", "l1"], 1, ["nothing was pruned"]),
        (["--sparsity", "0.5", "--device", "tpu"], 2, ["device"]),
        (["--sparsity", "0.5", "--dtype", "int8"], 2, ["dtype"]),
    ],
)
def test_misuse_is_one_line_and_leaves_nothing(
    options: list[str], code: int, words: list[str], llama: Path, tmp_path: Path, call: Call
) -> None:
    quick = ["--no-evaluate", "--quiet", "--samples", "4"] if "--length" in options else QUICK
    found, error = call("prune", llama, "-o", tmp_path / "out", *options, *quick)
    assert found == code, error
    assert error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1
    assert all(word in error for word in words), error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("empty.txt", "", ["empty"]),
        ("short.txt", "a few words", ["fewer than one window"]),
        ("broken.jsonl", '{"text": "x"}\n{"text', ["broken.jsonl:2", "JSON"]),
        ("other.jsonl", '{"body": "x"}', ["other.jsonl:1", "'text'", "'input_ids'"]),
    ],
)
def test_a_bad_text_is_named(name: str, text: str, words: list[str], llama: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / name).write_text(text)
    options = ["--sparsity", "0.5", "--calibration", tmp_path / name, "--samples", "4", "--no-evaluate", "--quiet"]
    code, error = call("prune", llama, "-o", tmp_path / "out", *options, "--length", "24")
    assert code == 1, error
    assert all(word in error for word in words), error
    assert not (tmp_path / "out").exists()


def test_a_truncated_shard_is_corrupt(llama: Path, tmp_path: Path, call: Call) -> None:
    model = save_tiny("llama", tmp_path / "model")
    shard = model / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:1000])
    code, error = call("prune", model, "-o", tmp_path / "out", "--sparsity", "0.5", "--score", "l1", *QUICK)
    assert code == 1
    assert "model.safetensors is corrupt" in error
    assert not (tmp_path / "out").exists()
    code, error = call("prune", model, "-o", tmp_path / "out", "--sparsity", "0.5", "--calibration", tmp_path / "text")
    assert code == 1
    assert f"no file '{tmp_path / 'text'}'" in error  # before the model is read


def test_nan_weights_are_named(tmp_path: Path, call: Call) -> None:
    model = save_tiny("llama", tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = torch.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    code, error = call("prune", model, "-o", tmp_path / "out", "--sparsity", "0.5", "--score", "l1", *QUICK)
    assert code == 1
    assert "model.layers.1.mlp.up_proj.weight" in error
    assert "NaN" in error


def test_a_pickle_a_foreign_code_and_an_unknown_architecture_are_refused(tmp_path: Path, call: Call) -> None:
    model = save_tiny("llama", tmp_path / "model")
    options = ["-o", tmp_path / "out", "--sparsity", "0.5", "--score", "l1", *QUICK]
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "evil.Config"}}))
    assert "--trust-remote-code" in call("prune", model, *options)[1]
    (model / "config.json").write_text(json.dumps(config | {"model_type": "lama"}))
    assert "llama" in call("prune", model, *options)[1]
    (model / "config.json").write_text(json.dumps(config))
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    code, error = call("prune", model, *options)
    assert code == 1
    assert "pytorch_model.bin is a pickle" in error


def test_an_existing_output_is_kept_unless_told_otherwise(llama: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    options = ["-o", tmp_path / "out", "--sparsity", "0.5", "--score", "l1", *QUICK]
    assert "--overwrite" in call("prune", llama, *options)[1]
    assert "wasn't written by secateur" in call("prune", llama, *options, "--overwrite")[1]
    assert (tmp_path / "out" / "precious").read_text() == "mine"


def test_a_missing_model_names_what_is_known(call: Call, tmp_path: Path) -> None:
    code, error = call("prune", tmp_path / "nowhere", "-o", tmp_path / "out", "--sparsity", "0.5", *QUICK)
    assert code == 1
    assert "nowhere" in error
    assert "demo:smollm2-135m" in error
    assert call("inspect", "demo:smolm2-135m")[1].count("Did you mean 'smollm2-135m'") == 1


def prune_command(model: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "secateur", "prune", str(model), "-o", str(out), "--sparsity", "0.5", *QUICK]


def test_a_disk_that_fills_up_leaves_nothing(llama: Path, tmp_path: Path) -> None:
    """No file may grow past 20 kB in the child: writing the weights fails as on a full disk."""
    folder = tmp_path / "work"
    folder.mkdir()
    done = subprocess.run(
        prune_command(llama, folder / "out"),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("delay", [0.7, 3.0, 5.0])
def test_an_interrupt_leaves_nothing_half_written(delay: float, llama: Path, tmp_path: Path) -> None:
    """Whenever it comes: either all is done, or nothing is there."""
    running = subprocess.Popen(prune_command(llama, tmp_path / "out"), stderr=subprocess.PIPE, text=True)
    time.sleep(delay)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=120)
    assert running.returncode in (0, 130), error
    assert "Traceback" not in error
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"out"} if running.returncode == 0 else left <= {".out.run"}  # which --resume goes on from
