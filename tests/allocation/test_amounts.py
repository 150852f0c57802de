"""What a user may ask for: counts, thresholds, patterns, and how a count is shared out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.allocation import ALLOCATIONS
from secateur.allocation.amounts import Pattern, Threshold, row_counts
from secateur.allocation.uniform import uniform
from secateur.errors import PatternError, UsageError

NORMAL = torch.randn(7, 13, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("text", "n", "m"), [("2:4", 2, 4), ("1:2", 1, 2), (" 3 : 7 ", 3, 7), ("15:16", 15, 16)])
def test_a_pattern_is_read_as_n_of_m(text: str, n: int, m: int) -> None:
    assert Pattern.parse(text) == Pattern(n, m)
    assert str(Pattern.parse(text)) == f"{n}:{m}"


@pytest.mark.parametrize("text", ["", "2", "2:", ":4", "2:4:8", "2/4", "-2:4", "2.0:4", "a:b", "2of4"])
def test_a_pattern_that_is_not_written_n_m_is_refused_with_what_came(text: str) -> None:
    with pytest.raises(PatternError, match="written N:M") as error:
        Pattern.parse(text)
    assert f"'{text}'" in str(error.value)


@pytest.mark.parametrize("text", ["4:4", "5:4", "0:4", "0:0"])
def test_a_pattern_that_keeps_all_or_nothing_is_refused(text: str) -> None:
    with pytest.raises(PatternError, match=rf"0 < N < M, but got {text}"):
        Pattern.parse(text)


def test_a_pattern_names_the_layer_that_it_does_not_divide() -> None:
    Pattern(2, 4).check(44, "model.mlp.down")
    with pytest.raises(PatternError, match=r"3:8: model\.mlp\.down has 44 inputs, which 8 doesn't divide"):
        Pattern(3, 8).check(44, "model.mlp.down")


@pytest.mark.parametrize(
    ("text", "kind", "number"),
    [
        ("0.01", "value", 0.01),
        ("1e-3", "value", 1e-3),
        ("-2", "value", -2),
        (" 5 ", "value", 5),
        ("p90", "percentile", 90),
        ("p0.5", "percentile", 0.5),
        ("mean", "deviations", 0),
        ("mean-1std", "deviations", -1),
        ("mean+1.5std", "deviations", 1.5),
        ("mean-.5std", "deviations", -0.5),
        ("mean-std", "deviations", -1),
        ("mean+std", "deviations", 1),
    ],
)
def test_a_threshold_is_a_number_a_percentile_or_a_distance_from_the_mean(text: str, kind: str, number: float) -> None:
    assert Threshold.parse(text) == Threshold(kind, number)


@pytest.mark.parametrize("text", ["", "high", "90p", "p", "pp90", "mean-1", "mean1std", "std", "nan", "inf", "-inf"])
def test_a_threshold_that_is_none_of_these_is_refused_with_what_came(text: str) -> None:
    with pytest.raises(UsageError, match="--threshold takes a number, pX or mean-Xstd") as error:
        Threshold.parse(text)
    assert f"'{text}'" in str(error.value)


@pytest.mark.parametrize("text", ["p0", "p100", "p250"])
def test_a_percentile_lies_between_0_and_100(text: str) -> None:
    with pytest.raises(UsageError, match=f"between 0 and 100 but got '{text}'"):
        Threshold.parse(text)


@pytest.mark.parametrize("percent", [0.1, 1, 10, 33.3, 50, 75, 90, 99, 99.9])
def test_a_percentile_is_numpys(percent: float) -> None:
    expected = np.percentile(NORMAL.double().numpy(), percent)
    assert Threshold("percentile", percent).value(NORMAL) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    percent=st.floats(0.001, 99.999),
)
def test_a_percentile_of_any_scores_is_numpys(values: list[float], percent: float) -> None:
    scores = torch.tensor(values)
    expected = np.percentile(scores.double().numpy(), percent)
    assert Threshold("percentile", percent).value(scores) == pytest.approx(expected, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("steps", [-2, -1, 0, 0.5, 1])
def test_deviations_are_the_populations(steps: float) -> None:
    values = NORMAL.double().numpy()
    expected = values.mean() + steps * values.std()
    assert Threshold("deviations", steps).value(NORMAL) == pytest.approx(expected, rel=1e-9)


def test_a_value_does_not_depend_on_the_scores() -> None:
    assert Threshold("value", 0.25).value(NORMAL) == Threshold("value", 0.25).value(100 * NORMAL) == 0.25


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), share=st.floats(0, 1), seed=st.integers(0, 3))
def test_rows_share_a_count_exactly_and_differ_by_one_at_most(rows: int, columns: int, share: float, seed: int) -> None:
    scores = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    remove = round(share * rows * columns)
    counts = row_counts(remove, scores)
    assert counts.dtype == torch.int64
    assert int(counts.sum()) == remove
    assert int(counts.max() - counts.min()) <= 1


def test_the_rows_that_give_one_more_are_those_whose_next_score_is_lowest() -> None:
    scores = torch.tensor([[0.0, 5, 9], [3, 0, 9], [0, 9, 4], [9, 9, 0]])
    assert row_counts(4, scores).tolist() == [1, 1, 1, 1]
    assert row_counts(5, scores).tolist() == [1, 2, 1, 1]
    assert row_counts(6, scores).tolist() == [1, 2, 2, 1]
    assert row_counts(12, scores).tolist() == [3, 3, 3, 3]


def test_of_rows_that_are_alike_the_first_ones_give_one_more() -> None:
    assert row_counts(7, torch.ones(5, 4)).tolist() == [2, 2, 1, 1, 1]


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=8), sparsity=st.floats(0.01, 0.99))
def test_uniform_gives_each_layer_the_same_share_to_the_nearest_weight(sizes: list[int], sparsity: float) -> None:
    counts = uniform({f"layer {i}": size for i, size in enumerate(sizes)}, sparsity)
    assert list(counts) == [f"layer {i}" for i in range(len(sizes))]
    for count, size in zip(counts.values(), sizes, strict=True):
        assert abs(count - sparsity * size) <= 0.5 + 1e-9


def test_the_allocations_are_uniform_and_global() -> None:
    assert ALLOCATIONS == ("uniform", "global", "owl", "alpha", "error")
