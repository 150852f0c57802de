"""Recovery stages: they lower the loss, hold zeros and widths, keep the best state, and resume where they died."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.calibration.data import text_windows
from secateur.calibration.windows import Windows
from secateur.errors import CalibrationError, ModelError, NothingPrunedError, ResumeError, TrainingError, UsageError
from secateur.journal import run_folder
from secateur.network.loading import load
from secateur.network.network import Network
from secateur.processes import ALONE
from secateur.progress import Progress
from secateur.recipe import Distill, Finetune, Lora, Recipe, Training
from secateur.result import Result, StageReport
from secateur.stage_journal import StageJournal
from secateur.training.examples import IGNORED, TextExamples
from secateur.training.lora import Adapters
from secateur.training.objectives import DataLoss, Distillation, _counting, _matched, data_loss, divergence
from secateur.training.recovery import Trained, _Watch, train
from secateur.training.teacher import Kept
from secateur.training.zeros import trainable, zeros_of
from tiny import save_tiny

TEXT = "".join(
    f"{n}: the quick brown fox jumps over the lazy dog {n * 7 % 31} times, then it sleeps. " for n in range(150)
)
SHORT = {"steps": 10, "rate": 1e-2, "held_out": 6, "batch": 4, "judged": 2}
GENTLE = {**SHORT, "rate": 3e-3}
HALF = {"prune": {"sparsity": 0.5, "score": "l1"}}


class Killed(BaseException):
    """Stands for what can't be caught: kill -9."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recovery")
    (path / "text.txt").write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return str(folder / "text.txt")


def saved(family: str, folder: Path) -> str:
    """Returns the tiny model of a family, saved once."""
    path = folder / family
    return str(path if path.exists() else save_tiny(family, path, tokenizer=True))


def recipe(folder: Path, *stages: dict[str, Any], family: str = "llama", **more: Any) -> Recipe:
    calibration = {"data": str(folder / "text.txt"), "samples": 4, "length": 16}
    told = {"model": saved(family, folder), "calibration": calibration, "evaluate": None, "stages": list(stages)}
    return Recipe.build({**told, **more})


def run(folder: Path, *stages: dict[str, Any], **more: Any) -> Result:
    return secateur.run_recipe(recipe(folder, *stages, **more))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def half(family: str, folder: Path) -> Network:
    """Returns a tiny model with half of its blocks' weights zero."""
    network = load(saved(family, folder))
    for layer in network.layers():
        W = layer.matrix()
        W[W.abs() < W.abs().flatten().median()] = 0
    return network


def zero_places(network: Network) -> dict[str, Tensor]:
    return {layer.name: layer.matrix() == 0 for layer in network.layers()}


def windows(network: Network, text: str, number: int = 48) -> Windows:
    return text_windows(network, text, number, 16)


def trained(network: Network, text: str, settings: Training, folder: Path, loss: Any = None) -> Trained:
    """Trains all of a model's weights."""
    examples = TextExamples(network, windows(network, text))
    zeros = zeros_of(network)
    with trainable(network, zeros):
        return train(
            network.model,
            loss or DataLoss(),
            examples.batch,
            len(examples),
            zeros,
            settings,
            folder=folder,
            seed=0,
            device="cpu",
            bf16=settings.compute == "bfloat16",
            label="training",
            progress=Progress(),
        )


@torch.no_grad()
def text_loss(network: Network, some: Windows) -> float:
    return float(DataLoss()(network.model, TextExamples(network, some).batch(range(len(some)))))


@torch.no_grad()
def distance(network: Network, dense: Network, some: Windows) -> float:
    """Returns the mean KL divergence from a dense model to another one."""
    ids = some.ids
    return float(divergence(network.model(ids).logits, dense.model(ids).logits, 1.0).mean())


@pytest.mark.parametrize("family", ["llama", "bert", "xlnet", "t5", "mixtral"])
def test_finetuning_lowers_the_loss_holds_zeros_and_keeps_the_best(family: str, folder: Path) -> None:
    pruned = run(folder, HALF, family=family)
    result = run(folder, HALF, {"finetune": SHORT}, family=family)
    training = result.stages[1].training
    assert training is not None
    assert training.after < training.before
    assert training.after == min(entry["eval_loss"] for entry in training.log if "eval_loss" in entry)
    before, after = zero_places(pruned.network), zero_places(result.network)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert result.network.parameters() == pruned.network.parameters()
    assert not any(parameter.requires_grad for parameter in result.model.parameters())
    json.dumps(result.to_dict())
    assert "10 steps on" in result.table()


def test_the_model_that_comes_out_has_the_loss_that_is_reported(folder: Path, text: str, tmp_path: Path) -> None:
    network = half("llama", folder)
    done = trained(network, text, Finetune(**SHORT), tmp_path)
    judged = windows(network, text).part(42, 48)
    assert text_loss(network, judged) == pytest.approx(done.after, rel=1e-5)


def test_portions_of_a_step_come_to_the_same_as_one(folder: Path, text: str, tmp_path: Path) -> None:
    networks = [half("llama", folder), half("llama", folder)]
    for network, portions in zip(networks, (1, 2), strict=True):
        settings = Finetune(**{**SHORT, "steps": 3}, accumulate=portions)
        trained(network, text, settings, tmp_path / str(portions))
    one, two = (weights(network.model) for network in networks)
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


def test_a_worse_state_is_not_kept(folder: Path, text: str, tmp_path: Path) -> None:
    network = half("llama", folder)
    before = weights(network.model)
    done = trained(network, text, Finetune(**{**SHORT, "rate": 10.0, "steps": 4, "warmup": 0}), tmp_path)
    assert done.best == 0
    assert done.after == done.before
    assert "nothing better" in done.notes[0]
    assert all(torch.equal(one, before[name]) for name, one in network.model.named_parameters())


def test_the_last_state_is_kept_where_it_is_asked_for_and_a_killed_run_ends_in_it(
    folder: Path, text: str, tmp_path: Path
) -> None:
    settings = Finetune(**{**SHORT, "rate": 10.0, "steps": 4, "warmup": 0}, keep="last")
    network = half("llama", folder)
    before = weights(network.model)
    done = trained(network, text, settings, tmp_path / "one")
    assert done.best == done.steps == 4
    assert done.after > done.before
    assert not done.notes
    assert not torch.equal(weights(network.model)["lm_head.weight"], before["lm_head.weight"])
    again = half("llama", folder)
    trained(again, text, settings, tmp_path / "one")  # takes up what the first one left
    assert all(torch.equal(one, weights(network.model)[name]) for name, one in again.model.named_parameters())


def test_patience_is_about_the_best_state() -> None:
    with pytest.raises(UsageError, match="keep: last"):
        Finetune(patience=2, keep="last")


def test_it_stops_when_nothing_gets_better(folder: Path, text: str, tmp_path: Path) -> None:
    settings = Finetune(**{**SHORT, "rate": 10.0, "steps": 40, "judged": 20, "patience": 2, "warmup": 0})
    assert trained(half("llama", folder), text, settings, tmp_path).steps == 4


def test_time_ends_it_and_it_is_judged_at_the_end(folder: Path, text: str, tmp_path: Path) -> None:
    settings = Finetune(**{**SHORT, "steps": None, "minutes": 0.02})
    done = trained(half("llama", folder), text, settings, tmp_path)
    assert done.steps > 0
    assert any(entry["step"] == done.steps and "eval_loss" in entry for entry in done.log)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_a_model_in_bf16_stays_so_and_its_zeros_too(compute: Any, folder: Path, text: str, tmp_path: Path) -> None:
    network = half("llama", folder)
    network.model.to(torch.bfloat16)
    before = zero_places(network)
    done = trained(network, text, Finetune(**SHORT, compute=compute), tmp_path)
    assert done.after < done.before
    assert {one.dtype for one in network.model.parameters()} == {torch.bfloat16}
    assert all(torch.equal(before[name], zeros) for name, zeros in zero_places(network).items())
    assert "forward" not in vars(network.model)  # what accelerate wraps is unwrapped


def test_training_leaves_the_callers_random_numbers_alone(folder: Path, text: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    trained(half("llama", folder), text, Finetune(**{**SHORT, "steps": 1}), tmp_path)
    assert torch.equal(torch.rand(3), expected)


# Resuming


def killed_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Has training die behind a step."""
    ends = _Watch.on_step_end

    def dying(self: _Watch, args: Any, state: Any, control: Any, **given: Any) -> Any:
        if state.global_step == step:
            raise Killed
        return ends(self, args, state, control, **given)

    patch.setattr(_Watch, "on_step_end", dying)


@pytest.mark.parametrize(  # bert and xlnet have dropout, and draw masks
    ("family", "step"), [("llama", 4), ("bert", 8), ("xlnet", 4), ("mixtral", 8)]
)
def test_a_killed_training_ends_in_the_same_weights(
    family: str, step: int, folder: Path, text: str, tmp_path: Path
) -> None:
    settings = Finetune(**{**SHORT, "steps": 12, "judged": 4})
    whole = half(family, folder)
    expected = trained(whole, text, settings, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        killed_at(patch, step)
        with pytest.raises(Killed):
            trained(half(family, folder), text, settings, tmp_path / "killed")
    resumed = half(family, folder)
    done = trained(resumed, text, settings, tmp_path / "killed")
    assert (done.steps, done.best, done.after) == (expected.steps, expected.best, expected.after)
    ours, theirs = weights(resumed.model), weights(whole.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_killed_run_of_several_stages_ends_in_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    settings = {**GENTLE, "top_k": 8, "hidden": 1.0}
    stages = [{"prune": {"unit": "neuron", "sparsity": 0.5}}, {"finetune": SHORT}, {"distill": settings}]
    out = tmp_path / "out"
    told = recipe(folder, *stages, output=str(out))
    secateur.run_recipe(told)
    expected = (out / "model.safetensors").read_bytes()
    assert "eval_loss" in (out / "training.csv").read_text()
    assert "Loss while it trained" in (out / "report.html").read_text()
    shutil.rmtree(out)
    with pytest.MonkeyPatch.context() as patch:
        killed_at(patch, 7)
        patch.setattr(StageJournal, "close", lambda self: None)
        with pytest.raises(Killed):
            secateur.run_recipe(told)
    assert not out.exists()
    with pytest.MonkeyPatch.context() as patch:
        killed_at(patch, 9)
        patch.setattr(StageJournal, "close", lambda self: None)
        with pytest.raises(Killed):
            secateur.run_recipe(told, resume=True)
    resumed = secateur.run_recipe(told, resume=True)
    assert (out / "model.safetensors").read_bytes() == expected
    assert not run_folder(out).exists()
    assert [next(iter(stage.stage)) for stage in resumed.stages] == ["prune", "finetune", "distill"]
    assert resumed.stages[0].groups[0].left == 22


def test_what_was_done_before_a_stage_failed_is_kept(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wild = {**SHORT, "rate": 1e9}
    with pytest.raises(TrainingError, match="Of the run, 2 of its stages are finished and kept: mend what comes after"):
        secateur.run_recipe(recipe(folder, HALF, {"finetune": SHORT}, {"finetune": wild}, output=str(out)))
    assert not out.exists()
    mended = recipe(folder, HALF, {"finetune": SHORT}, {"distill": GENTLE}, output=str(out))
    resumed = secateur.run_recipe(mended, resume=True)
    whole = secateur.run_recipe(mended.model_copy(update={"output": str(tmp_path / "whole")}))
    assert [next(iter(stage.stage)) for stage in resumed.stages] == ["prune", "finetune", "distill"]
    one, other = (secateur.load(str(path)).model for path in (out, tmp_path / "whole"))
    ours, theirs = weights(one), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [stage.seconds for stage in resumed.stages[:2]] != [stage.seconds for stage in whole.stages[:2]]


def test_a_begun_stage_that_was_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(TrainingError):
        secateur.run_recipe(recipe(folder, HALF, {"finetune": {**SHORT, "rate": 1e9}}, output=str(out)))
    other = {"prune": {"sparsity": 0.6, "score": "l1"}}
    with pytest.raises(ResumeError, match=r"stages.0.prune.sparsity was 0.5 and is 0.6"):
        secateur.run_recipe(recipe(folder, other, {"finetune": SHORT}, output=str(out)), resume=True)


# Distillation


def test_distillation_comes_nearer_to_the_teacher(folder: Path, text: str) -> None:
    dense = load(saved("llama", folder))
    some = windows(dense, text, 100).part(60, 100)
    pruned = run(folder, HALF).network
    others = ({"top_k": 16}, {"hidden": 1.0, "attention": 1.0, "labels": 0.1}, {"compute": "bfloat16"})
    for settings in (GENTLE, *({**GENTLE, **other} for other in others)):
        network = run(folder, HALF, {"distill": settings}).network
        assert distance(network, dense, some) < 0.8 * distance(pruned, dense, some)
        assert type(network.model).__name__ == "LlamaForCausalLM"
        assert network.model.config._attn_implementation == pruned.model.config._attn_implementation
        assert set(network.model.state_dict()) == set(pruned.model.state_dict())


def test_layers_are_matched_within_their_half_and_labels_may_be_missing() -> None:
    def layers(*counts: int) -> list[tuple[torch.Tensor, ...]]:
        return [tuple(torch.tensor([half, place]) for place in range(count)) for half, count in enumerate(counts)]

    pairs = [(mine.tolist(), other.tolist()) for mine, other in _matched(layers(4, 2), layers(2, 6))]
    assert [mine[0] for mine, _ in pairs] == [other[0] for _, other in pairs]
    assert [other[1] for _, other in pairs] == [0, 0, 1, 1, 2, 5]
    assert float(data_loss(torch.randn(2, 3, 5), torch.full((2, 3), IGNORED))) == 0
    labels = torch.tensor([[1, IGNORED]])
    batch = {"labels": labels, "attention_mask": torch.ones(1, 7), "decoder_input_ids": labels}
    assert _counting(batch).tolist() == [[True, False]]


def test_a_narrower_student_learns_hidden_states_by_projections(folder: Path) -> None:
    narrow = {"prune": {"unit": "channel", "sparsity": 0.25}}
    settings = {**GENTLE, "logits": 0.0, "hidden": 1.0}
    result = run(folder, narrow, {"distill": settings})
    training = result.stages[1].training
    assert training is not None
    assert training.after < training.before
    assert not any("projection" in name for name, _ in result.model.named_parameters())


def test_all_of_the_teachers_logits_on_the_disk_give_the_exact_divergence(
    folder: Path, text: str, tmp_path: Path
) -> None:
    teacher, student = load(saved("llama", folder)), half("llama", folder)
    examples = TextExamples(teacher, windows(teacher, text, 6))
    kept = Kept(tmp_path, 2.0)
    kept.fill(teacher.model, lambda places: {"input_ids": examples.batch(places)["input_ids"]}, 6, 4, 96, lambda: None)
    batch = examples.batch([3, 1])
    with torch.no_grad():
        ours, theirs = student.model(batch["input_ids"]).logits, teacher.model(batch["input_ids"]).logits
    exact = divergence(ours, theirs, 2.0)
    for one in (kept, Kept(tmp_path, 2.0)):  # the second reads what the first wrote
        assert one.full
        torch.testing.assert_close(one.divergence(ours, batch["places"]), exact, atol=0.03, rtol=0.02)


def test_a_few_of_the_teachers_logits_give_a_lower_bound(folder: Path, text: str, tmp_path: Path) -> None:
    teacher, student = load(saved("llama", folder)), half("llama", folder)
    examples = TextExamples(teacher, windows(teacher, text, 4))
    kept = Kept(tmp_path, 1.0)
    kept.fill(teacher.model, lambda places: {"input_ids": examples.batch(places)["input_ids"]}, 4, 4, 8, lambda: None)
    batch = examples.batch(range(4))
    with torch.no_grad():
        ours, theirs = student.model(batch["input_ids"]).logits, teacher.model(batch["input_ids"]).logits
    bound = kept.divergence(ours, batch["places"])
    assert bool((bound <= divergence(ours, theirs, 1.0) + 1e-2).all())
    assert bool((bound > -1e-3).all())


def test_masks_are_drawn_once_where_the_teachers_logits_are_kept(folder: Path, text: str) -> None:
    network = load(saved("bert", folder))
    fixed = TextExamples(network, windows(network, text, 6), fixed=True)
    one, two = fixed.batch([2, 5]), fixed.batch([5, 0])
    assert torch.equal(one["input_ids"][1], two["input_ids"][0])
    assert torch.equal(one["labels"][1], two["labels"][0])
    drawn = TextExamples(network, windows(network, text, 6))
    first, second = (drawn.batch(range(6), [epoch] * 6)["input_ids"] for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_padding_and_what_is_given_do_not_count(folder: Path, text: str) -> None:
    """A student that differs at places without a label only is at no distance."""
    network = load(saved("llama", folder))
    batch = TextExamples(network, windows(network, text, 2)).batch([0, 1])
    loss = Distillation(Distill(), network.model, network.model, None, batch)
    assert float(loss(network.model, batch)) == pytest.approx(0, abs=1e-6)
    assert int((batch["labels"] != -100).sum()) == 2 * 15


# LoRA


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
@pytest.mark.parametrize("pruned", [True, False])
def test_a_merged_update_gives_what_was_trained(family: str, pruned: bool, folder: Path, text: str) -> None:
    network = half(family, folder) if pruned else load(saved(family, folder))
    zeros, names = zero_places(network), set(network.model.state_dict())
    batch = TextExamples(network, windows(network, text, 3)).batch(range(3))
    with trainable(network, zeros_of(network)), torch.no_grad():
        adapters = Adapters(network, Lora(rank=4), 0)
        for name, parameter in network.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        network.model.eval()
        before = DataLoss()(network.model, batch)
        adapters.merge()
        network.model.eval()
        after = DataLoss()(network.model, batch)
    assert float(after) == pytest.approx(float(before), rel=1e-5)
    assert set(network.model.state_dict()) == names
    if pruned:
        assert all(torch.equal(zeros[name], found) for name, found in zero_places(network).items())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_inputs_of_a_masked_update_are_dropped_and_zeros_stay(family: str, folder: Path, text: str) -> None:
    network = half(family, folder)
    zeros = zero_places(network)
    layer = network.layers()[0]
    x = torch.randn(64, layer.shape[1], generator=torch.Generator().manual_seed(0))
    with trainable(network, zeros_of(network)), torch.no_grad():
        adapters = Adapters(network, Lora(rank=4, dropout=0.5), 0)
        adapted = network.model.get_submodule(layer.name)
        plain = adapted.base_layer(x)
        adapted.lora_B["default"].weight.normal_(std=0.1)
        expected = network.model.eval().get_submodule(layer.name)(x) - plain
        adapted.train()
        dropped = torch.stack([adapted(x) - plain for _ in range(400)])
        adapters.merge()
    assert not torch.equal(dropped[0], dropped[1])
    assert float((dropped.mean(0) - expected).norm() / expected.norm()) < 0.2
    assert all(torch.equal(zeros[name], found) for name, found in zero_places(network).items())


def test_lora_after_units_were_cut_keeps_their_widths(folder: Path) -> None:
    cut = {"prune": {"unit": "neuron,head", "params": 0.8}}
    smaller = run(folder, cut).network
    result = run(folder, cut, HALF, {"lora": {**SHORT, "rank": 4}})
    training = result.stages[2].training
    assert training is not None
    assert training.after < training.before
    assert {n: one.shape for n, one in result.model.named_parameters()} == {
        name: one.shape for name, one in smaller.model.named_parameters()
    }
    assert result.network.layers()[0].zeros() == result.stages[1].layers[0].zeros


def test_what_lora_can_not_do_is_named(folder: Path) -> None:
    with pytest.raises(UsageError, match="bare parameter"):
        run(folder, {"lora": SHORT}, family="xlnet")
    with pytest.raises(UsageError, match="matches no layer"):
        run(folder, {"lora": {**SHORT, "include": ["*nothing"]}})


# Block reconstruction


@pytest.mark.parametrize("prune", [{"sparsity": 0.6, "score": "l1"}, {"unit": "neuron", "sparsity": 0.5}])
def test_reconstruction_brings_blocks_nearer_to_the_dense_ones(prune: dict[str, Any], folder: Path) -> None:
    pruned = run(folder, {"prune": prune}).network
    result = run(folder, {"prune": prune}, {"reconstruct": {"passes": 3}})
    assert len(result.stages[1].blocks) == 2
    assert all(block.error < block.error_before for block in result.stages[1].blocks)
    before, after = zero_places(pruned), zero_places(result.network)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_reconstruction_after_layers_or_channels_went_is_an_error(folder: Path) -> None:
    with pytest.raises(UsageError, match="1 of 2 blocks are left"):
        run(folder, {"prune": {"unit": "layer", "remove": 1}}, {"reconstruct": None})
    with pytest.raises(UsageError, match="width was cut"):
        run(folder, {"prune": {"unit": "channel", "sparsity": 0.25}}, {"reconstruct": None})


# Rounds


def test_rounds_come_nearer_to_the_target_and_end_in_it(folder: Path) -> None:
    rounds = {
        "repeat": 3,
        "stages": [{"prune": {"sparsity": 0.875, "score": "l1"}}, {"finetune": {**SHORT, "steps": 3}}],
    }
    result = run(folder, rounds)
    assert [next(iter(stage.stage)) for stage in result.stages] == ["prune", "finetune"] * 3
    assert [round(stage.sparsity, 3) for stage in result.stages[::2]] == [0.5, 0.75, 0.875]


def test_rounds_start_from_what_is_there(folder: Path) -> None:
    rounds = {"repeat": 2, "stages": [{"prune": {"sparsity": 0.875, "score": "l1"}}]}
    assert [round(stage.sparsity, 3) for stage in run(folder, HALF, rounds).stages] == [0.5, 0.75, 0.875]
    with pytest.raises(NothingPrunedError, match="at the target already"):
        run(folder, HALF, {"repeat": 2, "stages": [{"prune": {"sparsity": 0.4, "score": "l1"}}]})


def test_rounds_remove_units_towards_a_budget(folder: Path) -> None:
    rounds = {"repeat": 2, "stages": [{"prune": {"unit": "neuron", "params": 0.81}}]}
    budgets = [stage.budget for stage in run(folder, rounds).stages]
    shares = [budget["after"]["parameters"] / budget["first"]["parameters"] for budget in budgets if budget]
    assert 0.88 < shares[0] <= 0.9
    assert 0.79 < shares[1] <= 0.81
    removed = run(folder, {"repeat": 2, "stages": [{"prune": {"unit": "neuron", "remove": 5, "score": "l2"}}]})
    assert [stage.groups[0].left for stage in removed.stages] == [42, 39]


def test_rewinding_brings_back_the_values_of_the_beginning(folder: Path) -> None:
    still = {"finetune": {**SHORT, "steps": 1, "rate": 1e-12}}
    rounds = {"repeat": 2, "rewind": True, "stages": [{"prune": {"sparsity": 0.75}}, still]}
    network = run(folder, rounds).network
    dense = {layer.name: layer.matrix() for layer in load(saved("llama", folder)).layers()}
    for layer in network.layers():
        W = layer.matrix()
        torch.testing.assert_close(W, torch.where(W == 0, 0.0, dense[layer.name]), atol=1e-6, rtol=0)
        assert layer.zeros() == round(0.75 * layer.weights)


# Data, and what can't be


def test_training_takes_what_calibration_left(folder: Path, text: str) -> None:
    result = run(folder, HALF, {"finetune": {**SHORT, "length": 32}})
    training = result.stages[1].training
    assert training is not None
    assert training.trained + training.judged == min(len(TEXT) // 32, 10 * SHORT["batch"] + SHORT["held_out"])
    everything = run(folder, HALF, {"finetune": {**SHORT, "steps": 2, "length": 64, "samples": 4000}})
    assert everything.stages[1].training is not None


def test_the_model_writes_its_text_where_that_is_calibrated_on(folder: Path) -> None:
    settings = {**SHORT, "samples": 12, "length": 16}
    calibration = {"data": "self", "samples": 4, "length": 16}
    result = run(folder, HALF, {"distill": settings}, calibration=calibration)
    training = result.stages[1].training
    assert training is not None
    assert (training.data, training.trained + training.judged) == ("self", 12)


@pytest.mark.parametrize(
    ("stage", "error", "words"),
    [
        ({"finetune": {**SHORT, "data": "nowhere.txt"}}, CalibrationError, "nowhere.txt"),
        ({"finetune": {**SHORT, "report_to": ["nothing"]}}, UsageError, "unknown logger 'nothing'"),
        ({"finetune": {**SHORT, "length": 100_000}}, UsageError, "positions"),
        ({"finetune": {**SHORT, "batch": 5, "accumulate": 2}}, UsageError, "can't be shared out"),
        ({"distill": {**SHORT, "logits": 0}}, UsageError, "has to weigh"),
        ({"distill": {**SHORT, "teacher": "nowhere"}}, ModelError, "no model at 'nowhere'"),
        ({"distill": {**SHORT, "top_k": 1000}}, UsageError, "top_k=1000 is more than the 96 logits"),
        ({"lora": {**SHORT, "include": ["*nothing"]}}, UsageError, "matches no layer"),
    ],
)
def test_bad_settings_are_named_before_anything_is_done(
    stage: dict[str, Any], error: type[Exception], words: str, folder: Path
) -> None:
    with pytest.raises(error, match=words):
        run(folder, HALF, stage)


def test_data_of_too_few_windows_is_an_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(TEXT[:80])
    calibration = {"data": str(tmp_path / "short.txt"), "samples": 4, "length": 16}
    with pytest.raises(CalibrationError, match="training needs two more"):
        run(folder, {"prune": {"sparsity": 0.5}}, {"finetune": SHORT}, calibration=calibration)


def test_a_teacher_with_another_vocabulary_is_an_error(folder: Path, tmp_path: Path) -> None:
    other = load(saved("gpt2", folder)).model
    other.resize_token_embeddings(100)
    other.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"another vocabulary \(100 tokens\)"):
        run(folder, HALF, {"distill": {**SHORT, "teacher": str(tmp_path)}})
    with pytest.raises(UsageError, match="vocabulary"):
        run(folder, {"prune": {"unit": "token", "remove": 4}}, {"distill": SHORT})


def test_another_teacher_of_the_same_vocabulary_teaches(folder: Path) -> None:
    result = run(folder, HALF, {"distill": {**GENTLE, "teacher": saved("gpt2", folder)}})
    training = result.stages[1].training
    assert training is not None
    assert training.after < training.before


def test_a_model_without_a_head_has_nothing_to_train_on_text(folder: Path, tmp_path: Path) -> None:
    load(saved("bert", folder)).model.bert.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="no head that predicts tokens"):
        run(folder, {"finetune": SHORT}, model=str(tmp_path))


def test_a_streamed_model_is_not_trained(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--no-stream"):
        run(folder, HALF, {"finetune": SHORT}, stream=True, output=str(tmp_path / "out"))


class Breaks:
    """The data's loss, NaN from the `calls`th training step on."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        if torch.is_grad_enabled():
            self.left -= 1
        return DataLoss()(model, batch) * (float("nan") if self.left <= 0 else 1)


def test_a_loss_that_turns_nan_keeps_the_last_good_state(folder: Path, text: str, tmp_path: Path) -> None:
    network = half("llama", folder)
    done = trained(network, text, Finetune(**SHORT), tmp_path / "late", Breaks(8))
    assert done.best == 5
    assert "step 8" in done.notes[0]
    assert "after step 5" in done.notes[0]
    assert text_loss(network, windows(network, text).part(42, 48)) == pytest.approx(done.after, rel=1e-5)
    with pytest.raises(TrainingError, match="at step 3"):
        trained(half("llama", folder), text, Finetune(**SHORT), tmp_path / "soon", Breaks(3))
    with pytest.raises(TrainingError, match="as it is"):
        trained(half("llama", folder), text, Finetune(**SHORT), tmp_path / "at once", Breaks(0))


def test_weights_that_do_not_fit_the_dtype_are_an_error(folder: Path) -> None:
    network = half("llama", folder)
    network.model.to(torch.float16)
    with pytest.raises(ModelError, match="don't fit"), trainable(network, zeros_of(network)):
        next(network.model.parameters()).data.fill_(1e6)


def test_places_say_which_windows_they_are(folder: Path, text: str) -> None:
    network = load(saved("llama", folder))
    some = windows(network, text, 5)
    places: Sequence[int] = [4, 0]
    batch = TextExamples(network, some).batch(places)
    assert torch.equal(batch["input_ids"], some.ids[[4, 0]])
    assert torch.equal(batch["labels"][:, :-1], some.ids[[4, 0]][:, 1:])


def test_what_loggers_wrote_comes_into_the_output(folder: Path, tmp_path: Path) -> None:
    network = load(saved("llama", folder))
    journal = StageJournal(tmp_path, {}, ALONE)
    (journal.training() / "runs/today").mkdir(parents=True)
    (journal.training() / "runs/today/events").write_text("1")
    journal.finish_stage(StageReport({"finetune": {}}, (), {}), network)
    assert (journal.logs / "stage-1/today/events").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.json", "logs", "model-1"]
