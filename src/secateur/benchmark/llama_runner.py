"""GGUFs in llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp

from secateur.benchmark.runner import Runner, State, random_tokens


class LlamaRunner(Runner):
    """llama.cpp, by llama-cpp-python; it reads the texts of a batch one after the other."""

    name = "llama.cpp"
    kind = "text"

    def __init__(self, folder: str, threads: int) -> None:
        given = {"n_ctx": 4096, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
        self.llama: Any = llama_cpp.Llama(str(Path(folder).expanduser() / "model.gguf"), **given)

    def example(self, batch: int, length: int, seed: int) -> Any:
        return random_tokens(self.llama.n_vocab(), batch, length, seed).tolist()

    def read(self, inputs: Any) -> State:
        for row in inputs:
            self.llama.reset()
            self.llama.eval(row)
        return None

    def write(self, state: State, tokens: int) -> None:
        for _ in range(tokens):
            self.llama.eval([self.llama.sample(temp=0.0)])
