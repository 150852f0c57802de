"""Traces a network with torch.fx, and says where it can't be traced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from secateur.errors import ModelError, UsageError, first_line
from secateur.network.graph.own_layers import own_layers
from secateur.network.graph.places import line_of
from secateur.network.graph.tracer import OPEN, Decision, Tracer, evaluating, in_mode


@dataclass(frozen=True)
class Traced:
    """What a model does, as it is written.

    Attributes:
        module: Its graph in evaluation; the modules and parameters in it are the model's own.
        training: Its graph in training where that has other steps, as far as it can be traced.
        alike: Whether it has the same steps in both.
        flags: Arguments that say in which mode it is: node, position of the argument or its name, module.
        decisions: Sizes that its code decided by in evaluation, and in training where that has other steps.
        layers: Names of layers of its own kind that do nothing but apply their weight, and pad.
    """

    module: fx.GraphModule
    training: fx.GraphModule | None
    alike: bool
    flags: tuple[tuple[str, int | str, str], ...]
    decisions: tuple[Sequence[Decision], Sequence[Decision]]
    layers: frozenset[str]


def traced(model: nn.Module, inputs: tuple[Any, ...], leaves: Sequence[type[nn.Module] | str] = ()) -> Traced:
    """Traces a model in evaluation, and as far as it differs in training. It isn't changed.

    Args:
        model: The model.
        inputs: Example inputs.
        leaves: Modules, by kind or by name, that aren't looked into; what they read and give can't be cut.

    Raises:
        ModelError: The model can't be traced in evaluation.
    """
    if any(one is not None for one in inputs):
        with in_mode(model, training=False):
            layers = frozenset(own_layers(model, inputs)) - set(leaves)
    else:
        layers = frozenset()
    leaves = (*leaves, *layers)
    try:
        module, decisions = _graph(model, inputs, leaves, training=False)
    except ModelError:
        leaves = (*leaves, *OPEN)
        module, decisions = _graph(model, inputs, leaves, training=False)
    try:
        training, others = _graph(model, inputs, leaves, training=True)
    except ModelError:
        return Traced(module, None, False, (), (decisions, ()), layers)
    flags = _flags(module, training)
    if flags is None:
        return Traced(module, training, False, (), (decisions, others), layers)
    return Traced(module, None, True, flags, (decisions, ()), layers)


def _graph(
    model: nn.Module, inputs: tuple[Any, ...], leaves: Sequence[type[nn.Module] | str], training: bool
) -> tuple[fx.GraphModule, list[Decision]]:
    tracer = Tracer(tuple(leaves), inputs)
    before = {module: dict(vars(module)) for module in model.modules()}
    try:
        with in_mode(model, training):
            graph = tracer.trace(model)
        for node in graph.nodes:
            node.type = None  # an annotation, which needn't be there where a saved module is loaded
            named = next((name for name in ("input", "tensors") if name in node.kwargs and not node.args), None)
            if named is not None:  # what an operation reads stands first
                node.args, node.kwargs = (node.kwargs[named],), {n: v for n, v in node.kwargs.items() if n != named}
        graph._tracer_cls = None  # whoever loads a saved module has no such tracer
        return fx.GraphModule(tracer.root, graph), tracer.decisions
    except Exception as error:  # whatever the model's own code makes of a proxy
        raise ModelError(
            f"torch.fx can't trace {type(model).__name__}: {first_line(error)} at {line_of(error)}. Name the "
            "module that does this in leaf_modules=; it is left as it is then."
        ) from error
    finally:
        for module, had in before.items():  # the tracer hangs constants on the model, and its code may keep values
            vars(module).clear()
            vars(module).update(had)


def _flags(one: fx.GraphModule, other: fx.GraphModule) -> tuple[tuple[str, int | str, str], ...] | None:
    """Returns where a graph says in which mode it is, if that is all that it differs in from another; else None."""
    if len(one.graph.nodes) != len(other.graph.nodes):
        return None
    flags: list[tuple[str, int | str, str]] = []
    for a, b in zip(one.graph.nodes, other.graph.nodes, strict=True):
        its = {**dict(enumerate(b.args)), **b.kwargs}
        own: dict[int | str, Any] = {**dict(enumerate(a.args)), **a.kwargs}
        if (a.op, str(a.target), set(own)) != (b.op, str(b.target), set(its)):
            return None
        unlike = [at for at, value in own.items() if str(value) != str(its[at])]
        if any(own[at] is not False or its[at] is not True for at in unlike):
            return None
        flags += [(a.name, at, _path(a)) for at in unlike]
    return tuple(flags)


def _path(node: fx.Node) -> str:
    """Returns the name of the module whose code a node stands in."""
    stack = node.meta.get("nn_module_stack") or {}
    found = [path for path, _ in stack.values()]
    return str(found[-1]) if found else ""


def check_inputs(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Raises UsageError if the model doesn't take the example inputs."""
    try:
        with torch.no_grad():
            model(*inputs)
    except Exception as error:
        kinds = ", ".join(
            f"a tensor of the shape {tuple(one.shape)}" if isinstance(one, torch.Tensor) else f"a {type(one).__name__}"
            for one in inputs
        )
        why = first_line(error).rstrip(".")
        raise UsageError(
            f"{type(model).__name__} doesn't take these example inputs ({kinds}): {why}. Give a tensor, or a tuple of "
            "its arguments."
        ) from error


__all__ = ["Traced", "check_inputs", "evaluating", "in_mode", "traced"]
