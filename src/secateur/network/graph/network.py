"""A network whose structure was found by tracing it, and its unit groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.errors import UsageError
from secateur.network.family import Layout
from secateur.network.graph.costs import GraphCosts
from secateur.network.graph.cutting import cut_graph
from secateur.network.graph.groups import Fixed, free, groups_of
from secateur.network.graph.proof import tried
from secateur.network.graph.rules import rule_of
from secateur.network.graph.tracer import Decision
from secateur.network.graph.tracing import check_inputs, evaluating, traced
from secateur.network.graph.walker import Found, Walker
from secateur.network.network import Layer


class GraphNetwork:
    """Any network, with what tracing it says of its units.

    Attributes:
        model: The network. It isn't changed.
        device: Where it is computed.
        inputs: Example inputs.
        groups: Units that can be cut, in the order of computation.
        fixed: Those that can't.
        steps: What it does, as it was traced.
        found: What following the example inputs through it said.
        aliases: By tensor: all of its names, the one that it goes by first.
    """

    store = None

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        leaf_modules: Sequence[type[nn.Module] | str] = (),
        keep_class: bool = False,
    ) -> None:
        """Traces a network.

        Args:
            model: The network.
            example_inputs: What it takes: a tensor, or a tuple of arguments.
            leaf_modules: Modules, by kind or by name, that aren't looked into.
            keep_class: Whether a smaller network has to be of the same class: units that are counted by constants in
                its code can't be cut then.

        Raises:
            UsageError: The network doesn't take the example inputs.
            ModelError: It can't be traced; the message says where.
        """
        _check_network(model, leaf_modules)
        self.model = model
        self.inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        self.device = next(model.parameters()).device
        self.leaf_modules = tuple(leaf_modules)
        self._tensors = {n: one for n, one in model.state_dict(keep_vars=True).items() if isinstance(one, Tensor)}
        self.aliases = _aliases(self._tensors)
        with evaluating(model), torch.no_grad():
            check_inputs(model, self.inputs)
            self.steps = traced(model, self.inputs, leaf_modules)
            self.found = self._followed(keep_class)
        self.groups, fixed = groups_of(self)
        self.fixed = fixed + tried(self)

    def _followed(self, keep_class: bool) -> Found:
        """Follows the example inputs; where an axis of units is parted, along the axis that leaves most to cut."""
        best, chosen = self._walked({}, keep_class), dict[str, int]()
        for _ in range(2):  # what another choice left stuck may be freed by one more
            stuck = [
                node
                for node, (_, labels) in best.parted.items()
                if bool(best.labels.frozen(best.labels.roots(labels)).all())
            ]
            if not stuck:
                break
            most = max(best.parted[node][0] for node in stuck)
            tries = [
                {**chosen, **dict.fromkeys(nodes, choice)} for nodes in (stuck, best.parted) for choice in range(most)
            ]
            walked = [(best, chosen)] + [(self._walked(choices, keep_class), choices) for choices in tries]
            best, chosen = max(walked, key=lambda one: free(one[0]))
        return best

    def _walked(self, choices: Mapping[str, int], keep_class: bool) -> Found:
        found, steps = Found(), self.steps
        self._walk(steps.module, steps.decisions[0], choices, found)
        if steps.training is not None:
            once = (list(found.applied), found.uses.copy())
            with torch.random.fork_rng(), suppress(Exception):  # what training alone asks of its inputs isn't known
                self._walk(steps.training, steps.decisions[1], choices, found)
            found.applied, found.uses = once
        found.settle()
        if keep_class or not steps.alike or steps.decisions[0]:  # a traced module would do only what the example does
            for edit in found.edits:
                for labels in edit.labels():
                    found.labels.freeze(labels, f"their number is a constant in the code, at {edit.node}")
            found.edits = []
        found.labels.close()
        return found

    def _walk(
        self, module: fx.GraphModule, decisions: Sequence[Decision], choices: Mapping[str, int], found: Found
    ) -> None:
        names = {id(self._tensors[name]): name for name in self.aliases}
        walker = Walker(module, rule_of, names, self.leaf_names, self.steps.layers, choices, found)
        walker.run(*self.inputs)
        nodes = {node.name: node for node in walker.axes}
        for one in decisions:
            walker.freeze(walker.axes[nodes[one.node.name]][one.axis], f"{one.place} decides by how many they are")

    @property
    def leaf_names(self) -> list[str]:
        """The names of modules that aren't looked into."""
        kinds = tuple(leaf for leaf in self.leaf_modules if isinstance(leaf, type))
        named = [leaf for leaf in self.leaf_modules if isinstance(leaf, str)]
        return named + [name for name, module in self.model.named_modules() if kinds and isinstance(module, kinds)]

    @cached_property
    def costs(self) -> GraphCosts:
        """What it costs, whole and with fewer units; counted once."""
        return GraphCosts(self)

    @property
    def architecture(self) -> str:
        """The model's class name."""
        return type(self.model).__name__

    def tensor(self, name: str) -> Tensor:
        """Returns a parameter or a buffer by its full name."""
        return self._tensors[name].detach()

    def layer(self, name: str) -> Layer:
        """Returns a linear or convolutional layer."""
        module = self.model.get_submodule(name)
        parameter = module.weight
        assert isinstance(parameter, nn.Parameter)
        return Layer(name, parameter, Layout.OUT_IN, name, module)

    def shared(self, name: str) -> bool:
        """Returns whether a layer's weight is used more than once."""
        return self.found.uses[self.canonical(f"{name}.weight")] > 1

    def canonical(self, name: str) -> str:
        """Returns the name that a tensor goes by."""
        return next(first for first, names in self.aliases.items() if name in names)

    @contextmanager
    def resident(self, block: int | None) -> Iterator[None]:
        """All weights are in memory."""
        yield

    def visit(self, layers: Iterable[Layer]) -> Iterator[Layer]:
        """Yields layers; all weights are in memory."""
        yield from layers

    def parameters(self) -> int:
        """Returns the number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def _check_network(model: nn.Module, leaf_modules: Sequence[type[nn.Module] | str]) -> None:
    """Raises UsageError if a network can't be computed as it is, or leaf modules are named that it doesn't have."""
    name = type(model).__name__
    if torch.is_inference_mode_enabled():
        raise UsageError("a network is traced and cut with its gradients at hand: leave torch.inference_mode().")
    parameters = list(model.parameters())
    if not parameters:
        raise UsageError(f"{name} has no parameters: there is nothing to prune.")
    if any(one.is_meta for one in parameters):
        raise UsageError(f"{name} is on the meta device, without weights: load them first.")
    known = {path for path, _ in model.named_modules()}
    for leaf in leaf_modules:
        if isinstance(leaf, str) and leaf not in known:
            raise UsageError(f"leaf_modules: {name} has no module '{leaf}'; they go by their names in named_modules().")


def _aliases(state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    by_id: dict[int, list[str]] = defaultdict(list)
    for name, tensor in state.items():
        by_id[id(tensor)].append(name)
    return {names[0]: names for names in by_id.values()}


__all__ = ["Fixed", "GraphNetwork", "cut_graph"]
