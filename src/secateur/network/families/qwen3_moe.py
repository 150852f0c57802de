"""Qwen 3 with experts (Qwen3-30B-A3B ...): Qwen 3's attention; Mixtral's experts in some blocks, an MLP in the others.

`mlp_only_layers` and `decoder_sparse_step` say which. The router's weights of a token's experts add up to 1 only with
`norm_topk_prob`. As with Mixtral, the router isn't pruned.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from secateur.network.families.gated import GATED_CONFIG, GATED_HEADS, GATED_PROJECTIONS, GATED_WITHOUT
from secateur.network.families.mixtral import EXPERT_PROJECTIONS, EXPERT_TENSORS
from secateur.network.family import Family

QWEN3_MOE = Family(
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    blocks="layers",
    projections=(
        *GATED_PROJECTIONS[:4],
        *(replace(projection, where="mlp.gate_proj") for projection in GATED_PROJECTIONS[4:]),
        *(replace(projection, where="mlp.experts") for projection in EXPERT_PROJECTIONS),
    ),
    embeddings=("embed_tokens",),
    config=MappingProxyType(
        {
            **GATED_CONFIG,
            "experts": "num_experts",
            "experts_per_token": "num_experts_per_tok",
            "expert_neurons": "moe_intermediate_size",
        }
    ),
    head_attributes=GATED_HEADS,
    without=GATED_WITHOUT,
    norm="rms",
    experts="mlp.experts",
    expert_tensors=EXPERT_TENSORS,
    files=MappingProxyType(
        {
            "mlp.experts.gate_up_proj": (
                "mlp.experts.{}.gate_proj.weight",
                "mlp.experts.{}.up_proj.weight",
            ),
            "mlp.experts.down_proj": ("mlp.experts.{}.down_proj.weight",),
        }
    ),
)
