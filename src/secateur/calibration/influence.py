"""Influence: what layers, or halves of layers, do to the hidden states and to the model's output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from secateur.calibration.precision import products
from secateur.calibration.runner import BlockRunner, skipped
from secateur.errors import CalibrationError, UsageError
from secateur.network.network import Layer, Network
from secateur.network.units import Halves, UnitGroup
from secateur.progress import Progress

DENSE_TOKENS = 2048  # tokens whose distributions in the dense model are held at once
COLUMNS = {"attention": ("head",), "mlp": ("neuron", "expert neuron")}  # what the output projections of a half read


def block_influence(network: Network, group: UnitGroup, runner: BlockRunner, tick: Callable[[], None]) -> Tensor:
    """Returns each unit's influence on the hidden states, from one walk through the dense model.

    Of a layer: 1 - E cos(x, y), x its input and y its output (Men et al. 2024, arXiv 2403.03853, eq. 1). Of half of a
    layer: the same of the block's output without the half's contribution, and with it. Cosines in float32.

    Args:
        network: The model. It is left as it was.
        group: Of layers, or of halves of layers.
        runner: Stands before the first block; afterwards behind the last one.
        tick: Called after each batch of each block.

    Returns:
        (units,) float32, between 0 and 2.

    Raises:
        UsageError: The group is of another kind.
        CalibrationError: The hidden states are NaN or infinite.
    """
    assert runner.position == 0
    units = _units(group)
    sums, tokens = torch.zeros(group.count, dtype=torch.float64), torch.zeros(group.count, dtype=torch.float64)
    for block in range(len(network.blocks)):
        unit = units.get(block)

        def watch(batch: int, output: Tensor, block: int = block, unit: int | None = unit) -> None:
            if unit is None:
                return
            without = runner.hidden[batch]
            if isinstance(group, Halves):
                with _silenced(_outputs(network, block, group.unit)):
                    without = runner.forward(batch)
            cosines = functional.cosine_similarity(without.float(), output.float(), dim=-1)
            sums[unit] += cosines.sum(dtype=torch.float64).cpu()
            tokens[unit] += cosines.numel()  # an encoder has others than its decoder

        with network.resident(block):
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


def leave_one_out(network: Network, group: UnitGroup, ids: Tensor, progress: Progress) -> Tensor:
    """Returns what leaving out each unit does to the output: the mean of KL(dense || without it), in nats per token.

    A layer is passed by; half of a layer adds nothing. The model runs once per unit and 2048 tokens of windows. Of the
    dense model the distributions of at most 2048 tokens are held at a time.

    Args:
        network: A model with a next-token head, in memory. It is left as it was.
        group: Of layers, or of halves of layers.
        ids: (windows, length) tokens; like perplexity this leaves out what the last token of a window predicts.
        progress: Shows progress.

    Returns:
        (units,) float32.

    Raises:
        UsageError: The model has no next-token head, isn't in memory, or the group is of another kind.
        CalibrationError: There is nothing to predict, or the outputs are NaN or infinite.
    """
    units = _units(group)
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
    if ids.shape[0] == 0 or ids.shape[1] < 2:
        raise CalibrationError(f"{tuple(ids.shape)} tokens (windows, length) leave nothing to predict.")
    sums = torch.zeros(group.count, dtype=torch.float64)
    parts = list(_parts(ids))
    step = progress.bar(f"leaving out each {group.unit}", len(parts) * (group.count + 1))
    with torch.inference_mode(), products("auto", network.model.dtype, torch.device("cpu")):
        for windows, positions in parts:
            dense = _log_probabilities(network, windows, positions)
            step()
            for block, unit in units.items():
                with _left_out(network, group, block):
                    other = _log_probabilities(network, windows, positions)
                sums[unit] += functional.kl_div(other, dense, reduction="sum", log_target=True).double()
                step()
    if not bool(torch.isfinite(sums).all()):
        raise CalibrationError(f"the outputs of {network.architecture} are NaN or infinite on the calibration data.")
    return (sums / (ids.shape[0] * (ids.shape[1] - 1))).float()


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
    tensors = [weight.detach() for weight in stored]
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


def _parts(ids: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Yields windows and positions to look at: at most 2048 tokens at a time, all that predict a token once."""
    length = ids.shape[1]
    for windows in ids.split(max(1, DENSE_TOKENS // length)):
        for start in range(0, length - 1, DENSE_TOKENS):
            yield windows, slice(start, min(start + DENSE_TOKENS, length - 1))


def _log_probabilities(network: Network, ids: Tensor, positions: slice) -> Tensor:
    """Returns (tokens, vocabulary) float32."""
    logits: Tensor = network.model(ids, use_cache=False)[0][:, positions]
    return functional.log_softmax(logits.float(), dim=-1).flatten(0, 1)
