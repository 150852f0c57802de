"""What scores of units promise on groups that were found by tracing: filters, neurons and hidden units."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.calibration.batches import Batch, batches_of, default_loss
from secateur.calibration.readings import gather, gather_gradients
from secateur.calibration.statistics import GRADIENTS, INPUTS, Statistics
from secateur.errors import ConstantScoreError, ScoreError, UsageError
from secateur.network.graph.network import GraphNetwork
from secateur.network.unit_group import UnitGroup
from secateur.scores.unit_score import UnitScore, UnitStatistics
from secateur.scores.units import UNIT_SCORES, scored
from zoo import ZOO

NETWORKS = ("resnet18", "resnext", "shufflenet", "constants", "fc", "mixer", "lstm", "gru", "vit", "mixture")
FITTING = {name: score for name, score in UNIT_SCORES.items() if score.fits & {"filter", "neuron", "hidden"}}
BY_CHANCE = ("random",)
BY_OTHERS = ("fpgm",)  # a unit of zeros may be far from all others


def nothing() -> None:
    """Doesn't watch the progress."""


def network(name: str) -> GraphNetwork:
    torch.manual_seed(0)
    build, inputs = ZOO[name]
    model, x = build(), inputs()
    for norm in (part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)):
        nn.init.uniform_(norm.weight, 0.1, 1)
        nn.init.normal_(norm.bias, std=0.1)
        norm.momentum = 1.0
    model(x)  # so that the running statistics are those of the inputs
    return GraphNetwork(model.eval(), x)


@cache
def known(name: str) -> GraphNetwork:
    """The same network for all tests, which leave it as it is."""
    return network(name)


def statistics_of(one: GraphNetwork, groups: list[UnitGroup]) -> dict[str, UnitStatistics]:
    """Returns everything that there is to know of the inputs of the groups' readers, from one batch with targets."""
    inputs = one.inputs[0]
    layers = list({reader.layer.name: reader.layer for group in groups for reader in group.readers}.values())
    batches = [Batch(batch.inputs, torch.arange(batch.size) % 3) for batch in batches_of(inputs, 1)]
    found = gather(one.model, layers, INPUTS, batches, nothing)
    gradients = gather_gradients(one.model, layers, GRADIENTS, batches, default_loss, nothing)

    def of(layer: Any) -> Statistics:
        return replace(found[layer.reads], gradients=gradients[layer.name])

    return {
        group.name: UnitStatistics(
            tuple(of(reader.layer) for reader in group.readers), random=torch.Generator().manual_seed(1)
        )
        for group in groups
    }


@cache
def calibrated(name: str) -> dict[str, UnitStatistics]:
    return statistics_of(known(name), known(name).groups)


def fitting(one: GraphNetwork, score: UnitScore) -> list[UnitGroup]:
    """Returns the groups that a score has a meaning for."""
    groups = [group for group in one.groups if group.unit in score.fits and group.count > 2]
    if score.needs:
        groups = [group for group in groups if group.readers]
    if score.name == "bn-scale":
        norms = {name for name, part in one.model.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}
        groups = [group for group in groups if {part.name.rpartition(".")[0] for part in group.follows} & norms]
    return groups


@pytest.mark.parametrize("score", FITTING.values(), ids=FITTING)
@pytest.mark.parametrize("name", NETWORKS)
def test_each_unit_has_one_finite_score_and_the_same_one_again(name: str, score: UnitScore) -> None:
    one = known(name)
    before = {key: tensor.clone() for key, tensor in one.model.state_dict().items()}
    for group in fitting(one, score):
        statistics = calibrated(name)[group.name]
        try:
            found = scored(score, group, statistics)
        except ConstantScoreError:
            assert score.name == "apoz"  # what is read behind a pool is always above zero
            continue
        assert found.shape == (group.count,)
        assert torch.isfinite(found).all()
        statistics.random.manual_seed(1)
        again = scored(score, group, statistics)
        statistics.random.manual_seed(1)
        assert score.name in BY_CHANCE or torch.equal(found, again)
    assert all(torch.equal(before[key], tensor) for key, tensor in one.model.state_dict().items())


def zeroed(one: GraphNetwork, group: UnitGroup, number: int) -> None:
    """Makes a unit nothing: what makes and reads it is zero, and so are the scales and shifts that it passes."""
    plain = {name for name, _ in one.model.named_parameters()}
    for part in group.slices:
        if part.name in plain:
            tensor: Tensor = one.tensor(part.name)
            tensor.index_fill_(part.axis, part.index[number], 0.0)


@pytest.mark.parametrize(
    "score", [pytest.param(one, id=name) for name, one in FITTING.items() if name not in (*BY_CHANCE, *BY_OTHERS)]
)
@pytest.mark.parametrize("name", ["resnet18", "fc", "lstm"])
def test_a_unit_of_zeros_is_worth_least(name: str, score: UnitScore) -> None:
    one = network(name)
    for group in fitting(one, score)[:2]:
        zeroed(one, group, 1)
        found = scored(score, group, statistics_of(one, [group])[group.name])
        assert found[1] == found.min() == 0


def test_bn_scale_is_the_scale_of_all_norms_that_a_filter_passes() -> None:
    one = network("resnet18")
    group = next(group for group in one.groups if len(group.produces) > 1)  # two blocks add to it
    norms = [one.model.get_submodule(path) for path in ("0.1", "1.two.1")]
    expected = sum(norm.weight.detach().abs() for norm in norms)
    torch.testing.assert_close(scored(UNIT_SCORES["bn-scale"], group, UnitStatistics()), expected)


def test_bn_scale_says_where_there_is_no_batch_norm() -> None:
    group = known("fc").groups[0]
    with pytest.raises(ScoreError, match=r"'bn-scale' of 1/neuron: its units pass through no batch norm"):
        scored(UNIT_SCORES["bn-scale"], group, UnitStatistics())


def test_fpgm_is_the_sum_of_the_distances_to_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.scores.units.fpgm.ROWS", 3)
    group = known("resnet18").groups[0]
    parts = [group.vectors(part).double() for part in group.produces if group.tensor(part.name).ndim > 1]
    expected = [sum(float((F[i] - F[j]).norm()) for F in parts for j in range(group.count)) for i in range(group.count)]
    torch.testing.assert_close(
        scored(UNIT_SCORES["fpgm"], group, UnitStatistics()), torch.tensor(expected), rtol=1e-4, atol=1e-4
    )


def test_fpgm_takes_away_what_others_can_stand_for() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    model[0].weight.data[2] = model[0].weight.data.mean(0)
    group = GraphNetwork(model, torch.randn(4, 5)).groups[0]
    assert int(scored(UNIT_SCORES["fpgm"], group, UnitStatistics()).argmin()) == 2


def test_fpgm_cannot_tell_two_units_apart() -> None:
    model = nn.Sequential(nn.Linear(5, 2), nn.ReLU(), nn.Linear(2, 3))
    group = GraphNetwork(model, torch.randn(4, 5)).groups[0]
    with pytest.raises(ScoreError, match="each of two units is as far from the other"):
        scored(UNIT_SCORES["fpgm"], group, UnitStatistics())


def test_groups_that_a_score_says_nothing_about_are_left_whole_and_named() -> None:
    one = known("vgg")
    model = nn.Sequential(
        one.model[0], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
    )
    x = one.inputs[0]
    result = secateur.prune(model, example_inputs=x, calibration=x, score="apoz", sparsity=0.5, evaluate=False)
    assert [(group.name, group.left) for group in result.stages[0].groups] == [("3/neuron", 3)]
    assert any("0.0/filter: left whole, as all units are worth the same" in note for note in result.stages[0].notes)


# Which filters go: thresholds, a rate per layer, one ranking


def pruned(name: str, **options: Any) -> tuple[GraphNetwork, dict[str, tuple[int, int]]]:
    one = known(name)
    result = secateur.prune(one.model, example_inputs=one.inputs[0], unit="filter", evaluate=False, **options)
    return one, {group.name: (group.before, group.left) for group in result.stages[0].groups}


@pytest.mark.parametrize("score", ["l1", "l2", "mean_abs", "variance", "bn-scale", "fpgm"])
@pytest.mark.parametrize("threshold", ["p30", "mean-1std"])
def test_a_threshold_takes_the_filters_below_it(score: str, threshold: str) -> None:
    one, left = pruned("vgg", score=score, threshold=threshold)
    groups = [group for group in one.groups if group.unit == "filter"]
    for group in groups:
        values = scored(UNIT_SCORES[score], group, UnitStatistics())
        bound = float(values.quantile(0.3)) if threshold == "p30" else float(values.mean() - values.std(correction=0))
        assert abs(left[group.name][1] - int((values >= bound).sum())) <= int((values == bound).sum())
    assert any(left < units for units, left in left.values())


def test_an_absolute_threshold_leaves_the_last_filter_of_each_layer() -> None:
    one, left = pruned("vgg", score="l1", threshold="1e6")
    assert set(left.values()) == {(group.count, 1) for group in one.groups if group.unit == "filter"}


def test_a_rate_takes_the_same_share_of_each_layer_and_a_ranking_does_not() -> None:
    _, even = pruned("vgg", score="l1", sparsity=0.5)
    assert {left / units for units, left in even.values()} == {0.5}
    _, ranked = pruned("vgg", score="l1", sparsity=0.5, allocation="global")
    assert sum(left for _, left in ranked.values()) == sum(left for _, left in even.values())
    assert ranked != even
    assert min(left for _, left in ranked.values()) >= 1


def test_removing_as_many_as_there_are_is_an_error() -> None:
    with pytest.raises(UsageError, match="at least 1 have to stay"):
        pruned("vgg", score="l1", remove=8)
