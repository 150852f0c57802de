"""What becomes of a layer's output: a batch norm behind it, something that it is added to."""

from __future__ import annotations

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.network.graph.network import GraphNetwork

ADDITIONS = ("add", "add_", "iadd")  # names of the functions and methods


def norm_behind(node: fx.Node, model: nn.Module) -> _BatchNorm | None:
    """Returns the batch norm with statistics of its own that a node's value goes to, if it goes nowhere else."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    module = model.get_submodule(str(users[0].target))
    return module if isinstance(module, _BatchNorm) and module.running_mean is not None else None


def summand(node: fx.Node) -> fx.Node | None:
    """Returns what a node's value is added to, if that is all that becomes of it."""
    users = list(node.users)
    if len(users) != 1 or getattr(users[0].target, "__name__", users[0].target) not in ADDITIONS:
        return None
    others = [one for one in users[0].args if one is not node]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) and not users[0].kwargs else None


def mean_free(network: GraphNetwork) -> set[str]:
    """Returns the names of layers whose mean output a bias or a batch norm makes right, whatever their weight gives."""
    found = set()
    for node in network.steps.module.graph.nodes:
        if node.op == "call_module":
            bias = getattr(network.model.get_submodule(str(node.target)), "bias", None)
            if isinstance(bias, Tensor) or norm_behind(node, network.model) is not None:
                found.add(str(node.target))
    return found
