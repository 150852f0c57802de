"""Computes a traced network node by node, each for all batches, so that a layer can be changed when its turn comes."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from secateur.calibration.batches import Batch
from secateur.errors import CalibrationError, first_line

LIMIT = 2 << 30  # bytes of one walk's values that are held in memory
SMALL = 1 << 16  # bytes that aren't worth a file


class Lockstep:
    """One walk through a graph. What no later node reads is let go of.

    Attributes:
        nodes: The graph's, in the order of computation.
        values: By node: what it gave for each batch. Large tensors beyond a limit are mapped from temporary files.
    """

    def __init__(self, module: fx.GraphModule, batches: Sequence[Batch], limit: int = LIMIT) -> None:
        """Starts before the first node.

        Args:
            module: The network. It is computed in the modes that its modules are in when their turn comes.
            batches: What to feed.
            limit: Bytes that may be held in memory.
        """
        self.nodes: tuple[fx.Node, ...] = tuple(module.graph.nodes)
        self.values: dict[fx.Node, list[Any]] = {}
        self._interpreter = fx.Interpreter(module, garbage_collect_values=False)
        self._batches = batches
        self._arguments = {node: place for place, node in enumerate(n for n in self.nodes if n.op == "placeholder")}
        self._last = _last_uses(self.nodes)
        self._limit = limit
        self._held: dict[fx.Node, int] = defaultdict(int)

    def compute(self, node: fx.Node) -> None:
        """Computes a node for all batches; those before it have to be there.

        Raises:
            CalibrationError: There is no room for its values.
        """
        if node.op == "output":
            return
        with torch.inference_mode():
            self.values[node] = [self._value(node, number) for number in range(len(self._batches))]

    def leave(self, node: fx.Node) -> None:
        """Lets go of what isn't read after a node."""
        for one in self._last.get(node, ()):
            self.values.pop(one, None)
            self._held.pop(one, None)

    def _value(self, node: fx.Node, number: int) -> Any:
        if node.op == "placeholder":
            inputs, place = self._batches[number].inputs, self._arguments[node]
            return inputs[place] if place < len(inputs) else node.args[0]
        read = {one: self.values[one][number] for one in node.all_input_nodes}
        self._interpreter.env = read
        value = self._interpreter.run_node(node)
        if node.op == "get_attr" or not isinstance(value, Tensor) or _shares(value, read.values()):
            return value  # not a tensor of its own
        if (
            sum(self._held.values()) + value.nbytes > self._limit
            and value.device.type == "cpu"
            and value.nbytes > SMALL
        ):
            return _mapped(value)
        self._held[node] += value.nbytes
        return value


def _shares(value: Tensor, others: Iterable[Any]) -> bool:
    """Says whether a tensor lies in the memory of another one, or might."""
    place = value.untyped_storage().data_ptr()
    return any(not isinstance(one, Tensor) or one.untyped_storage().data_ptr() == place for one in others)


def _mapped(value: Tensor) -> Tensor:
    """Returns a tensor in a temporary file that goes with it."""
    flat = value.contiguous().flatten()
    try:
        with tempfile.NamedTemporaryFile(prefix="secateur-", delete=False) as file:
            flat.view(torch.uint8).numpy().tofile(file)
        found = torch.from_file(file.name, shared=True, size=flat.numel(), dtype=flat.dtype).view(value.shape)
    except (OSError, RuntimeError) as error:
        raise CalibrationError(
            f"activations can't be kept in {tempfile.gettempdir()}: {first_line(error)}. Set TMPDIR to a folder with "
            "room, or take fewer calibration examples (samples=)."
        ) from error
    with suppress(PermissionError):  # where what is mapped can't be removed
        Path(file.name).unlink()
    return found


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
