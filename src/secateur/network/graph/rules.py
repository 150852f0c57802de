"""What each operation does to the units of what it reads: the registries of rules.

A rule gets the walker, the node and the value that the node gave, and returns the labels of the result's axes. What no
rule knows freezes the units that come in.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from secateur.network.graph import layers, norms, operations, parts, shapes, sizes
from secateur.network.graph.values import tensors
from secateur.network.graph.walker import Rule

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _of(space: Any, names: str) -> Iterator[Any]:
    """Yields what a module of torch has under some names, as far as this version has it."""
    yield from (found for name in names.split() if (found := getattr(space, name, None)) is not None)


def _named(space: Any, stem: str, dims: Iterable[int] = (1, 2, 3)) -> dict[int, tuple[Any, ...]]:
    """Returns, by their number of axes, classes or functions whose names end in it: MaxPool1d, MaxPool2d."""
    return {dim: tuple(_of(space, " ".join(f"{name}{dim}d" for name in stem.split()))) for dim in dims}


ACTIVATIONS = tuple(
    _of(
        nn,
        "ReLU ReLU6 GELU SiLU Sigmoid Tanh Hardswish Hardsigmoid Hardtanh LeakyReLU ELU SELU CELU Mish Softplus "
        "Softsign Softshrink Hardshrink Tanhshrink Threshold LogSigmoid RReLU Identity Dropout Dropout1d Dropout2d "
        "Dropout3d AlphaDropout FeatureAlphaDropout",
    )
)
POOLS = _named(nn, "MaxPool AvgPool AdaptiveAvgPool AdaptiveMaxPool LPPool ReflectionPad ReplicationPad CircularPad")
MODULES: dict[type[nn.Module], Rule] = {
    nn.Linear: layers.linear,
    **dict.fromkeys(CONVOLUTIONS, layers.conv),
    **dict.fromkeys(_of(nn, "BatchNorm1d BatchNorm2d BatchNorm3d"), norms.batch_norm),
    **dict.fromkeys(_of(nn, "InstanceNorm1d InstanceNorm2d InstanceNorm3d"), norms.batch_norm),
    nn.GroupNorm: norms.group_norm,
    **dict.fromkeys(_of(nn, "LayerNorm RMSNorm"), norms.layer_norm),
    nn.PReLU: norms.prelu,
    nn.Embedding: layers.embedding,
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), layers.recurrent),
    **dict.fromkeys(ACTIVATIONS, operations.pointwise),
    **{kind: operations.pooled(dim) for dim, kinds in POOLS.items() for kind in kinds},
    **dict.fromkeys(_of(nn, "Upsample UpsamplingNearest2d UpsamplingBilinear2d"), operations.pooled()),
    **dict.fromkeys((nn.Softmax, nn.LogSoftmax, nn.Softmin), operations.over()),
    nn.GLU: operations.gated,
    nn.Flatten: shapes.flattened,
    nn.Unflatten: shapes.unflattened,
    **dict.fromkeys((nn.PixelShuffle, nn.PixelUnshuffle), shapes.shuffled),
    nn.ChannelShuffle: operations.shuffled_channels,
    **dict.fromkeys(_of(nn, "ConstantPad1d ConstantPad2d ConstantPad3d ZeroPad1d ZeroPad2d ZeroPad3d"), shapes.padded),
}
POINTWISE = (
    "abs add addcdiv addcmul ceil clamp clamp_max clamp_min clip clone contiguous cos cosh detach div erf exp expm1 eq "
    "floor fmod full_like ge gt isfinite isnan le lerp log log1p logical_and logical_not logical_or logsigmoid lt "
    "masked_fill maximum minimum mul multiply nan_to_num ne neg ones_like pow reciprocal relu remainder round rsqrt "
    "rsub selu sigmoid sign sin sqrt square sub subtract tan tanh true_divide trunc where xlogy zeros_like"
)
OPERATORS = (
    *("add", "sub", "mul", "truediv", "pow", "neg", "abs", "mod", "floordiv", "iadd", "isub", "imul", "itruediv"),
    *("gt", "ge", "lt", "le", "eq", "ne", "and_", "or_", "invert"),
)
FUNCTIONAL = (
    "relu relu_ relu6 gelu silu elu selu celu leaky_relu hardswish hardsigmoid hardtanh mish softplus softsign "
    "softshrink hardshrink tanhshrink threshold logsigmoid sigmoid tanh rrelu dropout dropout1d dropout2d dropout3d "
    "alpha_dropout feature_alpha_dropout"
)
POOLING = _named(functional, "max_pool avg_pool adaptive_avg_pool adaptive_max_pool lp_pool")
REDUCED = "mean sum prod amax amin std var logsumexp argmax argmin any all"
ALONG = "softmax log_softmax cumsum cumprod"  # operations along an axis, which stays
FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys(_of(torch, f"{POINTWISE} relu_ dropout"), operations.pointwise),
    **dict.fromkeys(_of(operator, " ".join(OPERATORS)), operations.pointwise),
    **dict.fromkeys(_of(functional, FUNCTIONAL), operations.pointwise),
    **{function: operations.pooled(dim) for dim, some in POOLING.items() for function in some},
    **dict.fromkeys(_of(functional, "interpolate upsample"), operations.pooled()),
    **dict.fromkeys(_of(torch, REDUCED), operations.reduced),
    **dict.fromkeys((torch.max, torch.min), operations.extreme),
    **dict.fromkeys((*_of(torch, ALONG), functional.softmax, functional.log_softmax), operations.over()),
    **dict.fromkeys((torch.roll,), operations.over(2)),
    functional.normalize: operations.normalized,
    **dict.fromkeys((torch.matmul, torch.bmm, operator.matmul), operations.matmul),
    torch.einsum: operations.einsum,
    functional.batch_norm: norms.batch_norm_function,
    functional.group_norm: norms.group_norm_function,
    **dict.fromkeys(_of(functional, "layer_norm rms_norm"), norms.layer_norm_function),
    functional.scaled_dot_product_attention: operations.attention,
    functional.glu: operations.gated,
    **dict.fromkeys(_of(torch, "cat concat concatenate"), parts.cat),
    torch.stack: parts.stack,
    torch.chunk: parts.chunk,
    torch.split: parts.split,
    torch.unbind: parts.unbind,
    torch.narrow: parts.narrow,
    operator.getitem: parts.getitem,
    torch.flatten: shapes.flattened,
    torch.reshape: shapes.reshape,
    torch.unflatten: shapes.unflattened,
    **dict.fromkeys(_of(torch, "permute transpose swapaxes swapdims t movedim moveaxis adjoint"), shapes.moved),
    torch.squeeze: shapes.squeezed,
    torch.unsqueeze: shapes.unsqueezed,
    torch.flip: shapes.flipped,
    torch.broadcast_to: shapes.expanded,
    torch.tile: shapes.repeated,
    torch.repeat_interleave: shapes.interleaved,
    functional.pad: shapes.padded,
    **dict.fromkeys((functional.pixel_shuffle, functional.pixel_unshuffle), shapes.shuffled),
    functional.channel_shuffle: operations.shuffled_channels,
    **dict.fromkeys((torch.zeros, torch.ones, torch.full), shapes.created(0)),
    getattr: shapes.attribute,
}
METHODS: dict[str, Rule] = {
    **dict.fromkeys(POINTWISE.split(), operations.pointwise),
    **dict.fromkeys(
        [
            "float",
            "double",
            "half",
            "bfloat16",
            "to",
            "type",
            "type_as",
            "cpu",
            "cuda",
            "bool",
            "int",
            "long",
            "requires_grad_",
        ],
        operations.same,
    ),
    **dict.fromkeys(("expand_as",), operations.pointwise),
    **dict.fromkeys(REDUCED.split(), operations.reduced),
    **dict.fromkeys(["max", "min"], operations.extreme),
    **dict.fromkeys(ALONG.split(), operations.over()),
    "roll": operations.over(2),
    **dict.fromkeys(["matmul", "bmm"], operations.matmul),
    **dict.fromkeys(["view", "reshape"], shapes.reshape),
    **dict.fromkeys(["view_as", "reshape_as"], shapes.reshaped_as),
    "flatten": shapes.flattened,
    "unflatten": shapes.unflattened,
    **dict.fromkeys(["expand", "broadcast_to"], shapes.expanded),
    **dict.fromkeys(["repeat", "tile"], shapes.repeated),
    "repeat_interleave": shapes.interleaved,
    "chunk": parts.chunk,
    "split": parts.split,
    "unbind": parts.unbind,
    "narrow": parts.narrow,
    **dict.fromkeys(
        ["permute", "transpose", "swapaxes", "swapdims", "t", "movedim", "moveaxis", "adjoint"], shapes.moved
    ),
    "squeeze": shapes.squeezed,
    "unsqueeze": shapes.unsqueezed,
    "flip": shapes.flipped,
    **dict.fromkeys(("new_zeros", "new_ones"), shapes.created(1)),
}


def rule_of(node: fx.Node, module: nn.Module | None, value: Any, trusted: bool) -> Rule | None:
    """Returns an operation's rule; None where there is none.

    Args:
        node: The operation.
        module: The module that it calls.
        value: What it gave.
        trusted: Whether the module does what its kind does, though it is of the model's own.
    """
    if module is not None:
        kind = next((kind for kind in type(module).__mro__ if kind in MODULES), None)
        if kind is None or not (trusted or (type(module).forward is kind.forward and "forward" not in vars(module))):
            return None
        return MODULES[kind]
    if not any(True for _ in tensors(value)):
        return sizes.number
    if node.op != "call_method":
        return FUNCTIONS.get(node.target)
    name = str(node.target)
    plain = METHODS.get(name.removesuffix("_"))
    return METHODS.get(name) or (plain if plain is operations.pointwise else None)
