"""Plots as plotly.js draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Ten colours that hold on white and on black alike, for projection kinds and for checkpoints.
COLOURS = (
    *("#4e8fd0", "#e8803a", "#3fa86b", "#d1545b", "#8f74c9"),
    *("#b08a3c", "#d974ad", "#3aa7b0", "#8a9a3b", "#8c8c94"),
)


@dataclass(frozen=True)
class Plot:
    """A plot as plotly.js draws it.

    Attributes:
        id: The element that it is drawn in.
        title, caption: What it shows, in words; plain text, escaped by the template.
        data, layout: As plotly.js takes them. Names in it are escaped: plotly reads some HTML.
    """

    id: str
    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
