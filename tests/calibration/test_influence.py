"""Influence against what really happens when a layer, or half of one, is removed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from feeding import random_windows, run
from secateur.calibration.influence import block_influence, leave_one_out
from secateur.calibration.runner import BlockRunner
from secateur.calibration.windows import Windows
from secateur.errors import CalibrationError, UsageError
from secateur.evaluation.quality import measure
from secateur.network.families import FAMILIES
from secateur.network.network import Network, Source
from secateur.network.surgery import Cut, cut
from secateur.network.unit_group import Halves
from secateur.network.units import unit_groups
from secateur.processes import Processes
from secateur.progress import Progress
from tiny import LAYERS, tiny_model

LENGTH = 24
DEPTHS = ("layer", "attention", "mlp")
PREDICTING = [name for name, family in FAMILIES.items() if family.objective in ("causal", "seq2seq")]
every_family = pytest.mark.parametrize("family", FAMILIES)
every_depth = pytest.mark.parametrize("unit", DEPTHS)


def network(family: str) -> Network:
    model = tiny_model(family).requires_grad_(False)
    return Network(model, FAMILIES[family], None, Source(f"tiny:{family}", Path(), "float32"), torch.device("cpu"))


def windows(family: str = "llama") -> Windows:
    return random_windows(family, 4, LENGTH)


def having(unit: str, families: Iterable[str]) -> list[str]:
    """Returns the families that have such units: all have layers, some keep a half in any case (T5's attention)."""
    return [name for name in families if unit == "layer" or unit in FAMILIES[name].without]


def nothing() -> None:
    """Doesn't watch the progress."""


def influence(one: Network, unit: str, per_batch: int | None = None) -> Tensor:
    (group,) = unit_groups(one, unit)
    return block_influence(
        one, group, BlockRunner(one, windows(one.family.name), "float32", per_batch=per_batch), nothing
    )


def passes(one: Network) -> tuple[list[Tensor], list[Tensor]]:
    """Returns each block's input and output in a plain forward pass."""
    before: list[Tensor] = []
    after: list[Tensor] = []
    handles = []
    for block in one.blocks:
        handles.append(block.register_forward_pre_hook(lambda _, args: before.append(args[0])))
        handles.append(
            block.register_forward_hook(lambda _, __, out: after.append(out if isinstance(out, Tensor) else out[0]))
        )
    with torch.inference_mode():
        run(one, windows(one.family.name))
    for handle in handles:
        handle.remove()
    return before, after


def turned(x: Tensor, y: Tensor) -> float:
    x, y = x.double().flatten(0, -2), y.double().flatten(0, -2)
    return 1 - sum(float(a @ b / a.norm() / b.norm()) for a, b in zip(x, y, strict=True)) / len(x)


@every_family
def test_a_layers_influence_is_how_far_it_turns_its_input(family: str) -> None:
    found = influence(network(family), "layer")
    before, after = passes(network(family))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([turned(x, y) for x, y in zip(before, after, strict=True)], abs=1e-5)


@pytest.mark.parametrize(
    ("family", "unit"), [(name, unit) for unit in ("attention", "mlp") for name in having(unit, FAMILIES)]
)
def test_a_halfs_influence_is_how_far_its_removal_turns_the_output(family: str, unit: str) -> None:
    found = influence(network(family), unit)
    dense = passes(network(family))[1]
    (group,) = unit_groups(network(family), unit)
    assert isinstance(group, Halves)
    for number, block in enumerate(group.blocks):
        one = network(family)
        (own,) = unit_groups(one, unit)
        # The blocks before it stay as they are, so its input is the same.
        smaller = cut(one, [Cut(own, torch.arange(group.count) != number)])
        assert float(found[number]) == pytest.approx(turned(passes(smaller)[1][block], dense[block]), abs=1e-5)


@pytest.mark.parametrize("family", ["t5", "t5_gated"])
def test_a_half_that_stays_in_any_case_is_no_unit(family: str) -> None:
    assert "attention" not in FAMILIES[family].without
    with pytest.raises(UsageError, match="T5ForConditionalGeneration has no units of the kind 'attention'"):
        influence(network(family), "attention")
    assert {name for name in FAMILIES if name not in having("attention", FAMILIES)} == {"t5", "t5_gated"}
    assert having("mlp", FAMILIES) == list(FAMILIES)


@pytest.mark.parametrize("family", ["llama", "gpt2", "xlnet", "bert"])
@every_depth
def test_batches_do_not_matter_and_the_model_stays_as_it_was(family: str, unit: str) -> None:
    one = network(family)
    before = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    torch.testing.assert_close(influence(one, unit), influence(one, unit, per_batch=1))
    assert all(torch.equal(before[name], tensor) for name, tensor in one.model.state_dict().items())


@every_depth
def test_the_walk_ends_behind_the_last_block_and_ticks_for_each_batch(unit: str) -> None:
    one, ticks = network("llama"), []
    runner = BlockRunner(one, windows(), "float32", per_batch=1)
    block_influence(one, unit_groups(one, unit)[0], runner, lambda: ticks.append(1))
    assert runner.position == LAYERS
    assert len(ticks) == 4 * LAYERS


@dataclass(frozen=True)
class Rank(Processes):
    """One of several processes, which notes the sums that it would share."""

    shared: list[Tensor] = field(default_factory=list)

    def sum(self, tensor: Tensor) -> None:
        self.shared.append(tensor.clone())


@every_depth
def test_the_sums_of_several_processes_add_up(unit: str) -> None:
    ranks = [Rank(number, 3) for number in range(3)]
    for rank in ranks:
        one = network("llama")
        runner = BlockRunner(one, windows(), "float32", per_batch=1, team=rank)
        block_influence(one, unit_groups(one, unit)[0], runner, nothing)
    cosines, tokens = (sum(rank.shared[part] for rank in ranks) for part in range(2))
    torch.testing.assert_close((1 - cosines / tokens).float(), influence(network("llama"), unit))


def test_only_layers_and_halves_have_an_influence() -> None:
    one = network("llama")
    group = unit_groups(one, "neuron")[0]
    for measured in (
        lambda: block_influence(one, group, BlockRunner(one, windows()), nothing),
        lambda: leave_one_out(one, group, windows(), Progress()),
    ):
        with pytest.raises(UsageError, match=r"influence of model\.layers\.0/neuron can't be measured; only that of"):
            measured()


def test_hidden_states_that_are_not_finite_are_named_and_the_weights_restored() -> None:
    one = network("llama")
    one.block_layers(1)[-1].parameter[0, 0] = torch.nan
    before = one.block_layers(1)[-1].parameter.clone()
    with pytest.raises(CalibrationError, match="attention 1 of model/attention are NaN or infinite"):
        influence(one, "attention")
    assert torch.equal(one.block_layers(1)[-1].parameter.nan_to_num(9), before.nan_to_num(9))


@pytest.mark.parametrize(("family", "unit"), [(name, unit) for unit in DEPTHS for name in having(unit, PREDICTING)])
def test_leaving_out_a_unit_costs_what_evaluation_measures_after_its_removal(family: str, unit: str) -> None:
    one = network(family)
    before = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    found = leave_one_out(one, unit_groups(one, unit)[0], windows(family), Progress())
    assert found.dtype == torch.float32
    assert all(torch.equal(before[name], tensor) for name, tensor in one.model.state_dict().items())
    assert len(found) == len(one.blocks)
    for number in range(len(found)):
        other = network(family)
        (group,) = unit_groups(other, unit)
        smaller = cut(other, [Cut(group, torch.arange(group.count) != number)])
        quality = measure([network(family), smaller], windows(family), Progress())[1]
        assert float(found[number]) == pytest.approx(quality.kl / quality.count, rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("unit", ["layer", "mlp"])
def test_beside_units_that_are_gone_the_others_are_judged_as_in_the_smaller_model(family: str, unit: str) -> None:
    def without(*gone: int) -> Network:
        one = network(family)
        (group,) = unit_groups(one, unit)
        keep = torch.ones(group.count, dtype=torch.bool)
        keep[list(gone)] = False
        return cut(one, [Cut(group, keep)])

    one = network(family)
    (group,) = unit_groups(one, unit)
    found = leave_one_out(one, group, windows(family), Progress(), gone=[0])
    turns = block_influence(one, group, BlockRunner(one, windows(family), "float32"), nothing, gone=[0])
    assert float(found[0]) == 0.0
    assert float(turns[0]) == pytest.approx(0.0, abs=1e-6)
    last = group.count - 1
    if unit == "mlp" or group.count > LAYERS:  # a model of no layers is none
        quality = measure([network(family), without(0, last)], windows(family), Progress())[1]
        assert float(found[last]) == pytest.approx(quality.kl / quality.count, rel=1e-3)
    smaller = influence(without(0), unit)
    torch.testing.assert_close(turns[1:], smaller if unit == "layer" else smaller[-last:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("held", [1, 10, LENGTH, 2 * LENGTH + 1])
def test_how_many_tokens_are_held_at_once_does_not_matter(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one = network("gpt2")
    (group,) = unit_groups(one, "layer")
    whole = leave_one_out(one, group, windows(), Progress())
    sizes: list[int] = []
    plain = functional.log_softmax
    monkeypatch.setattr("secateur.calibration.influence.DENSE_TOKENS", held)
    monkeypatch.setattr(
        functional, "log_softmax", lambda x, dim: sizes.append(x.shape[0] * x.shape[1]) or plain(x, dim=dim)
    )
    torch.testing.assert_close(leave_one_out(one, group, windows(), Progress()), whole)
    assert max(sizes) <= held


@pytest.mark.parametrize("family", ["bert", "xlnet"])
def test_models_without_a_next_token_head_are_refused_with_a_way_out(family: str) -> None:
    one = network(family)
    with pytest.raises(UsageError, match=f"needs a next-token head, which {one.architecture} hasn't.*block-influence"):
        leave_one_out(one, unit_groups(one, "layer")[0], windows(), Progress())


def test_no_token_to_predict_is_an_error() -> None:
    one = network("llama")
    for some in (windows().part(0, 0), replace(windows(), ids=windows().ids[:, :1])):
        with pytest.raises(CalibrationError, match="leave nothing to predict"):
            leave_one_out(one, unit_groups(one, "layer")[0], some, Progress())


def test_outputs_that_are_not_finite_are_an_error() -> None:
    one = network("llama")
    one.block_layers(1)[-1].parameter[0, 0] = torch.nan
    with pytest.raises(CalibrationError, match="outputs of LlamaForCausalLM are NaN or infinite"):
        leave_one_out(one, unit_groups(one, "layer")[0], windows(), Progress())
