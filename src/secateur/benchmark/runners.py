"""Which runtime runs a folder. Each has a module of its own, so that a process loads only what it measures."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from secateur.benchmark.runner import Runner
from secateur.errors import UsageError


@dataclass(frozen=True)
class Kind:
    """What runs a folder.

    Attributes:
        module, name: Where its class is.
        package: What it takes beside what secateur takes; None without.
    """

    module: str
    name: str
    package: str | None = None

    def runner(self) -> type[Runner]:
        """Imports what runs it."""
        found: type[Runner] = getattr(import_module(f"secateur.benchmark.{self.module}"), self.name)
        return found


TORCH = Kind("torch_runner", "TorchRunner")
ONNX = Kind("onnx_runner", "OnnxRunner", "onnxruntime")
OPENVINO = Kind("openvino_runner", "OpenVinoRunner", "openvino")
LLAMA = Kind("llama_runner", "LlamaRunner", "llama_cpp")
FILES = {
    "model.onnx": ONNX,
    "encoder_model.onnx": ONNX,
    "model.xml": OPENVINO,
    "encoder_model.xml": OPENVINO,
    "model.gguf": LLAMA,
}


def kind_of(folder: str) -> Kind:
    """Returns what runs a folder, or a model by any other name.

    Raises:
        UsageError: It is an export that isn't timed.
    """
    for name, found in FILES.items():
        if (Path(folder).expanduser() / name).is_file():
            return found
    if any(Path(folder).expanduser().glob("*.pt2")):
        raise UsageError(f"bench: {folder} is an export that isn't timed; time the checkpoint that it was made of.")
    return TORCH
