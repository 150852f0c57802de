"""The Python API: what the command line calls, too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import nn

from secateur.calibration.batches import Loss
from secateur.calibration.data import Windows, read_windows, self_generated, window_length
from secateur.calibration.tables import is_table, read_table
from secateur.errors import UsageError
from secateur.evaluation.classes import add_accuracy, check_classes
from secateur.evaluation.comparison import compare_networks
from secateur.evaluation.error_rate import add_error_rate
from secateur.evaluation.examples import Metric
from secateur.evaluation.tasks import add_tasks, check_tasks
from secateur.import_path import path_of
from secateur.network.classifier import class_names
from secateur.network.loading import load
from secateur.network.network import Network
from secateur.network.vision import is_classifier, load_classifier
from secateur.progress import Progress
from secateur.recipe import Calibration, Evaluate, Prune, Recipe, Search
from secateur.recipe.base import listed
from secateur.recipe.search import limited
from secateur.report.structure import classifier_structure, group_rows, structure
from secateur.report.structure import units as list_units
from secateur.result import Comparison, Metrics, Result
from secateur.run import run_recipe
from secateur.run_images import compare_classifiers
from secateur.run_network import graph_network, prune_network, units


def prune(
    model: str | Path | nn.Module,
    *,
    output: str | Path | None = None,
    calibration: Any = None,
    evaluate: Any = True,
    progress: Progress | None = None,
    resume: bool = False,
    example_inputs: Any = None,
    metric: Metric | None = None,
    loss: Loss | None = None,
    leaf_modules: Sequence[type[nn.Module] | str] = (),
    **options: Any,
) -> Result:
    """Prunes a language model, or any network that torch.fx can trace, in one stage.

    Args:
        model: A hub id, a checkpoint folder, a .gguf file, or `demo:NAME`; or a network in memory, which is left as it
            is.
        output: The folder to write; None keeps the result in memory (`result.model`).
        calibration: For language models `self` (the default), a text or .jsonl file, a hub data set, or for a model
            that hears a folder of .wav files. For a network a DataLoader, or tensors: its arguments, and perhaps a
            target behind them. Without any, units go by the size of their weights and nothing is repaired.
        evaluate: What quality is measured on: for language models a text, for a network a DataLoader or tensors. True
            takes what was held back from a language model's calibration, and of a network measures size and speed;
            False skips it.
        progress: Shows progress.
        resume: Whether to go on from what an earlier run of the same call left, if it ended early.
        example_inputs: What a network takes: a tensor, or a tuple of arguments. It is traced with them.
        metric: For a network, a function of (output, target) that gives the mean over a batch; without it the accuracy
            is measured where targets are classes, else the loss.
        loss: For a network, a function of (output, target) that gradient scores differentiate; None takes cross-entropy
            for classes and half the squared error for other targets.
        leaf_modules: A network's modules, by kind or name, that aren't looked into.
        **options: Any other field of `Recipe`, `Calibration`, `Prune` or `Evaluate`, by its name there:
            `sparsity=0.5`, `pattern="2:4"`, `solver="sparsegpt"`, `samples=128`, `seed=1` ... `length` is the
            calibration's, and the evaluation's too. `score` may be a function itself. For a network the
            fields of `Prune`, `samples`, `seed` and `overwrite`; without `unit`, all kinds of units that it has go by
            one budget.

    Returns:
        What was done and measured.

    Raises:
        SecateurError: See its kinds; nothing half-written is left behind.

    Example:
        >>> import secateur
        >>> result = secateur.prune("demo:smollm2-135m", sparsity=0.5, output="out/half")
        >>> print(result.table())
        >>> result = secateur.prune(network, example_inputs=x, unit="filter", macs=0.5, calibration=(images, classes))
        >>> smaller = result.model
    """
    options = _named(model, options)
    if isinstance(model, nn.Module):
        if resume:
            raise UsageError("a network in memory is pruned in one go: there is nothing to resume.")
        return _prune_network(
            model, example_inputs, calibration, evaluate, metric, loss, leaf_modules, output, progress, options
        )
    extras = {"example_inputs": example_inputs, "metric": metric, "loss": loss, "leaf_modules": leaf_modules or None}
    misplaced = [name for name, value in extras.items() if value is not None]
    if misplaced:
        raise UsageError(f"{misplaced[0]} goes with a network in memory, and {model!r} is loaded by name.")
    data = "self" if calibration is None else calibration
    return run_recipe(single_stage(model, output, data, evaluate, options), progress, resume)


def _named(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options as a recipe has them: a function's import path, kinds of units in one string.

    Raises:
        UsageError: The model is one that `load` returned, or the function can't be found by its name.
    """
    if isinstance(model, Network):
        raise UsageError("a run loads the model itself: give the name or folder that load() was given.")
    given = dict(options)
    if callable(given.get("score")):
        given["score"] = path_of(given["score"])
    if isinstance(given.get("unit"), list | tuple):
        given["unit"] = ",".join(given["unit"])
    return given


def _prune_network(
    model: nn.Module,
    example_inputs: Any,
    calibration: Any,
    evaluate: Any,
    metric: Metric | None,
    loss: Loss | None,
    leaf_modules: Sequence[type[nn.Module] | str],
    output: str | Path | None,
    progress: Progress | None,
    options: dict[str, Any],
) -> Result:
    own = {name: options.pop(name) for name in ("samples", "seed", "overwrite") if name in options}
    return prune_network(
        model,
        example_inputs,
        calibration=calibration,
        evaluate=evaluate,
        metric=metric,
        loss=loss,
        leaf_modules=leaf_modules,
        output=output,
        progress=progress,
        options=options,
        **own,
    )


def single_stage(
    model: str | Path,
    output: str | Path | None,
    calibration: str,
    evaluate: str | bool,
    options: dict[str, Any],
    searches: bool = False,
) -> Recipe:
    """Builds the recipe that flat options come to; what is None counts as not given. It may search for the amounts."""
    given = {name: value for name, value in options.items() if value is not None}
    if searches:
        given = limited(given)
        if given.keys() & {"params", "macs"} and given.get("unit", "weight") == "weight":
            given["unit"] = "neuron"  # and halves of layers
    kinds: dict[type[BaseModel], dict[str, Any]] = {
        Calibration: {"data": calibration},
        Evaluate: {},
        Prune: {},
        Search: {},
        Recipe: {},
    }
    what = "text" if given.get("images") is None else "images"
    kinds[Evaluate] = {what: evaluate} if isinstance(evaluate, str) else {}
    for name in list(given):
        for kind, fields in kinds.items():
            if name in kind.model_fields and name not in (
                "model",
                "output",
                "stages",
                "calibration",
                "evaluate",
                "search",
            ):
                fields[name] = given.pop(name)
                break
    recipe = {
        **kinds[Recipe],
        **given,  # unknown names, for the recipe's own error
        "model": str(model),
        "output": None if output is None else str(output),
        "calibration": kinds[Calibration],
        "evaluate": kinds[Evaluate] if evaluate is not False else None,
        "stages": [{"prune": kinds[Prune]}],
        "search": kinds[Search] if searches or kinds[Search] else None,
    }
    try:
        return Recipe.build(recipe)
    except UsageError as error:  # which names the option, as nobody wrote a recipe
        raise UsageError(re.sub(r"stage 1: prune\.(\w+)", lambda found: listed([found[1]]), str(error))) from error


def search(
    model: str | Path | nn.Module,
    *,
    output: str | Path | None = None,
    calibration: Any = None,
    evaluate: Any = True,
    progress: Progress | None = None,
    resume: bool = False,
    example_inputs: Any = None,
    metric: Metric | None = None,
    loss: Loss | None = None,
    leaf_modules: Sequence[type[nn.Module] | str] = (),
    **options: Any,
) -> Result:
    """Searches for how much goes from each place, prunes the model as the best candidate says, and measures it.

    Args:
        model, calibration, evaluate, progress: As for `prune`.
        output: The folder to write; of a network in memory None keeps the result, and the study, in memory.
        example_inputs, metric, loss, leaf_modules: Of a network in memory, as for `prune`. Its candidates are cut,
            repaired, and worth minus their loss on the last half of the calibration's batches; `tokens` are examples.
        resume: Whether to go on from the trials of the same search, if it ended early.
        **options: As for `prune`, and any field of `Search`: `strategy="evolution"`, `trials=500`, `seconds=1200` ...
            The target is `sparsity`, `params` or `macs`; `latency`, `memory`, and `macs` beside `params`, are limits.

    Returns:
        What was done and measured; `result.search` says what the search came to.

    Raises:
        SecateurError: See its kinds.

    Example:
        >>> result = secateur.search("demo:smollm2-135m", output="out/found", sparsity=0.7, seconds=1200)
        >>> given = {"example_inputs": x, "calibration": (images, classes)}
        >>> result = secateur.search(network, unit="filter", macs=0.5, trials=200, **given)
    """
    options = _named(model, options)
    if isinstance(model, nn.Module):
        options = limited(options)
        own = {name: options.pop(name) for name in ("samples", "seed", "overwrite") if name in options}
        settings = {name: options.pop(name) for name in Search.model_fields if name in options}
        return prune_network(
            model,
            example_inputs,
            calibration=calibration,
            evaluate=evaluate,
            metric=metric,
            loss=loss,
            leaf_modules=leaf_modules,
            output=output,
            progress=progress,
            options=options,
            searched=settings,
            resume=resume,
            **own,
        )
    data = "self" if calibration is None else calibration
    return run_recipe(single_stage(model, output, data, evaluate, options, searches=True), progress, resume)


def compare(
    models: Sequence[str | Path | Network],
    *,
    text: str | None = "self",
    images: str | Path | None = None,
    windows: int | None = None,
    length: int | None = None,
    speed: bool = True,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    stream: bool | None = None,
    **loading: Any,
) -> Comparison:
    """Measures models side by side, on the same windows; the first one is the dense reference.

    Args:
        models: What to compare, as for `load`, or loaded networks.
        text: A file or hub data set; `self` lets the first model write it, None measures on none. For models that
            hear a folder of .wav files, and for their word error rate what is said in a .txt beside each. Of models
            that tell classes apart a table of text and label (.tsv, .csv, .jsonl), all of which is measured on.
        images: For image classifiers instead of a text: a folder of images, flat or with a subfolder per class.
        windows: Windows of text; None takes 8. A table is measured on whole.
        length: Tokens per window; None takes 1024, or what all models hold.
        speed: Whether to measure speed.
        tasks: Zero-shot tasks of lm-eval's, by name, and .yaml files of tasks in its format.
        limit: Documents per task at most; None takes all.
        seed: Of everything that draws.
        progress: Shows progress.
        **loading: Passed on to `load`.

    Returns:
        Figures of each; KL and agreement are to the first.
    """
    progress = progress or Progress()
    if images is not None:
        if tasks or text != "self" or length is not None:
            raise UsageError("image classifiers are measured on images: leave text and length out, and tasks.")
        names = [str(model) for model in models]
        return compare_classifiers(
            names, str(images), speed=speed, seed=seed, progress=progress, stream=stream, **loading
        )
    networks = [
        model if isinstance(model, Network) else load(model, seed=seed, stream=stream, progress=progress, **loading)
        for model in models
    ]
    if limit is not None and not tasks:
        raise UsageError("limit counts the documents of tasks, and none is named.")
    if tasks:
        check_tasks(networks, tasks)
    if text is not None and is_table(text):
        if windows is not None:
            raise UsageError(f"{text} is a table of text and label, and all of its rows are read: leave windows out.")
        check_classes(networks, text)
        table = read_table(text, None, class_names(networks[0]))
        sizes = compare_networks(networks, None, progress, False)
        return add_accuracy(sizes, networks, table, length, progress)
    if text is None:
        return add_tasks(compare_networks(networks, None, progress, False), networks, tasks, limit, seed, progress)
    windows = windows or 8
    size = min(window_length(network, length) for network in networks)
    dense = networks[0]
    chosen: Windows = (
        self_generated(dense, windows, size, seed, progress)
        if text == "self"
        else read_windows(dense, text, windows, size, progress)
    )
    found = compare_networks(networks, chosen, progress, speed)
    if dense.family.inputs == "audio" and text != "self":
        found = add_error_rate(found, networks, text, windows, progress)
    return add_tasks(found, networks, tasks, limit, seed, progress)


def evaluate(
    model: str | Path | Network, *, text: str | None = None, images: str | Path | None = None, **options: Any
) -> Metrics:
    """Measures one model: perplexity on a text or accuracy on images, sparsity, size, speed.

    Args:
        model: As for `load`, or a loaded network.
        text: A file or hub data set, or for a model that tells classes apart a table of text and label.
        images: For an image classifier instead of a text: a folder of images, flat or with a subfolder per class.
        **options: As for `compare`; `windows` is 20 if it isn't given.
    """
    if (text is None) == (images is None) and not (text is None and options.get("tasks")):
        raise UsageError("give a text to measure on (--text), tasks, or for an image classifier images (--images).")
    what: dict[str, Any] = {"images": images} if images is not None else {"text": text}
    if text is not None and not is_table(text):
        what["windows"] = 20
    return compare([model], **{**what, **options}).dense


def inspect(
    model: str,
    *,
    units: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    stream: bool | None = None,
    **loading: Any,
) -> dict[str, Any]:
    """Describes a model.

    Args:
        model: A hub id, a checkpoint folder, a .gguf file, or `demo:NAME`.
        units: Whether to list the units that can be removed.
        **loading: Passed on to `load`.

    Returns:
        Its facts and layers, as plain data; with `units` if asked for, and of an image classifier what is `fixed`.
    """
    progress = progress or Progress()
    if is_classifier(model, trust_remote_code, progress):
        found = load_classifier(model, trust_remote_code=trust_remote_code, progress=progress, **loading)
        facts = classifier_structure(found)
        if not units:
            return facts
        network = graph_network(found.model, found.example())
        return {**facts, "units": group_rows(network.groups), "fixed": [vars(one) for one in network.fixed]}
    loading |= {"trust_remote_code": trust_remote_code, "progress": progress}
    described = load(model, device="cpu", stream=stream, **loading)
    if units and described.store is not None:
        raise UsageError("units are listed of models in memory; add --no-stream.")
    facts = structure(described)
    return {**facts, "units": list_units(described)} if units else facts


__all__ = ["compare", "evaluate", "inspect", "prune", "search", "single_stage", "units"]
