"""The prune stage on small models of every family: exact amounts, in the right places, and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from feeding import random_windows, run
from secateur.allocation.amounts import Amount, Pattern
from secateur.calibration.statistics import Needs, Statistics
from secateur.calibration.windows import Windows
from secateur.errors import NothingPrunedError, PatternError, UsageError
from secateur.layer_choice import needs_of, select_layers
from secateur.network.families import FAMILIES
from secateur.network.network import Layer, Network, Source
from secateur.progress import Progress
from secateur.pruning import prune_weights
from secateur.recipe import Calibration, Prune
from secateur.result import LayerReport, StageReport
from secateur.scores import SCORES
from secateur.solvers import SOLVERS, Problem, chain_named, solve_chain
from tiny import tiny_model

every_family = pytest.mark.parametrize("family", FAMILIES)
TIED = [name for name in FAMILIES if tiny_model(name).config.tie_word_embeddings]


def network(family: str = "llama", dtype: torch.dtype = torch.float32) -> Network:
    model = tiny_model(family).to(dtype).requires_grad_(False)
    source = Source(f"tiny:{family}", Path(), str(dtype).removeprefix("torch."))
    return Network(model, FAMILIES[family], None, source, torch.device("cpu"))


def windows(family: str = "llama") -> Windows:
    return random_windows(family, 6, 24)


def prune(one: Network, seed: int = 0, **stage: Any) -> StageReport:
    settings = Prune(**stage)
    data = windows(one.family.name) if needs_of(settings) else None
    return prune_weights(one, settings, data, Calibration(compute="float32"), seed, Progress())


def matrices(one: Network) -> dict[str, Tensor]:
    """Returns copies of the blocks' weights as (out, in)."""
    return {layer.name: layer.matrix().clone() for layer in one.layers()}


def zeros(W: Tensor) -> int:
    return W.numel() - int(torch.count_nonzero(W))


def state(one: Network) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in one.model.state_dict().items()}


def changed(one: Network, before: dict[str, Tensor]) -> set[str]:
    """Returns the names of the tensors that differ from before."""
    return {name for name, tensor in one.model.state_dict().items() if not torch.equal(tensor, before[name])}


def tensor_names(one: Network, layers: list[Layer]) -> set[str]:
    """Returns the names in the state dict of the layers' weights, their ties among them."""
    pointers = {layer.parameter.data_ptr() for layer in layers}
    return {name for name, tensor in one.model.state_dict().items() if tensor.data_ptr() in pointers}


def dead(report: LayerReport, W: Tensor) -> None:
    """Checks a report's figures against the weight itself."""
    assert (report.rows, report.columns) == tuple(W.shape)
    assert report.zeros == zeros(W)
    assert report.dead_rows == int((W == 0).all(1).sum())
    assert report.dead_columns == int((W == 0).all(0).sum())


@every_family
def test_sparsegpt_leaves_exactly_the_share_of_each_layer_and_touches_nothing_else(family: str) -> None:
    one = network(family)
    before, dense = state(one), matrices(one)
    stage = prune(one, solver="sparsegpt", sparsity=0.5)
    assert [report.name for report in stage.layers] == [layer.name for layer in one.layers()]
    for report, W in zip(stage.layers, matrices(one).values(), strict=True):
        assert zeros(W) == W.numel() // 2
        assert report.zeros_before == 0
        dead(report, W)
        assert report.damping == 0.01
        assert not torch.equal(W[W != 0], dense[report.name][W != 0])  # the others made up for it
    assert changed(one, before) == tensor_names(one, one.layers())
    assert stage.sparsity == 0.5


@every_family
def test_sparsegpt_errs_less_than_its_mask_alone_would(family: str) -> None:
    for report in prune(network(family), sparsity=0.5).layers:
        assert 0 < report.error < report.error_masked < 1, report.name


@every_family
@pytest.mark.parametrize("per", ["layer", "output"])
def test_wanda_leaves_kept_weights_as_they_were_and_prunes_the_lowest_exactly(family: str, per: str) -> None:
    one = network(family)
    before, dense = state(one), matrices(one)
    stage = prune(one, sparsity=0.6, score="wanda", per=per)
    for report, W in zip(stage.layers, matrices(one).values(), strict=True):
        assert zeros(W) == round(0.6 * W.numel())
        dead(report, W)
        assert torch.equal(W, dense[report.name] * (W != 0))
        by_row = (W == 0).sum(1)
        if per == "output":
            assert int(by_row.max() - by_row.min()) <= 1
        assert report.damping is None
    assert changed(one, before) == tensor_names(one, one.layers())


@every_family
def test_wanda_takes_the_norms_of_the_blocks_own_inputs(family: str) -> None:
    one, plain = network(family), network(family)
    first = one.block_layers(0)[0]
    prune(one, sparsity=0.5, score="wanda", per="output", include=[first.name])
    X: list[Tensor] = []
    block = plain.blocks[0]
    if first.module is None:  # XLNet's q reads the block's own input
        block.register_forward_pre_hook(lambda _, args: X.append(args[0]))
    else:
        plain.block_layers(0)[0].module.register_forward_pre_hook(lambda _, args: X.append(args[0]))
    with torch.inference_mode():
        run(plain, windows(family))
    W = plain.block_layers(0)[0].matrix()
    S = W.abs() * X[0].flatten(0, -2).norm(dim=0)
    for row, (kept, scores) in enumerate(zip(first.matrix() != 0, S, strict=True)):
        assert float(scores[~kept].max()) <= float(scores[kept].min()), row


@every_family
def test_a_threshold_on_magnitudes_takes_exactly_what_lies_below_it(family: str) -> None:
    one = network(family)
    dense = matrices(one)
    stage = prune(one, threshold="0.1", score="l1")
    for report, W in zip(stage.layers, matrices(one).values(), strict=True):
        assert torch.equal(W, torch.where(dense[report.name].abs() < 0.1, 0.0, dense[report.name]))
        assert report.threshold == 0.1


@every_family
@pytest.mark.parametrize("score", [None, "wanda"])
def test_two_of_every_four_consecutive_inputs_stay(family: str, score: str | None) -> None:
    one = network(family)
    prune(one, pattern="2:4", score=score)
    for name, W in matrices(one).items():
        assert set((W == 0).reshape(W.shape[0], -1, 4).sum(2).flatten().tolist()) == {2}, name


@every_family
def test_a_global_share_of_magnitudes_is_one_sort_of_the_whole_model(family: str) -> None:
    one = network(family)
    dense = matrices(one)
    prune(one, sparsity=0.37, score="l1", allocation="global")
    flat = np.concatenate([W.abs().numpy().ravel() for W in dense.values()])
    gone = np.zeros(flat.size, dtype=bool)
    gone[np.argsort(flat, kind="stable")[: round(0.37 * flat.size)]] = True
    found = np.concatenate([(W == 0).numpy().ravel() for W in matrices(one).values()])
    assert np.array_equal(found, gone)


@every_family
@pytest.mark.parametrize("score", [None, "wanda"])
def test_a_global_share_is_exact_in_total(family: str, score: str | None) -> None:
    one = network(family)
    stage = prune(one, sparsity=0.5, score=score, allocation="global")
    found = matrices(one)
    assert sum(map(zeros, found.values())) == round(0.5 * sum(W.numel() for W in found.values())) == stage.zeros
    assert len({report.sparsity for report in stage.layers}) > 1


@every_family
def test_the_same_seed_gives_the_same_bytes(family: str) -> None:
    for stage in ({"sparsity": 0.5}, {"sparsity": 0.5, "score": "random"}):
        one, other = network(family), network(family)
        prune(one, seed=7, **stage)
        prune(other, seed=7, **stage)
        assert not changed(one, state(other))


@every_family
def test_what_is_pruned_already_is_refused_and_left_as_it_is(family: str) -> None:
    for stage in (
        {"sparsity": 0.5},
        {"sparsity": 0.4, "score": "wanda"},
        {"sparsity": 0.5, "score": "l1", "allocation": "global"},
        {"pattern": "2:4", "score": "l1"},
        {"pattern": "2:4"},
        {"threshold": "0.1", "score": "l1"},
    ):
        one = network(family)
        prune(one, **stage)
        before = state(one)
        with pytest.raises(NothingPrunedError, match=r"nothing was pruned: all .* layers already have .*% zeros"):
            prune(one, **stage)
        assert not changed(one, before)


def test_another_seed_draws_other_weights_and_every_layer_its_own() -> None:
    found = []
    for seed in (0, 1):
        one = network()
        prune(one, seed=seed, sparsity=0.5, score="random")
        found.append(one)
    masks = [{name: W != 0 for name, W in matrices(one).items()} for one in found]
    names = list(masks[0])
    assert not any(torch.equal(masks[0][name], masks[1][name]) for name in names)
    of_shape = [masks[0][name] for name in names if masks[0][name].shape == (44, 32)]
    assert len(of_shape) == 4
    assert len({tuple(mask.flatten().tolist()) for mask in of_shape}) == 4


def neurons(one: Network, expert: int, hidden: Tensor, index: Tensor, _: Tensor) -> Tensor:
    """Returns an expert's neurons (tokens, neurons) of its tokens, in the last block."""
    x = hidden[(index == expert).any(1)]
    gate, up = (x @ one.blocks[-1].mlp.experts.gate_up_proj[expert].T).chunk(2, 1)
    return torch.nn.functional.silu(gate) * up


@every_family
def test_later_layers_are_solved_on_what_the_pruned_blocks_before_them_give(family: str) -> None:
    one = network(family)
    prune(one, sparsity=0.5, solver="sparsegpt")
    # The same by hand: only the first block pruned, then a plain forward pass up to the second one's MLP output.
    half = network(family)
    prune(half, sparsity=0.5, solver="sparsegpt", include=[f"{half.block_name(0)}.*"])
    layer = half.block_layers(1)[-1]
    X: list[Tensor] = []
    if layer.expert is None:
        layer.module.register_forward_pre_hook(lambda _, args: X.append(args[0].flatten(0, -2)))
    else:
        layer.module.register_forward_pre_hook(lambda _, args: X.append(neurons(half, layer.expert, *args)))
    with torch.inference_mode():
        run(half, windows(family))
    known = Statistics.empty(layer.shape[1], Needs.GRAM, torch.device("cpu"))
    known.add(torch.cat(X))
    W = layer.matrix().contiguous()
    by_hand = Problem("by hand", W, known, Amount(remove=W.numel() // 2))
    solution = solve_chain(chain_named("sparsegpt"), by_hand)[0]
    found = matrices(one)[layer.name]
    assert torch.equal(found != 0, solution.keep)
    torch.testing.assert_close(found, solution.W, rtol=1e-3, atol=1e-4)


def test_all_layers_of_a_block_are_solved_on_the_same_pass() -> None:
    one = network()
    whole = prune(one, sparsity=0.5)
    for number, layer in enumerate(one.block_layers(0)):
        alone = network()
        prune(alone, sparsity=0.5, include=[layer.name])
        assert torch.equal(alone.block_layers(0)[number].matrix(), layer.matrix())
    assert len(whole.layers) == 14


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*q_proj"], [], r"\.q_proj$"),
        (["*.layers.1.*"], [], r"\.layers\.1\."),
        (["*q_proj", "*down_proj"], [], r"\.(q|down)_proj$"),
        ([], ["*mlp*"], r"self_attn"),
        (["*mlp*"], ["*.0.*", "*up_proj"], r"\.1\.mlp\.(gate|down)_proj$"),
        (["model.layers.0.self_attn.v_proj"], [], r"\.0\.self_attn\.v_proj$"),
        (["*"], [], r"_proj$"),  # sweeping over everything names neither the head nor the embedding
    ],
)
def test_globs_choose_layers_and_no_other_changes(include: list[str], exclude: list[str], expected: str) -> None:
    one = network()
    before = state(one)
    stage = prune(one, sparsity=0.5, score="l1", include=include, exclude=exclude)
    names = [layer.name for layer in one.layers() if re.search(expected, layer.name)]
    assert [report.name for report in stage.layers] == names
    assert changed(one, before) == {f"{name}.weight" for name in names}


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_a_glob_that_matches_nothing_is_named(field: str) -> None:
    one = network()
    before = state(one)
    with pytest.raises(UsageError, match=r"'\*q_prj' matches no layer; names look like 'model\.layers\.0\."):
        prune(one, sparsity=0.5, **{field: ["*_proj", "*q_prj"]})
    assert not changed(one, before)


def test_globs_that_leave_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="--include and --exclude leave no layer"):
        prune(network(), sparsity=0.5, include=["*q_proj"], exclude=["*_proj"])


@pytest.mark.parametrize(
    "stage", [{"sparsity": 0.5}, {"sparsity": 0.5, "score": "wanda"}, {"pattern": "2:4", "score": "l1"}]
)
def test_a_head_that_is_named_is_pruned_exactly_and_nothing_else(stage: dict[str, Any]) -> None:
    one = network("llama")
    before = state(one)
    report = prune(one, include=["lm_head"], **stage)
    assert [layer.name for layer in report.layers] == ["lm_head"]
    head = one.model.lm_head.weight
    assert zeros(head) == head.numel() // 2
    assert changed(one, before) == {"lm_head.weight"}


def test_a_head_beside_the_blocks_is_solved_on_the_pruned_blocks() -> None:
    one = network("llama")
    stage = prune(one, sparsity=0.5, include=["*_proj", "lm_head"])
    assert [layer.name for layer in stage.layers] == [layer.name for layer in one.layers()] + ["lm_head"]
    half = network("llama")
    prune(half, sparsity=0.5)
    prune(half, sparsity=0.5, include=["lm_head"])
    torch.testing.assert_close(half.model.lm_head.weight, one.model.lm_head.weight)
    assert zeros(one.model.lm_head.weight) == one.model.lm_head.weight.numel() // 2


def test_an_embedding_that_is_named_is_pruned_by_magnitude_alone() -> None:
    one = network("llama")
    before = state(one)
    prune(one, sparsity=0.25, score="l1", include=["*embed_tokens"])
    table = one.model.model.embed_tokens.weight
    assert zeros(table) == table.numel() // 4
    assert changed(one, before) == {"model.embed_tokens.weight"}
    with pytest.raises(UsageError, match=r"model\.embed_tokens is an embedding, whose input has no statistics"):
        prune(network("llama"), sparsity=0.25, include=["*embed_tokens"])


def test_some_of_the_small_models_tie_their_head() -> None:
    assert {"qwen2", "gpt2", "gemma", "bert"} <= set(TIED)
    assert not {"llama", "mistral"} & set(TIED)


@pytest.mark.parametrize("family", [name for name in TIED if tiny_model(name).get_output_embeddings() is not None])
def test_a_tied_head_that_is_named_is_pruned_once_with_its_table(family: str) -> None:
    one = network(family)
    before = state(one)
    (head,) = [layer for layer in one.outside() if layer.module is one.model.get_output_embeddings()]
    assert one.ties(head)
    stage = prune(one, sparsity=0.5, include=[head.name])
    assert [report.name for report in stage.layers] == [head.name]
    assert zeros(head.matrix()) == head.parameter.numel() // 2
    assert one.model.get_input_embeddings().weight is head.parameter
    assert changed(one, before) == tensor_names(one, [head])
    assert f"{head.name} is tied to {', '.join(one.ties(head))}: its zeros are there, too." in stage.notes


@pytest.mark.parametrize("family", TIED)
def test_a_tied_weight_that_is_named_twice_is_pruned_once(family: str) -> None:
    one = network(family)
    (head,) = [layer for layer in one.outside() if layer.module is one.model.get_output_embeddings()]
    names = [head.name, *one.ties(head)]
    stage = prune(one, sparsity=0.5, score="l1", include=names)
    assert len(stage.layers) == 1
    assert stage.zeros == zeros(head.matrix()) == head.parameter.numel() // 2


def test_a_pattern_that_does_not_fit_is_refused_before_anything_changes() -> None:
    one = network("llama")  # the MLP is 44 wide
    before = state(one)
    with pytest.raises(PatternError, match=r"down_proj \(44\), .* --exclude 'model\.layers\.\*\.mlp\.down_proj', or"):
        prune(one, pattern="3:8")
    assert not changed(one, before)
    prune(one, pattern="3:8", exclude=["*down_proj"])
    for name, W in matrices(one).items():
        expected = {0} if name.endswith("down_proj") else {5}
        width = 4 if name.endswith("down_proj") else 8
        assert set((W == 0).reshape(-1, width).sum(1).tolist()) == expected


def test_a_threshold_below_all_scores_is_refused() -> None:
    one = network()
    before = state(one)
    with pytest.raises(NothingPrunedError, match=r"all 14 layers already have 0\.0% zeros"):
        prune(one, threshold="0", score="l1")
    assert not changed(one, before)


@pytest.mark.parametrize("score", [None, "wanda", "l1"])
def test_more_sparsity_later_ends_at_exactly_that_share(score: str | None) -> None:
    one = network()
    prune(one, sparsity=0.5, score=score)
    first = matrices(one)
    stage = prune(one, sparsity=0.75, score=score)
    for report, W in zip(stage.layers, matrices(one).values(), strict=True):
        assert zeros(W) == round(0.75 * W.numel())
        assert report.zeros_before == W.numel() // 2
        if score:
            assert not W[first[report.name] == 0].any()


def test_a_layer_that_has_enough_zeros_already_is_left_alone_and_mentioned() -> None:
    one = network()
    prune(one, sparsity=0.75, score="l1", include=["*.0.self_attn.q_proj"])
    q = one.block_layers(0)[0]
    before = q.matrix().clone()
    stage = prune(one, sparsity=0.5)
    assert torch.equal(q.matrix(), before)
    assert stage.notes == (f"{q.name} has {zeros(before)} zeros already and was left as it is.",)
    assert [zeros(W) / W.numel() for W in matrices(one).values()] == [0.75] + [0.5] * 13


@pytest.mark.parametrize("score", [None, "wanda", "l1"])
def test_a_pattern_brings_no_zero_weight_back(score: str | None) -> None:
    one = network()
    prune(one, sparsity=0.7, score="l1")
    first = matrices(one)
    prune(one, pattern="2:4", score=score)
    for name, W in matrices(one).items():
        assert int((W == 0).reshape(-1, 4).sum(1).min()) >= 2
        if score:
            assert not W[first[name] == 0].any(), name


@every_family
@pytest.mark.parametrize("score", [None, "l1", "wanda"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_at_a_high_sparsity_a_minimum_per_output_leaves_no_row_or_column_empty(
    family: str, allocation: str, score: str | None
) -> None:
    one = network(family)
    stage = prune(one, sparsity=0.85, min_per_output=2, allocation=allocation, score=score)
    weights = matrices(one)
    for W in weights.values():
        assert int((W != 0).sum(1).min()) >= 2
        assert int((W != 0).sum(0).min()) >= 1
    total = sum(W.numel() for W in weights.values())
    rounding = 0 if allocation == "global" else len(weights) / 2
    assert abs(sum(map(zeros, weights.values())) - 0.85 * total) <= max(rounding, 0.5)
    assert sum(report.dead_rows + report.dead_columns for report in stage.layers) == 0


def test_a_global_share_that_empties_layers_is_mentioned() -> None:
    one = network()
    for layer in one.block_layers(0)[:2]:
        layer.parameter.mul_(1e-3)
    stage = prune(one, sparsity=0.5, score="l1", allocation="global")
    names = [layer.name for layer in one.block_layers(0)[:2]]
    assert [report.name for report in stage.layers if report.sparsity == 1] == names
    assert any(", ".join(names) in note and "--min-per-output" in note for note in stage.notes)


@every_family
def test_a_refit_on_the_masks_of_a_score_keeps_them_and_errs_less(family: str) -> None:
    refitted, masked = network(family), network(family)
    # The first block's masks: the second one's inputs differ, as the first one's outputs do.
    chosen = {"sparsity": 0.5, "score": "wanda", "include": [f"{refitted.block_name(0)}.*"]}
    stage = prune(refitted, solver="refit", **chosen)
    prune(masked, **chosen)
    found = matrices(masked)
    own = [W for n, W in matrices(refitted).items() if n.startswith(f"{refitted.block_name(0)}.")]
    for report, W in zip(stage.layers, own, strict=True):
        assert torch.equal(W != 0, found[report.name] != 0)
        assert report.error < report.error_masked


@pytest.mark.parametrize("score", [name for name in SCORES if name != "variance"])
@pytest.mark.parametrize("solver", [*SOLVERS, "swap+refit"])
def test_any_score_goes_with_any_solver(score: str, solver: str) -> None:
    one = network("gpt2")
    stage = prune(one, sparsity=0.3, score=score, solver=solver)
    assert all(zeros(W) == round(0.3 * W.numel()) for W in matrices(one).values())
    assert all(report.zeros == round(0.3 * report.weights) for report in stage.layers)
    assert torch.isfinite(one.model(windows().ids).logits).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stage", [{"sparsity": 0.5}, {"pattern": "2:4"}, {"sparsity": 0.5, "score": "wanda"}])
def test_half_precision_weights_have_exact_zeros_too(dtype: torch.dtype, stage: dict[str, Any]) -> None:
    one = network("llama", dtype)
    prune(one, **stage)
    for W in matrices(one).values():
        assert W.dtype == dtype
        assert zeros(W) == W.numel() // 2


def test_a_kept_weight_that_underflows_does_not_become_a_zero() -> None:
    one = network("llama", torch.float16)
    layer = one.block_layers(0)[0]
    W = torch.full(layer.shape, 1e-12)
    keep = torch.zeros(layer.shape, dtype=torch.bool)
    keep[:, ::2] = True
    layer.write(W, keep)
    assert torch.equal(layer.matrix() != 0, keep)


@pytest.mark.parametrize(
    ("stage", "needs"),
    [
        ({"sparsity": 0.5}, Needs.GRAM),
        ({"sparsity": 0.5, "score": "l1"}, Needs.NOTHING),
        ({"sparsity": 0.5, "score": "wanda"}, Needs.MOMENTS),
        ({"sparsity": 0.5, "score": "l1", "solver": "refit"}, Needs.GRAM),
        ({"sparsity": 0.5, "score": "wanda", "solver": "sparsegpt"}, Needs.GRAM | Needs.MOMENTS),
        ({"sparsity": 0.5, "score": "fisher", "solver": "none"}, Needs.GRADIENT_SQUARE),
        ({"sparsity": 0.5, "score": "l1", "allocation": "owl"}, Needs.MOMENTS),
        ({"sparsity": 0.5, "score": "l1", "allocation": "alpha"}, Needs.NOTHING),
    ],
)
def test_a_stage_needs_what_its_score_and_its_solver_need(stage: dict[str, Any], needs: Needs) -> None:
    assert needs_of(Prune(**stage)) == needs


def test_layers_come_in_forward_order_and_once_each() -> None:
    one = network("qwen2")
    every = select_layers(one, Prune(sparsity=0.5))
    assert [layer.name for layer in every] == [layer.name for layer in one.layers()]
    assert len({id(layer.parameter) for layer in every}) == len(every)


def test_the_pattern_of_a_stage_reads_as_it_is_written() -> None:
    stage = prune(network(), pattern="1:4", score="l1")
    assert stage.stage["prune"]["pattern"] == str(Pattern(1, 4))
    assert stage.sparsity == 0.75


@pytest.mark.parametrize("allocation", ["owl", "alpha", "error"])
@pytest.mark.parametrize("stage", [{"solver": "sparsegpt"}, {"score": "l1"}], ids=["sparsegpt", "l1"])
def test_an_allocation_meets_the_models_budget_to_the_weight(allocation: str, stage: dict[str, Any]) -> None:
    one = network("llama")
    report = prune(one, sparsity=0.6, allocation=allocation, **stage)
    every = matrices(one).values()
    assert sum(zeros(W) for W in every) == round(0.6 * sum(W.numel() for W in every)) == report.zeros
    shares = [layer.sparsity for layer in report.layers]
    assert max(shares) > min(shares)


def test_errors_weighed_by_the_loss_share_the_budget_out_otherwise() -> None:
    plain, weighed = (
        prune(network("llama"), sparsity=0.6, allocation="error", gradient=gradient, solver="admm")
        for gradient in ("block", "loss")
    )
    assert plain.zeros == weighed.zeros
    assert [layer.zeros for layer in plain.layers] != [layer.zeros for layer in weighed.layers]
    with pytest.raises(UsageError, match="--gradient loss needs a next-token loss"):
        prune(network("bert"), sparsity=0.6, allocation="error", gradient="loss", solver="admm")


@pytest.mark.parametrize("score", ["taylor", "fisher", "snip"])
@pytest.mark.parametrize("gradient", ["block", "loss"])
def test_gradient_scores_prune_by_either_loss(score: str, gradient: str) -> None:
    one = network("llama")
    report = prune(one, sparsity=0.5, score=score, gradient=gradient)
    assert report.sparsity == 0.5
    other = network("llama")
    prune(other, sparsity=0.5, score=score, gradient="loss" if gradient == "block" else "block")
    assert any(not torch.equal(W, V) for W, V in zip(matrices(one).values(), matrices(other).values(), strict=True))


def test_a_block_gradient_of_the_head_is_refused() -> None:
    with pytest.raises(UsageError, match=r"lm_head lies outside of the blocks; score it with --gradient loss"):
        prune(network("mistral"), sparsity=0.5, score="taylor", include=["lm_head"])


def test_the_report_shows_each_step_of_a_chain() -> None:
    report = prune(network("llama"), sparsity=0.5, solver="admm+refit")
    for layer in report.layers:
        assert [step.solver for step in layer.steps] == ["admm", "refit"]
        assert layer.error_masked == layer.steps[0].error_before
        assert layer.error == layer.steps[1].error <= layer.steps[0].error < layer.error_masked


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "xlnet", "mixtral", "qwen3_moe"])
def test_reconstruction_lowers_the_blocks_error_and_keeps_every_zero(family: str, halves: bool) -> None:
    tuned, plain = network(family), network(family)
    options = {"sparsity": 0.5, "score": "l1"}
    report = prune(tuned, **options, reconstruct=True, reconstruct_halves=halves, reconstruct_passes=3)
    prune(plain, **options)
    assert [block.name for block in report.blocks] == [tuned.block_name(0), tuned.block_name(1)]
    assert all(block.error <= block.error_before for block in report.blocks)
    assert any(block.error < 0.98 * block.error_before for block in report.blocks)
    for name, W in matrices(tuned).items():
        assert zeros(W) == W.numel() // 2, name
    first = [name for name in matrices(plain) if name.startswith(plain.block_name(0))]
    for name in first:
        assert torch.equal(matrices(tuned)[name] == 0, matrices(plain)[name] == 0), name
    assert not any(parameter.requires_grad for parameter in tuned.model.parameters())


def test_reconstruction_takes_smaller_steps_where_none_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind least squares, which usual steps only disturb."""
    monkeypatch.setattr("secateur.training.reconstruction.RATE", 0.3)
    options = {"sparsity": 0.5, "score": "l1", "reconstruct": True}
    for passes, gains in ((1, False), (6, True)):
        blocks = prune(network("llama"), **options, reconstruct_passes=passes).blocks
        assert any(block.error < 0.98 * block.error_before for block in blocks) == gains
        assert all(block.error <= block.error_before for block in blocks)


def test_reconstruction_in_bfloat16_keeps_the_dtype_and_the_zeros() -> None:
    one = network("llama", torch.bfloat16)
    report = prune(one, pattern="2:4", reconstruct=True, reconstruct_passes=2)
    assert report.sparsity == 0.5
    assert {W.dtype for W in matrices(one).values()} == {torch.bfloat16}
    assert all(zeros(W) == W.numel() // 2 for W in matrices(one).values())


def test_amounts_are_met_to_the_weight_and_what_is_not_named_stays() -> None:
    one = network()
    before = matrices(one)
    names = list(before)
    given = {names[0]: 100, names[3]: before[names[3]].numel() // 2}
    report = prune(one, amounts=given, solver="sparsegpt")
    after = matrices(one)
    assert {layer.name: layer.zeros for layer in report.layers} == {name: given.get(name, 0) for name in names}
    assert all(torch.equal(after[name], before[name]) for name in names if name not in given)


@pytest.mark.parametrize(
    ("amounts", "says"),
    [
        ({"model.layers.0.mlp.upproj": 3}, "is no layer that the stage is about. Did you mean"),
        ({"model.layers.0.mlp.up_proj": 10**6}, "takes 1,000,000 from model.layers.0.mlp.up_proj, which can give"),
    ],
)
def test_amounts_of_nothing_and_of_too_much_are_named(amounts: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        prune(network(), amounts=amounts)
