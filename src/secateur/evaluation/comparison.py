"""A checkpoint's figures, and those of others beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from secateur import mask
from secateur.calibration.activations import IN_MEMORY, Storage
from secateur.calibration.audio import transcribe
from secateur.calibration.inputs import predicted_ids
from secateur.calibration.windows import Windows
from secateur.evaluation.costs import costs
from secateur.evaluation.passages import Passage, passages, same_vocabulary, shared_tokens
from secateur.evaluation.quality import Quality, measure, measure_passages
from secateur.evaluation.speed import SAME_SPEED, Speed, greedy, measure_speed, noise_notes
from secateur.network.loading import weight_bytes
from secateur.network.network import Network
from secateur.network.vocabulary import VOCABULARY_FILE
from secateur.progress import Progress
from secateur.result import Comparison, Metrics

SAMPLE_PROMPT = 12
SAMPLE_TOKENS = 40
ZEROS_TAKE_TIME = "the dense kernels of torch multiply zeros like other numbers. Zeros pay with kernels made for them"


def compare_networks(
    networks: Sequence[Network],
    windows: Windows | None,
    progress: Progress,
    speed: bool = True,
    folders: Sequence[Path | None] | None = None,
    names: Sequence[str] | None = None,
    storage: Storage = IN_MEMORY,
) -> Comparison:
    """Measures models side by side; the first is the dense one.

    Models with the same vocabulary read the same windows. If one's vocabulary differs, each reads the windows' text in
    its own tokens (`passages`), which the notes say.

    Args:
        networks: The models.
        windows: Text for quality and speed; None leaves both out.
        progress: Shows progress.
        speed: Whether to measure speed.
        folders: Where their checkpoints lie, None for one that has none yet; left out, they are the models' sources.
        names: What to call them; None takes their sources' names.
        storage: Where streamed networks' hidden states may be kept.
    """
    folders = folders or [network.source.path for network in networks]
    for folder in folders:
        if folder is not None and (folder / mask.FILE).is_file():
            mask.Mask.load(folder)  # a damaged one is an error before any work
    names = names or [network.source.name for network in networks]
    speeds: list[Speed | None] = [None] * len(networks)
    alone: list[Speed | None] = [None] * len(networks)
    measured: list[_Measured | None] = [None] * len(networks)
    notes: list[str] = []
    if windows is not None:
        if same_vocabulary(networks):
            qualities = measure(networks, windows, progress, storage)
            first = windows.one(0)
            measured = [
                _Measured(one, windows, len(windows), first, _prompt(predicted_ids(network, first).shape[1]))
                for network, one in zip(networks, qualities, strict=True)
            ]
            notes = [
                f"{name} gives vectors of another width than {names[0]}, so their quality wasn't compared: "
                "fine-tune and compare them on your task."
                for name, network, quality in zip(names[1:], networks[1:], qualities[1:], strict=True)
                if not network.generates and not quality.compared
            ]
        elif any(network.family.inputs != "text" for network in networks):
            notes.append(
                "Quality and speed weren't compared: the vocabularies differ, and two tokenizers don't cut what an "
                "encoder reads from what its decoder predicts at the same place."
            )
        else:
            read = passages(networks, windows)
            qualities = measure_passages(networks, read, progress, storage)
            begins = [Windows(reading.ids[None], windows.source) for reading in read[0].readings]
            prompts = _same_text(read[0], _prompt(min(begin.length for begin in begins)))
            measured = [
                _Measured(quality, windows, len(read), begin, prompt)
                for quality, begin, prompt in zip(qualities, begins, prompts, strict=True)
            ]
            notes = _vocabulary_notes(networks, qualities, names)
        if speed and not any(network.store for network in networks):
            begins = [one.begin for one in measured if one is not None]
            if begins:
                speeds = list(measure_speed(networks, begins, progress))
            if begins and torch.get_num_threads() > 1 and len({network.parameters() for network in networks}) > 1:
                alone = list(measure_speed(networks, begins, progress, threads=1))
    length = None if windows is None else windows.length
    metrics = [
        _metrics(network, name, folder, one, pair, length, reference=networks[0])
        for network, name, folder, one, *pair in zip(networks, names, folders, measured, speeds, alone, strict=True)
    ]
    return Comparison(metrics[0], tuple(metrics[1:]), tuple(notes + comparison_notes(networks, metrics)))


@dataclass(frozen=True)
class _Measured:
    """One model's quality, and on what: `number` windows, the first of which is `begin`, in the model's own ids.

    The first `prompt` tokens of what the model reads of it are what it writes on from.
    """

    quality: Quality
    windows: Windows
    number: int
    begin: Windows
    prompt: int


def _prompt(tokens: int) -> int:
    """Returns how many of a window's tokens a model writes on from."""
    return min(SAMPLE_PROMPT, tokens // 2)


def _same_text(passage: Passage, tokens: int) -> list[int]:
    """Returns how many tokens each model has of the text that the first one has `tokens` tokens of; at least one."""
    first = passage.readings[0]
    end = first.ends[max(0, tokens - 1 - first.start)]
    return [max(1, reading.start + int((reading.ends <= end).sum())) for reading in passage.readings]


def _vocabulary_notes(networks: Sequence[Network], qualities: Sequence[Quality], names: Sequence[str]) -> list[str]:
    """Says on what models with different vocabularies were compared."""
    dense = networks[0]
    sizes = ", ".join(f"{network.dimension('vocabulary') or 0:,}" for network in networks)
    notes = [
        f"The vocabularies differ ({sizes} tokens): each model reads the text in its own tokens. Compare bits per "
        "byte; perplexity and tokens per second count each model's own tokens."
    ]
    what = "KL and top-1 agreement are" if dense.generates else "The cosine is"
    for network, quality, name in zip(networks[1:], qualities[1:], names[1:], strict=True):
        shared = shared_tokens(dense, network)
        if shared is None:
            notes.append(
                f"{name}: {what} left out, as nothing says which of the dense model's tokens it has "
                f"(no fitting {VOCABULARY_FILE} beside it)."
            )
        else:
            notes.append(
                f"{name}: {what} over the {len(shared[0]):,} tokens that both have, at the {quality.compared:,} "
                f"positions at which both read the same token ({quality.count:,} of its own were predicted)."
            )
    return notes


def _metrics(
    network: Network,
    name: str,
    folder: Path | None,
    measured: _Measured | None,
    speeds: Sequence[Speed | None],
    length: int | None,
    reference: Network,
) -> Metrics:
    layers = network.layers()
    zeros = {layer.name: layer.zeros() for layer in network.visit(layers)}
    figures: dict[str, float | int | str | None] = {}
    if measured is not None:
        quality = measured.quality
        figures |= {"text": measured.windows.source, "windows": measured.number, "tokens": quality.count}
        compared = 0 if network is reference else quality.compared
        if network.generates:
            figures |= {
                "perplexity": quality.perplexity,
                "bits_per_byte": _bits_per_byte(network, measured),
                "kl": quality.kl / compared if compared else None,
                "top1_agreement": quality.agreed / compared if compared else None,
            }
            figures |= _sample(network, measured) if network.store is None else {}
        elif compared:
            figures["cosine"] = quality.cosine / compared
    for speed, end in zip(speeds, ("", "_one"), strict=True):
        if speed is not None:
            figures |= {f"prefill{end}": speed.prefill, f"decode{end}": speed.decode}
            figures["speed_spread"] = max(speed.spread, float(figures.get("speed_spread") or 0))
    if length is not None and network.store is None:
        figures["macs"] = costs(network, length).macs
    status, pattern = (None, None) if folder is None else mask_status(network, folder)
    return Metrics(
        name=name,
        parameters=network.parameters(),
        weights=sum(layer.weights for layer in layers),
        zeros=sum(zeros.values()),
        bytes_on_disk=None if folder is None else weight_bytes(folder),
        mask=status,
        pattern=pattern,
        sparsity_by_layer={layer.name: zeros[layer.name] / layer.weights for layer in layers},
        **figures,  # type: ignore[arg-type]
    )


def mask_status(network: Network, folder: Path) -> tuple[str | None, str | None]:
    """Holds a network's weights against the mask file in its checkpoint folder.

    Returns:
        In words what the mask is and whether it is held, and the N:M pattern that all groups of the weights hold; None
        without.
    """
    if not (folder / mask.FILE).is_file():
        return None, None
    known = mask.Mask.load(folder)
    broken = known.violations(network)
    held = "held" if not broken else f"BROKEN: {sum(broken.values())} weights in {len(broken)} layers aren't zero"
    return f"{known.describe()}; {held}", None if broken else known.pattern


def _bits_per_byte(network: Network, measured: _Measured) -> float | None:
    """Bits per byte of the text that was predicted: known from the text, or by decoding the windows."""
    quality, windows = measured.quality, measured.windows
    size: float = quality.bytes or 0
    if not size and windows.bytes is not None:
        predicted = predicted_ids(network, windows.one(0)).shape[1] - windows.given
        size = int(windows.bytes[:, -predicted:].sum())
    elif not size and network.tokenizer is not None:
        texts = network.tokenizer.batch_decode(windows.ids, skip_special_tokens=True)
        size = sum(len(text.encode()) for text in texts) / windows.tokens * quality.count
    return quality.nll / math.log(2) / size if size else None


def _sample(network: Network, measured: _Measured) -> dict[str, str]:
    """What the model writes from the first tokens of the first window, or when it hears the first sound."""
    window, prompt = measured.begin, measured.prompt
    room = predicted_ids(network, measured.windows.one(0)).shape[1]
    if window.features is not None:
        room = network.dimension("positions") or room
        return {"prompt": "", "sample": _written(network, transcribe(network, window.features, room)[window.given :])}
    tokens = min(SAMPLE_TOKENS, room - prompt)
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


def comparison_notes(networks: Sequence[Network], metrics: Sequence[Metrics]) -> list[str]:
    """Says in words what is not smaller or faster, and why."""
    notes = []
    dense = metrics[0]
    if any(network.store for network in networks):
        notes.append("Speed and samples were left out: the model is streamed from its files block by block.")
    noise = max((one.speed_spread or 0.0 for one in metrics), default=0.0)
    notes += noise_notes(noise)
    for network, other in zip(networks[1:], metrics[1:], strict=True):
        name = f"{other.name}: " if len(metrics) > 2 else ""
        same_shapes = other.parameters >= dense.parameters
        same_size = other.bytes_on_disk and dense.bytes_on_disk and other.bytes_on_disk >= 0.99 * dense.bytes_on_disk
        if same_size and (same_shapes or networks[0].source.path.suffix == ".gguf"):
            notes.append(name + _size_note(networks[0], network, dense, other))
        for what, now, before in (
            ("Prefill", other.prefill, dense.prefill),
            ("Decoding", other.decode, dense.decode),
        ):
            if now is not None and before is not None and now < (1 + SAME_SPEED) * before:
                verdict = "about as fast" if now > (1 - SAME_SPEED) * before else "slower"
                smaller = other.parameters < dense.parameters
                why = "on this machine what was removed isn't what takes the time" if smaller else ZEROS_TAKE_TIME
                why = "it has more parameters" if other.parameters > dense.parameters else why
                if verdict == "slower" and now > (1 - noise) * before:
                    verdict, why = "no faster", "it can't be told from what repeats of the same differ by"
                notes.append(f"{name}{what} is {verdict} ({now / before:.2f} times the dense speed): {why}.")
    return notes


def _size_note(first: Network, second: Network, dense: Metrics, other: Metrics) -> str:
    assert other.bytes_on_disk is not None
    assert dense.bytes_on_disk is not None
    held = f"plain {second.source.dtype} weights"
    if second.quantized:
        held = f"integers of its quantized layers and {second.source.dtype} for the rest"
    if first.source.path.suffix == ".gguf" and other.bytes_on_disk > dense.bytes_on_disk:
        return (
            f"The file is larger: the dense model came as a quantized GGUF of {dense.bytes_on_disk:,} bytes, "
            f"and this checkpoint holds {held} ({other.bytes_on_disk:,} bytes)."
        )
    if other.parameters > dense.parameters:
        return f"The file is not smaller: the model has {other.parameters:,} parameters and not {dense.parameters:,}."
    return "The file is not smaller: a zero takes as many bytes as any other weight in a safetensors file."
