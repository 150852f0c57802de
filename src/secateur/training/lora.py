"""Low-rank updates of a pruned model: trained beside its weights, added to them at the end, masks and widths held."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import UsageError
from secateur.layer_choice import chosen_layers
from secateur.network.family import Layout
from secateur.network.network import Network
from secateur.recipe.recovery import Lora

INSTALL = "LoRA needs peft: pip install 'secateur[lora]'."


class Adapters:
    """Low-rank updates of a model's linear layers, by peft.

    Where a layer has zeros, its update is computed as a whole matrix and masked, in training and at the end: what is
    merged is what was trained. (MaskLoRA, Zimmer et al. 2023, arXiv 2312.15230, section 3.2.)
    """

    def __init__(self, network: Network, settings: Lora, seed: int) -> None:
        """Puts the updates in, and freezes all other weights.

        Args:
            network: The model.
            settings: Rank and scale of the updates, and the layers that get one.
            seed: Of their first values.

        Raises:
            UsageError: peft isn't installed, or layers are of a kind that takes no update.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 (an extra)
        except ImportError as error:
            raise UsageError(INSTALL) from error
        self.network = network
        layers = chosen_layers(network.layers(), [], settings.include, ())
        strange = [layer.name for layer in layers if layer.module is None or layer.expert is not None]
        if strange:
            raise UsageError(
                f"LoRA updates linear layers, and {strange[0]} is a bare parameter; leave it out with include=, or use "
                "finetune."
            )
        self.masks = {layer.name: (layer.parameter.detach() != 0) for layer in layers if layer.zeros()}
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=[layer.name for layer in layers],
            fan_in_fan_out=layers[0].layout is Layout.IN_OUT,
        )
        network.model.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, network.model)
        self.names = [layer.name for layer in layers]
        for name, keep in self.masks.items():
            _mask(network.model.get_submodule(name), keep)

    @torch.no_grad()
    def merge(self) -> None:
        """Adds the updates to the weights, zeros staying zero, and takes the adapters out."""
        model = self.network.model
        for name in self.names:
            adapted: Any = model.get_submodule(name)
            update = adapted.get_delta_weight("default")
            keep = self.masks.get(name)
            adapted.base_layer.weight += update if keep is None else update * keep
            path, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(path), attribute, adapted.base_layer)
        if hasattr(model, "peft_config"):
            del model.peft_config


def _mask(adapted: Any, keep: Tensor) -> None:
    """Has an adapted layer compute with its weight and the masked update: with their sum, where no input is dropped."""
    plain = isinstance(adapted.base_layer, nn.Linear)
    dropout = adapted.lora_dropout["default"]

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weight, bias = self.base_layer.weight, self.base_layer.bias
        update = self.get_delta_weight("default") * keep.to(weight.device)
        if not plain:
            weight, update = weight.T, update.T
        if isinstance(dropout, nn.Identity) or not self.training:
            return functional.linear(x, weight + update, bias)
        return functional.linear(x, weight, bias) + functional.linear(dropout(x), update)

    adapted.forward = MethodType(forward, adapted)


__all__ = ["Adapters"]
