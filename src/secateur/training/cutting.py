"""Cuts a model while it trains: its modules stay the objects that they are, and the optimizer's state is cut along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel

from secateur.errors import UsageError

KEPT = ("training", "gradient_checkpointing")  # attributes that say how a module is used, not what it is


def bare_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Returns the optimizer inside of Accelerate's wrapper.

    Raises:
        UsageError: It isn't one of torch's kind.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, torch.optim.Optimizer):
        raise UsageError(f"optimizer: a torch.optim.Optimizer is needed, but got a {type(optimizer).__name__}.")
    return inner


def check_cuttable(model: nn.Module) -> None:
    """Raises UsageError if a model can't be cut while it trains."""
    if isinstance(model, DistributedDataParallel):
        raise UsageError(
            "cut='during' can't change what DistributedDataParallel has laid out; take cut='end', which masks the same "
            "units until then."
        )


def become(model: nn.Module, small: nn.Module) -> dict[nn.Parameter, nn.Parameter]:
    """Gives a model's modules the shapes and values of a smaller one, in place.

    Args:
        model: The model that is being trained. Its modules, hooks and modes stay.
        small: The same model after a cut.

    Returns:
        The new parameter by the old one, for those whose shape has changed.

    Raises:
        UsageError: Its own code has sizes as constants, which can't be changed while it trains.
    """
    if isinstance(small, fx.GraphModule) and not isinstance(model, fx.GraphModule):
        raise UsageError(
            f"the code of {type(model).__name__} has sizes as constants, which can't be changed while it trains; take "
            "cut='end'."
        )
    changed: dict[nn.Parameter, nn.Parameter] = {}
    modules = dict(model.named_modules())
    for path, new in small.named_modules():
        module = modules[path]
        for name, parameter in new.named_parameters(recurse=False):
            old = module.get_parameter(name)
            if old.shape != parameter.shape and old not in changed:
                changed[old] = nn.Parameter(parameter.detach(), requires_grad=old.requires_grad)
            if old in changed:
                setattr(module, name, changed[old])
        for name, buffer in new.named_buffers(recurse=False):
            setattr(module, name, buffer)
        for name, value in vars(new).items():
            if not name.startswith("_") and name not in KEPT and not isinstance(value, nn.Module):
                setattr(module, name, value)
    model.__class__ = type(small)  # another class of transformers where the plain one can't say the widths
    return changed


def cut_states(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    stays: Mapping[tuple[str, int], Tensor],
) -> dict[nn.Parameter, dict[str, Any]]:
    """Returns an optimizer's state of parameters that are about to be cut, cut along.

    Args:
        optimizer: The optimizer.
        parameters: The model's, by name.
        stays: By name and axis, bool: the places that stay.

    Raises:
        UsageError: The state of a parameter has another shape than itself, so it isn't known how to cut it.
    """
    cut = {name for (name, _), places in stays.items() if not bool(places.all())}
    known = {parameters[name]: name for name in sorted(cut)}
    return {
        one: _cut_state(optimizer.state[one], one, name, stays) for one, name in known.items() if one in optimizer.state
    }


def carry(
    optimizer: torch.optim.Optimizer,
    changed: Mapping[nn.Parameter, nn.Parameter],
    states: Mapping[nn.Parameter, dict[str, Any]],
) -> None:
    """Has an optimizer go on with cut parameters.

    Args:
        optimizer: The optimizer.
        changed: The new parameter by the old one.
        states: Its state of the new ones, by the old one, see `cut_states`.
    """
    for group in optimizer.param_groups:
        group["params"] = [changed.get(one, one) for one in group["params"]]
    for old, new in changed.items():
        optimizer.state.pop(old, None)
        if old in states:
            optimizer.state[new] = states[old]


def _cut_state(
    state: Mapping[str, Any], old: nn.Parameter, name: str, stays: Mapping[tuple[str, int], Tensor]
) -> dict[str, Any]:
    found = {}
    for kind, value in state.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            found[kind] = value
            continue
        if value.shape != old.shape:
            raise UsageError(
                f"the optimizer's state '{kind}' of {name} has the shape {tuple(value.shape)} and the parameter "
                f"{tuple(old.shape)}: it isn't known how to cut it. Take cut='end', or AdamW or SGD. Of a run that "
                "goes on, load the pruner's state before the optimizer's."
            )
        cut = value
        for axis in range(value.ndim):
            if (name, axis) in stays:
                cut = cut.index_select(axis, stays[name, axis].nonzero().flatten().to(value.device))
        found[kind] = cut
    return found


def check_optimizer(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raises UsageError if an optimizer doesn't have a model's parameters."""
    known = {id(one) for group in optimizer.param_groups for one in group["params"]}
    strange = [name for name, one in parameters.items() if one.requires_grad and id(one) not in known]
    if strange:
        raise UsageError(
            f"the optimizer doesn't have {strange[0]} ({len(strange)} of {len(parameters)} pruned parameters): the "
            "model's parameters were swapped after the optimizer was made. Make the optimizer, then the pruner, "
            "from the model that is trained."
        )
