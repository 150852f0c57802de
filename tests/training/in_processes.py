"""Trains a network in one or two processes and saves the masks that come out: python in_processes.py KIND OUT."""

from __future__ import annotations

import os
import sys

import torch
from accelerate import Accelerator
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import secateur
from secateur.schedules import Cubic

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


def main(kind: str, out: str) -> None:
    """Trains, and saves by layer which weights stay, or by group which units."""
    engine, _, what = kind.partition("-")
    torch.set_num_threads(1)
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 10, (16,), generator=generator)
    options = {
        "": {},
        "taylor": {"score": "taylor"},
        "movement": {"score": "movement", "regrow": True},
        "filter": {"unit": "filter", "example_inputs": x[:2]},
        "during": {"unit": "filter", "example_inputs": x[:2], "cut": "during"},
    }[what]
    model: nn.Module = network()
    accelerator = Accelerator(cpu=True) if engine == "accelerate" else None
    if size > 1 and accelerator is None:
        distributed.init_process_group("gloo")
    if engine == "ddp":
        model = DistributedDataParallel(model)
    elif engine == "fsdp2":
        mesh = distributed.init_device_mesh("cpu", (size,))
        fully_shard(model, mesh=mesh)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if accelerator is not None:
        model, optimizer = accelerator.prepare(model, optimizer)
    pruner = secateur.TrainingPruner(model, Cubic(0.75, begin=1, end=8, every=2), optimizer=optimizer, **options)
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
    if options.get("unit") is None:
        masks = {name: layer.keep for name, layer in pruner.mask().layers.items()}
    else:
        masks = {one.name: ~one.pruned for one in pruner.masks.coupled}
    if rank == 0:
        torch.save(masks, out)
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
