"""BERT: separate q, k, v, norms after each half.

The width of a head is always hidden / heads. The head's bias is tied to `cls.predictions.bias`. The
cross-attention that `add_cross_attention` adds isn't described.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from secateur.network.family import Family, Projection

BERT_PROJECTIONS: tuple[Projection, ...] = (
    Projection("attention.self.query", rows=("q",), columns="attention input"),
    Projection("attention.self.key", rows=("k",), columns="attention input"),
    Projection("attention.self.value", rows=("v",), columns="attention input"),
    Projection("attention.output.dense", rows=("residual",), columns="head"),
    Projection("intermediate.dense", rows=("neuron",), columns="mlp input"),
    Projection("output.dense", rows=("residual",), columns="neuron"),
)

BERT_CONFIG: Mapping[str, str] = MappingProxyType(
    {
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "neurons": "intermediate_size",
        "positions": "max_position_embeddings",
        "vocabulary": "vocab_size",
    }
)

BERT_HEADS: Mapping[str, str] = MappingProxyType(
    {"attention.self.num_attention_heads": "heads", "attention.self.all_head_size": "width"}
)

BERT_WITHOUT: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "attention": {"attention.self": "attention", "attention.output.dense": "identity"},
        "mlp": {"intermediate.dense": "identity", "output.dense": "zero"},
    }
)

BERT = Family(
    name="bert",
    model_types=("bert",),
    blocks="encoder.layer",
    projections=BERT_PROJECTIONS,
    embeddings=("embeddings.word_embeddings",),
    heads=("cls.predictions.decoder",),
    objective="encoder",
    config=BERT_CONFIG,
    tied_width=True,
    head_attributes=BERT_HEADS,
    adds=False,
    without=BERT_WITHOUT,
)
