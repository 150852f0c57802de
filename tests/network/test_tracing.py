"""Networks whose code decides by shapes: they are traced as the example inputs have them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import secateur
from secateur.errors import ModelError
from secateur.network.graph.network import GraphNetwork, cut_graph


class Padding(nn.Module):
    """Pads as its input's size wants it, as MobileNets do."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        if height % 2 == 0:
            x = functional.pad(x, (0, int(width) % 2, 0, 1))
        if mask is not None:
            x = x * mask
        pieces = [self.two(self.one(x)) for _ in range(x.shape[1])]
        return pieces[0].mean((-2, -1)) + len(pieces)


class Split(nn.Module):
    """Has a number of units as a constant in its code, and decides by the shape of something else."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.other = nn.Linear(4, 8), nn.Linear(5, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        part = self.one(x)[:, :5]
        return self.other(self.two(part)) if x.shape[1] > 2 else self.two(part)


class Own(nn.Module):
    """Decides by how many units a layer of its own has."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x).relu())
        return self.three(x.relu() if x.shape[1] == 5 else x)


def test_what_is_decided_by_shapes_is_decided_by_those_of_the_example() -> None:
    torch.manual_seed(0)
    model, x = Padding().eval(), torch.randn(2, 3, 10, 11)
    network = GraphNetwork(model, x)
    assert [(group.name, group.count) for group in network.groups] == [("one/filter", 6)]
    keep = torch.tensor([True, False, True, True, False, True])
    model.two.weight.data[:, ~keep] = 0
    small = cut_graph(network, {"one/filter": keep})
    assert type(small) is Padding
    for size in (10, 9):  # the smaller network decides anew
        x = torch.randn(3, 3, size, 11)
        torch.testing.assert_close(small(x), model(x))


def test_units_whose_number_the_code_decides_by_stay() -> None:
    network = GraphNetwork(Own(), torch.randn(2, 4))
    assert [group.name for group in network.groups] == ["one/neuron"]
    (stays,) = (one for one in network.fixed if one.name == "two")
    assert "decides by how many they are" in stays.reason
    assert "test_tracing.py" in stays.reason


def test_constants_cannot_be_changed_in_a_graph_that_was_decided_by_the_example() -> None:
    network = GraphNetwork(Split(), torch.randn(2, 4))
    assert [group.name for group in network.groups] == ["one/neuron", "two/neuron"]
    assert network.groups[0].count == 3  # those behind the constant
    assert any("constant in the code" in one.reason for one in network.fixed)
    small = cut_graph(network, {"one/neuron": torch.tensor([True, False, False])})
    assert type(small) is Split
    assert small(torch.randn(5, 4)).shape == (5, 3)


@pytest.mark.parametrize(
    "condition",
    [lambda x: x.sum() > 0, lambda x: x.max().item() > 0, lambda x: x[0, 0], lambda x: len(x) > x[0, 0]],
    ids=["sum", "item", "tensor", "mixed"],
)
def test_what_stands_in_a_tensor_decides_nothing(condition: object) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) if condition(x) else x  # type: ignore[operator]

    with pytest.raises(ModelError, match=r"test_tracing\.py:\d+ .*leaf_modules"):
        GraphNetwork(Branches(), torch.ones(1, 4))


def test_what_is_saved_of_such_a_network_is_rebuilt(tmp_path: object) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 10, 11)
    result = secateur.prune(Padding(), example_inputs=x, remove=2, output=f"{tmp_path}/out", evaluate=False)
    torch.testing.assert_close(secateur.rebuild(Padding(), f"{tmp_path}/out")(x), result.model(x))


class Norms(nn.Module):
    """Norms as functions: in a kind of LayerNorm that moves the channels to the end, and with constants."""

    class ChannelsFirst(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def __init__(self, constant: bool) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 2)
        self.norm, self.constant = self.ChannelsFirst(8), constant
        self.weight = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(functional.group_norm(self.norm(self.one(x)), 1, self.norm.weight))
        x = x.mean((-2, -1))
        return self.three(functional.layer_norm(x, (6,), self.weight) if self.constant else x)


@pytest.mark.parametrize("constant", [True, False])
def test_norms_as_functions_lose_places_with_their_units(constant: bool) -> None:
    torch.manual_seed(0)
    model, x = Norms(constant).eval(), torch.randn(2, 3, 8, 8)
    network = GraphNetwork(model, x)
    assert [(group.name, group.count) for group in network.groups] == [("one/filter", 8), ("two/filter", 6)]
    keep = {group.name: torch.arange(group.count) % 2 == 0 for group in network.groups}
    small = cut_graph(network, keep)
    assert small.norm.weight.shape == (4,)
    assert type(small) is not Norms if constant else type(small) is Norms
    assert small(x).shape == model(x).shape
    fixed = GraphNetwork(model, x, keep_class=True).groups
    assert [group.name for group in fixed] == (["one/filter"] if constant else ["one/filter", "two/filter"])


def test_an_axis_that_is_as_long_as_another_one_goes_along_with_it() -> None:
    class Counted(nn.Module):
        def __init__(self, free: bool) -> None:
            super().__init__()
            self.one, self.two, self.free = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), free
            self.three = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            batch, channels, _, _ = x.shape
            return self.three(self.two(x).reshape(batch, -1 if self.free else channels, 16).mean(-1))

    x = torch.randn(2, 3, 8, 8)
    free, counted = GraphNetwork(Counted(True), x).groups, GraphNetwork(Counted(False), x).groups
    assert [group.name for group in free] == ["one/filter", "two/filter"]
    assert [group.name for group in counted] == ["one/filter"]
    assert len(counted[0].produces) == 4  # both weights and biases
