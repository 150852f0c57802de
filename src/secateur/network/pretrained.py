"""A transformers model that was cut in memory becomes one that `from_pretrained` loads.

It is a plain one where its config can say the new widths, and a `Reshaped` one otherwise.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.network.graph.saving import difference
from secateur.network.graph.values import tensors
from secateur.network.modeling import KEY
from secateur.network.plain import plain_config, reshaped_class, reshaped_config
from secateur.network.quiet import quiet_transformers

Shapes = Mapping[str, tuple[int, ...]]
Axis = tuple[str, int]  # a tensor's name, and which of its axes
Path = tuple[str | int, ...]  # of a number in a config: fields, and places in lists
FACTORS = (2, 3)  # a number may be doubled to what another one is, which can make another model
ALIKE = 1e-5  # of the largest output: what sums in another order may differ by


def plain_kind(model: nn.Module) -> Any:
    """Returns the class of transformers that a model is of, reshaped or not; None for other networks."""
    if not isinstance(model, transformers.PreTrainedModel):
        return None
    return next((kind for kind in type(model).__mro__ if getattr(transformers, kind.__name__, None) is kind), None)


def pretrained(small: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Returns a model of transformers' class, or a reshaped one of it, with the tensors of one that was cut.

    Args:
        small: The model after the cut; its config still says the widths before it.
        inputs: Example inputs, by which a plain model is held against it.

    Raises:
        ModelError: No model with these tensors can be built.
    """
    kind = plain_kind(small)
    state = {name: tensor.detach() for name, tensor in small.state_dict().items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    config = plain_config(small.config)
    model = None
    fitting = fitted_config(config, kind, wanted)
    for plain in () if fitting is None else (fitting, _with_fewer_heads(fitting, config)):
        model = None if plain is None else _built(kind, plain, state, small)
        if model is not None and _alike(model, small, inputs):
            break
        model = None  # what else the config says depends on the widths
    if model is None:
        before = _shapes(kind, config)
        differ = {name: list(shape) for name, shape in wanted.items() if before.get(name) != shape}
        config = reshaped_config(config)
        setattr(config, KEY, {"shapes": differ, "attributes": {}, "replaced": {}})
        model = _built(reshaped_class(kind), config, state, small)
    return _in_the_same_modes(model, small)


def _with_fewer_heads(fitting: Any, before: Any) -> Any:
    """Returns a config of as many heads as there are if they are as wide as before; None if that is no whole number."""
    heads, width = (getattr(before, name, None) for name in ("num_attention_heads", "hidden_size"))
    if not isinstance(heads, int) or not isinstance(width, int) or fitting.hidden_size * heads % width:
        return None
    return _with(fitting, {("num_attention_heads",): fitting.hidden_size * heads // width})


def fitted_config(config: Any, kind: Any, wanted: Shapes) -> Any:
    """Returns a config of which models have the wanted shapes; None if no change of its numbers gives them.

    Each number is multiplied in turn, to see which axes of which tensors it moves, and by how much. Where none of
    several equal ones can be changed alone (a ResNet's first stage has a shortcut if it isn't as wide as the stem), all
    are.

    Args:
        config: The config before.
        kind: The model's class.
        wanted: The shapes after, of all parameters and buffers.
    """
    before = _shapes(kind, config)
    if set(before) != set(wanted):
        return None
    changed = _differences(wanted, before)
    moves = _moves(kind, config, before)
    moves = {paths: move for paths, move in moves.items() if move and move.keys() <= changed.keys()}
    values: dict[Path, int] = {}
    for paths, move in moves.items():
        key = next((key for key in move if sum(key in other for other in moves.values()) == 1), None)
        if key is not None:
            value = _number(config.to_dict(), paths[0])
            values |= dict.fromkeys(paths, value + round(changed[key] / move[key]))
    fitting = _with(config, values)
    return fitting if values and _shapes_or_none(kind, fitting) == wanted else None


def _moves(kind: Any, config: Any, before: Shapes) -> dict[tuple[Path, ...], dict[Axis, float]]:
    """Returns numbers of a config, and what 1 more of them adds to which axes of which tensors.

    Those that give a model of other tensors, or none at all, are left out.
    """
    found: dict[tuple[Path, ...], dict[Axis, float]] = {}
    alone: dict[int, list[Path]] = defaultdict(list)
    for path, value in _numbers(config.to_dict()):
        move = _move(kind, config, before, (path,), value)
        if move is not None:
            found[path,] = move
        else:
            alone[value].append(path)
    for value, paths in alone.items():
        move = _move(kind, config, before, paths, value) if len(paths) > 1 else None
        if move is not None:
            found[tuple(paths)] = move
    return found


def _move(kind: Any, config: Any, before: Shapes, paths: Sequence[Path], value: int) -> dict[Axis, float] | None:
    """Returns how much longer axes are for 1 more of a number; None if no multiple of it gives the same tensors."""
    for times in FACTORS:
        shapes = _shapes_or_none(kind, _with(config, dict.fromkeys(paths, times * value)))
        if shapes is not None and shapes.keys() == before.keys():
            more = (times - 1) * value
            return {axis: size / more for axis, size in _differences(shapes, before).items()}
    return None


def _differences(after: Shapes, before: Shapes) -> dict[Axis, int]:
    """Returns the axes that are longer or shorter, and by how much; tensors that lack axes are left out."""
    return {
        (name, axis): size - before[name][axis]
        for name, shape in after.items()
        if len(shape) == len(before[name])
        for axis, size in enumerate(shape)
        if size != before[name][axis]
    }


def _numbers(data: Any, path: Path = ()) -> Iterator[tuple[Path, int]]:
    """Yields the whole numbers above 1 in a config, but not those of its labels and tokens."""
    if isinstance(data, int) and not isinstance(data, bool) and data > 1:
        yield path, data
    elif isinstance(data, list | tuple):
        for place, one in enumerate(data):
            yield from _numbers(one, (*path, place))
    elif isinstance(data, dict) and (not path or str(path[-1]).endswith("_config")):
        for name, one in data.items():
            if not name.endswith("_token_id"):
                yield from _numbers(one, (*path, name))


def _number(data: Any, path: Path) -> int:
    for part in path:
        data = data[part]
    assert isinstance(data, int)
    return data


def _with(config: Any, values: Mapping[Path, int]) -> Any:
    """Returns a config with other numbers; None where its class refuses them."""
    data = copy.deepcopy(config.to_dict())
    for path, value in values.items():
        place: Any = data
        for part in path[:-1]:
            if isinstance(place[part], tuple):
                place[part] = list(place[part])
            place = place[part]
        place[path[-1]] = value
    try:
        return type(config).from_dict(data)
    except Exception:  # whatever a config says of numbers that it can't be with
        return None


def _shapes_or_none(kind: Any, config: Any) -> Shapes | None:
    """Returns shapes as `_shapes`; None where there is no such config, or no model of it."""
    if config is None:
        return None
    try:
        return _shapes(kind, config)
    except Exception:  # whatever a model's code makes of numbers that it can't be built with
        return None


def _shapes(kind: Any, config: Any) -> Shapes:
    """Returns the shapes of all tensors that a model of a config has in its state."""
    with warnings.catch_warnings(), quiet_transformers(), torch.device("meta"), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # of numbers that are only tried out
        return {name: tuple(tensor.shape) for name, tensor in kind(config).state_dict().items()}


def _built(kind: Any, config: Any, state: Mapping[str, Tensor], small: Any) -> Any:
    config = copy.deepcopy(config)
    config.architectures = [kind.__name__]
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        model, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            output_loading_info=True,
            dtype=small.dtype,
            attn_implementation=small.config._attn_implementation,
        )
    wrong = [*sorted(info["mismatched_keys"]), *sorted(info["unexpected_keys"]), *sorted(info["missing_keys"])]
    if wrong:
        raise ModelError(f"the cut {kind.__name__} doesn't fit its config: {wrong[0]} among {len(wrong)} tensors.")
    return model


def _alike(model: nn.Module, small: nn.Module, inputs: tuple[Any, ...]) -> bool:
    small = copy.deepcopy(small).eval()
    with torch.no_grad():
        size = max(float(one.abs().max()) for one in tensors(small(*inputs)))
    return difference(model.eval(), small, inputs) <= ALIKE * max(size, 1.0)


def _in_the_same_modes(model: nn.Module, small: nn.Module) -> nn.Module:
    """Has a model's modules train, and its parameters ask for gradients, where those of the other one do."""
    for one, other in zip(model.modules(), small.modules(), strict=True):
        one.training = other.training
    for parameter, like in zip(model.parameters(), small.parameters(), strict=True):
        parameter.requires_grad_(like.requires_grad)
    return model
