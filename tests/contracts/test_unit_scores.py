"""What every registered score of units promises, on every kind of unit that it fits, and what each one computes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from secateur.calibration.data import Windows
from secateur.calibration.runner import BlockRunner
from secateur.calibration.statistics import BINS, GRADIENTS, INPUTS, Gradients, Needs, Statistics
from secateur.errors import CalibrationError, ScoreError, UsageError
from secateur.linear_algebra import damped
from secateur.network.families import FAMILIES
from secateur.network.network import Layer, Network, Source
from secateur.network.surgery import Cut, cut
from secateur.network.unit_group import Halves, Reader, Slice, UnitGroup
from secateur.network.units import UNITS, unit_groups
from secateur.scores.unit_score import ALL_UNITS, WIDTHS, UnitScore, UnitStatistics, checked
from secateur.scores.units import UNIT_SCORES, check_fit, scored, unit_score_named
from tiny import VOCABULARY, tiny_model

CPU = torch.device("cpu")
FAMILIES_TESTED = ("llama", "gpt2", "phi3", "xlnet", "bert", "gemma2")
GROUPED = ("llama", "phi3", "gemma2")  # with two KV heads, of two query heads each
EXPERTS = 5
BY_READER = ("wanda", "flap", "obs", "ria", "taylor", "snip", "fisher")


def nothing() -> None:
    """Doesn't watch the progress."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(family: str) -> Network:
    model = tiny_model(family).requires_grad_(False)
    return Network(model, FAMILIES[family], None, Source(f"tiny:{family}", Path(), "float32"), CPU)


@cache
def known(family: str) -> Network:
    """The same network for all tests, which leave it as it is."""
    return network(family)


def windows() -> Windows:
    return Windows(torch.randint(5, VOCABULARY, (4, 24), generator=generator(3)), "random")


@cache
def calibrated(family: str) -> dict[str, Statistics]:
    """Returns everything there is to know of each layer's input and weight, by the layer's name."""
    one, found = network(family), {}
    runner = BlockRunner(one, windows(), "float32", per_batch=1)
    for block in range(len(one.blocks)):
        layers = one.block_layers(block)
        readers: dict[str, tuple[Layer, Needs]] = {}
        for layer in layers:
            readers.setdefault(layer.reads, (layer, INPUTS))
        statistics = runner.gather(readers, nothing)
        gradients = runner.gradients(layers, GRADIENTS, nothing)
        found |= {layer.name: replace(statistics[layer.reads], gradients=gradients[layer.name]) for layer in layers}
        runner.advance(nothing)
    return found


@dataclass(frozen=True)
class Experts:
    count: Tensor
    contribution: Tensor


def groups_of(family: str, unit: str) -> list[UnitGroup]:
    one = known(family)
    if unit == "expert":  # no tiny family has experts
        return [UnitGroup("model.layers.0/expert", "expert", EXPERTS, 0, expert_slices(one), (), one)]
    return unit_groups(one, unit)


def expert_slices(one: Network) -> tuple[Slice, ...]:
    """Takes five rows of a block's first weight for experts."""
    layer = one.block_layers(0)[0]
    name = layer.name + (".weight" if layer.module is not None else "")
    return (Slice(name, 0, torch.arange(EXPERTS)[:, None]),)


def statistics_of(family: str, group: UnitGroup, seed: int = 0) -> UnitStatistics:
    return UnitStatistics(
        inputs=tuple(calibrated(family)[reader.layer.name] for reader in group.readers),
        influence=torch.linspace(0.1, 0.9, group.count),
        usage=Experts(torch.arange(group.count), torch.arange(group.count) * 1.5 + 1),
        tokens=torch.arange(group.count).flip(0),
        random=generator(seed),
    )


CASES = [
    pytest.param(family, unit, score, id=f"{family}-{unit}-{name}")
    for family in FAMILIES_TESTED
    for unit in (*UNITS, "expert")
    if unit != "query-head" or family in GROUPED
    for name, score in UNIT_SCORES.items()
    if unit in score.fits and name != "bn-scale"  # language models have no batch norms
    if not (name == "correlation" and "head" in unit and family in GROUPED)
]
every_case = pytest.mark.parametrize(("family", "unit", "score"), CASES)


def values(family: str, group: UnitGroup, score: UnitScore, seed: int = 0) -> Tensor:
    return scored(score, group, statistics_of(family, group, seed))


@every_case
def test_each_unit_has_one_finite_score_and_the_same_one_again(family: str, unit: str, score: UnitScore) -> None:
    before = {name: tensor.clone() for name, tensor in known(family).model.state_dict().items()}
    for group in groups_of(family, unit):
        found = values(family, group, score)
        assert found.shape == (group.count,)
        assert found.dtype == torch.float32
        assert torch.isfinite(found).all()
        assert torch.equal(found, values(family, group, score))
    assert all(torch.equal(before[name], tensor) for name, tensor in known(family).model.state_dict().items())


def permuted(group: UnitGroup, order: Tensor) -> UnitGroup:
    """Returns the same group with its units in another order."""

    def slices(parts: tuple[Slice, ...]) -> tuple[Slice, ...]:
        return tuple(replace(part, index=part.index[order]) for part in parts)

    fields = {
        "produces": slices(group.produces),
        "consumes": slices(group.consumes),
        "readers": tuple(Reader(reader.layer, reader.index[order]) for reader in group.readers),
        "whole": tuple(group.whole[number] for number in order.tolist()) if group.whole else (),
    }
    if isinstance(group, Halves):
        fields["blocks"] = tuple(group.blocks[number] for number in order.tolist())
    return replace(group, **fields)


@pytest.mark.parametrize(("family", "unit", "score"), [case for case in CASES if not str(case.id).endswith("-random")])
def test_units_in_another_order_keep_their_scores(family: str, unit: str, score: UnitScore) -> None:
    group = groups_of(family, unit)[0]
    order = torch.randperm(group.count, generator=generator(5))
    other, statistics = permuted(group, order), statistics_of(family, group)
    usage = statistics.usage
    assert usage is not None
    assert statistics.influence is not None
    assert statistics.tokens is not None
    moved = replace(
        statistics,
        influence=statistics.influence[order],
        usage=Experts(usage.count[order], usage.contribution[order]),
        tokens=statistics.tokens[order],
    )
    torch.testing.assert_close(scored(score, other, moved), values(family, group, score)[order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES_TESTED)
@pytest.mark.parametrize("unit", ["neuron", "head", "channel"])
@pytest.mark.parametrize("name", BY_READER)
def test_a_unit_that_nothing_reads_is_worth_nothing(family: str, unit: str, name: str) -> None:
    one = network(family)
    group = unit_groups(one, unit)[0]
    for reader in group.readers:
        reader.layer.matrix()[:, reader.index[1]] = 0
    found = values(family, group, UNIT_SCORES[name])
    assert found[1] == 0
    assert (found >= 0).all()
    assert (found > 0).sum() == group.count - 1


@pytest.mark.parametrize("name", [name for name in UNIT_SCORES if UNIT_SCORES[name].needs & INPUTS])
@pytest.mark.parametrize("unit", ["neuron", "head"])
def test_statistics_added_up_in_any_parts_give_the_same_scores(name: str, unit: str) -> None:
    group, X = setting("gpt2", unit)
    score = UNIT_SCORES[name]
    whole = scored(score, group, gathered(X, score.needs))
    for edges in ([0, 7, 60], [0, 1, 2, 30, 60]):
        parts = [of(X[start:end], score.needs) for start, end in pairwise(edges)]
        total = parts.pop()
        for part in reversed(parts):
            total = total + part
        torch.testing.assert_close(
            scored(score, group, UnitStatistics((total,))), whole, rtol=1e-3, atol=1e-5
        )  # float32 sums


# What each one computes


def setting(family: str, unit: str) -> tuple[UnitGroup, Tensor]:
    """Returns a group that one layer reads, and (60, in) float32 inputs of that layer."""
    group = groups_of(family, unit)[0]
    (reader,) = group.readers
    width = reader.layer.shape[1]
    mixed = torch.randn(60, width, generator=generator(7)) @ torch.randn(width, width, generator=generator(8))
    return group, mixed * torch.linspace(0.2, 2, width) + 0.3


def of(X: Tensor, needs: Needs) -> Statistics:
    found = Statistics.empty(X.shape[1], needs, CPU)
    found.add(X)
    return found


def gathered(X: Tensor, needs: Needs) -> UnitStatistics:
    return UnitStatistics((of(X, needs),))


def naive(name: str, W: Tensor, X: Tensor, S: list[int], others: list[int]) -> float:  # noqa: PLR0911 (a table)
    """Returns a unit's score, feature by feature. W: (out, in), X: (tokens, in) float64; S: its columns."""
    tokens = len(X)
    match name:
        case "wanda":
            return math.sqrt(sum(float(W[:, j].square().sum() * X[:, j].square().mean()) for j in S))
        case "activation":
            return math.sqrt(sum(float(X[:, j].square().mean()) for j in S) / len(S))
        case "mean_activation":
            return sum(float(X[:, j].abs().mean()) for j in S) / len(S)
        case "flap":
            return sum(float(X[:, j].var() * W[:, j].square().sum()) for j in S)
        case "apoz":
            return sum(1 for j in S for x in X[:, j] if x > 0) / tokens / len(S)
        case "entropy":
            total = 0.0
            for j in S:
                bins = [0] * BINS
                for x in X[:, j].tolist():
                    bins[min(max(math.floor(math.log2(abs(x))), -12), 3) + 12 + 16 * (x < 0)] += 1
                total -= sum(b / tokens * math.log(b / tokens) for b in bins if b)
            return total / len(S)
        case "correlation":
            R = torch.corrcoef(X.T).abs()
            return sum(1 - float(R[i, j]) for i in S for j in others) / len(S) / len(others)
        case "obs":
            inverse = torch.linalg.inv(damped(X.T @ X / tokens, 0.01))
            return 0.5 * float(torch.trace(W[:, S] @ torch.linalg.inv(inverse[S][:, S]) @ W[:, S].T))
        case "ria":
            A = W.abs()
            return sum(
                float(A[i, j] / A[:, j].sum() + A[i, j] / A[i].sum()) * math.sqrt(float(X[:, j].norm()))
                for i in range(len(W))
                for j in S
            )
    raise AssertionError(name)


INPUT_SCORES = [name for name, score in UNIT_SCORES.items() if score.needs & INPUTS]


@pytest.mark.parametrize("name", INPUT_SCORES)
@pytest.mark.parametrize(
    ("family", "unit"), [("llama", "neuron"), ("opt", "head"), ("gpt2", "head"), ("xlnet", "head")]
)
def test_scores_of_inputs_are_their_formulas(name: str, family: str, unit: str) -> None:
    group, X = setting(family, unit)
    (reader,) = group.readers
    W = reader.layer.matrix().double()
    found = scored(UNIT_SCORES[name], group, gathered(X, UNIT_SCORES[name].needs))
    columns = [row.tolist() for row in reader.index]
    expected = [naive(name, W, X.double(), S, [j for T in columns if T is not S for j in T]) for S in columns]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("unit", ["neuron", "head"])
def test_obs_is_half_the_error_that_the_best_update_of_the_other_columns_leaves(unit: str) -> None:
    group, X = setting("llama", unit)
    (reader,) = group.readers
    W = reader.layer.matrix().double()
    H = damped((X.double().T @ X.double()) / len(X), 0.01)
    found = scored(UNIT_SCORES["obs"], group, gathered(X, Needs.GRAM))
    for number in (0, group.count - 1):
        gone = reader.index[number].tolist()
        kept = [j for j in range(W.shape[1]) if j not in gone]
        D = -W.clone()
        D[:, kept] = torch.linalg.solve(H[kept][:, kept], H[kept] @ W.T).T - W[:, kept]
        assert float(found[number]) == pytest.approx(0.5 * float(torch.trace(D @ H @ D.T)), rel=1e-3)


def test_gradient_scores_are_their_formulas() -> None:
    group, X = setting("llama", "head")
    (reader,) = group.readers
    W = reader.layer.matrix().double()
    batches = torch.randn(3, *W.shape, generator=generator(9))
    statistics = of(X, Needs.MOMENTS)
    statistics.gradients = Gradients.empty(reader.layer.shape, GRADIENTS, CPU)
    for batch in batches:
        statistics.gradients.add(batch)
    g = batches.double()
    for number in range(group.count):
        S = reader.index[number]
        product = (W * g.mean(0))[:, S]
        expected = {
            "taylor": product.sum().abs(),
            "snip": product.abs().sum(),
            "fisher": 0.5 * (W.square() * g.square().mean(0))[:, S].sum(),
        }
        for name, value in expected.items():
            found = scored(UNIT_SCORES[name], group, UnitStatistics((statistics,)))
            assert float(found[number]) == pytest.approx(float(value), rel=1e-4)


def test_what_several_layers_read_is_counted_once_by_activations_and_once_per_layer_by_weights() -> None:
    one = known("llama")
    group = unit_groups(one, "channel")[0]
    statistics = statistics_of("llama", group)
    inputs = {reader.layer.reads: calibrated("llama")[reader.layer.name] for reader in group.readers}
    assert len(inputs) == 4  # two norms in each of two blocks
    expected = torch.stack([(known.G.diagonal() / known.count).sqrt() for known in inputs.values()]).sum(0)
    torch.testing.assert_close(scored(UNIT_SCORES["activation"], group, statistics), expected)
    parts = [
        reader.layer.matrix().norm(dim=0) * (one.G.diagonal() / one.count).sqrt()
        for reader, one in zip(group.readers, statistics.inputs, strict=True)
        if one is not None
    ]
    assert len(parts) == 10
    torch.testing.assert_close(scored(UNIT_SCORES["wanda"], group, statistics), torch.stack(parts).sum(0))


def test_a_feature_that_never_changes_stands_for_nothing() -> None:
    group, X = setting("llama", "neuron")
    X[:, 3] = 0.7
    X[:, 4] = 0
    found = scored(UNIT_SCORES["correlation"], group, gathered(X, Needs.GRAM))
    assert found[[3, 4]].tolist() == [0, 0]
    assert (found[5:] > 0).all()


def test_two_units_can_not_be_told_apart_by_their_correlation() -> None:
    group, X = setting("llama", "head")
    assert group.count == 2
    with pytest.raises(ScoreError, match=r"model\.layers\.0/head: each of two units is as close to the other"):
        scored(UNIT_SCORES["correlation"], group, gathered(X, Needs.GRAM))


def test_a_copy_of_another_unit_stands_less_alone() -> None:
    group, X = setting("llama", "neuron")
    X = torch.randn(X.shape, generator=generator(11))
    before = scored(UNIT_SCORES["correlation"], group, gathered(X, Needs.GRAM))
    X[:, 1] = -X[:, 0]
    after = scored(UNIT_SCORES["correlation"], group, gathered(X, Needs.GRAM))
    assert float(after[0]) < float(before[0]) - 0.5 / group.count
    assert float(after[0]) == pytest.approx(float(after[1]), rel=1e-4)


@pytest.mark.parametrize("unit", ["neuron", "head"])
def test_inputs_that_never_fire_cost_obs_nothing(unit: str) -> None:
    group, X = setting("llama", unit)
    X[:, group.readers[0].index[1]] = 0
    found = scored(UNIT_SCORES["obs"], group, gathered(X, Needs.GRAM))
    assert found[1] == 0
    assert found[0] > 0


@pytest.mark.parametrize("combine", ["sum", "mean", "max"])
@pytest.mark.parametrize("name", ["l1", "l2", "mean_abs", "variance"])
@pytest.mark.parametrize("family", ["llama", "phi3", "xlnet"])
def test_data_free_scores_combine_those_of_the_coupled_tensors(family: str, name: str, combine: str) -> None:
    formulas = {
        "l1": lambda v: v.abs().sum(),
        "l2": lambda v: v.square().sum().sqrt(),
        "mean_abs": lambda v: v.abs().mean(),
        "variance": lambda v: v.var(correction=0),
    }
    combined = {"sum": sum, "mean": lambda parts: sum(parts) / len(parts), "max": max}
    group = groups_of(family, "neuron")[1]
    found = scored(unit_score_named(name, combine), group, UnitStatistics())
    for number in (0, 17, group.count - 1):
        parts = [float(formulas[name](matrix[number])) for matrix in group.matrices()]
        assert len(parts) == (2 if family in {"xlnet", "phi3"} else 3)
        assert float(found[number]) == pytest.approx(combined[combine](parts), rel=1e-5)


@pytest.mark.parametrize("unit", ["layer", "mlp"])
@pytest.mark.parametrize("name", ["l1", "l2", "mean_abs", "variance"])
def test_layers_of_different_sizes_are_scored_by_their_own_parameters_alone(unit: str, name: str) -> None:
    one = network("llama")
    neurons = unit_groups(one, "neuron")[0]
    ragged = cut(one, [Cut(neurons, torch.arange(neurons.count) < 10)])
    group = unit_groups(ragged, unit)[0]
    sizes = group.parameters_each().tolist()
    assert sizes[0] < sizes[1]
    found = scored(UNIT_SCORES[name], group, UnitStatistics())
    for number, names in enumerate(group.whole):
        flat = torch.cat([group.tensor(path).flatten() for path in names]).double()
        assert flat.numel() == sizes[number]
        expected = {
            "l1": flat.abs().sum(),
            "l2": flat.norm(),
            "mean_abs": flat.abs().mean(),
            "variance": flat.var(correction=0),
        }[name]
        assert float(found[number]) == pytest.approx(float(expected), rel=1e-5)


def test_influence_usage_and_tokens_are_handed_on() -> None:
    layers, experts, tokens = (groups_of("llama", unit)[0] for unit in ("layer", "expert", "token"))
    influence = torch.tensor([0.3, 0.1])
    for name in ("block-influence", "loo-kl"):
        assert torch.equal(scored(UNIT_SCORES[name], layers, UnitStatistics(influence=influence)), influence)
    usage = Experts(torch.tensor([2, 0, 4, 1, 1]), torch.tensor([3.0, 0.0, 2.0, 1.0, 5.0]))
    assert scored(UNIT_SCORES["reap"], experts, UnitStatistics(usage=usage)).tolist() == [1.5, 0, 0.5, 1, 5]
    counts = torch.arange(tokens.count)
    assert torch.equal(scored(UNIT_SCORES["frequency"], tokens, UnitStatistics(tokens=counts)), counts.float())


# Misuse


def test_the_registry_knows_each_score_by_its_name() -> None:
    for name, score in UNIT_SCORES.items():
        assert score.name == name
        assert unit_score_named(name).name == name
        assert score.about
        assert score.fits
        assert score.fits <= ALL_UNITS


def test_every_kind_of_unit_has_a_score_beyond_the_data_free_ones() -> None:
    for unit in ALL_UNITS:
        assert any(unit in score.fits and score.needs for score in UNIT_SCORES.values())


@pytest.mark.parametrize("name", [name for name, score in UNIT_SCORES.items() if score.needs])
def test_missing_statistics_are_refused(name: str) -> None:
    score = UNIT_SCORES[name]
    unit = sorted(score.fits)[0]
    group = groups_of("llama", unit)[0]
    with pytest.raises(ValueError, match=name):
        scored(score, group, UnitStatistics())
    if score.fits == WIDTHS and score.needs != Needs.MOMENTS:  # the moments are always there
        poor = tuple(of(torch.randn(3, reader.layer.shape[1]), Needs.NOTHING) for reader in group.readers)
        with pytest.raises((ValueError, CalibrationError), match=r"needs|no Gram"):
            scored(score, group, UnitStatistics(poor))


def test_a_score_that_does_not_fit_says_which_ones_do() -> None:
    with pytest.raises(UsageError) as error:
        check_fit(UNIT_SCORES["apoz"], "layer")
    assert (
        "'apoz' doesn't fit units of the kind 'layer', only channel, filter, head, hidden, neuron, query-head."
        in str(error.value)
    )
    assert "block-influence, l1, l2, loo-kl, mean_abs, random, variance" in str(error.value)
    with pytest.raises(UsageError, match="'reap' doesn't fit"):
        scored(UNIT_SCORES["reap"], groups_of("llama", "neuron")[0], UnitStatistics())


def test_unknown_names_and_ways_to_combine_are_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown score 'wnada' of units.*Did you mean 'wanda'.*module:function"):
        unit_score_named("wnada")
    with pytest.raises(UsageError, match=r"combine scores 'men'.*Did you mean 'mean'"):
        unit_score_named("l1", "men")
    with pytest.raises(UsageError, match=r"goes with l1, l2, mean_abs, variance, random only, not with 'obs'"):
        unit_score_named("obs", "max")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([1.0] * 44, r"is a list; it must be a tensor of shape \(44,\)"),
        (torch.ones(4), r"has the shape \(4,\); its units need \(44,\)"),
        (torch.ones(44, 1), r"has the shape \(44, 1\)"),
        (torch.arange(44) * 1j, "is complex"),
        (torch.arange(44).float().masked_fill(torch.arange(44) < 2, torch.nan), "NaN or infinite for 2 of 44 units"),
        (torch.arange(44).float().masked_fill(torch.arange(44) == 2, torch.inf), "NaN or infinite for 1 of 44 units"),
        (torch.full((44,), 2.5), r"is constant \(2\.5\): it says nothing about which units matter"),
    ],
)
def test_values_that_say_nothing_are_refused(found: object, message: str) -> None:
    group = groups_of("llama", "neuron")[0]
    with pytest.raises(ScoreError, match=rf"the score 'mine' of model\.layers\.0/neuron .*{message}"):
        checked(found, group, "mine")


def test_whole_numbers_and_other_precisions_become_float32() -> None:
    group = groups_of("llama", "neuron")[0]
    for dtype in (torch.int64, torch.float64, torch.bfloat16):
        assert checked(torch.arange(44, dtype=dtype), group, "mine").dtype == torch.float32


def test_a_single_unit_may_have_any_score() -> None:
    group = replace(groups_of("llama", "neuron")[0], count=1)
    assert checked(torch.tensor([3.0]), group, "mine").tolist() == [3]


# The user's own function

OWN = """
from secateur.calibration.statistics import Needs

def norm_of_mean(group, statistics):
    one, = statistics.inputs
    return one.mean[group.readers[0].index].norm(dim=1)

def by_gram(group, statistics):
    return statistics.inputs[0].G.diagonal()

by_gram.needs = Needs.GRAM
by_gram.fits = {"neuron"}

def wrong(group, statistics):
    return statistics.inputs[0].G
wrong.needs = Needs.GRAM

def failing(group, statistics):
    return group.nothing

def odd(group, statistics): ...
odd.needs = "gram"

def unfit(group, statistics): ...
unfit.fits = "neurons"

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Has a file with scores in the current directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own_scores_of_a_test.py"
    path.write_text(OWN)
    (tmp_path / "broken_scores_of_a_test.py").write_text("def score(:")
    (tmp_path / "lacking_scores_of_a_test.py").write_text("import no_such_module_at_all")
    return path


@pytest.mark.parametrize("source", ["own_scores_of_a_test", "own_scores_of_a_test.py", "{}"])
def test_a_function_of_ones_own_is_a_score(source: str, own: Path) -> None:
    group, X = setting("llama", "neuron")
    name = f"{source.format(own)}:norm_of_mean"
    score = unit_score_named(name)
    assert score.name == name
    assert score.needs == Needs.MOMENTS
    assert score.fits == ALL_UNITS
    torch.testing.assert_close(scored(score, group, gathered(X, score.needs)), X.mean(0).abs())


def test_a_function_of_ones_own_says_what_it_needs_and_fits(own: Path) -> None:
    score = unit_score_named(f"{own}:by_gram")
    assert score.needs == Needs.GRAM
    assert score.fits == {"neuron"}
    with pytest.raises(UsageError, match="doesn't fit units of the kind 'layer', only neuron"):
        check_fit(score, "layer")


def test_what_ones_own_function_returns_is_checked(own: Path) -> None:
    group, X = setting("llama", "neuron")
    score = unit_score_named(f"{own}:wrong")
    with pytest.raises(ScoreError, match=r"wrong' of model\.layers\.0/neuron has the shape \(44, 44\)"):
        scored(score, group, gathered(X, score.needs))


def test_what_ones_own_function_raises_is_named_with_its_line(own: Path) -> None:
    group, X = setting("llama", "neuron")
    score = unit_score_named(f"{own}:failing")
    with pytest.raises(ScoreError, match=r"raised AttributeError for model\.layers\.0/neuron: .*own_sc.*\.py, line 19"):
        scored(score, group, gathered(X, score.needs))


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere_at_all:score", "there is no module 'nowhere_at_all', neither installed nor in"),
        ("nowhere.py:score", r"there is no file .*nowhere\.py"),
        ("own_scores_of_a_test:norm", r"has no function 'norm'.*Known: .*norm_of_mean"),
        ("own_scores_of_a_test.py:by_grams", r"has no function 'by_grams'. Did you mean 'by_gram'"),
        ("own_scores_of_a_test:number", "is a int, not a function"),
        ("own_scores_of_a_test:odd", r"odd\.needs must be a secateur Needs"),
        ("own_scores_of_a_test:unfit", r"unfit\.fits has the unknown unit 'neurons'. Did you mean 'neuron'"),
        ("own_scores_of_a_test.py:", "is no import path"),
        (":score", "is no import path"),
        ("broken_scores_of_a_test:score", "can't be imported"),
        ("broken_scores_of_a_test.py:score", "can't be imported"),
        ("lacking_scores_of_a_test:score", "imports 'no_such_module_at_all', which isn't installed"),
        ("lacking_scores_of_a_test.py:score", "No module named 'no_such_module_at_all'"),
    ],
)
def test_an_import_path_that_leads_nowhere_says_what_is_missing(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        unit_score_named(name)
