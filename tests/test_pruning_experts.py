"""Pruning mixtures of experts: each expert's matrix is a layer of its own, and one that saw no token is told of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.calibration.data import Windows
from secateur.errors import ModelError
from secateur.evaluation.comparison import mask_status
from secateur.layer_choice import needs_of
from secateur.network.families import FAMILIES
from secateur.network.network import Network, Source
from secateur.network.packed import pack, unpack
from secateur.progress import Progress
from secateur.pruning import prune_weights
from secateur.recipe import Calibration, Prune
from secateur.report.structure import structure, structure_table
from secateur.report.terminal import to_text
from secateur.result import StageReport
from secateur.unreached import even_counts
from tiny import EXPERTS, VOCABULARY, save_tiny, tiny_model

UNREACHED = 3

families = pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.experts])


def network(family: str = "mixtral", unreached: bool = False) -> Network:
    """Returns a small model; with `unreached`, one whose router sends no token to expert 3."""
    model = tiny_model(family).requires_grad_(False)

    def pass_over(router: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        logits = output[0].index_fill(1, torch.tensor([UNREACHED]), -torch.inf)
        weights, index = logits.softmax(1).topk(router.top_k)
        return logits, weights, index

    for block in model.model.layers if unreached else ():
        if hasattr(block.mlp, "experts"):
            block.mlp.gate.register_forward_hook(pass_over)
    return Network(model, FAMILIES[family], None, Source(f"tiny:{family}", Path(), "float32"), torch.device("cpu"))


def prune(one: Network, **stage: Any) -> StageReport:
    settings = Prune(**stage)
    ids = torch.randint(5, VOCABULARY, (6, 24), generator=torch.Generator().manual_seed(3))
    data = Windows(ids, "random") if needs_of(settings) else None
    return prune_weights(one, settings, data, Calibration(compute="float32"), 0, Progress())


def matrices(one: Network) -> dict[str, Tensor]:
    return {layer.name: layer.matrix().clone() for layer in one.layers()}


def of_expert(found: dict[str, Tensor], expert: int) -> dict[str, Tensor]:
    return {name: W for name, W in found.items() if name.endswith(f".{expert}")}


def zeros(W: Tensor) -> int:
    return int((W == 0).sum())


@families
def test_an_experts_matrix_is_a_view_of_the_weight_that_all_share(family: str) -> None:
    one = network(family)
    layers = [layer for layer in one.block_layers(1) if layer.expert is not None]
    assert [layer.name for layer in layers] == [
        f"model.layers.1.mlp.experts.{name}.{expert}"
        for expert in range(EXPERTS)
        for name in ("gate_up_proj", "down_proj")
    ]
    assert len({layer.identity for layer in layers}) == len(layers)
    for layer in layers:
        assert layer.weights == layer.matrix().numel() == layer.parameter[0].numel()
        before = layer.parameter.clone()
        layer.write(torch.ones(layer.shape), torch.ones(layer.shape) > 0)
        before[layer.expert] = 1
        assert torch.equal(layer.parameter, before)


def test_a_block_has_the_projections_of_its_own_kind() -> None:
    dense, routed = (network("qwen3_moe").block_layers(block) for block in (0, 1))
    assert [layer.name.rpartition(".")[2] for layer in dense[4:]] == ["gate_proj", "up_proj", "down_proj"]
    assert all(layer.expert is not None for layer in routed[4:])
    broken = network("qwen3_moe")
    del broken.blocks[1].mlp.experts.down_proj
    with pytest.raises(ModelError, match=r"mlp\.experts\.down_proj is missing"):
        broken.layers()


@families
def test_one_expert_alone_can_be_pruned(family: str) -> None:
    one = network(family)
    before = matrices(one)
    stage = prune(one, sparsity=0.5, include=["*.1.mlp.experts.*.2"], reconstruct=True)
    assert len(stage.layers) == 2
    for name, W in matrices(one).items():
        if ".1.mlp.experts." in name and name.endswith(".2"):
            assert zeros(W) == W.numel() // 2
        else:
            assert torch.equal(W, before[name]), name


@families
@pytest.mark.parametrize(
    "stage",
    [
        {"sparsity": 0.5},
        {"sparsity": 0.5, "score": "wanda"},
        {"sparsity": 0.5, "score": "wanda", "solver": "sparsegpt+refit"},
        {"sparsity": 0.5, "score": "taylor"},
        {"sparsity": 0.5, "score": "snip", "gradient": "loss"},
        {"pattern": "2:4"},
    ],
    ids=str,
)
def test_an_expert_that_no_token_reached_is_pruned_by_magnitude_and_named(family: str, stage: dict[str, Any]) -> None:
    one, dense = network(family, unreached=True), matrices(network(family, unreached=True))
    report = prune(one, **stage)
    for layer in report.layers:
        assert layer.zeros == layer.weights // 2
        if layer.name.endswith(f".{UNREACHED}"):
            assert [(step.solver, step.error) for step in layer.steps] == [("none", None)]
    for name, W in of_expert(matrices(one), UNREACHED).items():
        V = dense[name]
        assert torch.equal(W, V * (W != 0))
        if "sparsity" in stage:
            assert float(V[W == 0].abs().max()) <= float(V[W != 0].abs().min())
    blocks = [0, 1] if family == "mixtral" else [1]
    assert [note for note in report.notes if "no calibration token" in note] == [
        f"model.layers.{block}: no calibration token reached expert {UNREACHED}: pruned by magnitude alone. "
        "More calibration windows may help."
        for block in blocks
    ]


@pytest.mark.parametrize("stage", [{"score": "l1"}, {"score": "random"}], ids=str)
def test_a_stage_that_needs_no_statistics_says_nothing_of_experts(stage: dict[str, Any]) -> None:
    assert prune(network(unreached=True), sparsity=0.5, **stage).notes == ()


def test_a_score_without_statistics_stays_the_score_of_an_unreached_expert() -> None:
    refitted, plain = network(unreached=True), network(unreached=True)
    report = prune(refitted, sparsity=0.5, score="random", solver="refit")
    prune(plain, sparsity=0.5, score="random")
    assert len(report.notes) == 2
    for name, W in of_expert(matrices(refitted), UNREACHED).items():
        assert torch.equal(W, matrices(plain)[name])


@pytest.mark.parametrize("threshold", ["0.5", "p30"])
def test_a_threshold_on_other_scores_leaves_an_unreached_expert_and_a_relative_one_does_not(threshold: str) -> None:
    one, dense = network(unreached=True), matrices(network(unreached=True))
    report = prune(one, threshold=threshold, score="wanda")
    found = of_expert(matrices(one), UNREACHED)
    assert len(found) == 4
    if threshold == "0.5":
        assert all(torch.equal(W, dense[name]) for name, W in found.items())
        assert [note.endswith("left as it was. More calibration windows may help.") for note in report.notes] == [
            True
        ] * 2
    else:
        assert all(0.29 < zeros(W) / W.numel() < 0.31 for W in found.values())
        assert all("pruned by magnitude" in note for note in report.notes)


@pytest.mark.parametrize("allocation", ["global", "owl", "error"])
def test_a_plan_gives_unreached_experts_the_models_share_and_meets_the_budget(allocation: str) -> None:
    one = network(unreached=True)
    report = prune(one, sparsity=0.6, score="wanda", allocation=allocation)
    every = matrices(one)
    assert sum(map(zeros, every.values())) == round(0.6 * sum(W.numel() for W in every.values())) == report.zeros
    for W in of_expert(every, UNREACHED).values():
        assert zeros(W) / W.numel() == pytest.approx(0.6, abs=1e-3)
    alone = prune(network(unreached=True), sparsity=0.6, score="wanda", allocation=allocation, include=["*experts*.3"])
    assert alone.sparsity == pytest.approx(0.6, abs=1e-3)


def test_even_counts_add_up_and_differ_from_the_share_by_less_than_one() -> None:
    sizes = {"a": 7, "b": 1, "c": 12, "d": 3}
    for total in range(sum(sizes.values()) + 1):
        counts = even_counts(sizes, total)
        assert sum(counts.values()) == total
        for name, count in counts.items():
            assert 0 <= count <= sizes[name]
            assert abs(count - total * sizes[name] / 23) < 1
    assert even_counts({}, 0) == {}


@families
def test_a_pruned_checkpoint_reloads_equal_packs_to_the_same_bytes_and_holds_its_mask(
    family: str, tmp_path: Path
) -> None:
    model = save_tiny(family, tmp_path / "dense", tokenizer=True)
    result = secateur.prune(model, sparsity=0.5, output=tmp_path / "half", samples=4, length=16, speed=False)
    assert result.reload == 0.0
    half = secateur.load(tmp_path / "half")
    mask = secateur.Mask.load(tmp_path / "half")
    assert mask == secateur.Mask.of(half)
    assert set(mask.layers) == {layer.name for layer in half.layers()}
    mask.verify(half)
    assert result.comparison is not None
    (pruned,) = result.comparison.others
    assert (mask_status(half, tmp_path / "half")[0] or "").endswith("; held")
    assert pruned.zeros * 2 == pruned.weights == sum(layer.weights for layer in half.layers())
    assert {layer.zeros() / layer.weights for layer in half.layers()} == {0.5}

    assert pack(tmp_path / "half", tmp_path / "packed", False, Progress()).tensors > 2 * EXPERTS
    unpack(tmp_path / "packed", tmp_path / "back", False, Progress())
    for path in (tmp_path / "half").iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()

    layer = half.layers()[-1]
    assert layer.expert == EXPERTS - 1
    layer.matrix()[layer.matrix() == 0] = 1.0
    assert mask.violations(half) == {layer.name: layer.weights // 2}
    mask.apply(half)
    mask.verify(half)


def test_the_table_of_a_models_structure_has_its_experts_in_one_row() -> None:
    found = structure(network("mixtral"))
    assert found["dimensions"]["experts"] == EXPERTS
    assert found["dimensions"]["experts_per_token"] == 2
    (row,) = [line for line in to_text(structure_table(found)).splitlines() if "experts.down_proj" in line]
    assert row.split()[:2] == ["model.layers.*.mlp.experts.down_proj.*", str(2 * EXPERTS)]
