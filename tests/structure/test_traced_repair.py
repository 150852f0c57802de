"""Repair of traced networks: what can be made up for is, and batch norms say the same in training as after it."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor, nn

from secateur.calibration.batches import batches_of
from secateur.network.graph.network import GraphNetwork, cut_graph
from secateur.progress import Progress
from secateur.structure.traced_repair import repair
from zoo import ZOO

FITTED = ["resnet18", "resnet20", "resnet50", "vgg", "densenet", "mobilenet_v2", "efficientnet", "inception", "fc"]


def repaired(network: GraphNetwork, keep: dict[str, Tensor], x: Tensor, damping: float = 1e-6) -> nn.Module:
    small, notes = cut_graph(network, keep), []
    repair(network, small, keep, batches_of(x, 1), damping, Progress(), notes)
    assert not any("wasn't fitted" in note for note in notes)
    return small


def doubled(network: GraphNetwork) -> dict[str, Tensor]:
    """Makes every second unit the same as the one before it, and returns which to keep to be rid of them."""
    keep = {}
    with torch.no_grad():
        for group in network.groups:
            second = torch.arange(group.count) % 2 == 1
            for part in (*group.produces, *group.follows):
                tensor = operator.attrgetter(part.name)(network.model)
                first = tensor.index_select(part.axis, part.index[: group.count // 2 * 2 : 2].flatten())
                tensor.index_copy_(part.axis, part.index[second].flatten(), first)
            keep[group.name] = ~second
    return keep


@pytest.mark.parametrize("name", FITTED)
def test_units_that_others_do_the_work_of_can_go(name: str) -> None:
    torch.manual_seed(0)
    build, inputs = ZOO[name]
    network = GraphNetwork(build().eval(), inputs())
    keep = doubled(network)
    x = torch.cat([inputs() for _ in range(16)])
    small = repaired(network, keep, x)
    with torch.no_grad():
        wanted = network.model(x)
        broken = (cut_graph(network, keep)(x) - wanted).norm() / wanted.norm()
        found = (small(x) - wanted).norm() / wanted.norm()
    assert broken > 0.02
    assert found < broken / 10


@pytest.mark.parametrize("name", ["resnet20", "densenet", "mobilenet_v2"])
def test_batch_norms_give_in_training_what_they_give_after_it(name: str) -> None:
    torch.manual_seed(0)
    build, inputs = ZOO[name]
    network = GraphNetwork(build().eval(), inputs())
    keep = {group.name: torch.arange(group.count) < group.count - 2 for group in network.groups}
    x = torch.cat([inputs() for _ in range(16)])
    small = repaired(network, keep, x)
    with torch.no_grad():
        torch.testing.assert_close(small.train()(x), small.eval()(x), atol=1e-2, rtol=1e-2)


class Sum(nn.Module):
    """A shortcut that loses a feature which the branch beside it has, too."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 7), nn.Linear(7, 6)
        self.three, self.four = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.two(self.one(x).relu())
        return shortcut + self.four(self.three(x).relu())


def test_a_layer_makes_up_for_what_its_shortcut_lacks() -> None:
    torch.manual_seed(0)
    model = Sum().eval()
    with torch.no_grad():
        model.three.weight[:7], model.three.bias[:7] = model.one.weight, model.one.bias
        model.four.weight[:, 7] = 0
    x = torch.randn(512, 6)
    network = GraphNetwork(model, x[:2])
    keep = {"one/neuron": torch.arange(7) > 0, "three/neuron": torch.arange(8) < 7}
    small = repaired(network, keep, x)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), atol=1e-3, rtol=1e-3)
        assert (small.two(small.one(x).relu()) - model.two(model.one(x).relu())).abs().max() > 0.1


class Twice(nn.Module):
    """The same layers on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu()) + self.two(self.one(-x).relu())


def test_what_is_used_more_than_once_is_left_alone_and_named() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    network, notes = GraphNetwork(Twice().eval(), x[:2]), []
    keep = {"one/neuron": torch.arange(8) > 0}
    small = cut_graph(network, keep)
    before = small.two.weight.clone()
    assert not repair(network, small, keep, batches_of(x, 1), None, Progress(), notes)
    assert torch.equal(small.two.weight, before)
    assert notes == ["two wasn't fitted anew: it is used more than once."]
