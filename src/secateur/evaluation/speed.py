"""Speed: tokens per second, measured in turns so that a noisy machine treats all models alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from secateur.network.network import Network
from secateur.progress import Progress

REPEATS = 5
PROMPT = 8  # tokens before decoding begins
DECODED = 24


@dataclass(frozen=True)
class Speed:
    """Tokens per second, the median of repeats; `decode` is None for models that don't generate."""

    prefill: float
    decode: float | None


def measure_speed(networks: Sequence[Network], ids: Sequence[Tensor], progress: Progress) -> list[Speed]:
    """Times prefill (one whole window) and decoding (with cache, greedy, one text), model by model in turns.

    Args:
        networks: What to time.
        ids: One window per network, (1, length); all are cut to the shortest one's length.
        progress: Shows progress.
    """
    length = min(one.shape[1] for one in ids)
    texts = [one[:, :length] for one in ids]
    prompt = min(PROMPT, max(1, length // 2))
    decoded = min(DECODED, length - prompt)
    generates = all(network.generates for network in networks) and decoded > 0
    prefill: list[list[float]] = [[] for _ in networks]
    decode: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode():
        for turn in progress.track(range(REPEATS + 1), "measuring speed"):
            for number, (network, text) in enumerate(zip(networks, texts, strict=True)):
                model, begin = network.model, text[:, :prompt]
                seconds = _seconds(lambda model=model, text=text: model(text))  # type: ignore[misc]
                if turn:  # the first turn warms up
                    prefill[number].append(seconds)
                if generates:
                    start = _seconds(lambda model=model, begin=begin: greedy(model, begin, 1))  # type: ignore[misc]
                    whole = _seconds(lambda model=model, begin=begin: greedy(model, begin, decoded))  # type: ignore[misc]
                    if turn:
                        decode[number].append(max(whole - start, 1e-9))
    return [
        Speed(length / median(one), (decoded - 1) / median(two) if generates and decoded > 1 else None)
        for one, two in zip(prefill, decode, strict=True)
    ]


def greedy(model: Any, prompt: Tensor, tokens: int) -> Tensor:
    """Continues `prompt`: (1, length) by exactly `tokens` tokens, the likeliest at each step."""
    written: Tensor = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
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
