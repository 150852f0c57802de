"""Report pages in a browser: no error, no request, every plot drawn."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import secateur
from tiny import tiny_recipe

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def opened(page: Path) -> tuple[str, str]:
    """Returns a page's elements after its scripts have run, and what the browser said."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--virtual-time-budget=20000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    )
    return done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no chromium to open a page with")
@pytest.mark.parametrize(
    "stages",
    [
        [{"prune": {"sparsity": 0.5, "solver": "admm", "reconstruct": True}}],
        [{"prune": {"unit": "neuron", "params": 0.9, "allocation": "global"}}, {"distill": {"steps": 4, "batch": 2}}],
        [{"factorize": {"params": 0.8}}],
    ],
    ids=["weights", "units", "factors"],
)
def test_a_report_draws_all_of_its_plots_and_says_no_error(stages: list[dict[str, Any]], tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    recipe["evaluate"]["speed"] = True
    secateur.run_recipe(secateur.Recipe.build({**recipe, "stages": stages}))
    page = tmp_path / "out/report.html"
    plots = re.findall(r'<div class="plot" id="([^"]+)"', page.read_text())
    assert len(plots) >= 2
    shown, said = opened(page)
    assert "CONSOLE" not in said
    for plot in plots:
        (inside,) = re.findall(rf'<div class="plot[^"]*" id="{plot}".*?</svg>', shown, re.DOTALL)
        assert "main-svg" in inside
    drawn = len(re.findall(r'class="plot js-plotly-plot"', shown))
    assert drawn == len(plots)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no chromium to open a page with")
def test_a_script_that_fails_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<html><script>nothing.at.all()</script></html>")
    assert "CONSOLE" in opened(page)[1]
