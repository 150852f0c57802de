"""Image classifiers that were cut by their graph: exact, and checkpoints that plain transformers loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import secateur
from cuts_of_networks import exact, some_units
from secateur.network.graph.network import GraphNetwork, cut_graph
from secateur.network.pretrained import fitted_config, plain_kind, pretrained
from secateur.network.saving import save_model
from secateur.run_network import graph_network
from tiny_vision import CLASSIFIERS, classifier, noise

RELOAD = """
import sys
sys.modules["secateur"] = None  # as if it weren't installed
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification
for folder in sys.argv[1:]:
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
    known = load_file(f"{folder}/known.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(model(known["inputs"]).logits, known["logits"], atol=1e-5, rtol=1e-5)
    assert AutoModel.from_pretrained(folder, trust_remote_code=True).base_model is not None
    print(type(model).__name__)
"""


PLAIN = {  # of which units every group may lose the same share and leave a plain model; others never are
    **dict.fromkeys(("resnet", "resnet-bottleneck", "regnet", "convnext"), ("filter", "neuron")),
    **dict.fromkeys(("vit", "deit", "beit", "dinov2"), ("neuron",)),
}


def halves(network: GraphNetwork, units: tuple[str, ...] = ("filter", "neuron", "head")) -> dict[str, Tensor]:
    return {group.name: torch.arange(group.count) % 2 == 0 for group in network.groups if group.unit in units}


def ragged(network: GraphNetwork) -> dict[str, Tensor]:
    """As `halves`, but of every other group."""
    return {name: keep for place, (name, keep) in enumerate(halves(network).items()) if place % 2 == 0}


@cache
def traced(name: str) -> GraphNetwork:
    return graph_network(classifier(name), noise(2))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_units_that_nobody_reads_can_be_cut(name: str) -> None:
    network = traced(name)
    keep = some_units(network)
    exact(network, cut_graph(network, keep), keep)


def test_what_was_cut_is_loaded_by_plain_transformers_without_secateur(tmp_path: Path) -> None:
    kinds = {}
    for name in CLASSIFIERS:
        network = traced(name)
        cuts = {"even": halves(network, PLAIN[name])} if name in PLAIN else {"own": halves(network)}
        if name in ("resnet", "convnext", "vit"):
            cuts["ragged"] = ragged(network)
        for way, keep in cuts.items():
            small = cut_graph(network, keep)
            again = pretrained(small, network.inputs)
            assert sum(one.numel() for one in again.parameters()) < network.parameters()
            with torch.no_grad():
                logits = again(noise(3)).logits
                torch.testing.assert_close(logits, small(noise(3)).logits, atol=1e-5, rtol=1e-5)
            folder = tmp_path / f"{name}-{way}"
            folder.mkdir()
            save_model(again, folder)
            save_file({"inputs": noise(3), "logits": logits.contiguous()}, folder / "known.safetensors")
            kinds[str(folder)] = type(again).__name__
            plain = way == "even"
            assert type(again).__name__ == ("" if plain else "Secateur") + network.architecture
            assert (folder / "modeling_secateur.py").exists() is not plain
            assert ("secateur" in json.loads((folder / "config.json").read_text())) is not plain
    done = subprocess.run(
        [sys.executable, "-I", "-c", RELOAD, *kinds],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(kinds.values())


def test_a_reshaped_model_is_cut_again_and_may_become_plain() -> None:
    network, x = traced("vit"), noise(2)
    model = network.model
    first, second = (group for group in network.groups if group.unit == "neuron")
    once = pretrained(cut_graph(network, {first.name: torch.arange(24) < 10}), (x,))
    assert plain_kind(once) is type(model)
    assert type(once) is not type(model)
    again = graph_network(once, x)
    assert [group.count for group in again.groups if group.unit == "neuron"] == [10, 24]
    twice = pretrained(cut_graph(again, {second.name: torch.arange(24) < 10}), (x,))
    assert type(twice) is type(model)
    assert twice.config.intermediate_size == 10
    assert not hasattr(twice.config, "secateur")


def test_a_config_is_fitted_where_numbers_depend_on_each_other() -> None:
    model = classifier("resnet")
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wider = type(model)(
        type(model.config)(**{**model.config.to_dict(), "embedding_size": 6, "hidden_sizes": [6, 5, 9]})
    )
    wanted = {name: tuple(tensor.shape) for name, tensor in wider.state_dict().items()}
    found = fitted_config(model.config, type(model), wanted)
    assert (found.embedding_size, found.hidden_sizes) == (6, [6, 5, 9])
    assert model.config.hidden_sizes == [8, 12, 16]
    assert fitted_config(model.config, type(model), {**shapes, "classifier.1.weight": (3, 15)}) is None


def test_modes_and_what_asks_for_gradients_stay() -> None:
    model, x = classifier("resnet").train(), noise(2)
    model.resnet.embedder.eval().requires_grad_(False)
    result = secateur.prune(model, example_inputs=x, unit="filter", sparsity=0.5, evaluate=False)
    small = result.model
    assert small.training
    assert not small.resnet.embedder.training
    assert {parameter.requires_grad for parameter in small.resnet.embedder.parameters()} == {False}
    assert {parameter.requires_grad for parameter in small.resnet.encoder.parameters()} == {True}
    small(noise(4)).logits.square().mean().backward()
    assert small.config.hidden_sizes == [4, 6, 8]


def test_other_networks_have_no_kind_and_are_left_alone() -> None:
    assert plain_kind(nn.Linear(2, 2)) is None
    assert plain_kind(classifier("vit").vit) is not None
