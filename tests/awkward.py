"""Small networks that ask for trouble: `from awkward import CUT, FIXED`.

Each names what it does with the units of its first layer `a`: they can be cut in spite of it, or have to stay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

Forward = Callable[[Any, Tensor], Any]


@dataclass(frozen=True)
class Case:
    """A network and what must be found in it.

    Attributes:
        build: Makes the network.
        inputs: Makes its input.
        groups: Units that can be cut, by the module that makes them, in order.
        reason: Part of the reason why the units of `module` can't be cut.
        module: Which.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    groups: tuple[tuple[str, int], ...] = ()
    reason: str = ""
    module: str = "a"


def net(forward: Forward, **parts: Any) -> Callable[[], nn.Module]:
    """Returns what builds a module that has these parts and calls `forward(self, x)`."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in copy.deepcopy(parts).items():
                if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                    self.register_buffer(name, part)
                else:
                    setattr(self, name, part)

        def forward(self, x: Any) -> Any:
            return forward(self, x)

    return Net


def image() -> Tensor:
    return torch.randn(3, 3, 8, 8)


def vector() -> Tensor:
    return torch.randn(3, 6)


def tokens() -> Tensor:
    return torch.randn(3, 5, 6)


def ids() -> Tensor:
    return torch.randint(0, 11, (3, 5))


def of_image(between: Forward, width: int = 8, read: int | None = None, **parts: Any) -> Callable[[], nn.Module]:
    """Returns a network of a convolution to `width` channels, something in between, a mean and a linear layer."""
    end = nn.Linear(width if read is None else read, 4)
    return net(lambda m, x: m.z(between(m, m.a(x)).mean((2, 3))), a=nn.Conv2d(3, width, 3), z=end, **parts)


def of_vector(between: Forward, width: int = 8, read: int | None = None, **parts: Any) -> Callable[[], nn.Module]:
    """Returns a network of a linear layer of `width` neurons, something in between, and another linear layer."""
    end = nn.Linear(width if read is None else read, 4)
    return net(lambda m, x: m.z(between(m, m.a(x))), a=nn.Linear(6, width), z=end, **parts)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def shuffled(channels_first: bool, minus: bool = False) -> Forward:
    def forward(_: Any, y: Tensor) -> Tensor:
        n, c, h, w = y.shape
        part = -1 if minus else c // 2
        y = y.view(n, part, 2, h, w) if channels_first else y.view(n, 2, part, h, w)
        return y.transpose(1, 2).reshape(n, -1 if minus else c, h, w)

    return forward


def attention(m: Any, x: Tensor) -> Tensor:
    b, n, _ = x.shape
    q, k, v = m.a(x).reshape(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return m.z((q @ k.transpose(-2, -1) * 0.5).softmax(-1).matmul(v).transpose(1, 2).reshape(b, n, 8))


def heads(m: Any, x: Tensor) -> Tensor:
    b, n, _ = x.shape
    q, k, v = (part(x).view(b, n, 2, 4).transpose(1, 2) for part in (m.a, m.k, m.v))
    return m.z(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 8))


def squeeze_and_excite(m: Any, y: Tensor) -> Tensor:
    b, c, _, _ = y.size()
    return y * m.g(y.mean((2, 3)).view(b, c)).sigmoid().view(b, c, 1, 1)


def affine(m: Any, x: Tensor) -> Tensor:
    scale, shift = m.f(x.mean((2, 3))).chunk(2, 1)
    return m.z((m.a(x) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]).mean((2, 3)))


def added_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y += m.b(x)
    y = F.relu(y, inplace=True)
    y.mul_(2).clamp_(max=3)
    return m.z(y)


def experts(forward: Forward) -> Callable[[], nn.Module]:
    some = (nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 8)) for _ in range(3))
    return net(forward, g=nn.Linear(6, 3), e=nn.ModuleList(some), z=nn.Linear(8, 4))


def gated(m: Any, x: Tensor) -> Tensor:
    gates = m.g(x).softmax(-1)
    return m.z(sum(gates[:, place : place + 1] * expert(x) for place, expert in enumerate(m.e)))


def stacked(m: Any, x: Tensor) -> Tensor:
    return m.z((m.g(x).softmax(-1)[:, :, None] * torch.stack([expert(x) for expert in m.e], 1)).sum(1))


def contracted(m: Any, x: Tensor) -> Tensor:
    return m.z(torch.einsum("be,bec->bc", m.g(x).softmax(-1), torch.stack([expert(x) for expert in m.e], 1)))


def recurrent(kind: Any, pick: Callable[[Any, Any], Tensor], width: int = 8, **options: Any) -> Callable[[], nn.Module]:
    def forward(m: Any, x: Tensor) -> Tensor:
        output, state = m.a(x)
        return m.z(pick(output, state))

    return net(forward, a=kind(6, 8, batch_first=True, **options), z=nn.Linear(width, 4))


def started(m: Any, x: Tensor) -> Tensor:
    zeros = torch.zeros(1, x.shape[0], 8)
    return m.z(m.a(x, (zeros, zeros))[0][:, -1])


class Tied(nn.Module):
    """An embedding whose weight is the output's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Embedding(11, 6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.z = nn.Linear(6, 11, bias=False)
        self.z.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.z(self.c(self.b(self.a(x)).relu()))


class SameWeight(nn.Module):
    """Two layers that have one weight, and a bias each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.z = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 4)
        self.c.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.z(self.c(self.b(self.a(x).relu()).relu()).relu())


class Auxiliary(nn.Module):
    """Has a second output, of layers of its own, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.aux, self.z = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.a(x).relu()
        main = self.z(y.mean((2, 3)))
        return (main, self.aux(y).mean((2, 3))) if self.training else main


class Unsaved(nn.Module):
    """Scales by a tensor that isn't saved with it."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        self.a, self.z = nn.Linear(6, 8), nn.Linear(8, 4)
        if registered:
            self.register_buffer("scale", torch.randn(8), persistent=False)
        else:
            self.scale = torch.randn(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.z(self.a(x) * self.scale)


class Keeping(nn.Module):
    """Keeps what it computed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.z = of_vector(lambda m, y: y)(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.inner.kept = self.kept = self.inner(x)
        return self.z(self.kept)


class Named(nn.Module):
    """Takes a dictionary and gives nested ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.z = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, some: Any) -> Any:
        first, second = some["x"][0], some["x"][1]
        return {"z": (self.z(self.a(first) + self.b(some["y"])), [second])}


class Same(nn.Conv2d):
    """A convolution that pads as TensorFlow does: as much as its input needs, more behind than before."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.size()[-2:]
        needed = [
            max((-(-size // step) - 1) * step + kernel - size, 0)
            for size, step, kernel in zip((height, width), self.stride, self.kernel_size, strict=True)
        ]
        if max(needed) > 0:
            x = F.pad(x, [needed[1] // 2, needed[1] - needed[1] // 2, needed[0] // 2, needed[0] - needed[0] // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Backwards(nn.Linear):
    """A linear layer that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flip(0), self.bias)


def hooked(kind: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    """Returns a network of two linear layers, the first with a weight that is computed from others."""

    def build() -> nn.Module:
        model = of_vector(lambda m, y: y.relu())()
        kind(model.a)
        return model

    return build


A8, C = (("a", 8),), nn.Conv2d
CUT = {
    # torch's own transformers
    "a transformer's encoder": Case(
        net(lambda m, x: m.z(m.t(m.a(x)).mean(1)), a=nn.Linear(6, 8), z=nn.Linear(8, 4),
        t=nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True), 2)),
        tokens, (("t.layers.0.linear1", 12), ("t.layers.1.linear1", 12)),
    ),
    "a transformer with a decoder": Case(
        net(lambda m, x: m.z(m.t(m.a(x), m.a(x))), a=nn.Linear(6, 8), z=nn.Linear(8, 4),
        t=nn.Transformer(8, 2, 1, 1, 12, 0.0, activation="gelu", batch_first=True)),
        tokens, (("t.encoder.layers.0.linear1", 12), ("t.decoder.layers.0.linear1", 12)),
    ),
    # the same tensors again
    "a layer used twice": Case(
        of_image(lambda m, y: m.b(m.b(y).relu()), b=C(8, 8, 3, padding=1)), image, (("a", 8),)
    ),
    "a norm used twice": Case(of_image(lambda m, y: m.n(m.b(m.n(y))), n=nn.BatchNorm2d(8), b=C(8, 8, 1)), image, A8),
    "one weight in two layers": Case(SameWeight, vector, A8),
    "one weight in and out": Case(Tied, ids, (("a", 6), ("b", 9))),
    "an unused layer": Case(of_vector(lambda m, y: y, u=nn.Linear(8, 3)), vector, A8),
    # parameters, buffers and constants by channel
    "a scale, channels last": Case(
        of_image(lambda m, y: (y.permute(0, 2, 3, 1) * m.s).permute(0, 3, 1, 2), s=weight(8)), image, A8
    ),
    "a scale, viewed": Case(of_image(lambda m, y: y * m.s.view(1, -1, 1, 1), s=weight(8)), image, A8),
    "a scale, indexed": Case(of_image(lambda m, y: y * m.s[:, None, None], s=weight(8)), image, A8),
    "a buffer": Case(of_image(lambda m, y: y * m.s, s=torch.randn(8, 1, 1)), image, A8),
    "a product of parameters": Case(of_vector(lambda m, y: y * (m.s * m.t), s=weight(8), t=weight(8)), vector, A8),
    "parameters side by side": Case(
        of_vector(lambda m, y: y * torch.cat([m.s, m.t]), s=weight(3), t=weight(5)), vector, (("a", 3), ("a", 5))
    ),
    "a table of scales": Case(
        of_vector(lambda m, y: (y[:, None] * m.s).flatten(1), read=24, s=weight(3, 8)), vector, A8
    ),
    "positions and a class token": Case(
        net(
            lambda m, x: m.z(
                torch.cat([m.c.expand(x.shape[0], -1, -1), m.a(x).flatten(2).transpose(1, 2)], 1) + m.p
            )[:, 0],
            a=C(3, 8, 4, 4), c=weight(1, 1, 8), p=weight(1, 5, 8), z=nn.Linear(8, 4),
        ),
        image, A8,
    ),
    "bounds by channel": Case(
        of_vector(lambda m, y: torch.clamp(y, m.low, m.high), low=-torch.rand(8), high=torch.rand(8)), vector, A8
    ),
    "ones of the same shape": Case(of_vector(lambda m, y: y + torch.ones_like(y)), vector, A8),
    "zeros of as many places": Case(of_vector(lambda m, y: y + torch.zeros(y.shape[1])), vector, A8),
    "a constant of as many places": Case(of_vector(lambda m, y: y + torch.full((y.shape[0], 8), 2.0)), vector, A8),
    # inputs and outputs
    "dictionaries": Case(Named, lambda: ({"x": (torch.randn(3, 6), torch.randn(2)), "y": torch.randn(3, 6)},), A8),
    "values that are kept": Case(Keeping, vector, (("inner.a", 8), ("inner.z", 4))),
    "layers of training only": Case(Auxiliary, image, A8),
    "arguments by name": Case(
        net(lambda m, x: m.z(input=F.relu(input=m.a(input=x))), a=nn.Linear(6, 8), z=nn.Linear(8, 4)), vector, A8
    ),
    # attention and mixtures by hand
    "values of attention": Case(
        net(
            lambda m, x: m.z(torch.einsum("nij,njc->nic", (m.q(x) @ m.q(x).transpose(1, 2)).softmax(-1), m.a(x))),
            a=nn.Linear(6, 8), q=nn.Linear(6, 8), z=nn.Linear(8, 4),
        ),
        tokens, A8,
    ),
    "heads of one layer": Case(net(attention, a=nn.Linear(6, 24), z=nn.Linear(8, 4)), tokens, (("a", 2),)),
    "heads of three layers": Case(
        net(heads, a=nn.Linear(6, 8), k=nn.Linear(6, 8), v=nn.Linear(6, 8), z=nn.Linear(8, 4)), tokens, (("a", 2),)
    ),
    "experts, one by one": Case(experts(gated), vector, (("e.0.0", 7), ("e.0.2", 8), ("e.1.0", 7), ("e.2.0", 7))),
    "experts, stacked": Case(experts(stacked), vector, (("e.0.0", 7), ("e.0.2", 8), ("e.1.0", 7), ("e.2.0", 7))),
    "experts, contracted": Case(experts(contracted), vector, (("e.0.0", 7), ("e.0.2", 8), ("e.1.0", 7), ("e.2.0", 7))),
    "a parameter along the tokens": Case(
        net(lambda m, x: m.z((m.a(x).transpose(1, 2) @ m.w).mean(2)), a=nn.Linear(6, 8), w=weight(5, 7),
        z=nn.Linear(8, 4)),
        tokens, A8,
    ),
    # parts
    "split by a list": Case(
        of_image(
            lambda m, y: torch.cat([(p := torch.split(y, [2, 5, 1], 1))[2], m.b(p[1]), p[0]], 1), b=C(5, 5, 1)
        ),
        image, (("a", 3), ("a", 5), ("b", 5)),
    ),
    "split by a number": Case(
        of_image(lambda m, y: (p := y.split(4, dim=1))[0] * p[1].sigmoid(), read=4), image, (("a", 4),)
    ),
    "split by a computed number": Case(
        of_image(lambda m, y: (p := y.split(y.shape[1] // 2, 1))[0] * p[1], read=4), image, (("a", 4),)
    ),
    "chunks at once": Case(of_image(lambda m, y: torch.cat(y.chunk(2, 1), 1)), image, (("a", 4),)),
    "the last ones": Case(of_image(lambda m, y: y[:, -5:], read=5), image, (("a", 3), ("a", 5))),
    "the first ones of the last axis": Case(
        of_vector(lambda m, y: y[..., :5], read=5), tokens, (("a", 5), ("a", 3))
    ),
    "narrow": Case(of_image(lambda m, y: y.narrow(1, 2, 4), read=4), image, (("a", 4), ("a", 4))),
    "stack": Case(of_vector(lambda m, y: torch.stack([y, y.relu()], 1).sum(1)), vector, A8),
    "a gated linear unit": Case(of_vector(lambda m, y: F.glu(y, -1), read=4), vector, (("a", 4),)),
    "repeat": Case(of_image(lambda m, y: y.repeat(1, 2, 1, 1), read=16), image, A8),
    "tile": Case(of_image(lambda m, y: y.tile(1, 2, 1, 1), read=16), image, A8),
    "repeat_interleave": Case(of_image(lambda m, y: y.repeat_interleave(2, 1), read=16), image, A8),
    "flip of several axes": Case(of_image(lambda m, y: y.flip(2, 1)), image, A8),
    "the first one of all": Case(of_image(lambda m, y: y * y[:, :1]), image, (("a", 7),)),
    "an axis by how many there are": Case(
        of_vector(lambda m, y: torch.cat([y, y], dim=y.dim() - 1).mean(y.ndim - 2), read=16), tokens, A8
    ),
    # shapes
    "a shuffle": Case(of_image(shuffled(channels_first=False)), image, (("a", 4),)),
    "a shuffle the other way": Case(of_image(shuffled(channels_first=True)), image, (("a", 4),)),
    "a shuffle without counting": Case(of_image(shuffled(channels_first=True, minus=True)), image, (("a", 4),)),
    "a shuffle by constants": Case(
        of_image(lambda m, y: y.view(3, 2, 4, 6, 6).transpose(1, 2).reshape(3, 8, 6, 6)), image, (("a", 4),)
    ),
    "a shuffle module": Case(of_image(lambda m, y: m.s(y), s=nn.ChannelShuffle(2)), image, (("a", 4),)),
    "pixel shuffle": Case(of_image(lambda m, y: F.pixel_shuffle(y, 2), 16, 4), image, (("a", 4),)),
    "pixel unshuffle": Case(of_image(lambda m, y: F.pixel_unshuffle(y, 2), 4, 16), image, (("a", 4),)),
    "a view by constants": Case(
        net(lambda m, x: m.z(m.a(x).view(-1, 8 * 6 * 6)), a=C(3, 8, 3), z=nn.Linear(288, 4)), image, A8
    ),
    "a view by sizes": Case(
        net(
            lambda m, x: m.z((y := m.a(x)).view(y.shape[0], y.shape[1] * y.shape[2] * y.shape[3])),
            a=C(3, 8, 3), z=nn.Linear(288, 4),
        ),
        image, A8,
    ),
    "a view by another's shape": Case(of_image(lambda m, y: y.flatten(2).view(y.shape)), image, A8),
    "a view by a longer shape": Case(of_image(lambda m, y: y.flatten(2).reshape(y.shape[:2] + y.shape[2:])), image, A8),
    "a view as another": Case(of_image(lambda m, y: y.flatten(2).view_as(y)), image, A8),
    "a reshape by name": Case(
        net(lambda m, x: m.z(torch.reshape(m.a(x), shape=(-1, 288))), a=C(3, 8, 3), z=nn.Linear(288, 4)), image, A8
    ),
    "a linear layer to a map": Case(
        net(lambda m, x: m.z(m.a(x).view(-1, 4, 2, 2)).mean((2, 3)), a=nn.Linear(6, 16), z=C(4, 4, 1)),
        vector, (("a", 4),),
    ),
    "a linear layer unflattened to a map": Case(
        net(lambda m, x: m.z(m.a(x).unflatten(1, (4, 2, 2))).mean((2, 3)), a=nn.Linear(6, 16), z=C(4, 4, 1)),
        vector, (("a", 4),),
    ),
    "channels as examples": Case(
        of_image(lambda m, y: m.d(y.view(24, 1, 6, 6)).view(3, 8, 6, 6), d=C(1, 1, 3, padding=1)), image, A8
    ),
    "axes moved by name": Case(of_vector(lambda m, y: torch.swapaxes(y, axis0=0, axis1=1).t()), vector, A8),
    "squeezed by name": Case(
        net(lambda m, x: m.z(m.a(x).mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)), a=C(3, 8, 3),
        z=nn.Linear(8, 4)),
        image, A8,
    ),
    "padded channels": Case(of_image(lambda m, y: F.pad(y, (0, 0, 0, 0, 2, 1)), read=11), image, A8),
    "resized": Case(of_image(lambda m, y: F.interpolate(y, size=(4, 4), mode="bilinear")), image, A8),
    # convolutions and norms
    "groups": Case(of_image(lambda m, y: m.b(y), read=12, b=C(8, 12, 3, groups=4)), image, (("a", 2), ("b", 3))),
    "several filters of each channel": Case(of_image(lambda m, y: m.b(y), read=16, b=C(8, 16, 3, groups=8)), image, A8),
    "transposed": Case(
        of_image(lambda m, y: m.b(y), read=6, b=nn.ConvTranspose2d(8, 6, 2)), image, (("a", 8), ("b", 6))
    ),
    "transposed depthwise": Case(of_image(lambda m, y: m.b(y), b=nn.ConvTranspose2d(8, 8, 2, groups=8)), image, A8),
    "convolutions that pad by themselves": Case(
        net(
            lambda m, x: m.z(m.c(m.b(m.a(x)).relu()).mean((2, 3))),
            a=Same(3, 8, 3, 2), b=Same(8, 8, 3, groups=8), c=Same(8, 6, 3, 2), z=nn.Linear(6, 4),
        ),
        image, (("a", 8), ("c", 6)),
    ),
    "one image": Case(
        net(lambda m, x: m.z(m.n(m.a(x))), a=C(3, 8, 3), n=nn.InstanceNorm2d(8, affine=True), z=C(8, 2, 1)),
        lambda: torch.randn(3, 8, 8), A8,
    ),
    "group norm": Case(of_image(lambda m, y: m.n(y), n=nn.GroupNorm(2, 8)), image, (("a", 4),)),
    "group norm without weights": Case(
        of_image(lambda m, y: m.n(y), n=nn.GroupNorm(2, 8, affine=False)), image, (("a", 4),)
    ),
    "instance norm": Case(of_image(lambda m, y: m.n(y).relu(), n=nn.InstanceNorm2d(8)), image, A8),
    "layer norm without weights": Case(
        of_vector(lambda m, y: m.n(y), n=nn.LayerNorm(8, elementwise_affine=False)), vector, A8
    ),
    "layer norm over maps": Case(of_image(lambda m, y: m.n(y), n=nn.LayerNorm((8, 6, 6))), image, A8),
    "root mean square norm": Case(of_vector(lambda m, y: m.n(y), n=nn.RMSNorm(8)), vector, A8),
    "root mean square norm without weights": Case(
        of_vector(lambda m, y: m.n(y), n=nn.RMSNorm(8, elementwise_affine=False)), vector, A8
    ),
    "batch norm without anything": Case(
        of_image(lambda m, y: m.n(y), n=nn.BatchNorm2d(8, affine=False, track_running_stats=False)), image, A8
    ),
    "PReLU with one slope": Case(of_image(lambda m, y: m.n(y), n=nn.PReLU()), image, A8),
    "PReLU with a slope each": Case(of_image(lambda m, y: m.n(y), n=nn.PReLU(8)), image, A8),
    # recurrent layers
    "lstm": Case(recurrent(nn.LSTM, lambda o, h: h[0][-1], num_layers=2), tokens, A8),
    "lstm both ways": Case(
        recurrent(nn.LSTM, lambda o, h: torch.cat([h[0][-2], h[0][-1]], 1), 16, bidirectional=True), tokens, A8
    ),
    "gru, its states turned": Case(
        recurrent(nn.GRU, lambda o, h: h.transpose(0, 1).reshape(3, 16), 16, bidirectional=True), tokens, A8
    ),
    "gru, both ways added": Case(
        recurrent(nn.GRU, lambda o, h: o.view(3, 5, 2, 8).sum(2).mean(1), bidirectional=True, bias=False), tokens, A8
    ),
    "rnn": Case(recurrent(nn.RNN, lambda o, h: o[:, -1], nonlinearity="relu"), tokens, A8),
    "lstm from zeros": Case(net(started, a=nn.LSTM(6, 8, batch_first=True), z=nn.Linear(8, 4)), tokens, A8),
    "an encoder's state": Case(
        net(
            lambda m, x: m.z(m.b(x, m.a(x)[1])[0][:, -1]),
            a=nn.LSTM(6, 8, batch_first=True), b=nn.LSTM(6, 8, batch_first=True), z=nn.Linear(8, 4),
        ),
        tokens, A8,
    ),
    # sums and products
    "a broadcast sum": Case(
        net(
            lambda m, x: m.z((m.a(x) + m.b(x).mean((2, 3), keepdim=True)).mean((2, 3))),
            a=C(3, 8, 3), b=C(3, 8, 1), z=nn.Linear(8, 4),
        ),
        image, A8,
    ),
    "squeeze and excite": Case(of_image(squeeze_and_excite, g=nn.Linear(8, 8)), image, A8),
    "scaled and shifted": Case(net(affine, a=C(3, 8, 3), f=nn.Linear(3, 16), z=nn.Linear(8, 4)), image, (("f", 8),)),
    "in place": Case(net(added_in_place, a=nn.Linear(6, 8), b=nn.Linear(6, 8), z=nn.Linear(8, 4)), vector, A8),
    "a power": Case(
        net(
            lambda m, x: m.z(torch.pow(2, m.a(x)) ** m.b(x)), a=nn.Linear(6, 8), b=nn.Linear(6, 8), z=nn.Linear(8, 4)
        ),
        vector, A8,
    ),
    "a choice by place": Case(of_vector(lambda m, y: torch.where(y > 0, y, y.exp())), vector, A8),
    "dropout that asks for the mode": Case(
        of_vector(lambda m, y: F.dropout(y, 0.0, m.training).view(-1, 8)), vector, A8
    ),
}  # fmt: skip


FIXED = {
    "sizes in sums": Case(of_vector(lambda m, y: y / y.shape[1]), vector, reason="computes with their number"),
    "sizes under a root": Case(
        of_vector(lambda m, y: y * y.size(-1) ** 0.5), vector, reason="computes with their number"
    ),
    "how many numbers": Case(
        of_vector(lambda m, y: y * (y.numel() / 100)), vector, reason="computes with their number"
    ),
    "a tensor of a size": Case(
        of_vector(lambda m, y: y + torch.full((y.shape[0], 1), y.shape[1] * 1.0)), vector, reason="computes with"
    ),
    "maps as wide as channels": Case(
        net(
            lambda m, x: F.interpolate(m.z(x), size=m.a(x).shape[1:3]).mean((2, 3)), a=C(3, 8, 3), z=C(3, 4, 1)
        ),
        image, reason="computes with their number",
    ),
    "constants times sizes": Case(
        net(
            lambda m, x: m.z((y := m.a(x)).view(-1, 8 * y.shape[2] * y.shape[3])), a=C(3, 8, 3), z=nn.Linear(288, 4)
        ),
        image, reason="isn't computed from theirs",
    ),
    "a tensor that isn't saved": Case(lambda: Unsaved(registered=True), vector, reason="can't be cut"),
    "a plain tensor": Case(lambda: Unsaved(registered=False), vector, reason="can't be cut"),
    "a tensor made in the code": Case(of_vector(lambda m, y: y + torch.arange(8.0)), vector, reason="can't be cut"),
    "outputs in a dictionary": Case(
        net(lambda m, x: {"z": m.z(y := m.a(x)), "some": [y]}, a=nn.Linear(6, 8), z=nn.Linear(8, 4)),
        vector, reason="output",
    ),
    "a mean over channels": Case(
        of_image(lambda m, y: y + y.mean(1, keepdim=True)), image, reason="takes units together"
    ),
    "a mean over an axis": Case(
        of_image(lambda m, y: y + y.mean(axis=1, keepdim=True)), image, reason="takes units together"
    ),
    "the largest channel": Case(
        of_image(lambda m, y: y * torch.max(y, dim=1, keepdim=True)[0]), image, reason="takes units together"
    ),
    "a softmax over channels": Case(of_image(lambda m, y: y.softmax(1)), image, reason="takes units together"),
    "a softmax over what it likes": Case(
        of_vector(lambda m, y: m.s(y), s=nn.Softmax()), vector, reason="takes units together"
    ),
    "normalize": Case(of_vector(lambda m, y: F.normalize(y, 2.0, 1)), vector, reason="takes units together"),
    "a standard deviation": Case(
        of_vector(lambda m, y: y / y.std(1, keepdim=True)), vector, reason="takes units together"
    ),
    "a running sum": Case(of_vector(lambda m, y: y.cumsum(1)), vector, reason="takes units together"),
    "roll": Case(of_image(lambda m, y: y.roll(1, 1)), image, reason="takes units together"),
    "queries and keys": Case(
        net(lambda m, x: (m.a(x) @ m.z(x).transpose(1, 2)).softmax(-1), a=nn.Linear(6, 8), z=nn.Linear(6, 8)),
        tokens, reason="sums over them",
    ),
    "a product with a parameter": Case(
        of_vector(lambda m, y: y @ m.w, read=5, w=weight(8, 5)), vector, reason="sums over them"
    ),
    "unequal chunks": Case(
        of_image(lambda m, y: torch.cat([(p := y.chunk(3, 1))[2], p[0], p[1]], 1)), image, reason="unequally"
    ),
    "places by a list": Case(of_image(lambda m, y: y[:, [3, 1, 0, 2]], 4), image, reason="by a list or a tensor"),
    "places by a tensor": Case(
        of_image(lambda m, y: y[:, m.i], 4, i=torch.tensor([3, 1, 0, 2])), image, reason="by a list or a tensor"
    ),
    "places in steps": Case(of_image(lambda m, y: y[:, ::2], read=4), image, reason="in steps"),
    "a single place": Case(
        net(lambda m, x: m.a(x)[:, 2].mean((1, 2)), a=C(3, 4, 3)), image, reason="picks single places"
    ),
    "squeezed without a name": Case(
        net(lambda m, x: m.z(m.a(x).mean((2, 3), keepdim=True).squeeze()), a=C(3, 8, 3), z=nn.Linear(8, 4)),
        image, reason="when one is left",
    ),
    "an outer product": Case(
        net(
            lambda m, x: m.z((m.a(x)[:, :, None] * m.b(x)[:, None, :]).flatten(1)),
            a=nn.Linear(6, 8), b=nn.Linear(6, 5), z=nn.Linear(40, 4),
        ),
        vector, reason="mixes units of two axes",
    ),
    "padded with threes": Case(
        of_image(lambda m, y: F.pad(y, (0, 0, 0, 0, 2, 1), value=3.0), read=11), image, reason="pads units"
    ),
    "cropped channels": Case(of_image(lambda m, y: F.pad(y, (0, 0, 0, 0, -2, -1)), read=5), image, reason="pads units"),
    "pooled channels": Case(
        of_vector(lambda m, y: F.avg_pool1d(y[:, None], 2)[:, 0], read=4), vector, reason="pools over units"
    ),
    "a convolution over neurons": Case(
        of_vector(lambda m, y: m.c(y[:, None]).flatten(1), read=12, c=nn.Conv1d(1, 2, 3)), vector, reason="moves over"
    ),
    "batch norm over tokens": Case(
        of_vector(lambda m, y: m.n(y), n=nn.BatchNorm1d(5)), tokens, reason="takes statistics"
    ),
    "local response norm": Case(
        of_image(lambda m, y: m.n(y), n=nn.LocalResponseNorm(3)), image, reason="can be followed"
    ),
    "transposed groups": Case(
        of_image(lambda m, y: m.b(y), read=6, b=nn.ConvTranspose2d(8, 6, 2, groups=2)), image,
        reason="grouped and transposed"
    ),
    "filters of the input": Case(
        net(lambda m, x: m.a(x).mean((2, 3)), a=C(3, 6, 3, groups=3)), image, reason="channels that can't be cut"
    ),
    "weight norm": Case(hooked(parametrizations.weight_norm), vector, reason="computes its weight"),
    "old weight norm": Case(hooked(nn.utils.weight_norm), vector, reason="computes its weight"),
    "spectral norm": Case(hooked(parametrizations.spectral_norm), vector, reason="computes its weight"),
    "a mask": Case(hooked(lambda m: prune.l1_unstructured(m, "weight", 0.3)), vector, reason="computes its weight"),
    "a layer of one's own": Case(
        net(lambda m, x: m.z(m.b(m.a(x))), a=nn.Linear(6, 8), b=Backwards(8, 8), z=nn.Linear(8, 4)),
        vector, reason="can be followed",
    ),
    "a projected state": Case(recurrent(nn.LSTM, lambda o, h: o[:, -1], 3, proj_size=3), tokens, reason="projects"),
    "a state that is stored": Case(
        net(lambda m, x: m.z(m.a(x, torch.ones(1, 3, 8))[0][:, -1]), a=nn.GRU(6, 8, batch_first=True),
        z=nn.Linear(8, 4)),
        tokens, reason="its first state",
    ),
    "a state fed back": Case(
        net(lambda m, x: m.z(m.a(m.a(x)[0])[0][:, -1]), a=nn.GRU(6, 6, batch_first=True), z=nn.Linear(6, 4)),
        tokens, reason="in one of them uncut",
    ),
    "an embedding as a matrix": Case(
        net(lambda m, x: F.linear(m.b(m.a(x)), m.a.weight), a=nn.Embedding(11, 6), b=nn.Linear(6, 6)),
        ids, reason="can be followed",
    ),
    "an embedding of bounded rows": Case(
        net(lambda m, x: m.z(m.a(x)), a=nn.Embedding(11, 6, max_norm=1.0), z=nn.Linear(6, 4)), ids, reason="scales rows"
    ),
    "a transformer that looks at its mask": Case(
        of_vector(lambda m, y: m.t(y, nn.Transformer.generate_square_subsequent_mask(y.shape[1])),
        t=nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 1)),
        tokens, reason="can be followed",
    ),
    "multi-head attention": Case(
        of_vector(lambda m, y: m.m(y, y, y)[0], m=nn.MultiheadAttention(8, 2, batch_first=True)),
        tokens, reason="is as wide as its heads together, and all of them stay",
    ),
    "bilinear": Case(
        net(lambda m, x: m.z(m.b(m.a(x), x)), a=nn.Linear(6, 8), b=nn.Bilinear(8, 6, 5), z=nn.Linear(5, 4)),
        vector, reason="can be followed",
    ),
    "noise": Case(of_vector(lambda m, y: y + torch.randn_like(y)), vector, reason="can be followed"),
    "the only channel": Case(of_image(lambda m, y: y, 1), image, reason="the only one"),
}  # fmt: skip
