"""`secateur.prune` of networks in memory: what a user writes, what comes back, what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import secateur
from secateur.errors import CalibrationError, ModelError, NothingPrunedError, ScoreError, UsageError
from zoo import ZOO


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, inputs = ZOO[name]
    return build().eval(), inputs()


def labelled(inputs: Tensor, classes: int = 10) -> tuple[Tensor, Tensor]:
    return inputs, torch.arange(len(inputs)) % classes


def test_one_line_makes_a_network_smaller_and_leaves_the_given_one_alone() -> None:
    model, x = made("resnet18")
    before = copy.deepcopy(model.state_dict())
    result = secateur.prune(model, example_inputs=x, unit="filter", macs=0.5)
    assert result.model is not model
    assert result.model(x).shape == model(x).shape
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    dense, small = result.comparison.dense, result.comparison.others[0]
    assert small.macs_each <= 0.5 * dense.macs_each
    assert small.parameters == sum(p.numel() for p in result.model.parameters()) < dense.parameters
    assert small.batch_one > 0
    assert small.batch_many > 0
    assert "MACs per example" in result.table()
    assert any("Without calibration data" in note for note in result.notes)


@pytest.mark.parametrize("name", ["resnet20", "constants", "lstm", "shufflenet", "mixer", "fc"])
def test_what_is_saved_is_rebuilt_from_a_fresh_network(name: str, tmp_path: Path) -> None:
    model, x = made(name)
    result = secateur.prune(
        model, example_inputs=x, params=0.8, calibration=x, output=tmp_path / "out", evaluate=x, allocation="global"
    )
    again = secateur.rebuild(ZOO[name][0]().eval(), tmp_path / "out")
    assert torch.equal(again(x), result.model(x))
    assert result.reload == 0
    found = json.loads((tmp_path / "out" / "secateur.json").read_text())
    assert found["comparison"]["others"][0]["parameters"] < found["comparison"]["dense"]["parameters"]
    assert "secateur.rebuild" in (tmp_path / "out" / "README.md").read_text()
    assert "before and after" in (tmp_path / "out" / "report.html").read_text()
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert size < sum(value.nbytes for value in model.state_dict().values()) + 8 * 1024


def test_accuracy_is_measured_with_classes_and_a_metric_of_ones_own_with_anything() -> None:
    model, x = made("fc")
    x, y = labelled(torch.randn(130, 3, 4, 4), 4)
    data = DataLoader(TensorDataset(x, y), batch_size=50)
    result = secateur.prune(model, example_inputs=x[:2], params=0.7, calibration=data, evaluate=data)
    dense, small = result.comparison.dense, result.comparison.others[0]
    assert dense.accuracy == pytest.approx(float((model(x).argmax(1) == y).float().mean()))
    assert small.accuracy == pytest.approx(float((result.model(x).argmax(1) == y).float().mean()))
    assert 0 <= small.top1_agreement <= 1
    assert dense.examples == 130

    def distance(output: Tensor, target: Tensor) -> Tensor:
        return (output[:, 0] - target).abs().mean()

    result = secateur.prune(
        model, example_inputs=x[:2], params=0.7, calibration=data, evaluate=data, metric=distance, score="taylor"
    )
    assert result.comparison.dense.metric == pytest.approx(float(distance(model(x), y).detach()), rel=1e-5)
    assert "metric" in result.table()


def test_a_loss_is_measured_where_targets_are_no_classes() -> None:
    model, x = made("fc")
    result = secateur.prune(model, example_inputs=x, params=0.7, evaluate=(x, torch.zeros(len(x), 4)))
    assert result.comparison.dense.loss == pytest.approx(0.5 * float(model(x).square().mean().detach()))


def test_the_smaller_network_is_in_the_mode_of_the_given_one() -> None:
    model, x = made("resnet18")
    model.train()
    model[1].eval()
    small = secateur.prune(model, example_inputs=x, macs=0.6, evaluate=False).model
    assert small.training
    assert not small[1].one[1].training
    assert small[2].one[1].training


def test_units_lists_what_can_be_cut_and_why_the_rest_cannot() -> None:
    found = secateur.units(*made("fc"))
    assert [(group.unit, group.count) for group in found] == [("neuron", 20), ("neuron", 12)]
    assert len(found) == 2
    assert "it is an output of the network" in found.table()
    assert all(len(line) <= 100 for line in found.table().splitlines())


def test_latency_is_measured_and_met_in_the_measure_of_this_machine() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 1600), nn.ReLU(), nn.Linear(1600, 1600), nn.ReLU(), nn.Linear(1600, 4)).eval()
    x = torch.randn(64, 64)
    result = secateur.prune(model, example_inputs=x, latency=0.5, evaluate=False)
    assert result.stages[0].budget["after"]["macs"] < 0.8 * result.stages[0].budget["first"]["macs"]


def test_the_first_and_the_last_group_can_be_protected() -> None:
    model, x = made("vgg")
    result = secateur.prune(model, example_inputs=x, sparsity=0.25, protect_first=1, protect_last=1, evaluate=False)
    every = [group.name for group in secateur.units(model, x)]
    assert [group.name for group in result.stages[0].groups] == every[1:-1]


def constant(group: Any, statistics: Any) -> Tensor:
    return torch.ones(group.count)


def nan(group: Any, statistics: Any) -> Tensor:
    return torch.full((group.count,), torch.nan)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"unit": "channel", "params": 0.5}, UsageError, "filter, neuron, hidden, head"),
        ({"unit": "filter", "params": 0.5}, UsageError, "has no units of the kind 'filter'"),
        ({"params": 0.001}, UsageError, "can't be met"),
        ({"params": 0.5, "macs": 0.5}, UsageError, "exactly one"),
        ({"params": 0.5, "score": "obs"}, UsageError, "calibration"),
        ({"params": 0.5, "repair": True}, UsageError, "repair reads calibration data"),
        ({"params": 0.5, "reconstruct": True}, UsageError, "reconstruct"),
        ({"params": 0.5, "uniform": True}, UsageError, "bring their shapes along"),
        ({"params": 0.5, "pad": True}, UsageError, "pad"),
        ({"params": 0.5, "allocation": "error"}, UsageError, "uniform or global"),
        ({"params": 0.5, "parms": 0.5}, UsageError, "parms is not a known field"),
        ({"params": 0.5, "samples": 3}, UsageError, "calibration="),
        ({"params": 0.5, "metric": max}, UsageError, "evaluate="),
        ({"params": 0.5, "protect_first": 2}, UsageError, "leave none of the 2 groups"),
        ({"params": 0.5, "resume": True}, UsageError, "nothing to resume"),
        ({"params": 0.5, "score": "l1", "gradient": "loss"}, UsageError, "taylor"),
        ({"memory": "1GB"}, NothingPrunedError, "met as it is"),
        ({"params": 0.5, "score": "tests_of_networks:constant"}, ScoreError, "constant"),
        ({"params": 0.5, "score": "tests_of_networks:nan"}, ScoreError, "NaN"),
        ({"params": 0.5, "calibration": "texts"}, CalibrationError, "DataLoader"),
        ({"params": 0.5, "example_inputs": None}, UsageError, "example_inputs="),
        ({"params": 0.5, "example_inputs": torch.zeros(2, 7)}, UsageError, r"\(2, 7\)"),
    ],
    ids=str,
)
def test_bad_input_is_named_and_changes_nothing(
    options: dict[str, Any], error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = type(pytest)("tests_of_networks")
    module.constant, module.nan = constant, nan
    monkeypatch.setitem(__import__("sys").modules, "tests_of_networks", module)
    model, x = made("fc")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=words):
        secateur.prune(model, output=tmp_path / "out", **{"example_inputs": x, **options})
    assert not (tmp_path / "out").exists()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_options_of_networks_are_refused_for_models_that_are_named() -> None:
    with pytest.raises(UsageError, match="leaf_modules"):
        secateur.prune("demo:smollm2-135m", sparsity=0.5, leaf_modules=[nn.ReLU])


def test_a_damaged_or_foreign_file_is_an_error(tmp_path: Path) -> None:
    model, x = made("fc")
    secateur.prune(model, example_inputs=x, params=0.7, output=tmp_path / "out", evaluate=False)
    with pytest.raises(ModelError, match="of another network"):
        secateur.rebuild(made("vgg")[0], tmp_path / "out")
    with pytest.raises(ModelError, match="give the folder"):
        secateur.rebuild(model, tmp_path / "nowhere.json")
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ModelError, match="can't be read"):
        secateur.rebuild(model, tmp_path / "out")
