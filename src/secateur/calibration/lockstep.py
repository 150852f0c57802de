"""Computes a traced network node by node, each for all batches, so that a layer can be changed when its turn comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from secateur.calibration.batches import Batch


class Lockstep:
    """One walk through a graph. What no later node reads is let go of.

    Attributes:
        nodes: The graph's, in the order of computation.
        values: By node: what it gave for each batch.
    """

    def __init__(self, module: fx.GraphModule, batches: Sequence[Batch]) -> None:
        """Starts before the first node.

        Args:
            module: The network. It is computed in the modes that its modules are in when their turn comes.
            batches: What to feed.
        """
        self.nodes: tuple[fx.Node, ...] = tuple(module.graph.nodes)
        self.values: dict[fx.Node, list[Any]] = {}
        self._interpreter = fx.Interpreter(module, garbage_collect_values=False)
        self._batches = batches
        self._arguments = {node: place for place, node in enumerate(n for n in self.nodes if n.op == "placeholder")}
        self._last = _last_uses(self.nodes)

    def compute(self, node: fx.Node) -> None:
        """Computes a node for all batches; those before it have to be there."""
        if node.op == "output":
            return
        with torch.inference_mode():
            self.values[node] = [self._value(node, number) for number in range(len(self._batches))]

    def leave(self, node: fx.Node) -> None:
        """Lets go of what isn't read after a node."""
        for one in self._last.get(node, ()):
            self.values.pop(one, None)

    def _value(self, node: fx.Node, number: int) -> Any:
        if node.op == "placeholder":
            inputs, place = self._batches[number].inputs, self._arguments[node]
            return inputs[place] if place < len(inputs) else node.args[0]
        self._interpreter.env = {one: self.values[one][number] for one in node.all_input_nodes}
        return self._interpreter.run_node(node)


def _last_uses(nodes: Sequence[fx.Node]) -> Mapping[fx.Node, list[fx.Node]]:
    """Returns by node what is read there for the last time, or made there and never read."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        last[node] = node
        for one in node.all_input_nodes:
            last[one] = node
    found: dict[fx.Node, list[fx.Node]] = {}
    for one, node in last.items():
        found.setdefault(node, []).append(one)
    return found
