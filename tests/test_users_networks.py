"""What users' own networks, data and losses come to: what is counted, refused in words, saved and loaded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

import secateur
from command_line import secateur as command
from secateur.errors import CalibrationError, ModelError, PatternError, ScoreError, UsageError
from secateur.network.graph.costs import GraphCosts
from secateur.network.graph.network import GraphNetwork
from secateur.schedules import OneShot
from tiny_vision import classifier, noise, save_classifier


class Net(nn.Module):
    """Wide and narrow layers, and one whose code can't be traced."""

    def __init__(self, classes: int = 4, width: int = 24) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 6, 3, padding=1)
        self.odd = Odd()
        self.last = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.odd(self.two(self.one(x).relu()).relu()).mean((2, 3)))


class Odd(nn.Module):
    """A convolution behind a decision on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if float(x.sum()) > -1e9 else x


LEAF: dict[str, Any] = {"leaf_modules": ["odd"]}
Y = torch.arange(8) % 4


def made(**given: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Net(**given).eval(), torch.randn(8, 3, 8, 8)


def counted(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one example, by hooks on every convolution and linear layer."""
    total = []

    def add(module: Any, _: Any, output: Tensor) -> None:
        places = output[0].numel() / module.weight.shape[0]
        total.append(int(places * module.weight.numel()))

    hooks = [one.register_forward_hook(add) for one in model.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    model(x)
    for hook in hooks:
        hook.remove()
    return sum(total)


def test_what_is_computed_inside_of_leaf_modules_is_counted() -> None:
    model, x = made()
    result = secateur.prune(model, example_inputs=x, macs=0.7, **LEAF)
    dense, small = result.comparison.dense, result.comparison.others[0]
    assert dense.macs_each == counted(model, x)
    assert small.macs_each == counted(result.model, x) <= 0.7 * dense.macs_each


class Functional(nn.Module):
    """A convolution by a weight of its own, one whose weight is computed, and attention that isn't followed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normed(nn.functional.conv2d(x, self.weight, padding=1))
        return self.last(self.encoder(x.flatten(2).transpose(1, 2)).mean(1))


def test_functional_convolutions_computed_weights_and_encoders_are_counted() -> None:
    x = torch.randn(2, 3, 4, 4)
    found = GraphCosts(GraphNetwork(Functional().eval(), x)).of().macs
    places = 16
    encoder = 8 * 24 + 8 * 8 + 8 * 16 + 16 * 8
    assert found == places * (8 * 27 + 8 * 8 + encoder) + 8 * 2


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_groups_smaller_than_round_to_stay_whole(allocation: str) -> None:
    model, x = made()
    given: dict[str, Any] = {"example_inputs": x, "allocation": allocation, "round_to": 8, **LEAF}
    result = secateur.prune(model, unit="filter", macs=0.75, **given)
    widths = {group.name.partition("/")[0]: group.left for group in result.stages[0].groups}
    assert widths == {"one": 16}
    model, x = made(width=6)
    with pytest.raises(UsageError, match="can't be met"):
        secateur.prune(model, unit="filter", macs=0.75, **given)
    note = secateur.prune(made()[0], unit="filter", sparsity=0.3, **given).notes
    assert not any("left whole" in one for one in note)


def test_a_target_that_is_overshot_is_noted() -> None:
    model, x = made(width=4)
    notes = secateur.prune(model, example_inputs=x, macs=0.95, evaluate=False, **LEAF).stages[0].notes
    assert any("is left; whole units of groups that all lose the same share" in note for note in notes)


def test_targets_of_one_number_fit_outputs_of_one_column() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1)).eval()
    x = torch.randn(64, 8)
    y = model(x).detach() + 0.1 * torch.randn(64, 1)
    given: dict[str, Any] = {"example_inputs": x, "sparsity": 0.5, "score": "taylor"}
    flat, column = (
        secateur.prune(model, calibration=(x, one), evaluate=(x, one), **given).comparison for one in (y[:, 0], y)
    )
    assert flat.dense.loss == column.dense.loss < 0.01
    assert flat.others[0].loss == column.others[0].loss > flat.dense.loss
    with pytest.raises(ScoreError, match="gradients of the loss are zero everywhere"):
        secateur.prune(model, calibration=(x, model(x).detach()), **given)
    with pytest.raises(CalibrationError, match=r"the targets of a batch have the shape \(64, 3\)"):
        secateur.prune(model, calibration=(x, torch.zeros(64, 3)), **given)


def test_the_words_say_whose_gradients_were_used() -> None:
    model, x = made()
    result = secateur.prune(model, example_inputs=x, calibration=(x, Y), score="taylor", macs=0.7, **LEAF)
    assert "scored by taylor of the loss on the calibration data" in " ".join(result.table().split())


def test_layers_that_the_loss_does_not_depend_on_stay_whole() -> None:
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(8, 16)
            self.one, self.two = (nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)) for _ in range(2))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = self.body(x).relu()
            return {"one": self.one(x), "two": self.two(x)}

    def loss(output: Any, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output["one"], target)

    model, x = Two().eval(), torch.randn(32, 8)
    given: dict[str, Any] = {
        "example_inputs": x,
        "calibration": (x, torch.arange(32) % 3),
        "score": "taylor",
        "loss": loss,
    }
    result = secateur.prune(model, sparsity=0.5, evaluate=False, **given)
    assert {group.name.partition("/")[0]: group.left for group in result.stages[0].groups} == {"body": 8, "one.0": 6}
    assert any(
        "two.0/neuron: left whole, as the loss doesn't depend on what reads them" in n for n in result.stages[0].notes
    )


def test_nan_agrees_with_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    x, y = torch.randn(128, 8), torch.arange(128) % 3
    x[100:] = torch.nan
    found = secateur.prune(model, example_inputs=x[:2], sparsity=0.5, evaluate=(x, y)).comparison
    assert found.others[0].top1_agreement <= 100 / 128
    with pytest.raises(CalibrationError, match="gives NaN on the first batch of the evaluation data"):
        secateur.prune(model, example_inputs=x[:2], sparsity=0.5, evaluate=(x * torch.nan, y))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no examples": ({"calibration": (torch.randn(0, 3, 8, 8), Y[:0])}, "a batch has no examples"),
    "one channel": ({"calibration": torch.randn(8, 1, 8, 8)}, "doesn't take the calibration data"),
    "double": ({"calibration": torch.randn(8, 3, 8, 8).double()}, "doesn't take the calibration data"),
    "classes": ({"calibration": (torch.randn(8, 3, 8, 8), Y + 9), "score": "taylor"}, "the loss can't be computed"),
    "loss": (
        {"calibration": (torch.randn(8, 3, 8, 8), Y), "score": "taylor", "loss": lambda output, target: output},
        "the loss must give one number",
    ),
    "evaluation": ({"evaluate": torch.randn(8, 3, 2, 2)[:, :2]}, "doesn't take the evaluation data"),
    "targets": ({"evaluate": (torch.randn(8, 3, 8, 8), torch.randn(8, 3))}, "the targets of a batch have the shape"),
    "metric": (
        {"evaluate": (torch.randn(8, 3, 8, 8), Y), "metric": lambda output, target: output[99]},
        "the metric can't be computed",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_data_that_does_not_fit_is_refused_before_any_work(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, words = BAD[case]
    model, x = made()
    monkeypatch.setattr("secateur.run_network.prune_traced", None)  # which does the work
    with pytest.raises(CalibrationError, match=words):
        secateur.prune(model, example_inputs=x, macs=0.7, output=tmp_path / "new" / "a" / "b", **LEAF, **options)
    assert not (tmp_path / "new").exists()


def test_networks_that_cannot_be_computed_are_refused_in_words() -> None:
    model, x = made()
    with torch.inference_mode(), pytest.raises(UsageError, match="inference_mode"):
        secateur.prune(model, example_inputs=x, macs=0.7, **LEAF)
    with pytest.raises(UsageError, match="no module 'typo'"):
        secateur.prune(model, example_inputs=x, macs=0.7, leaf_modules=["typo"])
    with pytest.raises(UsageError, match="meta device"):
        secateur.prune(nn.Linear(2, 2, device="meta"), example_inputs=torch.ones(1, 2), macs=0.7)
    with pytest.raises(UsageError, match="no parameters"):
        secateur.prune(nn.ReLU(), example_inputs=torch.ones(1, 2), macs=0.7)
    with pytest.raises(UsageError, match="a list"):
        secateur.prune(model, example_inputs=[[0.0] * 999], macs=0.7, **LEAF)
    for options in ({"unit": "weight", "sparsity": 0.5}, {"pattern": "2:4"}):
        with pytest.raises(UsageError, match=r"secateur\.TrainingPruner"):
            secateur.prune(model, example_inputs=x, **LEAF, **options)


def test_another_network_is_not_rebuilt(tmp_path: Path) -> None:
    model, x = made()
    small = secateur.prune(model, example_inputs=x, macs=0.7, output=tmp_path / "out", evaluate=False, **LEAF).model
    for other in ({"classes": 3}, {"classes": 5}, {"width": 8}):
        with pytest.raises(ModelError, match="is of another network"):
            secateur.rebuild(Net(**other), tmp_path / "out")
    again = secateur.rebuild(Net().eval(), tmp_path / "out")
    assert torch.equal(again(x), small(x))
    twice = secateur.prune(small, example_inputs=x, macs=0.8, output=tmp_path / "twice", evaluate=False, **LEAF).model
    assert torch.equal(secateur.rebuild(Net().eval(), tmp_path / "twice")(x), twice(x))


class Viewed(nn.Module):
    """A size stands in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 16, 3), nn.Linear(16 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).relu().view(-1, 576))


def test_a_traced_result_is_saved_and_loaded_by_torch() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    small = secateur.prune(Viewed().eval(), example_inputs=x, sparsity=0.5, evaluate=False).model
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), small(x))


@pytest.mark.parametrize(
    ("name", "unit", "cut"),
    [
        ("resnet", "filter", "end"),
        ("resnet", "filter", "during"),
        ("vit", "neuron", "end"),
        ("resnet", "weight", "end"),
    ],
)
def test_image_classifiers_are_pruned_while_they_train(name: str, unit: str, cut: str, tmp_path: Path) -> None:
    model, x = classifier(name), noise(4)
    given: dict[str, Any] = {} if unit == "weight" else {"example_inputs": x, "cut": cut}
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    pruner = secateur.TrainingPruner(model, OneShot(0.5, begin=1), unit=unit, optimizer=optimizer, **given)
    for _ in range(2):
        model(x).logits.square().mean().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    small = pruner.save(tmp_path / "out").eval()
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert torch.allclose(again(x).logits, small(x).logits, atol=1e-6)
    fewer = sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in classifier(name).parameters())
    assert fewer == (unit != "weight")
    if unit != "weight":
        assert pruner.finish() is small
        with pytest.raises(UsageError, match="finish"):
            pruner.step()


def test_a_pattern_names_all_layers_that_it_does_not_fit() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1))
    with pytest.raises(PatternError, match=r"0 \(27\), 1 \(9\).*--exclude '0' --exclude '1'"):
        secateur.TrainingPruner(model, pattern="2:4")


def test_the_page_has_a_table_of_widths(tmp_path: Path) -> None:
    model, x = made()
    secateur.prune(model, example_inputs=x, macs=0.7, output=tmp_path / "out", **LEAF)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "groups as a table" in page
    assert '<td data-value="24">24</td>' in page


def test_single_weights_of_an_image_classifier_are_refused_with_the_way_out(tmp_path: Path) -> None:
    source = save_classifier("resnet", tmp_path / "model")
    done = command("prune", str(source), "-o", str(tmp_path / "out"), "--sparsity", "0.5", "--images", str(tmp_path))
    assert done.code == 2
    assert "TrainingPruner" in done.err
    assert "--unit filter" in done.err


@pytest.mark.parametrize("chosen", [{"exclude": ["2", "5"]}, {"include": ["0"]}, {"include": ["0.weig*"]}])
def test_layers_that_are_left_out_keep_their_filters(chosen: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))
    x = torch.randn(8, 3, 8, 8)
    small = secateur.prune(model, example_inputs=x, calibration=x, unit="filter", sparsity=0.5, **chosen).model
    trained = secateur.TrainingPruner(model, OneShot(0.5), unit="filter", example_inputs=x, **chosen).finish()
    for one in (small, trained):
        assert (one[0].out_channels, one[2].out_channels) == (4, 6)


def test_globs_that_choose_nothing_are_refused() -> None:
    model, x = made()
    with pytest.raises(UsageError, match=r"'three' matches no layer and no group of units.*'one' and 'one/filter'"):
        secateur.prune(model, example_inputs=x, calibration=x, unit="filter", macs=0.7, exclude=["three"], **LEAF)
    with pytest.raises(UsageError, match="leave no group"):
        secateur.TrainingPruner(model, OneShot(0.5), unit="filter", example_inputs=x, exclude=["*"], **LEAF)
