"""Image classifiers that were cut by their graph: exact, and checkpoints that plain transformers loads."""

from __future__ import annotations

import copy
import json
import operator
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
from secateur.network.graph.network import GraphNetwork, cut_graph
from secateur.network.pretrained import fitted_config, plain_kind, pretrained
from secateur.network.saving import save_model
from secateur.run_network import graph_network
from vision import CLASSIFIERS, classifier, noise

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


def halves(network: GraphNetwork) -> dict[str, Tensor]:
    return {group.name: torch.arange(group.count) % 2 == 0 for group in network.groups}


def ragged(network: GraphNetwork) -> dict[str, Tensor]:
    """As `halves`, but of every other group."""
    return {name: keep for place, (name, keep) in enumerate(halves(network).items()) if place % 2 == 0}


@cache
def traced(name: str) -> GraphNetwork:
    return graph_network(classifier(name), noise(2))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_units_that_nobody_reads_can_be_cut(name: str) -> None:
    network = traced(name)
    dense, keep = copy.deepcopy(network.model), halves(network)
    with torch.no_grad():
        for group in network.groups:
            if any(part.name.rpartition(".")[0] in network.found.mixed for part in group.follows):
                keep[group.name][:] = True  # a norm over units reads them
            for part in group.consumes:
                gone = part.index[~keep[group.name]].flatten()
                operator.attrgetter(part.name)(dense).index_fill_(part.axis, gone, 0.0)
        if name != "convnextv2":  # whose hidden features are normed, too
            assert not all(bool(kept.all()) for kept in keep.values())
        small = cut_graph(network, keep)
        torch.testing.assert_close(small(noise(3)).logits, dense(noise(3)).logits, atol=1e-5, rtol=1e-4)


EVEN = {  # what is plain if every group loses half of its units
    **dict.fromkeys(("resnet", "resnet-bottleneck", "regnet", "convnext", "vit", "deit", "beit", "dinov2"), True),
    **dict.fromkeys(("convnextv2", "mobilenet_v1", "mobilenet_v2", "swin"), False),
}


def test_what_was_cut_is_loaded_by_plain_transformers_without_secateur(tmp_path: Path) -> None:
    kinds = {}
    for name in CLASSIFIERS:
        network = traced(name)
        assert len(network.groups) > 1
        for way in (halves, ragged) if name in ("resnet", "convnext", "vit") else (halves,):
            small = cut_graph(network, way(network))
            again = pretrained(small, network.inputs)
            assert sum(one.numel() for one in again.parameters()) < network.parameters()
            with torch.no_grad():
                logits = again(noise(3)).logits
                torch.testing.assert_close(logits, small(noise(3)).logits, atol=1e-5, rtol=1e-5)
            folder = tmp_path / f"{name}-{way.__name__}"
            folder.mkdir()
            save_model(again, folder)
            save_file({"inputs": noise(3), "logits": logits.contiguous()}, folder / "known.safetensors")
            kinds[str(folder)] = type(again).__name__
            plain = EVEN[name] and way is halves
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
    first, second = network.groups
    once = pretrained(cut_graph(network, {first.name: torch.arange(24) < 10}), (x,))
    assert plain_kind(once) is type(model)
    assert type(once) is not type(model)
    again = graph_network(once, x)
    assert [group.count for group in again.groups] == [10, 24]
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
    result = secateur.prune(model, example_inputs=x, sparsity=0.5, evaluate=False)
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
