"""secateur: prune language models into smaller or sparser checkpoints that stock tools load."""

from secateur.api import compare, evaluate, prune
from secateur.calibration.data import Windows
from secateur.errors import SecateurError
from secateur.network.loading import load
from secateur.network.network import Network
from secateur.progress import Progress, TerminalProgress
from secateur.recipe import Recipe
from secateur.result import Comparison, Metrics, Result
from secateur.run import run

__all__ = [
    "Comparison",
    "Metrics",
    "Network",
    "Progress",
    "Recipe",
    "Result",
    "SecateurError",
    "TerminalProgress",
    "Windows",
    "compare",
    "evaluate",
    "load",
    "prune",
    "run",
]
