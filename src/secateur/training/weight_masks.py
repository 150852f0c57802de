"""Masks of single weights, which hold while a model trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.allocation.amounts import Amount, Pattern, Threshold
from secateur.allocation.ranking import ScoreRanking
from secateur.allocation.selection import keep_mask, lowest
from secateur.bits import bits_of, clear
from secateur.calibration.statistics import GRADIENTS, INPUTS, Gradients, Needs, Statistics
from secateur.errors import ScoreError, UsageError, did_you_mean
from secateur.mask import Mask, MaskedLayer
from secateur.network.network import Layer
from secateur.schedules import Schedule
from secateur.scores import SCORES, Score, score_named
from secateur.scores.variance import Variance
from secateur.training.gradients import NOT_FINITE, all_finite, gradient_of
from secateur.training.sharded import own, part_of, whole

MOVEMENT = "movement"
DROPPED = 0.3  # share of the weights that RigL exchanges at first (Evci et al. 2020, section 3)


@dataclass
class Held:
    """A parameter under a mask. All tensors are this process's part, of the stored shape.

    Attributes:
        name: The parameter's.
        parameter: It.
        layers: The layers whose weights it holds; several where experts share it.
        pruned: Bool: which weights are zero; change it by `mark`.
        bits: The same as a mask of bits, see `secateur.bits`.
        gradients: Sums since the last pruning, where the score reads them.
        movement: The sum over all steps of -g·w (Sanh et al. 2020, arXiv 2005.07683, eq. 6), where the score reads it.
        asleep: What pruned weights were, where they may come back with that value; zero elsewhere.
    """

    name: str
    parameter: nn.Parameter
    layers: list[Layer]
    pruned: Tensor
    bits: Tensor = field(init=False)
    gradients: Gradients | None = None
    movement: Tensor | None = None
    asleep: Tensor | None = None

    def __post_init__(self) -> None:
        self.mark(self.pruned)

    def mark(self, pruned: Tensor) -> None:
        """Says which weights are zero."""
        self.pruned, self.bits = pruned, bits_of(~pruned)


class WeightMasks:
    """Chooses which weights are zero, and keeps them so.

    Attributes:
        held: The parameters.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        names: Mapping[int, str],
        *,
        score: object,
        pattern: str | None,
        threshold: str | None,
        allocation: str | Mapping[str, float],
        regrow: bool,
        seed: int,
    ) -> None:
        """
        Args:
            layers: What is pruned.
            names: The parameters' names, by their identity.
            score: A score that reads weights or gradients, or `movement`.
            pattern: N:M.
            threshold: Everything that scores below it goes.
            allocation: `uniform`, `global`, or each layer's share at the end.
            regrow: Whether pruned weights may come back.
            seed: Of scores that draw.

        Raises:
            UsageError, PatternError: These don't go together, or don't fit the layers.
        """
        self.score = _score(score)
        self.pattern = Pattern.parse(pattern) if pattern is not None else None
        self.threshold = Threshold.parse(threshold) if threshold is not None else None
        self.allocation, self.regrow, self.seed = allocation, regrow, seed
        if regrow and (self.pattern is not None or self.threshold is not None or allocation != "uniform"):
            raise UsageError("regrow=True goes with a sparsity that is the same in every layer.")
        if self.pattern is not None:
            self.pattern.check_all({layer.name: layer.shape[1] for layer in layers})
        if not isinstance(allocation, str):
            check_shares(allocation, [layer.name for layer in layers], "layers")
        found: dict[int, Held] = {}
        for layer in layers:
            key = id(layer.parameter)
            if key not in found:
                part = own(layer.parameter.detach())
                found[key] = Held(names[key], layer.parameter, [], torch.zeros_like(part, dtype=torch.bool))
            found[key].layers.append(layer)
        self.held = list(found.values())
        self._places = {layer.name: place for place, layer in enumerate(layers)}
        self._read = self._unread = 0  # steps since the last pruning whose gradients were finite, and others
        for one in self.held:
            part = own(one.parameter.detach())
            if self.score is None:
                one.movement = torch.zeros_like(part, dtype=torch.float32)
            elif self.needs:
                one.gradients = Gradients.empty(tuple(part.shape), self.needs, part.device)  # type: ignore[arg-type]
            if regrow and self.score is None:
                one.asleep = torch.zeros_like(part)

    @property
    def needs(self) -> Needs:
        """The sums of gradients that the score reads."""
        return Needs.NOTHING if self.score is None else self.score.needs & GRADIENTS

    @property
    def weights(self) -> int:
        """How many weights could be pruned."""
        return sum(layer.weights for one in self.held for layer in one.layers)

    def pruned(self) -> int:
        """Returns how many weights the masks hold at zero."""
        return sum(int(layer.part(mask).sum()) for mask, one in self._masks() for layer in one.layers)

    def _masks(self) -> list[tuple[Tensor, Held]]:
        return [(whole(one.pruned, one.parameter), one) for one in self.held]

    def watch(self) -> None:
        """Adds the gradients of one step to what the score reads; not those that are NaN or infinite anywhere, as of a
        step that a GradScaler skips.

        Raises:
            UsageError: There are no gradients.
        """
        if self.score is not None and not self.needs:
            return
        gradients = [gradient_of(one.name, one.parameter) for one in self.held]
        if not all_finite(gradients, [one.parameter for one in self.held]):
            self._unread += 1
            return
        self._read += 1
        for one, g in zip(self.held, gradients, strict=True):
            if one.movement is not None:
                w = own(one.parameter.detach()).float()
                if one.asleep is not None:
                    w = w + one.asleep
                one.movement.addcmul_(g.float(), w, value=-1)
            if one.gradients is not None:
                one.gradients.add(g)

    @torch.no_grad()
    def prune(self, step: int, schedule: Schedule) -> int:
        """Chooses anew which weights are zero.

        Args:
            step: The training step.
            schedule: Says the sparsity.

        Returns:
            How many weights were set to zero by it.
        """
        self._check_gradients(step)
        way = schedule(step) / schedule.final
        counts = self._counts(step, schedule(step), way)
        added = 0
        for one in self.held:
            before = whole(one.pruned, one.parameter)
            after = before.clone()
            scores = self._scores(one, before, step)
            for layer, values in zip(one.layers, scores, strict=True):
                was = layer.as_matrix(before)
                if self.regrow and self.score is not None:
                    keep = self._exchange(one, layer, values, was, counts[layer.name], step, schedule)
                else:
                    keep = self._keep(layer, values, counts, schedule(step), way)
                layer.as_matrix(after).copy_(~keep)
            added += int((after & ~before).sum())
            self._take(one, part_of(after, one.parameter))
        self._read = self._unread = 0
        return added

    def _check_gradients(self, step: int) -> None:
        """Raises ScoreError if the score goes by gradients, and none of them was finite, or all of them were zero."""
        if (self.score is None and step == 0) or (self.score is not None and not self.needs):
            return
        if self._unread and not self._read:
            raise ScoreError(NOT_FINITE.format(steps=self._unread, step=step))
        for one in self.held:
            sums = one.gradients
            parts = (one.movement,) if sums is None else (sums.total, sums.sizes, sums.squares)
            part = next(part for part in parts if part is not None)
            if (sums is not None and sums.count == 0) or bool(whole(part, one.parameter).any()):
                break
        else:
            raise ScoreError(
                f"all gradients up to step {step} were zero, so the score says nothing: call pruner.step() after "
                "optimizer.step() and before zero_grad(), and let the schedule begin at step 1 or later."
            )

    def _take(self, one: Held, pruned: Tensor) -> None:
        """Has a parameter's mask be another one."""
        if one.asleep is not None:
            w = own(one.parameter.detach())
            back = one.pruned & ~pruned
            w[back] = one.asleep[back]
            one.asleep = torch.where(pruned & ~one.pruned, w, torch.where(pruned, one.asleep, 0))
        one.mark(pruned)
        if one.gradients is not None:
            fresh = Gradients.empty(tuple(pruned.shape), self.needs, pruned.device)  # type: ignore[arg-type]
            one.gradients = fresh

    @torch.no_grad()
    def lowest(self, step: int, schedule: Schedule) -> dict[str, Tensor]:
        """Returns by parameter, this process's part, bool: the weights that would go now, were it the last pruning."""
        counts, found = self._counts(step, schedule.final, 1.0), {}
        for before, one in self._masks():
            chosen = before.clone()
            for layer, values in zip(one.layers, self._scores(one, before, step), strict=True):
                layer.as_matrix(chosen).copy_(~self._keep(layer, values, counts, schedule.final, 1.0))
            found[one.name] = part_of(chosen, one.parameter)
        return found

    def hold(self) -> None:
        """Sets what is pruned to zero, whatever the optimizer made of it."""
        with torch.no_grad():
            for one in self.held:
                clear(own(one.parameter.detach()), one.bits)

    def _scores(self, one: Held, pruned: Tensor, step: int) -> list[Tensor]:
        """Returns each layer's scores: (out, in) float32, -inf where a weight is pruned and doesn't come back."""
        stored = whole(own(one.parameter.detach()), one.parameter)
        movement = None if one.movement is None else whole(one.movement, one.parameter)
        sums = [
            None if part is None else whole(part, one.parameter)
            for part in (
                (one.gradients.total, one.gradients.sizes, one.gradients.squares) if one.gradients is not None else ()
            )
        ]
        found: list[Tensor] = []
        for layer in one.layers:
            W = layer.as_matrix(stored).float()
            if movement is not None:
                values = layer.as_matrix(movement).clone() if step > 0 else W.abs()  # nothing has moved yet
            else:
                assert self.score is not None
                statistics = None
                if one.gradients is not None:
                    if one.gradients.count == 0:
                        raise UsageError(
                            f"the score '{self.score.name}' reads gradients, and there are none at step {step}: let "
                            "the schedule begin at step 1 or later."
                        )
                    parts = [None if part is None else layer.as_matrix(part) for part in sums]
                    statistics = Statistics.empty(W.shape[1], Needs.NOTHING, W.device)
                    statistics.gradients = Gradients(one.gradients.count, *parts)
                place = self._places[layer.name]
                random = torch.Generator().manual_seed((self.seed * 1_000_003 + place) * 65_537 + step)
                values = self.score.weights(W, statistics, random)
            if bool(values.isnan().any()):
                raise ScoreError(
                    f"the score of {layer.name} is NaN at step {step}: its weights or gradients are NaN or infinite, "
                    "as when the learning rate is too high."
                )
            if not (self.regrow and movement is not None):
                values = torch.where(layer.as_matrix(pruned), -torch.inf, values)
            found.append(values.contiguous())
        return found

    def _counts(self, step: int, sparsity: float, way: float) -> dict[str, int]:
        """Returns how many weights of each layer are zero at a sparsity; nothing where a pattern or θ says so.

        Args:
            step: The step that it is.
            sparsity: Of all weights together.
            way: What share of the final sparsity that is.
        """
        if self.pattern is not None or self.threshold is not None:
            return {}
        sizes = {layer.name: layer.weights for one in self.held for layer in one.layers}
        if self.allocation == "uniform":
            return {name: round(sparsity * size) for name, size in sizes.items()}
        if not isinstance(self.allocation, str):
            return {name: round(way * self.allocation[name] * size) for name, size in sizes.items()}
        with ScoreRanking() as ranking:
            for pruned, one in self._masks():
                for layer, values in zip(one.layers, self._scores(one, pruned, step), strict=True):
                    ranking.add(layer.name, values)
            return ranking.lowest(round(sparsity * sum(sizes.values())))

    def _keep(self, layer: Layer, scores: Tensor, counts: Mapping[str, int], sparsity: float, way: float) -> Tensor:
        """Returns (out, in) bool: the weights that stay, for masks that only ever grow."""
        if self.threshold is not None:
            return _above(scores, self.threshold, way)
        if self.pattern is None:
            return ~lowest(scores, counts[layer.name])
        kept = self.pattern.m - round(sparsity * self.pattern.m)
        if kept == self.pattern.m:
            return scores != -torch.inf
        return keep_mask(scores, Amount(pattern=Pattern(kept, self.pattern.m)), layer.name)[0]

    def _exchange(
        self, one: Held, layer: Layer, scores: Tensor, was: Tensor, remove: int, step: int, schedule: Schedule
    ) -> Tensor:
        """Returns (out, in) bool: what stays after the least weights gave way to those with the largest gradients.

        RigL (Evci et al. 2020, arXiv 1911.11134, algorithm 1), the share that is exchanged falling as a cosine to the
        schedule's end, where it has one.
        """
        end = schedule.finished
        way = 0.0 if end is None else min(1.0, step / max(1, end))
        share = DROPPED * (1 + math.cos(math.pi * way)) / 2
        exchanged = min(int(share * (layer.weights - remove)), int(was.sum()))
        if exchanged == 0:
            return ~lowest(scores, remove)
        dropped = lowest(scores, remove + exchanged)
        g = layer.as_matrix(whole(gradient_of(one.name, one.parameter), one.parameter)).float().abs()
        return ~lowest(torch.where(dropped, g, torch.inf), remove)

    def mask(self) -> Mask:
        """Returns which weights stay, layer by layer."""
        return Mask(
            {
                layer.name: MaskedLayer.of(~layer.as_matrix(pruned))
                for pruned, one in self._masks()
                for layer in one.layers
            }
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns masks and sums by parameter: this process's part."""
        state: dict[str, Any] = {}
        for one in self.held:
            state[one.name] = {"pruned": one.pruned.clone()}
            if one.movement is not None:
                state[one.name]["movement"] = one.movement.clone()
            if one.asleep is not None:
                state[one.name]["asleep"] = one.asleep.clone()
            if one.gradients is not None:
                state[one.name]["gradients"] = vars(one.gradients).copy()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned.

        Raises:
            UsageError: It is of other parameters.
        """
        shapes = {one.name: tuple(one.pruned.shape) for one in self.held}
        found = {name: tuple(part["pruned"].shape) for name, part in state.items()}
        if shapes != found:
            odd = next(name for name in (*shapes, *found) if shapes.get(name) != found.get(name))
            raise UsageError(
                f"the state is of another model: {odd} has the shape {found.get(odd, 'none')} there, and "
                f"{shapes.get(odd, 'none')} here."
            )
        for one in self.held:
            known = state[one.name]
            device = one.pruned.device
            one.mark(known["pruned"].to(device))
            if one.movement is not None:
                one.movement = known["movement"].to(device)
            if one.asleep is not None:
                one.asleep = known["asleep"].to(device)
            if one.gradients is not None:
                sums = known["gradients"].items()
                parts = {kind: part.to(device) if isinstance(part, Tensor) else part for kind, part in sums}
                one.gradients = Gradients(**parts)  # type: ignore[arg-type]


def _score(name: object) -> Score | None:
    """Returns a score that can be had while training; None is movement.

    Raises:
        UsageError: It reads what only a calibration pass gathers, or there is none of the name.
    """
    if not isinstance(name, str) or ":" in name:
        raise UsageError("a function of your own scores units, not single weights.")
    known = [MOVEMENT, *(one for one, score in SCORES.items() if not score.needs & INPUTS and one != Variance.name)]
    if name in SCORES and name not in known:
        raise UsageError(
            f"the score '{name}' needs statistics of the layers' inputs, which training doesn't gather; take "
            f"{', '.join(sorted(known))}."
        )
    if name not in known:
        raise UsageError(f"unknown score '{name}' of weights.{did_you_mean(name, known)}")
    return None if name == MOVEMENT else score_named(name)


def check_shares(shares: Mapping[str, float], places: Sequence[str], kind: str) -> None:
    """Raises UsageError if these aren't shares of some places: `layers` or `groups`."""
    if strange := sorted(set(shares) - set(places)):
        hint = did_you_mean(strange[0], places)
        raise UsageError(f"allocation: {strange[0]} isn't among the {len(places)} {kind} that are pruned.{hint}")
    if missing := sorted(set(places) - set(shares)):
        raise UsageError(f"allocation: {missing[0]} has no share; give one for each of the {len(places)} {kind}.")
    wrong = [name for name, share in shares.items() if not 0 <= share <= 1]
    if wrong:
        raise UsageError(f"allocation: {wrong[0]} has the share {shares[wrong[0]]}; shares lie between 0 and 1.")


def _above(scores: Tensor, threshold: Threshold, way: float) -> Tensor:
    """Returns which scores reach a threshold. A number grows to its size on the way; others are of all weights."""
    if threshold.kind == "value":
        return scores >= threshold.number * way
    known = torch.where(scores == -torch.inf, 0.0, scores)  # what is pruned scored nothing
    return (scores >= threshold.value(known)) & (scores != -torch.inf)
