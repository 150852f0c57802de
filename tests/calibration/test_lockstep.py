"""Walking through a graph with all batches at once, against running the network on each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.calibration.batches import batches_of
from secateur.calibration.lockstep import LIMIT, Lockstep
from secateur.errors import CalibrationError
from secateur.network.graph.tracing import traced
from zoo import ZOO


@pytest.mark.parametrize("limit", [LIMIT, 0], ids=["memory", "files"])
@pytest.mark.parametrize("name", ZOO)
def test_the_last_node_holds_what_the_network_gives_and_the_rest_is_let_go(
    name: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.calibration.lockstep.SMALL", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    torch.manual_seed(0)
    build, inputs = ZOO[name]
    model, data = build().eval(), [inputs(), inputs()]
    walk = Lockstep(traced(model, (data[0],)).module, batches_of(data, 1), limit)
    for node in walk.nodes:
        walk.compute(node)
        if node.op == "output":
            found = walk.values[node.args[0]]
        walk.leave(node)
    assert not walk.values
    assert not list(tmp_path.glob("secateur-*"))
    for output, x in zip(found, data, strict=True):
        with torch.inference_mode():
            torch.testing.assert_close(output, model(x))


def test_a_folder_without_room_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    model = nn.Linear(4, 20000)
    walk = Lockstep(traced(nn.Sequential(model), (torch.ones(2, 4),)).module, batches_of(torch.ones(2, 4), 1), 0)
    walk.compute(walk.nodes[0])
    with pytest.raises(CalibrationError, match="TMPDIR"):
        walk.compute(walk.nodes[1])
