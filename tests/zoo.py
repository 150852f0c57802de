"""Small networks of the kinds that people bring: `from zoo import ZOO`. Each entry gives a network and its inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers)


class Basic(nn.Module):
    """ResNet-18's block."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.one = conv(inputs, outputs, stride=stride)
        self.two = conv(outputs, outputs)[:2]
        self.down = conv(inputs, outputs, 1, stride)[:2] if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.two(self.one(x)) + self.down(x))


class Padded(nn.Module):
    """CIFAR ResNet's block: its shortcut pads new channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return functional.relu(y + x)


class Bottleneck(nn.Module):
    """ResNet-50's block; with groups ResNeXt's."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv(inputs, middle, 1), conv(middle, middle, stride=stride, groups=groups), conv(middle, outputs, 1)[:2]
        )
        self.down = conv(inputs, outputs, 1, stride)[:2] if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(x) + self.down(x))


class Head(nn.Module):
    """Pools and classifies."""

    def __init__(self, inputs: int, classes: int = 10) -> None:
        super().__init__()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(x), 1))


class Inverted(nn.Module):
    """MobileNet-V2's block; with squeeze-and-excite EfficientNet's."""

    def __init__(self, inputs: int, outputs: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        middle = 3 * inputs
        self.expand, self.depth = conv(inputs, middle, 1), conv(middle, middle, stride=stride, groups=middle)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(middle, 4, 1), nn.SiLU(), nn.Conv2d(4, middle, 1), nn.Sigmoid()
        )
        self.project = conv(middle, outputs, 1)[:2]
        self.excited, self.residual = squeeze, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.expand(x))
        if self.excited:
            y = y * self.squeeze(y)
        y = self.project(y)
        return x + y if self.residual else y


class Dense(nn.Module):
    """DenseNet's layer: what it makes is put beside what it read."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(functional.relu(self.norm2(y)))], 1)


class Inception(nn.Module):
    """Branches beside each other."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one, self.three = conv(inputs, 4, 1), nn.Sequential(conv(inputs, 4, 1), conv(4, 6))
        self.five = nn.Sequential(conv(inputs, 3, 1), conv(3, 4, 5))
        self.pool = conv(inputs, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(functional.max_pool2d(x, 3, 1, 1))
        return torch.cat((self.one(x), self.three(x), self.five(x), pooled), dim=1)


class Shuffle(nn.Module):
    """ShuffleNet-V2's unit: half of the channels pass by, then the halves are interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(conv(half, half, 1), conv(half, half, groups=half)[:2], conv(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, dim=1)
        y = torch.cat((one, self.branch(two)), dim=1)
        n, c, h, w = y.size()
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class UNet(nn.Module):
    """Down, up by transposed convolution and by pixel shuffle, and across."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = conv(3, 6), conv(6, 8), conv(8, 16)
        self.up2 = nn.ConvTranspose2d(16, 8, 2, 2)
        self.side2, self.side1 = conv(16, 24), conv(12, 6)
        self.shuffle, self.last = nn.PixelShuffle(2), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(functional.max_pool2d(one, 2))
        three = self.bottom(functional.max_pool2d(two, 2))
        two = self.side2(torch.cat([self.up2(three), two], 1))
        one = self.side1(torch.cat([self.shuffle(two), one], 1))
        return self.last(one)


class Mixer(nn.Module):
    """MLP-Mixer's block."""

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.tokens = nn.Sequential(nn.Linear(tokens, 12), nn.GELU(), nn.Linear(12, tokens))
        self.channels = nn.Sequential(nn.Linear(channels, 20), nn.GELU(), nn.Linear(20, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class MixerNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(Mixer(16, 8), Mixer(16, 8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


class Recurrent(nn.Module):
    """A classifier of sequences."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], layers: int, both: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.rnn = kind(6, 8, num_layers=layers, bidirectional=both, batch_first=True)
        self.fc = nn.Linear(16 if both else 8, 5)

    def forward(self, ids: Tensor) -> Tensor:
        output, _ = self.rnn(self.embed(ids))
        return self.fc(output[:, -1])


class Mixture(nn.Module):
    """Experts, weighted by a gate: all of them, as in a mixture that is computed densely."""

    def __init__(self, width: int = 12, experts: int = 3) -> None:
        super().__init__()
        self.embed, self.gate = nn.Linear(48, width), nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 10), nn.GELU(), nn.Linear(10, width)) for _ in range(experts)
        )
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1)).relu()
        mixed = torch.stack([expert(x) for expert in self.experts], 1)
        return self.fc(self.norm(x + (self.gate(x).softmax(-1)[..., None] * mixed).sum(1)))


class ConvNextBlock(nn.Module):
    """ConvNeXt's block: channels last between two permutations, and a scale per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth, self.norm = nn.Conv2d(channels, channels, 7, 1, 3, groups=channels), nn.LayerNorm(channels)
        self.one, self.two = nn.Linear(channels, 3 * channels), nn.Linear(3 * channels, channels)
        self.scale = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.scale * self.two(functional.gelu(self.one(y)))
        return x + y.permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        ).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """ViT's self-attention, its three projections in one layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class Transformer(nn.Module):
    """ViT's block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), Attention(width, 4)
        self.mlp = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.Sequential(Transformer(width), Transformer(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class Split(nn.Module):
    """Sizes as constants: split, narrow views and slices."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(3, 10), conv(6, 4)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.one(x), [6, 4], dim=1)
        y = self.two(a) + b
        y = torch.cat([y[:, :2], y[:, 2:], b], 1).mean((2, 3))
        return self.fc(y.view(-1, 8))


def images(batch: int = 4, size: int = 16) -> Tensor:
    return torch.randn(batch, 3, size, size)


def vgg() -> nn.Module:
    return nn.Sequential(
        conv(3, 8), conv(8, 8), nn.MaxPool2d(2), conv(8, 12), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(192, 16), nn.ReLU(), nn.Dropout(0.0), nn.Linear(16, 10),
    )  # fmt: skip


def volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1), nn.InstanceNorm3d(6, affine=True), nn.PReLU(6), nn.ConvTranspose3d(6, 4, 2, 2),
        nn.Conv3d(4, 2, 1),
    )  # fmt: skip


def waves() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.LeakyReLU(), nn.AvgPool1d(2), nn.Conv1d(6, 4, 3))


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "resnet18": (lambda: nn.Sequential(conv(3, 8), Basic(8, 8), Basic(8, 16, 2), Basic(16, 16), Head(16)), images),
    "resnet20": (lambda: nn.Sequential(conv(3, 8), Padded(8, 8), Padded(8, 16, 2), Padded(16, 16), Head(16)), images),
    "resnet50": (
        lambda: nn.Sequential(
            conv(3, 8), Bottleneck(8, 6, 16), Bottleneck(16, 6, 16), Bottleneck(16, 8, 24, 2), Head(24)
        ),
        images,
    ),
    "resnext": (lambda: nn.Sequential(conv(3, 8), Bottleneck(8, 12, 16, groups=3), Head(16)), images),
    "vgg": (vgg, images),
    "densenet": (
        lambda: nn.Sequential(conv(3, 8), Dense(8, 4), Dense(12, 4), conv(16, 8, 1), Dense(8, 4), Head(12)),
        images,
    ),
    "mobilenet_v2": (
        lambda: nn.Sequential(conv(3, 8), Inverted(8, 8, 1, False), Inverted(8, 12, 2, False), Head(12)),
        images,
    ),
    "efficientnet": (
        lambda: nn.Sequential(conv(3, 8), Inverted(8, 8, 1, True), Inverted(8, 12, 2, True), Head(12)),
        images,
    ),
    "inception": (lambda: nn.Sequential(conv(3, 8), Inception(8), Inception(18), Head(18)), images),
    "unet": (UNet, images),
    "shufflenet": (lambda: nn.Sequential(conv(3, 8), Shuffle(8), Shuffle(8), conv(8, 12, 1), Head(12)), images),
    "mixer": (MixerNet, images),
    "fc": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 4)
        ),
        lambda: images(size=4),
    ),
    "mixture": (Mixture, lambda: images(size=4)),
    "convnext": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 4, 4),
            ChannelNorm(8),
            ConvNextBlock(8),
            ChannelNorm(8),
            nn.Conv2d(8, 12, 2, 2),
            ConvNextBlock(12),
            Head(12),
        ),
        images,
    ),
    "vit": (ViT, images),
    "lstm": (lambda: Recurrent(nn.LSTM, 2, True), lambda: torch.randint(0, 20, (3, 7))),
    "gru": (lambda: Recurrent(nn.GRU, 1, False), lambda: torch.randint(0, 20, (3, 7))),
    "constants": (Split, images),
    "volumes": (volumes, lambda: torch.randn(2, 2, 4, 4, 4)),
    "waves": (waves, lambda: torch.randn(3, 2, 20)),
}
