"""Trains a network in this process or in those that torchrun started: python in_processes.py OUT KIND ..."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import secateur
from secateur.errors import UsageError
from secateur.schedules import Cubic
from secateur.training.unit_masks import UnitMasks

STEPS = 10


def network() -> nn.Module:
    """No batch norm, whose statistics would be of half a batch; widths that two processes share out evenly."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(768, 10),
    )


def trained(kind: str) -> dict[str, torch.Tensor] | str:
    """Trains, and returns by layer which weights stay, or by group which units; or the error that came of it."""
    engine, _, what = kind.partition("-")
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 10, (16,), generator=generator)
    options: dict[str, Any] = {
        "": {},
        "taylor": {"score": "taylor"},
        "movement": {"score": "movement", "regrow": True},
        "filter": {"unit": "filter", "example_inputs": x[:2]},
        "during": {"unit": "filter", "example_inputs": x[:2], "cut": "during"},
    }[what]
    model: nn.Module = network()
    accelerator = Accelerator(cpu=True) if engine == "accelerate" else None
    if engine == "ddp":
        model = DistributedDataParallel(model)
    elif engine == "fsdp2":
        fully_shard(model, mesh=distributed.init_device_mesh("cpu", (size,)))
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if accelerator is not None:
        model, optimizer = accelerator.prepare(model, optimizer)
    schedule = Cubic(0.75, begin=1, end=8, every=2)
    try:
        pruner = secateur.TrainingPruner(model, schedule, optimizer=optimizer, **options)
    except UsageError as error:
        return str(error)
    mine = slice(rank * 16 // size, (rank + 1) * 16 // size)
    for _ in range(STEPS):
        loss = nn.functional.cross_entropy(model(x[mine]), y[mine])
        if accelerator is not None:
            accelerator.backward(loss)
        else:
            loss.backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    if isinstance(pruner.masks, UnitMasks):
        return {one.name: ~one.pruned for one in pruner.masks.coupled}
    return {name: layer.keep for name, layer in pruner.mask().layers.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    found = {kind: trained(kind) for kind in sys.argv[2:]}
    if distributed.get_rank() == 0:
        torch.save(found, sys.argv[1])
    distributed.barrier()
    distributed.destroy_process_group()
