"""The documentation site is built without a warning, and what is made of registries and results is up to date."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config

from secateur.automl.strategies import STRATEGIES
from secateur.network.units import UNITS
from secateur.solvers import SOLVERS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return import_module("hooks")


def test_the_site_is_built_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    with caplog.at_level(logging.WARNING, logger="mkdocs"):
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    assert not caplog.records
    for folder, names in (("solvers", SOLVERS), ("strategies", STRATEGIES), ("units", UNITS)):
        assert all((tmp_path / folder / name / "index.html").is_file() for name in names)
    assert "42.05" in (tmp_path / "solvers/admm/index.html").read_text()
    api = (tmp_path / "api/index.html").read_text()
    assert "Wanda" in (tmp_path / "solvers/index.html").read_text()
    assert re.search(r"hub id, a checkpoint folder", api)
    loads = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', api)
    assert not loads  # a page asks no other server for anything


def test_the_table_of_choices_and_the_recipes_are_those_of_the_files(hooks: ModuleType) -> None:
    assert hooks.choosing_table() in (ROOT / "docs/choosing.md").read_text()
    assert hooks.recipes_text().strip() in (ROOT / "docs/recipes.md").read_text()


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = re.findall(r"\w+\.md", str(nav))
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.slow
def test_reports_of_the_gallery_are_made_and_linked(tmp_path: Path) -> None:
    """As `make gallery docs` does, in a copy of what that takes."""
    for name in ("docs", "bench/results", "examples", "src"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("mkdocs.yml", "README.md", "README.zh-CN.md"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run([sys.executable, "docs/gallery.py", "out/gallery"], cwd=tmp_path, check=True)
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", "site"], cwd=tmp_path, check=True
    )
    page = (tmp_path / "site/gallery/index.html").read_text()
    made = [path.name for path in (tmp_path / "site/gallery").glob("*.html") if path.name != "index.html"]
    assert len(made) == 4
    assert all(f'href="{name}"' in page for name in made)
