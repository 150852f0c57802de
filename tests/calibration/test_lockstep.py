"""Walking through a graph with all batches at once, against running the network on each."""

from __future__ import annotations

import pytest
import torch

from secateur.calibration.batches import batches_of
from secateur.calibration.lockstep import Lockstep
from secateur.network.graph.tracing import traced
from zoo import ZOO


@pytest.mark.parametrize("name", ZOO)
def test_the_last_node_holds_what_the_network_gives_and_the_rest_is_let_go(name: str) -> None:
    torch.manual_seed(0)
    build, inputs = ZOO[name]
    model, data = build().eval(), [inputs(), inputs()]
    walk = Lockstep(traced(model), batches_of(data, 1))
    for node in walk.nodes:
        walk.compute(node)
        if node.op == "output":
            found = walk.values[node.args[0]]
        walk.leave(node)
    assert not walk.values
    for output, x in zip(found, data, strict=True):
        with torch.inference_mode():
            torch.testing.assert_close(output, model(x))
