"""Networks that ask for trouble: what is cut changes nothing that was read, and what can't be is listed with why."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

import secateur
from awkward import CUT, FIXED, Case
from cuts_of_networks import exact, some_units
from secateur.network.graph import rules
from secateur.network.graph.network import GraphNetwork, cut_graph
from secateur.network.graph.operations import pointwise
from secateur.network.graph.saving import save_shapes


def made(case: Case, leaves: Any = ()) -> GraphNetwork:
    torch.manual_seed(0)
    model = case.build().eval()
    network = GraphNetwork(model, case.inputs(), leaves)
    assert not any(isinstance(value, fx.Proxy) for module in model.modules() for value in vars(module).values())
    return network


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CUT.values(), ids=CUT)
def test_what_is_cut_changes_nothing_that_was_read(case: Case, tmp_path: Path) -> None:
    network = made(case)
    assert [(group.name.rpartition("/")[0], group.count) for group in network.groups] == list(case.groups)
    before = copy.deepcopy(network.model.state_dict())
    attributes = [set(vars(module)) for module in network.model.modules()]
    keep = some_units(network)
    small = cut_graph(network, keep)
    assert all(torch.equal(before[name], value) for name, value in network.model.state_dict().items())
    assert [set(vars(module)) for module in network.model.modules()] == attributes
    save_shapes(network, small, keep, tmp_path)
    exact(network, small, keep)
    assert len(list(small.parameters())) == len(list(network.model.parameters()))  # what was one tensor is one
    torch.manual_seed(0)
    again = secateur.rebuild(case.build(), tmp_path)
    network.model.load_state_dict(before)
    exact(network, again, keep)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in small.parameters())


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:Implicit dimension:UserWarning", "ignore::FutureWarning"
)
@pytest.mark.parametrize("case", FIXED.values(), ids=FIXED)
def test_what_cannot_be_cut_is_listed_with_the_reason(case: Case) -> None:
    network = made(case)
    assert all(not group.name.startswith(f"{case.module}/") for group in network.groups)
    reasons = [one.reason for one in network.fixed if one.name == case.module]
    assert any(case.reason in reason for reason in reasons), network.fixed
    assert not any("trial cut" in one.reason for one in network.fixed)  # it was known before it was tried
    keep = some_units(network)
    exact(network, cut_graph(network, keep), keep)


def test_a_rule_that_is_wrong_is_found_out_by_a_trial_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.METHODS, "roll", pointwise)
    network = made(FIXED["roll"])
    assert not network.groups
    assert any("a trial cut failed: the outputs move by" in one.reason for one in network.fixed)


def test_leaf_modules_are_left_alone_whatever_they_are() -> None:
    case = CUT["an unused layer"]
    for leaf in ("a", nn.Linear):
        network = made(case, [leaf])
        assert not network.groups
        assert any(one.name == "a" and "isn't looked into" in one.reason for one in network.fixed)


def test_dropout_in_the_code_goes_on_in_training_when_constants_are_edited() -> None:
    network = made(CUT["dropout that asks for the mode"])
    small = cut_graph(network, some_units(network))
    steps = [node for node in small.graph.nodes if "dropout" in node.name]  # type: ignore[union-attr]
    assert [str(node.kwargs["training"]) for node in steps] == ["training"]


def test_layers_that_pad_by_themselves_are_scored_and_repaired_by_what_they_read() -> None:
    case = CUT["convolutions that pad by themselves"]
    torch.manual_seed(0)
    model, x = case.build().eval(), torch.randn(32, 3, 8, 8)
    result = secateur.prune(model, example_inputs=x[:2], calibration=x, sparsity=0.5, evaluate=False)
    groups = {group.name: group for group in result.stages[0].groups}
    assert {name: group.left for name, group in groups.items()} == {"a/filter": 4, "c/filter": 3}
    assert all(group.error < group.error_before for group in groups.values())
