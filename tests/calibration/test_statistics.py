"""Statistics are plain sums: they add up, travel through files, and refuse what isn't finite."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.calibration.statistics import BINS, GRAM_TILE, Needs, Statistics, load_statistics, save_statistics
from secateur.errors import CalibrationError

CPU = torch.device("cpu")
COUNTS = Needs.SIZES | Needs.ACTIVE | Needs.HISTOGRAM
every_need = pytest.mark.parametrize(
    "needs",
    [
        *(Needs.MOMENTS, Needs.GRAM, Needs.MOMENTS | Needs.GRAM),
        *(Needs.SIZES, Needs.ACTIVE, Needs.HISTOGRAM, Needs.GRAM | COUNTS),
    ],
    ids=str,
)


def tokens(number: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed)) + 0.3


def of(x: Tensor, needs: Needs = Needs.GRAM) -> Statistics:
    found = Statistics.empty(x.shape[1], needs, CPU)
    found.add(x)
    return found


def assert_same(one: Statistics, other: Statistics) -> None:
    assert one.count == other.count
    torch.testing.assert_close(one.total.float(), other.total.float())  # a batch is summed in float32
    torch.testing.assert_close(one.norms, other.norms)
    assert (one.gram is None) == (other.gram is None)
    if one.gram is not None:
        torch.testing.assert_close(one.G, other.G, rtol=1e-4, atol=1e-4)
    mine, others = one.sums(), other.sums()
    assert mine.keys() == others.keys()
    if one.sizes is not None:
        torch.testing.assert_close(mine["sizes"].float(), others["sizes"].float())
    for part in mine.keys() & {"active", "histogram"}:
        assert torch.equal(mine[part], others[part])


@pytest.mark.parametrize("width", [1, 7, GRAM_TILE - 1, GRAM_TILE, GRAM_TILE + 1, 2 * GRAM_TILE + 5])
def test_the_gram_matrix_is_x_transposed_x_whatever_the_width(width: int) -> None:
    x = tokens(50, width)
    G = of(x).G
    torch.testing.assert_close(G.double(), x.double().T @ x.double(), rtol=1e-4, atol=1e-3)
    assert torch.equal(G, G.T)
    assert G.dtype == torch.float32


@every_need
def test_count_mean_and_norms_are_those_of_all_tokens(needs: Needs) -> None:
    x = tokens(40, 6)
    found = of(x, needs)
    assert found.count == 40
    torch.testing.assert_close(found.mean, x.mean(0))
    torch.testing.assert_close(found.norms, x.norm(dim=0))
    assert (found.mean.dtype, found.norms.dtype) == (torch.float32, torch.float32)


@every_need
def test_mean_squares_and_variance_are_those_of_all_tokens(needs: Needs) -> None:
    x = tokens(40, 6)
    found = of(x, needs)
    torch.testing.assert_close(found.mean_squares, x.square().mean(0))
    torch.testing.assert_close(found.variance, x.var(0, correction=0))
    assert (found.mean_squares.dtype, found.variance.dtype) == (torch.float32, torch.float32)
    constant = of(torch.full((1000, 2), 0.1), needs).variance
    assert ((constant >= 0) & (constant < 1e-6)).all()


@every_need
def test_only_what_is_asked_for_is_gathered(needs: Needs) -> None:
    found = of(tokens(5, 3), needs)
    for need, part in (
        (Needs.GRAM, found.gram),
        (Needs.SIZES, found.sizes),
        (Needs.ACTIVE, found.active),
        (Needs.HISTOGRAM, found.histogram),
    ):
        assert (part is not None) == (need in needs)


def test_sizes_and_active_are_sums_over_the_tokens() -> None:
    found = of(torch.tensor([[1.0, -2.0, 0.0], [3.0, -4.0, -0.0], [-5.0, 6.0, 0.0]]), COUNTS)
    assert found.sizes is not None
    assert found.active is not None
    assert found.sizes.tolist() == [9, 12, 0]
    assert found.active.tolist() == [2, 1, 0]
    assert found.active.dtype == torch.int64


def bin_of(x: float) -> int:
    """The bin of a number, by logarithms."""
    exponent = -1000 if x == 0 else math.floor(math.log2(abs(x)))
    return min(max(exponent, -12), 3) + 12 + 16 * (x < 0)


EDGES = [sign * 2.0**k for k in (-150, -149, -127, -126, -40, -13, -12, -11, -1, 0, 1, 2, 3, 4, 90) for sign in (1, -1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_token_is_in_the_bin_of_its_sign_and_power_of_two(dtype: torch.dtype) -> None:
    x = torch.cat([torch.tensor([0.0, -0.0, *EDGES, 7.96875, -0.99609375]), 4 * tokens(300, 1).flatten()])
    x = x.to(dtype)[:, None]
    found = of(x, Needs.HISTOGRAM).histogram
    assert found is not None
    expected = [0] * BINS
    for number in x.float().flatten().tolist():
        expected[bin_of(number)] += 1
    assert found.tolist() == [expected]


def test_features_have_histograms_of_their_own() -> None:
    x = tokens(700, 5) * torch.logspace(-3, 1, 5)  # more tokens than are counted at once
    found = of(x, Needs.HISTOGRAM).histogram
    assert found is not None
    assert found.dtype == torch.int64
    assert found.shape == (5, BINS)
    assert found.sum(1).tolist() == [700] * 5
    for feature in range(5):
        alone = of(x[:, feature : feature + 1].clone(), Needs.HISTOGRAM).histogram
        assert alone is not None
        assert torch.equal(found[feature], alone[0])


def test_a_slice_of_a_wider_tensor_is_counted_like_any_other() -> None:
    x = tokens(30, 8)
    assert_same(of(x[:, 2:5], COUNTS), of(x[:, 2:5].clone(), COUNTS))


@every_need
def test_two_halves_added_are_the_whole(needs: Needs) -> None:
    x = tokens(60, 9)
    assert_same(of(x[:23], needs) + of(x[23:], needs), of(x, needs))


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 64), max_size=5), gram=st.booleans())
def test_any_cut_into_batches_gives_the_same_sums(cuts: list[int], gram: bool) -> None:
    x, needs = tokens(64, 8), COUNTS | (Needs.GRAM if gram else Needs.MOMENTS)
    edges = [0, *sorted(cuts), 64]
    one_by_one = Statistics.empty(8, needs, CPU)
    for start, end in pairwise(edges):
        one_by_one.add(x[start:end])
    assert_same(one_by_one, of(x, needs))


def test_sums_of_whole_numbers_are_exact_in_any_order() -> None:
    x = torch.randint(-9, 9, (100, 12), generator=torch.Generator().manual_seed(0)).float()
    left, right, whole = of(x[:30]), of(x[30:]), of(x)
    for added in (left + right, right + left):
        assert torch.equal(added.G, whole.G)
        assert torch.equal(added.total, whole.total)
    assert torch.equal(whole.G, x.T @ x)


def test_adding_leaves_both_as_they_were() -> None:
    x = tokens(20, 5)
    left, right = of(x[:10]), of(x[10:])
    _ = left + right
    assert_same(left, of(x[:10]))
    assert_same(right, of(x[10:]))


def test_half_precision_tokens_are_summed_in_full_precision() -> None:
    x = torch.full((3000, 2), 1.0, dtype=torch.bfloat16)
    found = of(x)
    assert found.total.tolist() == [3000, 3000]
    assert found.G.tolist() == [[3000, 3000], [3000, 3000]]
    assert of(x, Needs.MOMENTS).norms.tolist() == pytest.approx([3000**0.5] * 2)


def test_statistics_of_different_inputs_are_not_added() -> None:
    for one, other in [
        (of(tokens(5, 3)), of(tokens(5, 4))),
        (of(tokens(5, 3)), of(tokens(5, 3), Needs.MOMENTS)),
        (of(tokens(5, 3), Needs.SIZES), of(tokens(5, 3), Needs.MOMENTS)),
        (of(tokens(5, 3), Needs.MOMENTS), of(tokens(5, 3), Needs.HISTOGRAM)),
    ]:
        with pytest.raises(CalibrationError, match="different inputs"):
            _ = one + other


def test_moments_hold_no_gram_matrix_and_say_so() -> None:
    with pytest.raises(CalibrationError, match=r"no Gram matrix; gather them with Needs\.GRAM"):
        _ = of(tokens(5, 3), Needs.MOMENTS).G


@every_need
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_input_that_is_not_finite_is_an_error_that_names_the_layer(needs: Needs, bad: float) -> None:
    x = tokens(10, 4)
    x[3, 2] = bad
    with pytest.raises(CalibrationError, match=r"model\.q_proj are NaN or infinite"):
        of(x, needs).check("model.q_proj")
    of(tokens(10, 4), needs).check("model.q_proj")


@every_need
def test_no_token_at_all_is_an_error_that_names_the_layer(needs: Needs) -> None:
    with pytest.raises(CalibrationError, match=r"model\.q_proj saw no calibration token"):
        Statistics.empty(4, needs, CPU).check("model.q_proj")


def test_saved_statistics_come_back_bit_for_bit(tmp_path: Path) -> None:
    saved = {
        "model.layers.0/attention input": of(tokens(30, 5)),
        "model.layers.0/neuron": of(tokens(20, 7, seed=1), Needs.MOMENTS),
        "a:name": of(tokens(10, 3, seed=2)),
        "counted": of(tokens(10, 3, seed=4), COUNTS),
    }
    save_statistics(saved, tmp_path / "statistics.safetensors")
    loaded = load_statistics(tmp_path / "statistics.safetensors")
    assert set(loaded) == set(saved)
    for name, one in saved.items():
        assert loaded[name].count == one.count
        assert torch.equal(loaded[name].norms, one.norms)
        assert loaded[name].sums().keys() == one.sums().keys()
        for part, tensor in one.sums().items():
            assert torch.equal(loaded[name].sums()[part], tensor)
            assert loaded[name].sums()[part].dtype == tensor.dtype


def test_loaded_statistics_go_on_adding(tmp_path: Path) -> None:
    x = tokens(30, 5)
    save_statistics({"in": of(x[:10])}, tmp_path / "half")
    assert_same(load_statistics(tmp_path / "half")["in"] + of(x[10:]), of(x))


def damage(path: Path, how: str) -> None:
    whole, tensors = path.read_bytes(), load_file(path)
    format_ = {"format": "secateur-statistics-1"}
    match how:
        case "cut short":
            path.write_bytes(whole[:-20])
        case "a header only":
            path.write_bytes(whole[:4])
        case "empty":
            path.write_bytes(b"")
        case "noise":
            path.write_bytes(bytes(range(256)) * 4)
        case "other tensors":
            save_file({"weight": torch.ones(3)}, path)
        case "a tensor too few":
            del tensors["in:squares"]
            save_file(tensors, path, metadata=format_)
        case "a tensor of unknown kind":
            save_file({**tensors, "in:median": torch.ones(5)}, path, metadata=format_)
        case "another width":
            save_file({**tensors, "in:gram": torch.ones(4, 4)}, path, metadata=format_)
        case "another number of bins":
            save_file({**tensors, "in:histogram": torch.ones(5, 8)}, path, metadata=format_)
        case "a count of two":
            save_file({**tensors, "in:count": torch.tensor([1, 2])}, path, metadata=format_)


@pytest.mark.parametrize(
    "how",
    [
        "cut short",
        "a header only",
        "empty",
        "noise",
        "other tensors",
        "a tensor too few",
        "a tensor of unknown kind",
        "another width",
        "another number of bins",
        "a count of two",
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(how: str, tmp_path: Path) -> None:
    path = tmp_path / "statistics.safetensors"
    save_statistics({"in": of(tokens(10, 5))}, path)
    damage(path, how)
    with pytest.raises(CalibrationError, match=r"statistics\.safetensors"):
        load_statistics(path)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"nowhere\.safetensors can't be read as statistics"):
        load_statistics(tmp_path / "nowhere.safetensors")
