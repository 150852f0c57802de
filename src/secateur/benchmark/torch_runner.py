"""Checkpoints in plain transformers."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor

from secateur.benchmark.runner import Runner, State, random_numbers, random_tokens
from secateur.calibration.audio import sound_shape
from secateur.errors import UsageError
from secateur.network.loading import load
from secateur.network.vision import is_classifier, load_classifier
from secateur.progress import Progress


class TorchRunner(Runner):
    """transformers in plain torch."""

    name = "torch"

    def __init__(self, folder: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model: Any
        if is_classifier(folder, False, Progress()):
            found = load_classifier(folder, dtype=None, trust_remote_code=False, progress=Progress())
            self.kind, self.model, self._shape = "images", found.model, tuple(found.example().shape[1:])
        else:
            network = load(folder)
            self.model, self._vocabulary = network.model, network.dimension("vocabulary") or 2
            self.kind = "text" if network.generates else "encoder"
            if network.family.inputs == "audio":
                self.kind, self._shape = "sound", sound_shape(network)
            elif network.family.encoder_decoder is not None:
                raise UsageError(f"bench: {network.architecture} is an encoder-decoder of text, which isn't timed.")
        self.dtype = str(self.model.dtype).removeprefix("torch.")

    def example(self, batch: int, length: int, seed: int) -> Tensor:
        if self.kind in ("images", "sound"):
            return torch.from_numpy(random_numbers((batch, *self._shape), seed)).to(self.model.dtype)
        return torch.from_numpy(random_tokens(self._vocabulary, batch, length, seed))

    @torch.inference_mode()
    def read(self, inputs: Tensor) -> State:
        if self.kind in ("images", "encoder"):
            return self.model(inputs)
        if self.kind == "sound":
            return self.model.get_encoder()(inputs), None, None
        output = self.model(inputs, use_cache=True, logits_to_keep=1) if self._keeps() else self.model(inputs)
        return None, output.past_key_values, output.logits[:, -1:].argmax(-1)

    def _keeps(self) -> bool:
        return "logits_to_keep" in signature(self.model.forward).parameters

    @torch.inference_mode()
    def write(self, state: State, tokens: int) -> None:
        heard, cache, last = state
        if heard is not None:
            last = torch.full((1, 1), int(self.model.config.decoder_start_token_id))
        for _ in range(tokens):
            if heard is None:
                output = self.model(last, past_key_values=cache, use_cache=True)
            else:
                output = self.model(
                    encoder_outputs=heard, decoder_input_ids=last, past_key_values=cache, use_cache=True
                )
            cache, last = output.past_key_values, output.logits[:, -1:].argmax(-1)
