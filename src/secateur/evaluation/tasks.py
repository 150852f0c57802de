"""Zero-shot tasks, by EleutherAI's lm-eval: any of its tasks by name, and the user's own as files."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from secateur.errors import SecateurError, UsageError, first_line
from secateur.network.network import Network
from secateur.network.quiet import quiet_transformers
from secateur.progress import Progress
from secateur.result import Comparison

INSTALL = "tasks are judged by lm-eval: pip install 'secateur[tasks]'."
BATCH = 8


def check_tasks(networks: Sequence[Network], tasks: Sequence[str]) -> None:
    """Raises UsageError before any work is done if lm-eval is missing, a file is, or a model predicts no tokens."""
    if find_spec("lm_eval") is None:
        raise UsageError(INSTALL)
    for task in tasks:
        if _is_file(task) and not Path(task).expanduser().is_file():
            raise UsageError(f"there is no file {task}; a task of lm-eval's own has no .yaml in its name.")
    for network in networks:
        if network.family.objective != "causal" or not network.generates:
            raise UsageError(f"tasks are for models that predict the next token, and {network.architecture} doesn't.")
        if network.tokenizer is None:
            raise UsageError(f"tasks take a tokenizer, and {network.source.name} has none.")


def task_figures(
    network: Network, tasks: Sequence[str], limit: int | None, seed: int, progress: Progress
) -> dict[str, float]:
    """Returns what a model reaches in each task: `arc_easy acc`, `gsm8k exact_match strict-match` ...

    Args:
        network: The model.
        tasks: Names that lm-eval knows, and .yaml files of tasks in its format.
        limit: Documents per task at most; None takes all.
        seed: Of what lm-eval draws.
        progress: Shows progress.

    Raises:
        SecateurError: lm-eval doesn't know a task, or can't read its data.
    """
    from lm_eval import simple_evaluate  # noqa: PLC0415 (an extra, which takes seconds)
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415
    from lm_eval.tasks import TaskManager  # noqa: PLC0415

    names = [_name(task) for task in tasks]
    folders = sorted({str(Path(task).expanduser().resolve().parent) for task in tasks if _is_file(task)})
    tick = progress.bar(f"tasks: {', '.join(names)}", 1)
    try:
        with _quiet():
            found: Any = simple_evaluate(
                model=HFLM(pretrained=network.model, tokenizer=network.tokenizer, batch_size=BATCH, device="cpu"),
                tasks=names,
                task_manager=TaskManager(include_path=folders or None),
                limit=limit,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                bootstrap_iters=0,
            )
    except Exception as error:  # whatever lm-eval, or a data set's reader, raises
        raise SecateurError(f"tasks {', '.join(names)}: {type(error).__name__}: {first_line(error)}") from error
    tick()
    return figures_of(found["results"])


def figures_of(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Returns metrics by task and name, behind which stands what the answer was read by, where there is a choice.

    Args:
        results: By task, lm-eval's values by `metric,filter`; standard errors are left out.
    """
    figures: dict[str, float] = {}
    for task, told in results.items():
        for key, value in told.items():
            metric, _, filtered = key.partition(",")
            if isinstance(value, float | int) and filtered and not metric.endswith("_stderr"):
                how = "" if filtered == "none" else f" {filtered}"
                figures[f"{task} {metric}{how}"] = float(value)
    return figures


def add_tasks(
    comparison: Comparison,
    networks: Sequence[Network],
    tasks: Sequence[str],
    limit: int | None,
    seed: int,
    progress: Progress,
) -> Comparison:
    """Adds what models reach in tasks to a comparison of them; see `task_figures`."""
    if not tasks:
        return comparison
    dense, *others = (
        replace(metrics, tasks=task_figures(network, tasks, limit, seed, progress))
        for metrics, network in zip((comparison.dense, *comparison.others), networks, strict=True)
    )
    return replace(comparison, dense=dense, others=tuple(others))


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def _name(task: str) -> str:
    """Returns a task's name, which a file says itself.

    Raises:
        UsageError: The file names none.
    """
    if not _is_file(task):
        return task
    lines = Path(task).expanduser().read_text(encoding="utf-8").splitlines()
    named = next((line for line in lines if line.startswith("task:")), "")
    found = yaml.safe_load(named) if named else None
    if not isinstance(found, dict) or not isinstance(found.get("task"), str):
        raise UsageError(f"{task} names no task: a line 'task: NAME' is missing.")
    return str(found["task"])


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quiet_transformers(), redirect_stderr(io.StringIO()):  # bars that nothing else turns off
            yield
    finally:
        logging.disable(before)
