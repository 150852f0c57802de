"""Several processes that work on one run, as `torchrun` starts them: what they share, and how they hear of each other.

Collectives are torch.distributed's: gloo on processors, NCCL where blocks are computed on GPUs. With one process
everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from secateur.errors import ProcessError, UsageError, first_line

T = TypeVar("T")
PATIENCE = timedelta(hours=12)  # a rank may wait for another one's solving; a rank that dies is noticed at once


@dataclass(frozen=True)
class Processes:
    """The processes of one run.

    Attributes:
        rank: This one's number.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> None:
        """Adds up a tensor over all processes, in place."""
        if self.size > 1:
            with _lost():
                distributed.all_reduce(tensor)

    def send(self, tensor: Tensor, owner: int) -> None:
        """Gives all processes the owner's tensor, in place."""
        if self.size > 1:
            with _lost():
                distributed.broadcast(tensor, owner)

    def share(self, thing: T, owner: int = 0) -> T:
        """Returns the owner's thing, a plain record or number, in every process."""
        if self.size == 1:
            return thing
        box = [thing]
        with _lost():
            distributed.broadcast_object_list(box, owner)
        return box[0]

    def wait(self) -> None:
        """Waits until all processes have come here."""
        if self.size > 1:
            with _lost():
                distributed.barrier()


ALONE = Processes()


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Joins the processes that torchrun started, if it did.

    Args:
        device: `auto`, `cpu`, `cuda` or `mps`: where blocks are computed.

    Raises:
        UsageError: The environment that torchrun sets is incomplete.
        ProcessError: The others can't be reached, or one of them has died.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(f"WORLD_SIZE is {size}, but {', '.join(missing)} is missing; start secateur by torchrun.")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with _lost():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield Processes(distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()


@contextmanager
def _lost() -> Iterator[None]:
    """Names what a broken connection means."""
    try:
        yield
    except (RuntimeError, distributed.DistError) as error:
        raise ProcessError(
            f"another process of this run has died or can't be reached ({first_line(error)}); its own message says "
            "why. The same command with --resume goes on."
        ) from error
