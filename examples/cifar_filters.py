"""Trains a small convolutional network on CIFAR-10 and removes half of its filters while it trains.

    python examples/cifar_filters.py DATA [EPOCHS] [OUT]

DATA is an .npz file with `x_train`, `y_train`, `x_test`, `y_test`, images as uint8 of (images, height, width, channels)
or, as MNIST has them, (images, height, width). OUT is a folder for the smaller network, which secateur.rebuild reads.
"""

import sys

import numpy as np
import torch
from torch import Tensor, nn

import secateur
from secateur.schedules import Cubic
from secateur.training.regularization import BatchNormScale

data = np.load(sys.argv[1])
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 10


def images_of(name: str) -> Tensor:
    pixels = torch.tensor(data[name]).float() / 255
    return pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)


def convolution(read: int, written: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(read, written, 3, stride, 1, bias=False), nn.BatchNorm2d(written), nn.ReLU()]


def make(channels: int) -> nn.Module:
    return nn.Sequential(
        *convolution(channels, 32, 1),
        *convolution(32, 64, 2),
        *convolution(64, 64, 1),
        *convolution(64, 128, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


images, tests = images_of("x_train"), images_of("x_test")
classes, answers = (torch.tensor(data[name]).long().flatten() for name in ("y_train", "y_test"))
torch.manual_seed(0)
model = make(images.shape[1])
optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
steps = epochs * -(-len(images) // 64)
pruner = secateur.TrainingPruner(
    model,
    Cubic(0.5, begin=steps // 5, end=steps * 3 // 5, every=max(1, steps // 20)),
    unit="filter",
    score="bn-scale",
    regularizer=BatchNormScale(1e-4),
    allocation="global",
    min_units=4,
    cut="during",
    optimizer=optimizer,
    example_inputs=images[:1],
)
rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)


def accuracy() -> float:
    model.eval()
    with torch.no_grad():
        right = [
            (model(part).argmax(1) == of).sum() for part, of in zip(tests.split(500), answers.split(500), strict=True)
        ]
    model.train()
    return float(sum(right)) / len(tests)


for epoch in range(epochs):
    for rows in torch.randperm(len(images)).split(64):
        nn.functional.cross_entropy(model(images[rows]), classes[rows]).backward()
        pruner.regularize()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        rate.step()
    filters = [layer.out_channels for layer in model if isinstance(layer, nn.Conv2d)]
    print(f"epoch {epoch + 1}: filters {filters}, {accuracy():.1%} of the test images are right")

if len(sys.argv) > 3:
    small = pruner.save(sys.argv[3], overwrite=True)
    again = secateur.rebuild(make(images.shape[1]), sys.argv[3])
    print("saved and read again:", torch.equal(again.eval()(tests[:8]), small.eval()(tests[:8])))
