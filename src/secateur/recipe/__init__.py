"""Recipes: what a user asks for, as data. The one place where defaults live."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from secateur.errors import SecateurError, UsageError
from secateur.recipe.base import Settings, bytes_of, changed, listed, refuse
from secateur.recipe.data import Calibration, Evaluate
from secateur.recipe.factorize import Factorize
from secateur.recipe.prune import INNER_UNITS, TRACED_UNITS, Prune
from secateur.recipe.quantize import Quantize
from secateur.recipe.recovery import Distill, Finetune, Lora, Reconstruct, Training
from secateur.recipe.search import Search
from secateur.recipe.stage import TRAINS, Repeat, Stage, Step, steps_of


class Recipe(Settings):
    """A whole run.

    Attributes:
        version: Of the recipe format.
        model: A hub id, a checkpoint folder, a .gguf file, or `demo:NAME`.
        output: The folder to write; None keeps the result in memory.
        seed: Of everything that draws.
        dtype: None keeps the checkpoint's; a GGUF becomes float32.
        device: Where blocks are computed: `auto`, `cpu`, `cuda`, `mps`.
        trust_remote_code: Whether code from the checkpoint may run.
        overwrite: Whether an existing output may be replaced.
        stream: Whether blocks are read from the files when their turn comes and written when they are done; None does
            so if the checkpoint is larger than half of the free memory.
        calibration: Where statistics come from; not read if no stage needs any.
        stages: What to do, in order.
        search: A search for how much goes where, under the target of the one stage, which prunes; None does as it is
            told.
        evaluate: What quality is measured on; None skips the evaluation.
    """

    version: Literal[1] = 1
    model: str
    output: str | None = None
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    trust_remote_code: bool = False
    overwrite: bool = False
    stream: bool | None = None
    calibration: Calibration = Calibration()
    stages: tuple[Stage, ...]
    search: Search | None = None
    evaluate: Evaluate | None = Evaluate()

    @field_validator("stages")
    @classmethod
    def _some_stage(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        if not value:
            raise ValueError("a recipe needs at least one stage")
        return value

    @property
    def steps(self) -> tuple[Step, ...]:
        """The stages in the order in which they are carried out, those of a `repeat` round after round."""
        return steps_of(self.stages)

    @property
    def prunes(self) -> tuple[Prune, ...]:
        """The settings of the stages that prune, as written."""
        return tuple(step.settings for step in self.steps if isinstance(step.settings, Prune))

    @model_validator(mode="after")
    def _images_everywhere(self) -> Recipe:
        if self.calibration.images is None:
            if self.evaluate is not None and self.evaluate.images is not None:
                raise UsageError("evaluate: images go with calibration images: give --images FOLDER, too.")
        elif self.evaluate is not None:
            refuse(self.evaluate, "evaluate", ("text", "windows", "length"))
        return self

    @model_validator(mode="after")
    def _quantized_last(self) -> Recipe:
        for stage, after in pairwise(self.stages):
            if stage.quantize is not None:
                raise UsageError(
                    f"quantize comes last: {after.kind} after it would move weights off the grid. Put quantize "
                    "behind it."
                )
        if self.stages[-1].quantize is not None and (self.calibration.images is not None or self.stream):
            raise UsageError("quantize is for language models in memory: leave images and stream out.")
        return self

    @model_validator(mode="after")
    def _factorized_late(self) -> Recipe:
        places = [number for number, stage in enumerate(self.stages) if stage.factorize is not None]
        for after in self.stages[places[0] + 1 :] if places else ():
            if after.finetune is None and after.distill is None and after.quantize is None:
                raise UsageError(
                    f"factorize: {after.kind} can't follow it, as it works on whole layers, and factors are none. Put "
                    "it before, or follow with finetune, distill or quantize, which take factors, too."
                )
            if after.quantize is not None and after.quantize.joint:
                raise UsageError(
                    "quantize: sparsity and pattern are for whole layers, and what is factorized has few or none; "
                    "leave them out."
                )
        if places and (self.calibration.images is not None or self.stream):
            raise UsageError("factorize is for language models in memory: leave images and stream out.")
        return self

    @model_validator(mode="after")
    def _searched(self) -> Recipe:
        if self.search is None:
            return self
        if len(self.stages) != 1 or self.stages[0].prune is None:
            raise UsageError(
                "search: the recipe has one stage, which prunes; what is found can be recovered afterwards."
            )
        prune = self.stages[0].prune
        if self.calibration.images is not None:
            return self  # a traced network's search knows its own limits
        targets = {"weight": {"sparsity"}, "neuron": {"params", "macs"}}.get(prune.unit, set())
        if not targets & changed(prune):
            raise UsageError(
                "search: it is for single weights with --sparsity, or for --unit neuron (and halves of layers) with "
                "--params or --macs."
            )
        if prune.allocation != "uniform":
            raise UsageError("search: it finds the allocation itself; leave --allocation out.")
        idle = {"level_solver"} if prune.structured else {"halves", "weigh", "limit", "front"}
        fixed = (
            {"score", "include", "exclude", "protect_first", "protect_last", "repair", "gradient"}
            if prune.structured
            else {"per"}
        )
        for settings, names in ((self.search, idle), (prune, fixed)):
            if misplaced := names & changed(settings):
                named = sorted("no_halves" if name == "halves" else name for name in misplaced)
                raise UsageError(f"search: {listed(named)} says nothing with --unit {prune.unit}.")
        return self

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Reads a recipe from a YAML file.

        Raises:
            UsageError: The file is missing, isn't YAML, or isn't a recipe.
        """
        data = read_data(path)
        try:
            return cls.build(data)
        except SecateurError as error:
            raise UsageError(f"recipe {path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON and YAML, defaults written out."""
        return self.model_dump(mode="json")


def read_data(path: str | Path) -> dict[str, Any]:
    """Returns what a YAML file says, which may be a recipe.

    Raises:
        UsageError: The file is missing, isn't YAML, or isn't a mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} can't be read: {error}.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"recipe {path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(data, dict):
        raise UsageError(f"recipe {path} must be a mapping with 'model' and 'stages'.")
    return data


__all__ = [
    "INNER_UNITS",
    "TRACED_UNITS",
    "TRAINS",
    "Calibration",
    "Distill",
    "Evaluate",
    "Factorize",
    "Finetune",
    "Lora",
    "Prune",
    "Quantize",
    "Recipe",
    "Reconstruct",
    "Repeat",
    "Search",
    "Stage",
    "Step",
    "Training",
    "bytes_of",
    "read_data",
]
