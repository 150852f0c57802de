"""Draws docs/schedules.svg, a panel for each schedule: python docs/schedules.py"""

from __future__ import annotations

from pathlib import Path

from secateur.schedules import Cosine, Cubic, Exponential, Linear, OneShot, Periodic, Schedule, WhenRecovered

WIDTH, HEIGHT, GAP, COLUMNS, STEPS = 200, 110, 40, 4, 1000
SPAN = {"begin": 200, "end": 800, "every": 50}
SHOWN: dict[str, Schedule] = {
    "OneShot(0.8, begin=200)": OneShot(0.8, begin=200),
    "Linear(0.8, 200, 800, 50)": Linear(0.8, **SPAN),
    "Cubic(0.8, 200, 800, 50)": Cubic(0.8, **SPAN),
    "Cosine(0.8, 200, 800, 50)": Cosine(0.8, **SPAN),
    "Exponential(0.8, 200, 800, 50)": Exponential(0.8, **SPAN),
    "Periodic(150, 0.3, 0.8)": Periodic(150, 0.3, final=0.8),
    "WhenRecovered(0.8, 0.2, 0.01)": WhenRecovered(0.8, 0.2, 0.01),
}


def course(schedule: Schedule) -> list[float]:
    """Returns the sparsity after each step.

    For a schedule that waits for recovery the metric falls by 0.1 at each pruning, and the more is pruned the longer it
    takes to come back.
    """
    found, since, pruned = [], 0, 0
    for step in range(STEPS + 1):
        if isinstance(schedule, WhenRecovered) and step % 10 == 0:
            schedule.report(0.9 - 0.1 * max(0.0, 1 - since / (90 * pruned)) if pruned else 0.9)
            if schedule.due(step):
                schedule.took()
                since, pruned = 0, pruned + 1
        since += 1
        found.append(schedule(step))
    return found


def panel(title: str, values: list[float], left: int, top: int) -> str:
    """Returns a panel: sparsity from 0 to 1 over the steps."""
    points: list[str] = []
    for step, (value, before) in enumerate(zip(values, [values[0], *values], strict=False)):
        if value != before or step in (0, STEPS):
            x = left + WIDTH * step / STEPS
            points += [f"{x:g},{top + HEIGHT * (1 - before):.1f}", f"{x:g},{top + HEIGHT * (1 - value):.1f}"]
    return (
        f'<text x="{left}" y="{top - 8}">{title}</text>\n'
        f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbb"/>\n'
        f'<polyline points="{" ".join(points)}" fill="none" stroke="#2a6f97" stroke-width="2"/>\n'
        f'<text x="{left - 4}" y="{top + 8}" text-anchor="end">1</text>\n'
        f'<text x="{left - 4}" y="{top + HEIGHT}" text-anchor="end">0</text>\n'
        f'<text x="{left + WIDTH}" y="{top + HEIGHT + 14}" text-anchor="end">step {STEPS}</text>'
    )


def drawing() -> str:
    """Returns the whole picture."""
    panels = []
    for number, (title, schedule) in enumerate(SHOWN.items()):
        row, column = divmod(number, COLUMNS)
        left, top = GAP + column * (WIDTH + GAP), GAP + row * (HEIGHT + 2 * GAP)
        panels.append(panel(title, course(schedule), left, top))
    width, height = GAP + COLUMNS * (WIDTH + GAP), GAP + -(-len(SHOWN) // COLUMNS) * (HEIGHT + 2 * GAP)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
    body = "\n".join(panels)
    return f'{head}font-size="12" fill="#333">\n<rect width="{width}" height="{height}" fill="#fff"/>\n{body}\n</svg>\n'


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(drawing(), encoding="utf-8")
