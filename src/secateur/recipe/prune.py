"""The stage that prunes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from secateur.allocation.amounts import Pattern, Threshold
from secateur.calibration.statistics import GRADIENTS
from secateur.errors import UsageError, did_you_mean
from secateur.recipe.base import Settings, bytes_of, changed, listed
from secateur.scores import score_named
from secateur.solvers import AUTO, AUTO_MASKED, chain_named

WEIGHT_TARGETS = ("sparsity", "threshold", "pattern", "amounts")
STRUCTURED_TARGETS = ("params", "macs", "memory", "latency", "sparsity", "remove", "threshold", "amounts")
TARGETS = (*WEIGHT_TARGETS, "params", "macs", "memory", "latency", "remove")
INNER_UNITS = {"neuron", "head", "query-head", "filter", "hidden"}  # read by linear or convolutional layers
TRACED_UNITS = ("filter", "neuron", "hidden", "head")  # of networks that aren't described by a family
DEFAULT_SCORES = {
    "neuron": "wanda",
    "filter": "wanda",
    "hidden": "wanda",
    "head": "wanda",
    "query-head": "wanda",
    "channel": "wanda",
    "layer": "block-influence",
    "attention": "block-influence",
    "mlp": "block-influence",
    "expert": "reap",
    "token": "frequency",
}
STRUCTURED_ONLY = {"repair", "combine", "round_to", "min_units", "uniform", "pad", "protect_first", "protect_last"}
DEPTH_UNITS = {"layer", "attention", "mlp"}
UNIT_OPTIONS = {  # which units an option says something about
    "include": INNER_UNITS,
    "exclude": INNER_UNITS,
    "protect_first": INNER_UNITS | DEPTH_UNITS,
    "protect_last": INNER_UNITS | DEPTH_UNITS,
    "round_to": INNER_UNITS | {"channel", "expert"},
    "pad": INNER_UNITS,
    "damping": INNER_UNITS | {"channel"},
}
WEIGHTS_ONLY = {"per", "min_per_output", "block_size", "pattern"}


class Prune(Settings):
    """One pruning stage. Exactly one target is given: `sparsity`, `threshold` or `amounts`, or for weights `pattern`,
    or for other units `params`, `macs`, `memory`, `latency` or `remove`.

    Attributes:
        unit: What is removed. `weight` sets single weights to zero; `neuron`, `head`, `query-head`, `channel`, `layer`,
            `attention`, `mlp`, `expert` and `token` go for good, and of networks other than language models `filter`,
            `neuron`, `head` and `hidden` (of recurrent layers); `neuron,head` share one budget.
        sparsity: Share of zeros to end with, or of units to remove, between 0 and 1.
        threshold: Everything that scores below it goes: a number, `p90`, `mean-1std`.
        pattern: `N:M` keeps N of every M consecutive inputs.
        params, macs: Share of the parameters, or multiply-accumulates, of the run's first model that may be left.
        memory: What the weights may take: `400MB`.
        latency: Share of the time that this machine takes to read one window that may be left.
        remove: How many units go: layers, halves, channels and tokens of the model, neurons, heads and experts of every
            layer.
        amounts: How much goes from each place, by its name: of a layer how many weights are zero in the end, of a group
            how many units go, and of layers and halves a 1 for each block that loses its own. What isn't named stays.
            A search writes them.
        repair: Whether what reads removed units is fitted anew by least squares, biases included.
        combine: How a score over a unit's coupled tensors becomes one: `sum`, `mean` or `max`.
        round_to: Numbers of units left are multiples of it.
        min_units: Units that every group keeps at least.
        uniform: Whether the result has to be a plain checkpoint: the same width everywhere.
        pad: Whether widths that differ are made up to the largest by zeros, which gives a plain checkpoint, too.
        protect_first, protect_last: Blocks at the ends that keep everything.
        score: Importance; None lets the solver choose by its own. For units also `module:function` or
            `file.py:function`, a function of a group and its statistics.
        solver: For units `obs` (rounds of optimal brain surgeon), the default for neurons and heads without a score or
            a threshold; `greedy` (scored again after each removal) for layers and their halves; or `none`. For weights
            one solver, or several that follow each other: `sparsegpt+refit`; None is `auto` without a score, `none`
            with one. `auto` is written out as the chain that it stands for.
        gradient: What gradient scores differentiate: `block`, each block's own reconstruction loss, or `loss`, the
            next-token loss through the whole model. With the solver obs of units, and with `--allocation error` of
            weights, `loss` weighs errors by what they add to that loss, so that those of all layers can be compared.
        allocation: `uniform` (every layer the same share), `global` (the model's lowest scores), `error` (by measured
            error), for weights `owl` and `alpha` (see secateur.allocation), for units `ramp` (later layers give more).
        reconstruct: Whether each block's kept weights are tuned to give the dense block's outputs.
        reconstruct_passes: Passes over the activations at most.
        reconstruct_halves: Whether attention and MLP are tuned one after the other instead of together.
        per: `layer` or `output`: what a weight's score is compared with.
        min_per_output: Weights that every output keeps; if positive, every input keeps one too (with a pattern
            inputs that die are only counted).
        include, exclude: Globs on layer names; the embedding and the head only if named. Of units, globs on the names
            of groups, or of layers whose outputs are their units.
        damping: Added to the Gram matrix's diagonal, relative to its mean; None is each solver's own (0.01, admm 0.1).
        block_size: Columns that sparsegpt handles at once.
    """

    unit: str = "weight"
    sparsity: float | None = None
    threshold: str | None = None
    pattern: str | None = None
    params: float | None = None
    macs: float | None = None
    memory: str | None = None
    latency: float | None = None
    remove: int | None = Field(default=None, ge=1)
    amounts: dict[str, Annotated[int, Field(ge=0)]] | None = None
    repair: bool = True
    combine: Literal["sum", "mean", "max"] = "sum"
    round_to: int = Field(default=1, ge=1)
    min_units: int = Field(default=1, ge=1)
    uniform: bool = False
    pad: bool = False
    protect_first: int = Field(default=0, ge=0)
    protect_last: int = Field(default=0, ge=0)
    score: str | None = None
    solver: str = ""
    gradient: Literal["block", "loss"] = "block"
    allocation: Literal["uniform", "global", "owl", "alpha", "error", "ramp"] = "uniform"
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

    @field_validator("unit")
    @classmethod
    def _known_units(cls, value: str) -> str:
        known = ["weight", *DEFAULT_SCORES]
        unknown = [kind for kind in value.split(",") if kind not in known]
        if unknown or ("weight" in value.split(",") and value != "weight"):
            name = unknown[0] if unknown else value
            raise ValueError(f"unknown unit '{name}'.{did_you_mean(name, known)}")
        return value

    @field_validator("memory", mode="before")
    @classmethod
    def _size(cls, value: object) -> object:
        if value is not None:
            bytes_of(str(value))
        return None if value is None else str(value)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kinds = str(data.get("unit", "weight")).replace(" ", "").split(",")
        data = {**data, **({"unit": ",".join(kinds)} if "unit" in data else {})}
        if kinds == ["weight"]:
            if not data.get("solver"):
                data["solver"] = "none" if data.get("score") else "auto"
            if data["solver"] == "auto":
                data["solver"] = AUTO_MASKED if data.get("score") else AUTO
            return data
        inner = set(kinds) <= INNER_UNITS
        in_rounds = inner and not data.get("score") and data.get("threshold") is None
        if data.get("solver") in (None, "", "auto"):
            data["solver"] = "obs" if in_rounds else "none"
        if not data.get("score") and data["solver"] == "greedy":
            data["score"] = "loo-kl"
        if not data.get("score") and data["solver"] == "none":
            data["score"] = "wanda" if inner else DEFAULT_SCORES.get(kinds[0])
        if kinds == ["token"] and not any(data.get(name) is not None for name in TARGETS):
            data["threshold"] = "1"  # what the calibration text doesn't use
        return data

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of unit."""
        return tuple(self.unit.split(","))

    @property
    def structured(self) -> bool:
        """Whether units go for good, instead of single weights being set to zero."""
        return self.unit != "weight"

    @model_validator(mode="after")
    def _consistent(self) -> Prune:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        wanted = STRUCTURED_TARGETS if self.structured else WEIGHT_TARGETS
        flags = listed([name for name in wanted if name != "amounts"])  # which recipes have alone
        if len(given) != 1:
            have = " and ".join("--" + name for name in given) or "none of them"
            raise UsageError(f"give exactly one of {flags}; got {have}.")
        if given[0] not in wanted:
            raise UsageError(f"--{given[0]} isn't a target for --unit {self.unit}; give one of {flags}.")
        for name in ("sparsity", "params", "macs", "latency"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise UsageError(f"--{name} must lie between 0 and 1 (both excluded) but got {share:g}.")
        if self.threshold is not None:
            Threshold.parse(self.threshold)
        if self.structured:
            self._consistent_units()
        else:
            self._consistent_weights(given[0])
        if not self.reconstruct and {"reconstruct_passes", "reconstruct_halves"} & changed(self):
            raise UsageError("--reconstruct-passes and --reconstruct-halves go with --reconstruct.")
        return self

    def _consistent_weights(self, target: str) -> None:
        if self.pattern is not None:
            Pattern.parse(self.pattern)
        if misplaced := STRUCTURED_ONLY & changed(self):
            raise UsageError(f"{listed(sorted(misplaced))} goes with units that are removed, not with --unit weight.")
        if self.allocation == "ramp":
            raise UsageError("--allocation ramp is for units; weights take uniform, global, owl, alpha or error.")
        if self.allocation != "uniform" and self.sparsity is None:
            raise UsageError(
                f"--allocation {self.allocation} shares out a --sparsity; "
                f"a --{target} already says what each layer gives."
            )
        if self.per == "output" and self.sparsity is None:
            raise UsageError(f"--per output needs --sparsity; a --{target} doesn't compare weights with each other.")
        first = chain_named(self.solver)[0]
        by_gradients = self.score is not None and bool(score_named(self.score).needs & GRADIENTS)
        if self.gradient == "loss" and not by_gradients and self.allocation != "error":
            raise UsageError(
                "--gradient loss is for gradient scores and --allocation error: add --score taylor, fisher or snip."
            )
        if self.score is None and not first.chooses:
            raise UsageError(f"solver '{first.name}' needs a score: add --score wanda, for instance.")

    def _consistent_units(self) -> None:
        if len(self.kinds) > 1 and not set(self.kinds) <= INNER_UNITS:
            raise UsageError(
                f"--unit {self.unit}: only neurons and heads share a budget; remove the others in a stage of their own "
                "(a recipe has several)."
            )
        if len(set(self.kinds)) < len(self.kinds) or {"head", "query-head"} <= set(self.kinds):
            raise UsageError(f"--unit {self.unit} names heads or another kind twice.")
        if self.solver not in ("obs", "none", "greedy"):
            raise UsageError(f"units are removed by the solvers obs, greedy and none, not '{self.solver}'.")
        chosen = self.threshold is not None or self.amounts is not None
        if self.solver == "greedy" and (not set(self.kinds) <= DEPTH_UNITS or chosen):
            raise UsageError(
                "--solver greedy removes layers, or halves of them, one by one until a number or a budget is met."
            )
        if self.solver == "obs" and not set(self.kinds) <= INNER_UNITS:
            raise UsageError(f"--solver obs removes neurons and heads, not {self.unit}; leave it out.")
        if self.solver == "obs" and self.score not in (None, "obs"):
            raise UsageError("--solver obs goes by its own score; leave --score out, or take --solver none.")
        if self.solver == "obs" and self.threshold is not None:
            raise UsageError("--solver obs removes a number of units in rounds; a --threshold needs a --score.")
        if self.amounts is not None and not set(self.kinds) <= INNER_UNITS | DEPTH_UNITS:
            raise UsageError(f"--amounts is of weights, neurons, heads, layers and halves of them, not of {self.unit}.")
        self._consistent_options()
        self._consistent_widths()

    def _consistent_options(self) -> None:
        """Raises UsageError if an option says nothing about the stage's units."""
        if misplaced := WEIGHTS_ONLY & changed(self):
            raise UsageError(f"{listed(sorted(misplaced))} goes with --unit weight only.")
        for option, kinds in UNIT_OPTIONS.items():
            if option in changed(self) and not set(self.kinds) <= kinds:
                known = ", ".join(sorted(kinds))
                raise UsageError(f"{listed([option])} says nothing about --unit {self.unit}, only about {known}.")
        damped = self.repair or self.solver == "obs" or self.allocation == "error"
        if self.damping is not None and not damped:
            raise UsageError("--damping is for fits and for the solver obs; without them nothing is damped.")

    def _consistent_widths(self) -> None:
        inner = set(self.kinds) <= INNER_UNITS
        if self.allocation in ("owl", "alpha"):
            raise UsageError(
                f"--allocation {self.allocation} is for weights; units take uniform, global, error or ramp."
            )
        alone = (self.threshold, self.remove, self.amounts)
        if self.allocation != "uniform" and (not inner or any(target is not None for target in alone)):
            raise UsageError(
                f"--allocation {self.allocation} shares a budget out over the widths of neurons and heads."
            )
        if self.uniform and self.pad:
            raise UsageError("--uniform and --pad both make plain checkpoints; give one of them.")
        if self.reconstruct and not inner:
            raise UsageError("--reconstruct tunes blocks whose neurons or heads are removed.")
