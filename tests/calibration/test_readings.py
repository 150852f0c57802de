"""What layers read, unfolded, against what torch makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from awkward import Same
from secateur.calibration.readings import ROWS, sampled_outputs, sampled_windows

LAYERS = {
    "linear": (nn.Linear(5, 3), (4, 7, 5)),
    "1-D": (nn.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 11)),
    "2-D": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 3, 9, 8)),
    "2-D, reflected": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 6, 6)),
    "2-D, same": (nn.Conv2d(3, 4, 4, padding="same"), (2, 3, 6, 6)),
    "2-D, padded by itself": (Same(3, 4, 3, stride=2), (2, 3, 6, 7)),
    "3-D": (nn.Conv3d(2, 3, 2, stride=2), (2, 2, 4, 4, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_matrix_times_the_windows_is_what_the_layer_gives(name: str) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for size in (len(x), 600):  # all positions, and some of them
        x = x.repeat(-(-size // len(x)), *[1] * (x.ndim - 1))
        with torch.no_grad():
            read, given = sampled_windows(layer, x, 3), sampled_outputs(layer, layer(x), 3)
            found = read.values @ layer.weight.flatten(1).T + layer.bias
        torch.testing.assert_close(found, given.values, atol=1e-5, rtol=1e-5)
        assert read.positions == given.positions
        assert len(found) == min(ROWS, read.positions)
    assert read.positions > ROWS


def test_a_single_example_without_a_batch_is_read() -> None:
    layer = nn.Linear(5, 3)
    assert sampled_windows(layer, torch.ones(5), 0).values.shape == (1, 5)
    assert sampled_outputs(layer, torch.ones(3), 0).values.shape == (1, 3)
