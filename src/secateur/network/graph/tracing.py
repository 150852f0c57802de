"""Traces a network with torch.fx, and says where it can't be traced.

Where a network's code decides by the shapes of tensors (a condition, a loop, a size that becomes a plain number), it
decides by those of the example inputs.
"""

from __future__ import annotations

import inspect
import operator
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.errors import ModelError, UsageError, first_line

HARMLESS = (
    "dim",
    "ndimension",
    "is_floating_point",
    "is_complex",
    "ndim",
    "dtype",
    "device",
    "requires_grad",
    "layout",
)


@dataclass(frozen=True)
class Decision:
    """A size that the code decided by, so that the graph is of the example inputs' shapes.

    Attributes:
        node: What gives the tensor.
        axis: Of it.
        place: Where in the code.
    """

    node: fx.Node
    axis: int
    place: str


class _Sized(fx.Proxy):
    """Stands for a value in the network's code. One that is made of shapes is the number that it is in the example."""

    tracer: _Tracer

    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        return _Attribute(self, k)

    def __int__(self) -> int:
        return int(self.tracer.decided(self.node))

    def __index__(self) -> int:
        return operator.index(self.tracer.decided(self.node))

    def __float__(self) -> float:
        return float(self.tracer.decided(self.node))

    def __len__(self) -> int:
        value = self.tracer.value(self.node)
        return len(value) if not isinstance(value, Tensor) else self.tracer.decided(self.size(0).node)


class _Attribute(fx.proxy.Attribute, _Sized):
    """Stands for an attribute of a value."""


class _Tracer(fx.Tracer):
    """Computes what the example inputs lead to, as far as a decision in the network's code needs it."""

    def __init__(self, leaves: tuple[type[nn.Module] | str, ...], inputs: tuple[Any, ...]) -> None:
        super().__init__()
        self.record_stack_traces = True
        self.decisions: list[Decision] = []
        self._kinds = tuple(leaf for leaf in leaves if isinstance(leaf, type))
        self._names = {leaf for leaf in leaves if isinstance(leaf, str)}
        self._inputs = inputs
        self._runner: fx.Interpreter | None = None
        self._running = False

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Has a placeholder for each argument of the example; others keep their defaults."""
        names = list(inspect.signature(root_fn).parameters)[1:]
        names += [f"input_{number}" for number in range(len(names), len(self._inputs))]
        placeholders = [self.create_proxy("placeholder", name, (), {}) for name in names[: len(self._inputs)]]
        return root_fn, [self.root, *placeholders]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        named = module_qualified_name in self._names or isinstance(m, self._kinds)
        return named or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Sized(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.decided(obj.node))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter([operator.getitem(obj, place) for place in range(len(obj))])

    def value(self, node: fx.Node) -> Any:
        """Returns what the example inputs lead to at a node. All nodes are computed in their order, once."""
        if self._runner is None:
            self._runner = fx.Interpreter(self.root, garbage_collect_values=False, graph=self.graph)
            self._runner.args_iter = iter(self._inputs)
        known = self._runner.env
        self._running = True
        try:
            for one in list(islice(self.graph.nodes, len(known), None)):
                known[one] = self._runner.run_node(one)
        finally:
            self._running = False
        return known[node]

    def decided(self, node: fx.Node) -> Any:
        """Returns a value that the code decides by.

        Raises:
            fx.proxy.TraceError: It isn't made of shapes alone.
        """
        value = self.value(node)
        self.decisions += [Decision(of, axis, where(node)) for of, axis in self._sizes(node)]
        return value

    def _sizes(self, node: fx.Node) -> Iterator[tuple[fx.Node, int]]:
        """Yields tensors and axes of them whose sizes a value is made of."""
        if isinstance(self.value(node), Tensor):
            raise fx.proxy.TraceError("its code decides by what stands in a tensor")
        known = self._shape(node)
        if known is not None:
            tensor, axes = known
            yield from ((tensor, axis) for axis in axes)
        elif node.target not in HARMLESS and not (node.target is getattr and node.args[1] in HARMLESS):
            for one in node.all_input_nodes:
                yield from self._sizes(one)

    def _shape(self, node: fx.Node) -> tuple[fx.Node, list[int]] | None:
        """Returns the tensor and its axes whose sizes a node gives; None if it gives something else."""
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node):
            return None
        if node.target is operator.getitem and isinstance(node.args[1], int | slice):
            known = self._shape(first)
            picked: Any = None if known is None else known[1][node.args[1]]
            return None if known is None else (known[0], picked if isinstance(picked, list) else [picked])
        if node.target == "size" or (node.target is getattr and node.args[1] == "shape"):
            every = list(range(self.value(first).ndim))
            dims: list[Any] = [*node.args[1:], *node.kwargs.values()] if node.target == "size" else []
            return first, [every[int(dims[0])]] if dims else every
        return None


def traced(
    model: nn.Module, inputs: tuple[Any, ...], leaves: Sequence[type[nn.Module] | str] = ()
) -> tuple[fx.GraphModule, list[Decision]]:
    """Returns a model's graph, whose modules and parameters are the model's own, and by which sizes its code decided.

    Args:
        model: The model.
        inputs: Example inputs.
        leaves: Modules, by kind or by name, that aren't looked into; what they read and give can't be cut.

    Raises:
        ModelError: The model can't be traced.
    """
    tracer = _Tracer(tuple(leaves), inputs)
    try:
        graph = tracer.trace(model)
    except Exception as error:  # whatever the model's own code makes of a proxy
        raise ModelError(
            f"torch.fx can't trace {type(model).__name__}: {first_line(error)} at {_place(error)}. Name the "
            "module that does this in leaf_modules=; it is left as it is then."
        ) from error
    return fx.GraphModule(tracer.root, graph), tracer.decisions


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
    own = [frame for frame in frames if _own(frame.filename)]
    frame = own[-1] if own else frames[-1]
    return f"{frame.filename}:{frame.lineno} ({frame.line})"


def _own(line: str) -> bool:
    """Whether a line of a stack names a file that is neither torch's nor this one."""
    return "/torch/" not in line and __file__ not in line


def where(node: fx.Node) -> str:
    """Returns what a node is, and the line of the model that it comes from."""
    kind = {"call_module": f"module {node.target}", "output": "the output"}
    text = kind.get(node.op, getattr(node.target, "__name__", str(node.target)))
    lines = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip()]
    frames = [index for index, line in enumerate(lines) if line.startswith("File ") and _own(line)]
    if not frames:
        return text
    file, number = lines[frames[-1]].split(",")[:2]
    return f"{text} at {file.removeprefix('File ').strip(chr(34))}:{number.removeprefix(' line ')}"
