"""The precision in which calibration computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateur.errors import UsageError
from secateur.timing import timed

FEW_ROWS = 2  # of a layer's inputs: up to here its float16 weights are multiplied as they are
COMPUTE = ("auto", "float32", "bfloat16")
PRODUCTS = {
    functional.linear,
    functional.conv1d,
    functional.conv2d,
    functional.scaled_dot_product_attention,
    torch.matmul,
    torch.bmm,
    torch.addmm,
    torch.baddbmm,
    torch.einsum,
    Tensor.matmul,
    Tensor.__matmul__,
}


@contextmanager
def products(compute: str, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Runs the forward passes inside it with bf16 products, where the model is bf16 or that is asked for.

    Weights, activations and sums keep their dtype. With `bfloat16`, a float32 model's linear layers multiply
    in bf16 and add up in float32 (autocast).

    Args:
        compute: `auto` (the model's own dtype), `float32`, or `bfloat16`. On processors products of
            float16 models are computed in float32 whatever is said; see `half_in_float32`.
        dtype: The model's own dtype.
        device: Where it is computed.
    """
    if compute not in COMPUTE:
        raise UsageError(f"unknown --compute '{compute}'. Known: {', '.join(COMPUTE)}.")
    bf16 = compute == "bfloat16" or (compute == "auto" and dtype == torch.bfloat16)
    autocast = bf16 and dtype == torch.float32
    with (
        _float32_products("bf16" if bf16 else "ieee"),
        torch.autocast(device.type, torch.bfloat16, enabled=autocast),
        half_in_float32(dtype, device),
    ):
        yield


def half_in_float32(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Has products of float16 tensors computed in float32 on processors, which are several times slower at float16.

    What comes out is float16 again; other dtypes and devices are left alone, and so are layers that get a row or two
    (of text that is written token by token): to widen their weights would take longer than to multiply by them.

    Args:
        dtype: The model's.
        device: Where it is computed.
    """
    return _InFloat32() if dtype == torch.float16 and device.type == "cpu" else nullcontext()


class _InFloat32(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {} if kwargs is None else kwargs
        if func not in PRODUCTS or not any(_is_half(one) for one in args) or _of_few_rows(func, args):
            return func(*args, **given)
        wide = func(*map(_wide, args), **{name: _wide(one) for name, one in given.items()})
        return wide.to(torch.float16)


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float16


def _of_few_rows(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    return func is functional.linear and args[0].numel() <= FEW_ROWS * args[0].shape[-1]


def _wide(value: Any) -> Any:
    return value.float() if _is_half(value) else value


def bf16_pays(device: torch.device) -> bool:
    """Whether bf16 products are faster than float32 ones: on x86 with AMX, or with AVX-512's bf16 instructions.

    The latter differ between processors, from twice as fast as float32 to half as fast, so a product is timed.
    """
    known = getattr(torch.cpu, "get_capabilities", None)  # new in torch 2.13
    if device.type != "cpu" or known is None:
        return True
    found = known()
    return bool(found.get("amx_bf16", True)) or (bool(found.get("avx512_bf16")) and _faster_in_bf16())


@cache
def _faster_in_bf16() -> bool:
    """Whether a product takes less time in bf16, as timed once per process."""
    return _seconds_of_product(torch.bfloat16) < _seconds_of_product(torch.float32)


def _seconds_of_product(dtype: torch.dtype) -> float:
    """Returns the least time that a layer's product took, of some; with few rows weights' layout would count most."""
    rows, weight = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    taken: dict[str, float] = {}
    for number in range(8):
        with timed(taken, str(number)):
            functional.linear(rows, weight)
    return min(taken.values())


def gram_products(compute: str) -> AbstractContextManager[None]:
    """Lets the processor's bf16 units, where it has them, multiply for Gram matrices; sums are float32.

    bf16 inputs give exact products. Rounding float32 inputs moves G_ij by less than 2⁻⁸ ||X_i|| ||X_j|| and on
    average by nothing, and G_jj by a millionth: both far below the damping. `float32` forbids it.

    Args:
        compute: `auto`, `float32`, or `bfloat16`.
    """
    return _float32_products("ieee" if compute == "float32" else "bf16")


@contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # missing from torch's stubs
    before = matmul.fp32_precision
    matmul.fp32_precision = precision
    try:
        yield
    finally:
        matmul.fp32_precision = before
