"""What runs a checkpoint or an export: reads many tokens at once, and writes one after the other."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from secateur.errors import UsageError
from secateur.exports.gguf import FILE as GGUF_FILE
from secateur.network.loading import load
from secateur.network.vision import is_classifier, load_classifier
from secateur.progress import Progress

SOUND = 30.0  # seconds that an encoder of sounds hears at once
State = Any


class Runner(ABC):
    """A loaded model.

    Attributes:
        name: Of the runtime.
        kind: `text` (generates), `encoder` (reads text), `sound`, or `images` (or what else is a network's only input).
    """

    name: ClassVar[str]
    kind: str

    @abstractmethod
    def __init__(self, folder: str) -> None:
        """Loads what is in a folder, or a model by another name."""

    @abstractmethod
    def example(self, batch: int, length: int, seed: int) -> Any:
        """Returns random inputs: tokens, images, or sounds."""

    @abstractmethod
    def read(self, inputs: Any) -> State:
        """Reads inputs, and returns what `write` goes on from."""

    @abstractmethod
    def write(self, state: State, tokens: int) -> None:
        """Writes so many tokens one after the other, the likeliest each time."""


class TorchRunner(Runner):
    """transformers in plain torch."""

    name = "torch"

    def __init__(self, folder: str) -> None:
        if is_classifier(folder, False, Progress()):
            found = load_classifier(folder, dtype=None, trust_remote_code=False, progress=Progress())
            self.kind, self.model, self._image = "images", found.model, found.example()[:1]
            return
        network = load(folder)
        self.network, self.model = network, network.model
        self.kind = "text" if network.generates else "encoder"
        if network.family.inputs == "audio":
            self.kind = "sound"
        elif network.family.encoder_decoder is not None:
            raise UsageError(f"bench: {network.architecture} is an encoder-decoder of text, which isn't timed.")

    def example(self, batch: int, length: int, seed: int) -> Tensor:
        if self.kind == "images":
            return torch.randn(batch, *self._image.shape[1:], generator=torch.Generator().manual_seed(seed)).to(
                self.model.dtype
            )
        if self.kind == "sound":
            from secateur.calibration.audio import sound_shape  # noqa: PLC0415 (of sounds only)

            random = torch.Generator().manual_seed(seed)
            return torch.randn(batch, *sound_shape(self.network), generator=random).to(self.model.dtype)
        return _tokens(self.network.dimension("vocabulary") or 2, batch, length, seed)

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


Ask = Callable[[dict[str, Any]], dict[str, Any]]
Axes = dict[str, list[Any]]  # by name of an input, the sizes of its axes; what isn't a whole number is free


class _ByNames(Runner):
    """A runtime that is asked by names, for files that `secateur export` wrote."""

    suffix: ClassVar[str]

    def __init__(self, folder: str) -> None:
        place = Path(folder).expanduser()
        about = place / "config.json"  # networks in memory have none
        self.config = json.loads(about.read_text()) if about.is_file() else {}
        hearing = place / f"encoder_model{self.suffix}"
        if hearing.is_file():
            self.kind = "sound"
            self.hear, self.inputs = self.opened(hearing)
            self.ask, _ = self.opened(place / f"decoder_model{self.suffix}")
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
            return np.random.default_rng(seed).standard_normal((batch, *axes)).astype(np.float32)
        return _tokens(int(self.config.get("vocab_size", 2)), batch, length, seed).numpy()

    def read(self, inputs: Any) -> State:
        if self.kind == "sound":
            (heard,) = self.hear(dict.fromkeys(self.inputs, inputs)).values()
            return np.full((len(inputs), 1), int(self.config["decoder_start_token_id"]), np.int64), heard
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
        if self.kind == "sound":  # it has no cache: all that was written is read again
            ids, heard = state
            for _ in range(tokens):
                logits = self.ask({"input_ids": ids, "encoder_hidden_states": heard})["logits"]
                ids = np.concatenate([ids, logits[:, -1:].argmax(-1)], 1)
            return
        for _ in range(tokens):
            state = self._step(*state)


class OnnxRunner(_ByNames):
    """ONNX Runtime."""

    name = "onnxruntime"
    suffix = ".onnx"

    def opened(self, file: Path) -> tuple[Ask, Axes]:
        import onnxruntime  # noqa: PLC0415 (an extra)

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        outputs = [one.name for one in session.get_outputs()]
        axes = {one.name: list(one.shape) for one in session.get_inputs()}
        return lambda told: dict(zip(outputs, session.run(None, told), strict=True)), axes


class OpenVinoRunner(_ByNames):
    """OpenVINO, in the precision that it chooses by itself."""

    name = "openvino"
    suffix = ".xml"

    def opened(self, file: Path) -> tuple[Ask, Axes]:
        import openvino  # noqa: PLC0415 (an extra)

        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(file, "CPU", settings)
        names = [one.any_name for one in compiled.outputs]
        axes = {
            one.any_name: [axis.get_length() if axis.is_static else None for axis in one.partial_shape]
            for one in compiled.inputs
        }

        def ask(told: dict[str, Any]) -> dict[str, Any]:
            found = compiled(told, share_outputs=False)
            return {name: found[name] for name in names}

        return ask, axes


class LlamaRunner(Runner):
    """llama.cpp, by llama-cpp-python; it reads the texts of a batch one after the other."""

    name = "llama.cpp"
    kind = "text"

    def __init__(self, folder: str) -> None:
        import llama_cpp  # noqa: PLC0415 (an extra)

        threads = torch.get_num_threads()
        given = {"n_ctx": 4096, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
        self.llama: Any = llama_cpp.Llama(str(Path(folder) / GGUF_FILE), **given)

    def example(self, batch: int, length: int, seed: int) -> Any:
        return _tokens(self.llama.n_vocab(), batch, length, seed).tolist()

    def read(self, inputs: Any) -> State:
        for row in inputs:
            self.llama.reset()
            self.llama.eval(row)
        return None

    def write(self, state: State, tokens: int) -> None:
        for _ in range(tokens):
            self.llama.eval([self.llama.sample(temp=0.0)])


def _tokens(vocabulary: int, batch: int, length: int, seed: int) -> Tensor:
    return torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


FILES: dict[str, tuple[type[Runner], str | None]] = {
    "model.onnx": (OnnxRunner, "onnxruntime"),
    "encoder_model.onnx": (OnnxRunner, "onnxruntime"),
    "model.xml": (OpenVinoRunner, "openvino"),
    "encoder_model.xml": (OpenVinoRunner, "openvino"),
    GGUF_FILE: (LlamaRunner, "llama_cpp"),
}


def runner_of(folder: str) -> tuple[type[Runner], str | None]:
    """Returns what runs a folder, or a model by any other name, and the package that it takes.

    Raises:
        UsageError: It is an export that isn't timed.
    """
    for name, found in FILES.items():
        if (Path(folder).expanduser() / name).is_file():
            return found
    if any(Path(folder).expanduser().glob("*.pt2")):
        raise UsageError(f"bench: {folder} is an export that isn't timed; time the checkpoint that it was made of.")
    return TorchRunner, None
