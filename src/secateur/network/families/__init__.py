"""The architecture families that secateur knows, one file each.

A new one is a file with a `Family` constant and a line below; `tests/network/test_families.py` checks it
against the real model.
"""

from __future__ import annotations

from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from secateur.errors import ModelError, UsageError, did_you_mean
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
from secateur.network.families.t5 import T5, T5_GATED
from secateur.network.families.whisper import WHISPER
from secateur.network.families.xlnet import XLNET
from secateur.network.family import Family

__all__ = ["FAMILIES", "IMAGE_TYPES", "check_model_type", "family_of"]

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
        T5,
        T5_GATED,
        WHISPER,
    )
}

_BY_MODEL_TYPE: dict[str, list[Family]] = {}
for _family in FAMILIES.values():
    for _model_type in _family.model_types:
        _BY_MODEL_TYPE.setdefault(_model_type, []).append(_family)


IMAGE_TYPES = frozenset(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES) - _BY_MODEL_TYPE.keys()


def check_model_type(model_type: str) -> None:
    """Raises an error if no family covers a `config.model_type`; the message lists those that are known.

    Raises:
        UsageError: It is of an image classifier, which goes with images.
        ModelError: It is of anything else.
    """
    if model_type in IMAGE_TYPES:
        raise UsageError(
            f"a '{model_type}' model classifies images: give --images FOLDER, and --unit filter or --unit neuron "
            "where it is pruned."
        )
    if model_type not in _BY_MODEL_TYPE:
        raise ModelError(
            f"The architecture '{model_type}' (model_type in config.json) isn't one that secateur describes."
            + did_you_mean(model_type, _BY_MODEL_TYPE)
        )


def family_of(model_type: str, config: Any = None) -> Family:
    """Returns the family that covers a model.

    Args:
        model_type: Its `config.model_type`.
        config: The config itself, which some families need to be told apart (`Family.when`).

    Raises:
        ModelError: No family covers it.
    """
    check_model_type(model_type)
    for family in _BY_MODEL_TYPE[model_type]:
        if all(getattr(config, name, None) == value for name, value in family.when.items()):
            return family
    known = " or ".join(f"{dict(family.when)}" for family in _BY_MODEL_TYPE[model_type])
    raise ModelError(f"The config of this '{model_type}' model says neither {known}; secateur can't tell its kind.")
