"""What a search came to, in words and as plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.report.plots import COLOURS, Plot
from secateur.report.terminal import duration, small


def search_line(told: Mapping[str, Any]) -> str:
    """Returns what a search came to, in a sentence or two."""
    return (
        f"Search: {told['strategy']} judged {told['trials']:,} candidates in {duration(told['seconds'])}, after "
        f"{duration(told['seconds_levels'])} for loading and solving levels. Reward: {told['reward']}; the start's "
        f"{small(told['start'])}, the best one's {small(told['best'])}."
    )


def search_plots(told: Mapping[str, Any]) -> list[Plot]:
    """Returns the best reward so far against trials and against seconds."""
    plots = []
    for axis, unit in (("trial", "trials"), ("seconds", "seconds")):
        known = [step for step in told["course"] if axis in step]
        trace = {
            "type": "scatter",
            "mode": "lines+markers",
            "x": [step[axis] for step in known],
            "y": [step["value"] for step in known],
            "line": {"shape": "hv", "color": COLOURS[0]},
        }
        axes = {"xaxis": {"title": {"text": unit}}, "yaxis": {"title": {"text": "best reward so far"}}}
        title = f"The search, by {unit}"
        plots.append(Plot(f"search-{unit}", title, search_line(told), [trace], {"height": 320, **axes}))
    return plots
