"""Random networks, put together of the pieces that people use: `from pieces import networks`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

BATCH = 3
TOKENS = 4
Shape = tuple[int, ...]  # of one example: channels and height and width, tokens and features, or features
Step = Callable[[Tensor], Tensor]
SIDE = 6  # of the first image


class Through(nn.Module):
    """A piece: some layers, and what is done with them."""

    def __init__(self, forward: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.step = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x, *self.layers)


@dataclass(frozen=True)
class Piece:
    """A piece of a network.

    Attributes:
        build: Makes it.
        shape: Of what it gives.
    """

    build: Callable[[], nn.Module]
    shape: Shape


def conv(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, groups=groups)


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def attention(x: Tensor, qkv: nn.Module, out: nn.Module) -> Tensor:
    n, t, _ = x.shape
    q, k, v = qkv(x).view(n, t, 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return x + out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))


def of_maps(c: int, h: int, w: int, out: int) -> dict[str, Piece]:
    """Returns pieces that read maps of c channels; `out` is a number of channels or features to be made."""
    norm = nn.BatchNorm2d
    found = {
        "conv": Piece(lambda: conv(c, out), (out, h, w)),
        "conv, norm, relu": Piece(lambda: nn.Sequential(conv(c, out, 1), norm(out), nn.ReLU()), (out, h, w)),
        "depthwise": Piece(lambda: conv(c, c, groups=c), (c, h, w)),
        "several filters of each": Piece(lambda: conv(c, 2 * c, groups=c), (2 * c, h, w)),
        "prelu": Piece(lambda: nn.PReLU(c), (c, h, w)),
        "instance norm": Piece(lambda: nn.InstanceNorm2d(c, affine=True), (c, h, w)),
        "scale": Piece(lambda: Scaled(c), (c, h, w)),
        "residual": Piece(
            lambda: Through(lambda x, a, n, b: functional.relu(x + b(n(a(x)))), conv(c, out), norm(out), conv(out, c)),
            (c, h, w),
        ),
        "shortcut": Piece(lambda: Through(lambda x, a, b: a(x) + b(x), conv(c, out), conv(c, out, 1)), (out, h, w)),
        "padded shortcut": Piece(
            lambda: Through(lambda x, a: functional.pad(x, (0, 0, 0, 0, 1, 2)) + a(x), conv(c, c + 3)), (c + 3, h, w)
        ),
        "beside each other": Piece(
            lambda: Through(lambda x, a, b: torch.cat([a(x), b(x).relu()], 1), conv(c, out), conv(c, 2)),
            (out + 2, h, w),
        ),
        "beside its input": Piece(lambda: Through(lambda x, a: torch.cat([x, a(x)], 1), conv(c, 2)), (c + 2, h, w)),
        "squeeze and excite": Piece(
            lambda: Through(
                lambda x, a, b: x * b(a(x.mean((2, 3), keepdim=True)).relu()).sigmoid(), conv(c, 2, 1), conv(2, c, 1)
            ),
            (c, h, w),
        ),
        "twice": Piece(lambda: Through(lambda x, a: a(a(x).relu()), conv(c, c)), (c, h, w)),
        "transposed": Piece(lambda: nn.ConvTranspose2d(c, out, 3, 1, 1), (out, h, w)),
        "slices": Piece(lambda: Through(lambda x: torch.cat([x[:, 1:], x[:, :1]], 1)), (c, h, w)),
        "to the mean": Piece(lambda: Through(lambda x: x.mean((2, 3))), (c,)),
        "to tokens": Piece(lambda: Through(lambda x: x.flatten(2).transpose(1, 2)), (h * w, c)),
    }
    if c % 2 == 0:
        half = c // 2
        found |= {
            "groups": Piece(lambda: conv(c, 2 * out, groups=2), (2 * out, h, w)),
            "group norm": Piece(lambda: nn.GroupNorm(2, c), (c, h, w)),
            "halves": Piece(
                lambda: Through(lambda x, a: torch.cat([(p := x.chunk(2, 1))[0], a(p[1])], 1), conv(half, half)),
                (c, h, w),
            ),
            "gate": Piece(lambda: Through(lambda x: (p := x.split(half, 1))[0] * p[1].sigmoid()), (half, h, w)),
            "shuffle": Piece(lambda: Through(shuffled), (c, h, w)),
        }
    if min(h, w) >= 4:
        found["pool"] = Piece(lambda: nn.MaxPool2d(2), (c, h // 2, w // 2))
    if max(h, w) <= 3:
        found["resize"] = Piece(lambda: nn.Upsample(scale_factor=2), (c, 2 * h, 2 * w))
        found["flatten"] = Piece(nn.Flatten, (c * h * w,))
        found["view by constants"] = Piece(lambda: Through(lambda x: x.view(-1, c * h * w)), (c * h * w,))
        found["view"] = Piece(lambda: Through(lambda x: x.view(x.size(0), -1)), (c * h * w,))
    if c % 4 == 0 and max(h, w) <= 3:
        found["pixel shuffle"] = Piece(lambda: nn.PixelShuffle(2), (c // 4, 2 * h, 2 * w))
    return found


class Scaled(nn.Module):
    """A number per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale[:, None, None]


def of_tokens(t: int, c: int, out: int) -> dict[str, Piece]:
    """Returns pieces that read sequences of t tokens of c features."""

    def both(kind: type[nn.RNNBase], ways: int) -> nn.Module:
        return Through(lambda x, r: r(x)[0], kind(c, out, batch_first=True, bidirectional=ways == 2))

    return {
        "linear": Piece(lambda: nn.Linear(c, out), (t, out)),
        "layer norm": Piece(lambda: nn.LayerNorm(c), (t, c)),
        "lstm": Piece(lambda: both(nn.LSTM, 1), (t, out)),
        "gru": Piece(lambda: both(nn.GRU, 1), (t, out)),
        "lstm both ways": Piece(lambda: both(nn.LSTM, 2), (t, 2 * out)),
        "mixed tokens": Piece(
            lambda: Through(lambda x, a, b: x + b(a(x.mT).relu()).mT, nn.Linear(t, out), nn.Linear(out, t)), (t, c)
        ),
        "mixed channels": Piece(
            lambda: Through(lambda x, a, b: x + b(functional.gelu(a(x))), nn.Linear(c, out), nn.Linear(out, c)), (t, c)
        ),
        "attention": Piece(lambda: Through(attention, nn.Linear(c, 6 * out), nn.Linear(2 * out, c)), (t, c)),
        "to the mean": Piece(lambda: Through(lambda x: x.mean(1)), (c,)),
        "to the last": Piece(lambda: Through(lambda x: x[:, -1]), (c,)),
    }


def of_features(c: int, out: int) -> dict[str, Piece]:
    """Returns pieces that read c features."""
    found = {
        "linear": Piece(lambda: nn.Linear(c, out), (out,)),
        "tanh": Piece(nn.Tanh, (c,)),
        "batch norm": Piece(lambda: nn.BatchNorm1d(c), (c,)),
        "layer norm": Piece(lambda: nn.LayerNorm(c), (c,)),
        "residual": Piece(
            lambda: Through(lambda x, a, b: x + b(a(x).relu()), nn.Linear(c, out), nn.Linear(out, c)), (c,)
        ),
        "to a map": Piece(lambda: Through(lambda x, a: a(x).view(-1, out, 2, 2), nn.Linear(c, 4 * out)), (out, 2, 2)),
        "experts": Piece(
            lambda: Through(
                lambda x, g, a, b: (g(x).softmax(-1)[:, :, None] * torch.stack([a(x), b(x)], 1)).sum(1),
                nn.Linear(c, 2), nn.Linear(c, out), nn.Linear(c, out),
            ),
            (out,),
        ),
    }  # fmt: skip
    if c % 2 == 0:
        found["gated"] = Piece(lambda: Through(lambda x: functional.glu(x, 1)), (c // 2,))
    return found


def pieces(shape: Shape, out: int) -> dict[str, Piece]:
    """Returns pieces that read examples of a shape."""
    if len(shape) == 3:
        return of_maps(*shape, out)
    return of_tokens(*shape, out) if len(shape) == 2 else of_features(*shape, out)


@dataclass(frozen=True)
class Random:
    """A network of several pieces.

    Attributes:
        first: The shape of an example.
        names: Which pieces, and how wide what they make is.
    """

    first: Shape
    names: tuple[tuple[str, int], ...]

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        shape, built = self.first, []
        for name, out in self.names:
            piece = pieces(shape, out)[name]
            built.append(piece.build())
            shape = piece.shape
        if len(shape) > 1:
            built.append(Through(lambda x: x.flatten(2).mean(2) if len(shape) == 3 else x.mean(1)))
        return nn.Sequential(*built, nn.Linear(shape[0] if len(shape) == 3 else shape[-1], 3))

    def inputs(self) -> Tensor:
        torch.manual_seed(1)
        return torch.randn(BATCH, *self.first)


@st.composite
def networks(draw: st.DrawFn, longest: int = 7) -> Random:
    """Draws a network whose pieces fit each other; the first one makes units."""
    first = draw(st.sampled_from([(3, SIDE, SIDE), (3, SIDE, SIDE), (TOKENS, 5), (6,)]))
    shape, names = first, []
    for place in range(draw(st.integers(2, longest))):
        out = draw(st.integers(2, 6))
        known = pieces(shape, out)
        makes = [name for name in known if place or name in ("conv", "conv, norm, relu", "linear", "lstm")]
        name = draw(st.sampled_from(makes))
        names.append((name, out))
        shape = known[name].shape
        if max(shape) > 60:
            break
    return Random(first, tuple(names))
