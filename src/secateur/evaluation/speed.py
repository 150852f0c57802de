"""Speed: tokens per second, measured in turns so that a noisy machine treats all models alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from secateur.calibration.inputs import model_inputs, predicted_ids
from secateur.calibration.windows import Windows
from secateur.network.network import Network
from secateur.network.quiet import quiet_transformers
from secateur.progress import Progress

REPEATS = 5
NOISY = 0.1  # a spread from which on it is said
SAME_SPEED = 0.05  # a ratio this near to 1 isn't called a difference
PROMPT = 8  # tokens before decoding begins
DECODED = 24


@dataclass(frozen=True)
class Speed:
    """Tokens per second, the median of repeats; `decode` is None for models that don't generate.

    `spread` is the larger of both's interquartile ranges, relative to the median.
    """

    prefill: float
    decode: float | None
    spread: float


def measure_speed(
    networks: Sequence[Network], windows: Sequence[Windows], progress: Progress, threads: int | None = None
) -> list[Speed]:
    """Times prefill (one whole window) and decoding (with cache, greedy, one text), model by model in turns.

    Args:
        networks: What to time.
        windows: One window per network, without padding, in its own ids; all are cut to the shortest one's length.
            Only its text counts as tokens.
        progress: Shows progress.
        threads: How many threads compute; None takes as many as torch does.
    """
    usual = torch.get_num_threads()
    torch.set_num_threads(threads or usual)
    try:
        return _measured(networks, windows, progress)
    finally:
        torch.set_num_threads(usual)


def _measured(networks: Sequence[Network], windows: Sequence[Windows], progress: Progress) -> list[Speed]:
    length = min(window.length for window in windows)
    cut = [replace(window, ids=window.ids[:, :length]) for window in windows]
    read = predicted_ids(networks[0], cut[0]).shape[1]
    prompt = min(PROMPT, max(1, read // 2))
    decoded = min(DECODED, read - prompt)
    generates = all(network.generates for network in networks) and decoded > 0
    prefill: list[list[float]] = [[] for _ in networks]
    decode: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode():
        for turn in progress.track(range(REPEATS + 1), "measuring speed"):
            for number, (network, window) in enumerate(zip(networks, cut, strict=True)):
                first, others = model_inputs(network, window)
                seconds = _seconds(partial(network.model, first, **others))
                if turn:  # the first turn warms up
                    prefill[number].append(seconds)
                if generates:
                    start = _seconds(partial(greedy, network, window, prompt, 1))
                    whole = _seconds(partial(greedy, network, window, prompt, decoded))
                    if turn:
                        decode[number].append(max(whole - start, 1e-9))
    return [
        Speed(
            length / median(one),
            (decoded - 1) / median(two) if generates and decoded > 1 else None,
            max(spread_of(times) for times in (one, two) if times),
        )
        for one, two in zip(prefill, decode, strict=True)
    ]


def noise_notes(noise: float) -> list[str]:
    """Says that other work disturbs the speeds, if repeats of the same differ by that much."""
    return [f"Other work disturbs the speeds: repeats of the same differ by {noise:.0%}."] if noise > NOISY else []


def spread_of(times: Sequence[float]) -> float:
    """Returns the interquartile range of repeats, relative to their median."""
    low, middle, high = quantiles(times, n=4, method="inclusive")
    return (high - low) / middle


def greedy(network: Network, window: Windows, prompt: int, tokens: int) -> Tensor:
    """Continues the first `prompt` tokens of what a model reads by exactly `tokens`, the likeliest at each step.

    Args:
        network: A model that predicts tokens; an encoder gets the whole of its input.
        window: One window, without padding.
        prompt: Tokens that are given.
        tokens: How many follow.

    Returns:
        (1, prompt + tokens) token ids.
    """
    first, others = model_inputs(network, window)
    begin: dict[str, Any] = {name: ids[:, :prompt] for name, ids in others.items()}
    if begin:  # a cache that grows: transformers' own has as many layers as the encoder
        begin["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
    else:
        first = first[:, :prompt]
    if not first.is_floating_point():
        begin["attention_mask"] = torch.ones_like(first)
    with quiet_transformers():  # settings that come with a checkpoint may contradict these
        # the plain loop, whatever a model makes of it (Whisper transcribes by windows)
        written: Tensor = transformers.GenerationMixin.generate(
            network.model,
            first,
            **begin,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
    return written


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
