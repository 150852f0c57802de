"""What bench/vision.py and bench/vision_peer.py prune: CIFAR ResNets, an FC network, EfficientNet-lite0."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two convolutions of 3 x 3; where they halve the image, the shortcut takes every second pixel and pads channels.

    Args:
        width: Channels that come in.
        out: Channels that go out.
        stride: Of the first convolution.
    """

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.extra = stride, (out - width) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Returns (images, out, height / stride, width / stride)."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return functional.relu(x + y)


class CifarResNet(nn.Module):
    """A residual network for 32 x 32 images (He et al. 2015, arXiv 1512.03385, section 4.2).

    Args:
        depth: 6 n + 2: 20, 56 ...
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    def _stage(self, width: int, out: int, blocks: int, stride: int) -> nn.Sequential:
        return nn.Sequential(Block(width, out, stride), *(Block(out, out, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (images, 10) logits."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class Separable(nn.Module):
    """EfficientNet-lite's block: 1 x 1 up, depthwise, 1 x 1 down. TensorFlow's padding: more of it behind the image.

    Args:
        width: Channels that come in.
        out: Channels that go out.
        kernel: Of the depthwise convolution.
        stride: Of the same.
        expansion: How many times as wide it is inside; 1 leaves the first convolution out.
    """

    def __init__(self, width: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = nn.Conv2d(width, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=1e-3)
        before = (kernel - stride) // 2
        self.around = (before, kernel - stride - before) * 2
        self._depthwise_conv = nn.Conv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = nn.BatchNorm2d(inner, eps=1e-3)
        self._project_conv = nn.Conv2d(inner, out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out, eps=1e-3)
        self.shortcut = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        """Returns (images, out, height / stride, width / stride)."""
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(functional.pad(y, self.around))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.shortcut else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-B0 (Tan and Le 2019, arXiv 1905.11946) with ReLU6 and without squeeze-and-excite.

    Parameters have the names of efficientnet-lite-pytorch. Images: 224 x 224, (RGB - 127) / 128.
    """

    STAGES = (  # blocks, kernel, stride, expansion, channels
        (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        self._blocks = nn.ModuleList()
        width = 32
        for blocks, kernel, stride, expansion, out in self.STAGES:
            for block in range(blocks):
                self._blocks.append(Separable(width, out, kernel, 1 if block else stride, expansion))
                width = out
        self._conv_head = nn.Conv2d(width, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (images, 1000) logits."""
        x = functional.relu6(self._bn0(self._conv_stem(functional.pad(x, (0, 1, 0, 1)))))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        return self._fc(x.mean((2, 3)))


def fully_connected() -> nn.Sequential:
    """Returns an FC network for MNIST, with two hidden layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)
    )
