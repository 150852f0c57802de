"""What bench/vision.py and bench/vision_peer.py share: images, training, accuracy and speed. Imports no pruner."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from statistics import median

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from vision_networks import CifarResNet

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CALIBRATION = 1024  # images, the first of the training set
RATE, BATCH = 0.02, 32  # of learning, when two epochs make up for a cut
TURNS, SECONDS = 15, 0.5  # of timing, at least, after one turn that warms up


@dataclass(frozen=True)
class Images:
    """Images that a network takes, with their classes.

    Attributes:
        x_train, x_test: (images, channels, height, width) float32.
        y_train, y_test: (images,) int64.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def calibration(self) -> tuple[Tensor, Tensor]:
        """The images, with their classes, that pruning may look at."""
        return self.x_train[:CALIBRATION], self.y_train[:CALIBRATION]


def cifar(data: Path) -> Images:
    """Returns the CIFAR-10 images of `images/cifar10_small.npz`, normalised."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return _read(data / "images/cifar10_small.npz", lambda x: (x.permute(0, 3, 1, 2) - mean) / std)


def raw_cifar(data: Path) -> Images:
    """Returns the same, between 0 and 1."""
    return _read(data / "images/cifar10_small.npz", lambda x: x.permute(0, 3, 1, 2))


def mnist(data: Path) -> Images:
    """Returns `images/mnist.npz`, between 0 and 1."""
    return _read(data / "images/mnist.npz", lambda x: x.unsqueeze(1))


def _read(path: Path, prepare: Callable[[Tensor], Tensor]) -> Images:
    with np.load(path) as found:
        x_train, x_test = (prepare(torch.from_numpy(found[name]).float() / 255) for name in ("x_train", "x_test"))
        y_train, y_test = (torch.from_numpy(found[name]).long() for name in ("y_train", "y_test"))
    return Images(x_train, y_train, x_test, y_test)


def resnet(data: Path, depth: int) -> CifarResNet:
    """Returns the trained ResNet of a depth."""
    model = CifarResNet(depth)
    weights = load_file(data / f"models/resnet_cifar10/resnet{depth}.safetensors")
    counters = {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    model.load_state_dict(counters | weights)
    return model.eval()


def accuracy(model: nn.Module, images: Images) -> float:
    """Returns the share of the test images whose class comes out likeliest, in per cent."""
    return round(100 * float((likeliest(model, images.x_test) == images.y_test).float().mean()), 2)


def likeliest(model: nn.Module, x: Tensor) -> Tensor:
    """Returns (images,) classes."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(part).argmax(1) for part in x.split(100)])


def cropped_and_flipped(x: Tensor, random: torch.Generator) -> Tensor:
    """Returns images moved by up to 4 pixels with zeros behind them, half of them mirrored."""
    size = x.shape[-1]
    rows, columns = torch.randint(0, 9, (2, len(x)), generator=random)
    places = torch.arange(size)
    across = columns[:, None] + places
    mirrored = torch.rand(len(x), generator=random) < 0.5
    across[mirrored] = across[mirrored].flip(1)
    padded = functional.pad(x, (4, 4, 4, 4))
    some = torch.arange(len(x))[:, None, None]
    return padded.permute(0, 2, 3, 1)[some, (rows[:, None] + places)[:, :, None], across[:, None]].permute(0, 3, 1, 2)


def train(
    model: nn.Module,
    images: Images,
    epochs: int,
    rate: float,
    batch: int = 64,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    seed: int = 0,
) -> None:
    """Trains by SGD with Nesterov momentum 0.9 and weight decay 5e-4.

    The rate rises over the first tenth of the steps, then falls to zero as a cosine.

    Args:
        model: The network; changed in place.
        images: Of which the training set is taken.
        epochs: How many times.
        rate: The highest learning rate.
        batch: Images per step.
        augment: What is done to each batch.
        seed: Of the order of the images and of `augment`.
    """
    random = torch.Generator().manual_seed(seed)
    sgd = torch.optim.SGD(model.parameters(), rate, 0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(images.x_train) // batch)
    model.train()
    step = 0
    for _ in range(epochs):
        for some in torch.randperm(len(images.x_train), generator=random).split(batch)[: steps // epochs]:
            x = images.x_train[some]
            x = x if augment is None else augment(x, random)
            warm, rest = (step + 1) / (0.1 * steps), (step - 0.1 * steps) / (0.9 * steps)
            for group in sgd.param_groups:
                group["lr"] = rate * (warm if warm < 1 else 0.5 * (1 + cos(pi * max(rest, 0))))
            sgd.zero_grad()
            functional.cross_entropy(model(x), images.y_train[some]).backward()
            sgd.step()
            step += 1
    model.eval()


def tune(model: nn.Module, images: Images) -> None:
    """Trains a pruned CIFAR network for two more epochs: the same for ours and the peer's."""
    train(model, images, epochs=2, rate=RATE, batch=BATCH, augment=cropped_and_flipped)


def macs(model: nn.Module, images: Tensor) -> int:
    """Returns the multiply-accumulates of convolutions and linear layers for a batch."""
    found = []

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        axis = 1 if output.ndim > 2 else -1
        found.append(output.numel() // output.shape[axis] * weight.numel())

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [module.register_forward_hook(count) for module in layers]
    with torch.inference_mode():
        model(images)
    for handle in handles:
        handle.remove()
    return sum(found)


def speed_up(dense: nn.Module, pruned: nn.Module, images: Tensor) -> float:
    """Returns how many times faster a network is than the dense one on a batch, by processor time, both in turns."""
    times: list[list[float]] = [[], []]
    with torch.inference_mode():
        for model in (dense, pruned):
            model(images)
        while len(times[0]) < TURNS or sum(times[0]) < SECONDS:
            for model, own in zip((dense, pruned), times, strict=True):
                start = time.process_time()
                model(images)
                own.append(time.process_time() - start)
    return round(median(times[0]) / median(times[1]), 3)


def speeds(dense: nn.Module, pruned: nn.Module, images: Tensor) -> dict[str, float]:
    """Returns by how much a network is faster at batches of 1 and of 64."""
    return {f"speed_{size}": speed_up(dense, pruned, images[:size]) for size in (1, 64)}
