"""Repairs a traced network after a cut: least squares for what reads removed units, and for batch norms.

Both networks are computed side by side, node by node for all batches. When the turn of a layer comes, what it reads is
final, as everything before it has been fitted. Where its output is added to another one (a shortcut), the layer is
fitted to make up for what that one lacks, too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.calibration.batches import Batch
from secateur.calibration.lockstep import Lockstep
from secateur.calibration.readings import channel_axis, sampled_outputs, sampled_windows
from secateur.calibration.targets import MomentSums
from secateur.errors import ModelError
from secateur.linear_algebra import DAMPING
from secateur.network.family import Layout
from secateur.network.graph.behind import norm_behind, summand
from secateur.network.graph.network import GraphNetwork
from secateur.network.graph.tracing import traced
from secateur.network.network import Layer
from secateur.network.unit_group import UnitGroup
from secateur.processes import ALONE
from secateur.progress import Progress
from secateur.solvers.removal import refit


def repair(
    network: GraphNetwork,
    small: nn.Module,
    keep: Mapping[str, Tensor],
    batches: Sequence[Batch],
    damping: float | None,
    progress: Progress,
    notes: list[str],
) -> dict[str, tuple[float, float]]:
    """Fits every layer that reads units which went, and every batch norm, to what the dense network gives there.

    Biases are fitted, too. Batch norms get the statistics of what they read now.

    Args:
        network: The network before the cut.
        small: After it; changed in place.
        keep: (units,) bool by the name of a group.
        batches: Calibration data.
        damping: Relative to the Gram matrix's mean diagonal; None takes the usual.
        progress: Shows progress.
        notes: Gets what couldn't be fitted.

    Returns:
        By group: the mean relative error of what its readers give, before and after their fit.
    """
    small.eval()
    work = _Repair(network, small, keep, batches, DAMPING if damping is None else damping, notes)
    work.carry_out(progress)
    return {
        name: (sum(one[0] for one in pairs) / len(pairs), sum(one[1] for one in pairs) / len(pairs))
        for name, pairs in work.errors.items()
    }


class _Repair:
    """The walk through both networks.

    Attributes:
        errors: By group: what each of its readers came to.
    """

    def __init__(
        self,
        network: GraphNetwork,
        small: nn.Module,
        keep: Mapping[str, Tensor],
        batches: Sequence[Batch],
        damping: float,
        notes: list[str],
    ) -> None:
        self.errors: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._network, self._small, self._damping, self._notes = network, small, damping, notes
        self._dense = Lockstep(network.steps.module, batches)
        self._cut = Lockstep(traced(small, network.inputs, network.leaf_modules).module, batches)
        self._twins = _pairs(self._dense.nodes, self._cut.nodes)
        self._calls = Counter(str(node.target) for node in self._dense.nodes if node.op == "call_module")
        cut = [group for group in network.groups if group.name in keep and not bool(keep[group.name].all())]
        self._readers: dict[str, list[UnitGroup]] = defaultdict(list)
        for group in cut:
            for reader in group.readers:
                self._readers[reader.layer.name].append(group)
        self._thin: dict[str, tuple[int, int]] = {}  # by module: fewer positions that it was fitted on than inputs
        self._gone: dict[str, set[int]] = defaultdict(set)  # outputs, by module
        for group in cut:
            for part in group.slices:
                if part.axis == 0:
                    gone = part.index[~keep[group.name]].flatten()
                    self._gone[part.name.rpartition(".")[0]] |= set(gone.tolist())

    def carry_out(self, progress: Progress) -> None:
        """Walks, and fits on the way."""
        bar = progress.bar("repairing", len(self._twins))
        for node, twin in self._twins.items():
            self._dense.compute(node)
            if node.op == "call_module":
                self._fit(node, str(node.target))
            self._cut.compute(twin)
            self._dense.leave(node)
            self._cut.leave(twin)
            bar()
        if self._thin:
            name, (count, inputs) = min(self._thin.items(), key=lambda one: one[1][0] / one[1][1])
            more = f" (and {len(self._thin) - 1} more)" if len(self._thin) > 1 else ""
            self._notes.append(
                f"{name}{more} reads {inputs:,} inputs and was fitted on {count:,} vectors of them: more calibration "
                "data would make a better repair."
            )

    def _fit(self, node: fx.Node, name: str) -> None:
        module = self._small.get_submodule(name)
        norm = isinstance(module, _BatchNorm)
        if not norm and name not in self._readers:
            return
        if self._calls[name] > 1 or (not norm and self._network.shared(name)):
            why = "it is used more than once."
        elif self._fit_norm(node, module) if isinstance(module, _BatchNorm) else self._fit_layer(node, name, module):
            return
        else:
            why = "units were cut among the positions that it is applied to."
        note = f"{name} wasn't fitted anew: {why}"
        if note not in self._notes:
            self._notes.append(note)

    def _fit_layer(self, node: fx.Node, name: str, module: nn.Module) -> bool:
        """Fits a layer by least squares, and says whether it could be."""
        weight, bias = module.weight, getattr(module, "bias", None)
        assert isinstance(weight, nn.Parameter)
        layer = Layer(name, weight, Layout.OUT_IN, name, module)
        norm = norm_behind(node, self._small)
        sums = MomentSums(layer, weight.device)
        for number, (x, wanted) in enumerate(self._wanted(node, channel_axis(module), norm)):
            read, target = sampled_windows(module, x, number), sampled_outputs(module, wanted, number)
            if read.positions != target.positions:
                return False
            sums.add(read.values, target.values, "float32")
        W = layer.matrix().float()
        b = None if bias is None else bias.detach().float()
        if b is None and norm is not None:
            b = torch.zeros(len(W), device=W.device)  # the norm takes it up
        every = torch.ones(W.shape[1], dtype=torch.bool)
        moments = sums.total(ALONE)
        if moments.count < W.shape[1]:
            self._thin[name] = (moments.count, W.shape[1])
        done = refit(W, b, moments, every, self._damping)
        with torch.no_grad():
            layer.matrix().copy_(done.W)
            if bias is not None and done.bias is not None:
                bias.copy_(done.bias)
        for group in self._readers[name]:
            self.errors[group.name].append((done.error_before, done.error))
        return True

    def _fit_norm(self, node: fx.Node, norm: _BatchNorm) -> bool:
        """Takes the statistics of what a norm reads now, and fits its scale and shift, each channel by itself."""
        if norm.running_mean is None or norm.running_var is None:
            return True  # it goes by the statistics of each batch
        device = norm.running_mean.device
        exact = torch.float32 if device.type == "mps" else torch.float64
        sums = torch.zeros(5, norm.num_features, dtype=exact, device=device)
        for pair in self._wanted(node, 1, None):
            x, t = (one.transpose(0, 1).flatten(1).to(exact) for one in pair)
            if x.shape != t.shape:
                return False
            sums += torch.stack([torch.ones_like(x).sum(1), x.sum(1), (x * x).sum(1), t.sum(1), (t * x).sum(1)])
        count, mean, square, t_mean, product = sums[0], *(sums[1:] / sums[0])
        if count[0] < 2:
            return True  # one value has no variance
        variance = (square - mean.square()).clamp_min(0)
        with torch.no_grad():
            if norm.affine:
                pull = self._damping * variance + norm.eps
                slope = (product - mean * t_mean + pull * _slope(norm)) / (variance + pull)
                norm.weight.copy_(slope * (variance + norm.eps).sqrt())
                norm.bias.copy_(t_mean)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance * count / (count - 1))
        return True

    def _wanted(self, node: fx.Node, axis: int, norm: _BatchNorm | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields by batch what a module reads in the cut network, and what it should give there.

        That is what the dense network gives, and where it is added to something, what that lacks.

        Args:
            node: Of the dense network, computed.
            axis: Of its output that has the units.
            norm: The batch norm between the node and an addition.
        """
        gone = self._gone[str(node.target)]
        size = self._dense.values[node][0].shape[axis]
        left = torch.tensor([place for place in range(size) if place not in gone])
        added = summand(node if norm is None else next(iter(node.users)))
        if added not in self._dense.values:  # computed later: it will make up for this one
            added = None
        (read,) = self._twins[node].all_input_nodes
        for number, x in enumerate(self._cut.values[read]):
            y = self._dense.values[node][number]
            wanted = y.index_select(axis, left.to(y.device))
            if added is not None:
                here = self._cut.values[self._twins[added]][number]
                there = self._dense.values[added][number]
                if there.shape == y.shape and here.shape == wanted.shape:
                    lacking = there.index_select(axis, left.to(y.device)) - here
                    wanted = wanted + (lacking if norm is None else _before(norm, lacking))
            yield x, wanted


def _pairs(dense: Sequence[fx.Node], cut: Sequence[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Returns the steps of the cut network by those of the dense one.

    Raises:
        ModelError: They aren't the same.
    """
    if [(node.op, str(node.target)) for node in dense] != [(node.op, str(node.target)) for node in cut]:
        raise ModelError("the network takes other steps when units are gone, and can't be repaired: give repair=False.")
    return dict(zip(dense, cut, strict=True))


def _before(norm: _BatchNorm, values: Tensor) -> Tensor:
    """Returns by how much what a norm reads has to change for a change of what it gives; 0 where it gives nothing."""
    slope = _slope(norm)
    inverse = torch.where(slope.abs() > 1e-6, 1 / slope, 0)
    return values * inverse.view(-1, *[1] * (values.ndim - 2))


def _slope(norm: _BatchNorm) -> Tensor:
    """Returns (channels,): what a norm multiplies with."""
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    return norm.weight.detach() * scale if norm.affine else scale
