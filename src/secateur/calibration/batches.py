"""Batches of whatever a network takes: a DataLoader's, or tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import CalibrationError, first_line
from secateur.network.graph.values import tensors

PER_BATCH = 64

Loss = Callable[[Any, Any], Tensor]  # of (output, target): the mean over a batch
Judge = Callable[[Any, Any], Any]  # of (output, target)


@dataclass(frozen=True)
class Batch:
    """Arguments of one forward, and what should come out.

    Attributes:
        inputs: The network's arguments.
        target: What a loss or a metric holds the output against; None where there is none.
    """

    inputs: tuple[Any, ...]
    target: Any = None

    @property
    def size(self) -> int:
        """How many examples it has."""
        return int(self.inputs[0].shape[0])


def batches_of(data: Any, arguments: int, samples: int | None = None) -> list[Batch]:
    """Returns a data set's batches.

    Args:
        data: A DataLoader or another iterable of batches; or a tensor, or a tuple of tensors of the same length. A
            batch is a tensor, or a tuple of the network's arguments and perhaps a target behind them.
        arguments: How many arguments the network takes.
        samples: Examples at most, in whole batches; None takes all.

    Raises:
        CalibrationError: There are no batches, or they don't fit the network.
    """
    found, seen = [], 0
    for item in _parts(data):
        if samples is not None and seen >= samples:
            break
        batch = _batch(item, arguments)
        if not batch.size:
            raise CalibrationError("a batch has no examples.")
        found.append(batch)
        seen += batch.size
    if not found:
        raise CalibrationError("the calibration data has no batch.")
    return found


def _parts(data: Any) -> Iterator[Any]:
    if isinstance(data, Tensor):
        yield from data.split(PER_BATCH)
    elif isinstance(data, tuple) and data and all(isinstance(one, Tensor) for one in data):
        if len({len(one) for one in data}) > 1:
            raise CalibrationError(f"the tensors have different lengths: {[len(one) for one in data]}.")
        yield from zip(*(one.split(PER_BATCH) for one in data), strict=True)
    elif isinstance(data, Iterable) and not isinstance(data, str | bytes | Mapping):
        yield from data
    else:
        raise CalibrationError(f"a {type(data).__name__} gives no batches; bring a DataLoader or tensors.")


def _batch(item: Any, arguments: int) -> Batch:
    parts = tuple(item) if isinstance(item, tuple | list) else (item,)
    if len(parts) not in (arguments, arguments + 1) or not isinstance(parts[0], Tensor):
        raise CalibrationError(
            f"a batch is a {type(item).__name__} of {len(parts)}, and the network takes {arguments} arguments: a batch "
            "is a tensor, or a tuple of the arguments with perhaps a target behind them."
        )
    return Batch(parts[:arguments], parts[arguments] if len(parts) > arguments else None)


def loss_of(loss: Loss, output: Any, target: Any) -> Tensor:
    """Returns what a loss makes of a batch: one number.

    Raises:
        CalibrationError: It fails, or gives anything else.
    """
    try:
        value = loss(output, target)
    except CalibrationError:
        raise
    except Exception as error:  # whatever a function of the user's own raises
        raise CalibrationError(f"the loss can't be computed for a batch: {first_line(error)}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f" of the shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise CalibrationError(f"the loss must give one number for a batch but gave a {type(value).__name__}{shape}.")
    return value.reshape(())


@torch.no_grad()
def try_out(model: nn.Module, batches: Sequence[Batch], what: str, judges: Sequence[Judge] = ()) -> None:
    """Sends the first batch through, so that data which doesn't fit is found before any work is done.

    Args:
        model: The network, in evaluation mode.
        batches: What goes through; none is fine.
        what: What the data is for, for the error.
        judges: What is computed of the output and the target, too.

    Raises:
        CalibrationError: The network can't take it, gives NaN, or a judge can't be computed.
    """
    batch = next(iter(batches), None)
    if batch is None:
        return
    try:
        output = model(*batch.inputs)
    except Exception as error:  # whatever a network of the user's own raises
        raise CalibrationError(f"the network doesn't take the {what} data: {first_line(error)}") from error
    if any(bool(one.isnan().any()) for one in tensors(output)):
        raise CalibrationError(f"the network gives NaN on the first batch of the {what} data.")
    for judge in judges:
        judge(output, batch.target)


def default_loss(output: Any, target: Any) -> Tensor:
    """Returns cross-entropy for classes, half the squared error for other targets, and for none half the output's size.

    Raises:
        CalibrationError: The output isn't a tensor, or is of another shape than the target.
    """
    if isinstance(output, Mapping):  # a transformers model's, whose logits come first
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        output = output[0]
    if not isinstance(output, Tensor):
        raise CalibrationError(f"the network gives a {type(output).__name__}; give loss=, a function (output, target).")
    if isinstance(target, Tensor) and not target.is_floating_point() and output.ndim > target.ndim:
        return torch.nn.functional.cross_entropy(output, target)
    if isinstance(target, Tensor):
        if output.numel() != target.numel():
            raise CalibrationError(
                f"the targets of a batch have the shape {tuple(target.shape)}, and the outputs {tuple(output.shape)}: "
                "give loss=, a function (output, target)."
            )
        return 0.5 * torch.nn.functional.mse_loss(output, target.reshape(output.shape))
    return 0.5 * output.float().square().mean()
