"""Stand-ins for a model's blocks: they skip a block, replace what it gives, or record how it is called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from secateur.calibration.inputs import model_inputs
from secateur.calibration.windows import Windows
from secateur.errors import CalibrationError
from secateur.network.family import Stack
from secateur.network.network import Network

Call = tuple[tuple[Any, ...], dict[str, Any]]  # a block's arguments, but for the hidden states


class _StandIn(nn.Module):
    """Stands in for a block: hands the hidden states on, or others instead, and may note the arguments of the call."""

    def __init__(self, block: nn.Module, stack: Stack, instead: Tensor | None) -> None:
        super().__init__()
        self._block = [block]  # in a list, so that it isn't registered as a child
        self._stack = stack
        self._instead = instead

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"][0], name)  # such as `attention_type`

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not args:
            raise CalibrationError(
                f"{type(self.__dict__['_block'][0]).__name__} gets its hidden states by keyword, "
                "which this version of secateur doesn't know."
            )
        hidden = args[0] if self._instead is None else self._instead
        return hidden if self._stack.block_returns == 0 else (hidden, *self._others(args, kwargs))

    def _others(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[Any]:
        """What a block returns beside its hidden states; nobody reads it."""
        return [None] * (self._stack.block_returns - 1)


class _Recorder(_StandIn):
    """A stand-in that notes the arguments of the call."""

    def __init__(
        self, block: nn.Module, stack: Stack, instead: Tensor | None, calls: list[Call], carried: list[Any]
    ) -> None:
        super().__init__(block, stack, instead)
        self._calls = calls
        self._carried = carried

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        returned = super().forward(*args, **kwargs)
        self._calls.append((args, kwargs))
        return returned

    def _others(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[Any]:
        """With a stack that carries something from block to block: what its first block makes, for all of them."""
        if not self._stack.carries:
            return super()._others(args, kwargs)
        if not self._carried:
            self._carried.extend(self._block[0](*args, **kwargs)[1:])
        return self._carried


class _Bypass(_StandIn):
    """A stand-in for a block that is left out: hands on what its stack carries from block to block, too."""

    def _others(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[Any]:
        """What the block makes of it or hands on itself: the next block needs it."""
        if not self._stack.carries:
            return super()._others(args, kwargs)
        others: tuple[Any, ...] = self._block[0](*args, **kwargs)[1:]
        return others


@contextmanager
def standing_in(
    network: Network, calls: list[Call], recorded: range, instead: Mapping[int, Tensor] = MappingProxyType({})
) -> Iterator[None]:
    """Has stand-ins in the place of a model's blocks.

    Args:
        network: The model.
        calls: Takes up the recorded blocks' calls.
        recorded: Those blocks: all of one stack, or none.
        instead: By block: hidden states to return whatever came in.
    """
    blocks = list(network.blocks)
    carried: list[Any] = []
    try:
        for index, block in enumerate(blocks):
            about = (block, network.stack_of(index), instead.get(index))
            network.put_block(index, _Recorder(*about, calls, carried) if index in recorded else _StandIn(*about))
        yield
    finally:
        for index, block in enumerate(blocks):
            network.put_block(index, block)


@contextmanager
def skipped(network: Network, block: int) -> Iterator[None]:
    """Has a block hand its hidden states on as they are while it lasts."""
    whole = network.blocks[block]
    network.put_block(block, _Bypass(whole, network.stack_of(block), None))
    try:
        yield
    finally:
        network.put_block(block, whole)


def record(
    network: Network, windows: Windows, blocks: range, instead: Mapping[int, Tensor] = MappingProxyType({})
) -> tuple[Tensor, list[Call]]:
    """Runs the prelude of a stack of blocks on windows without padding.

    Returns:
        The hidden states before the first of the blocks, and each block's call.
    """
    calls: list[Call] = []
    first, others = model_inputs(network, windows)
    options = {"use_cache": False} if network.family.objective in ("causal", "seq2seq") else {}
    with standing_in(network, calls, blocks, instead):
        network.base(first, **others, **options)
    if len(calls) != len(blocks):
        raise CalibrationError(
            f"{network.architecture} called {len(calls)} of its {len(blocks)} blocks; "
            "only models that run each block once can be calibrated."
        )
    return calls[0][0][0], [(args[1:], kwargs) for args, kwargs in calls]
