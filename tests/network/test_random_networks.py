"""Random networks: what is cut changes nothing that was read, and what is left trains, is saved and rebuilt."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import secateur
from cuts_of_networks import exact, some_units
from pieces import Random, networks
from secateur.network.graph.network import GraphNetwork, cut_graph
from secateur.network.graph.saving import save_shapes


def holds(random: Random, seed: int, share: float) -> None:
    model, inputs = random.build().eval(), random.inputs()
    network = GraphNetwork(model, inputs)
    before = copy.deepcopy(model.state_dict())
    assert not any("trial cut" in one.reason for one in network.fixed), network.fixed
    keep = some_units(network, seed, share)
    small = cut_graph(network, keep)
    with tempfile.TemporaryDirectory() as folder:
        save_shapes(network, small, keep, Path(folder))
        again = secateur.rebuild(random.build().eval(), folder)
    assert torch.equal(again(inputs), small(inputs))
    exact(network, small, keep)
    model.load_state_dict(before)
    small.train()(inputs).square().mean().backward()
    torch.optim.SGD(small.parameters(), 0.01).step()
    assert all(torch.isfinite(parameter).all() for parameter in small.parameters())


@settings(max_examples=40, derandomize=True, deadline=None)
@given(random=networks(), seed=st.integers(0, 3), share=st.sampled_from([0.2, 0.5, 0.9]))
def test_random_networks_are_cut_exactly(random: Random, seed: int, share: float) -> None:
    holds(random, seed, share)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(random=networks(longest=12), seed=st.integers(0, 1000), share=st.sampled_from([0.05, 0.2, 0.5, 0.9]))
def test_many_random_networks_are_cut_exactly(random: Random, seed: int, share: float) -> None:
    holds(random, seed, share)
