"""Layers of a model's own kind that only pad what they read: convolutions with the padding of TensorFlow, mostly."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

LAYERS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
APPLY = (
    *(functional.linear, functional.conv1d, functional.conv2d, functional.conv3d),
    *(functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d),
)
HARMLESS = (functional.pad, torch._C._nn.pad, Tensor.size, Tensor.dim, Tensor.shape.__get__, Tensor.ndim.__get__)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Application:
    """How a layer applies its weight.

    Attributes:
        x: What the weight is applied to.
        stride, padding, dilation: Of a convolution, by axis; empty for a linear layer.
    """

    x: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


class _Watch(TorchFunctionMode):
    """Notes where a weight is applied, and whether anything else is computed."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.found: list[tuple[Any, dict[str, Any], Tensor]] = []  # what was called, with what, what it gave
        self.else_: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = ("input", "weight", "bias", "stride", "padding", "dilation")
        given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        out = func(*args, **(kwargs or {}))
        if func in APPLY and given.get("weight") is self.weight:
            self.found.append((func, given, out))
        elif func not in HARMLESS:
            self.else_.add(getattr(func, "__name__", str(func)))
        return out


def has_own_forward(module: nn.Module) -> bool:
    """Returns whether a module is of a model's own kind of layer."""
    kind = next((kind for kind in type(module).__mro__ if kind in LAYERS), None)
    return kind is not None and (type(module).forward is not kind.forward or "forward" in vars(module))


def application(module: Any, x: Tensor) -> Application | None:
    """Returns how a layer applies its weight to an input; None if that isn't all that it does, but for padding."""
    with _Watch(module.weight) as watch:
        y = module.forward(x)  # without its hooks
    if len(watch.found) != 1 or watch.else_ or watch.found[0][2] is not y:
        return None
    _, given, _ = watch.found[0]
    if isinstance(module, nn.Linear):
        return Application(given["input"], (), (), ())
    dims = len(module.kernel_size)
    if isinstance(given.get("padding", 0), str):
        return None
    stride, padding, dilation = (
        tuple(value) * (dims if len(value) == 1 else 1) if isinstance(value, tuple | list) else (value,) * dims
        for value in (given.get("stride", 1), given.get("padding", 0), given.get("dilation", 1))
    )
    return Application(given["input"], stride, padding, dilation)


def own_layers(model: nn.Module, inputs: tuple[Any, ...]) -> list[str]:
    """Returns the names of layers of a model's own kind that apply their weight once, and otherwise only pad.

    Args:
        model: The model, in evaluation.
        inputs: Example inputs.
    """
    some = {name: module for name, module in model.named_modules() if has_own_forward(module)}
    if not some:
        return []
    seen: dict[str, Any] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen.setdefault(name, args[0] if len(args) == 1 and not named else None)

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for name, module in some.items():
            hooks.callback(module.register_forward_pre_hook(note(name), with_kwargs=True).remove)
        model(*inputs)
    return [name for name, x in seen.items() if isinstance(x, Tensor) and application(some[name], x) is not None]
