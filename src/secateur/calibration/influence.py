"""Influence: what layers, or halves of layers, do to the hidden states and to the model's output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from secateur.calibration.inputs import model_inputs, predicted_ids
from secateur.calibration.precision import products
from secateur.calibration.runner import BlockRunner
from secateur.calibration.stand_ins import skipped
from secateur.calibration.windows import Windows
from secateur.errors import CalibrationError, UsageError
from secateur.network.network import Layer, Network
from secateur.network.unit_group import Halves, UnitGroup
from secateur.progress import Progress

DENSE_TOKENS = 2048  # tokens whose distributions in the dense model are held at once
COLUMNS = {"attention": ("head",), "mlp": ("neuron", "expert neuron")}  # what the outputs of a half read


def block_influence(
    network: Network, group: UnitGroup, runner: BlockRunner, tick: Callable[[], None], gone: Sequence[int] = ()
) -> Tensor:
    """Returns each unit's influence on the hidden states, from one walk through the dense model.

    Of a layer: 1 - E cos(x, y), x its input and y its output (Men et al. 2024, arXiv 2403.03853, eq. 1). Of half of a
    layer: the same of the block's output without the half's contribution, and with it. Cosines in float32.

    Args:
        network: The model. It is left as it was.
        group: Of layers, or of halves of layers.
        runner: Stands before the first block; afterwards behind the last one.
        tick: Called after each batch of each block.
        gone: Units that are left out already; their influence is 0.

    Returns:
        (units,) float32, between 0 and 2.

    Raises:
        UsageError: The group is of another kind.
        CalibrationError: The hidden states are NaN or infinite.
    """
    assert runner.position == 0
    units = _units(group)
    sums = torch.zeros(group.count, dtype=torch.float64)
    tokens = torch.zeros(group.count, dtype=torch.int64)  # an encoder's blocks see others than a decoder's
    for block in range(len(network.blocks)):
        unit = units.get(block)
        out = [unit] if unit is not None and unit in gone else []

        def watch(batch: int, output: Tensor, block: int = block, unit: int | None = unit) -> None:
            if unit is None:
                return
            without = runner.hidden[batch]
            if isinstance(group, Halves):
                with _silenced(_outputs(network, block, group.unit)):
                    without = runner.forward(batch)
            cosines = functional.cosine_similarity(without.float(), output.float(), dim=-1)
            sums[unit] += cosines.sum(dtype=torch.float64).cpu()
            tokens[unit] += cosines.numel()

        with network.resident(block), _all_left_out(network, group, out):
            runner.advance(tick, watch)
        runner.hidden.forget()
    runner.team.sum(sums)
    runner.team.sum(tokens)
    if not bool(torch.isfinite(sums).all()):
        unit = int((~torch.isfinite(sums)).nonzero()[0])
        raise CalibrationError(
            f"the hidden states of {group.unit} {unit} of {group.name} are NaN or infinite on the calibration data; "
            "try --compute float32."
        )
    return (1 - sums / tokens.clamp_min(1)).float()


def leave_one_out(
    network: Network,
    group: UnitGroup,
    windows: Windows,
    progress: Progress,
    compute: str = "auto",
    gone: Sequence[int] = (),
) -> Tensor:
    """Returns what leaving out each unit does to the output: the mean of KL(dense || without it), in nats per token.

    A layer is passed by; half of a layer adds nothing. The model runs once per unit and 2048 tokens of windows. Of the
    dense model the distributions of at most 2048 tokens are held at a time.

    Args:
        network: A model with a next-token head, in memory. It is left as it was.
        group: Of layers, or of halves of layers.
        windows: What to feed it; like perplexity this leaves out what the last token of a window predicts.
        progress: Shows progress.
        compute: See `products`.
        gone: Units that are left out already: the others are left out beside them, and these have 0.

    Returns:
        (units,) float32.

    Raises:
        UsageError: The model has no next-token head, isn't in memory, or the group is of another kind.
        CalibrationError: There is nothing to predict, or the outputs are NaN or infinite.
    """
    units = {block: unit for block, unit in _units(group).items() if unit not in gone}
    if not network.generates:
        raise UsageError(
            f"leaving out units one by one needs a next-token head, which {network.architecture} hasn't; "
            "take --score block-influence."
        )
    if network.store is not None:
        raise UsageError(
            "leaving out units one by one needs the whole model in memory; "
            "a streamed one takes --score block-influence."
        )
    parts = list(_parts(network, windows)) if windows.length > 1 else []
    if not parts:
        raise CalibrationError(f"{tuple(windows.ids.shape)} tokens (windows, length) leave nothing to predict.")
    sums = torch.zeros(group.count, dtype=torch.float64)
    step = progress.bar(f"leaving out each {group.unit}", len(parts) * (len(units) + 1))
    with torch.inference_mode(), products(compute, network.model.dtype, torch.device("cpu")):
        for part, positions in parts:
            dense = _log_probabilities(network, part, positions)
            step()
            with _all_left_out(network, group, gone):
                for block, unit in units.items():
                    with _left_out(network, group, block):
                        other = _log_probabilities(network, part, positions)
                    sums[unit] += functional.kl_div(other, dense, reduction="sum", log_target=True).double()
                    step()
    if not bool(torch.isfinite(sums).all()):
        raise CalibrationError(f"the outputs of {network.architecture} are NaN or infinite on the calibration data.")
    predicted = sum(len(part) * len(range(positions.start, positions.stop)) for part, positions in parts)
    return (sums / predicted).float()


def _units(group: UnitGroup) -> dict[int, int]:
    """Returns each unit's number by the index of its block."""
    if isinstance(group, Halves):
        return {block: unit for unit, block in enumerate(group.blocks)}
    if group.unit == "layer":
        return {block: block for block in range(group.count)}
    raise UsageError(f"the influence of {group.name} can't be measured; only that of layer, attention and mlp.")


def _outputs(network: Network, block: int, half: str) -> list[Layer]:
    """Returns the layers by which half of a block adds to the hidden states."""
    pairs = zip(network.projections(block), network.block_layers(block), strict=True)
    return [layer for one, layer in pairs if "residual" in one.rows and one.columns in COLUMNS[half]]


@contextmanager
def _silenced(layers: Sequence[Layer]) -> Iterator[None]:
    """Has zeros in the place of layers' weights and biases while it lasts."""
    biases = [getattr(layer.module, "bias", None) for layer in layers]
    stored = [*(layer.part(layer.parameter) for layer in layers), *(bias for bias in biases if bias is not None)]
    tensors = [parameter.detach() for parameter in stored]
    before = [tensor.clone() for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.zero_()
        yield
    finally:
        for tensor, saved in zip(tensors, before, strict=True):
            tensor.copy_(saved)


def _left_out(network: Network, group: UnitGroup, block: int) -> AbstractContextManager[None]:
    if isinstance(group, Halves):
        return _silenced(_outputs(network, block, group.unit))
    return skipped(network, block)


@contextmanager
def _all_left_out(network: Network, group: UnitGroup, units: Sequence[int]) -> Iterator[None]:
    blocks = {unit: block for block, unit in _units(group).items()}
    with ExitStack() as stack:
        for unit in units:
            stack.enter_context(_left_out(network, group, blocks[unit]))
        yield


def _parts(network: Network, windows: Windows) -> Iterator[tuple[Windows, slice]]:
    """Yields windows and positions to look at: at most 2048 tokens at a time, all that predict a token once."""
    for part in windows.batches(max(1, DENSE_TOKENS // windows.length)):
        length = predicted_ids(network, part).shape[1]
        for start in range(part.given - 1, length - 1, DENSE_TOKENS):
            yield part, slice(start, min(start + DENSE_TOKENS, length - 1))


def _log_probabilities(network: Network, windows: Windows, positions: slice) -> Tensor:
    """Returns (tokens, vocabulary) float32."""
    first, others = model_inputs(network, windows)
    logits: Tensor = network.model(first, **others, use_cache=False)[0][:, positions]
    return functional.log_softmax(logits.float(), dim=-1).flatten(0, 1)
