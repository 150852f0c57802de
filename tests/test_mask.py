"""Masks: what they count, hold, and say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import secateur
from secateur.errors import MaskError, UsageError
from secateur.mask import FILE, Mask, MaskedLayer
from tiny import save_tiny


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mask")
    model = save_tiny("gpt2", folder / "dense", tokenizer=True)
    secateur.prune(model, pattern="2:4", score="l1", output=folder / "half", evaluate=False)
    return folder / "half"


def test_a_run_saves_its_mask_and_it_is_that_of_the_zeros(half: Path) -> None:
    network = secateur.load(half)
    saved = Mask.load(half)
    assert saved == Mask.of(network)
    assert saved.sparsity == 0.5
    assert saved.zeros == sum(layer.zeros() for layer in network.layers())
    for layer in network.layers():
        assert torch.equal(saved.layers[layer.name].keep, layer.matrix() != 0)
    assert saved.describe() == "2:4 in 100 % of groups, 50.00 %"
    saved.verify(network)


def test_a_weight_that_came_back_is_found_and_can_be_taken_away_again(half: Path) -> None:
    network = secateur.load(half)
    mask = Mask.load(half)
    layer = network.layers()[3]
    layer.matrix()[layer.matrix() == 0] = 1.0
    assert mask.violations(network) == {layer.name: layer.parameter.numel() // 2}
    with pytest.raises(MaskError, match=rf"aren't zero.*{layer.name}"):
        mask.verify(network)
    mask.apply(network)
    mask.verify(network)
    assert Mask.of(network) == mask


def test_evaluate_says_whether_the_mask_is_held(half: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 30)
    options = {"text": str(text), "windows": 1, "length": 32, "speed": False}
    assert secateur.evaluate(half, **options).mask == "2:4 in 100 % of groups, 50.00 %; held"
    network = secateur.load(half)
    network.layers()[0].matrix()[:, :] = 1.0
    assert "BROKEN" in (secateur.evaluate(network, **options).mask or "")
    assert secateur.evaluate(half.parent / "dense", **options).mask is None


def test_a_pruned_checkpoint_is_pruned_on_and_each_is_held_against_its_own_mask(half: Path, tmp_path: Path) -> None:
    more = secateur.prune(half, pattern="1:4", score="l1", output=tmp_path / "more", speed=False).comparison
    assert more is not None
    assert more.dense.mask == "2:4 in 100 % of groups, 50.00 %; held"
    assert more.others[0].mask == "1:4 in 100 % of groups, 75.00 %; held"
    cut = secateur.prune(half, unit="neuron", sparsity=0.5, output=tmp_path / "cut", speed=False).comparison
    assert cut is not None
    assert cut.dense.mask == "2:4 in 100 % of groups, 50.00 %; held"
    assert cut.others[0].mask is None


def test_what_two_masks_both_keep() -> None:
    one = Mask({"a": MaskedLayer.of(torch.tensor([[True, True, False]])), "b": MaskedLayer.of(torch.ones(2, 9) > 0)})
    two = Mask({"a": MaskedLayer.of(torch.tensor([[False, True, True]])), "c": MaskedLayer.of(torch.ones(1, 1) > 0)})
    both = one & two
    assert both.layers["a"].keep.tolist() == [[False, True, False]]
    assert set(both.layers) == {"a", "b", "c"}
    assert both.zeros == 2
    with pytest.raises(MaskError, match="a has 1 x 3"):
        one & Mask({"a": MaskedLayer.of(torch.ones(3, 1) > 0)})


def test_descriptions() -> None:
    random = torch.Generator().manual_seed(0)
    free = torch.rand(40, 64, generator=random) > 0.5
    assert Mask({"x": MaskedLayer.of(free)}).describe().startswith("unstructured, ")
    groups = torch.rand(40, 8, 8, generator=random).argsort(2) < 3
    assert Mask({"x": MaskedLayer.of(groups.view(40, 64))}).describe() == "3:8 in 100 % of groups, 62.50 %"
    assert Mask({"x": MaskedLayer.of(torch.ones(4, 8) > 0)}).describe() == "unstructured, 0.00 %"


def test_a_pattern_is_told_only_if_every_group_holds_it() -> None:
    keep = torch.tensor([True, True, False, False]).repeat(3000, 16)  # 48,000 groups
    whole = Mask({"x": MaskedLayer.of(keep)})
    assert (whole.pattern, whole.describe()) == ("2:4", "2:4 in 100 % of groups, 50.00 %")
    keep[1234, 6] = True
    broken = Mask({"x": MaskedLayer.of(keep)})
    assert (broken.pattern, broken.describe()) == (None, "2:4 in 99.99 % of groups, 50.00 %")
    assert Mask({}).pattern is None


def test_a_mask_of_another_model_and_a_damaged_file_are_refused(half: Path, tmp_path: Path) -> None:
    network = secateur.load(half)
    with pytest.raises(MaskError, match="no layer 'nothing'"):
        Mask({"nothing": MaskedLayer.of(torch.ones(1, 8) > 0)}).apply(network)
    name = network.layers()[0].name
    with pytest.raises(MaskError, match=name):
        Mask({name: MaskedLayer.of(torch.ones(1, 8) > 0)}).verify(network)
    for refuse in (Mask.of, Mask({}).apply, Mask({}).verify):
        with pytest.raises(UsageError, match=r"secateur\.load gives, but got a GPT2LMHeadModel"):
            refuse(network.model)
    (tmp_path / FILE).write_bytes((half / FILE).read_bytes()[:-3])
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(MaskError, match="can't be read as a mask"):
            Mask.load(path)
