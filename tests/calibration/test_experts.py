"""What is gathered of experts against the model's own routing, worked out by hand from its forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.calibration.data import Windows
from secateur.calibration.experts import ExpertUsage, Routing, watching_experts
from secateur.calibration.runner import BlockRunner
from secateur.calibration.statistics import Needs
from secateur.errors import CalibrationError
from secateur.network.families import FAMILIES
from secateur.network.network import Layer, Network, Source
from tiny import EXPERTS, VOCABULARY, tiny_model

LENGTH = 24

families = pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.experts])


def network(family: str) -> Network:
    model = tiny_model(family).requires_grad_(False)
    return Network(model, FAMILIES[family], None, Source(f"tiny:{family}", Path(), "float32"), torch.device("cpu"))


def windows(number: int = 6) -> Windows:
    ids = torch.randint(5, VOCABULARY, (number, LENGTH), generator=torch.Generator().manual_seed(3))
    return Windows(ids, "random")


def nothing() -> None:
    """Doesn't watch the progress."""


def routed(one: Network, block: int, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Returns each expert's tokens (tokens, hidden) and their weights (tokens,), float64, from the model's forward."""
    seen: list[Tensor] = []
    mlp = one.blocks[block].mlp
    handle = mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1).double()))
    with torch.inference_mode():
        one.model(ids)
    handle.remove()
    (x,) = seen
    chances = (x @ mlp.gate.weight.double().T).softmax(1)
    highest = chances.topk(2).indices
    g = torch.zeros_like(chances).scatter(1, highest, chances.gather(1, highest))
    if one.family.name == "mixtral":  # Qwen3-MoE does only with norm_topk_prob
        g /= g.sum(1, keepdim=True)
    return [(x[g[:, expert] > 0], g[g[:, expert] > 0, expert]) for expert in range(EXPERTS)]


def neurons(one: Network, block: int, expert: int, x: Tensor) -> Tensor:
    gate, up = (x @ one.blocks[block].mlp.experts.gate_up_proj[expert].double().T).chunk(2, 1)
    return functional.silu(gate) * up


def moved_to(one: Network, block: int, per_batch: int = 2) -> BlockRunner:
    runner = BlockRunner(one, windows(), "float32", per_batch=per_batch)
    for _ in range(block):
        runner.advance(nothing)
    return runner


def expert_layers(one: Network, block: int) -> list[Layer]:
    return [layer for layer in one.block_layers(block) if layer.expert is not None]


@families
def test_each_experts_gram_matrix_is_that_of_exactly_the_tokens_routed_to_it(family: str) -> None:
    one, block = network(family), 1
    layers = expert_layers(one, block)
    assert len(layers) == 2 * EXPERTS
    found = moved_to(one, block).gather({layer.reads: (layer, Needs.GRAM) for layer in layers}, nothing)
    for expert, (x, _) in enumerate(routed(one, block, windows().ids)):
        first, second = [layer for layer in layers if layer.expert == expert]
        for layer, X in ((first, x), (second, neurons(one, block, expert, x))):
            assert 0 < found[layer.reads].count == len(x) < windows().ids.numel()
            torch.testing.assert_close(found[layer.reads].G.double(), X.T @ X, rtol=1e-4, atol=1e-3)


@families
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_statistics_are_the_same_however_the_experts_are_computed(family: str, implementation: str) -> None:
    one, block = network(family), 1
    wanted = {layer.reads: (layer, Needs.GRAM) for layer in expert_layers(one, block)}
    usual = moved_to(one, block).gather(wanted, nothing)
    one.model.config._experts_implementation = implementation
    found = moved_to(one, block).gather(wanted, nothing)
    for name, statistics in usual.items():
        assert found[name].count == statistics.count
        torch.testing.assert_close(found[name].G, statistics.G, rtol=1e-4, atol=1e-3)


@families
def test_usage_is_reaps_sums_from_the_models_own_forward(family: str) -> None:
    one, block = network(family), 1
    usage = moved_to(one, block).expert_usage(nothing)
    for part in (usage.count, usage.contribution, usage.weight):
        assert part.dtype == torch.float64
        assert part.shape == (EXPERTS,)
    assert float(usage.count.sum()) == 2 * windows().ids.numel()
    for expert, (x, g) in enumerate(routed(one, block, windows().ids)):
        down = one.blocks[block].mlp.experts.down_proj[expert].double()
        norms = (neurons(one, block, expert, x) @ down.T).norm(dim=1)
        assert int(usage.count[expert]) == len(x)
        assert float(usage.weight[expert]) == pytest.approx(float(g.sum()), rel=1e-5)
        assert float(usage.contribution[expert]) == pytest.approx(float((g * norms).sum()), rel=1e-4)
        assert float(usage.score[expert]) == pytest.approx(float((g * norms).mean()), rel=1e-4)
    if family == "mixtral":
        assert float(usage.weight.sum()) == pytest.approx(windows().ids.numel(), rel=1e-6)


@families
def test_usage_changes_nothing_and_does_not_depend_on_the_batches(family: str) -> None:
    one, plain = network(family), network(family)
    ticks: list[None] = []
    runner, other = moved_to(one, 1), moved_to(plain, 1)
    usage = runner.expert_usage(lambda: ticks.append(None))
    assert len(ticks) == len(runner.hidden) == 3
    runner.advance(nothing)
    other.advance(nothing)
    assert all(torch.equal(mine, its) for mine, its in zip(runner.hidden, other.hidden, strict=True))
    assert not any(module._forward_pre_hooks for module in one.model.modules())
    whole = moved_to(network(family), 1, per_batch=6).expert_usage(nothing)
    torch.testing.assert_close(usage.contribution, whole.contribution, rtol=1e-5, atol=0)
    assert torch.equal(usage.count, whole.count)


def test_usage_of_two_passes_adds_up() -> None:
    one = network("mixtral")
    parts = [
        BlockRunner(one, Windows(ids, "random"), "float32").expert_usage(nothing) for ids in windows().ids.split([2, 4])
    ]
    both, whole = parts[0] + parts[1], BlockRunner(one, windows(), "float32").expert_usage(nothing)
    assert torch.equal(both.count, whole.count)
    torch.testing.assert_close(both.contribution, whole.contribution, rtol=1e-5, atol=0)
    torch.testing.assert_close(both.weight, whole.weight, rtol=1e-5, atol=0)


def test_a_block_without_experts_uses_none_and_an_unused_expert_scores_zero() -> None:
    assert moved_to(network("qwen3_moe"), 0).expert_usage(nothing).score.shape == (0,)
    assert moved_to(network("llama"), 0).expert_usage(nothing).score.shape == (0,)
    assert ExpertUsage.empty(3).score.tolist() == [0, 0, 0]


def test_experts_that_are_called_in_another_way_are_refused() -> None:
    class Experts(nn.Module):
        def forward(self, *args: Any) -> Tensor:
            return args[0]

    experts = Experts()
    looked: list[Routing] = []
    x, index = torch.ones(3, 2), torch.zeros(3, 1, dtype=torch.long)
    with watching_experts(experts, looked.append, 1):
        experts(x, index, torch.ones(3, 1))
    assert len(looked) == 1
    with (
        pytest.raises(CalibrationError, match="Experts is called in a way"),
        watching_experts(experts, looked.append, 1),
    ):
        experts(x, index)
    with (
        pytest.raises(CalibrationError, match="Experts was called 0 times"),
        watching_experts(experts, looked.append, 2),
    ):
        experts.forward(x, index)
