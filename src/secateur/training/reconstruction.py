"""Block reconstruction: a pruned block's kept weights are tuned to give what the block gives in the dense model.

Adam on the squared error of the block's output, with the masks held (EBFT, Guo et al. 2024, arXiv 2402.12419; 3BASiL's
transformer matching, Makni et al. 2025). The block's input is what the pruned blocks before it leave, so that their
errors are made up for, too. A part of the windows isn't trained on and decides which state is kept.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from secateur.calibration.activations import Activations
from secateur.calibration.runner import BlockRunner
from secateur.network.network import Layer
from secateur.result import BlockReport

RATE = 6e-3  # Adam's step, relative to the root mean square of a layer's kept weights
FINAL_RATE = 0.2  # of RATE, at the end of the last pass (cosine)
HELD_OUT = 8  # every how manieth batch only judges
LEAST = 1e-3  # relative gain of a pass below which it was the last
LOWERED = 4  # what RATE is divided by where no pass has gained anything, as behind a fit by least squares


def reconstruct(
    runner: BlockRunner,
    layers: Sequence[Layer],
    targets: Activations,
    passes: int,
    halves: bool,
) -> BlockReport:
    """Tunes a block's pruned weights in place; their zeros stay.

    Args:
        runner: It stands before the block, within `runner.differentiable()`.
        layers: The block's pruned layers.
        targets: What the block gives in the dense model, one tensor per batch of the runner.
        passes: Passes over the activations at most, for each part.
        halves: Whether attention and MLP are tuned one after the other instead of together.

    Returns:
        The relative squared error of the block's output before and after, on the windows that weren't trained on
        (on all, if there is but one batch).
    """
    before = after = None
    done = 0
    parts = _halves(layers) if halves else [list(layers)]
    for part in parts:
        tuning = _Tuning(runner, part, targets)
        start, after, made = tuning.run(passes)
        before = start if before is None else before
        done += made
    assert before is not None
    assert after is not None
    return BlockReport(runner.network.block_name(runner.position), before, after, done)


def _halves(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Returns the attention's layers and the MLP's."""
    mlp = [layer.expert is not None or layer.reads.rpartition("/")[2] in ("mlp input", "neuron") for layer in layers]
    parts = ([layer for layer, of_mlp in zip(layers, mlp, strict=True) if of_mlp == wanted] for wanted in (False, True))
    return [part for part in parts if part]


class _Tuning:
    """Adam on some of a block's weights."""

    def __init__(self, runner: BlockRunner, layers: Sequence[Layer], targets: Activations) -> None:
        self.runner, self.layers, self.targets = runner, layers, targets
        tuned: dict[int, set[int | None]] = defaultdict(set)
        for layer in layers:
            tuned[id(layer.parameter)].add(layer.expert)
        stored = [(name, one) for name, one in runner.block.named_parameters() if id(one) in tuned]
        self.names = [name for name, _ in stored]
        self.places = {id(parameter): place for place, (_, parameter) in enumerate(stored)}
        self.fixed = [  # experts that aren't tuned, of weights that hold others that are
            [index for index in range(len(one)) if index not in tuned[id(one)]] if None not in tuned[id(one)] else []
            for _, one in stored
        ]
        device = runner.network.device
        self.keep = [(parameter.detach() != 0).to(device) for _, parameter in stored]
        self.weights = [parameter.detach().to(device, torch.float32, copy=True) for _, parameter in stored]
        batches = range(runner.batches)
        self.judged = [batch for batch in batches if batch % HELD_OUT == HELD_OUT - 1] or [runner.batches - 1]
        self.trained = [batch for batch in batches if batch not in self.judged] or self.judged

    def run(self, passes: int) -> tuple[float, float, int]:
        """Returns the error before and after, and the passes that were made."""
        first = best = self._judge()
        state = [weight.detach().clone() for weight in self.weights]
        made, rate = 0, RATE
        while made < passes and best == first > 0:
            with torch.no_grad():
                for weight, known in zip(self.weights, state, strict=True):
                    weight.copy_(known)
            adam, schedule = self._optimizer(rate, (passes - made) * len(self.trained))
            gain = math.inf
            while made < passes and gain > LEAST:
                for batch in self.trained:
                    self._differentiate(batch)
                    adam.step()
                    schedule.step()
                made += 1
                error = self._judge()
                gain = (best - error) / best if best > 0 else 0.0
                if error < best:
                    best = error
                    state = [weight.detach().clone() for weight in self.weights]
            rate /= LOWERED
        for layer in self.layers:
            place = self.places[id(layer.parameter)]
            layer.write(layer.as_matrix(state[place]).cpu(), layer.as_matrix(self.keep[place]).cpu())
        return first, best, made

    def _optimizer(self, rate: float, steps: int) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.LambdaLR]:
        """Returns Adam at a rate relative to the weights' sizes, and its way down over some steps."""
        groups = []
        for weight, keep in zip(self.weights, self.keep, strict=True):
            size = float(weight.detach()[keep].square().mean().sqrt()) if bool(keep.any()) else 0.0
            groups.append({"params": [weight.requires_grad_(True)], "lr": rate * size})
        adam = torch.optim.Adam(groups, betas=(0.9, 0.95), eps=1e-12)
        return adam, torch.optim.lr_scheduler.LambdaLR(
            adam, lambda step: FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * step / steps))
        )

    def _differentiate(self, batch: int) -> None:
        """Sets the weights' gradients to those of one batch, which the process that has it gives to the others."""
        team = self.runner.team
        owner = batch % team.size
        for weight in self.weights:
            weight.grad = None
        if owner == team.rank:
            self._error(batch).backward()
        for weight, fixed in zip(self.weights, self.fixed, strict=True):
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            if fixed:
                weight.grad[fixed] = 0
            team.send(weight.grad, owner)

    def _judge(self) -> float:
        team = self.runner.team
        errors = torch.zeros(len(self.judged), dtype=torch.float64)
        with torch.no_grad():
            for number, batch in enumerate(self.judged):
                if batch % team.size == team.rank:
                    errors[number] = float(self._error(batch))
        team.sum(errors)
        return float(errors.mean())

    def _error(self, batch: int) -> Tensor:
        """The squared error of the block's output relative to what the dense block adds to its input.

        batch: Its number among those of all processes; this one has it.
        """
        batch //= self.runner.team.size
        x, args, kwargs = self.runner.ordinary_call(batch)
        weights = {
            name: (weight * keep).to(self.layers[0].parameter.dtype)
            for name, weight, keep in zip(self.names, self.weights, self.keep, strict=True)
        }
        output = functional_call(self.runner.block, weights, (x, *args), kwargs)
        y = output if isinstance(output, Tensor) else output[0]
        target = self.targets[batch].to(y.device, torch.float32)
        return (y.float() - target).square().sum() / (target - x.float()).square().sum()
