"""Removing units of traced networks: a fully connected one that learnt to tell two rings apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.calibration.batches import batches_of
from secateur.errors import NothingPrunedError, UsageError
from secateur.network.graph.costs import GraphCosts
from secateur.network.graph.network import GraphNetwork
from secateur.recipe import Prune
from secateur.structure.traced import prune_traced
from secateur.structure.traced_job import TracedJob


def rings(number: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    angle = 2 * torch.pi * torch.rand(number, generator=random)
    inside = torch.arange(number) % 2
    radius = 1 + inside + 0.1 * torch.randn(number, generator=random)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), inside


@pytest.fixture(scope="module")
def learnt() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 2))
    adam = torch.optim.Adam(model.parameters(), 0.01)
    x, y = rings(512, 0)
    for _ in range(150):
        adam.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        adam.step()
    return model.eval()


def right(model: nn.Module) -> float:
    x, y = rings(400, 1)
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def prune(model: nn.Module, **options: Any) -> Any:
    data = rings(512, 2)
    network = GraphNetwork(model, data[0][:2])
    return prune_traced(TracedJob(network, Prune(unit="neuron", **options), batches_of(data, 1)))


@pytest.mark.parametrize("options", [{}, {"score": "taylor"}, {"allocation": "global"}], ids=str)
def test_neurons_go_and_repair_keeps_what_was_learnt(options: dict[str, Any], learnt: nn.Module) -> None:
    assert right(learnt) > 0.95
    small, keep, report = prune(learnt, params=0.35, **options)
    assert report.budget["after"]["parameters"] == sum(p.numel() for p in small.parameters())
    assert report.budget["after"]["parameters"] <= 0.35 * report.budget["first"]["parameters"]
    assert {name: int(kept.sum()) for name, kept in keep.items()} == {g.name: g.left for g in report.groups}
    assert right(small) > 0.9
    assert right(learnt) > 0.95


def test_the_network_that_was_given_stays_in_its_modes(learnt: nn.Module) -> None:
    learnt.train()
    learnt[0].eval()
    prune(learnt, params=0.5)
    assert learnt.training
    assert not learnt[0].training
    assert learnt[2].training
    learnt.eval()


def test_a_threshold_leaves_a_unit_in_every_layer(learnt: nn.Module) -> None:
    small, _, report = prune(learnt, threshold="1e9", score="l1")
    assert [group.left for group in report.groups] == [1, 1]
    assert small(torch.zeros(3, 2)).shape == (3, 2)


def test_targets_that_cannot_be_met_or_are_met_already_are_errors(learnt: nn.Module) -> None:
    with pytest.raises(UsageError, match="can't be met"):
        prune(learnt, params=0.001)
    with pytest.raises(UsageError, match="removing 32 leaves 0"):
        prune(learnt, remove=32)
    with pytest.raises(NothingPrunedError):
        prune(learnt, memory="1GB")


@pytest.mark.parametrize("score", [{}, {"score": "l1"}, {"score": "fisher"}], ids=str)
@pytest.mark.parametrize("target", [{"macs": 0.4}, {"params": 0.4}, {"sparsity": 0.5}], ids=str)
def test_a_ranking_over_all_groups_spends_the_budget(
    score: dict[str, Any], target: dict[str, float], learnt: nn.Module
) -> None:
    _, _, report = prune(learnt, allocation="global", **score, **target)
    left = {group.name: group.left for group in report.groups}
    assert len({group.left / group.before for group in report.groups}) > 1
    counter = GraphCosts(GraphNetwork(learnt, torch.zeros(2, 2)))

    def spent(widths: dict[str, int]) -> float:
        if "sparsity" in target:
            return sum(widths.values()) / 80
        measure = "macs" if "macs" in target else "parameters"
        return getattr(counter.of(widths), measure) / getattr(counter.of(), measure)

    (share,) = target.values()
    assert spent(left) <= share
    assert all(spent({**left, name: width + 1}) > share for name, width in left.items())


def test_a_feature_that_never_changes_goes_first_where_a_bias_takes_it_up() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).eval()
    with torch.no_grad():
        model[0].weight[4], model[0].bias[4], model[2].weight[:, 4] = 0, 1, 0.3
    _, keep, _ = prune(model, remove=1)
    assert keep["0/neuron"].tolist() == [True, True, True, True, False, True]


def test_amounts_say_what_each_group_gives(learnt: nn.Module) -> None:
    first, second = [group.name for group in prune(learnt, remove=1)[2].groups]
    _, _, report = prune(learnt, amounts={first: 20})
    assert [(group.name, group.before - group.left) for group in report.groups] == [(first, 20), (second, 0)]
    with pytest.raises(UsageError, match=f"takes 32 from {second}, which can give 31"):
        prune(learnt, amounts={second: 32})
