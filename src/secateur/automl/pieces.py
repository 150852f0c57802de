"""Which pieces of the text a candidate reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pieces_of(sizes: Sequence[int], tokens: int, text: int) -> list[int]:
    """Returns the numbers of as many pieces in a row as hold so many tokens, the first one following the last.

    More tokens of the same text are these and further ones; all of the tokens are all of the pieces.

    Args:
        sizes: Tokens by piece.
        tokens: How many are read at least.
        text: Seeds which piece is the first.
    """
    first = int(np.random.default_rng(text).integers(len(sizes)))
    found: list[int] = []
    count = 0
    for number in range(first, first + len(sizes)):
        if count >= tokens:
            break
        found.append(number % len(sizes))
        count += sizes[found[-1]]
    return found
