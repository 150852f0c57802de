"""Numbers and names as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size


def scaled(value: float, suffixes: Sequence[str]) -> str:
    """Returns `value` in the largest step of 1000 that fits: `134.5 M` for the suffixes `("", "k", "M")`."""
    step = 0
    while abs(value) >= 999.95 and step < len(suffixes) - 1:
        value, step = value / 1000, step + 1
    digits = 0 if step == 0 else 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f} {suffixes[step]}".strip()


def count(value: float) -> str:
    """Returns a number of things, e.g. `134.5 M`."""
    return scaled(value, ("", "k", "M", "B", "T"))


def number_of(value: int, thing: str) -> str:
    """Returns a number of things with the thing's name: `1 window`, `20 windows`."""
    return f"{value:,} {thing}{'' if value == 1 else 's'}"


def size(value: float) -> str:
    """Returns a number of bytes, in powers of 1000: `538.1 MB`."""
    return scaled(value, ("bytes", "kB", "MB", "GB", "TB"))


def percent(value: float) -> str:
    """Returns a share, e.g. `47.0 %`. A share that isn't quite nothing or all never reads as if it were."""
    if 0 < value < 0.0005 or 0.9995 <= value < 1:
        return "<0.1 %" if value < 0.5 else ">99.9 %"
    return f"{100 * value:.1f} %"


def decimal(value: float) -> str:
    """Returns a figure such as a perplexity or a rate: `23.23`, `1,234`, `3.1e+12`."""
    if not math.isfinite(value) or abs(value) >= 1e9:
        return f"{value:.2g}"
    return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def small(value: float) -> str:
    """Returns a figure that may be tiny, such as an error: `0.0213`, `3.1e-06`, `0`."""
    return f"{value:.4f}" if 0.001 <= abs(value) < 1000 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Returns a time, e.g. `0.8 s`, `4 min 05 s`, `2 h 10 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def shorten(text: str, width: int) -> str:
    """Returns `text` on one line of at most `width` columns, its middle left out where it is too long."""
    text = "".join(letter if letter.isprintable() else "�" for letter in text)
    if cell_len(text) <= width:
        return text
    head = (width - 1) // 3  # a path says more at its end
    tail = width - 1 - head
    return set_cell_size(text, head).rstrip() + "…" + set_cell_size(text[::-1], tail)[::-1].lstrip()
