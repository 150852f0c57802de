"""Windows: what a model is fed, piece by piece, while it is calibrated or measured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Token windows of one length, without padding; those of sounds may differ in length.

    Attributes:
        ids: (windows, length) int64. Of sounds: what was said, for the decoder, padded behind `lengths`.
        source: Where they come from, for people.
        bytes: (windows, length) int64: bytes of UTF-8 text that each token stands for, with what the tokenizer dropped
            before it; None where that isn't known.
        features: (windows, mels, frames) float32: sounds, for an encoder that hears; None for text.
        lengths: (windows,) int64, tokens of each window; None if none is padded.
        text: The text that they were cut from, or a little more of it; None where it isn't known.
        skipped: How many windows of the text come before the first of these.
        given: How many tokens at a window's beginning are no text to be predicted.
    """

    ids: Tensor
    source: str
    bytes: Tensor | None = None
    features: Tensor | None = None
    lengths: Tensor | None = None
    given: int = 1
    text: str | None = field(default=None, repr=False)
    skipped: int = 0

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def length(self) -> int:
        """Tokens per window; of windows that differ, the longest one's."""
        return self.ids.shape[1]

    @property
    def tokens(self) -> int:
        """Tokens of all windows, without padding."""
        return self.ids.numel() if self.lengths is None else int(self.lengths.sum())

    def part(self, start: int, end: int) -> Windows:
        """Returns the windows from `start` to before `end`."""
        return replace(
            self,
            ids=self.ids[start:end],
            features=None if self.features is None else self.features[start:end],
            lengths=None if self.lengths is None else self.lengths[start:end],
            bytes=None if self.bytes is None else self.bytes[start:end],
            skipped=self.skipped + start,
        )

    def split(self, first: int) -> tuple[Windows, Windows]:
        """Returns the first windows and the rest."""
        return self.part(0, first), self.part(first, len(self))

    def one(self, number: int) -> Windows:
        """Returns a window by itself, without padding."""
        alone = self.part(number, number + 1)
        if alone.lengths is None:
            return alone
        return replace(alone, ids=alone.ids[:, : int(alone.lengths)], lengths=None)

    def batches(self, size: int) -> list[Windows]:
        """Returns batches without padding: of `size` windows, or of one where they differ in length."""
        if self.lengths is not None:
            return [self.one(number) for number in range(len(self))]
        return [self.part(start, start + size) for start in range(0, len(self), size)]
