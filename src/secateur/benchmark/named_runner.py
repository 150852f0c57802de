"""What runtimes have in common that are asked by names, for files that `secateur export` wrote."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from secateur.benchmark.runner import Array, Runner, State, random_numbers, random_tokens
from secateur.errors import UsageError

Ask = Callable[[dict[str, Any]], dict[str, Any]]
Axes = dict[str, list[Any]]  # by name of an input, the sizes of its axes; what isn't a whole number is free
HEARD = "encoder_hidden_states"


class NamedRunner(Runner):
    """A runtime that is asked by names.

    Attributes:
        suffix: Of its files.
        ask: Asks the model; of one that hears, the decoder that goes on from a cache.
        inputs: What the model takes; of one that hears, its encoder.
        hear, begin: Ask the encoder, and the decoder without a cache, of a model that hears.
    """

    suffix: ClassVar[str]

    def __init__(self, folder: str, threads: int) -> None:
        self.threads = threads
        place = Path(folder).expanduser()
        about = place / "config.json"  # networks in memory have none
        self.config = json.loads(about.read_text()) if about.is_file() else {}
        hearing = place / f"encoder_model{self.suffix}"
        if hearing.is_file():
            self.kind = "sound"
            going_on = place / f"decoder_with_past_model{self.suffix}"
            if not going_on.is_file():
                raise UsageError(f"bench: {folder} has no {going_on.name}; export the model again.")
            self.hear, self.inputs = self.opened(hearing)
            self.begin, _ = self.opened(place / f"decoder_model{self.suffix}")
            self.ask, _ = self.opened(going_on)
            return
        self.ask, self.inputs = self.opened(place / f"model{self.suffix}")
        if "input_ids" in self.inputs:
            self.kind = "text" if any(name.startswith("past_key_values") for name in self.inputs) else "encoder"
        elif len(self.inputs) == 1:
            self.kind = "images"
        else:
            raise UsageError(f"bench: {folder} takes {', '.join(self.inputs)}; networks of one input are timed.")

    @abstractmethod
    def opened(self, file: Path) -> tuple[Ask, Axes]:
        """Returns what asks a file, and the shapes of its inputs."""

    def example(self, batch: int, length: int, seed: int) -> Any:
        if self.kind in ("images", "sound"):
            ((_, *axes),) = self.inputs.values()
            return random_numbers((batch, *axes), seed)
        return random_tokens(int(self.config.get("vocab_size", 2)), batch, length, seed)

    def read(self, inputs: Any) -> State:
        if self.kind == "sound":
            (heard,) = self.hear(dict.fromkeys(self.inputs, inputs)).values()
            return np.full((len(inputs), 1), int(self.config["decoder_start_token_id"]), np.int64), {HEARD: heard}
        if self.kind == "images":
            return self.ask(dict.fromkeys(self.inputs, inputs))
        if self.kind == "encoder":
            told = {"input_ids": inputs, "attention_mask": np.ones_like(inputs)}
            return self.ask({name: told[name] for name in told if name in self.inputs})
        empty = {
            name: np.zeros((len(inputs), axes[1], 0, axes[3]), np.float32)
            for name, axes in self.inputs.items()
            if name.startswith("past_key_values")
        }
        return self._step(inputs, empty, 0)

    def _step(self, ids: Any, past: dict[str, Any], seen: int) -> State:
        batch, length = ids.shape
        places = np.broadcast_to(np.arange(seen, seen + length, dtype=np.int64), (batch, length))
        told = {"input_ids": ids, "attention_mask": np.ones((batch, seen + length), np.int64), "position_ids": places}
        found = self.ask({**{name: told[name] for name in told if name in self.inputs}, **past})
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        return found["logits"][:, -1:].argmax(-1), past, seen + length

    def write(self, state: State, tokens: int) -> None:
        if self.kind == "sound":
            ids, past = state
            for _ in range(tokens):
                logits, past = self.say(ids, past)
                ids = logits[:, -1:].argmax(-1)
            return
        for _ in range(tokens):
            state = self._step(*state)

    def say(self, ids: Array, past: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        """Has a decoder of what was heard read tokens.

        Args:
            ids: (batch, length)
            past: What was heard, as `encoder_hidden_states`, at the beginning; then what the last call returned.

        Returns:
            (batch, length, vocabulary) logits, and the cache.
        """
        first = HEARD in past
        found = (self.begin if first else self.ask)({"input_ids": ids, **past})
        new = {
            name.replace("present", "past_key_values"): value
            for name, value in found.items()
            if name.startswith("present")
        }
        return found["logits"], new if first else {**past, **new}
