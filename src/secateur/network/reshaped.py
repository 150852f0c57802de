"""Models whose blocks have widths of their own, which transformers' configs can't say.

Written by secateur beside a checkpoint; it needs torch and transformers only. `config.secateur` says what differs from
the plain model of the same config:

    shapes      parameter -> its shape
    attributes  module -> attribute -> value (numbers of heads, mostly)
    replaced    module -> what stands in its place: "attention", "zero" or "identity"
"""

import copy
from typing import Any

import torch
from torch import nn


class NoAttention(nn.Module):
    """Adds nothing to the hidden states. It keeps a cache of width 1, as the cache counts positions by its layers."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.layer_idx = getattr(attention, "layer_idx", None)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """Returns zeros like hidden_states: (windows, positions, hidden), and no attention weights."""
        cache = next((kwargs[name] for name in ("past_key_values", "layer_past") if name in kwargs), None)
        cache = getattr(cache, "self_attention_cache", cache)
        if cache is not None and self.layer_idx is not None:
            nothing = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(nothing, nothing, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class Zero(nn.Module):
    """Gives zeros of its input's shape."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states: any shape"""
        return torch.zeros_like(hidden_states)


REPLACEMENTS = {"attention": NoAttention, "zero": Zero, "identity": nn.Identity}


class Reshaped(nn.Module):
    """Comes before a transformers model class: builds the plain model and gives its parts their own shapes."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        model: Any = self
        if model.base_model is self:
            config.secateur = without_head(config.secateur, model.base_model_prefix)
        reshape(self, config.secateur)


def without_head(differences: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the differences of the base model alone, by the names that its parts have when it has no head."""
    named = [path for group in differences.values() for path in group]
    if not any(f"{path}.".startswith(f"{prefix}.") for path in named):
        return differences
    return {
        kind: {path[len(prefix) + 1 :]: value for path, value in group.items() if f"{path}.".startswith(f"{prefix}.")}
        for kind, group in differences.items()
    }


def reshape(model: Any, differences: dict[str, Any]) -> None:
    """Replaces modules, narrows parameters and sets attributes of a plain model, in place."""
    for path, kind in differences["replaced"].items():
        parent, _, name = path.rpartition(".")
        module = model.get_submodule(path)
        setattr(model.get_submodule(parent), name, REPLACEMENTS[kind](module))
    for path, shape in differences["shapes"].items():
        parent, _, name = path.rpartition(".")
        module = model.get_submodule(parent)
        plain = getattr(module, name)
        with torch.no_grad():
            grown = plain.new_zeros([max(pair) for pair in zip(plain.shape, shape)])  # noqa: B905 (python 3.9)
            grown[tuple(slice(size) for size in plain.shape)] = plain
            own = grown[tuple(slice(size) for size in shape)].clone()
        setattr(module, name, nn.Parameter(own, requires_grad=plain.requires_grad))
        if name == "weight" and isinstance(module, nn.Linear):
            module.out_features, module.in_features = shape
        elif name == "weight" and type(module).__name__ == "Conv1D":  # transformers', stored (in, out)
            module.nx, module.nf = shape
    for path, values in differences["attributes"].items():
        module = model.get_submodule(path)
        for name, value in values.items():
            if name.startswith("config."):  # some modules read the config while they compute
                module.config = copy.copy(module.config)
                setattr(module.config, name[len("config.") :], value)
            else:
                setattr(module, name, value)
