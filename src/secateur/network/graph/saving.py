"""A smaller network in files: its weights, and the shapes that a freshly built dense one is brought to."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from secateur.errors import ModelError, UsageError, first_line
from secateur.files import as_os_error
from secateur.network.graph.cutting import constants, fields, replace_tensors, with_constants
from secateur.network.graph.network import GraphNetwork
from secateur.network.graph.values import tensors
from secateur.network.graph.walker import Edit

SHAPES_FILE = "shapes.json"
WEIGHTS_FILE = "model.safetensors"
VERSION = 2


def save_shapes(
    network: GraphNetwork,
    small: nn.Module,
    keep: Mapping[str, Tensor],
    folder: Path,
    dense: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes a cut network's weights and shapes into an existing folder.

    Args:
        network: The network before the cut.
        small: What `cut_graph` made of it, perhaps repaired or trained since.
        keep: (units,) bool by the name of a group: what was cut.
        folder: Where to.
        dense: `fields` of the network that is built anew to be brought to these shapes; None where it is `network`.

    Raises:
        OSError: The disk is full, or can't be written.
    """
    there = network.model.state_dict()  # a traced module also holds tensors that its code makes anew
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in small.state_dict().items() if name in there}
    dense = fields(network.model) if dense is None else dense
    edits = [
        {"node": edit.node, "position": edit.position, "value": _plain(edit.value)} for edit in constants(network, keep)
    ]
    about = {
        "architecture": network.architecture,
        "axes": _axes_of_units(network),
        "fields": {
            module: {name: one for name, one in some.items() if one != dense[module][name]}
            for module, some in fields(small).items()
            if some != dense.get(module)
        },
        "constants": edits,
        "leaf_modules": [*network.leaf_names, *sorted(network.steps.layers)],
        "arguments": len(network.inputs),
    }
    _write(state, about, folder)


def save_uncut(model: nn.Module, folder: Path) -> None:
    """Writes a network that lost no units into an existing folder, for `rebuild`.

    Args:
        model: The network.
        folder: Where to.

    Raises:
        OSError: The disk is full, or can't be written.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    about = {"architecture": type(model).__name__, "axes": {}, "fields": {}, "constants": []}
    _write(state, {**about, "leaf_modules": [], "arguments": 0}, folder)


def _write(state: Mapping[str, Tensor], about: Mapping[str, Any], folder: Path) -> None:
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    about = {"version": VERSION, **about, "weights": WEIGHTS_FILE, "shapes": shapes}
    try:
        save_file({name: tensor.clone() for name, tensor in state.items()}, folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise as_os_error(error, folder) from error
    (folder / SHAPES_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _axes_of_units(network: GraphNetwork) -> dict[str, list[int]]:
    """Returns the axes of each tensor that count units, by all names of the tensor: what a cut may make shorter."""
    found: dict[str, set[int]] = defaultdict(set)
    for group in network.groups:
        for part in group.slices:
            for name in network.aliases[part.name]:
                found[name].add(part.axis)
    return {name: sorted(axes) for name, axes in found.items()}


def rebuild(model: nn.Module, file: str | Path) -> nn.Module:
    """Shapes a freshly built dense network like a pruned one, and loads the pruned one's weights.

    Args:
        model: The dense network, built as it was before pruning. It is changed; take what is returned.
        file: The folder that was written, or the `shapes.json` in it.

    Returns:
        The smaller network, in the mode (training or evaluation) of `model`: itself, or a traced module where sizes
        stand in its code as constants.

    Raises:
        ModelError: A file is missing, damaged, or of another network.
        UsageError: `model` isn't a network.

    Example:
        >>> small = secateur.rebuild(MyNetwork(), "out")
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"rebuild takes a freshly built network but got a {type(model).__name__}.")
    path = Path(file)
    path = path / SHAPES_FILE if path.is_dir() else path
    about = _read(path)
    state = _weights(path.parent / about["weights"], about["shapes"])
    there = model.state_dict()
    unlike = sorted(set(there) ^ set(state))
    if unlike:
        raise ModelError(
            f"{path} is of another network ({about['architecture']}): {unlike[0]} is only in "
            f"{'the model that was given' if unlike[0] in there else 'the file'}. Build the network as it was."
        )
    for name, tensor in state.items():
        if not _fits(tuple(there[name].shape), tuple(tensor.shape), about["axes"].get(name, [])):
            raise ModelError(
                f"{path} is of another network ({about['architecture']}): {name} has the shape {tuple(tensor.shape)} "
                f"there, which a cut can't make of {tuple(there[name].shape)}. Build the network as it was."
            )
    replace_tensors(model, state)
    _describe(model, about["fields"])
    edits = [Edit(one["node"], one["position"], _value(one["value"])) for one in about["constants"]]
    try:
        return with_constants(model, edits, (None,) * about["arguments"], about["leaf_modules"])
    except KeyError as error:
        raise ModelError(f"{path} is of another network: its code has no step named {error}.") from error


def _fits(dense: Sequence[int], cut: Sequence[int], axes: Sequence[int]) -> bool:
    """Whether a tensor of one shape may have become one of another by a cut along some of its axes."""
    if len(dense) != len(cut):
        return False
    return all(b <= a if axis in axes else a == b for axis, (a, b) in enumerate(zip(dense, cut, strict=True)))


def _read(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} can't be read ({error.strerror}); give the folder that secateur wrote.") from error
    except ValueError as error:
        raise ModelError(f"{path} isn't what secateur wrote: {first_line(error)}.") from error
    parts = ("version", "architecture", "weights", "shapes", "axes", "fields", "constants", "leaf_modules", "arguments")
    if not isinstance(about, dict) or any(name not in about for name in parts):
        raise ModelError(f"{path} isn't what secateur wrote: it must have {', '.join(parts)}.")
    if about["version"] != VERSION:
        raise ModelError(f"{path} is of version {about['version']}, and this secateur reads {VERSION}; update it.")
    return about


def _weights(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} can't be read: {first_line(error)}.") from error
    if {name: list(tensor.shape) for name, tensor in state.items()} != dict(shapes):
        raise ModelError(
            f"{path} doesn't have the tensors that {SHAPES_FILE} beside it lists; one of them was changed."
        )
    return state


def _describe(model: nn.Module, about: Mapping[str, Mapping[str, Any]]) -> None:
    """Has modules say the shapes of their weights."""
    for name, some in about.items():
        module = model.get_submodule(name)
        for field, value in some.items():
            setattr(module, field, tuple(value) if isinstance(value, list) else value)
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()


def _plain(value: Any) -> Any:
    """Returns an argument of a traced step as data for JSON."""
    if isinstance(value, slice):
        return {"slice": [_plain(one) for one in (value.start, value.stop, value.step)]}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple | list):
        return {"list" if isinstance(value, list) else "tuple": [_plain(one) for one in value]}
    if value is Ellipsis:
        return {"ellipsis": True}
    return value


def _value(plain: Any) -> Any:
    """Returns what `_plain` wrote down; a step is named by a stand-in that has nothing but its name."""
    if not isinstance(plain, dict):
        return plain
    if "slice" in plain:
        return slice(*(_value(one) for one in plain["slice"]))
    if "node" in plain:
        return fx.Node(fx.Graph(), plain["node"], "placeholder", plain["node"], (), {})
    if "ellipsis" in plain:
        return Ellipsis
    return [_value(one) for one in plain["list"]] if "list" in plain else tuple(_value(one) for one in plain["tuple"])


def difference(one: nn.Module, other: nn.Module, inputs: tuple[Any, ...]) -> float:
    """Returns the largest difference between what two networks give, over all tensors in their outputs."""
    with torch.no_grad():
        pairs = zip(tensors(one(*inputs)), tensors(other(*inputs)), strict=True)
        far = [(a.float() - b.float()).abs().max() for a, b in pairs if a.numel()]
    return float(torch.stack(far).max()) if far else 0.0
