"""RoBERTa and XLM-RoBERTa: BERT's block under another head.

The first `pad_token_id` + 1 rows of the table of positions aren't used, so the longest window is that much
shorter than the config says. The head's bias is tied to `lm_head.bias`.
"""

from __future__ import annotations

from secateur.network.families.bert import BERT_CONFIG, BERT_HEADS, BERT_PROJECTIONS, BERT_WITHOUT
from secateur.network.family import Family

ROBERTA = Family(
    name="roberta",
    model_types=("roberta", "xlm-roberta"),
    blocks="encoder.layer",
    projections=BERT_PROJECTIONS,
    embeddings=("embeddings.word_embeddings",),
    heads=("lm_head.decoder",),
    objective="encoder",
    config=BERT_CONFIG,
    tied_width=True,
    head_attributes=BERT_HEADS,
    adds=False,
    without=BERT_WITHOUT,
)
