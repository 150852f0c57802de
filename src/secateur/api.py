"""The Python API: what the command line calls, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from secateur.calibration.data import Windows, read_windows, self_generated, window_length
from secateur.evaluation.comparison import compare_networks
from secateur.network.loading import load
from secateur.network.network import Network
from secateur.progress import Progress
from secateur.recipe import Calibration, Evaluate, Prune, Recipe
from secateur.result import Comparison, Metrics, Result
from secateur.run import run_recipe


def prune(
    model: str | Path,
    *,
    output: str | Path | None = None,
    calibration: str = "self",
    evaluate: str | bool = True,
    progress: Progress | None = None,
    resume: bool = False,
    **options: Any,
) -> Result:
    """Prunes a model in one stage.

    Args:
        model: A hub id, a checkpoint folder, a .gguf file, or `demo:NAME`.
        output: The folder to write; None keeps the result in memory (`result.model`).
        calibration: `self`, a text or .jsonl file, a hub data set, or for a model that hears a folder of .wav files.
        evaluate: A text to measure quality on; True takes windows held back from calibration, False skips it.
        progress: Shows progress.
        resume: Whether to go on from what an earlier run of the same call left, if it ended early.
        **options: Any other field of `Recipe`, `Calibration`, `Prune` or `Evaluate`, by its name there:
            `sparsity=0.5`, `pattern="2:4"`, `solver="sparsegpt"`, `samples=128`, `seed=1` ... `length` is the
            calibration's, and the evaluation's too.

    Returns:
        What was done and measured.

    Raises:
        SecateurError: See its kinds; nothing half-written is left behind.

    Example:
        >>> import secateur
        >>> result = secateur.prune("demo:smollm2-135m", sparsity=0.5, output="out/half")
        >>> print(result.table())
    """
    return run_recipe(single_stage(model, output, calibration, evaluate, options), progress, resume)


def single_stage(
    model: str | Path,
    output: str | Path | None,
    calibration: str,
    evaluate: str | bool,
    options: dict[str, Any],
) -> Recipe:
    """Builds the recipe that flat options come to; what is None counts as not given."""
    given = {name: value for name, value in options.items() if value is not None}
    kinds: dict[type[BaseModel], dict[str, Any]] = {
        Calibration: {"data": calibration},
        Evaluate: {},
        Prune: {},
        Recipe: {},
    }
    kinds[Evaluate] = {"text": evaluate} if isinstance(evaluate, str) else {}
    for name in list(given):
        for kind, fields in kinds.items():
            if name in kind.model_fields and name not in (
                "model",
                "output",
                "stages",
                "calibration",
                "evaluate",
            ):
                fields[name] = given.pop(name)
                break
    return Recipe.build(
        {
            **kinds[Recipe],
            **given,  # unknown names, for the recipe's own error
            "model": str(model),
            "output": None if output is None else str(output),
            "calibration": kinds[Calibration],
            "evaluate": kinds[Evaluate] if evaluate is not False else None,
            "stages": [{"prune": kinds[Prune]}],
        }
    )


def compare(
    models: Sequence[str | Path | Network],
    *,
    text: str = "self",
    windows: int = 8,
    length: int | None = None,
    speed: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    stream: bool | None = None,
    **loading: Any,
) -> Comparison:
    """Measures models side by side, on the same windows; the first one is the dense reference.

    Args:
        models: What to compare, as for `load`, or loaded networks.
        text: A file or hub data set; `self` lets the first model write it.
        windows: Windows of text.
        length: Tokens per window; None takes 1024, or what all models hold.
        speed: Whether to measure speed.
        seed: Of everything that draws.
        progress: Shows progress.
        **loading: Passed on to `load`.

    Returns:
        Figures of each; KL and agreement are to the first.
    """
    progress = progress or Progress()
    networks = [
        model if isinstance(model, Network) else load(model, seed=seed, stream=stream, progress=progress, **loading)
        for model in models
    ]
    size = min(window_length(network, length) for network in networks)
    dense = networks[0]
    chosen: Windows = (
        self_generated(dense, windows, size, seed, progress)
        if text == "self"
        else read_windows(dense, text, windows, size, progress)
    )
    return compare_networks(networks, chosen, progress, speed)


def evaluate(model: str | Path | Network, *, text: str, windows: int = 20, **options: Any) -> Metrics:
    """Measures one model: perplexity on a text, sparsity, size, speed.

    Args:
        model: As for `load`, or a loaded network.
        text: A file or hub data set.
        windows: Windows of text, at most.
        **options: As for `compare`.
    """
    return compare([model], text=text, windows=windows, **options).dense
