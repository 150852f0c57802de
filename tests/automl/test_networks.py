"""A search over the widths of a network in memory."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

import secateur
from secateur.automl.networks import NetworkSearch
from secateur.calibration.batches import batches_of
from secateur.errors import UsageError
from secateur.progress import Progress
from secateur.recipe import Prune
from secateur.run_network import graph_network


def data(number: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 3, 8, 8, generator=random)
    return x, (x.mean((2, 3)).argmax(1))


@pytest.fixture(scope="module")
def learnt() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3),
    )  # fmt: skip
    adam = torch.optim.Adam(model.parameters(), 0.01)
    x, y = data(256, 0)
    for _ in range(60):
        adam.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        adam.step()
    return model.eval()


@pytest.mark.parametrize("strategy", ["evolution", "policy"])
def test_widths_are_found_under_a_budget_of_macs(strategy: str, learnt: nn.Module, tmp_path: Path) -> None:
    given = {"example_inputs": torch.randn(1, 3, 8, 8), "calibration": data(256, 1), "evaluate": data(128, 2)}
    result = secateur.search(
        learnt, macs=0.5, unit="filter,neuron", trials=40, strategy=strategy, output=tmp_path / "out", **given
    )
    assert result.search is not None
    assert result.search["trials"] == 40
    assert result.search["best"] >= result.search["start"]
    budget = result.stages[0].budget
    assert budget is not None
    assert budget["after"]["macs"] <= 0.5 * budget["before"]["macs"]
    (stage,) = yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())["stages"]
    again = secateur.prune(learnt, unit="filter,neuron", amounts=stage["prune"]["amounts"], **given)
    assert [group.left for group in again.stages[0].groups] == [group.left for group in result.stages[0].groups]
    assert (tmp_path / "out/study.db").is_file()
    found = secateur.shares(tmp_path / "out/recipe.yaml", learnt, torch.randn(1, 3, 8, 8))
    assert {name: share for name, share in found.items() if share} == {
        group.name: 1 - group.left / group.before for group in result.stages[0].groups if group.left < group.before
    }


@pytest.mark.parametrize("score", ["l1", "taylor"])
def test_a_search_of_widths_begins_about_where_the_global_allocation_ends(score: str, learnt: nn.Module) -> None:
    model = copy.deepcopy(learnt)
    with torch.no_grad():
        model[2].weight[:20] *= 0.01  # filters that few others read much of
        model[2].bias[:20] *= 0.01
    x, calibration, given = torch.randn(1, 3, 8, 8), data(64, 1), {"unit": "filter", "macs": 0.5, "score": score}
    space = NetworkSearch(graph_network(model, x), Prune.build(given), batches_of(calibration, 1), None, 0).space
    told = {"example_inputs": x, "calibration": calibration, "evaluate": False}

    def gone(result: secateur.Result) -> list[int]:
        return [group.before - group.left for group in result.stages[0].groups]

    def distance(amounts: list[int]) -> int:
        ranked = gone(secateur.prune(model, **given, **told, allocation="global"))
        return sum(abs(one - other) for one, other in zip(amounts, ranked, strict=True))

    first = {}
    for start, levels in (("knapsack", space.knapsack()), ("uniform", space.uniform())):
        first[start] = gone(secateur.search(model, **given, **told, start=start, trials=1))
        assert first[start] == [place.amounts[level] for place, level in zip(space.places, levels, strict=True)]
    assert distance(first["knapsack"]) < 6 < distance(first["uniform"])


def test_widths_leave_multiples_and_groups_that_are_too_small_are_told(learnt: nn.Module) -> None:
    said: list[str] = []

    class Heard(Progress):
        def say(self, message: str) -> None:
            said.append(message)

    x, stage = torch.randn(1, 3, 8, 8), {"unit": "filter,neuron", "params": 0.75}
    for round_to, amounts in ((8, [(0, 8), (0, 8, 16), (0, 8)]), (16, [(0,), (0, 8), (0,)])):
        asked = Prune.build({**stage, "round_to": round_to})
        work = NetworkSearch(graph_network(learnt, x), asked, batches_of(data(64, 1), 1), None, 0)
        assert [place.amounts for place in work.space.places] == amounts
    given = {"example_inputs": x, "calibration": data(64, 1), "progress": Heard()}
    secateur.search(learnt, **stage, round_to=16, strategy="random", trials=4, **given)
    assert len(said) == 1
    assert "no unit can go there" in said[0]


def test_a_study_in_memory_and_what_is_refused(learnt: nn.Module) -> None:
    given = {"example_inputs": torch.randn(1, 3, 8, 8), "unit": "filter"}
    result = secateur.search(learnt, params=0.6, trials=10, strategy="random", calibration=data(256, 1), **given)
    assert result.search is not None
    assert result.search["reward"] == "minus the mean loss on 128 examples"
    with pytest.raises(UsageError, match="goes by --params or --macs"):
        secateur.search(learnt, sparsity=0.5, calibration=data(256, 1), **given)
    with pytest.raises(UsageError, match="two examples"):
        secateur.search(learnt, macs=0.5, calibration=data(1, 1), **given)
    with pytest.raises(UsageError, match="'halves' is for language models"):
        secateur.search(learnt, macs=0.5, halves=False, calibration=data(256, 1), **given)
