"""Recipes: what a user asks for, as data. The one place where defaults live."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from secateur.allocation.amounts import Pattern, Threshold
from secateur.calibration.statistics import GRADIENTS
from secateur.errors import SecateurError, UsageError
from secateur.scores import score_named
from secateur.solvers import AUTO, AUTO_MASKED, chain_named

_SIZE = re.compile(r"([\d.]+)\s*(k|m|g|t|)(i?)b?", re.IGNORECASE)


def bytes_of(text: str) -> int:
    """Returns the bytes that `500MB`, `2GiB` or `1000000` stand for.

    Raises:
        UsageError: It isn't a size.
    """
    found = _SIZE.fullmatch(text.strip())
    try:
        number = float(found[1]) if found else -1.0
    except ValueError:
        number = -1.0
    if found is None or number < 0:
        raise UsageError(f"'{text}' is not a size; write 500MB, 2GB or a number of bytes.")
    return int(number * (1024 if found[3] else 1000) ** " kmgt".index(found[2].lower() or " "))


class _Settings(BaseModel):
    """Unknown fields are errors; an option that nobody reads would be worse."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Calibration(_Settings):
    """Where the statistics come from.

    Attributes:
        data: `self` (the model writes its own text), a file, a hub data set, or a folder of .wav files.
        samples: Windows to calibrate on.
        length: Tokens per window; None takes 1024, or the model's positions if they are fewer.
        compute: Precision of the forward passes: `auto`, `float32` or `bfloat16`.
        activation_memory: What the activations may take of the memory, such as `2GB`; more are kept in files.
    """

    data: str = "self"
    samples: int = Field(default=32, ge=1)
    length: int | None = Field(default=None, ge=2)
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    activation_memory: str = "2GB"

    @field_validator("activation_memory", mode="before")
    @classmethod
    def _size(cls, value: object) -> str:
        bytes_of(str(value))
        return str(value)

    @property
    def activation_bytes(self) -> int:
        """`activation_memory` in bytes."""
        return bytes_of(self.activation_memory)


class Prune(_Settings):
    """One pruning stage. Exactly one of `sparsity`, `threshold` and `pattern` is given.

    Attributes:
        unit: What is removed; `weight` sets single weights to zero.
        sparsity: Share of zeros to end with, between 0 and 1.
        threshold: Everything that scores below it goes: a number, `p90`, `mean-1std`.
        pattern: `N:M` keeps N of every M consecutive inputs.
        score: Importance; None lets the solver choose by its own.
        solver: One solver, or several that follow each other: `sparsegpt+refit`; None is `auto` without a score,
            `none` with one. `auto` is written out as the chain that it stands for.
        gradient: What gradient scores differentiate: `block`, each block's own reconstruction loss, or `loss`, the
            next-token loss through the whole model.
        allocation: `uniform` (every layer the same share), `global` (the model's lowest scores), `owl`, `alpha` or
            `error` (see secateur.allocation).
        reconstruct: Whether each block's kept weights are tuned to give the dense block's outputs.
        reconstruct_passes: Passes over the activations at most.
        reconstruct_halves: Whether attention and MLP are tuned one after the other instead of together.
        per: `layer` or `output`: what a weight's score is compared with.
        min_per_output: Weights that every output keeps; if positive, every input keeps one too (with a pattern
            inputs that die are only counted).
        include, exclude: Globs on layer names; the embedding and the head only if named.
        damping: Added to the Gram matrix's diagonal, relative to its mean; None is each solver's own (0.01, admm 0.1).
        block_size: Columns that sparsegpt handles at once.
    """

    unit: Literal["weight"] = "weight"
    sparsity: float | None = None
    threshold: str | None = None
    pattern: str | None = None
    score: str | None = None
    solver: str = ""
    gradient: Literal["block", "loss"] = "block"
    allocation: Literal["uniform", "global", "owl", "alpha", "error"] = "uniform"
    reconstruct: bool = False
    reconstruct_passes: int = Field(default=6, ge=1)
    reconstruct_halves: bool = False
    per: Literal["layer", "output"] = "layer"
    min_per_output: int = Field(default=0, ge=0)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    damping: float | None = Field(default=None, gt=0)
    block_size: int = Field(default=128, ge=1)

    @field_validator("threshold", mode="before")
    @classmethod
    def _number_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int | float) else value

    @field_validator("pattern", mode="before")
    @classmethod
    def _clock_as_pattern(cls, value: object) -> object:
        """YAML 1.1 reads an unquoted 2:4 as 124 minutes."""
        if isinstance(value, int):
            raise ValueError("write the pattern in quotes: '2:4' (YAML reads 2:4 as a time of day)")
        return value

    @model_validator(mode="before")
    @classmethod
    def _default_solver(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("solver"):
            data = {**data, "solver": "none" if data.get("score") else "auto"}
        if isinstance(data, dict) and data["solver"] == "auto":
            return {**data, "solver": AUTO_MASKED if data.get("score") else AUTO}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Prune:
        given = [n for n in ("sparsity", "threshold", "pattern") if getattr(self, n) is not None]
        if len(given) != 1:
            have = " and ".join("--" + name for name in given) or "none of them"
            raise UsageError(f"give exactly one of --sparsity, --threshold and --pattern; got {have}.")
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise UsageError(f"--sparsity must lie between 0 and 1 (both excluded) but got {self.sparsity:g}.")
        if self.threshold is not None:
            Threshold.parse(self.threshold)
        if self.pattern is not None:
            Pattern.parse(self.pattern)
        if self.allocation != "uniform" and self.sparsity is None:
            raise UsageError(
                f"--allocation {self.allocation} shares out a --sparsity; "
                f"a --{given[0]} already says what each layer gives."
            )
        if self.per == "output" and self.sparsity is None:
            raise UsageError(f"--per output needs --sparsity; a --{given[0]} doesn't compare weights with each other.")
        first = chain_named(self.solver)[0]
        if self.gradient == "loss" and not (self.score and score_named(self.score).needs & GRADIENTS):
            raise UsageError("--gradient loss is for gradient scores: add --score taylor, fisher or snip.")
        if not self.reconstruct and {"reconstruct_passes", "reconstruct_halves"} & self._changed():
            raise UsageError("--reconstruct-passes and --reconstruct-halves go with --reconstruct.")
        if self.score is not None:
            score_named(self.score)
        elif not first.chooses:
            raise UsageError(f"solver '{first.name}' needs a score: add --score wanda, for instance.")
        return self

    def _changed(self) -> set[str]:
        """The fields that differ from their defaults."""
        return {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}


class Evaluate(_Settings):
    """What quality is measured on.

    Attributes:
        text: A file (text, .jsonl), hub data set or folder of .wav files; None takes what calibration held back.
        windows: Windows to evaluate at most.
        length: Tokens per window; None takes the calibration's.
        speed: Whether to measure prefill and decode speed.
    """

    text: str | None = None
    windows: int = Field(default=20, ge=1)
    length: int | None = Field(default=None, ge=2)
    speed: bool = True


class Stage(_Settings):
    """One stage: a mapping with one key, the stage's kind."""

    prune: Prune


class Recipe(_Settings):
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
    evaluate: Evaluate | None = Evaluate()

    @field_validator("stages")
    @classmethod
    def _some_stage(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        if not value:
            raise ValueError("a recipe needs at least one stage")
        return value

    @classmethod
    def build(cls, data: object) -> Recipe:
        """Makes a recipe from plain data.

        Raises:
            UsageError: A field is unknown, missing or out of range; the message names it.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise UsageError(_explain(error)) from error

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Reads a recipe from a YAML file.

        Raises:
            UsageError: The file is missing, isn't YAML, or isn't a recipe.
        """
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"recipe {path} can't be read: {error}.") from error
        except yaml.YAMLError as error:
            raise UsageError(f"recipe {path} is not YAML: {' '.join(str(error).split())}.") from error
        if not isinstance(data, dict):
            raise UsageError(f"recipe {path} must be a mapping with 'model' and 'stages'.")
        try:
            return cls.build(data)
        except SecateurError as error:
            raise UsageError(f"recipe {path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON and YAML, defaults written out."""
        return self.model_dump(mode="json")


def _explain(error: ValidationError) -> str:
    """Puts pydantic's findings into one line that names the fields."""
    parts = []
    for found in error.errors():
        where = ".".join(str(part) for part in found["loc"]) or "the recipe"
        if found["type"] == "extra_forbidden":
            parts.append(f"{where} is not a known field")
        elif found["type"] == "missing":
            parts.append(f"{where} is missing")
        else:
            parts.append(f"{where}: {found['msg'].removeprefix('Value error, ')}, but got {found['input']!r}")
    return "; ".join(parts) + "."
