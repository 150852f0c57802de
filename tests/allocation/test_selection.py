"""From scores to masks: exact counts, a fixed order of ties, and what must stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.allocation.amounts import Amount, Pattern, Threshold
from secateur.allocation.selection import keep_mask, lowest, lowest_of_groups, lowest_of_rows
from secateur.errors import PatternError, ScoreError, UsageError

INF = float("inf")


@st.composite
def matrices(draw: st.DrawFn, values: st.SearchStrategy[float] | None = None, widest: int = 8) -> Tensor:
    """Draws (rows, columns); by default of few values, so that ties abound."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, widest))
    values = values or st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0])
    flat = draw(st.lists(values, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(flat).view(rows, columns)


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def pruned(scores: Tensor, amount: Amount) -> Tensor:
    return ~keep_mask(scores, amount, "layer")[0]


@settings(max_examples=80, deadline=None)
@given(scores=matrices(), share=st.floats(0, 1))
def test_exactly_the_lowest_go_and_of_equal_ones_the_first(scores: Tensor, share: float) -> None:
    count = round(share * scores.numel())
    expected = np.zeros(scores.numel(), dtype=bool)
    expected[np.argsort(scores.flatten().numpy(), kind="stable")[:count]] = True
    assert lowest(scores, count).flatten().tolist() == expected.tolist()
    assert pruned(scores, Amount(remove=count)).flatten().tolist() == expected.tolist()


@settings(max_examples=60, deadline=None)
@given(scores=matrices(), share=st.floats(0, 1))
def test_per_output_the_lowest_of_each_row_go_and_rows_differ_by_one_at_most(scores: Tensor, share: float) -> None:
    count = round(share * scores.numel())
    gone = pruned(scores, Amount(remove=count, per="output"))
    per_row = gone.sum(1)
    assert int(gone.sum()) == count
    assert int(per_row.max() - per_row.min()) <= 1
    for row, mask, number in zip(scores, gone, per_row.tolist(), strict=True):
        assert mask.nonzero().flatten().tolist() == sorted(np.argsort(row.numpy(), kind="stable")[:number].tolist())


@settings(max_examples=60, deadline=None)
@given(m=st.integers(2, 9), data=st.data())
def test_every_group_of_m_keeps_its_n_highest_and_of_equal_ones_the_last(m: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, m - 1))
    groups = data.draw(matrices(widest=3)).repeat_interleave(m, 1)
    scores = groups + data.draw(st.sampled_from([0.0, 1.0])) * normal(*groups.shape).round()
    gone = pruned(scores, Amount(pattern=Pattern(n, m)))
    assert torch.equal(gone, lowest_of_groups(scores, Pattern(n, m)))
    for values, mask in zip(scores.reshape(-1, m), gone.reshape(-1, m), strict=True):
        assert mask.nonzero().flatten().tolist() == sorted(np.argsort(values.numpy(), kind="stable")[: m - n].tolist())


def test_constant_scores_go_in_storage_order() -> None:
    scores = torch.full((3, 4), 0.5)
    assert pruned(scores, Amount(remove=5)).int().tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert pruned(scores, Amount(remove=5, per="output")).int().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [1, 0, 0, 0],
    ]
    assert pruned(scores, Amount(pattern=Pattern(1, 2))).int().tolist() == [[1, 0, 1, 0]] * 3


@pytest.mark.parametrize("count", [0, 1, 11, 12])
@pytest.mark.parametrize("per", ["layer", "output"])
def test_nothing_and_everything_are_counts_too(count: int, per: str) -> None:
    for scores in (normal(3, 4), torch.zeros(3, 4), torch.full((3, 4), -INF)):
        assert int(pruned(scores, Amount(remove=count, per=per)).sum()) == count


def test_weights_that_are_zero_already_go_first() -> None:
    scores = torch.tensor([[3.0, -INF, 1.0], [-5.0, 2.0, -INF]])
    assert pruned(scores, Amount(remove=2)).int().tolist() == [[0, 1, 0], [0, 0, 1]]
    assert pruned(scores, Amount(remove=3)).int().tolist() == [[0, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize(
    "amount",
    [
        Amount(pattern=Pattern(2, 4)),
        Amount(pattern=Pattern(1, 2)),
        Amount(remove=13, min_per_output=1),
        Amount(remove=14, min_per_output=1, per="output"),
        Amount(threshold=Threshold("value", 0), min_per_output=1),
    ],
)
def test_weights_that_are_zero_already_are_never_brought_back(amount: Amount) -> None:
    scores = normal(3, 8)
    scores[:, 5] = -INF  # a dead input
    scores[1, :4] = -INF  # a group of four
    gone = pruned(scores, amount)
    assert bool(gone[scores == -INF].all())
    if amount.pattern is not None:
        fresh = ~(scores == -INF).reshape(-1, amount.pattern.m).any(1)
        assert set(gone.reshape(-1, amount.pattern.m)[fresh].sum(1).tolist()) == {amount.pattern.m - amount.pattern.n}
    elif amount.remove is not None:
        assert int(gone.sum()) == amount.remove


def test_rows_of_different_counts_each_lose_their_own_lowest() -> None:
    scores = torch.tensor([[3.0, 1, 2], [1, 1, 1], [9, 8, 7]])
    assert lowest_of_rows(scores, torch.tensor([1, 2, 0])).int().tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("text", ["0.3", "-1", "p90", "p12.5", "mean", "mean-1std", "mean+0.5std"])
def test_everything_below_a_threshold_goes_and_what_equals_it_stays(text: str) -> None:
    scores, threshold = normal(9, 11), Threshold.parse(text)
    keep, value = keep_mask(scores, Amount(threshold=threshold), "layer")
    assert value == threshold.value(scores)
    assert torch.equal(keep, scores >= value)
    assert 0 < int(keep.sum()) < scores.numel()


def test_a_weight_at_the_very_threshold_stays() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    assert keep_mask(scores, Amount(threshold=Threshold("value", 3)), "layer")[0].int().tolist() == [[0, 0, 1, 1, 1]]
    keep, value = keep_mask(scores, Amount(threshold=Threshold("percentile", 50)), "layer")
    assert (keep.int().tolist(), value) == ([[0, 0, 1, 1, 1]], 3)


@pytest.mark.parametrize("percent", [10, 50, 90])
def test_a_percentile_takes_that_share(percent: int) -> None:
    scores = normal(20, 50)
    assert int(pruned(scores, Amount(threshold=Threshold("percentile", percent))).sum()) == percent * 10


def test_a_threshold_is_that_of_the_weights_that_are_not_zero_yet() -> None:
    scores = torch.tensor([[-INF, 1.0, 2.0], [-INF, 3.0, 4.0]])
    keep, value = keep_mask(scores, Amount(threshold=Threshold("deviations", 0)), "layer")
    assert value == 2.5
    assert keep.int().tolist() == [[0, 0, 0], [0, 1, 1]]


@pytest.mark.parametrize("text", ["0.3", "p50", "mean", "mean-1std"])
def test_a_layer_of_zeros_has_a_finite_threshold_and_stays_all_zero(text: str) -> None:
    keep, value = keep_mask(torch.full((2, 3), -INF), Amount(threshold=Threshold.parse(text)), "layer")
    assert not keep.any()
    assert np.isfinite(value)


def test_counts_and_patterns_come_to_no_threshold() -> None:
    assert keep_mask(normal(2, 4), Amount(remove=3), "layer")[1] is None
    assert keep_mask(normal(2, 4), Amount(pattern=Pattern(2, 4)), "layer")[1] is None


@pytest.mark.parametrize(
    "amount",
    [Amount(remove=1), Amount(pattern=Pattern(1, 2)), Amount(threshold=Threshold("value", 0)), Amount(remove=0)],
)
def test_a_score_that_is_nan_is_an_error_that_names_the_layer(amount: Amount) -> None:
    scores = normal(3, 4)
    scores[1, 2] = float("nan")
    with pytest.raises(ScoreError, match=r"model\.q_proj: a score is NaN"):
        keep_mask(scores, amount, "model.q_proj")


def test_a_pattern_that_does_not_divide_the_width_is_an_error_that_names_the_layer() -> None:
    with pytest.raises(PatternError, match=r"2:4: model\.q_proj has 10 inputs"):
        keep_mask(normal(3, 10), Amount(pattern=Pattern(2, 4)), "model.q_proj")


@settings(max_examples=120, deadline=None)
@given(
    scores=matrices(),
    share=st.floats(0, 1),
    least=st.integers(1, 3),
    per=st.sampled_from(["layer", "output"]),
)
def test_with_a_minimum_per_output_every_row_and_column_keeps_some_or_the_layer_is_named(
    scores: Tensor, share: float, least: int, per: str
) -> None:
    count, gone, refusal = round(share * scores.numel()), None, ""
    try:
        gone = pruned(scores, Amount(remove=count, min_per_output=least, per=per))
    except UsageError as error:
        refusal = str(error)
    rows, columns = scores.shape
    if gone is None:
        assert "layer: " in refusal
        assert "--min-per-output" in refusal
        # Never more stays than these rows' highest and the columns' highest.
        assert per == "output" or count > scores.numel() - rows * least - columns
        return
    assert int(gone.sum()) == count
    assert int((~gone).sum(1).min()) >= min(least, scores.shape[1])
    assert int((~gone).sum(0).min()) >= 1


@settings(max_examples=60, deadline=None)
@given(scores=matrices(), least=st.integers(1, 2), level=st.sampled_from([0.0, 0.7, 5.0]))
def test_with_a_minimum_per_output_a_threshold_leaves_no_row_or_column_empty(
    scores: Tensor, least: int, level: float
) -> None:
    keep, _ = keep_mask(scores, Amount(threshold=Threshold("value", level), min_per_output=least), "layer")
    assert int(keep.sum(1).min()) >= min(least, scores.shape[1])
    assert int(keep.sum(0).min()) >= 1
    assert bool(keep[scores >= level].all())


def test_a_minimum_per_output_spares_the_highest_of_each_row_and_column() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [0.1, 0.3, 0.2]])
    gone = pruned(scores, Amount(remove=4, min_per_output=1))
    # The highest of rows are (0,2), (1,2) and (2,1), of columns the whole second row: four weights are left.
    assert gone.int().tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]
    with pytest.raises(UsageError, match=r"leaves 4 of 9 weights to remove, but 5 are asked for.*0\.4444"):
        pruned(scores, Amount(remove=5, min_per_output=1))


@pytest.mark.parametrize("per", ["layer", "output"])
def test_a_minimum_that_is_more_than_rows_keep_is_named(per: str) -> None:
    with pytest.raises(UsageError, match=r"layer: --min-per-output leaves \d+ of 32 weights to remove, but 24 are"):
        pruned(normal(4, 8), Amount(remove=4 * 6, min_per_output=3, per=per))


def test_a_row_that_holds_the_highest_of_every_column_cannot_give_its_share_and_is_named() -> None:
    scores = normal(4, 8)
    scores[2] += 100
    assert int(pruned(scores, Amount(remove=12, min_per_output=1)).sum()) == 12
    with pytest.raises(UsageError, match=r"layer: with --per output, --min-per-output .*use --per layer"):
        pruned(scores, Amount(remove=12, min_per_output=1, per="output"))


def test_a_pattern_that_keeps_less_than_the_minimum_is_named() -> None:
    with pytest.raises(UsageError, match=r"layer: pattern 1:4 keeps 2 weights per output, fewer than .* 3"):
        pruned(normal(4, 8), Amount(pattern=Pattern(1, 4), min_per_output=3))
