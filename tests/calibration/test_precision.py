"""Where bf16 products pay."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from secateur.calibration.precision import bf16_pays


@pytest.mark.parametrize(
    ("capabilities", "pays"),
    [
        ({"amx_bf16": True}, True),
        ({"amx_bf16": False, "avx512_bf16": True}, True),
        ({"amx_bf16": False, "avx512_bf16": False}, False),
        ({"sve": True}, True),
    ],
    ids=str,
)
def test_bf16_pays_where_the_processor_multiplies_it(
    capabilities: dict[str, Any], pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert bf16_pays(torch.device("cpu")) is pays
    assert bf16_pays(torch.device("cuda"))
