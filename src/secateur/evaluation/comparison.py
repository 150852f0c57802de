"""A checkpoint's figures, and those of others beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from secateur import mask
from secateur.calibration.activations import IN_MEMORY, Storage
from secateur.calibration.audio import transcribe
from secateur.calibration.inputs import predicted_ids
from secateur.calibration.windows import Windows
from secateur.evaluation.costs import costs
from secateur.evaluation.quality import Quality, measure
from secateur.evaluation.speed import Speed, greedy, measure_speed
from secateur.network.loading import weight_bytes
from secateur.network.network import Network
from secateur.progress import Progress
from secateur.result import Comparison, Metrics

SAMPLE_PROMPT = 12
SAMPLE_TOKENS = 40
ZEROS_TAKE_TIME = "the dense kernels of torch multiply zeros like other numbers. Zeros pay with kernels made for them"
SAME_SPEED = 0.05  # a ratio this near to 1 isn't called a difference


def compare_networks(
    networks: Sequence[Network],
    windows: Windows | None,
    progress: Progress,
    speed: bool = True,
    sizes: Sequence[int | None] | None = None,
    names: Sequence[str] | None = None,
    storage: Storage = IN_MEMORY,
) -> Comparison:
    """Measures models side by side; the first is the dense one.

    Args:
        networks: The models.
        windows: Text for quality and speed; None leaves both out.
        progress: Shows progress.
        speed: Whether to measure speed.
        sizes: Bytes on disk; None takes those of the models' sources.
        names: What to call them; None takes their sources' names.
        storage: Where streamed networks' hidden states may be kept.
    """
    sizes = sizes or [weight_bytes(network.source.path) for network in networks]
    names = names or [network.source.name for network in networks]
    qualities: list[Quality | None] = [None] * len(networks)
    speeds: list[Speed | None] = [None] * len(networks)
    alone: list[Speed | None] = [None] * len(networks)
    if windows is not None:
        qualities = list(measure(networks, windows, progress, storage))
        if speed and not any(network.store for network in networks):
            speeds = list(measure_speed(networks, windows.one(0), progress))
            if torch.get_num_threads() > 1 and len({network.parameters() for network in networks}) > 1:
                alone = list(measure_speed(networks, windows.one(0), progress, threads=1))
    metrics = [
        _metrics(network, name, size, windows, quality, pair, reference=networks[0])
        for network, name, size, quality, *pair in zip(networks, names, sizes, qualities, speeds, alone, strict=True)
    ]
    return Comparison(metrics[0], tuple(metrics[1:]), tuple(_notes(networks, metrics)))


def _metrics(
    network: Network,
    name: str,
    size: int | None,
    windows: Windows | None,
    quality: Quality | None,
    speeds: Sequence[Speed | None],
    reference: Network,
) -> Metrics:
    layers = network.layers()
    zeros = {layer.name: layer.zeros() for layer in network.visit(layers)}
    figures: dict[str, float | int | str | None] = {}
    if windows is not None and quality is not None:
        figures |= {"text": windows.source, "windows": len(windows), "tokens": quality.count}
        dense = network is reference
        if network.generates:
            per_token = _bytes_per_token(network, windows)
            bits = quality.nll / quality.count / math.log(2)
            figures |= {
                "perplexity": quality.perplexity,
                "bits_per_byte": bits / per_token if per_token else None,
                "kl": None if dense else quality.kl / quality.count,
                "top1_agreement": None if dense else quality.agreed / quality.count,
            }
            figures |= _sample(network, windows) if network.store is None else {}
        elif not dense:
            figures["cosine"] = quality.cosine / quality.count
    for speed, end in zip(speeds, ("", "_one"), strict=True):
        if speed is not None:
            figures |= {f"prefill{end}": speed.prefill, f"decode{end}": speed.decode}
    if windows is not None and network.store is None:
        figures["macs"] = costs(network, windows.length).macs
    return Metrics(
        name=name,
        parameters=network.parameters(),
        weights=sum(layer.weights for layer in layers),
        zeros=sum(zeros.values()),
        bytes_on_disk=size,
        mask=mask_status(network),
        sparsity_by_layer={layer.name: zeros[layer.name] / layer.weights for layer in layers},
        **figures,  # type: ignore[arg-type]
    )


def mask_status(network: Network) -> str | None:
    """Holds a network's weights against the mask file in its checkpoint folder; None without one."""
    if not (network.source.path / mask.FILE).is_file():
        return None
    known = mask.Mask.load(network.source.path)
    broken = known.violations(network)
    held = "held" if not broken else f"BROKEN: {sum(broken.values())} weights in {len(broken)} layers aren't zero"
    return f"{known.describe()}; {held}"


def _bytes_per_token(network: Network, windows: Windows) -> float | None:
    """Bytes of text per token: known from the text, or by decoding the windows."""
    if windows.bytes_per_token is not None or network.tokenizer is None:
        return windows.bytes_per_token
    texts = network.tokenizer.batch_decode(windows.ids, skip_special_tokens=True)
    size = sum(len(text.encode()) for text in texts)
    return size / windows.tokens if size else None


def _sample(network: Network, windows: Windows) -> dict[str, str]:
    """What the model writes from the first tokens of the first window, or when it hears the first sound."""
    window = windows.one(0)
    ids = predicted_ids(network, window)
    if window.features is not None:
        room = network.dimension("positions") or ids.shape[1]
        return {"prompt": "", "sample": _written(network, transcribe(network, window.features, room)[window.given :])}
    prompt = min(SAMPLE_PROMPT, ids.shape[1] // 2)
    tokens = min(SAMPLE_TOKENS, ids.shape[1] - prompt)
    with torch.inference_mode():
        written = greedy(network, window, prompt, tokens)[0]
    if network.tokenizer is None:
        return {"prompt": _written(network, written[:prompt]), "sample": _written(network, written[prompt:])}
    begin = _written(network, written[:prompt])
    return {"prompt": begin, "sample": _written(network, written).removeprefix(begin)}


def _written(network: Network, ids: Tensor) -> str:
    """Returns the text of (tokens,) ids; the ids themselves where there is no tokenizer."""
    if network.tokenizer is None:
        return " ".join(map(str, ids.tolist()))
    text: str = network.tokenizer.decode(ids, skip_special_tokens=True)
    return text


def _notes(networks: Sequence[Network], metrics: Sequence[Metrics]) -> list[str]:
    """Says in words what is not smaller or faster, and why."""
    notes = []
    dense = metrics[0]
    if any(network.store for network in networks):
        notes.append("Speed and samples were left out: the model is streamed from its files block by block.")
    for network, other in zip(networks[1:], metrics[1:], strict=True):
        name = f"{other.name}: " if len(metrics) > 2 else ""
        if other.bytes_on_disk and dense.bytes_on_disk and other.bytes_on_disk >= 0.99 * dense.bytes_on_disk:
            notes.append(name + _size_note(networks[0], network, dense, other))
        for what, now, before in (
            ("Prefill", other.prefill, dense.prefill),
            ("Decoding", other.decode, dense.decode),
        ):
            if now is not None and before is not None and now < (1 + SAME_SPEED) * before:
                verdict = "about as fast" if now > (1 - SAME_SPEED) * before else "slower"
                smaller = other.parameters < dense.parameters
                why = "on this machine what was removed isn't what takes the time" if smaller else ZEROS_TAKE_TIME
                notes.append(f"{name}{what} is {verdict} ({now / before:.2f} times the dense speed): {why}.")
    return notes


def _size_note(first: Network, second: Network, dense: Metrics, other: Metrics) -> str:
    assert other.bytes_on_disk is not None
    assert dense.bytes_on_disk is not None
    if first.source.path.suffix == ".gguf" and other.bytes_on_disk > dense.bytes_on_disk:
        return (
            f"The file is larger: the dense model came as a quantized GGUF of {dense.bytes_on_disk:,} bytes, "
            f"and this checkpoint holds plain {second.source.dtype} weights ({other.bytes_on_disk:,} bytes)."
        )
    return "The file is not smaller: a zero takes as many bytes as any other weight in a safetensors file."
