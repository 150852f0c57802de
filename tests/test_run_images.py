"""Image classifiers from the command line: pruned, measured, saved, loaded again, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

import secateur as library
from command_line import Outcome, secateur
from secateur.errors import UsageError
from secateur.recipe import Recipe
from tiny import save_tiny
from tiny_vision import BY_NAME, draw, noise, save_classifier

EACH = 4  # images of every colour


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds checkpoints `resnet` and `vit`, images `classes` (by class) and `flat`."""
    place = tmp_path_factory.mktemp("images")
    for name in ("resnet", "vit"):
        save_classifier(name, place / name)
    draw(place / "classes", EACH, BY_NAME)
    draw(place / "flat", EACH)
    return place


@pytest.fixture(scope="module")
def narrow(place: Path) -> Outcome:
    """The ResNet, pruned into `narrow`: a third of the filters of every layer, measured on a folder of classes."""
    images = ("--images", place / "flat", "--evaluate", place / "classes")
    done = secateur("prune", place / "resnet", "-o", place / "narrow", "--unit", "filter", "--sparsity", 0.25, *images)
    assert done.code == 0, done.err
    return done


@pytest.fixture(scope="module")
def ragged(place: Path) -> dict[str, Any]:
    """What a recipe of two stages prints of the ViT, whose layers come out in widths of their own, into `ragged`."""
    recipe = {
        "model": str(place / "vit"),
        "calibration": {"images": str(place / "classes"), "samples": 6},
        "stages": [
            {"prune": {"unit": "neuron", "params": 0.95, "score": "taylor", "repair": False}},
            {"prune": {"unit": "neuron", "params": 0.9, "allocation": "global", "score": "wanda"}},
        ],
        "output": str(place / "ragged"),
    }
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = secateur("run", place / "recipe.yaml", "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


REPORTS = {"README.md", "report.html", "secateur.json"}
CHECKPOINT = {"config.json", "model.safetensors", "preprocessor_config.json"}


def test_a_resnet_of_even_widths_is_a_plain_checkpoint(place: Path, narrow: Outcome) -> None:
    assert files(place / "narrow") == CHECKPOINT | REPORTS
    config = json.loads((place / "narrow" / "config.json").read_text())
    assert (config["embedding_size"], config["hidden_sizes"]) == (6, [6, 9, 12])
    assert config["architectures"] == ["ResNetForImageClassification"]
    small = transformers.AutoModelForImageClassification.from_pretrained(place / "narrow")
    assert small(noise(2)).logits.shape == (2, 3)
    kept = (place / "resnet" / "preprocessor_config.json").read_bytes()
    assert (place / "narrow" / "preprocessor_config.json").read_bytes() == kept


def test_what_is_printed_and_written_names_the_right_things(place: Path, narrow: Outcome) -> None:
    for words in ("Removed 25 % of the filters", "accuracy", "top-1 agreement", "MACs per example", "fitted anew"):
        assert words in narrow.out
    assert f"Quality was measured on {3 * EACH} examples" in narrow.out
    assert "loaded again by plain transformers" in narrow.out
    found = json.loads((place / "narrow" / "secateur.json").read_text())
    assert found["about"]["source"] == str(place / "resnet")
    assert found["calibration"] == {"data": str(place / "flat"), "examples": 3 * EACH}
    assert found["reload"] < 1e-5
    dense, pruned = found["comparison"]["dense"], found["comparison"]["others"][0]
    assert 0 <= pruned["accuracy"] <= 1
    assert pruned["bytes_on_disk"] < dense["bytes_on_disk"]
    assert pruned["parameters"] == sum(t.numel() for n, t in load_file(place / "narrow/model.safetensors").items()
                                       if "running" not in n and "num_batches" not in n)  # fmt: skip
    card = (place / "narrow" / "README.md").read_text()
    assert "AutoModelForImageClassification.from_pretrained" in card
    assert "AutoImageProcessor.from_pretrained" in card
    assert "trust_remote_code=True" not in card
    assert f"images: {place / 'flat'}" in card
    assert "before and after" in (place / "narrow" / "report.html").read_text()


def test_a_recipe_of_two_stages_counts_from_the_first_model(place: Path, ragged: dict[str, Any]) -> None:
    first, second = (stage["budget"] for stage in ragged["stages"])
    assert first["first"] == first["before"] == second["first"]
    assert second["before"] == first["after"]
    assert 0.85 < second["after"]["parameters"] / first["first"]["parameters"] <= 0.9
    assert ragged["calibration"]["examples"] == 6
    assert ragged["comparison"]["dense"]["examples"] == 3 * EACH - 6  # what calibration left


def test_a_vit_of_uneven_widths_brings_its_code(place: Path, ragged: dict[str, Any]) -> None:
    assert files(place / "ragged") == CHECKPOINT | REPORTS | {"modeling_secateur.py"}
    assert ragged["about"]["architecture"] == "SecateurViTForImageClassification"
    code = (place / "ragged" / "modeling_secateur.py").read_text()
    assert not re.search(r"^(import|from) secateur", code, re.MULTILINE)
    assert "trust_remote_code=True" in (place / "ragged" / "README.md").read_text()
    left = [group["left"] for group in ragged["stages"][1]["groups"]]
    assert left[0] != left[1]
    config = json.loads((place / "ragged" / "config.json").read_text())
    assert config["secateur"]["shapes"]["vit.layers.0.mlp.fc1.weight"] == [left[0], 16]


def test_pruned_classifiers_are_compared_and_pruned_again(place: Path, ragged: dict[str, Any]) -> None:
    done = secateur("compare", place / "vit", place / "ragged", "--images", place / "classes", "--json", "--no-speed")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["others"][0]["parameters"] == ragged["comparison"]["others"][0]["parameters"]
    assert found["others"][0]["top1_agreement"] is not None
    alone = secateur("evaluate", place / "ragged", "--images", place / "classes", "--json", "--no-speed")
    assert json.loads(alone.out)["accuracy"] == found["others"][0]["accuracy"]
    again = library.prune(
        str(place / "ragged"), images=str(place / "flat"), unit="neuron", remove=1, score="l1", evaluate=False
    )
    assert [group.before for group in again.stages[0].groups] == [g["left"] for g in ragged["stages"][1]["groups"]]
    assert again.notes == ()


def test_inspect_shows_what_can_be_cut_and_what_cannot(place: Path) -> None:
    facts = secateur("inspect", place / "resnet")
    assert "ResNetForImageClassification" in facts.out
    assert "labels 3" in facts.out
    units = secateur("inspect", place / "vit", "--units")
    assert "vit.layers.0.mlp.fc1/neuron" in units.out
    assert "it is an output of the network" in units.out
    found = json.loads(secateur("inspect", place / "vit", "--units", "--json").out)
    assert [(one["unit"], one["count"]) for one in found["units"]] == [
        ("filter", 16), ("head", 2), ("neuron", 24), ("head", 2), ("neuron", 24),
    ]  # fmt: skip
    assert found["fixed"][-1]["name"] == "classifier"
    every = secateur("inspect", place / "vit", "--units", "--layers").out
    assert all(f"vit.layers.{number}.mlp.fc1/neuron" in every for number in (0, 1))


def test_uniform_is_a_plain_checkpoint_or_an_error(place: Path, tmp_path: Path) -> None:
    given = ("--images", place / "flat", "--unit", "neuron", "--params", 0.9, "--uniform")
    even = secateur("prune", place / "vit", "-o", tmp_path / "even", *given)
    assert even.code == 0, even.err
    assert not (tmp_path / "even" / "modeling_secateur.py").exists()
    ragged = secateur("prune", place / "vit", "-o", tmp_path / "ragged", *given, "--allocation", "global")
    assert ragged.code == 2
    assert "--uniform: the config of ViTForImageClassification can't say these widths" in ragged.err
    assert not (tmp_path / "ragged").exists()


def test_too_few_images_for_a_fit_are_named(place: Path) -> None:
    given = {"images": str(place / "flat"), "unit": "neuron", "remove": 1, "score": "l1", "evaluate": False}
    few = library.prune(str(place / "vit"), **given, samples=1)
    assert any("more calibration data would make a better repair" in note for note in few.stages[0].notes)
    enough = library.prune(str(place / "vit"), **given)
    assert not any("more calibration data" in note for note in enough.stages[0].notes)


def test_quality_is_not_measured_where_there_is_nothing_to_measure_it_on(place: Path, tmp_path: Path) -> None:
    given = {"images": str(draw(tmp_path, 1, {"red": "a", "green": "b", "blue": "c"})), "unit": "filter"}
    result = library.prune(str(place / "resnet"), **given, remove=1, score="l1")
    assert result.comparison.dense.accuracy is None
    assert any("Quality wasn't measured" in note for note in result.notes)
    assert any("in their order" in note for note in result.notes)
    assert result.model.config.hidden_sizes == [7, 11, 15]


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama", tokenizer=True)


FILTERS = ("--unit", "filter", "--macs", 0.7)
IMAGES = ("--images", "{place}/classes")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{place}/resnet", *FILTERS), "classifies images: give --images FOLDER"),
        (("{language}", *FILTERS, *IMAGES), "is a 'llama' model, which doesn't classify images"),
        (("{place}/resnet", *FILTERS, "--images", "{place}/nowhere"), "there is no folder"),
        (("{place}/resnet", *FILTERS, "--images", "{place}"), "a subfolder 'flat', which isn't a label"),
        (("{place}/resnet", *FILTERS, *IMAGES, "--evaluate", "{place}/nowhere"), "there is no folder"),
        (("{place}/resnet", "--unit", "filter", "--macs", 0.01, *IMAGES), "can't be met"),
        (("{place}/resnet", "--unit", "neuron", "--macs", 0.7, *IMAGES), "has no units of the kind 'neuron'"),
        (("{place}/resnet", "--unit", "head", "--macs", 0.7, *IMAGES), "has no units of the kind 'head'"),
        (("{place}/resnet", "--sparsity", 0.5, *IMAGES), "by secateur.TrainingPruner"),
        (("{place}/resnet", *FILTERS, *IMAGES, "--length", 16), "length says nothing of images"),
        (("{place}/resnet", *FILTERS, *IMAGES, "--windows", 3), "windows says nothing of images"),
        (("{place}/resnet", *FILTERS, *IMAGES, "--calibration", "x.txt"), "data says nothing of images"),
        (("{place}/resnet", *FILTERS, *IMAGES, "--device", "cuda"), "leave --device cuda out"),
        (("{place}/resnet", *FILTERS, *IMAGES, "--stream"), "leave --stream out"),
        (("{place}/resnet", *FILTERS, *IMAGES, "--resume"), "nothing to resume"),
        (("{place}/resnet", *FILTERS, *IMAGES, "--dtype", "int8"), "dtype"),
        (("{place}/bare", *FILTERS, *IMAGES), "has no preprocessor_config.json"),
        (("{place}/headless", *FILTERS, *IMAGES), "'ResNetModel', not an image classifier"),
        (("{place}/nothing", *FILTERS, *IMAGES), "no model at"),
    ],
    ids=str,
)
def test_bad_input_is_named_and_leaves_nothing_behind(
    arguments: tuple[object, ...], words: str, place: Path, language: Path, tmp_path: Path
) -> None:
    if not (place / "bare").exists():
        model = transformers.ResNetForImageClassification.from_pretrained(place / "resnet")
        model.save_pretrained(place / "bare")
        model.resnet.save_pretrained(place / "headless")
    given = [str(one).format(place=place, language=language) for one in arguments]
    done = secateur("prune", given[0], "-o", tmp_path / "out", *given[1:])
    assert done.code in (1, 2)
    assert words in " ".join(done.err.split())
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_not_replaced_unasked(place: Path, narrow: Outcome) -> None:
    before = (place / "narrow" / "model.safetensors").read_bytes()
    done = secateur("prune", place / "resnet", "-o", place / "narrow", *FILTERS, "--images", place / "flat")
    assert done.code == 2
    assert "add --overwrite" in done.err
    done = secateur("prune", place / "resnet", "-o", place / "resnet", *FILTERS, "--images", place / "flat")
    assert done.code == 2
    assert (place / "narrow" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compare", "{place}/resnet", "{place}/vit"), "classifies images: give --images"),
        (("compare", "{place}/resnet", "{place}/vit", *IMAGES, "--windows", 3), "--windows counts windows of text"),
        (("compare", "{place}/resnet", "{place}/vit", *IMAGES, "--text", "x"), "leave text and length out"),
        (("evaluate", "{place}/resnet"), "give a text to measure on"),
        (("evaluate", "{place}/resnet", *IMAGES, "--text", "x"), "give a text to measure on"),
    ],
    ids=str,
)
def test_measuring_says_what_it_lacks(arguments: tuple[object, ...], words: str, place: Path) -> None:
    done = secateur(*(str(one).format(place=place) for one in arguments))
    assert done.code == 2
    assert words in " ".join(done.err.split())


def test_images_of_evaluation_alone_are_refused(place: Path) -> None:
    with pytest.raises(UsageError, match="give --images FOLDER, too"):
        library.Recipe.build(
            {
                "model": "x",
                "stages": [{"prune": {"unit": "filter", "macs": 0.5}}],
                "evaluate": {"images": str(place / "flat")},
            }
        )


def test_several_processes_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="without torchrun"):
        library.prune(str(place / "resnet"), images=str(place / "flat"), unit="filter", macs=0.7)


def test_without_pillow_the_extra_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.network.vision.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'secateur\[images\]'"):
        library.prune(str(place / "resnet"), images=str(place / "flat"), unit="filter", macs=0.7)


def test_a_model_in_memory_is_saved_as_a_checkpoint_too(place: Path, tmp_path: Path) -> None:
    model = transformers.ViTForImageClassification.from_pretrained(place / "vit")
    result = library.prune(
        model,
        example_inputs=noise(2),
        unit="neuron",
        remove=8,
        output=tmp_path / "out",
        evaluate=(noise(4), torch.arange(4) % 3),
    )
    assert result.model.config.intermediate_size == 16
    assert model.config.intermediate_size == 24
    assert files(tmp_path / "out") == {"config.json", "model.safetensors"} | REPORTS
    again = transformers.ViTForImageClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(again(noise(3)).logits, result.model(noise(3)).logits)
    assert "Processor" not in (tmp_path / "out" / "README.md").read_text()


def test_widths_of_a_classifier_are_searched_for(place: Path) -> None:
    searched = ("search", place / "resnet", "-o", place / "found", "--unit", "filter", "--macs", "0.8")
    data = ("--images", place / "classes", "--no-evaluate", "--json")
    done = secateur(*searched, *data, "--trials", 12, "--strategy", "random")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["search"]["trials"] == 12
    budget = found["stages"][0]["budget"]
    assert budget["after"]["macs"] <= 0.8 * budget["first"]["macs"]
    assert (place / "found" / "study.db").is_file()
    recipe = Recipe.read(place / "found" / "recipe.yaml")
    assert recipe.search is None
    again = library.run_recipe(recipe.model_copy(update={"output": str(place / "again")}))
    assert again.stages[0].budget is not None
    assert again.stages[0].budget["after"] == budget["after"]
    more = secateur(*searched, *data, "--trials", 3, "--levels", place / "levels", "--overwrite")
    assert more.code == 2
    assert "for language models" in more.err
