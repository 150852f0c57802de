"""The best state of a model while it trains, or the last one that was judged, on the disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from secateur.files import save_tensors, save_text

FILE = "best.json"


class Best:
    """The state with the least loss so far, or the latest, which a killed run finds again.

    Attributes:
        loss: Its loss on what isn't trained on.
        step: After which step of the optimizer; 0 is the beginning.
        since: Judgements since then.
    """

    def __init__(self, folder: Path, latest: bool = False) -> None:
        """
        Args:
            folder: Where it is kept, and taken up from if it is there.
            latest: Whether every state is better than those before.
        """
        self.folder, self.latest = folder, latest
        self.loss, self.step, self.since = math.inf, 0, 0
        if (folder / FILE).is_file():
            known = json.loads((folder / FILE).read_text(encoding="utf-8"))
            self.loss, self.step = known["loss"], known["step"]

    def offer(self, model: nn.Module, loss: float, step: int) -> None:
        """Keeps what is trained of a model if its loss is the least, or if the latest is wanted."""
        if step == self.step and math.isfinite(self.loss):
            self.since = 0
            return  # a run that was killed here goes on
        if not (step >= self.step if self.latest else loss < self.loss):
            self.since += 1
            return
        before, self.loss, self.step, self.since = self._file(), loss, step, 0
        tensors = {name: one.detach().cpu() for name, one in model.named_parameters() if one.requires_grad}
        save_tensors(tensors, self._file(), {"format": "pt"})
        save_text(json.dumps({"loss": loss, "step": step}), self.folder / FILE)
        if before != self._file():
            before.unlink(missing_ok=True)

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Puts the best state into a model."""
        known = load_file(self._file())
        for name, parameter in model.named_parameters():
            if name in known:
                parameter.copy_(known[name])

    def _file(self) -> Path:
        return self.folder / f"best-{self.step}.safetensors"
