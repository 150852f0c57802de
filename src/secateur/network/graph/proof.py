"""Holds a cut network against the dense one in which nothing reads the units that went: they have to give the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from secateur.errors import SecateurError, first_line
from secateur.network.graph.cutting import cut_graph, gone_units, stay
from secateur.network.graph.groups import Fixed
from secateur.network.graph.tracing import evaluating
from secateur.network.graph.values import tensors
from secateur.network.unit_group import UnitGroup

if TYPE_CHECKING:
    from secateur.network.graph.network import GraphNetwork

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}  # relative to the largest output; 0.05 in lower precision
SEED = 0


def silenced(network: GraphNetwork, keep: Mapping[str, Tensor], *inputs: Any) -> Any:
    """Returns what the dense network gives if nothing reads units that go, and norms don't see them."""
    gone = gone_units(network, keep)
    changed: dict[str, Tensor] = {}
    for (name, axis), place in network.found.places.items():
        lost = ~stay(network, place.labels, gone)
        if place.read and bool(lost.any()):
            tensor = changed.get(name, network.tensor(name))
            changed[name] = tensor.index_fill(axis, lost.nonzero().flatten().to(tensor.device), 0.0)
    kept = {
        node: [None if labels is None else stay(network, labels, gone) for labels in axes]
        for node, axes in network.found.mixed.items()
    }
    steps = network.steps
    module = steps.module if steps.training is None or not network.model.training else steps.training
    named = {alias: tensor for name, tensor in changed.items() for alias in network.aliases[name]}
    return _Silenced(module, named, kept).run(*inputs)


class _Silenced(fx.Interpreter):
    """Runs a graph with other weights, and with norms that don't see units which go.

    Args:
        module: The graph.
        changed: Tensors that stand in the place of the model's own, by name.
        kept: By call of a norm: which places stay, (size,) bool for each axis that it normalises over, None for all.
    """

    def __init__(
        self, module: fx.GraphModule, changed: Mapping[str, Tensor], kept: Mapping[fx.Node, Sequence[Tensor | None]]
    ) -> None:
        super().__init__(module)
        self._changed = changed
        self._kept = kept

    def run_node(self, n: fx.Node) -> Any:
        if n not in self._kept:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op == "call_module":
            module: Any = self.fetch_attr(str(n.target))
            name = next(kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn"))
            groups, eps = getattr(module, "num_groups", 1), module.eps
            weights = [getattr(module, part, None) for part in ("weight", "bias")]
        else:
            name, groups = getattr(n.target, "__name__", ""), args[1] if len(args) > 1 else kwargs.get("num_groups")
            rest = dict(
                zip(("weight", "bias", "eps") if "rms" not in name else ("weight", "eps"), args[2:], strict=False)
            )
            given = {**rest, **kwargs}
            weights = [given.get("weight"), given.get("bias")]
            eps = given.get("eps", None if "rms" in name else 1e-5)
        return _narrow(name.lower().replace("_", ""), groups, args[0], weights, eps, self._kept[n])

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._changed[target] if target in self._changed else super().get_attr(target, args, kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        own = {n.removeprefix(f"{target}."): one for n, one in self._changed.items() if n.startswith(f"{target}.")}
        return functional_call(self.fetch_attr(target), own, args, kwargs)


def _narrow(
    name: str, groups: Any, x: Tensor, weights: Sequence[Tensor | None], eps: Any, kept: Sequence[Tensor | None]
) -> Tensor:
    """Returns what a norm gives on the places that stay, and zeros elsewhere.

    Args:
        name: `layernorm`, `rmsnorm` or `groupnorm`.
        groups: Of a group norm.
        x: Its input.
        weights: Its scale and shift.
        eps: What it adds to the variance.
        kept: By axis that it normalises over.
    """
    first = 1 if name == "groupnorm" else x.ndim - len(kept)
    at = [torch.arange(size) for size in x.shape]
    for axis, stays in enumerate(kept):
        if stays is not None:
            at[first + axis] = stays.nonzero().flatten()
    grid = torch.meshgrid(*at, indexing="ij")
    own = torch.meshgrid(*at[first : first + len(kept)], indexing="ij")
    w, b = (None if one is None else one[own] for one in weights)
    some = x[grid]
    if name == "groupnorm":
        y = nn.functional.group_norm(some, groups, w, b, eps)
    elif name == "layernorm":
        y = nn.functional.layer_norm(some, some.shape[first:], w, b, eps)
    else:
        y = nn.functional.rms_norm(some, some.shape[first:], w, eps)
    return torch.zeros_like(x).index_put(grid, y)


def tried(network: GraphNetwork) -> list[Fixed]:
    """Cuts about half of all units, and takes those groups away from a network that don't stand it.

    What a model's code does with units isn't known beyond doubt before it was tried: numbers in it may count them.

    Returns:
        What can't be cut, with the reason.
    """
    random = torch.Generator().manual_seed(SEED)
    keep = {group.name: _about_half(group, random) for group in network.groups}
    if _fault(network, keep) is None:
        return []
    sound: list[UnitGroup] = []
    fixed = []
    for group in list(network.groups):
        fault = _fault(network, {one.name: keep[one.name] for one in (*sound, group)})
        if fault is None:
            sound.append(group)
        else:
            fixed.append(Fixed(group.name.rpartition("/")[0], group.count, f"a trial cut failed: {fault}"))
    network.groups = sound
    return fixed


def _about_half(group: UnitGroup, random: torch.Generator) -> Tensor:
    kept = torch.rand(group.count, generator=random) < 0.5
    kept[int(torch.randint(group.count, (1,), generator=random))] = True
    if group.count > 1 and bool(kept.all()):
        kept[0] = False
    return kept


def _fault(network: GraphNetwork, keep: Mapping[str, Tensor]) -> str | None:
    """Returns what goes wrong when units are cut; None if nothing does."""
    if all(bool(kept.all()) for kept in keep.values()):
        return None
    with evaluating(network.model), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(SEED)
        dense = list(tensors(silenced(network, keep, *network.inputs)))
        try:
            small = cut_graph(network, keep)
            torch.manual_seed(SEED)
            cut = list(tensors(small(*network.inputs)))
        except SecateurError:
            raise
        except Exception as error:  # whatever the model's own code makes of other shapes
            return first_line(error)
    for one, other in zip(dense, cut, strict=True):
        if one.shape != other.shape:
            return f"an output's shape turns from {tuple(one.shape)} to {tuple(other.shape)}"
        if one.numel() and one.is_floating_point():
            far = (one - other).abs().nan_to_num().max()
            most = TOLERANCE.get(one.dtype, 0.05) * float(one.abs().nan_to_num().max())
            if float(far) > most:
                return f"the outputs move by {float(far):.2g}, though nothing read what went"
    return None
