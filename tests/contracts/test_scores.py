"""What every registered score promises, and what each one computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.calibration.statistics import GRADIENTS, Gradients, Needs, Statistics
from secateur.errors import ScoreError, UsageError
from secateur.scores import SCORES, Score, score_named

OUT, IN, TOKENS = 6, 9, 40
CPU = torch.device("cpu")

every_score = pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
WEIGHT_SCORES = {name: score for name, score in SCORES.items() if name != "variance"}  # it compares vectors only
every_weight_score = pytest.mark.parametrize("score", WEIGHT_SCORES.values(), ids=WEIGHT_SCORES)
CALIBRATED_SCORES = {name: score for name, score in SCORES.items() if score.needs}
every_calibrated_score = pytest.mark.parametrize("score", CALIBRATED_SCORES.values(), ids=CALIBRATED_SCORES)

# What doubling all weights multiplies the score by: of single weights, and of vectors.
DOUBLED = {
    "l1": 2,
    "l2": 4,
    "mean_abs": 2,
    "random": 1,
    "wanda": 2,
    "ria": 1,
    "obs": 4,
    "taylor": 2,
    "fisher": 4,
    "snip": 2,
}
DOUBLED_VECTORS = DOUBLED | {"l2": 2, "variance": 4}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight() -> Tensor:
    return torch.randn(OUT, IN, generator=generator(1))


def inputs() -> Tensor:
    mixed = torch.randn(TOKENS, IN, generator=generator(2)) @ torch.randn(IN, IN, generator=generator(3))
    return mixed * torch.linspace(0.2, 3, IN)


def statistics(score: Score, X: Tensor | None = None) -> Statistics | None:
    """Returns what the score declares that it needs, and nothing more."""
    if not score.needs:
        return None
    found = Statistics.empty(IN, score.needs, CPU)
    X = inputs() if X is None else X
    found.add(X)
    if score.needs & GRADIENTS:
        found.gradients = Gradients.empty((OUT, IN), score.needs, CPU)
        Y = torch.randn(TOKENS, OUT, generator=generator(4))  # gradients at the outputs
        for part in range(4):
            found.gradients.add(Y[part::4].T @ X[part::4])
    return found


def test_the_registry_knows_each_score_by_its_name() -> None:
    for name, score in SCORES.items():
        assert score.name == name
        assert score_named(name) is score
        assert score.about


def test_an_unknown_score_is_refused_with_the_nearest_and_the_known_ones() -> None:
    with pytest.raises(UsageError) as error:
        score_named("wandas")
    assert "'wandas'" in str(error.value)
    assert "Did you mean 'wanda'?" in str(error.value)
    assert all(name in str(error.value) for name in SCORES.keys() - {"variance"})  # which is for units
    with pytest.raises(UsageError, match="of your own scores units"):
        score_named("mine.py:score")


@every_weight_score
def test_weights_have_the_weights_shape_and_are_finite_float32(score: Score) -> None:
    scores = score.weights(weight(), statistics(score), generator())
    assert scores.shape == (OUT, IN)
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all()


@every_score
def test_vectors_have_one_finite_score_each(score: Score) -> None:
    scores = score.vectors(weight(), statistics(score), generator())
    assert scores.shape == (OUT,)
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all()


@every_weight_score
def test_zero_rows_zero_columns_and_dead_inputs_leave_scores_finite(score: Score) -> None:
    W, X = weight(), inputs()
    W[2] = 0
    W[:, 3] = 0
    X[:, [4, 5]] = 0
    for scores in (
        score.weights(W, statistics(score, X), generator()),
        score.vectors(W, statistics(score, X), generator()),
        score.weights(torch.zeros(OUT, IN), statistics(score, torch.zeros(TOKENS, IN)), generator()),
    ):
        assert torch.isfinite(scores).all()


@every_calibrated_score
def test_an_input_that_never_fires_makes_its_weights_worth_nothing(score: Score) -> None:
    X = inputs()
    X[:, [0, 4]] = 0
    scores = score.weights(weight(), statistics(score, X), generator())
    assert (scores[:, [0, 4]] == 0).all()
    assert (scores[:, [1, 2, 3, 5, 6, 7, 8]] > 0).all()


@every_weight_score
def test_the_same_generator_gives_the_same_scores_and_nothing_is_modified(score: Score) -> None:
    W, known = weight(), statistics(score)
    first = score.weights(W, known, generator(7)), score.vectors(W, known, generator(7))
    again = score.weights(W, known, generator(7)), score.vectors(W, known, generator(7))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert torch.equal(W, weight())
    if known is not None:
        fresh = statistics(score)
        assert torch.equal(known.norms, fresh.norms)
        assert (known.gram is None) == (Needs.GRAM not in score.needs)


@every_weight_score
def test_the_sign_of_a_weight_does_not_matter(score: Score) -> None:
    W, known = weight(), statistics(score)
    assert torch.equal(score.weights(W, known, generator()), score.weights(-W, known, generator()))


@every_weight_score
def test_doubling_all_weights_keeps_the_order(score: Score) -> None:
    W, known = weight(), statistics(score)
    orders = [score.weights(factor * W, known, generator()).flatten().argsort(stable=True) for factor in (1, 2)]
    assert torch.equal(*orders)


@pytest.mark.parametrize(("name", "factor"), DOUBLED.items())
def test_doubling_all_weights_multiplies_the_score_by_a_known_factor(name: str, factor: int) -> None:
    score, W = SCORES[name], weight()
    known = statistics(score)
    assert torch.equal(score.weights(2 * W, known, generator()), factor * score.weights(W, known, generator()))


@pytest.mark.parametrize(("name", "factor"), DOUBLED_VECTORS.items())
def test_doubling_a_vector_multiplies_its_score_by_a_known_factor(name: str, factor: int) -> None:
    score, W = SCORES[name], weight()
    known = statistics(score)
    assert torch.equal(score.vectors(2 * W, known, generator()), factor * score.vectors(W, known, generator()))


@every_calibrated_score
def test_scaling_all_inputs_keeps_the_order(score: Score) -> None:
    W = weight()
    orders = [
        score.weights(W, statistics(score, factor * inputs()), generator()).flatten().argsort() for factor in (1, 4)
    ]
    assert torch.equal(*orders)


@every_calibrated_score
def test_missing_statistics_are_refused_by_the_scores_name(score: Score) -> None:
    with pytest.raises(ValueError, match=score.name):
        score.weights(weight(), None, generator())


def test_scores_without_calibration_are_the_plain_formulas() -> None:
    W = torch.tensor([[1.0, -2.0, 2.0], [0.0, 3.0, -4.0]])
    expected = {
        "l1": ([[1, 2, 2], [0, 3, 4]], [5, 7]),
        "l2": ([[1, 4, 4], [0, 9, 16]], [3, 5]),
        "mean_abs": ([[1, 2, 2], [0, 3, 4]], [5 / 3, 7 / 3]),
    }
    for name, (weights, vectors) in expected.items():
        assert SCORES[name].weights(W, None, generator()).tolist() == weights
        torch.testing.assert_close(SCORES[name].vectors(W, None, generator()), torch.tensor(vectors).float())


def test_variance_of_a_vector_is_the_population_variance() -> None:
    V = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0]])
    assert SCORES["variance"].vectors(V, None, generator()).tolist() == [1.25, 0]


def test_variance_refuses_single_weights_and_says_why() -> None:
    with pytest.raises(ScoreError, match=r"variance of a single weight is always 0.*Use l1"):
        SCORES["variance"].weights(weight(), None, generator())


def test_wanda_is_the_weight_times_the_norm_of_its_input() -> None:
    # Column norms 5, 13 and 1.
    X = torch.tensor([[3.0, 5.0, 0.0], [4.0, 12.0, 1.0]])
    W = torch.tensor([[1.0, -1.0, 10.0], [2.0, 0.5, 0.0]])
    known = Statistics.empty(3, Needs.MOMENTS, CPU)
    known.add(X)
    assert SCORES["wanda"].weights(W, known, generator()).tolist() == [[5, 13, 10], [10, 6.5, 0]]
    assert SCORES["wanda"].vectors(W, known, generator()).tolist() == [28, 16.5]


def test_ria_is_the_share_of_row_and_column_times_the_root_of_the_norm() -> None:
    # Column norms 9 and 4, so roots 3 and 2.
    X = torch.tensor([[9.0, 0.0], [0.0, 4.0]])
    W = torch.tensor([[1.0, -3.0], [3.0, 1.0]])
    known = Statistics.empty(2, Needs.MOMENTS, CPU)
    known.add(X)
    # |w| / column sum (4, 4) + |w| / row sum (4, 4): 1/4 + 1/4 and 3/4 + 3/4.
    assert SCORES["ria"].weights(W, known, generator()).tolist() == [[1.5, 3], [4.5, 1]]


def test_obs_is_the_least_error_that_removing_a_weight_can_leave() -> None:
    W, score = weight(), SCORES["obs"]
    known = statistics(score)
    H = known.G.double()
    H += 0.01 * H.diagonal().mean() * torch.eye(IN)
    scores = score.weights(W, known, generator())
    for i, j in [(0, 0), (3, 5), (5, 8)]:
        # The best the other weights can do is the least squares answer to losing input j.
        others = [k for k in range(IN) if k != j]
        shift = torch.linalg.solve(H[others][:, others], H[others, j]) * W[i, j].double()
        D = torch.zeros(IN, dtype=torch.float64)
        D[others], D[j] = shift, -W[i, j].double()
        assert float(D @ H @ D) == pytest.approx(float(scores[i, j]), rel=1e-3)


def test_gradient_scores_are_their_formulas() -> None:
    W = torch.tensor([[2.0, -3.0]])
    batches = [torch.tensor([[1.0, 1.0]]), torch.tensor([[-3.0, 2.0]])]
    for name, expected in (("taylor", [4, 4.5]), ("fisher", [10, 11.25]), ("snip", [2, 4.5])):
        known = Statistics.empty(2, Needs.NOTHING, CPU)
        known.gradients = Gradients.empty((1, 2), SCORES[name].needs, CPU)
        for batch in batches:
            known.gradients.add(batch)
        assert SCORES[name].weights(W, known, generator()).tolist() == [expected]


def test_random_is_uniform_in_0_to_1_and_differs_by_seed() -> None:
    W = torch.zeros(100, 100)
    one, other = (SCORES["random"].weights(W, None, generator(seed)) for seed in (0, 1))
    assert not torch.equal(one, other)
    assert ((one >= 0) & (one < 1)).all()
    # The mean of 10 000 uniform numbers has a standard deviation of 0.0029.
    assert abs(float(one.mean()) - 0.5) < 0.02
