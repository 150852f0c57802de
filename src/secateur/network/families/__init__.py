"""The architecture families that secateur knows, one file each.

A new one is a file with a `Family` constant and a line below; `tests/network/test_families.py` checks it
against the real model.
"""

from __future__ import annotations

from secateur.errors import ModelError, did_you_mean
from secateur.network.families.bert import BERT
from secateur.network.families.distilbert import DISTILBERT
from secateur.network.families.gemma import GEMMA
from secateur.network.families.gemma2 import GEMMA2
from secateur.network.families.gemma3 import GEMMA3
from secateur.network.families.gpt2 import GPT2
from secateur.network.families.gpt_neox import GPT_NEOX
from secateur.network.families.llama import LLAMA
from secateur.network.families.mistral import MISTRAL
from secateur.network.families.mixtral import MIXTRAL
from secateur.network.families.opt import OPT
from secateur.network.families.phi3 import PHI3
from secateur.network.families.qwen2 import QWEN2
from secateur.network.families.qwen3 import QWEN3
from secateur.network.families.qwen3_moe import QWEN3_MOE
from secateur.network.families.roberta import ROBERTA
from secateur.network.families.xlnet import XLNET
from secateur.network.family import Family

__all__ = ["FAMILIES", "family_of"]

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        MIXTRAL,
        QWEN3_MOE,
        GEMMA,
        GEMMA2,
        GEMMA3,
        PHI3,
        GPT2,
        GPT_NEOX,
        OPT,
        BERT,
        ROBERTA,
        DISTILBERT,
        XLNET,
    )
}

_BY_MODEL_TYPE = {model_type: family for family in FAMILIES.values() for model_type in family.model_types}


def family_of(model_type: str) -> Family:
    """Returns the family that covers a `config.model_type`.

    Raises:
        ModelError: No family covers it. The message lists the model types that are known.
    """
    if model_type not in _BY_MODEL_TYPE:
        raise ModelError(
            f"The architecture '{model_type}' (model_type in config.json) isn't one that secateur describes."
            + did_you_mean(model_type, _BY_MODEL_TYPE)
        )
    return _BY_MODEL_TYPE[model_type]
