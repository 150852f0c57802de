"""Prunes an image classifier's checkpoint: load, read images, and then as any network in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.calibration.images import ImageBatches, Pictures, find_pictures, parted
from secateur.errors import UsageError
from secateur.evaluation.examples import Measured, compare_examples
from secateur.network.loading import weight_bytes
from secateur.network.saving import check_output
from secateur.network.vision import Classifier, load_classifier
from secateur.progress import Progress
from secateur.recipe import Recipe
from secateur.recipe.base import changed
from secateur.result import Comparison, Result
from secateur.run_network import NetworkRun, graph_network, search_widths
from secateur.structure.traced import check_stage

HELD_OUT = 1024  # images at most that quality is measured on, where no folder is named for it
HELD_SHARE = 5  # one of so many images is held back for that, if there aren't more than calibration wants


def run_images(recipe: Recipe, progress: Progress, resume: bool) -> Result:
    """Carries out a recipe whose calibration has images; see `secateur.run_recipe`, which calls this.

    Raises:
        SecateurError: Something went wrong; nothing half-written is left.
    """
    _check(recipe, resume)
    output = None if recipe.output is None else Path(recipe.output).expanduser()
    if output is not None:
        check_output(output, recipe.overwrite)
    found = load_classifier(
        recipe.model,
        dtype=recipe.dtype,
        trust_remote_code=recipe.trust_remote_code,
        seed=recipe.seed,
        progress=progress,
    )
    notes: list[str] = []
    calibration, evaluation = _images(recipe, found, notes)
    batches = list(progress.track(calibration, "reading images"))
    network, stages, searched = graph_network(found.model, batches[0].inputs[0][:2]), recipe.prunes, None
    if recipe.search is not None:
        given = {name: getattr(recipe.search, name) for name in changed(recipe.search)}
        stage, searched = search_widths(
            network, stages[0], batches, None, recipe.seed, given, output, progress, resume, recipe.overwrite, recipe
        )
        stages = (stage,)
    run = NetworkRun(
        network=network,
        stages=stages,
        calibration=batches,
        evaluation=evaluation,
        evaluate=recipe.evaluate is not None,
        metric=None,
        loss=None,
        output=output,
        overwrite=recipe.overwrite,
        seed=recipe.seed,
        progress=progress,
        source=found.source,
        about={"source": recipe.model, "family": found.model.config.model_type, "reads": "images"},
        recipe=recipe.to_dict(),
        data=str(recipe.calibration.images),
        speed=recipe.evaluate is not None and recipe.evaluate.speed,
        notes=list(dict.fromkeys(notes)),
        found=searched,
    )
    result = run.carry_out()
    if searched is not None:
        searched.forget()
    return result


def compare_classifiers(
    models: Sequence[str],
    images: str,
    *,
    speed: bool = True,
    seed: int = 0,
    progress: Progress,
    stream: bool | None = None,
    device: str = "auto",
    **loading: Any,
) -> Comparison:
    """Measures image classifiers side by side; see `secateur.compare`, which calls this.

    Args:
        models: Hub ids or folders; the first one is the dense one, whose image processor reads the images.
        images: A folder of images, as `find_pictures` takes it.
        speed: Whether to measure speed.
        seed: For whatever a model draws when it is built.
        progress: Shows progress.
        stream, device: As for `run_images`.
        **loading: Passed on to `load_classifier`.
    """
    _check_place(stream, device)
    found = [load_classifier(model, seed=seed, progress=progress, **loading) for model in models]
    labels = [len(one.labels) for one in found]
    if len(set(labels)) > 1:
        raise UsageError(f"these models have {' and '.join(map(str, labels))} labels, so they can't be compared.")
    pictures = find_pictures(images, found[0].labels)
    batches = batches_of_images(found[0], pictures, found[0].processor())
    example = batches[0].inputs[0][:2]
    networks = [
        Measured(name, one.model, graph_network(one.model, example).costs.of(), weight_bytes(one.source.path))
        for name, one in zip(models, found, strict=True)
    ]
    return compare_examples(networks, batches, (example,), progress, speed=speed)


def _check_place(stream: bool | None, device: str) -> None:
    """Raises UsageError if image classifiers aren't computed like this."""
    if stream:
        raise UsageError("image classifiers are loaded whole: leave --stream out.")
    if device not in ("auto", "cpu"):
        raise UsageError(f"image classifiers are computed on the processor: leave --device {device} out.")


def _check(recipe: Recipe, resume: bool) -> None:
    """Raises UsageError if a recipe asks for what isn't there for image classifiers."""
    if resume and recipe.search is None:
        raise UsageError("an image classifier is pruned in one go: there is nothing to resume.")
    _check_place(recipe.stream, recipe.device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("an image classifier is pruned by one process: start it without torchrun.")
    for stage in recipe.stages:
        if stage.prune is None:
            raise UsageError(
                f"{stage.kind}: image classifiers are pruned only; train them in a loop of your own, or by "
                "transformers' Trainer, with secateur.TrainingPruner or PruningCallback."
            )
        check_stage(stage.prune, calibrated=True)


def _images(recipe: Recipe, found: Classifier, notes: list[str]) -> tuple[ImageBatches, ImageBatches]:
    """Returns images for calibration, and others for evaluation; those are none if quality isn't measured."""
    settings, evaluate = recipe.calibration, recipe.evaluate
    assert settings.images is not None
    processor = found.processor()
    every = find_pictures(settings.images, found.labels)
    named = None if evaluate is None else evaluate.images
    spare = HELD_OUT if evaluate is not None and named is None else 0
    taken = min(settings.samples, len(every) - (len(every) // HELD_SHARE if spare else 0))
    some, rest = parted(every, taken, spare, recipe.seed)
    measured = rest if named is None else find_pictures(named, found.labels)
    if evaluate is not None and not len(measured):
        notes.append(
            f"Quality wasn't measured: {settings.images} has {len(every)} images, which calibration needs; name a "
            "folder of others with --evaluate."
        )
    for one in (every, measured):
        if one.by_order and len(one):
            notes.append(
                f"The subfolders of {one.folder} have other names than the model's labels; they were taken for "
                "them in their order."
            )
    batches = [batches_of_images(found, one, processor) for one in (some, measured)]
    batches[1].check()
    return batches[0], batches[1]


def batches_of_images(found: Classifier, pictures: Pictures, processor: Any) -> ImageBatches:
    """Returns images as a classifier takes them."""
    return ImageBatches(pictures, processor, found.channels, found.model.dtype)
