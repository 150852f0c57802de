"""What each operation does to the units of what it reads: the registries of rules.

A rule gets the walker, the node and the value that the node gave, and returns the labels of the result's axes. What no
rule knows freezes the units that come in.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from secateur.network.graph import layers, operations, parts, shapes
from secateur.network.graph.walker import Rule

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ACTIVATIONS = (
    *(
        nn.ReLU,
        nn.ReLU6,
        nn.GELU,
        nn.SiLU,
        nn.Sigmoid,
        nn.Tanh,
        nn.Hardswish,
        nn.Hardsigmoid,
        nn.Hardtanh,
        nn.LeakyReLU,
    ),
    *(
        nn.ELU,
        nn.SELU,
        nn.CELU,
        nn.Mish,
        nn.Softplus,
        nn.LogSigmoid,
        nn.Identity,
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
    ),
    *(nn.Dropout3d, nn.AlphaDropout),
)
POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.Upsample),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
    *(nn.AdaptiveMaxPool3d, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.LPPool2d),
)
MODULES: tuple[tuple[tuple[type[nn.Module], ...], Rule], ...] = (
    ((nn.Linear,), layers.linear),
    (CONVOLUTIONS, layers.conv),
    ((nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm), layers.batch_norm),
    ((nn.GroupNorm,), layers.group_norm),
    ((nn.LayerNorm, *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else [])), layers.layer_norm),
    ((nn.PReLU,), layers.prelu),
    ((nn.Embedding,), layers.embedding),
    ((nn.LSTM, nn.GRU, nn.RNN), layers.recurrent),
    (ACTIVATIONS, operations.same),
    (POOLS, operations.pooled),
    ((nn.Softmax, nn.LogSoftmax), operations.over),
    ((nn.Flatten,), shapes.reshape),
    ((nn.Unflatten,), shapes.unflatten),
    ((nn.PixelShuffle, nn.PixelUnshuffle), shapes.shuffled),
    ((nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), shapes.padded),
    ((nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d), operations.pooled),
)
UNARY = (
    *(torch.relu, torch.sigmoid, torch.tanh, torch.abs, torch.exp, torch.sqrt, torch.rsqrt, torch.clamp, torch.neg),
    *(torch.clone, torch.square, torch.pow, torch.log, torch.dropout, operator.neg, operator.pow),
    *(functional.relu, functional.relu6, functional.gelu, functional.silu, functional.elu, functional.leaky_relu),
    *(functional.hardswish, functional.hardsigmoid, functional.hardtanh, functional.mish, functional.softplus),
    *(functional.dropout, functional.dropout2d, functional.dropout1d, functional.sigmoid, functional.tanh),
    *(functional.selu, functional.celu, functional.logsigmoid),
)
PAIRS = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.isub, operator.imul),
    *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
    *(operator.itruediv, torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum),
)
POOLING = (
    *(
        functional.max_pool1d,
        functional.max_pool2d,
        functional.max_pool3d,
        functional.avg_pool1d,
        functional.avg_pool2d,
    ),
    *(functional.avg_pool3d, functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d, functional.interpolate),
    *(functional.adaptive_avg_pool3d, functional.adaptive_max_pool2d, functional.upsample),
)
FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys(UNARY, operations.same),
    **dict.fromkeys(PAIRS, operations.binary),
    **dict.fromkeys(POOLING, operations.pooled),
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin), operations.reduced),
    **dict.fromkeys((torch.softmax, functional.softmax, functional.log_softmax, functional.normalize), operations.over),
    **dict.fromkeys((torch.cat, torch.concat), parts.cat),
    torch.chunk: parts.chunk,
    torch.split: parts.split,
    operator.getitem: parts.getitem,
    **dict.fromkeys((torch.flatten, torch.reshape), shapes.reshape),
    torch.permute: shapes.permuted,
    **dict.fromkeys((torch.transpose, torch.swapaxes, torch.t), shapes.transposed),
    torch.squeeze: shapes.squeezed,
    torch.unsqueeze: shapes.unsqueezed,
    torch.flip: shapes.flipped,
    functional.pad: shapes.padded,
    **dict.fromkeys((functional.layer_norm, functional.group_norm), layers.functional_norm),
    **dict.fromkeys((functional.pixel_shuffle, functional.pixel_unshuffle), shapes.shuffled),
    getattr: shapes.attribute,
}
METHODS: dict[str, Rule] = {
    **dict.fromkeys(
        ("contiguous", "clone", "detach", "float", "to", "type", "relu", "sigmoid", "tanh", "clamp"), operations.same
    ),
    **dict.fromkeys(("dim", "numel", "ndimension"), operations.constant),
    "size": shapes.size,
    **dict.fromkeys(("add", "add_", "sub", "mul", "mul_", "div"), operations.binary),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), operations.reduced),
    **dict.fromkeys(("view", "reshape", "flatten"), shapes.reshape),
    **dict.fromkeys(("softmax", "log_softmax"), operations.over),
    "unflatten": shapes.unflatten,
    "chunk": parts.chunk,
    "split": parts.split,
    "permute": shapes.permuted,
    **dict.fromkeys(("transpose", "swapaxes", "t"), shapes.transposed),
    "squeeze": shapes.squeezed,
    "unsqueeze": shapes.unsqueezed,
    **dict.fromkeys(("expand", "repeat"), shapes.expanded),
    "flip": shapes.flipped,
}
INTEGERS = (operator.floordiv, operator.mod, operator.mul, operator.add, operator.sub)
FUNCTIONS |= dict.fromkeys(INTEGERS, operations.binary)


def rule_of(node: fx.Node, module: nn.Module | None) -> Rule | None:
    """Returns an operation's rule, by its node and by the module that it calls; None where there is none."""
    if module is not None:
        return next((rule for kinds, rule in MODULES if isinstance(module, kinds)), None)
    if node.op == "call_method":
        return METHODS.get(str(node.target)) or FUNCTIONS.get(getattr(torch, str(node.target), None))
    return FUNCTIONS.get(node.target)
