"""What every search strategy must do, on a space whose best candidate is known."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.automl.front import dominates, front_of, knee
from secateur.automl.reward import Reward
from secateur.automl.space import Levels, Place, Space
from secateur.automl.strategies import STRATEGIES, Judged, Strategy, strategy_named
from secateur.errors import UsageError

RUNGS = (8, 32, 128)


def space(places: int = 24) -> Space:
    """Places of two sizes; the later ones are dearer to cut."""
    found = []
    for number in range(places):
        size = 3 if number % 3 == 0 else 1
        depth = number / places
        amounts = tuple(10 * size * level for level in range(7))
        losses = tuple((1 + 4 * depth) * size * (level / 6) ** 2 for level in range(7))
        features = (depth, depth**2, float(size == 3), 1.0)
        found.append(Place(f"layer {number}", amounts, tuple(size * level for level in range(7)), losses, features))
    return Space(found, sum(place.costs[-1] for place in found) // 2)


def worth(one: Space, levels: Levels, tokens: int) -> float:
    """Less the fewer tokens; what is lost in all, with an error that falls with the number of tokens."""
    loss = sum(place.losses[level] for place, level in zip(one.places, levels, strict=True))
    error = np.random.default_rng((hash(levels) % 2**32, tokens)).standard_normal() / tokens
    return float(-loss + 0.5 * error)


def run(name: str, trials: int, seed: int = 0) -> Strategy:
    one = space()
    strategy = strategy_named(name)(one, one.uniform(), RUNGS, seed)
    for number in range(trials):
        asked = strategy.ask(number)
        assert one.meets(asked.levels)
        assert asked.tokens in RUNGS
        strategy.tell(Judged(number, asked.levels, asked.tokens, worth(one, asked.levels, asked.tokens), asked.info))
    return strategy


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_candidate_meets_the_budget_and_the_best_is_no_worse_than_the_start(name: str) -> None:
    strategy = run(name, 120)
    assert strategy.best is not None
    assert strategy.best.value is not None
    assert strategy.best.value >= worth(strategy.space, strategy.start, RUNGS[-1])


@pytest.mark.parametrize("name", ["evolution", "policy", "annealing"])
def test_what_learns_beats_what_draws(name: str) -> None:
    wins = 0
    for seed in range(3):
        one, other = (run(kind, 400, seed).best for kind in (name, "random"))
        assert one is not None and other is not None  # noqa: PT018
        assert one.value is not None and other.value is not None  # noqa: PT018
        wins += one.value > other.value
    assert wins == 3


def test_evolution_comes_near_the_knapsack() -> None:
    strategy = run("evolution", 1500)
    assert strategy.best is not None
    assert strategy.best.value is not None
    best, start = (worth(strategy.space, levels, RUNGS[-1]) for levels in (strategy.space.knapsack(), strategy.start))
    assert strategy.best.value - start > 0.8 * (best - start)


@pytest.mark.parametrize("name", ["evolution", "policy", "annealing", "tpe"])
def test_a_strategy_that_is_told_of_all_trials_goes_on_from_there(name: str) -> None:
    one = space()
    first = strategy_named(name)(one, one.uniform(), RUNGS, 0)
    told = []
    for number in range(80):
        asked = first.ask(number)
        told.append(Judged(number, asked.levels, asked.tokens, worth(one, asked.levels, asked.tokens), asked.info))
        first.tell(told[-1])
    again = strategy_named(name)(one, one.uniform(), RUNGS, 0)
    for judged in told:
        again.tell(Judged(judged.number, judged.levels, judged.tokens, judged.value, judged.info, own=False))
    assert first.best is not None
    assert again.best is not None
    assert again.best.levels == first.best.levels
    assert "start" not in again.ask(80).info


def test_a_trial_that_failed_is_passed_over() -> None:
    one = space()
    strategy = strategy_named("evolution")(one, one.uniform(), RUNGS, 0)
    for number in range(60):
        asked = strategy.ask(number)
        value = None if number % 3 == 1 else worth(one, asked.levels, asked.tokens)
        strategy.tell(Judged(number, asked.levels, asked.tokens, value, asked.info))
    assert strategy.best is not None


def test_a_budget_out_of_reach_names_the_nearest() -> None:
    places = space().places
    most = sum(place.costs[-1] for place in places)
    with pytest.raises(UsageError, match=f"the nearest is {most}"):
        Space(places, most + 1)


def test_an_unknown_strategy_is_named() -> None:
    with pytest.raises(UsageError, match=r"unknown strategy 'evolutio'\. Did you mean 'evolution'"):
        strategy_named("evolutio")


@pytest.mark.parametrize("name", sorted(name for name, kind in STRATEGIES.items() if kind.fronts))
def test_a_front_holds_what_none_beats_by_every_goal(name: str) -> None:
    """The second goal is how much the first half of the places gives, which the first goal wants as much of."""
    one = space()
    strategy = strategy_named(name)(one, one.uniform(), RUNGS, 0)
    judged = []
    for number in range(300):
        asked = strategy.ask(number)
        other = sum(asked.levels[: len(asked.levels) // 2]) / 100
        value = worth(one, asked.levels, 10**6)
        judged.append(Judged(number, asked.levels, asked.tokens, value, asked.info, others=(other,)))
        strategy.tell(judged[-1])
    last = [one for one in judged if one.tokens == RUNGS[-1]]
    assert len(strategy.front) > 1
    for one_of_them in strategy.front:
        assert not any(dominates(other.goals, one_of_them.goals) for other in last)
    for other in last:
        goals = [one_of_them.goals for one_of_them in strategy.front]
        assert other.goals in goals or any(dominates(best, other.goals) for best in goals)
    assert strategy.best in strategy.front


def test_what_exceeds_a_limit_is_beaten_by_every_goal() -> None:
    reward = Reward("quality", {"params": 0.5}, {"macs": 0.8}, ("macs",))
    inside = reward.of(-3.0, {"params": 0.6, "macs": 0.8})
    assert inside.reward == -3.3
    assert inside.others == (0.8,)
    nearer, farther = (reward.beyond({"params": 0.1, "macs": macs}) for macs in (0.9, 1.0))
    goals = [(one.reward, *(-other for other in one.others)) for one in (inside, nearer, farther)]
    assert dominates(goals[0], goals[1])
    assert dominates(goals[1], goals[2])


def test_the_knee_gives_up_the_least_of_each_goal() -> None:
    pairs = [((0.0, 10.0), "a"), ((0.9, 9.0), "b"), ((1.0, 0.0), "c"), ((0.5, 5.0), "beaten"), ((0.9, 9.0), "again")]
    front = front_of(pairs)
    assert [name for _, name in front] == ["a", "b", "c"]
    assert knee(front) == "b"


def test_where_costs_multiply_no_place_could_give_less() -> None:
    sizes = np.array([16, 16, 32, 64])
    amounts = [tuple(range(0, int(size), int(size) // 8)) for size in sizes]

    def together(levels: Levels) -> int:
        left = sizes - [given[level] for given, level in zip(amounts, levels, strict=True)]
        return int((sizes[:-1] * sizes[1:]).sum() - (left[:-1] * left[1:]).sum())

    alone = [tuple(together([level * (at == place) for at in range(4)]) for level in range(8)) for place in range(4)]
    places = [
        Place(str(at), given, costs, tuple((level / 8) ** 2 for level in range(8)))
        for at, (given, costs) in enumerate(zip(amounts, alone, strict=True))
    ]
    one = Space(places, together([7, 7, 7, 7]) // 2, together)
    random = np.random.default_rng(0)
    drawn = [one.settled([int(random.integers(8)) for _ in places], random) for _ in range(20)]
    for levels in (one.uniform(), one.knapsack(), *drawn):
        assert one.meets(levels)
        lower = [[level - (at == place) for place, level in enumerate(levels)] for at in range(4) if levels[at]]
        assert all(one.cost(less) < one.total for less in lower)
    held = one.settled([7, 0, 0, 0], random, fixed=[0])
    assert held[0] == 7
