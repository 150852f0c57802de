"""Plain kinds of models and configs, and reshaped ones, which are the same with shapes of their own."""

from __future__ import annotations

import copy
from typing import Any

from secateur.network.reshaped import Reshaped, ReshapedConfig


def plain_class(model: Any) -> Any:
    """Returns the transformers class of a model, of which a reshaped model's class is a kind."""
    return getattr(type(model), "plain", type(model))


def plain_config(config: Any) -> Any:
    """Returns a copy of a config, without what makes a reshaped model."""
    kind = getattr(type(config), "plain", None)
    if kind is None:
        return copy.deepcopy(config)
    fields = {name: value for name, value in config.to_dict().items() if name not in ("secateur", "auto_map")}
    return kind.from_dict({**fields, "model_type": kind.model_type})


def reshaped_class(kind: Any) -> Any:
    """Returns the class of a model of some plain kind with shapes of its own."""
    return _kind_of(kind, Reshaped)


def reshaped_config(config: Any) -> Any:
    """Returns a plain config as one of a model with shapes of its own."""
    return reshaped_config_class(type(config)).from_dict(config.to_dict())


def reshaped_config_class(kind: Any) -> Any:
    """Returns the class of configs of models of some plain kind with shapes of their own."""
    return _kind_of(kind, ReshapedConfig)


def _kind_of(kind: Any, first: type) -> Any:
    return type(f"Secateur{kind.__name__}", (first, kind), {"plain": kind, "__module__": kind.__module__})
