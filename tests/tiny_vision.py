"""Small random image classifiers of several architectures, and folders of images that were drawn for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

SIZE = 32
COLOURS = {"red": (220, 40, 40), "green": (40, 220, 40), "blue": (40, 40, 220)}
_TOKENS: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": SIZE,
    "patch_size": 8,
}
_STAGES: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 12, 16], "depths": [1, 2, 1]}
_NEXT: dict[str, Any] = {"num_stages": 3, "hidden_sizes": [8, 12, 16], "depths": [1, 2, 1], "image_size": SIZE}
_MOBILE: dict[str, Any] = {"image_size": SIZE, "depth_multiplier": 0.1, "min_depth": 4, "classifier_dropout_prob": 0.0}


def _builder(name: str, **fields: Any) -> Callable[[], PreTrainedModel]:
    """Returns a function that builds transformers' classifier of some architecture."""

    def build() -> PreTrainedModel:
        config = getattr(transformers, f"{name}Config")(
            **fields, id2label=dict(enumerate(COLOURS)), label2id={label: place for place, label in enumerate(COLOURS)}
        )
        return getattr(transformers, f"{name}ForImageClassification")(config)

    return build


CLASSIFIERS: dict[str, Callable[[], PreTrainedModel]] = {
    "resnet": _builder("ResNet", **_STAGES, layer_type="basic"),
    "resnet-bottleneck": _builder("ResNet", **{**_STAGES, "hidden_sizes": [16, 24, 32]}, layer_type="bottleneck"),
    "regnet": _builder("RegNet", **_STAGES, groups_width=4, layer_type="y"),
    "convnext": _builder("ConvNext", **_NEXT, layer_scale_init_value=0.5),
    "convnextv2": _builder("ConvNextV2", **_NEXT),
    "mobilenet_v1": _builder("MobileNetV1", **_MOBILE),
    "mobilenet_v2": _builder("MobileNetV2", **_MOBILE, depth_divisible_by=4),
    "vit": _builder("ViT", **_TOKENS),
    "deit": _builder("DeiT", **_TOKENS),
    "beit": _builder("Beit", **_TOKENS),
    "dinov2": _builder("Dinov2", **{**_TOKENS, "mlp_ratio": 2}),
    "swin": _builder(
        "Swin", image_size=SIZE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2
    ),
}


def classifier(name: str) -> PreTrainedModel:
    """Returns a model in eval mode, whose activations are of a usual size in every layer."""
    torch.manual_seed(0)
    model = CLASSIFIERS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(noise(16))
    return model.eval()


def noise(number: int) -> Tensor:
    """Returns (number, 3, SIZE, SIZE) random inputs."""
    return torch.randn(number, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def save_classifier(name: str, folder: Path) -> Path:
    """Writes a checkpoint with its image processor."""
    classifier(name).save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


def draw(folder: Path, each: int, classes: Mapping[str, str] | None = None) -> Path:
    """Draws noisy images of each colour.

    Args:
        folder: Where to.
        each: Images of every colour, .png and .jpg in turns, of different sizes.
        classes: The name of a subfolder for each colour; None puts all of them in one folder.
    """
    random = np.random.default_rng(each)
    for name, colour in COLOURS.items():
        place = folder if classes is None else folder / classes[name]
        place.mkdir(parents=True, exist_ok=True)
        for number in range(each):
            pixels = np.array(colour) + random.integers(-60, 60, (40 + number, 36, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(place / f"{name}{number}.{'png' if number % 2 else 'jpg'}")
    return folder


BY_NAME = {name: name for name in COLOURS}
