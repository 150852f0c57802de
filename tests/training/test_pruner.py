"""The pruner in a plain loop: exact amounts, masks that hold, cuts that change nothing, states that resume."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from loops import adam, data, loss_of, network, train
from torch import Tensor, nn

import secateur
from cuts import shrink_epsilon
from secateur.errors import NothingPrunedError, ScoreError, UsageError
from secateur.network.unit_group import UnitGroup
from secateur.schedules import Cubic, Linear, OneShot, Periodic, Schedule, WhenRecovered
from secateur.scores.units import UnitStatistics
from secateur.training.pruner import TrainingPruner
from secateur.training.regularization import L1, BatchNormScale, GroupLasso, Growing
from secateur.training.unit_masks import UnitMasks
from tiny import tiny_model

GRADUAL = Cubic(0.75, begin=1, end=12, every=3)
IDS = torch.randint(5, 96, (2, 12), generator=torch.Generator().manual_seed(3))


def zeros(model: nn.Module) -> int:
    return sum(int((one == 0).sum()) for one in model.parameters() if one.ndim > 1)


@pytest.mark.parametrize("score", ["l1", "l2", "random", "taylor", "fisher", "snip", "movement"])
def test_the_final_sparsity_is_exact_in_every_layer(score: str) -> None:
    model = network()
    pruner = train(model, 14, schedule=GRADUAL, score=score)
    for layer in pruner.mask().layers.values():
        assert layer.zeros == round(0.75 * layer.weights)
    assert pruner.finish() is model
    assert zeros(model) == sum(layer.zeros for layer in pruner.mask().layers.values())


def test_nothing_brings_a_pruned_weight_back() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    known: dict[str, Tensor] = {}

    def check(pruner: TrainingPruner) -> None:
        for name, layer in pruner.mask().layers.items():
            weight = model.get_parameter(f"{name}.weight").flatten(1)
            assert bool((weight[~layer.keep] == 0).all())
            assert not bool((layer.keep & ~known.get(name, layer.keep)).any())
            known[name] = layer.keep

    train(model, 30, optimizer=optimizer, schedule=GRADUAL, each=check)


def test_schedules_act_at_their_steps() -> None:
    seen: list[float] = []
    train(network(), 12, schedule=Linear(0.5, begin=2, end=10, every=4), each=lambda one: seen.append(one.sparsity))
    assert seen == pytest.approx([0] * 5 + [0.25] * 4 + [0.5] * 3, abs=1e-3)


def test_a_schedule_from_step_0_prunes_before_training() -> None:
    model = network()
    pruner = secateur.TrainingPruner(model, OneShot(0.5))
    assert pruner.sparsity == pytest.approx(0.5, abs=1e-3)


def test_global_allocation_and_given_shares() -> None:
    spread = train(network(), 12, schedule=GRADUAL, allocation="global").mask()
    assert spread.zeros == round(0.75 * spread.weights)
    assert len({round(layer.zeros / layer.weights, 3) for layer in spread.layers.values()}) == 3
    shares = {"0": 0.25, "3": 0.5, "7": 0.9}
    given = train(network(), 12, schedule=GRADUAL, allocation=shares).mask()
    assert {name: layer.zeros for name, layer in given.layers.items()} == {
        name: round(share * given.layers[name].weights) for name, share in shares.items()
    }


def test_a_pattern_is_reached_step_by_step() -> None:
    seen: list[str] = []
    schedule = Linear(0.5, begin=1, end=9, every=4)
    train(
        network(),
        10,
        schedule=schedule,
        pattern="2:4",
        exclude=["0"],
        each=lambda one: seen.append(one.mask().describe()),
    )
    assert seen[5].startswith("3:4 in 100 %")
    assert seen[9].startswith("2:4 in 100 %")


@pytest.mark.parametrize("threshold", ["p60", "mean-0std", 0.08])
def test_thresholds(threshold: str | float) -> None:
    model = network()
    dense = copy.deepcopy(model)
    pruner = secateur.TrainingPruner(model, OneShot(1.0), threshold=threshold)
    for name, layer in pruner.mask().layers.items():
        size = dense.get_parameter(f"{name}.weight").flatten(1).abs()
        least = {"p60": size.quantile(0.6), "mean-0std": size.mean(), 0.08: 0.08}[threshold]
        assert bool((layer.keep == (size >= least)).float().mean() > 0.999)


def test_a_number_as_threshold_grows_along_the_schedule() -> None:
    seen: list[float] = []
    train(
        network(),
        10,
        schedule=Linear(1.0, begin=1, end=9, every=2),
        threshold=0.1,
        each=lambda p: seen.append(p.sparsity),
    )
    assert 0 < seen[3] < seen[6] < seen[9] < 1


def test_rigl_exchanges_weights_at_a_constant_sparsity() -> None:
    model = network()
    masks: list[Tensor] = []
    train(
        model,
        21,
        schedule=Linear(0.8, begin=0, end=20, every=5, initial=0.8),
        regrow=True,
        each=lambda one: masks.append(one.mask().layers["7"].keep),
    )
    assert {int(keep.sum()) for keep in masks} == {480 - 384}
    changed = [int((one & ~other).sum()) for one, other in zip(masks[1:], masks[:-1], strict=True)]
    assert changed[3] > 0  # at step 5
    assert changed[3] >= changed[8] >= changed[13] > changed[18] == 0  # the share falls to nothing at the end


def test_movement_lets_weights_return_with_their_value() -> None:
    model = network()
    masks: list[Tensor] = []
    schedule = Linear(0.8, begin=0, end=30, every=2, initial=0.8)
    pruner = secateur.TrainingPruner(model, schedule, score="movement", regrow=True, optimizer=adam(model))
    asleep = pruner.masks.held[2].asleep  # type: ignore[union-attr]
    assert asleep is not None
    assert bool((asleep != 0).sum() == 384)
    train(model, 30, pruner=pruner, each=lambda one: masks.append(one.mask().layers["7"].keep))
    assert any(bool((one & ~other).any()) for one, other in zip(masks[1:], masks[:-1], strict=True))
    assert zeros(model) == pruner.masks.pruned()


@pytest.mark.parametrize("cut", ["end", "during"])
@pytest.mark.parametrize("score", ["l2", "taylor"])
def test_filters_are_removed_and_the_network_computes_the_same(cut: str, score: str) -> None:
    model = network()
    pruner = train(model, 14, schedule=GRADUAL, unit="filter", score=score, cut=cut, example_inputs=data()[0])
    assert pruner.sparsity == 0.75
    model.eval()
    with torch.no_grad():
        expected = model(data()[0])
        small = pruner.finish().eval()
        assert torch.allclose(small(data()[0]), expected, atol=1e-5)
    assert (small[0].weight.shape, small[3].weight.shape, small[7].weight.shape) == (
        (2, 3, 3, 3),
        (3, 2, 3, 3),
        (10, 12),
    )
    assert small[1].num_features == len(small[1].running_mean) == 2


def test_cutting_during_training_leaves_adam_undisturbed() -> None:
    """Masked until the end, or cut at once: the same weights come out, since the optimizer's state goes along."""
    small = {}
    for cut in ("end", "during"):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        pruner = train(
            model, 20, optimizer=optimizer, schedule=GRADUAL, unit="filter", cut=cut, example_inputs=data()[0]
        )
        small[cut] = pruner.finish()
    for one, other in zip(small["end"].parameters(), small["during"].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    known = [one for group in optimizer.param_groups for one in group["params"]]
    assert [id(one) for one in known] == [id(one) for one in model.parameters()]
    assert all(optimizer.state[one]["exp_avg"].shape == one.shape for one in known)


class Reads(nn.Module):
    """A recurrent network."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.hidden = kind(8, 12, 2, batch_first=True)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        read: Tensor = self.hidden(x)[0]
        out: Tensor = self.head(read[:, -1])
        return out


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 16),
        nn.LayerNorm(16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )


@pytest.mark.parametrize(
    ("build", "unit", "shape"),
    [
        (functools.partial(Reads, nn.LSTM), "hidden", (4, 5, 8)),
        (functools.partial(Reads, nn.GRU), "hidden", (4, 5, 8)),
        (depthwise, "filter, neuron", (4, 3, 6, 6)),
    ],
)
@pytest.mark.parametrize("cut", ["end", "during"])
def test_a_network_is_built_anew_however_it_was_cut(
    build: Callable[[], nn.Module], unit: str, shape: tuple[int, ...], cut: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, x = build(), torch.randn(shape)
    optimizer = adam(model)
    schedule = Linear(0.5, begin=1, end=3)
    pruner = secateur.TrainingPruner(model, schedule, unit=unit, cut=cut, optimizer=optimizer, example_inputs=x)
    for _ in range(4):
        model(x).square().mean().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    small = pruner.save(tmp_path / "out").eval()
    built = secateur.rebuild(build(), tmp_path / "out").eval()
    assert torch.equal(built(x), small(x))
    assert sum(one.numel() for one in built.parameters()) < sum(one.numel() for one in build().parameters())


@pytest.mark.parametrize("cut", ["end", "during"])
def test_kv_groups_are_left_with_one_query_head(cut: str, tmp_path: Path) -> None:
    model = tiny_model("llama").requires_grad_(True).train()
    optimizer = adam(model)
    pruner = secateur.TrainingPruner(
        model, Linear(0.5, begin=1, end=3), unit="query-head", cut=cut, optimizer=optimizer
    )
    for _ in range(5):
        lm_loss(model).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert pruner.sparsity == 0.5
    small = pruner.save(tmp_path / "out").eval()
    assert small.config.num_attention_heads == small.config.num_key_value_heads
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(read(IDS).logits, small(IDS).logits)


def lm_loss(model: Any) -> Tensor:
    output = model(input_ids=IDS)
    hidden = output.logits if "logits" in output else output.last_hidden_state
    return hidden.float().square().mean()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "xlnet", "mixtral"])
@pytest.mark.parametrize("unit", ["neuron", "head"])
@pytest.mark.parametrize("cut", ["end", "during"])
def test_language_models_lose_neurons_and_heads_while_they_train(family: str, unit: str, cut: str) -> None:
    model = tiny_model(family).requires_grad_(True).train()
    shrink_epsilon(model)
    optimizer = adam(model)
    pruner = secateur.TrainingPruner(
        model,
        Linear(0.5, begin=1, end=3, every=1),
        unit=unit,
        cut=cut,
        optimizer=optimizer,
        score="taylor",
        round_to=4 if unit == "neuron" else 1,  # torch multiplies experts' weights in rows of 16 bytes
    )
    for _ in range(4):
        lm_loss(model).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert pruner.sparsity == pytest.approx(0.5, abs=0.05)
    model.eval()
    with torch.no_grad():
        expected = lm_loss(model)
        before = sum(one.numel() for one in tiny_model(family).parameters())
        small = pruner.finish().eval()
        assert torch.allclose(lm_loss(small), expected, rtol=1e-4)
    assert sum(one.numel() for one in small.parameters()) < before
    assert all(one.requires_grad for one in small.parameters())


def test_t5_blocks_lose_the_same_heads() -> None:
    model = tiny_model("t5").requires_grad_(True)
    pruner = secateur.TrainingPruner(model, OneShot(0.5), unit="head")
    small = pruner.finish()
    assert small.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.shape[1] == 2
    small(input_ids=IDS, decoder_input_ids=IDS)


def test_a_saved_model_is_loaded_by_transformers(tmp_path: Path) -> None:
    model = tiny_model("bert").requires_grad_(True)
    pruner = secateur.TrainingPruner(model, OneShot(0.5), unit="neuron")
    small = pruner.save(tmp_path / "out").eval()
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert loaded.config.intermediate_size == 24
    assert torch.equal(loaded(IDS).logits, small(IDS).logits)
    masked = secateur.TrainingPruner(tiny_model("llama").requires_grad_(True), OneShot(0.5))
    masked.save(tmp_path / "masked")
    assert secateur.Mask.load(tmp_path / "masked").sparsity == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(UsageError, match="exists"):
        masked.save(tmp_path / "masked")
    masked.save(tmp_path / "masked", overwrite=True)
    told = json.loads((tmp_path / "masked/secateur.json").read_text())
    assert told["training"]["schedule"] == "OneShot"
    assert told["sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_a_saved_network_with_zeros_is_rebuilt(tmp_path: Path) -> None:
    model = network()
    train(model, 14, schedule=GRADUAL).save(tmp_path / "out")
    again = secateur.rebuild(network(seed=5), tmp_path / "out").eval()
    assert torch.equal(again(data()[0]), model.eval()(data()[0]))
    assert secateur.Mask.load(tmp_path / "out").sparsity == pytest.approx(0.75, abs=1e-3)


def test_a_saved_network_is_rebuilt(tmp_path: Path) -> None:
    model = network()
    pruner = train(model, 14, schedule=GRADUAL, unit="filter", example_inputs=data()[0])
    small = pruner.save(tmp_path / "out").eval()
    pruner.save(tmp_path / "out", overwrite=True)
    again = secateur.rebuild(network(seed=5), tmp_path / "out").eval()
    assert torch.equal(again(data()[0]), small(data()[0]))


@pytest.mark.parametrize(
    "options",
    [
        {"score": "taylor"},
        {"score": "movement", "regrow": True},
        {"score": "l1", "regrow": True},
        {"unit": "filter", "score": "fisher"},
        {"unit": "filter", "cut": "during"},
        {"schedule": WhenRecovered(0.6, amount=0.2, margin=0.5, greater_is_better=False)},
        {"schedule": Periodic(every=3, amount=0.3, final=0.6)},
        {"regularizer": Growing(Linear(0.5, begin=0, end=14))},
        {"unit": "filter", "regularizer": Growing(Linear(0.5, begin=0, end=14))},
    ],
    ids=["taylor", "movement", "rigl", "filters", "cut during", "when recovered", "periodic", "growing", "of filters"],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(options: dict[str, Any], tmp_path: Path) -> None:
    def parts(steps: list[int]) -> nn.Module:
        model = network()
        optimizer = adam(model)
        for number, some in enumerate(steps):
            settings = copy.deepcopy({"schedule": GRADUAL, **options})
            if "unit" in options:
                settings["example_inputs"] = data()[0]
            pruner = secateur.TrainingPruner(model, optimizer=optimizer, **settings)
            if number:
                state = torch.load(tmp_path / "state.pt", weights_only=True)
                pruner.load_state_dict(state["pruner"])
                model.load_state_dict(state["model"])
                optimizer.load_state_dict(state["optimizer"])
            waits = isinstance(pruner.schedule, WhenRecovered)
            train(
                model,
                some,
                optimizer=optimizer,
                pruner=pruner,
                each=lambda one, waits=waits: one.report(float(loss_of(one.model).detach())) if waits else None,
            )
            torch.save(
                {"pruner": pruner.state_dict(), "model": model.state_dict(), "optimizer": optimizer.state_dict()},
                tmp_path / "state.pt",
            )
            if number + 1 < len(steps):
                model = network(seed=9)
                optimizer = adam(model)
        return pruner.finish()

    whole, halves = parts([14]), parts([8, 6])
    for one, other in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "regularizer",
    [L1(1e-2), GroupLasso(5e-2), BatchNormScale(1e-1), Growing(Linear(0.1, begin=0, end=10))],
    ids=lambda one: type(one).__name__,
)
def test_regularisation_shrinks_what_it_is_about(regularizer: Any) -> None:
    def norm(model: nn.Module) -> float:
        kind = nn.BatchNorm2d if isinstance(regularizer, BatchNormScale) else nn.Conv2d
        return sum(float(one.weight.detach().abs().sum()) for one in model.modules() if isinstance(one, kind))

    sizes = []
    for one in (None, regularizer):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        options = {"unit": "filter", "score": "l2", "example_inputs": data()[0], "regularizer": one}
        train(model, 20, optimizer=optimizer, schedule=OneShot(0.5, begin=100), **options)
        sizes.append(norm(model))
    assert sizes[1] < 0.95 * sizes[0]


def test_a_penalty_s_gradient_is_that_of_its_formula() -> None:
    model = network()
    pruner = secateur.TrainingPruner(
        model, OneShot(0.5, begin=100), unit="filter", example_inputs=data()[0], regularizer=GroupLasso(0.1)
    )
    (first,) = [one.groups[0] for one in pruner.masks.coupled if one.name.startswith("0/")]  # type: ignore[union-attr]
    made, read = model[0].weight, model[3].weight
    units = torch.cat([made.flatten(1), read.transpose(0, 1).flatten(1)], dim=1)
    for one in model.parameters():
        one.grad = torch.zeros_like(one)
    (0.1 * units.norm(dim=1).sum()).backward()
    expected = made.grad.clone()
    for one in model.parameters():
        one.grad = torch.zeros_like(one)
    pruner.regularize()
    assert first.count == 8
    assert torch.allclose(made.grad, expected, atol=1e-6)


def test_weights_that_are_nan_end_the_run() -> None:
    model = network()
    pruner = train(model, 5, schedule=GRADUAL)
    with torch.no_grad():
        model.get_parameter("3.weight")[0] = torch.nan
    with pytest.raises(ScoreError, match="the score of 0 is NaN at step 7"):
        train(model, 5, pruner=pruner)


@pytest.mark.parametrize("score", ["taylor", "snip", "movement"])
def test_gradients_that_were_zeroed_before_the_step_say_nothing(score: str) -> None:
    model = network()
    optimizer = adam(model)
    pruner = secateur.TrainingPruner(model, GRADUAL, score=score, optimizer=optimizer)
    loss_of(model).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    with pytest.raises(ScoreError, match=r"all gradients up to step 1 were zero.*before zero_grad"):
        pruner.step()


def test_a_threshold_above_all_scores_ends_the_run() -> None:
    with pytest.raises(ScoreError, match="nothing would be left after step 0"):
        TrainingPruner(network(), OneShot(0.5), threshold=100.0)


def test_a_regularizer_that_is_never_applied_is_named() -> None:
    model = network()
    pruner = TrainingPruner(model, GRADUAL, regularizer=L1(1e-3))
    with pytest.raises(UsageError, match=r"call pruner.regularize\(\) between"):
        pruner.step()


def test_a_function_of_one_s_own_scores_units() -> None:
    def first_go(group: Any, statistics: Any) -> Tensor:
        return torch.arange(group.count, dtype=torch.float32)

    model = network()
    pruner = train(model, 14, schedule=GRADUAL, unit="filter", score=first_go, example_inputs=data()[0])
    assert all(one.pruned.tolist() == sorted(one.pruned.tolist(), reverse=True) for one in pruner.masks.coupled)
    assert pruner.state_dict()["about"]["score"].endswith("first_go")


def test_widths_that_miss_the_target_are_told() -> None:
    given = {"unit": "filter", "example_inputs": data()[0]}
    with pytest.warns(UserWarning, match=r"round_to=6 and min_units=1, 40.0% of the units go in the end"):
        TrainingPruner(network(), OneShot(0.5, begin=1), round_to=6, **given)


GROWING = Growing(Linear(0.1, begin=0, end=9))


def bad(make: Callable[[], object], words: str) -> Any:
    return pytest.param(make, words, id=words)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        bad(lambda: TrainingPruner(network()), "a schedule is needed"),
        bad(lambda: TrainingPruner(network(), GRADUAL, score="wanda"), "training doesn't gather"),
        bad(lambda: TrainingPruner(network(), GRADUAL, score="lone"), "unknown score"),
        bad(lambda: TrainingPruner(network(), GRADUAL, unit="layer"), "aren't removed during training"),
        bad(lambda: TrainingPruner(network(), GRADUAL, unit="weight,filter"), "aren't pruned together"),
        bad(lambda: TrainingPruner(network(), GRADUAL, unit="filter"), "give example_inputs"),
        bad(lambda: TrainingPruner(network(), GRADUAL, unit="hidden", example_inputs=data()[0]), "it has filter"),
        bad(lambda: TrainingPruner(network(), GRADUAL, pattern="2:4"), "schedule ends at 0.75"),
        bad(lambda: TrainingPruner(network(), pattern="2:4"), "4 doesn't divide"),
        bad(lambda: TrainingPruner(network(), GRADUAL, allocation="owl"), "unknown allocation"),
        bad(lambda: TrainingPruner(network(), GRADUAL, allocation={"0": 0.5}), "has no share"),
        bad(lambda: TrainingPruner(network(), GRADUAL, exclude=["nothing*"]), "matches no layer"),
        bad(lambda: TrainingPruner(network(), GRADUAL, cut="during"), "cut says nothing about unit='weight'"),
        bad(
            lambda: TrainingPruner(network(), GRADUAL, regrow=True, pattern="1:4", exclude=["0"]), "same in every layer"
        ),
        bad(
            lambda: TrainingPruner(network(), OneShot(0.99), unit="filter", example_inputs=data()[0]),
            "at least 1 have to stay",
        ),
        bad(
            lambda: TrainingPruner(network(), GRADUAL, unit="filter", example_inputs=data()[0], cut="during"),
            "give optimizer=",
        ),
        bad(lambda: TrainingPruner(network(), GRADUAL, optimizer=adam(network())), "were swapped after the optimizer"),
        bad(lambda: TrainingPruner(network(), OneShot(0.5), score="taylor"), "begin at step 1"),
        bad(lambda: TrainingPruner(network(), GRADUAL, regularizer=GroupLasso(0.1)), "is about units"),
        bad(lambda: TrainingPruner(network(), GRADUAL).report(0.5), "doesn't go by a metric"),
        bad(lambda: TrainingPruner(network(), GRADUAL).regularize(), "has no regularizer"),
        bad(lambda: L1(0), "above 0"),
        bad(lambda: L1("strong"), "a number above 0 or a schedule"),
        bad(lambda: TrainingPruner(network(), OneShot(1.0)), "final=1 leaves no weight"),
        bad(lambda: TrainingPruner(network(), GRADUAL, allocation={"01": 0.5}), "01 isn't among the 3 layers"),
        bad(lambda: TrainingPruner(network(), GRADUAL, exclude="nothing"), "'nothing' matches no layer"),
        bad(lambda: TrainingPruner(network(), 0.5), "give one of secateur.schedules"),
        bad(lambda: TrainingPruner(network(), GRADUAL, unit="neurons"), "Did you mean 'neuron'"),
        bad(lambda: TrainingPruner(network(), GRADUAL, score=len), "scores units, not single weights"),
        bad(lambda: TrainingPruner(network(), OneShot(0.5), threshold=0.1, pattern="2:4"), "leave pattern out"),
        bad(lambda: TrainingPruner(network(), GRADUAL, threshold=0.1, allocation="global"), "leave allocation out"),
        bad(lambda: TrainingPruner(network(), GRADUAL, threshold=-1), "nothing scores below"),
        bad(lambda: TrainingPruner(network(), GRADUAL, regularizer=1e-4), "give one such as L1"),
        bad(
            lambda: TrainingPruner(network(), GRADUAL, unit="filter", example_inputs=data()[0], round_to=100),
            "no group can lose",
        ),
        bad(
            lambda: TrainingPruner(
                model := network(),
                GRADUAL,
                unit="filter",
                example_inputs=data()[0],
                cut="during",
                optimizer=adam(model),
                regularizer=GROWING,
            ),
            "Growing drives the same units",
        ),
        bad(lambda: TrainingPruner(network(), GRADUAL).load_state_dict({}), "no state of a pruner"),
        bad(lambda: TrainingPruner(network(), OneShot(0.5), regrow=True), "OneShot prunes once"),
        bad(lambda: TrainingPruner(network(), GRADUAL, score="movement", regularizer=GROWING), "take l1"),
        bad(
            lambda: TrainingPruner(network(), GRADUAL, unit="filter", example_inputs=data()[0], allocation={"0": 0.5}),
            "0 isn't among the 2 groups",
        ),
    ],
)
def test_bad_input_is_named(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


def test_states_of_others_are_refused() -> None:
    state = train(network(), 5, schedule=GRADUAL).state_dict()
    with pytest.raises(UsageError, match="end is 12 there, 13 here"):
        TrainingPruner(network(), Cubic(0.75, begin=1, end=13, every=3)).load_state_dict(state)
    with pytest.raises(UsageError, match="score is 'l1' there"):
        TrainingPruner(network(), GRADUAL, score="l2").load_state_dict(state)
    other = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(UsageError, match="of another model"):
        TrainingPruner(other, GRADUAL).load_state_dict(state)


def test_swapped_parameters_are_noticed() -> None:
    model = network()
    pruner = train(model, 2, schedule=GRADUAL)
    model.load_state_dict(network().state_dict(), assign=True)
    with pytest.raises(UsageError, match="was swapped since"):
        train(model, 3, optimizer=adam(model), pruner=pruner)


def test_swapped_parameters_are_noticed_after_the_last_pruning() -> None:
    model = network()
    pruner = train(model, 13, schedule=GRADUAL)
    model.load_state_dict(network().state_dict(), assign=True)
    with pytest.raises(UsageError, match="was swapped since"):
        pruner.step()
    with pytest.raises(UsageError, match="was swapped since"):
        pruner.finish()


def test_an_optimizer_whose_state_cannot_be_cut_leaves_the_model_as_it_is() -> None:
    model = network()
    optimizer = transformers.Adafactor(model.parameters(), lr=1e-2, scale_parameter=False, relative_step=False)
    given = {"unit": "filter", "example_inputs": data()[0], "cut": "during"}
    with pytest.raises(UsageError, match="isn't known how to cut it"):
        train(model, 5, optimizer=optimizer, schedule=Linear(0.5, begin=1, end=3), **given)
    known = {id(one) for group in optimizer.param_groups for one in group["params"]}
    assert all(id(one) in known for one in model.parameters())
    assert model[0].out_channels == 8


@pytest.mark.parametrize("options", [{}, {"unit": "filter", "cut": "during"}], ids=str)
def test_a_state_spares_a_model_the_pruning_before_the_first_step(options: dict[str, Any]) -> None:
    if options:
        options = {**options, "example_inputs": data()[0]}
    schedule = OneShot(0.5)
    whole = network()
    optimizer = adam(whole)
    pruner = train(whole, 6, optimizer=optimizer, schedule=schedule, **options)
    state = copy.deepcopy([pruner.state_dict(), whole.state_dict(), optimizer.state_dict()])
    train(whole, 4, optimizer=optimizer, pruner=pruner)
    again = network(seed=9)
    if not options:
        again.load_state_dict(state[1])  # as transformers' Trainer does before there is a pruner
    optimizer = adam(again)
    rest = secateur.TrainingPruner(again, schedule, optimizer=optimizer, state=state[0], **options)
    again.load_state_dict(state[1])
    optimizer.load_state_dict(state[2])
    train(again, 4, optimizer=optimizer, pruner=rest)
    for one, other in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_group_that_is_cut_while_it_trains_keeps_two() -> None:
    given = {"unit": "filter", "example_inputs": data()[0], "allocation": "global", "cut": "during"}
    pruner = train(network(), 13, schedule=Cubic(0.8, begin=1, end=12, every=3), **given)
    assert isinstance(pruner.masks, UnitMasks)
    assert sorted(one.total for one in pruner.masks.coupled) == [8, 12]
    assert min(one.count for one in pruner.masks.coupled) >= 2
    assert pruner.sparsity == pytest.approx(0.8, abs=0.01)


def test_a_percentile_is_of_all_units_whether_they_are_cut_or_not() -> None:
    given = {"unit": "filter", "example_inputs": data()[0], "threshold": "p50"}
    schedule = Linear(0.5, begin=1, end=12, every=3)
    for cut in ("end", "during"):
        assert train(network(), 13, schedule=schedule, cut=cut, **given).sparsity == pytest.approx(0.5)


def test_layers_of_one_shape_are_drawn_differently() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    one, other = TrainingPruner(model, OneShot(0.5), score="random").mask().layers.values()
    assert not torch.equal(one.keep, other.keep)


def test_weights_return_on_a_schedule_without_an_end() -> None:
    masks: list[Tensor] = []
    schedule = Periodic(every=2, amount=0.2)
    train(network(), 12, schedule=schedule, regrow=True, each=lambda one: masks.append(one.mask().layers["7"].keep))
    assert any(bool((one & ~other).any()) for one, other in zip(masks[1:], masks[:-1], strict=True))


def test_growing_is_about_what_the_allocation_will_take() -> None:
    shares = {"0": 0.0, "3": 0.5, "7": 1.0}
    pruner = train(network(), 1, schedule=GRADUAL, allocation=shares, regularizer=Growing(Linear(0.1, begin=0, end=9)))
    assert pruner.regularizer is not None
    assert pruner.regularizer.chosen is not None
    found = [float(one.float().mean()) for one in pruner.regularizer.chosen.values()]
    assert found == pytest.approx(list(shares.values()), abs=1e-3)


class Halfway(Schedule):
    """A schedule of one's own."""

    final = 0.5

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, step: int) -> float:
        return 0.5 if step >= self.step else 0.0

    def due(self, step: int) -> bool:
        return step == self.step


def test_a_schedule_of_one_s_own_gives_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Halfway, "__call__", lambda self, step: 1.5)
    with pytest.raises(UsageError, match=r"Halfway gives 1\.5 at step 2; a sparsity lies between 0 and 1"):
        train(network(), 2, schedule=Halfway(2))


def test_a_schedule_that_was_told_nothing_says_so() -> None:
    pruner = train(network(), 3, schedule=WhenRecovered(0.4, amount=0.2, margin=0.1))
    with pytest.raises(NothingPrunedError, match="told of no metric"):
        pruner.finish()
    pruner.report(0.5)
    with pytest.raises(NothingPrunedError, match="the step after a metric was reported"):
        pruner.finish()


def test_what_is_of_one_s_own_is_saved_and_known_again(tmp_path: Path) -> None:
    given = {"unit": "filter", "example_inputs": data()[0], "score": functools.partial(first_go_by, sign=1.0)}
    for schedule in (Halfway(2), Linear(np.float64(0.5), begin=1, end=3)):
        pruner = train(network(), 2, schedule=schedule, **given)
        torch.save(pruner.state_dict(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        TrainingPruner(network(), schedule, state=state, **given)
    with pytest.raises(UsageError, match="step is 2 there, 3 here"):
        TrainingPruner(network(), Halfway(3), state=train(network(), 2, schedule=Halfway(2)).state_dict())


def first_go_by(group: UnitGroup, statistics: UnitStatistics, sign: float) -> Tensor:
    """A score of one's own: the first units go."""
    return sign * torch.arange(group.count).float()


def test_shares_of_heads_that_go_together_are_given_by_what_they_share() -> None:
    model = tiny_model("t5").requires_grad_(True)
    amounts = {f"{half}.block.{block}/head": 1 for half in ("encoder", "decoder") for block in (0, 1)}
    recipe = secateur.Recipe.build({"model": "m", "stages": [{"prune": {"unit": "head", "amounts": amounts}}]})
    allocation = secateur.shares(recipe, model)
    assert {"encoder/head", "decoder/head"} < set(allocation)
    pruner = TrainingPruner(model, OneShot(0.25), unit="head", allocation=allocation)
    assert pruner.sparsity > 0


def test_a_constant_score_says_so() -> None:
    model = network()
    nn.init.ones_(model[0].weight)
    nn.init.ones_(model[3].weight)
    with pytest.raises(ScoreError, match="constant"):
        TrainingPruner(model, OneShot(0.5), unit="filter", example_inputs=data()[0])


def test_a_run_that_pruned_nothing_or_too_little_says_so() -> None:
    pruner = train(network(), 3, schedule=OneShot(0.5, begin=10))
    with pytest.raises(NothingPrunedError, match="in 3 steps"):
        pruner.finish()
    pruner = train(network(), 7, schedule=GRADUAL)
    with pytest.warns(UserWarning, match="last pruning at step 12"):
        pruner.finish()
