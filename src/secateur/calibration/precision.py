"""The precision in which calibration computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from secateur.errors import UsageError

COMPUTE = ("auto", "float32", "bfloat16")


@contextmanager
def products(compute: str, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Runs the forward passes inside it with bf16 products, where the model is bf16 or that is asked for.

    Weights, activations and sums keep their dtype. With `bfloat16`, a float32 model's linear layers multiply
    in bf16 and add up in float32 (autocast).

    Args:
        compute: `auto` (the model's own dtype), `float32`, or `bfloat16`.
        dtype: The model's own dtype.
        device: Where it is computed.
    """
    if compute not in COMPUTE:
        raise UsageError(f"unknown --compute '{compute}'. Known: {', '.join(COMPUTE)}.")
    bf16 = compute == "bfloat16" or (compute == "auto" and dtype == torch.bfloat16)
    autocast = bf16 and dtype == torch.float32
    with _float32_products("bf16" if bf16 else "ieee"), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        yield


def bf16_pays(device: torch.device) -> bool:
    """Whether bf16 products are faster than float32 ones: on x86 only with AMX's or AVX-512's bf16 instructions."""
    known = getattr(torch.cpu, "get_capabilities", None)  # new in torch 2.13
    if device.type != "cpu" or known is None:
        return True
    found = known()
    return bool(found.get("amx_bf16", True) or found.get("avx512_bf16"))


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
