"""References that surgery is held against: the dense model, in which what is to be cut is of no use to anybody.

proof = prove(tiny_network("llama"), "neuron")
assert torch.equal(logits(proof.network, proof.ids), proof.expected)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.calibration.inputs import model_inputs, predicted_ids
from secateur.calibration.windows import Windows
from secateur.network.families import FAMILIES, family_of
from secateur.network.network import Network, Source
from secateur.network.surgery import Cut, cut
from secateur.network.unit_group import Halves, UnitGroup
from secateur.network.units import UNITS, unit_groups
from tiny import FRAMES, MELS, SPECIAL, tiny_model

POST_NORM = ("bert", "roberta", "distilbert", "xlnet")  # a norm follows each addition, so no block can be a no-op
GROUPED = tuple(name for name, family in FAMILIES.items() if "kv_heads" in family.config)
SPARSE = tuple(name for name, family in FAMILIES.items() if family.experts is not None)


def has(name: str, unit: str) -> bool:
    """Whether a family has units of a kind; T5 has no halves of attention, as the first makes all others' biases."""
    match unit:
        case "query-head":
            return name in GROUPED
        case "expert":
            return name in SPARSE
        case "attention" | "mlp":
            return unit in FAMILIES[name].without
    return True


CELLS = [(name, unit) for name in FAMILIES for unit in UNITS if has(name, unit)]
NOT_RAGGED = [
    ("qwen3_moe", "neuron"),  # an MLP in one block and experts in the other, with a field of the config for either
    ("t5", "head"),  # all blocks of a stack get the first one's biases of positions, which have a place per head
    ("t5_gated", "head"),
]
RAGGED = [cell for cell in CELLS if cell[1] in ("neuron", "head", "query-head") and cell not in NOT_RAGGED]
CAUSAL = tuple(name for name, family in FAMILIES.items() if family.objective == "causal")
TINY_EPSILON = 1e-12  # of RMS norms: the mean is over fewer channels after a cut, but epsilon stays as it was

IDS = torch.arange(10, 22)[None]
EXPERT_STEP = 4  # float32 numbers; products of grouped matrices have rows of whole 16 bytes
Keep = Callable[[UnitGroup], Tensor]


def proof_table() -> str:
    """Returns docs/units.md's table of what the tests prove, in markdown: a row per family, a column per unit."""
    lines = ["| family | " + " | ".join(UNITS) + " |", "|---|" + "---|" * len(UNITS)]
    for name in FAMILIES:
        cells = []
        for unit in UNITS:
            generates = "g" if name in CAUSAL else ""
            ragged = "w" if (name, unit) in RAGGED else ""
            cells.append(f"ets{generates}{ragged}" if (name, unit) in CELLS else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Proof:
    """A cut model and what it has to compute.

    Attributes:
        network: The cut model.
        cuts: What was cut.
        ids: Tokens by their new numbers.
        expected: The reference's logits.
    """

    network: Network
    cuts: tuple[Cut, ...]
    ids: Tensor
    expected: Tensor


def network_of(model: PreTrainedModel) -> Network:
    """Returns a network around a model in memory."""
    source = Source("memory", Path("memory"), "float32")
    family = family_of(model.config.model_type, model.config)
    return Network(model, family, None, source, torch.device("cpu"))


def tiny_network(name: str, seed: int = 0) -> Network:
    """Returns a family's small model, with a tiny epsilon in its RMS norms."""
    model = tiny_model(name, seed)
    if FAMILIES[name].norm != "layer":
        shrink_epsilon(model)
    return network_of(model)


def shrink_epsilon(model: PreTrainedModel) -> None:
    field = "layer_norm_epsilon" if hasattr(model.config, "layer_norm_epsilon") else "rms_norm_eps"
    setattr(model.config, field, TINY_EPSILON)
    for module in model.modules():
        for name in ("variance_epsilon", "eps"):
            if hasattr(module, name):
                setattr(module, name, TINY_EPSILON)


def windows(network: Network, ids: Tensor = IDS) -> Windows:
    """Returns the window of these tokens, with a sound, always the same one, if the model hears."""
    sound = torch.randn(1, MELS, FRAMES, generator=torch.Generator().manual_seed(3))
    return Windows(ids, "some tokens", features=sound if network.family.inputs == "audio" else None)


def output(network: Network, ids: Tensor = IDS, model: Any = None) -> Tensor:
    """Returns what a model gives first, with gradients: the network's own, or another one that is fed the same."""
    first, others = model_inputs(network, windows(network, ids))
    found: Tensor = (network.model if model is None else model)(first, **others)[0]
    return found


def logits(network: Network, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return output(network, ids)


def loss(network: Network, ids: Tensor = IDS) -> Tensor:
    """Returns the cross entropy of the tokens that a model predicts, or of the next ones if it sees all."""
    targets = predicted_ids(network, windows(network, ids))
    return nn.functional.cross_entropy(output(network, ids)[0, :-1], targets[0, 1:])


def some(seed: int = 1, ragged: bool = False) -> Keep:
    """Returns a choice of units: about a quarter goes, of every group other ones; of blocks, one of every stack.

    Args:
        seed: Of the choice.
        ragged: Whether one more goes from each block than from the one before, the first of few units none; after
            all but one it begins anew.
    """
    random = torch.Generator().manual_seed(seed)
    calls = 0
    together: dict[str, Tensor] = {}

    def keep(group: UnitGroup) -> Tensor:
        nonlocal calls
        if group.shared in together:
            return together[group.shared]
        chosen = torch.ones(group.count, dtype=torch.bool)
        if group.unit == "layer":
            for blocks in group.network.ranges:
                chosen[blocks.start + torch.randperm(len(blocks), generator=random)[0]] = False
            return chosen
        first = len(SPECIAL) if group.unit == "token" else 0
        step = EXPERT_STEP if group.unit == "neuron" and group.readers[0].layer.expert is not None else 1
        share = 8 if group.unit == "channel" else max(1, group.count // 4 // step)  # 8 is the width of a head
        more = calls - 1 if ragged and group.block is not None and group.unit != "expert" else 0
        gone = (share + more) * step % group.count
        chosen[first + torch.randperm(group.count - first, generator=random)[:gone]] = False
        if group.unit == "token":
            chosen[IDS] = True
        calls += 1
        if group.shared is not None:
            together[group.shared] = chosen
        return chosen

    return keep


def cuts_of(network: Network, unit: str, keep: Keep) -> list[Cut]:
    """Returns cuts in all groups of a kind; channels take a head with them where their numbers are tied."""
    cuts = [Cut(group, keep(group)) for group in unit_groups(network, unit)]
    if unit == "channel" and network.family.tied_width:
        for group in unit_groups(network, "head"):
            cuts.append(Cut(group, torch.arange(group.count) > 0))
    return cuts


def prove(network: Network, unit: str, keep: Keep | None = None) -> Proof:
    """Cuts units of a kind out of a network, which isn't to be used afterwards."""
    return prove_cuts(network, cuts_of(network, unit, keep or some()))


def prove_cuts(network: Network, cuts: Sequence[Cut]) -> Proof:
    """Takes the use from all that is to be cut, notes the logits, and cuts."""
    hooks = [hook for one in cuts for hook in _disconnect(network, one)]
    tokens = next((one.keep for one in cuts if one.group.unit == "token"), None)
    expected, ids = logits(network), IDS
    if tokens is not None:
        expected, ids = expected[..., tokens], (tokens.long().cumsum(0) - 1)[IDS]
    for hook in hooks:
        hook.remove()
    return Proof(cut(network, cuts), tuple(cuts), ids, expected)


def _disconnect(network: Network, one: Cut) -> list[Any]:
    """Makes the units that go compute nothing, or nothing that is read; returns the hooks that it takes."""
    match one.group.unit:
        case "neuron" | "head" | "query-head":
            _zero(network, one, one.group.consumes)
        case "attention" | "mlp" | "layer":
            return [hook for number in gone(one) for hook in _silence(network, one.group, number)]
        case "expert":
            assert one.group.block is not None
            return [_reroute(network.blocks[one.group.block].get_submodule("mlp.gate"), one.keep)]
        case "channel":
            _zero(network, one, one.group.produces)
            if network.family.norm == "layer":
                tables = [part for part in one.group.follows if one.group.tensor(part.name).ndim > 1]
                _zero(network, one, tables)
                return [_restrict(norm, one.keep) for norm in _norms(network, one.group.count)]
    return []


def gone(one: Cut) -> list[int]:
    """Returns the numbers of the units that go."""
    return (~one.keep).nonzero().flatten().tolist()


def _zero(network: Network, one: Cut, parts: Sequence[Any]) -> None:
    with torch.no_grad():
        for part in parts:
            places = part.index[~one.keep].flatten()
            network.model.get_parameter(part.name).index_fill_(part.axis, places, 0.0)


def _silence(network: Network, group: UnitGroup, number: int) -> list[Any]:
    """Has a half, or both halves, of a block add nothing; with a norm behind them, has the block passed over."""
    block = group.blocks[number] if isinstance(group, Halves) else number
    before = network.family.pre_norm
    post_norm = network.family.name in POST_NORM or (before and not getattr(network.model.config, before))
    if group.unit == "layer" and post_norm:

        def skip(_: nn.Module, args: Any, output: Any) -> Any:
            return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]

        return [network.blocks[block].register_forward_hook(skip)]
    columns = {"attention": ("head",), "mlp": ("neuron", "expert neuron")}.get(group.unit)
    with torch.no_grad():
        for projection, layer in zip(network.projections(block), network.block_layers(block), strict=True):
            if "residual" in projection.rows and (columns is None or projection.columns in columns):
                layer.parameter.zero_()
                if getattr(layer.module, "bias", None) is not None:
                    layer.module.bias.zero_()  # type: ignore[union-attr, operator]
    return []


def _reroute(router: Any, keep: Tensor) -> Any:
    """Has a router choose among the experts that stay as if it knew no others; returns the hook."""

    def choose(_: nn.Module, __: Any, given: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        scores = given[0].masked_fill(~keep, -torch.inf)
        weights, experts = scores.softmax(-1).topk(router.top_k)
        if getattr(router, "norm_topk_prob", True):  # Mixtral always does
            weights = weights / weights.sum(-1, keepdim=True)
        return scores, weights, experts

    return router.register_forward_hook(choose)


def _norms(network: Network, width: int) -> list[nn.LayerNorm]:
    norms = [module for module in network.model.modules() if isinstance(module, nn.LayerNorm)]
    return [norm for norm in norms if norm.normalized_shape == (width,)]


def _restrict(norm: nn.LayerNorm, keep: Tensor) -> Any:
    """Has a norm take its mean and variance over the channels that stay, and give zeros elsewhere."""

    def narrow(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        channels, weight, bias = args[0][..., keep], norm.weight[keep], norm.bias[keep]
        narrowed = torch.zeros_like(output)
        narrowed[..., keep] = nn.functional.layer_norm(channels, (len(weight),), weight, bias, norm.eps)
        return narrowed

    return norm.register_forward_hook(narrow)
