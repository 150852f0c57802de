"""What Torch-Pruning makes of a CIFAR ResNet, as JSON; run by bench/vision.py in an environment of its own.

    PEER_PYTHON bench/vision_peer.py --data DATA --depth 56 --score l1 --share 0.5

It goes by its group importance (`l1`: magnitude with p=1; `taylor`), the same share of every layer, in each block's
inner filters only: on a padded shortcut it fails.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from torch import nn
from torch.nn import functional

from vision_training import Images, accuracy, cifar, macs, resnet, speeds, tune

STEPS = 64  # in which the share of filters is looked for that the share of MACs takes


def cut(dense: nn.Module, images: Images, score: str, ratio: float) -> nn.Module:
    """Returns a copy without a share of each block's inner filters."""
    model = copy.deepcopy(dense)
    importance: Any = torch_pruning.importance.GroupMagnitudeImportance(p=1)
    if score == "taylor":
        importance = torch_pruning.importance.GroupTaylorImportance()
        for x, y in zip(*(part.split(64) for part in images.calibration), strict=True):
            functional.cross_entropy(model(x), y).backward()
    outer = [module for name, module in model.named_modules() if name in ("conv1", "linear") or name.endswith(".conv2")]
    pruner = torch_pruning.pruner.BasePruner(
        model, images.x_test[:1], importance=importance, pruning_ratio=ratio, ignored_layers=outer
    )
    pruner.step()
    return model.eval()


def ratio_for(dense: nn.Module, images: Images, share: float) -> float:
    """Returns the share of filters, in steps, whose removal leaves what is nearest to a share of the MACs."""
    limit = share * macs(dense, images.x_test[:1])

    def left(step: int) -> int:
        return macs(cut(dense, images, "l1", step / STEPS), images.x_test[:1])

    low, high = 0, STEPS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if left(middle) <= limit else (middle + 1, high)
    return min((max(low - 1, 0), low), key=lambda step: abs(left(step) - limit)) / STEPS


def main() -> None:
    """Prunes, measures, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--depth", type=int, required=True)
    parser.add_argument("--score", choices=["l1", "taylor"], required=True)
    parser.add_argument("--share", type=float, required=True)
    parser.add_argument("--untrained", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images, dense = cifar(arguments.data), resnet(arguments.data, arguments.depth)
    ratio = ratio_for(dense, images, arguments.share)
    start = time.process_time()
    model = cut(dense, images, arguments.score, ratio)
    row: dict[str, Any] = {
        "peer": f"Torch-Pruning {torch_pruning.__version__}",
        "filters_removed": ratio,
        "seconds": round(time.process_time() - start, 1),
        "macs": round(macs(model, images.x_test[:1]) / macs(dense, images.x_test[:1]), 4),
        "parameters": round(sum(p.numel() for p in model.parameters()) / sum(p.numel() for p in dense.parameters()), 4),
        "cut": accuracy(model, images),
        **speeds(dense, model, images.x_test),
    }
    if not arguments.untrained:
        tune(model, images)
        row["tuned"] = accuracy(model, images)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
