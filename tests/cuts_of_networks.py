"""Holds cut networks against the dense ones in which nothing reads what went, and says what is proven by that."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from secateur.network.graph.network import GraphNetwork
from secateur.network.graph.proof import silenced
from secateur.network.graph.rules import FUNCTIONS, METHODS, MODULES
from secateur.network.graph.values import tensors
from secateur.recipe import TRACED_UNITS
from zoo import ZOO


def made(name: str) -> tuple[nn.Module, Tensor]:
    """Returns a network of the zoo, with statistics of batch norms that aren't those of nothing, and its inputs."""
    torch.manual_seed(0)
    build, inputs = ZOO[name]
    model = build()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval(), inputs()


def proof_table() -> str:
    """Returns docs/networks.md's table of what the tests prove, in markdown: a row per network, a column per unit."""
    lines = ["| network | " + " | ".join(TRACED_UNITS) + " |", "|---|" + "---|" * len(TRACED_UNITS)]
    for name in ZOO:
        kinds = {group.unit for group in GraphNetwork(*made(name)).groups}
        lines.append(f"| {name} | " + " | ".join("etsr" if unit in kinds else "" for unit in TRACED_UNITS) + " |")
    return "\n".join(lines)


def operations_table() -> str:
    """Returns docs/networks.md's table of the operations that are followed, in markdown, by what they do to units."""
    rows: dict[str, tuple[list[str], list[str], list[str]]] = defaultdict(lambda: ([], [], []))
    names = (
        [(rule, kind.__name__) for kind, rule in MODULES.items()],
        [(rule, function.__name__.lstrip("_")) for function, rule in FUNCTIONS.items()],
        [(rule, method) for method, rule in METHODS.items()],
    )
    for column, some in enumerate(names):
        for rule, name in some:
            rows[str(rule.__doc__).splitlines()[0]][column].append(name)
    lines = ["| what it does with units | modules | functions | methods |", "|---|---|---|---|"]
    for about, columns in rows.items():
        cells = [", ".join(f"`{name}`" for name in sorted(set(some), key=str.lower)) for some in columns]
        lines.append(f"| {about} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def some_units(network: GraphNetwork, seed: int = 0, share: float = 0.6) -> dict[str, Tensor]:
    """Returns which units stay: by group (units,) bool, at least one."""
    random = torch.Generator().manual_seed(seed)
    keep = {}
    for group in network.groups:
        kept = torch.rand(group.count, generator=random) < share
        kept[int(torch.randint(group.count, (1,), generator=random))] = True
        keep[group.name] = kept
    return keep


def exact(network: GraphNetwork, small: nn.Module, keep: dict[str, Tensor]) -> None:
    """Asserts that a cut changed nothing that is read, in evaluation and in training."""
    for train in (False, True):
        network.model.train(train)
        small.train(train)
        torch.manual_seed(1)
        dense = list(tensors(silenced(network, keep, *network.inputs)))
        torch.manual_seed(1)
        cut = list(tensors(small(*network.inputs)))
        assert len(dense) == len(cut) > 0
        for one, other in zip(dense, cut, strict=True):
            torch.testing.assert_close(other, one, atol=2e-5, rtol=1e-4)
    network.model.eval()
    small.eval()
