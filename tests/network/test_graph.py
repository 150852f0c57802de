"""Structure found by tracing, against what really happens when units are cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur
from cuts_of_networks import exact, made, some_units
from secateur.errors import ModelError, UsageError
from secateur.network.graph.costs import GraphCosts
from secateur.network.graph.network import GraphNetwork, cut_graph
from secateur.network.graph.saving import save_shapes
from zoo import ZOO


@pytest.mark.parametrize("name", ZOO)
def test_units_that_nobody_reads_can_be_cut(name: str) -> None:
    model, inputs = made(name)
    network = GraphNetwork(model, inputs)
    assert network.groups
    assert not any("trial cut" in one.reason for one in network.fixed)
    keep = some_units(network)
    small = cut_graph(network, keep)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    exact(network, small, keep)


@pytest.mark.parametrize("name", ZOO)
def test_a_cut_network_is_saved_and_rebuilt(name: str, tmp_path: Path) -> None:
    model, inputs = made(name)
    network = GraphNetwork(model, inputs)
    keep = some_units(network)
    small = cut_graph(network, keep)
    save_shapes(network, small, keep, tmp_path)
    again = secateur.rebuild(made(name)[0], tmp_path)
    assert torch.equal(again(inputs), small(inputs))
    assert [p.shape for p in again.parameters()] == [p.shape for p in small.parameters()]


@pytest.mark.parametrize("name", ZOO)
def test_costs_of_fewer_units_are_those_of_the_smaller_network(name: str) -> None:
    model, inputs = made(name)
    network = GraphNetwork(model, inputs)
    keep = some_units(network)
    small = cut_graph(network, keep).eval()
    predicted = GraphCosts(network).of({group: int(kept.sum()) for group, kept in keep.items()})
    assert predicted == GraphCosts(GraphNetwork(small, inputs)).of()
    assert predicted.parameters == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("name", ZOO)
def test_a_cut_network_trains_and_is_left_alone(name: str) -> None:
    model, inputs = made(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    network = GraphNetwork(model, inputs)
    small = cut_graph(network, some_units(network)).train()
    small(inputs).square().mean().backward()
    torch.optim.SGD(small.parameters(), 0.01).step()
    assert all(torch.isfinite(parameter).all() for parameter in small.parameters())
    assert small(inputs).shape == model(inputs).shape
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_output_and_the_input_stay() -> None:
    network = GraphNetwork(*made("fc"))
    assert [group.count for group in network.groups] == [20, 12]
    assert [(one.name, one.count) for one in network.fixed] == [("5", 4)]
    assert "output" in network.fixed[0].reason


def test_a_padded_shortcut_is_cut_across() -> None:
    network = GraphNetwork(*made("resnet20"))
    residual = {group.name: group.count for group in network.groups if len(group.produces) > 1}
    assert sum(residual.values()) == 16  # the 8 of the first stage, and the 8 that the second one adds


def test_what_cannot_be_traced_is_named_with_its_line() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return self.fc(x)
            return x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.one, self.two = Branches(), nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.two(self.one(x)))

    with pytest.raises(ModelError, match=r"test_graph\.py:\d+ \(if x\.sum\(\) > 0:\).*leaf_modules"):
        GraphNetwork(Outer(), torch.ones(2, 4))
    network = GraphNetwork(Outer(), torch.ones(2, 4), leaf_modules=[Branches])
    assert [(group.name, group.count) for group in network.groups] == [("one/neuron", 6)]
    assert "inner" in network.fixed[0].reason


def test_example_inputs_of_the_wrong_shape_are_an_error() -> None:
    with pytest.raises(UsageError, match=r"\(2, 5\)"):
        GraphNetwork(nn.Linear(4, 4), torch.ones(2, 5))


def test_removing_everything_is_an_error() -> None:
    network = GraphNetwork(*made("fc"))
    with pytest.raises(UsageError, match="lose all of its 20 units"):
        cut_graph(network, {"1/neuron": torch.zeros(20, dtype=torch.bool)})


def test_a_flattened_picture_keeps_its_channels_apart() -> None:
    """As many examples as rows of pixels, and as many channels: whatever multiplies to the same mustn't be taken so."""

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut, self.mlp = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.mlp(self.cut(x).flatten(2).transpose(1, 2))

    network = GraphNetwork(Patches(), torch.ones(2, 3, 16, 16))
    assert [(group.name, group.count) for group in network.groups] == [("cut/filter", 8)]
