"""Prunes a model while it trains, in any loop: `pruner.step()` after `optimizer.step()`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from secateur.errors import NothingPrunedError, ScoreError, UsageError
from secateur.files import save_text
from secateur.layer_choice import chosen_groups
from secateur.mask import FILE as MASK_FILE
from secateur.mask import Mask
from secateur.network.graph.cutting import fields
from secateur.network.graph.network import GraphNetwork
from secateur.network.graph.saving import save_shapes, save_uncut
from secateur.network.pretrained import plain_kind, pretrained
from secateur.network.saving import RESULT_FILE, check_output, complete_folder, save_model, save_network
from secateur.outcome import versions
from secateur.schedules import Schedule, WhenRecovered
from secateur.training.cutting import bare_optimizer, become, carry, check_cuttable, check_optimizer, cut_states
from secateur.training.options import (
    check_allocation,
    check_final,
    check_regularizer,
    check_room,
    check_share,
    check_threshold,
    own_name,
    plain,
    schedule_of,
)
from secateur.training.regularization import Regularizer
from secateur.training.sharded import is_sharded
from secateur.training.trained import check_units, described, trained_groups, unwrapped, weight_layers
from secateur.training.unit_masks import UnitMasks
from secateur.training.weight_masks import WeightMasks

VERSION = 2


class TrainingPruner:
    """Prunes a model on a schedule while it trains.

    Pruned weights and units are zero after every `step()`, whatever momentum or weight decay did to them. Units are
    removed for good by `finish()`, or with `cut="during"` at every pruning.

    Attributes:
        model: The model, without wrappers.
        schedule: The schedule.
        steps: Steps of the optimizer so far.

    Example:
        >>> schedule = Cubic(final=0.8, begin=100, end=2000, every=50)
        >>> pruner = secateur.TrainingPruner(model, schedule, optimizer=optimizer)
        >>> for batch in batches:
        ...     loss(model, batch).backward()
        ...     optimizer.step()
        ...     pruner.step()
        ...     optimizer.zero_grad()
        >>> model = pruner.finish()
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule | None = None,
        *,
        unit: str = "weight",
        score: str | Callable[..., Tensor] = "l1",
        threshold: float | str | None = None,
        pattern: str | None = None,
        allocation: str | Mapping[str, float] = "uniform",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        regrow: bool = False,
        cut: Literal["end", "during"] = "end",
        min_units: int = 1,
        round_to: int = 1,
        optimizer: Any = None,
        regularizer: Regularizer | None = None,
        example_inputs: Any = None,
        leaf_modules: Sequence[type[nn.Module] | str] = (),
        seed: int = 0,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Finds what is pruned. A schedule that begins at step 0 prunes at once, unless `state` is given.

        Args:
            model: The model that is trained; it may be compiled or wrapped by DistributedDataParallel or FSDP2
                (`fully_shard`).
            schedule: How much is pruned after which step. A pattern needs none: it is imposed at once.
            unit: `weight`, or units to remove: `neuron`, `head`, `query-head`, `filter`, `hidden`; several with commas.
            score: By name. Of weights: `l1`, `taylor`, `fisher`, `snip`, `random` ..., or `movement`, the sum over all
                steps of minus gradient times weight (Sanh et al. 2020, arXiv 2005.07683; before the first step, |w|).
                Of units: data-free and gradient scores, or a function of your own, (group, statistics) -> (units,), by
                its import path or itself.
            threshold: What scores below it goes, instead of the schedule's share, whatever its final one. A number
                grows with the schedule to this; `p90` and `mean-1std` are of all scores each time.
            pattern: N:M of single weights; the schedule's final sparsity is then 1 - N/M.
            allocation: `uniform`, `global` (the lowest scores wherever they are; of units relative to their group's
                mean), or each layer's or group's share at the end.
            include, exclude: Globs on the names of layers; of units, on the names of groups, or of layers whose
                outputs are their units.
            regrow: Whether pruned weights may come back: by the largest gradients (RigL, Evci et al. 2020, arXiv
                1911.11134), or, with the score `movement`, when their score has risen.
            cut: When units are removed: at the `end`, or `during` training.
            min_units: Every group keeps so many units at least; a traced network that is cut while it trains keeps two.
            round_to: Groups keep multiples of it.
            optimizer: The optimizer. `cut="during"` needs it; otherwise it is checked to have the model's parameters.
            regularizer: Drives weights or units to zero before they go; `regularize()` applies it.
            example_inputs: What a network other than a language model takes: it is traced to find its units.
            leaf_modules: Modules that tracing doesn't look into.
            seed: Of scores that draw.
            state: What the `state_dict` of a run that is gone on with returned; the model is the dense one, or has
                that run's weights already.

        Raises:
            UsageError: These don't go together, or don't fit the model, or the state is of another pruner.
        """
        self.model = unwrapped(model)
        self.units = tuple(part.strip() for part in unit.split(","))
        check_units(self.units)
        of_weights = self.units == ("weight",)
        self.schedule = schedule_of(schedule, pattern, regrow)
        check_allocation(allocation)
        if cut not in ("end", "during"):
            raise UsageError(f"cut='{cut}': units are removed at the 'end' or 'during' training.")
        of_units = {"cut": cut == "during", "min_units": min_units != 1, "round_to": round_to != 1}
        of_single = {"pattern": pattern is not None, "regrow": regrow}
        if wrong := [name for name, given in (of_units if of_weights else of_single).items() if given]:
            raise UsageError(f"{wrong[0]} says nothing about unit='{unit}'.")
        check_final(self.schedule, of_weights and threshold is None and isinstance(allocation, str))
        if threshold is not None:
            decides = {**of_single, "allocation": allocation != "uniform"}
            check_threshold(threshold, [name for name, given in decides.items() if given])
        self.cut_during = cut == "during"
        self.optimizer = None if optimizer is None else bare_optimizer(optimizer)
        self._accumulation = getattr(optimizer, "gradient_state", None)  # of Accelerate's wrapper
        self.steps = 0
        self._inputs, self._leaves = example_inputs, tuple(leaf_modules)
        self._options: dict[str, Any] = {
            "score": score,
            "threshold": None if threshold is None else str(threshold),
            "allocation": allocation,
            "seed": seed,
        }
        if of_weights:
            self._options |= {"pattern": pattern, "regrow": regrow}
        else:
            self._options |= {"min_units": min_units, "round_to": round_to}
        self._globs = tuple((some,) if isinstance(some, str) else tuple(some) for some in (include, exclude))
        self._removed: dict[str, Tensor] = {}
        self._small: nn.Module | None = None
        self.masks: WeightMasks | UnitMasks = self._find()
        self._fields = fields(self.model)  # of the dense model, as later cuts change them
        if self.cut_during:
            check_cuttable(model)
            if self.optimizer is None:
                raise UsageError("cut='during' cuts the optimizer's state along: give optimizer=.")
        if self.optimizer is not None:
            check_optimizer(self.optimizer, self._pruned_parameters())
        self.regularizer, self._regularized = regularizer, False
        if regularizer is not None:
            check_regularizer(regularizer)
            regularizer.check(self.masks, self.model, self.cut_during)
        if isinstance(self.masks, UnitMasks):
            check_room(self.masks, self.schedule, threshold is not None)
        if state is not None:
            self.load_state_dict(state)
        elif self.schedule.due(0):
            self._prune()

    def _find(self) -> WeightMasks | UnitMasks:
        if self.units == ("weight",):
            names = {id(parameter): name for name, parameter in self.model.named_parameters()}
            return WeightMasks(weight_layers(self.model, *self._globs), names, **self._options)
        network, groups = trained_groups(self.model, self.units, self._inputs, self._leaves, bool(self._removed))
        groups = chosen_groups(groups, *self._globs)
        removed = {name: int(gone.sum()) for name, gone in self._removed.items()}
        options = self._options
        if self.cut_during and isinstance(network, GraphNetwork):  # which doesn't find groups of one
            options = {**options, "min_units": max(2, options["min_units"])}
        return UnitMasks(network, groups, **options, removed=removed)

    def _pruned_parameters(self) -> dict[str, nn.Parameter]:
        if isinstance(self.masks, WeightMasks):
            return {one.name: one.parameter for one in self.masks.held}
        known = dict(self.model.named_parameters())
        return {name: known[name] for name, _ in self.masks.places()}

    @property
    def sparsity(self) -> float:
        """The share of weights or units that is pruned, masked or already cut.

        Under FSDP2 all processes have to ask for it.
        """
        if isinstance(self.masks, WeightMasks):
            return self.masks.pruned() / self.masks.weights
        return (self.masks.removed + self.masks.pruned()) / self.masks.units

    @property
    def _accumulates(self) -> bool:
        """Whether Accelerate's optimizer has only gathered gradients, as further portions of the step are to come."""
        return self._accumulation is not None and not self._accumulation.sync_gradients

    def regularize(self) -> None:
        """Adds the regularizer's gradient to the model's: call it after `backward()` (and after a `GradScaler`'s
        `unscale_`), before `optimizer.step()`.

        Raises:
            UsageError: There is no regularizer.
        """
        if self.regularizer is None:
            raise UsageError("this pruner has no regularizer; give regularizer= when you make it.")
        self._regularized = True
        if self._accumulates:
            return
        self.regularizer.add_gradients(self.masks, self.model, self.steps + 1, self.schedule)

    def step(self) -> None:
        """Counts a step of the optimizer, prunes if the schedule says so, and holds what is pruned at zero.

        Call it after `optimizer.step()` and before `zero_grad()`, once per step of the optimizer. Inside of
        Accelerate's `accumulate` it waits for a step's last portion, if `optimizer` is the prepared one.

        Raises:
            UsageError: The score needs gradients and there are none, the model's parameters were swapped, or the
                regularizer was never applied.
            ScoreError: A score came out as NaN, or says nothing.
        """
        if self._small is not None:
            raise UsageError("finish() has cut the units: go on training what it returned, without this pruner.")
        if self.regularizer is not None and not self._regularized:
            raise UsageError(
                "the regularizer was never applied: call pruner.regularize() between backward() and optimizer.step()."
            )
        if self._accumulates:
            return
        self._check_identity()
        self.steps += 1
        self.masks.watch()
        if self.schedule.due(self.steps):
            self._prune()
        else:
            self.masks.hold()

    def _prune(self) -> None:
        check_share(self.schedule, self.steps)
        if isinstance(self.schedule, WhenRecovered):
            self.schedule.took()
        added = self.masks.prune(self.steps, self.schedule)
        self.masks.hold()
        if self.schedule.final < 1 and self.sparsity == 1:
            raise ScoreError(f"nothing would be left after step {self.steps}: the threshold lies above all scores.")
        if self.cut_during and added:
            self._cut()

    def _check_identity(self) -> None:
        there = dict(self.model.named_parameters())
        for name, parameter in self._pruned_parameters().items():
            if there.get(name) is not parameter:
                raise UsageError(
                    f"{name} was swapped since the pruner was made (a model that was loaded with assign=True, or "
                    "wrapped anew?); make the pruner after that."
                )

    def _cut(self) -> None:
        """Cuts what is masked, in place, and the optimizer's state along."""
        masks = self.masks
        assert isinstance(masks, UnitMasks)
        stays = masks.places()
        known = dict(self.model.named_parameters())
        states = {} if self.optimizer is None else cut_states(self.optimizer, known, stays)
        for one in masks.coupled:
            before = self._removed.get(one.name)
            ids = (~before).nonzero().flatten() if before is not None else None
            gone = one.pruned.clone() if before is None else before.clone()
            if ids is not None:
                gone[ids[one.pruned]] = True
            self._removed[one.name] = gone
        changed = become(self.model, masks.cut())
        if self.optimizer is not None:
            carry(self.optimizer, changed, states)
        self.masks = self._find()

    def report(self, metric: float) -> None:
        """Tells a `WhenRecovered` schedule of a measurement.

        Raises:
            UsageError: The schedule doesn't go by a metric, or it isn't finite.
        """
        if not isinstance(self.schedule, WhenRecovered):
            raise UsageError(f"{type(self.schedule).__name__} doesn't go by a metric; WhenRecovered does.")
        self.schedule.report(metric)

    def finish(self) -> nn.Module:
        """Returns the pruned model: with zeros, or without its units.

        The model that was trained isn't to be used afterwards where units were cut: the two may share tensors.

        Raises:
            NothingPrunedError: Nothing was pruned.
            UsageError: The model's parameters were swapped.
        """
        if self._small is not None:
            return self._small
        self._check_identity()
        end = self.schedule.finished
        if self.sparsity == 0:
            raise NothingPrunedError(f"nothing was pruned in {self.steps} steps: {self._why_nothing()}.")
        if end is not None and self.steps < end:
            warnings.warn(
                f"training ended after {self.steps} steps, before the schedule's last pruning at step {end}: "
                f"{self.sparsity:.2%} are pruned instead of {self.schedule.final:.2%}.",
                stacklevel=2,
            )
        self.masks.hold()
        if isinstance(self.masks, WeightMasks):
            return self.model
        traced = self.masks.network if isinstance(self.masks.network, GraphNetwork) else None
        classifier = traced is not None and plain_kind(self.model) is not None
        if not self.masks.pruned() and not classifier:
            return self.model
        modes = {name: module.training for name, module in self.model.named_modules()}
        trained = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        small = self.masks.cut() if self.masks.pruned() else self.model  # cut while it trained
        if traced is not None and classifier:
            small = pretrained(small, traced.inputs)
        for name, module in small.named_modules():
            module.training = modes.get(name, self.model.training)
        for name, parameter in small.named_parameters():
            parameter.requires_grad_(trained[name])
        self._small = small
        return small

    def _why_nothing(self) -> str:
        if isinstance(self.schedule, WhenRecovered) and self.schedule.reference is None:
            return "WhenRecovered was told of no metric: report() does that, and the Trainer whenever it evaluates"
        if isinstance(self.schedule, WhenRecovered):
            return "WhenRecovered prunes with the step after a metric was reported"
        if self._options["threshold"] is not None:
            return "the threshold lies below all scores, or the schedule's first pruning comes later"
        return "the schedule's first pruning comes later"

    def mask(self) -> Mask:
        """Returns which weights stay.

        Raises:
            UsageError: Units are pruned, not single weights.
        """
        if not isinstance(self.masks, WeightMasks):
            raise UsageError("a mask is of single weights; units are removed by finish().")
        return self.masks.mask()

    def save(self, output: str | Path, *, tokenizer: Any = None, overwrite: bool = False) -> nn.Module:
        """Finishes, and writes the pruned model: a checkpoint that transformers loads, or of another network what
        `rebuild` reads.

        Args:
            output: The folder.
            tokenizer: Saved beside the model; of an image classifier its image processor.
            overwrite: Whether an existing output may be replaced.

        Returns:
            The pruned model.

        Raises:
            UsageError: The output exists, or the model's parameters are sharded.
            SaveError: It can't be written.
        """
        folder = Path(output).expanduser()
        check_output(folder, overwrite)
        if any(is_sharded(parameter) for parameter in self.model.parameters()):
            raise UsageError("its parameters are sharded (FSDP2): gather its state dict, as without pruning.")
        before = self.masks
        small = self.finish()
        network = described(small)
        plain = network is None and plain_kind(small) is not None
        with complete_folder(folder) as scratch:
            if network is not None:
                network.tokenizer = tokenizer
                save_network(network, scratch)
            elif plain:
                save_model(small, scratch)
                if tokenizer is not None:
                    tokenizer.save_pretrained(scratch)
            elif isinstance(before, WeightMasks):
                save_uncut(small, scratch)
            else:
                assert isinstance(before.network, GraphNetwork)
                kept = {group.name: ~one.pruned for one in before.coupled for group in one.groups}
                save_shapes(before.network, small, kept, scratch, self._fields)
            if isinstance(before, WeightMasks):
                before.mask().save(scratch / MASK_FILE)
            told = {"training": {**self._about(), "steps": self.steps}, "sparsity": self.sparsity}
            save_text(json.dumps({**told, "versions": versions()}, indent=1, default=str), scratch / RESULT_FILE)
        return small

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs, for `torch.save`: step, masks, sums; under FSDP2 this process's part."""
        return {
            "version": VERSION,
            "about": plain(self._about()),
            "steps": self.steps,
            "schedule": self.schedule.state_dict() if isinstance(self.schedule, WhenRecovered) else {},
            "removed": {name: gone.clone() for name, gone in self._removed.items()},
            "masks": self.masks.state_dict(),
            "regularizer": {} if self.regularizer is None else self.regularizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned. Units that were cut by then are cut from the model, so load the model's
        and the optimizer's own states after it.

        Raises:
            UsageError: The state is of another schedule, other options or another model.
        """
        if not isinstance(state, Mapping) or "version" not in state:
            raise UsageError("this is no state of a pruner; give what its state_dict() returned.")
        if state["version"] != VERSION:
            raise UsageError(f"the state is of version {state['version']}, and this secateur reads {VERSION}.")
        mine, found = plain(self._about()), state["about"]
        odd = [name for name in {**mine, **found} if mine.get(name) != found.get(name)]
        if odd:
            raise UsageError(
                f"the state is of another pruner: {odd[0]} is {found.get(odd[0])!r} there, {mine.get(odd[0])!r} here."
            )
        if state["removed"]:
            self._take_away(state["removed"])
        self.masks.load_state_dict(state["masks"])
        self.steps = state["steps"]
        if isinstance(self.schedule, WhenRecovered):
            self.schedule.load_state_dict(state["schedule"])
        if self.regularizer is not None:
            self.regularizer.load_state_dict(state["regularizer"])
        self.masks.hold()

    def _take_away(self, removed: Mapping[str, Tensor]) -> None:
        masks = self.masks
        assert isinstance(masks, UnitMasks)
        if self._removed:
            raise UsageError(
                "units have been cut from the model already; load the state into a pruner of the dense one."
            )
        sizes = {one.name: one.count for one in masks.coupled}
        if sizes != {name: len(gone) for name, gone in removed.items()}:
            raise UsageError(
                "the state is of a model with other units; build the dense model that training began with."
            )
        for one in masks.coupled:
            one.pruned = removed[one.name].clone()
        self._cut()

    def _about(self) -> dict[str, Any]:
        return {
            "unit": ", ".join(self.units),
            "cut_during": self.cut_during,
            **self._options,
            "score": score if isinstance(score := self._options["score"], str) else own_name(score),
            "regularizer": None if self.regularizer is None else self.regularizer.describe(),
            **self.schedule.describe(),
        }
