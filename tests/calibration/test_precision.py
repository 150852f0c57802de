"""Where bf16 products pay, and float16 ones that processors compute in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateur.calibration import precision
from secateur.calibration.precision import PRODUCTS, bf16_pays, half_in_float32

CPU = torch.device("cpu")


class Seen(TorchFunctionMode):
    """Notes the dtypes that products are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            self.dtypes |= {one.dtype for one in args if isinstance(one, Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("capabilities", "timed_faster", "pays"),
    [
        ({"amx_bf16": True}, False, True),
        ({"amx_bf16": False, "avx512_bf16": True}, True, True),
        ({"amx_bf16": False, "avx512_bf16": True}, False, False),
        ({"amx_bf16": False, "avx512_bf16": False}, True, False),
        ({"sve": True}, False, True),
    ],
    ids=str,
)
def test_bf16_pays_where_the_processor_multiplies_it(
    capabilities: dict[str, Any], timed_faster: bool, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(precision, "_faster_in_bf16", lambda: timed_faster)
    assert bf16_pays(torch.device("cpu")) is pays
    assert bf16_pays(torch.device("cuda"))


@pytest.mark.parametrize(("seconds", "faster"), [({2: 1.0, 4: 2.0}, True), ({2: 2.0, 4: 1.0}, False)], ids=str)
def test_bf16_is_faster_where_its_product_takes_less_time(
    seconds: dict[int, float], faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(0 < precision._seconds_of_product(dtype) < 10 for dtype in (torch.float32, torch.bfloat16))
    monkeypatch.setattr(precision, "_seconds_of_product", lambda dtype: seconds[dtype.itemsize])
    assert precision._faster_in_bf16.__wrapped__() is faster


@pytest.mark.parametrize(
    ("module", "shape"),
    [(nn.Linear(24, 6), (3, 5, 24)), (nn.Conv1d(8, 6, 3), (2, 8, 11)), (nn.Conv2d(3, 4, 3), (2, 3, 7, 7))],
)
def test_a_layers_outputs_are_those_of_float32_rounded(module: nn.Module, shape: tuple[int, ...]) -> None:
    half = copy.deepcopy(module).half()
    x = torch.randn(shape).half()
    with torch.no_grad(), Seen() as seen, half_in_float32(torch.float16, CPU):
        found = half(x)
    with torch.no_grad():
        wanted = copy.deepcopy(half).float()(x.float()).half()
    assert seen.dtypes == {torch.float32}
    assert found.dtype == torch.float16
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "product",
    [
        lambda a, b: a @ b,
        torch.matmul,
        torch.bmm,
        lambda a, b: torch.einsum("nij,njk->nik", a, b),
        lambda a, b: functional.scaled_dot_product_attention(a, b, b),
    ],
)
def test_products_of_tensors_are_those_of_float32_rounded(product: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, b = torch.randn(2, 16, 16).half(), torch.randn(2, 16, 16).half()
    with Seen() as seen, half_in_float32(torch.float16, CPU):
        found = product(a, b)
    assert seen.dtypes == {torch.float32}
    assert found.dtype == torch.float16
    assert torch.equal(found, product(a.float(), b.float()).half())


@pytest.mark.parametrize(("rows", "dtype"), [(1, torch.float16), (2, torch.float16), (3, torch.float32)])
def test_layers_that_get_a_row_or_two_are_left_alone(rows: int, dtype: torch.dtype) -> None:
    layer, x = nn.Linear(8, 4).half(), torch.randn(1, rows, 8).half()
    with torch.no_grad(), Seen() as seen, half_in_float32(torch.float16, CPU):
        layer(x)
    assert seen.dtypes == {dtype}


def test_gradients_pass_through() -> None:
    layer, x = nn.Linear(8, 4).half(), torch.randn(3, 8).half()
    with half_in_float32(torch.float16, CPU):
        layer(x).float().square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float16
    assert bool(layer.weight.grad.abs().sum() > 0)


@pytest.mark.parametrize(
    ("dtype", "device"), [(torch.bfloat16, "cpu"), (torch.float32, "cpu"), (torch.float16, "cuda")]
)
def test_other_dtypes_and_devices_are_left_alone(dtype: torch.dtype, device: str) -> None:
    a = torch.randn(4, 4).half()
    with half_in_float32(dtype, torch.device(device)):
        assert not isinstance(torch.overrides._get_current_function_mode(), TorchFunctionMode)
        assert (a @ a).dtype == torch.float16
