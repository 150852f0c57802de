"""Data that isn't part of the project: real texts, images, task sets and trained models.

SECATEUR_DATA names the folder that holds them, `../shared/data` beside the checkout otherwise. Tests that need it are
skipped without it.
"""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("SECATEUR_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no models and texts in {DATA}; set SECATEUR_DATA to a folder that has them"
)
