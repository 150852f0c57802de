"""DistilBERT: BERT's block under names of its own. The width of a head is always hidden / heads."""

from __future__ import annotations

from types import MappingProxyType

from secateur.network.family import Family, Projection

DISTILBERT = Family(
    name="distilbert",
    model_types=("distilbert",),
    blocks="transformer.layer",
    projections=(
        Projection("attention.q_lin", rows=("q",), columns="attention input"),
        Projection("attention.k_lin", rows=("k",), columns="attention input"),
        Projection("attention.v_lin", rows=("v",), columns="attention input"),
        Projection("attention.out_lin", rows=("residual",), columns="head"),
        Projection("ffn.lin1", rows=("neuron",), columns="mlp input"),
        Projection("ffn.lin2", rows=("residual",), columns="neuron"),
    ),
    embeddings=("embeddings.word_embeddings",),
    heads=("vocab_projector",),
    objective="encoder",
    config=MappingProxyType(
        {
            "hidden": "dim",
            "layers": "n_layers",
            "heads": "n_heads",
            "neurons": "hidden_dim",
            "positions": "max_position_embeddings",
            "vocabulary": "vocab_size",
        }
    ),
    tied_width=True,
    head_attributes=MappingProxyType({"attention.n_heads": "heads", "attention.dim": "width"}),
    adds=False,
    without=MappingProxyType({"attention": {"attention": "attention"}, "mlp": {"ffn": "zero"}}),
)
