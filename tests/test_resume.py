"""A run that ends early goes on with --resume, and ends in the same bytes."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from secateur.calibration.activations import Activations, Storage
from secateur.errors import CalibrationError, ResumeError, SaveError, SecateurError
from secateur.journal import FILE, Journal, left_over, run_folder
from secateur.lock import only_run
from tiny import save_tiny, write_wavs

TEXT = "What is cut off is gone; what is left must carry on as if nothing had happened. " * 80
OPTIONS: dict[str, Any] = {"sparsity": 0.5, "samples": 6, "length": 16, "evaluate": False}


class Killed(BaseException):
    """As if the process had died: nothing of ours catches it."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "source", tokenizer=True)


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def result_of(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of what a run writes, less its report of times."""
    told = {"secateur.json", "report.html", "README.md"}
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in told}


def die_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """Has the run die in the middle of writing its state, at the `moment`th time."""
    commit: Callable[..., None] = Journal.commit
    count = 0

    def dying(self: Journal, position: int, state: dict[str, Any], hidden: list[Activations]) -> None:
        nonlocal count
        count += 1
        if count == moment:
            for one in hidden:
                one.save()
            raise Killed
        commit(self, position, state, hidden)

    # what a killed process can't do any more
    monkeypatch.setattr(Journal, "commit", dying)
    monkeypatch.setattr(Journal, "close", lambda self: None)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("moment", [2, 3])
@pytest.mark.parametrize(
    "extra",
    [
        {"solver": "sparsegpt"},
        {"allocation": "owl", "reconstruct": True},
        {"score": "l1"},
        {"score": "wanda", "include": ["*", "lm_head"], "activation_memory": "1kB"},
        {"score": "random", "solver": "swap+refit"},
    ],
    ids=str,
)
def test_a_run_that_died_ends_in_the_same_bytes(
    extra: dict[str, Any], moment: int, stream: bool, source: Path, text: str, tmp_path: Path
) -> None:
    options = {**OPTIONS, **extra, "calibration": text, "stream": stream}
    out = tmp_path / "out"
    secateur.prune(source, output=out, **options)
    expected = result_of(out)
    shutil.rmtree(out)
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, moment)
        with pytest.raises(Killed):
            secateur.prune(source, output=out, **options)
    assert not out.exists()
    assert json.loads((run_folder(out) / FILE).read_text())["position"] == moment - 2
    resumed = secateur.prune(source, output=out, resume=True, **options)
    assert result_of(out) == expected
    assert not run_folder(out).exists()
    assert len(resumed.stages[0].layers) == len({layer.name for layer in resumed.stages[0].layers})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_run_on_experts_that_died_ends_in_the_same_bytes(
    family: str, stream: bool, text: str, tmp_path: Path
) -> None:
    source = save_tiny(family, tmp_path / "source", tokenizer=True)
    test_a_run_that_died_ends_in_the_same_bytes({"reconstruct": True}, 3, stream, source, text, tmp_path)


@pytest.mark.parametrize("moment", [3, 4, 5])  # in the encoder, before the decoder, and in it
@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("t5", {"solver": "sparsegpt"}),
        ("t5", {"reconstruct": True, "activation_memory": "1kB"}),
        ("whisper", {"solver": "sparsegpt"}),
    ],
    ids=str,
)
def test_an_encoder_decoder_that_died_ends_in_the_same_bytes(
    family: str, extra: dict[str, Any], moment: int, text: str, tmp_path: Path
) -> None:
    source = save_tiny(family, tmp_path / family, tokenizer=True)
    data = str(write_wavs(tmp_path / "sounds", 3)) if family == "whisper" else text
    options, out = {**OPTIONS, **extra, "calibration": data}, tmp_path / "out"
    secateur.prune(source, output=out, **options)
    expected = result_of(out)
    shutil.rmtree(out)
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, moment)
        with pytest.raises(Killed):
            secateur.prune(source, output=out, **options)
    assert json.loads((run_folder(out) / FILE).read_text())["position"] == moment - 2
    secateur.prune(source, output=out, resume=True, **options)
    assert result_of(out) == expected
    assert not run_folder(out).exists()


def test_two_stages_resume_in_the_second(source: Path, text: str, tmp_path: Path) -> None:
    def recipe(out: Path, stream: bool) -> secateur.Recipe:
        return secateur.Recipe.build(
            {
                "model": str(source),
                "output": str(out),
                "stream": stream,
                "calibration": {"data": text, "samples": 6, "length": 16},
                "stages": [{"prune": {"sparsity": 0.3}}, {"prune": {"sparsity": 0.5, "solver": "sparsegpt"}}],
                "evaluate": None,
            }
        )

    for stream in (False, True):
        out = tmp_path / f"out-{stream}"
        secateur.run_recipe(recipe(out, stream))
        expected = result_of(out)
        shutil.rmtree(out)
        for moment in (4, 5, 6):
            with pytest.MonkeyPatch.context() as patch:
                die_at(patch, moment)
                with pytest.raises(Killed):
                    secateur.run_recipe(recipe(out, stream))
            done = secateur.run_recipe(recipe(out, stream), resume=True)
            assert result_of(out) == expected
            assert len(done.stages) == 2
            shutil.rmtree(out)


def test_nothing_to_resume_starts_afresh(source: Path, text: str, tmp_path: Path) -> None:
    secateur.prune(source, output=tmp_path / "out", calibration=text, resume=True, **OPTIONS)
    assert (tmp_path / "out/config.json").is_file()


def interrupted(source: Path, text: str, out: Path, **options: Any) -> None:
    """Leaves a run that died after its first block."""
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, 3)
        with pytest.raises(Killed):
            secateur.prune(source, output=out, calibration=text, **{**OPTIONS, **options})


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, OSError])
def test_what_a_run_can_go_on_after_keeps_its_blocks(
    kind: type[BaseException], source: Path, text: str, tmp_path: Path
) -> None:
    """SystemExit is what a progress bar raises on a closed pipe."""
    out, commit, count = tmp_path / "out", Journal.commit, 0
    secateur.prune(source, output=out, calibration=text, **OPTIONS)
    expected = result_of(out)
    shutil.rmtree(out)

    def ending(self: Journal, *given: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise kind
        commit(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "commit", ending)
        with pytest.raises((kind, SecateurError)):
            secateur.prune(source, output=out, calibration=text, **OPTIONS)
    assert json.loads((run_folder(out) / FILE).read_text())["position"] == 1
    secateur.prune(source, output=out, calibration=text, resume=True, **OPTIONS)
    assert result_of(out) == expected


def test_a_finished_run_is_named(source: Path, text: str, tmp_path: Path) -> None:
    secateur.prune(source, output=tmp_path / "out", calibration=text, **OPTIONS)
    with pytest.raises(ResumeError, match="is finished"):
        secateur.prune(source, output=tmp_path / "out", calibration=text, resume=True, **OPTIONS)


def test_a_changed_recipe_or_model_or_text_is_refused(source: Path, text: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted(source, text, out)
    with pytest.raises(ResumeError, match=r"recipe.stages.0.prune.sparsity was 0.5 and is 0.6"):
        secateur.prune(source, output=out, calibration=text, resume=True, **{**OPTIONS, "sparsity": 0.6})
    Path(text).write_text(TEXT.upper())
    with pytest.raises(ResumeError, match="calibration tokens"):
        secateur.prune(source, output=out, calibration=text, resume=True, **OPTIONS)
    Path(text).write_text(TEXT)
    os.utime(source / "model.safetensors", (1, 1))
    with pytest.raises(ResumeError, match=r"model.model.safetensors"):
        secateur.prune(source, output=out, calibration=text, resume=True, **OPTIONS)
    assert run_folder(out).exists()  # the right command can still go on
    with pytest.raises(ResumeError, match=r"of an earlier run, 1 of its blocks.*--resume goes on"):
        secateur.prune(source, output=out, calibration=text, **OPTIONS)
    assert run_folder(out).exists()
    secateur.prune(source, output=out, calibration=text, overwrite=True, **OPTIONS)  # anew
    assert not run_folder(out).exists()


def test_a_run_that_goes_on_with_other_threads_says_so(source: Path, text: str, tmp_path: Path) -> None:
    out, threads = tmp_path / "out", torch.get_num_threads()
    interrupted(source, text, out)
    try:
        torch.set_num_threads(threads + 1)
        result = secateur.prune(source, output=out, calibration=text, resume=True, **OPTIONS)
    finally:
        torch.set_num_threads(threads)
    assert any(f"by {threads} and {threads + 1} threads in turn" in note for note in result.notes)


def test_while_a_run_writes_an_output_another_is_refused(source: Path, text: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with only_run(out):
        refused = subprocess.run(command(source, out, text, "-q"), capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "another run is writing" in refused.stderr
    assert not out.parent.exists()  # neither run left anything
    secateur.prune(source, output=out, calibration=text, **OPTIONS)
    assert {path.name for path in out.parent.iterdir()} == {"out"}


def test_what_took_the_place_of_an_output_meanwhile_stays(
    source: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, finish = tmp_path / "out", Journal.finish_stage

    def taken(self: Journal, report: Any) -> None:
        finish(self, report)
        out.mkdir()
        (out / "mine").touch()

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish_stage", taken)
        with pytest.raises(SaveError, match=r"when the run was done, the output .* exists"):
            secateur.prune(source, output=out, calibration=text, **OPTIONS)
    assert (out / "mine").is_file()
    shutil.rmtree(out)
    secateur.prune(source, output=out, calibration=text, resume=True, **OPTIONS)  # nothing is lost
    assert (out / "config.json").is_file()


def test_an_activation_file_of_another_run_is_refused(source: Path, text: str, tmp_path: Path) -> None:
    interrupted(source, text, tmp_path / "one")
    interrupted(source, text, tmp_path / "two")
    for path in run_folder(tmp_path / "one").glob("hidden-*/*"):
        shutil.copy(path, run_folder(tmp_path / "two") / path.relative_to(run_folder(tmp_path / "one")))
    with pytest.raises(CalibrationError, match="another run"):
        secateur.prune(source, output=tmp_path / "two", calibration=text, resume=True, **OPTIONS)


@pytest.mark.parametrize("name", ["journal.json", "stage-0/0.safetensors"])
def test_damaged_state_is_an_error(name: str, source: Path, text: str, tmp_path: Path) -> None:
    interrupted(source, text, tmp_path / "out")
    path = run_folder(tmp_path / "out") / name
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(SecateurError, match=name.rpartition("/")[2]):
        secateur.prune(source, output=tmp_path / "out", calibration=text, resume=True, **OPTIONS)


def test_what_is_left_is_said(source: Path, text: str, tmp_path: Path) -> None:
    assert left_over(tmp_path / "out") is None
    interrupted(source, text, tmp_path / "out")
    said = left_over(tmp_path / "out")
    assert said is not None
    assert "1 of its blocks" in said
    assert "--resume" in said


def test_activations_come_back_from_files(tmp_path: Path) -> None:
    for limit in (0, 1 << 20):
        one = Activations("hidden", Storage(tmp_path, limit, "run"), 1000)
        tensors = [torch.randn(2, 3, dtype=torch.bfloat16) for _ in range(3)]
        for tensor in tensors:
            one.append(tensor)
        for batch, tensor in enumerate(tensors):
            one.put(batch, tensor + 1)
        one.advance()
        one.save()
        one.forget()
        two = Activations("hidden", Storage(tmp_path, limit, "run"), 1000)
        two.restore(1, 3)
        assert all(torch.equal(a, b + 1) for a, b in zip(two, tensors, strict=True))
        with pytest.raises(CalibrationError, match="can't be read"):
            two.restore(0, 3)
        two.close()
        assert list(tmp_path.glob("hidden-*")) == []


def command(source: Path, out: Path, text: str, *more: str) -> list[str]:
    options = ["--sparsity", "0.5", "--samples", "6", "--length", "16", "--calibration", text, "--no-evaluate"]
    return [sys.executable, "-m", "secateur", "prune", str(source), "-o", str(out), *options, *more]


def test_a_disk_that_fills_up_in_a_stream_can_go_on(source: Path, text: str, tmp_path: Path) -> None:
    """Files may not grow past the size of a block: the rest, with the embedding, is larger."""
    out = tmp_path / "work" / "out"
    out.parent.mkdir()
    whole = tmp_path / "whole"
    secateur.prune(source, output=whole, calibration=text, stream=True, **OPTIONS)
    sizes = [path.stat().st_size for path in sorted(whole.glob("*.safetensors"))]
    limit = max(sizes) - 1
    assert min(sizes) < limit
    done = subprocess.run(
        command(source, out, text, "--stream"),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
    again = subprocess.run(
        command(source, out, text, "--stream", "--resume"), capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert {path.name: path.read_bytes() for path in out.glob("*.safetensors")} == {
        path.name: path.read_bytes() for path in whole.glob("*.safetensors")
    }


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_random_kills_end_in_the_same_bytes(stream: str, text: str, tmp_path: Path) -> None:
    """kill -9 at random moments until the run is through; ten times for each way."""
    source = save_tiny("llama", tmp_path / "model", tokenizer=True)
    out = tmp_path / "out"
    subprocess.run(command(source, out, text, stream), check=True, capture_output=True)
    expected = result_of(out)
    chance = random.Random(stream)
    kills = 0
    for _ in range(10):
        shutil.rmtree(out)
        running = subprocess.Popen(command(source, out, text, stream), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(20):
            time.sleep(chance.uniform(2.0, 9.0))
            if running.poll() is not None:
                break
            running.send_signal(signal.SIGKILL)
            running.wait()
            kills += 1
            running = subprocess.Popen(
                command(source, out, text, stream, "--resume"), stderr=subprocess.PIPE, stdout=subprocess.PIPE
            )
        _, error = running.communicate()
        finished = b"is finished: there is nothing to resume" in error  # killed between its last step and its end
        assert running.returncode == 0 or finished, error.decode()
        assert result_of(out) == expected
    assert kills >= 10
