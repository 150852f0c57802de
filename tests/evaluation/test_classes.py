"""What is counted of classes, held against scikit-learn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, matthews_corrcoef

from secateur.evaluation.classes import f1, matthews


@given(
    st.integers(2, 5).flatmap(lambda n: st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), min_size=1))
)
def test_f1_and_matthews_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    told, says = map(list, zip(*pairs, strict=True))
    classes = max(2, *told, *says) if max(*told, *says) < 2 else max(*told, *says) + 1
    confusion = torch.zeros(classes, classes, dtype=torch.float64)
    for one, other in pairs:
        confusion[one, other] += 1
    average = "binary" if classes == 2 else "macro"
    labels = None if classes == 2 else list(range(classes))
    assert f1(confusion) == pytest.approx(f1_score(told, says, average=average, labels=labels, zero_division=0))
    assert matthews(confusion) == pytest.approx(matthews_corrcoef(told, says), abs=1e-9)
