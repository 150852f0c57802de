"""Models whose layers have widths of their own, which transformers' configs can't say.

Written by secateur beside a checkpoint; it needs torch and transformers only. `config.secateur` says what differs from
the plain model of the same config:

    shapes      parameter or buffer -> its shape
    attributes  module -> attribute -> value (numbers of heads, mostly)
    replaced    module -> what stands in its place: "attention", "zero", "identity", "factors" or "factors+weights"
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


class Factors(nn.Module):
    """A linear layer as the product of two thin ones, and single weights beside them where there are some."""

    weights = False

    def __init__(self, module: nn.Module) -> None:
        """
        Args:
            module: The linear layer that it stands for; its shapes are those of rank 1, until `reshape` says others.
        """
        super().__init__()
        stored: Any = module.weight
        outputs, inputs = reversed(stored.shape) if type(module).__name__ == "Conv1D" else stored.shape
        self.down = nn.Linear(inputs, 1, bias=False)
        self.up = nn.Linear(1, outputs, bias=module.bias is not None)
        if self.weights:
            self.kept = nn.Linear(inputs, outputs, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        """What models ask for a dtype, or initialise before it is loaded; they don't multiply by it."""
        return self.up.weight

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states: (..., in); returns (..., out)"""
        product: torch.Tensor = self.up(self.down(hidden_states))
        return product + self.kept(hidden_states) if self.weights else product


class FactorsAndWeights(Factors):
    """Factors beside a matrix of single weights, `kept`."""

    weights = True


TYPE = "secateur_"  # before the type in config.json


class ReshapedConfig:
    """Comes before a transformers config class: by its type in the file nobody takes the model for the plain one."""

    model_type: str

    def to_dict(self) -> dict[str, Any]:
        """Returns what config.json holds."""
        plain: Any = super()
        return {**plain.to_dict(), "model_type": TYPE + self.model_type}

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns what config.json holds, with the plain model's type, and the arguments that are left."""
        plain: Any = super()
        found, rest = plain.get_config_dict(*args, **kwargs)
        return {**found, "model_type": cls.model_type}, rest


REPLACEMENTS = {
    "attention": NoAttention,
    "zero": Zero,
    "identity": nn.Identity,
    "factors": Factors,
    "factors+weights": FactorsAndWeights,
}


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
    changed: dict[str, nn.Module] = {}
    for path, shape in differences["shapes"].items():
        parent, _, name = path.rpartition(".")
        module = changed[parent] = model.get_submodule(parent)
        plain = getattr(module, name)
        with torch.no_grad():
            grown = plain.new_zeros([max(pair) for pair in zip(plain.shape, shape)])  # noqa: B905 (python 3.9)
            grown[tuple(slice(size) for size in plain.shape)] = plain
            own = grown[tuple(slice(size) for size in shape)].clone()
        parameter = isinstance(plain, nn.Parameter)
        setattr(module, name, nn.Parameter(own, requires_grad=plain.requires_grad) if parameter else own)
    for module in changed.values():
        describe(module)
    for path, values in differences["attributes"].items():
        module = model.get_submodule(path)
        for name, value in values.items():
            if name.startswith("config."):  # some modules read the config while they compute
                module.config = copy.copy(module.config)
                setattr(module.config, name[len("config.") :], value)
            else:
                setattr(module, name, value)


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
RMS_NORM: Any = getattr(nn, "RMSNorm", nn.LayerNorm)  # torch 2.4 and later
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def describe(module: nn.Module) -> None:
    """Has a module's attributes say the shapes of its weights."""
    own: Any = module
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        transposed, each = isinstance(module, TRANSPOSED), own.out_channels // own.groups
        if own.groups > 1 and own.groups == own.in_channels:  # depthwise: as many groups as channels
            own.groups = weight.shape[0] if transposed else weight.shape[0] // each
        out, inputs = (1, 0) if transposed else (0, 1)
        own.out_channels = weight.shape[out] * (own.groups if transposed else 1)
        own.in_channels = weight.shape[inputs] * (1 if transposed else own.groups)
    elif isinstance(module, nn.Linear):
        own.out_features, own.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        own.num_embeddings, own.embedding_dim = weight.shape
    elif type(module).__name__ == "Conv1D":  # transformers', stored (in, out)
        own.nx, own.nf = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        known = [one for one in (weight, module.running_mean) if one is not None]
        if known:
            own.num_features = len(known[0])
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        own.num_channels = len(weight)
    elif isinstance(module, (nn.LayerNorm, RMS_NORM)) and weight is not None:
        own.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.PReLU):
        own.num_parameters = len(module.weight)
    elif isinstance(module, nn.RNNBase):
        own.hidden_size, own.input_size = own.weight_hh_l0.shape[1], own.weight_ih_l0.shape[1]
        module.flatten_parameters()
