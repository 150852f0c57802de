"""A small network, its data, and a plain training loop with a pruner in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from secateur.training.pruner import TrainingPruner


def network(seed: int = 1) -> nn.Module:
    """Two convolutions, a batch norm, a linear layer."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns images: (16, 3, 8, 8), and their classes: (16,)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 10, (16,), generator=generator)


def loss_of(model: nn.Module) -> Tensor:
    """Returns the cross-entropy on `data()`."""
    x, y = data()
    return nn.functional.cross_entropy(model(x), y)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """Returns AdamW with much weight decay."""
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def train(
    model: nn.Module,
    steps: int,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    pruner: TrainingPruner | None = None,
    each: Callable[[TrainingPruner], None] | None = None,
    **options: Any,
) -> TrainingPruner:
    """Trains for some steps and returns the pruner, which is made of `options` unless it is given."""
    optimizer = optimizer or adam(model)
    pruner = pruner or secateur.TrainingPruner(model, optimizer=optimizer, **options)
    for _ in range(steps):
        loss_of(model).backward()
        if pruner.regularizer is not None:
            pruner.regularize()
        optimizer.step()
        pruner.step()
        if each is not None:
            each(pruner)
        optimizer.zero_grad()
    return pruner
