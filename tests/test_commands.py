"""Every command that README and docs show is carried out, on tiny models and with fewer windows."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from command_line import secateur
from secateur.automl.choices import has_choices
from secateur.recipe import Recipe
from secateur.recipe.choosing import Choosing
from test_docs import ROOT, code_blocks
from tiny import SENTENCE, save_tiny, write_wavs
from tiny_vision import draw, save_classifier
from trained_tokenizers import TEXT as PROSE
from trained_tokenizers import loaded

PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
ELSEWHERE = {  # carried out by other tests
    "torchrun": "test_processes",
    "secateur run examples/": "test_examples",
    "--task": "evaluation/test_tasks",
}
FEWER = {
    "--samples": "4",
    "--length": "32",
    "--windows": "2",
    "--seconds": "4",
    "--trials": "6",
    "--tokens": "64",
    "--remove": "1",
}
TAKES = {
    "prune": ("--samples", "--length"),
    "search": ("--samples", "--length", "--trials", "--tokens"),
    "evaluate": ("--windows", "--length"),
    "compare": ("--windows", "--length"),
}
COMMAND = re.compile(r"^ {4}((?:torchrun .*-m )?secateur [a-z].*?)(?:\s{2,}#.*)?$")


def commands(page: str) -> Iterator[str]:
    """Yields the commands of a page in their order."""
    for block in code_blocks((ROOT / page).read_text()):
        for line in block.splitlines():
            if (found := COMMAND.match(line)) and not any(mark in line for mark in ELSEWHERE):
                yield found[1]


def prepared(place: Path, page: str) -> dict[str, str]:
    """Makes what the commands of a page speak of; returns what stands for the names in capitals."""
    dense = place / "dense"
    config = AutoConfig.from_pretrained(save_tiny("llama", place / "tiny"))
    config.vocab_size, config.intermediate_size = len(loaded("gpt2", dense)), 96
    AutoModelForCausalLM.from_config(config).save_pretrained(dense)
    for name in ("texts.jsonl", "wiki.test.raw", "held_out.txt", "dev.tsv"):
        text = (PROSE + SENTENCE) * 12
        if name.endswith("jsonl"):
            text = "".join(f'{{"text": "{SENTENCE * 8}"}}\n' for _ in range(12))
        if name.endswith("tsv"):
            text = "sentence\tlabel\n" + "".join(f"{SENTENCE}\t{n % 2}\n" for n in range(12))
        (place / name).write_text(text)
    names = {"MODEL": "dense", "demo:smollm2-135m": "dense"}
    shown = (ROOT / page).read_text()
    if "WHISPER" in shown:
        names["WHISPER"] = str(save_tiny("whisper", place / "whisper", tokenizer=True))
        write_wavs(place / "wavs", 6)
        shutil.copytree(place / "wavs", place / "recordings")
        (place / "recordings/000.txt").write_text("nothing")
    if "images train/" in shown:
        names["RESNET"] = str(save_classifier("resnet", place / "resnet"))
        draw(place / "train", 4)
        draw(place / "val", 2)
    if "out/small" in shown:
        made = {"half": ["--sparsity", "0.5", "--score", "l1"], "small": ["--unit", "neuron", "--remove", "8"]}
        for out, options in made.items():
            calibration = ["--calibration", "wiki.test.raw", "--samples", "4", "--length", "32", "--no-evaluate"]
            assert secateur("prune", "dense", "-o", f"out/{out}", *options, *calibration).code == 0
    if "CLASSIFIER" in shown:
        bert = save_tiny("bert", place / "bert", tokenizer=True)
        model = AutoModelForSequenceClassification.from_pretrained(bert)
        model.save_pretrained(bert)
        names["CLASSIFIER"] = str(bert)
        shutil.copytree(bert, place / "out/smaller")
        shutil.copytree(place / "whisper", place / "out/whisper")
    return names


def rewritten(command: str, names: dict[str, str]) -> list[str]:
    """Returns a command's words with the names replaced and with fewer windows."""
    words = [names.get(word, word) for word in shlex.split(command)[1:]]
    for place, word in enumerate(words[:-1]):
        words[place + 1] = FEWER.get(word, words[place + 1])
    audible = names.get("WHISPER") in words or "--images" in words
    more = [] if audible else [one for one in TAKES.get(words[0], ()) if one not in words]
    if "dev.tsv" in words:  # a table is read whole
        more = [one for one in more if one != "--windows"]
    if find_spec("llama_cpp") is None and words[0] == "bench":
        words = [word for word in words if not word.endswith("-gguf")]
    return [*words, *(part for one in more for part in (one, FEWER[one]))]


@pytest.mark.parametrize("page", [page for page in PAGES if next(commands(page), None)])
def test_the_commands_of_a_page_do_what_they_should(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = prepared(tmp_path, page)
    count = 0
    for command in commands(page):
        words = rewritten(command, names)
        if "-o" in words:
            shutil.rmtree(words[words.index("-o") + 1], ignore_errors=True)
        done = secateur(*words)
        assert done.code == 0, f"{command}\n{shlex.join(words)}\n{done.err}"
        assert done.out.strip()
        count += 1
    assert count


def recipes() -> Iterator[tuple[str, str]]:
    """Yields what docs show of recipes, with the page's name."""
    for page in PAGES:
        for block in re.findall(r"^```yaml\n([^`]*)^```$", (ROOT / page).read_text(), re.MULTILINE):
            yield page, block


@pytest.mark.parametrize(("page", "block"), list(recipes()))
def test_a_recipe_that_is_shown_is_one(page: str, block: str) -> None:
    shown = yaml.safe_load(block)
    assert isinstance(shown, dict), page
    data = {"model": "dense", "output": "out", **shown}
    if "stages" not in data:
        data["stages"] = [{"prune": {"sparsity": 0.7}}]
    if has_choices({name: value for name, value in data.items() if name != "search"}):
        Choosing.build(data.pop("search", {}))
        assert data["stages"]
    else:
        assert Recipe.build(data).steps
