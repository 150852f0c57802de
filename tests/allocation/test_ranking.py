"""A global ranking is one plain sort over all layers' scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.allocation.ranking import ScoreRanking
from secateur.errors import ScoreError

INF = float("inf")

ties = st.sampled_from([-INF, -2.0, -0.0, 0.0, 1e-45, 0.5, 0.5000001, 3.0, INF])
anything = st.floats(width=32, allow_nan=False)
layer_scores = st.lists(
    st.lists(st.one_of(ties, anything), min_size=1, max_size=12).map(torch.tensor),
    min_size=1,
    max_size=5,
)


def ranked(layers: Sequence[Tensor], remove: int) -> list[int]:
    with ScoreRanking() as ranking:
        for number, scores in enumerate(layers):
            ranking.add(f"layer {number}", scores)
        counts = ranking.lowest(remove)
    assert list(counts) == [f"layer {number}" for number in range(len(layers))]
    return list(counts.values())


def sorted_globally(layers: Sequence[Tensor], remove: int) -> list[int]:
    owner = np.concatenate([np.full(scores.numel(), number) for number, scores in enumerate(layers)])
    values = np.concatenate([scores.numpy().ravel() for scores in layers])
    first = np.argsort(values, kind="stable")[:remove]
    return np.bincount(owner[first], minlength=len(layers)).tolist()


@settings(max_examples=60, deadline=None)
@given(layers=layer_scores, share=st.floats(0, 1))
def test_each_layer_gives_as_many_as_a_stable_sort_of_all_scores_takes(layers: list[Tensor], share: float) -> None:
    remove = round(share * sum(scores.numel() for scores in layers))
    counts = ranked(layers, remove)
    assert sum(counts) == remove
    assert counts == sorted_globally(layers, remove)


@pytest.mark.parametrize("remove", [0, 1, 999, 1000, 2500, 5999, 6000])
def test_large_layers_are_ranked_exactly(remove: int) -> None:
    random = torch.Generator().manual_seed(0)
    layers = [scale * torch.randn(20, 100, generator=random) for scale in (1e-30, 1.0, 1e3)]
    assert ranked(layers, remove) == sorted_globally(layers, remove)


def test_scores_that_differ_in_their_last_bit_are_told_apart() -> None:
    low = torch.tensor(1.0)
    high = torch.nextafter(low, torch.tensor(2.0))
    layers = [high.repeat(3), low.repeat(4)]
    assert ranked(layers, 4) == [0, 4]
    assert ranked(layers, 5) == [1, 4]


def test_of_equal_scores_those_of_earlier_layers_go_first() -> None:
    layers = [torch.ones(3), torch.ones(3), torch.ones(3)]
    assert [ranked(layers, remove) for remove in (0, 2, 3, 4, 9)] == [
        [0, 0, 0],
        [2, 0, 0],
        [3, 0, 0],
        [3, 1, 0],
        [3, 3, 3],
    ]


def test_a_negative_zero_equals_a_zero() -> None:
    assert ranked([torch.tensor([0.0]), torch.tensor([-0.0])], 1) == [1, 0]


def test_weights_that_are_zero_already_go_first_and_guarded_ones_last() -> None:
    layers = [torch.tensor([INF, -1e38, 5.0]), torch.tensor([-INF, INF, 1e38])]
    assert ranked(layers, 1) == [0, 1]
    assert ranked(layers, 4) == [2, 2]
    assert ranked(layers, 5) == [3, 2]


def test_a_score_that_is_nan_is_an_error_that_names_the_layer() -> None:
    with ScoreRanking() as ranking, pytest.raises(ScoreError, match=r"model\.q_proj: a score is NaN"):
        ranking.add("model.q_proj", torch.tensor([1.0, float("nan")]))


def test_scores_of_any_shape_and_dtype_count() -> None:
    with ScoreRanking() as ranking:
        ranking.add("a", torch.arange(6).view(2, 3).T.bfloat16())
        ranking.add("b", torch.full((2, 2), 2.5, dtype=torch.float64))
        assert ranking.lowest(4) == {"a": 3, "b": 1}


def test_nothing_is_left_on_disk_not_even_after_an_error(tmp_path: Path) -> None:
    with ScoreRanking(tmp_path) as ranking:
        ranking.add("a", torch.ones(3))
        assert [path.stat().st_size for path in tmp_path.rglob("*.f32")] == [12]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ScoreError), ScoreRanking(tmp_path) as ranking:
        ranking.add("a", torch.tensor(float("nan")))
    assert list(tmp_path.iterdir()) == []
