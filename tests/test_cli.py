"""The command line, as a user meets it: what it prints, what it writes, what it exits with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from command_line import Outcome, secateur
from secateur import cli
from secateur.errors import UsageError
from tiny import save_tiny
from zeros import counted

COMMANDS = sorted(get_command(cli.app).commands)
WIDEST = 100
TINY_CALIBRATION = ["--samples", "4", "--length", "16"]
HALF = ["--sparsity", "0.5", *TINY_CALIBRATION]
LAYERS, LINEAR_WEIGHTS = 14, 14_592  # of the tiny llama's blocks


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama", tokenizer=True)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "story.txt"
    path.write_text("Once upon a time a gardener went out with the secateurs. " * 40)
    return path


@pytest.fixture(scope="module")
def half(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The tiny llama, pruned to a half on text that it wrote, with an evaluation; and what was printed."""
    out = tmp_path_factory.mktemp("out") / "half"
    done = secateur("prune", llama, "-o", out, *HALF)
    assert done.code == 0, done.err
    return out, done


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_an_example_that_the_command_understands(command: str) -> None:
    done = secateur(command, "--help")
    assert done.code == 0
    examples = re.findall(rf"secateur {command} (.+)", done.out[done.out.index("Example") :])
    assert examples
    options = {name for option in get_command(cli.app).commands[command].params for name in option.opts}
    for example in examples:
        assert {word for word in example.split() if word.startswith("-")} <= options


def test_without_arguments_the_help_lists_every_command() -> None:
    done = secateur()
    assert done.code == 2
    assert done.err == ""
    assert all(f" {command} " in done.out for command in COMMANDS)


def test_seed_is_on_every_command() -> None:
    for command in get_command(cli.app).commands.values():
        assert "--seed" in {name for option in command.params for name in option.opts}


# Prune


def test_prune_writes_what_it_says(half: tuple[Path, Outcome]) -> None:
    out, done = half
    assert all(line.endswith(" ...") for line in done.err.splitlines())  # what begins, where bars aren't shown
    assert f"checkpoint: {out}" in done.out
    assert f"report:     {out / 'report.html'}" in done.out
    assert "perplexity" in done.out
    tensors = counted(out)
    pruned = {name: found for name, found in tensors.items() if "_proj" in name}
    assert len(pruned) == LAYERS
    assert all(2 * found["zeros"] == found["size"] for found in pruned.values())
    assert all(found["zeros"] == 0 for name, found in tensors.items() if name not in pruned)


def test_text_output_is_never_wider_than_a_hundred_columns(half: tuple[Path, Outcome], llama: Path, text: Path) -> None:
    out, done = half
    measured = ["--text", text, "--length", 16, "--windows", 2]
    outputs = [
        done.out,
        secateur("inspect", llama).out,
        secateur("inspect", llama, "--layers").out,
        secateur("evaluate", out, *measured).out,
        secateur("compare", llama, out, *measured).out,
        secateur("compare", llama, out, llama, *measured, "--no-speed").out,
    ]
    for output in outputs:
        lines = [line for line in output.splitlines() if str(out) not in line and str(llama) not in line]
        assert len(lines) > 3
        assert max(map(len, lines)) <= WIDEST


def test_prune_as_json_is_what_secateur_json_holds(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = secateur("prune", llama, "-o", out, "--pattern", "2:4", "--score", "l1", "--no-evaluate", "--json")
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    assert printed == json.loads((out / "secateur.json").read_text())
    assert printed["output"] == str(out)
    assert printed["recipe"]["stages"] == [printed["stages"][0]["stage"]]
    assert printed["stages"][0]["stage"]["prune"]["pattern"] == "2:4"
    assert printed["stages"][0]["stage"]["prune"]["solver"] == "none"
    assert len(printed["stages"][0]["layers"]) == LAYERS
    assert sum(layer["zeros"] for layer in printed["stages"][0]["layers"]) == LINEAR_WEIGHTS // 2
    assert printed["calibration"] is None
    assert printed["comparison"] is None
    assert printed["reload"] == 0
    assert printed["versions"].keys() >= {"secateur", "torch", "transformers", "python"}


# The other commands


def test_inspect_shows_the_structure(half: tuple[Path, Outcome]) -> None:
    out, _ = half
    done = secateur("inspect", out, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["architecture"] == "LlamaForCausalLM"
    assert found["family"] == "llama"
    assert found["dtype"] == "float32"
    assert found["blocks"] == 2
    assert found["tokenizer"]
    assert found["generates"]
    assert len(found["layers"]) == LAYERS
    assert all(2 * layer["zeros"] == layer["outputs"] * layer["inputs"] for layer in found["layers"])
    text = secateur("inspect", out).out
    assert "model.layers.*.mlp.down_proj" in text
    assert "model.layers.1.mlp.down_proj" in secateur("inspect", out, "--layers").out


def test_evaluate_measures_one_model(half: tuple[Path, Outcome], text: Path) -> None:
    out, _ = half
    done = secateur("evaluate", out, "--text", text, "--windows", 3, "--length", 16, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["name"] == str(out)
    assert found["windows"] == 3
    assert found["tokens"] == 3 * 15
    assert found["perplexity"] > 1
    assert found["bits_per_byte"] > 0
    assert found["kl"] is None
    assert found["zeros"] == LINEAR_WEIGHTS // 2
    assert found["weights"] == LINEAR_WEIGHTS
    assert found["bytes_on_disk"] == (out / "model.safetensors").stat().st_size
    assert found["prefill"] > 0
    assert found["decode"] > 0
    assert isinstance(found["sample"], str)


def test_compare_holds_the_others_to_the_first(half: tuple[Path, Outcome], llama: Path, tmp_path: Path) -> None:
    out, _ = half
    page = tmp_path / "page.html"
    done = secateur("compare", llama, out, "--windows", 2, "--length", 16, "--no-speed", "--json", "--report", page)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["dense"]["name"] == str(llama)
    assert found["dense"]["kl"] is None
    (other,) = found["others"]
    assert other["name"] == str(out)
    assert other["kl"] > 0
    assert 0 <= other["top1_agreement"] <= 1
    assert other["prefill"] is None
    assert "<html" in page.read_text()


# The same run, said in other ways


def test_flags_a_recipe_and_a_process_of_its_own_write_the_same_bytes(
    half: tuple[Path, Outcome], llama: Path, tmp_path: Path
) -> None:
    out, _ = half
    weights = (out / "model.safetensors").read_bytes()
    recipe = {
        "model": str(llama),
        "calibration": {"data": "self", "samples": 4, "length": 16},
        "stages": [{"prune": {"sparsity": 0.5}}],
        "evaluate": {"speed": False},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = secateur("run", tmp_path / "recipe.yaml", "-o", tmp_path / "by_recipe")
    assert done.code == 0, done.err
    assert (tmp_path / "by_recipe" / "model.safetensors").read_bytes() == weights

    command = [sys.executable, "-m", "secateur", "prune", str(llama), "-o", str(tmp_path / "by_process"), *HALF]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert run.returncode == 0, run.stderr
    assert all(line.endswith(" ...") for line in run.stderr.splitlines())
    assert (tmp_path / "by_process" / "model.safetensors").read_bytes() == weights


def test_the_recipe_in_the_result_is_a_recipe_again(half: tuple[Path, Outcome], tmp_path: Path) -> None:
    out, _ = half
    recipe: dict[str, Any] = json.loads((out / "secateur.json").read_text())["recipe"]
    recipe["calibration"]["data"] = "missing.txt"
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe))
    done = secateur("run", tmp_path / "again.yaml", "-o", tmp_path / "again")
    assert done.code == 1  # it got as far as the text that isn't there
    assert "no file 'missing.txt'" in done.err


def test_the_seed_on_the_command_line_wins_over_the_recipes(tmp_path: Path) -> None:
    model = save_tiny("opt", tmp_path / "opt")
    stage = {"prune": {"sparsity": 0.5, "score": "random"}}
    recipe = {"model": str(model), "output": str(tmp_path / "out"), "seed": 3, "evaluate": None, "stages": [stage]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = secateur("run", tmp_path / "recipe.yaml", "--seed", 4, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["recipe"]["seed"] == 4


# Errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prunee"], ["No such command 'prunee'", "'prune'", "secateur --help"]),
        (["inspect"], ["Missing argument", "secateur inspect --help"]),
        (["prune", "model", "--sparsity", "0.5"], ["Missing option", "--output"]),
        (["prune", "model", "-o", "out", "--sparsity", "half"], ["--sparsity", "number"]),
        (["prune", "model", "-o", "out", "--sparsty", "0.5"], ["No such option", "--sparsty", "--sparsity"]),
        (["prune", "model", "-o", "out", "--seed", "-1"], ["--seed", "greater than or equal to 0"]),
        (["evaluate", "model"], ["--text", "--images"]),
        (["compare", "model"], ["two models", "secateur evaluate"]),
        (["prune", "model", "-o", "out", "--evaluate", "a", "--no-evaluate"], ["not both"]),
    ],
)
def test_what_the_parser_refuses_is_one_line_too(arguments: list[str], words: list[str]) -> None:
    done = secateur(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert all(word in done.err for word in words), done.err


def test_debug_shows_where_an_error_came_from(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        secateur("prune", llama, "-o", tmp_path / "out", "--sparsity", "2", "--debug")


def test_a_bug_of_ours_is_one_line_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def hook_after_main(*arguments: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["secateur", *arguments])
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
        monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
        handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
        with pytest.raises(SystemExit):
            cli.main()
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
        capsys.readouterr()
        return sys.excepthook

    hook = hook_after_main("inspect", "--help")
    hook(ZeroDivisionError, ZeroDivisionError("division\nby zero"), None)
    error = capsys.readouterr().err
    assert error.startswith("error: unexpected ZeroDivisionError: division by zero.")
    assert error.count("\n") == 1
    assert "--debug" in error
    assert hook_after_main("inspect", "--help", "--debug") is sys.__excepthook__
