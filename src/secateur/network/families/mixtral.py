"""Mixtral: Llama's attention, and in the place of the MLP a router and experts that each token is sent to some of.

The experts' weights are stored together, (experts, out, in); files hold each expert's by itself. An expert's layers
are named by its index behind the parameter's name (`mlp.experts.down_proj.3`), so a glob for all of them ends in `*`.
The router (`mlp.gate`) isn't pruned: it is a few rows that decide for whole experts.
"""

from __future__ import annotations

from types import MappingProxyType

from secateur.network.families.gated import GATED_CONFIG, GATED_HEADS, GATED_PROJECTIONS, GATED_WITHOUT
from secateur.network.family import Family, Projection

EXPERT_PROJECTIONS: tuple[Projection, ...] = (
    Projection("mlp.experts.gate_up_proj", rows=("gate", "up"), columns="expert input", experts=True),
    Projection("mlp.experts.down_proj", rows=("residual",), columns="expert neuron", experts=True),
)

EXPERT_TENSORS: tuple[tuple[str, int], ...] = (
    ("mlp.experts.gate_up_proj", 0),
    ("mlp.experts.down_proj", 0),
    ("mlp.gate.weight", 0),  # the router: one row per expert
)

MIXTRAL = Family(
    name="mixtral",
    model_types=("mixtral",),
    blocks="layers",
    projections=GATED_PROJECTIONS[:4] + EXPERT_PROJECTIONS,
    embeddings=("embed_tokens",),
    config=MappingProxyType(
        {name: field for name, field in GATED_CONFIG.items() if name != "neurons"}
        | {
            "experts": "num_local_experts",
            "experts_per_token": "num_experts_per_tok",
            "expert_neurons": "intermediate_size",
        }
    ),
    head_attributes=GATED_HEADS,
    without=GATED_WITHOUT,
    norm="rms",
    experts="mlp.experts",
    expert_tensors=EXPERT_TENSORS,
    files=MappingProxyType(
        {
            "mlp.gate.weight": ("block_sparse_moe.gate.weight",),
            "mlp.experts.gate_up_proj": (
                "block_sparse_moe.experts.{}.w1.weight",
                "block_sparse_moe.experts.{}.w3.weight",
            ),
            "mlp.experts.down_proj": ("block_sparse_moe.experts.{}.w2.weight",),
        }
    ),
)
