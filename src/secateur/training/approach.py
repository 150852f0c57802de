"""Pruning in rounds: what a round's target is on the way to the last one's."""

from __future__ import annotations

from secateur.errors import NothingPrunedError
from secateur.evaluation.costs import Costs, costs
from secateur.layer_choice import select_layers
from secateur.network.network import Network
from secateur.recipe import Prune, bytes_of
from secateur.structure.budget import SHARES, share_named


def towards(stage: Prune, network: Network, number: int, rounds: int, first: Costs | None) -> Prune:
    """Returns what a round prunes: of what is above the target, each round leaves the same share.

    Args:
        stage: What the last round comes to.
        network: The model as it is.
        number, rounds: Which round it is, from 1, of how many.
        first: What the run's first model costs; None where no units are removed.

    Raises:
        NothingPrunedError: The model is at the target already.
    """
    if rounds == 1:
        return stage
    if stage.remove is not None:
        gone = [stage.remove * done // rounds for done in (number - 1, number)]
        return _with(stage, remove=gone[1] - gone[0])
    if stage.sparsity is not None and stage.structured:
        return _with(stage, sparsity=1 - (1 - stage.sparsity) ** (1 / rounds))
    return stage if number == rounds else _on_the_way(stage, network, rounds - number + 1, first)


def _on_the_way(stage: Prune, network: Network, ahead: int, first: Costs | None) -> Prune:
    """Returns the stage with the target of the next of some rounds, by what the model is now."""
    if stage.sparsity is not None:
        layers = select_layers(network, stage)
        left = 1 - sum(layer.zeros() for layer in layers) / sum(layer.weights for layer in layers)
        return _with(stage, sparsity=1 - _nearer(left, 1 - stage.sparsity, ahead))
    assert first is not None
    name = share_named(stage)
    now, whole = (float(getattr(one, SHARES[name])) for one in (costs(network, first.length), first))
    if stage.memory is not None:
        return _with(stage, memory=str(round(_nearer(now, bytes_of(stage.memory), ahead))))
    return _with(stage, **{name: _nearer(now / whole, getattr(stage, name), ahead)})


def _nearer(now: float, target: float, rounds: int) -> float:
    """Returns what is left after the next of some rounds."""
    if now <= target:
        raise NothingPrunedError("repeat: the model is at the target already; leave the stage out.")
    return float(now * (target / now) ** (1 / rounds))


def _with(stage: Prune, **fields: object) -> Prune:
    return Prune.build({**stage.model_dump(), **fields})
