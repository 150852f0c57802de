"""What every search strategy must do, on a space whose best candidate is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from optuna.trial import TrialState

from secateur.automl.front import dominates, front_of, knee
from secateur.automl.pieces import pieces_of
from secateur.automl.reward import Reward
from secateur.automl.space import Levels, Place, Space
from secateur.automl.strategies import STRATEGIES, Judged, Strategy, strategy_named
from secateur.automl.strategies.rounds import Rounds
from secateur.automl.strategies.sampled import Sampled
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


def large(seed: int) -> tuple[Space, np.ndarray, np.ndarray]:
    """Places of a language model's sizes, the loss of each level, and by how much it differs from window to window.

    The places' own losses, by which the knapsack goes, are measured with an error.
    """
    random = np.random.default_rng(seed)
    places, losses = [], []
    for number in range(70):
        size, depth = (1, 3, 8)[number % 3], number / 70
        scale = np.exp(random.normal(0, 0.7)) * np.sqrt(size)
        losses.append(scale * np.linspace(0.5, 0.9, 9) ** random.uniform(3, 8))
        measured = losses[-1] * np.exp(random.normal(0, 0.5))
        costs = tuple(size * level for level in range(10, 19))
        kind = [float(number % 3 == one) for one in range(3)]
        places.append(Place(str(number), costs, costs, tuple(measured), (depth, depth**2, *kind)))
    windows = np.exp(random.normal(0, 0.5, (70, 16)))
    return Space(places, sum(place.costs[4] for place in places)), np.array(losses), windows / windows.mean()


def searched(name: str, problem: tuple[Space, np.ndarray, np.ndarray], seed: int, rounds: int) -> tuple[float, float]:
    """Searches from the knapsack for as many tokens as some rounds read; returns the loss of the start and the best."""
    one, losses, windows = problem
    rungs = (1, 4, 16)
    strategy = strategy_named(name)(one, one.knapsack(), rungs, seed)
    number = left = 0
    while left < rounds * (16 + 16 + 16):
        asked = strategy.ask(number)
        read = pieces_of([1] * 16, asked.tokens, asked.text)
        lost = losses[np.arange(70), asked.levels] @ windows[:, read]
        told = Judged(number, asked.levels, asked.tokens, -float(lost.mean()), asked.info, text=asked.text)
        strategy.tell(told)
        number, left = number + 1, left + asked.tokens
    assert strategy.best is not None
    start, best = (float(losses[np.arange(70), levels].sum()) for levels in (strategy.start, strategy.best.levels))
    return start, best


def test_what_learns_improves_on_a_noisy_knapsack_and_beats_random_from_there() -> None:
    """By the losses themselves, not by those of the windows that were read."""
    for seed in range(3):
        problem = large(seed)
        start, random = searched("random", problem, seed, 20)
        gains = {name: start - searched(name, problem, seed, 20)[1] for name in ("evolution", "policy")}
        assert all(gain > 0.03 * start for gain in gains.values()), gains
        assert all(gain > 1.5 * (start - random) for gain in gains.values()), (gains, start - random)


def test_a_switch_moves_two_places_whose_steps_are_as_large() -> None:
    one, _, _ = large(0)
    random, start = np.random.default_rng(0), one.uniform()
    for _ in range(100):
        changed = [at for at, (a, b) in enumerate(zip(start, one.switched(start, random, 1), strict=True)) if a != b]
        assert len(changed) == 2
        assert len({one.places[at].costs for at in changed}) == 1


def test_halves_of_layers_change_places() -> None:
    """The last step takes the whole half: those that go and those that stay swap, and nothing else moves."""
    places = [Place(f"mlp {n}", (0, 1, 2, 16), (0, 1, 2, 20), (0.0, 1.0, 2.0, 9.0), (n / 6,)) for n in range(6)]
    one, random = Space(places, 40), np.random.default_rng(0)
    drawn = {one.switched((3, 3, 0, 0, 0, 0), random, 1) for _ in range(200)}
    assert {(0, 3, 3, 0, 0, 0), (3, 0, 0, 0, 0, 3)} <= drawn
    assert all(one.meets(levels) for levels in drawn)


@pytest.mark.parametrize(("rungs", "numbers"), [(1, (1,)), (2, (16, 1)), (3, (16, 4, 1)), (5, (16, 4, 1, 1, 1))])
@pytest.mark.parametrize("name", ["evolution", "policy", "tpe"])
def test_rounds_go_on_any_number_of_rungs(name: str, rungs: int, numbers: tuple[int, ...]) -> None:
    one, tokens = space(), tuple(8 * 4**rung for rung in range(rungs))
    strategy = strategy_named(name)(one, one.uniform(), tokens, 0)
    assert isinstance(strategy, Rounds)
    assert strategy.numbers == numbers
    for number in range(60):
        asked = strategy.ask(number)
        value = worth(one, asked.levels, asked.tokens)
        strategy.tell(Judged(number, asked.levels, asked.tokens, value, asked.info, text=asked.text))
    assert one.meets(strategy.ask(60).levels)


def test_a_round_reads_one_text_beside_the_best_and_ends_if_nothing_beats_it() -> None:
    one = space()
    strategy = strategy_named("evolution")(one, one.uniform(), RUNGS, 0)
    asked = []
    for number in range(60):
        asked.append(strategy.ask(number))
        value = 1.0 if asked[-1].levels == strategy.start else worth(one, asked[-1].levels, asked[-1].tokens)
        strategy.tell(Judged(number, asked[-1].levels, asked[-1].tokens, value, asked[-1].info, text=asked[-1].text))
    assert [one.tokens for one in asked].count(RUNGS[-1]) == 1  # the start, which is the best
    first, second = asked[1:22], asked[22:43]
    for some in (first, second):
        assert [one.tokens for one in some] == [RUNGS[0]] * 17 + [RUNGS[1]] * 4
        assert some[0].levels == strategy.start
        assert len({one.text for one in some}) == 1
    assert first[0].text != second[0].text


def test_a_text_of_more_tokens_is_that_of_fewer_and_more() -> None:
    sizes = [3, 4, 5, 3, 4, 5]
    starts = set()
    for text in range(40):
        few, some, every = (pieces_of(sizes, tokens, text) for tokens in (4, 12, sum(sizes)))
        assert some[: len(few)] == few
        assert every[: len(some)] == some
        assert sorted(every) == list(range(6))
        assert sum(sizes[number] for number in few) >= 4
        starts.add(few[0])
    assert starts == set(range(6))


def test_random_goes_from_the_start_whatever_was_found() -> None:
    one, _, _ = large(0)
    drawn = []
    for best in (one.uniform(), one.knapsack()):
        strategy = strategy_named("random")(one, one.uniform(), RUNGS, 0)
        strategy.tell(Judged(0, one.uniform(), RUNGS[-1], 0.0))
        strategy.tell(Judged(1, best, RUNGS[-1], 1.0, own=False))
        strategy.ask(2)  # the best, beside which others are judged
        drawn.append([strategy.draw(strategy.random(number)) for number in range(40)])
    assert drawn[0] == drawn[1]
    apart = [sum(a != b for a, b in zip(one.uniform(), levels, strict=True)) for levels in drawn[0]]
    assert min(apart) == 2
    assert max(apart) > 20


@pytest.mark.parametrize("name", ["tpe", "nsga2", "cmaes"])
def test_samplers_know_the_start_and_go_on_with_other_draws(name: str) -> None:
    one = space()
    first = strategy_named(name)(one, one.uniform(), RUNGS, 0)
    told = []
    for number in range(30):
        asked = first.ask(number)
        value = worth(one, asked.levels, asked.tokens)
        told.append(Judged(number, asked.levels, asked.tokens, value, asked.info, own=False, text=asked.text))
        first.tell(replace(told[-1], own=True))
    again = strategy_named(name)(one, one.uniform(), RUNGS, 0)
    for judged in told:
        again.tell(judged)
    again.ask(30)
    drawn = [again.draw(again.random(number)) for number in range(30, 40)]
    assert not {judged.levels for judged in told} & set(drawn)
    for strategy in (first, again):
        assert isinstance(strategy, Sampled)
        assert strategy.study is not None
        known = [trial for trial in strategy.study.trials if trial.state == TrialState.COMPLETE]
        assert tuple(known[0].params.values()) == one.uniform()
        assert {tuple(trial.params.values()) for trial in known} == {
            judged.levels for judged in told if judged.tokens == RUNGS[0]
        }
        assert name != "nsga2" or all("NSGAIISampler:generation" in trial.system_attrs for trial in known)


@pytest.mark.parametrize("name", ["evolution", "policy", "tpe"])
def test_a_trial_that_failed_is_passed_over(name: str) -> None:
    one = space()
    strategy = strategy_named(name)(one, one.uniform(), RUNGS, 0)
    for number in range(60):
        asked = strategy.ask(number)
        value = None if number % 3 == 1 else worth(one, asked.levels, asked.tokens)
        strategy.tell(Judged(number, asked.levels, asked.tokens, value, asked.info))
    assert strategy.best is not None
    assert strategy.best.value is not None
    if isinstance(strategy, Sampled):
        assert not strategy.asked
        assert strategy.study is not None
        assert not [trial for trial in strategy.study.trials if trial.state == TrialState.RUNNING]


def test_a_budget_out_of_reach_names_the_nearest() -> None:
    places = space().places
    most = sum(place.costs[-1] for place in places)
    with pytest.raises(UsageError, match=f"{most / 2 + 0.5} can't be met: .* from --half 0.0 to --half {most / 2}"):
        Space(places, most + 1, target=lambda cost: f"--half {cost / 2}")


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
