"""secateur: prune language models into smaller or sparser checkpoints that stock tools load."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.api import compare, evaluate, prune, search, units
    from secateur.automl.shares import shares
    from secateur.benchmark.bench import bench
    from secateur.calibration.data import Windows
    from secateur.errors import SecateurError
    from secateur.mask import Mask
    from secateur.network.graph.saving import rebuild
    from secateur.network.loading import load
    from secateur.network.network import Network
    from secateur.progress import Progress, TerminalProgress
    from secateur.recipe import Recipe
    from secateur.result import Comparison, Metrics, Result
    from secateur.run import run_recipe
    from secateur.run_export import export
    from secateur.training.callback import PruningCallback
    from secateur.training.pruner import TrainingPruner

# Imported when first used: torch and transformers take seconds, which `secateur --help` needn't wait for.
_HOMES = {
    "Comparison": "secateur.result",
    "Mask": "secateur.mask",
    "Metrics": "secateur.result",
    "Network": "secateur.network.network",
    "Progress": "secateur.progress",
    "PruningCallback": "secateur.training.callback",
    "Recipe": "secateur.recipe",
    "Result": "secateur.result",
    "SecateurError": "secateur.errors",
    "TerminalProgress": "secateur.progress",
    "TrainingPruner": "secateur.training.pruner",
    "Windows": "secateur.calibration.data",
    "bench": "secateur.benchmark.bench",
    "compare": "secateur.api",
    "evaluate": "secateur.api",
    "export": "secateur.run_export",
    "load": "secateur.network.loading",
    "prune": "secateur.api",
    "rebuild": "secateur.network.graph.saving",
    "run_recipe": "secateur.run",
    "search": "secateur.api",
    "shares": "secateur.automl.shares",
    "units": "secateur.api",
}

__all__ = [
    "Comparison",
    "Mask",
    "Metrics",
    "Network",
    "Progress",
    "PruningCallback",
    "Recipe",
    "Result",
    "SecateurError",
    "TerminalProgress",
    "TrainingPruner",
    "Windows",
    "bench",
    "compare",
    "evaluate",
    "export",
    "load",
    "prune",
    "rebuild",
    "run_recipe",
    "search",
    "shares",
    "units",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'secateur' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
