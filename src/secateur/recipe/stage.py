"""A stage of a recipe, and the order in which stages are carried out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from secateur.errors import UsageError, did_you_mean
from secateur.recipe.base import Settings
from secateur.recipe.factorize import Factorize
from secateur.recipe.prune import Prune
from secateur.recipe.quantize import Quantize
from secateur.recipe.recovery import Distill, Finetune, Lora, Reconstruct, Training

TRAINS = ("finetune", "lora", "distill")  # kinds of stages that train on data of their own
APPROACHED = ("sparsity", "params", "macs", "memory", "remove")  # targets that rounds can go towards


class Stage(Settings):
    """One stage: a mapping with one key, the stage's kind."""

    prune: Prune | None = None
    finetune: Finetune | None = None
    lora: Lora | None = None
    distill: Distill | None = None
    reconstruct: Reconstruct | None = None
    quantize: Quantize | None = None
    factorize: Factorize | None = None
    repeat: Repeat | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_kind(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise UsageError(f"a stage is a mapping such as 'prune: {{sparsity: 0.5}}', but got {data!r}.")
        if isinstance(data.get("repeat"), int):  # `repeat: 4` with its stages beside it
            beside = {name: data[name] for name in ("stages", "rewind") if name in data}
            rest = {name: value for name, value in data.items() if name not in beside}
            data = {**rest, "repeat": {"times": data["repeat"], **beside}}
        for name in data:
            if name not in cls.model_fields:
                raise UsageError(f"unknown stage '{name}'.{did_you_mean(str(name), cls.model_fields)}")
        if len(data) != 1:
            raise UsageError(f"a stage has one kind, but got {' and '.join(data) or 'none'}; put '- ' before each.")
        ((kind, settings),) = data.items()
        return {kind: {} if settings is None else settings}  # `finetune:` alone stands for all defaults

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {kind: settings for kind, settings in handler(self).items() if settings is not None}

    @property
    def kind(self) -> str:
        """Which kind it is: `prune`, `finetune` ..."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def settings(self) -> Settings:
        """What is said of it."""
        found: Settings = getattr(self, self.kind)
        return found

    @property
    def trains(self) -> bool:
        """Whether it trains weights on data of its own."""
        return isinstance(self.settings, Training)


class Repeat(Settings):
    """Stages that are carried out several times: those that prune come nearer to their target each time.

    What is left falls by the same factor in every round (Han et al. 2015; Frankle and Carbin 2019, section 1). Of units
    `sparsity` and `remove` are what all rounds take together.

    Attributes:
        times: How often.
        stages: What to do each time, at least one that prunes.
        rewind: Whether the weights that are left go back to what they were before the first round, before each first
            stage that trains them (the lottery ticket of Frankle and Carbin 2019, arXiv 1803.03635).
    """

    times: int = Field(ge=2)
    stages: tuple[Stage, ...]
    rewind: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Repeat:
        prunes = [stage.prune for stage in self.stages if stage.prune is not None]
        if any(stage.repeat is not None for stage in self.stages):
            raise UsageError("repeat: a stage inside can't be a repeat itself.")
        if any(stage.quantize is not None for stage in self.stages):
            raise UsageError("repeat: what is quantized can't be pruned or trained further; put quantize behind it.")
        if any(stage.factorize is not None for stage in self.stages):
            raise UsageError("repeat: what is factorized can't be pruned further; put factorize behind it.")
        if not prunes:
            raise UsageError("repeat: none of its stages prunes, so nothing would be approached; train for longer.")
        for prune in prunes:
            if all(getattr(prune, name) is None for name in APPROACHED):
                raise UsageError(f"repeat: rounds go towards one of {', '.join(APPROACHED)}; give prune one of these.")
            if prune.remove is not None and prune.remove < self.times:
                raise UsageError(f"repeat: {prune.remove} units can't be removed in {self.times} rounds; repeat less.")
        if self.rewind and any(prune.structured for prune in prunes):
            raise UsageError("repeat: rewind goes with --unit weight; of units that are removed no values are left.")
        if self.rewind and not any(stage.trains for stage in self.stages):
            raise UsageError("repeat: rewind is for what trains after it; add finetune or distill, or leave it out.")
        return self


@dataclass(frozen=True)
class Step:
    """One stage at its turn.

    Attributes:
        stage: The stage as it is written.
        round, rounds: Which round of how many it is in.
        begins: Whether a repeat with rewind begins with it: the weights before it are kept.
        rewinds: Whether weights go back to those before it.
    """

    stage: Stage
    round: int = 1
    rounds: int = 1
    begins: bool = False
    rewinds: bool = False

    @property
    def settings(self) -> Settings:
        """What the stage says."""
        return self.stage.settings


def steps_of(stages: Sequence[Stage]) -> tuple[Step, ...]:
    """Returns the stages in the order in which they are carried out."""
    steps: list[Step] = []
    for stage in stages:
        if stage.repeat is None:
            steps.append(Step(stage))
            continue
        for number in range(stage.repeat.times):
            waiting = False
            for place, one in enumerate(stage.repeat.stages):
                begins = stage.repeat.rewind and number == place == 0
                steps.append(Step(one, number + 1, stage.repeat.times, begins, waiting and one.trains))
                waiting = (waiting and not one.trains) or (stage.repeat.rewind and one.prune is not None)
    return tuple(steps)


Stage.model_rebuild()
