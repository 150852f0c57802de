"""The block runner: feeds calibration windows through a model one block at a time.

The model's own forward runs once with its blocks replaced by recorders. That runs the prelude (embeddings,
masks, position embeddings) as it is and catches every block's real arguments, whatever transformers passes
in this release. After that each block is called by itself. Behind an encoder's last block the forward runs once
more, with what that block gave, so that the decoder's blocks get what the encoder as it is now makes of its input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration.activations import IN_MEMORY, Activations, Storage
from secateur.calibration.experts import ExpertUsage, Routing, add_usage, expert_inputs, watching_experts
from secateur.calibration.inputs import model_inputs
from secateur.calibration.loss import add_gradients, differentiating
from secateur.calibration.precision import gram_products, half_in_float32, products
from secateur.calibration.stand_ins import Call, record, standing_in
from secateur.calibration.statistics import INPUTS, Gradients, Needs, Statistics
from secateur.calibration.watching import LastInputSeen, watching
from secateur.calibration.windows import Windows
from secateur.errors import CalibrationError
from secateur.network.network import Layer, Network
from secateur.processes import ALONE, Processes

TOKENS_PER_BATCH = 2048


class BlockRunner:
    """Calibration activations, standing before one block of a model.

    Attributes:
        network: The model.
        hidden: The hidden states before the block that comes next, one tensor per batch, in the model's dtype (or what
            its blocks give, where that is wider).
        team: The processes that share out the batches.
        batches: How many batches they have together.
    """

    def __init__(
        self,
        network: Network,
        windows: Windows,
        compute: str = "auto",
        storage: Storage = IN_MEMORY,
        name: str = "hidden",
        per_batch: int | None = None,
        team: Processes = ALONE,
    ) -> None:
        """Runs the prelude.

        Args:
            network: The model.
            windows: What to feed it.
            compute: See `products`.
            storage: Where activations may be kept.
            name: Of the activations, where they are kept in files.
            per_batch: Windows per batch; None takes as many as make good use of the processor.
            team: The processes that share out the batches: number i is rank i % size's.
        """
        self.network = network
        self.compute = compute
        self.team = team
        batches = windows.batches(per_batch or max(1, TOKENS_PER_BATCH // windows.length))
        self.batches = len(batches)
        self._windows = batches[team.rank :: team.size]
        self._calls: list[list[Call]] = []  # [batch][block]
        self._seen: list[Tensor] = []
        self._ranges = network.ranges
        self.hidden = Activations(name, storage, 0)
        for number, part in enumerate(self._windows):
            with torch.inference_mode(), half_in_float32(network.model.dtype, torch.device("cpu")):
                hidden, calls = record(network, part, self._ranges[0])
            if number == 0:
                self.hidden = Activations(name, storage, hidden.nbytes * sum(map(len, self._windows)) // len(part))
            self.hidden.append(hidden)
            self._calls.append([((), {})] * len(network.blocks))
            self._take_up(number, calls, self._ranges[0])
        # in files at once, where there are any: `restore` can't make them again
        self._encoded = Activations(f"encoded-{name}", replace(storage, limit=0), 1, self._ranges[0].stop)

    def _take_up(self, batch: int, calls: Sequence[Call], blocks: range) -> None:
        """Notes the arguments of some blocks."""
        for block, call in zip(blocks, calls, strict=True):
            self._calls[batch][block] = _shared(call, self._seen)

    def _enter(self, blocks: range, batch: int, encoded: Tensor) -> Tensor:
        """Runs the prelude of a stack of blocks on what the block before it gave; returns their hidden states."""
        dtype = self.network.model.dtype
        with torch.inference_mode(), products("float32", dtype, torch.device("cpu")):
            hidden, calls = record(self.network, self._windows[batch], blocks, {blocks.start - 1: encoded})
        self._take_up(batch, calls, blocks)
        return hidden

    def restore(self, position: int) -> None:
        """Stands before the block at `position`, with the activations that a run that ended early has saved there."""
        for blocks in self._ranges[1:]:
            if position >= blocks.start:
                self._encoded.restore(blocks.start, len(self._windows))
                for batch in range(len(self._windows)):
                    self._enter(blocks, batch, self._encoded[batch])
        self.hidden.restore(position, len(self.hidden))

    def close(self) -> None:
        """Gives up the activations, those in files, too."""
        self.hidden.close()
        self._encoded.close()

    @property
    def position(self) -> int:
        """Index of the block that comes next."""
        return self.hidden.position

    @property
    def outputs(self) -> Activations:
        """What the block before the next one gave: the hidden states, but for an encoder's last block."""
        return self._encoded if any(self.position == blocks.start for blocks in self._ranges[1:]) else self.hidden

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Has the next block on the compute device, for `forward`, for as long as it lasts."""
        block, device = self.block, self.network.device
        with torch.inference_mode(), products(self.compute, self.network.model.dtype, device):
            if device.type == "cpu":
                yield
                return
            block.to(device)
            try:
                yield
            finally:
                block.to("cpu")

    def forward(self, batch: int) -> Tensor:
        """Returns the next block's output for a batch, as the block is now.

        To be called where the block is on the compute device, as it is within `advance`.
        """
        args, kwargs = self._calls[batch][self.position]
        device = self.network.device
        hidden = self.hidden[batch].to(device)
        output = self.block(hidden, *_to(args, device), **_to(kwargs, device))
        result: Tensor = output if isinstance(output, Tensor) else output[0]
        return result.to("cpu", torch.promote_types(result.dtype, hidden.dtype))

    @property
    def block(self) -> nn.Module:
        """The block that comes next."""
        return self.network.blocks[self.position]

    def gather(
        self,
        layers: Mapping[str, tuple[Layer, Needs]],
        tick: Callable[[], None],
    ) -> dict[str, Statistics]:
        """Passes every batch through the next block and returns the statistics of its layers' inputs.

        Args:
            layers: By input name (`Layer.reads`): a layer that reads it, and what is needed of it.
            tick: Called after each batch.

        Returns:
            Statistics by input name, on the compute device; of no tokens where none was routed to an expert.
        """
        device = self.network.device
        found = {name: Statistics.empty(layer.shape[1], needs, device) for name, (layer, needs) in layers.items()}
        layers = {name: entry for name, entry in layers.items() if entry[1] & INPUTS}
        if not layers:
            return {}
        with self.ready(), self._watching_inputs(layers, found):
            for batch in range(len(self.hidden)):
                with suppress(LastInputSeen):
                    self.forward(batch)
                tick()
        for name, (layer, _) in layers.items():
            found[name].add_up(self.team)
            if layer.expert is None or found[name].count:
                found[name].check(layer.name)
        return {name: found[name] for name in layers}

    @contextmanager
    def _watching_inputs(
        self, layers: Mapping[str, tuple[Layer, Needs]], found: Mapping[str, Statistics]
    ) -> Iterator[None]:
        """Adds the inputs of the next block's layers to `found` while it lasts; those of experts come last."""
        plain = {name: entry for name, entry in layers.items() if entry[0].expert is None}
        routed = {name: layer for name, (layer, _) in layers.items() if layer.expert is not None}
        if not routed:
            with watching(plain, found, self.compute):
                yield
            return

        def look(routing: Routing) -> None:
            for name, x in expert_inputs(self.block, self.network.family, routed, routing):
                with gram_products(self.compute):
                    found[name].add(x)
            raise LastInputSeen

        with (
            watching(plain, found, self.compute, stop=False),
            watching_experts(self._experts(), look, len(self.hidden)),
        ):
            yield

    def _experts(self) -> nn.Module:
        """The module that applies the next block's experts, of which it has some."""
        path = self.network.family.experts
        assert path is not None
        return self.block.get_submodule(path)

    def expert_usage(self, tick: Callable[[], None]) -> ExpertUsage:
        """Passes every batch through the next block up to its experts, and returns how much each of them is used.

        Args:
            tick: Called after each batch.

        Returns:
            Sums over the tokens of all processes, (experts,) each; of no experts if the block has none.

        Raises:
            CalibrationError: The experts are called in an unknown way, or a contribution is NaN or infinite.
        """
        layers = self.network.block_layers(self.position)
        usage = ExpertUsage.empty(len({layer.expert for layer in layers if layer.expert is not None}))
        if len(usage.count) == 0:
            return usage
        experts = self._experts()

        def look(routing: Routing) -> None:
            add_usage(usage, experts, routing)
            raise LastInputSeen

        with self.ready(), watching_experts(experts, look, len(self.hidden)):
            for batch in range(len(self.hidden)):
                with suppress(LastInputSeen):
                    self.forward(batch)
                tick()
        usage.add_up(self.team)
        if not bool(torch.isfinite(usage.contribution).all()):
            raise CalibrationError(
                f"the experts of {self.network.block_name(self.position)} give NaN or infinite outputs on the "
                "calibration data; try --compute float32."
            )
        return usage

    def gradients(self, layers: Sequence[Layer], needs: Needs, tick: Callable[[], None]) -> dict[str, Gradients]:
        """Passes every batch through the next block and back, and returns its layers' gradients by name.

        The loss of a batch is ½ mean ||f(x) - x||² over its tokens: the error of reconstructing the block's output
        without the block. (At the dense weights the error of reconstructing f(x) by itself has no gradient.)
        """
        device = self.network.device
        found = {layer.name: Gradients.empty(layer.shape, needs, device) for layer in layers}
        if not layers:
            return found
        with self.differentiable(), differentiating(layers) as parameters:
            for batch in range(len(self.hidden)):
                x, args, kwargs = self.ordinary_call(batch)
                output = self.block(x, *args, **kwargs)
                y = output if isinstance(output, Tensor) else output[0]
                loss = 0.5 * (y.float() - x.float()).square().sum(-1).mean()
                add_gradients(found, layers, parameters, torch.autograd.grad(loss, parameters))
                tick()
        for layer in layers:
            found[layer.name].add_up(self.team)
            found[layer.name].check(layer.name)
        return found

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """Has the next block on the compute device, and lets gradients be taken."""
        with self.ready(), torch.inference_mode(False), torch.enable_grad():
            yield

    def ordinary_call(self, batch: int) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
        """Returns copies of the next block's arguments that can take part in gradients: hidden states, args, kwargs."""
        args, kwargs = _ordinary(self._calls[batch][self.position], self.network.device)
        return self.hidden[batch].to(self.network.device).clone(), args, kwargs

    def block_outputs(self) -> Iterator[tuple[int, Tensor]]:
        """Yields each batch's number and what the next block gives for it, without moving on.

        Until it ends no gradients are taken (`ready`), so it has to be used up, and not beside another one.
        """
        with self.ready():
            for batch in range(len(self.hidden)):
                yield batch, self.forward(batch)

    def advance(self, tick: Callable[[], None], watch: Callable[[int, Tensor], None] | None = None) -> None:
        """Passes every batch through the next block as it is now, and stands before the one after it.

        Args:
            tick: Called after each batch.
            watch: Called with each batch's number and the block's output, while `hidden` still has its input.
        """
        follows = next((blocks for blocks in self._ranges[1:] if blocks.start == self.position + 1), None)
        with self.ready():
            for batch in range(len(self.hidden)):
                hidden = self.forward(batch)
                if watch is not None:
                    watch(batch, hidden)
                self._calls[batch][self.position] = ((), {})  # not needed again
                if follows is not None:
                    self._encoded.append(hidden)
                    hidden = self._enter(follows, batch, hidden)
                self.hidden.put(batch, hidden)
                tick()
        self.hidden.advance()

    def output(self, batch: int) -> Tensor:
        """Returns the model's first output (logits) for a batch; the runner stands behind the last block."""
        last = len(self.network.blocks) - 1
        assert self.position == last + 1
        first, others = model_inputs(self.network, self._windows[batch])
        with torch.inference_mode(), standing_in(self.network, [], range(0), {last: self.hidden[batch]}):
            found: Tensor = self.network.model(first, **others)[0]
        return found

    def gather_outside(self, layers: Iterable[tuple[Layer, Needs]], tick: Callable[[], None]) -> dict[str, Statistics]:
        """Returns statistics of the inputs of layers outside of the blocks (a head).

        The runner stands behind the last block.
        """
        wanted = {layer.reads: (layer, needs) for layer, needs in layers if needs & INPUTS}
        if not wanted:
            return {}
        cpu = torch.device("cpu")
        found = {name: Statistics.empty(layer.shape[1], needs, cpu) for name, (layer, needs) in wanted.items()}
        with products(self.compute, self.network.model.dtype, cpu), watching(wanted, found, self.compute, stop=False):
            for batch in range(len(self.hidden)):
                self.output(batch)
                tick()
        for name, (layer, _) in wanted.items():
            found[name].add_up(self.team)
            found[name].check(layer.name)
        return found


def _shared(call: Call, seen: list[Tensor]) -> Call:
    """Replaces tensors by equal ones seen before: masks and rotary tables are the same for all batches."""

    def intern(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(intern(item) for item in value)
        if not isinstance(value, Tensor):
            return value
        if any(known is value for known in seen):
            return value
        for known in seen:
            if known.shape == value.shape and torch.equal(known, value):
                return known
        seen.append(value)
        return value

    args, kwargs = call
    return intern(args), {name: intern(value) for name, value in kwargs.items()}


def _to(value: Any, device: torch.device) -> Any:
    """Moves the tensors in nested tuples and dicts."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_to(item, device) for item in value)
    if isinstance(value, dict):
        return {name: _to(item, device) for name, item in value.items()}
    return value


def _ordinary(value: Any, device: torch.device) -> Any:
    """Copies the tensors in nested tuples and dicts: those made in inference mode can't take part in gradients."""
    if isinstance(value, Tensor):
        return value.to(device).clone()
    if isinstance(value, tuple):
        return tuple(_ordinary(item, device) for item in value)
    if isinstance(value, dict):
        return {name: _ordinary(item, device) for name, item in value.items()}
    return value
