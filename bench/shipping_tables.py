"""The tables of docs/deploying.md that bench/shipping.py's figures make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
RECIPES = ".yaml"


def _megabytes(value: int) -> str:
    return f"{value / 1e6:.0f} MB" if value >= 1e7 else f"{value / 1e6:.1f} MB"


FORMS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "accuracy": ("accuracy", "{:.2%}".format),
    "wer": ("word errors", "{:.1%}".format),
    "runtime": ("runtime", lambda told: " ".join(SHORT.get(part, part) for part in told.split())),
    "bytes": ("size", _megabytes),
    "peak": ("peak", _megabytes),
    "first_ms": ("first", "{:.1f} ms".format),
    "decode": ("decode", "{:.0f}/s".format),
    "batch": ("batch", "{:,.0f}/s".format),
    "real_time": ("real time", "{:.3f}x".format),
}


def tables(results: Row) -> dict[str, str]:
    """Returns the tables in markdown: of each pipeline its steps, of runtimes also their gains, and of all recipes."""
    rows: dict[str, Row] = results["rows"]
    found = {name: _steps(name, row) for name, row in rows.items() if not name.endswith(RECIPES)}
    if "runtimes" in rows:
        found["gains"] = _gains(rows["runtimes"])
    recipes = {name: row for name, row in rows.items() if name.endswith(RECIPES)}
    return {**found, **({"recipes": _recipes(recipes)} if recipes else {})}


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)])


def _steps(name: str, row: Row) -> str:
    steps: dict[str, Row] = row["steps"]
    columns = [one for one in FORMS if any(one in step for step in steps.values())]
    rows = [
        [step, *(FORMS[one][1](told[one]) if one in told else "" for one in columns)] for step, told in steps.items()
    ]
    return _table([name, *(FORMS[one][0] for one in columns)], rows)


def _gains(row: Row) -> str:
    """Returns how much faster the smaller model is in each runtime, at best, and the share of that."""
    heads = ["runtime", "prefill", "at best", "share", "decode", "at best", "share", "perplexity"]
    rows = []
    for name, step in row["steps"].items():
        if "gains" in step:
            both = [step["gains"]["prefill"], step["gains"]["decode"]]
            cells = [
                text for one in both for text in (f"{one['gain']:.2f}x", f"{one['bound']:.2f}x", f"{one['share']:.0%}")
            ]
            rows.append([name, *cells, "{dense:.2f} → {small:.2f}".format(**row["perplexity"])])
    return _table(heads, rows)


def _recipes(rows: dict[str, Row]) -> str:
    heads = ["recipe", "quality, dense → out", "bits per byte", "parameters", "file", "prefill", "decode"]
    return _table(heads, [_recipe(name, row["steps"]["dense"], row["steps"]["out"]) for name, row in rows.items()])


def _recipe(name: str, dense: Row, out: Row) -> list[str]:
    if "wer" in out:
        quality = f"word errors {dense['wer']:.1%} → {out['wer']:.1%}"
    elif "perplexity" in out:
        quality = f"perplexity {dense['perplexity']:.2f} → {out['perplexity']:.2f}"
    else:
        quality = f"cosine {out['cosine']:.3f}"
    bits = f"{dense['bits_per_byte']:.3f} → {out['bits_per_byte']:.3f}" if "bits_per_byte" in out else ""
    gains = [f"{out[one]:.2f}x" if one in out else "" for one in ("prefill_gain", "decode_gain")]
    return [name, quality, bits, f"{out['parameters_share']:.1%}", f"{out['bytes_on_disk_share']:.1%}", *gains]
