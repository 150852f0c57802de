"""Follows a network's code, and lets it decide by the shapes that the example inputs have.

Where it decides by shapes of tensors (a condition, a loop, a size that becomes a plain number), it decides by those of
the example inputs.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.network.graph.places import where

MADE = ("zeros", "ones", "full")  # make tensors of sizes, and would ask for plain numbers
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
    "is_nested",
)
OPEN = (  # modules of torch.nn that are looked into if their code can be traced, unlike its others
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
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

    tracer: Tracer

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


class Tracer(fx.Tracer):
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

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        plain = {name: getattr(torch, name) for name in MADE}
        try:
            for name, function in plain.items():
                setattr(torch, name, partial(self._make, function))
            return super().trace(root, concrete_args)
        finally:
            for name, function in plain.items():
                setattr(torch, name, function)

    def _make(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Any:
        """Has a tensor that is made of sizes be a step of the graph."""
        sizes = args[0] if args and isinstance(args[0], tuple | list) else args
        stands_for = any(isinstance(size, fx.Proxy) for size in (*sizes, *kwargs.values())) and not self._running
        return self.create_proxy("call_function", function, args, kwargs) if stands_for else function(*args, **kwargs)

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
        return named or (super().is_leaf_module(m, module_qualified_name) and not isinstance(m, OPEN))

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
            with in_mode(self.root, training=False), torch.no_grad(), torch.random.fork_rng():
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


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Has a model train or evaluate while it lasts; afterwards each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, before in modes:
            module.training = before


def evaluating(model: nn.Module) -> AbstractContextManager[None]:
    """Has a model in evaluation mode while it lasts."""
    return in_mode(model, training=False)
