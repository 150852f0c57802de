"""Traces a network with torch.fx, and says where it can't be traced."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from secateur.errors import ModelError, UsageError, first_line


class _Tracer(fx.Tracer):
    def __init__(self, leaves: tuple[type[nn.Module] | str, ...]) -> None:
        super().__init__()
        self.record_stack_traces = True
        self._kinds = tuple(leaf for leaf in leaves if isinstance(leaf, type))
        self._names = {leaf for leaf in leaves if isinstance(leaf, str)}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        named = module_qualified_name in self._names or isinstance(m, self._kinds)
        return named or super().is_leaf_module(m, module_qualified_name)


def traced(model: nn.Module, leaves: Sequence[type[nn.Module] | str] = ()) -> fx.GraphModule:
    """Returns a model's graph; the modules and parameters in it are the model's own.

    Args:
        model: The model.
        leaves: Modules, by kind or by name, that aren't looked into; what they read and give can't be cut.

    Raises:
        ModelError: The model can't be traced.
    """
    tracer = _Tracer(tuple(leaves))
    try:
        graph = tracer.trace(model)
    except Exception as error:  # whatever the model's own code makes of a proxy
        raise ModelError(
            f"torch.fx can't trace {type(model).__name__}: {first_line(error)} at {_place(error)}. Name the "
            "module that does this in leaf_modules=; it is left as it is then."
        ) from error
    return fx.GraphModule(tracer.root, graph)


def check_inputs(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Raises UsageError if the model doesn't take the example inputs."""
    try:
        with torch.no_grad():
            model(*inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(one.shape)) if isinstance(one, torch.Tensor) else repr(one) for one in inputs)
        raise UsageError(
            f"{type(model).__name__} doesn't take example inputs of the shapes {shapes}: {first_line(error)}"
        ) from error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Has a model in evaluation mode while it lasts; afterwards each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _place(error: BaseException) -> str:
    """Returns where in the model's own code an error arose: file, line and what stands there."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/torch/" not in frame.filename and frame.filename != __file__]
    frame = own[-1] if own else frames[-1]
    return f"{frame.filename}:{frame.lineno} ({frame.line})"


def where(node: fx.Node) -> str:
    """Returns what a node is, and the line of the model that it comes from."""
    kind = {"call_module": f"module {node.target}", "output": "the output"}
    text = kind.get(node.op, getattr(node.target, "__name__", str(node.target)))
    lines = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip()]
    frames = [index for index, line in enumerate(lines) if line.startswith("File ") and "/torch/nn/" not in line]
    if not frames:
        return text
    file, number = lines[frames[-1]].split(",")[:2]
    return f"{text} at {file.removeprefix('File ').strip(chr(34))}:{number.removeprefix(' line ')}"
