"""What a search came to, in words and as plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.automl.front import front_of
from secateur.report.numbers import duration, small
from secateur.report.plots import COLOURS, Plot

SHOWN = 20  # places


def search_line(told: Mapping[str, Any]) -> str:
    """Returns what a search came to, in a sentence or two."""
    before = (
        f", after {duration(told['seconds_levels'])} for loading and solving levels" if told["seconds_levels"] else ""
    )
    anew = f", {small(told['solved'])} once it was solved anew" if "solved" in told else ""
    failures, made = told["failures"], ", ".join(f"{name} {value}" for name, value in told["params"].items())
    judged = candidates(told["trials"] - sum(failures.values()))
    return (
        f"Search: {told['strategy']} judged {judged} in {duration(told['seconds'])}{before}.{_failed(failures)} "
        f"Reward: {told['reward']}; the {'first' if made else 'start'}'s {small(told['start'])}, the best one's "
        f"{small(told['best'])}{anew}.{f' Chosen: {made}.' if made else ''}{_shares(told)}"
    )


def candidates(number: int) -> str:
    """Returns a number of candidates in words."""
    return f"{number:,} candidate{'' if number == 1 else 's'}"


def _failed(failures: Mapping[str, int]) -> str:
    """Returns how many candidates couldn't be judged, and why most of them couldn't, in a sentence."""
    if not failures:
        return ""
    why = max(failures, key=lambda one: failures[one])
    number = sum(failures.values())
    return f" {candidates(number)} couldn't be judged{' ' if len(failures) == 1 else ', most often '}({why})."


def _shares(told: Mapping[str, Any]) -> str:
    """Returns what the best candidate leaves by each measure, in a sentence."""
    shares = told["shares"]
    if not shares:
        return ""
    return f" It leaves {', '.join(f'{share:.1%} of {measure}' for measure, share in shares.items())}."


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
    measures = sorted({measure for one in told["judged"] for measure in one["shares"]})
    plots += [plot for measure in measures if (plot := _front_plot(told, measure)) is not None]
    return plots + ([_importances_plot(told)] if told["importances"] else [])


def _front_plot(told: Mapping[str, Any], measure: str) -> Plot | None:
    """Returns quality against a measure, if candidates differ by it, with those that none beats by both."""
    some = [(one["shares"][measure], one["quality"], one["trial"]) for one in told["judged"]]
    if len({round(share, 4) for share, _, _ in some}) < 2:
        return None
    pairs = front_of([((quality, -share), (share, quality, number)) for share, quality, number in some])
    best = sorted(one for _, one in pairs)
    chosen = [one for one in some if one[2] == told["chosen"]]
    traces = [
        _points("candidates", some, COLOURS[2], mode="markers"),
        _points("Pareto front", best, COLOURS[0], mode="lines+markers", line={"shape": "hv", "color": COLOURS[0]}),
        _points("taken", chosen, COLOURS[1], mode="markers"),
    ]
    axes = {
        "xaxis": {"title": {"text": f"share of the dense model's {measure}"}, "tickformat": ".1%"},
        "yaxis": {"title": {"text": "quality"}},
    }
    words = f"Quality against {measure}, of the candidates that were judged on all tokens"
    return Plot(f"search-front-{measure}", words, words, traces, {"height": 360, **axes})


def _points(name: str, points: Sequence[tuple[float, float, int]], colour: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": name,
        "x": [share for share, _, _ in points],
        "y": [quality for _, quality, _ in points],
        "text": [f"trial {number}" for _, _, number in points],
        "marker": {"color": colour},
        **more,
    }


def _importances_plot(told: Mapping[str, Any]) -> Plot:
    """Returns how much the places matter, the most first."""
    some = list(told["importances"].items())[:SHOWN][::-1]
    names, numbers = [name for name, _ in some], [number for _, number in some]
    trace = {"type": "bar", "orientation": "h", "x": numbers, "y": names, "marker": {"color": COLOURS[0]}}
    axes = {"xaxis": {"title": {"text": "importance"}}, "yaxis": {"automargin": True}}
    what = "Which choice" if told["params"] else "Where the amount"
    words = f"{what} matters most (PED-ANOVA of the trials)"
    return Plot("search-importances", words, words, [trace], {"height": 120 + 18 * len(some), **axes})
