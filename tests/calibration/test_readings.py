"""What layers read, unfolded, against what torch makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from awkward import Same
from secateur.calibration.readings import columns, outputs

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
def test_the_matrix_times_the_columns_is_what_the_layer_gives(name: str) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = columns(layer, x) @ layer.weight.flatten(1).T + layer.bias
        torch.testing.assert_close(found, outputs(layer, layer(x)), atol=1e-5, rtol=1e-5)
