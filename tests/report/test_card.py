"""Claims about the model card."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from report_records import NOT_FASTER, comparison, result, stage
from secateur.report.card import ZEROS_SAVE_NOTHING, model_card


def front_matter(card: str) -> dict[str, Any]:
    opening, matter, _ = card.split("---\n", 2)
    assert opening == ""
    parsed = yaml.safe_load(matter)
    assert isinstance(parsed, dict)
    return parsed


def block(card: str, language: str) -> str:
    """Returns the inside of the card's only code block in `language`."""
    found = re.findall(rf"^(`{{3,}}){language}\n(.*?)\n\1$", card, flags=re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return str(found[0][1])


def test_the_front_matter_is_yaml_with_the_library_and_the_tags() -> None:
    assert front_matter(model_card(result())) == {
        "library_name": "transformers",
        "tags": ["pruned", "secateur"],
    }


@pytest.mark.parametrize(
    ("source", "hub"),
    [
        ("HuggingFaceTB/SmolLM2-135M", True),
        ("demo:smollm2-135m", False),
        ("./models/small", False),
        ("/srv/models/small", False),
        ("a/b/c", False),
        ("models/small.gguf", False),
        ("gpt2", False),
        ("a: b/c\nlicense: mit", False),
    ],
)
def test_base_model_is_given_only_for_a_hub_id(source: str, hub: bool) -> None:
    matter = front_matter(model_card(result(about={"source": source, "architecture": "LlamaForCausalLM"})))
    assert matter.get("base_model") == (source if hub else None)


def test_a_folder_that_is_here_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in front_matter(model_card(result(about={"source": "models/small"})))


def test_the_recipe_reads_back_as_it_was() -> None:
    run = result()
    assert yaml.safe_load(block(model_card(run), "yaml")) == run.recipe


def test_tuples_in_a_recipe_are_written_as_lists() -> None:
    recipe = {"stages": [{"prune": {"pattern": "2:4", "exclude": ("*.down_proj",)}}]}
    read = yaml.safe_load(block(model_card(result(recipe=recipe)), "yaml"))
    assert read == {"stages": [{"prune": {"pattern": "2:4", "exclude": ["*.down_proj"]}}]}


def test_backticks_in_a_recipe_do_not_end_its_block() -> None:
    recipe = {"model": "x", "calibration": {"data": "a ``` b"}}
    assert yaml.safe_load(block(model_card(result(recipe=recipe)), "yaml")) == recipe


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("LlamaForCausalLM", "AutoModelForCausalLM"),
        ("GPT2LMHeadModel", "AutoModelForCausalLM"),
        ("BertForMaskedLM", "AutoModelForMaskedLM"),
        ("XLNetModel", "XLNetModel"),
    ],
)
def test_the_code_that_loads_it_is_python_with_the_right_class(architecture: str, name: str) -> None:
    run = result(about={"source": "x", "architecture": architecture}, output='out/"odd" name')
    code = block(model_card(run), "python")
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert {ast.unparse(call.func) for call in calls} == {
        f"{name}.from_pretrained",
        "AutoTokenizer.from_pretrained",
    }
    assert {ast.literal_eval(call.args[0]) for call in calls} == {'out/"odd" name'}


def test_the_table_has_as_many_cells_in_every_row() -> None:
    for measured in (comparison(), comparison("out/a|b", "out/c")):
        rows = [x for x in model_card(result(comparison=measured)).splitlines() if x.startswith("|")]
        assert len(rows) == 11
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_figures_that_do_not_exist_are_left_out() -> None:
    card = model_card(result(calibration=None, reload=None))
    assert "| perplexity | 23.23 | 31.87 | 1.37x |" in card
    assert "cosine" not in card
    assert "None" not in model_card(result(comparison=None, output=None, calibration=None))


def test_it_says_what_is_not_faster_measured_or_not() -> None:
    assert f"- {NOT_FASTER}" in model_card(result())
    assert ZEROS_SAVE_NOTHING in model_card(result(comparison=None))
    assert ZEROS_SAVE_NOTHING in model_card(result(comparison=comparison(notes=())))
    cut = stage(unit="layer", sparsity=None, remove=3)
    assert ZEROS_SAVE_NOTHING not in model_card(result(comparison=None, stages=(cut,)))


def test_every_stage_and_the_calibration_are_told() -> None:
    run = result(stages=(stage(), stage(errors=False, sparsity=None, pattern="2:4")), notes=("seen <b>",))
    card = model_card(run)
    assert "1. Zeroed 50 % of the weights" in card
    assert "2. Zeroed weights, in the 2:4 pattern, scored by l1" in card
    assert "64 windows of 512 tokens, 32,768 tokens in all; 8 windows were held out" in card
    assert "- seen &lt;b>" in card
