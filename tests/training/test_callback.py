"""The pruner in transformers' Trainer: it prunes, logs, is saved and resumed with the Trainer's checkpoints."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.data import Dataset

import secateur
from secateur.errors import UsageError
from secateur.schedules import Cubic, OneShot, WhenRecovered
from tiny import tiny_model

GRADUAL = Cubic(0.5, begin=1, end=8, every=2)


class Texts(Dataset[dict[str, torch.Tensor]]):
    """Random token ids, the same each time."""

    def __init__(self) -> None:
        self.ids = torch.randint(5, 96, (40, 12), generator=torch.Generator().manual_seed(3))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def trainer(out: Path, callback: transformers.TrainerCallback, **arguments: Any) -> transformers.Trainer:
    settings = {"max_steps": 10, "per_device_train_batch_size": 4, "logging_steps": 2, "report_to": [], "use_cpu": True}
    model = tiny_model("llama").requires_grad_(True).train()
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(output_dir=str(out), disable_tqdm=True, seed=1, **{**settings, **arguments}),
        train_dataset=Texts(),
        eval_dataset=Texts(),
        callbacks=[callback],
    )


@pytest.mark.parametrize("options", [{"score": "movement"}, {"unit": "neuron", "score": "taylor"}], ids=str)
def test_the_trainer_prunes_logs_and_resumes(options: dict[str, Any], tmp_path: Path) -> None:
    whole = secateur.PruningCallback(GRADUAL, **options)
    work = trainer(tmp_path / "whole", whole, save_steps=4)
    work.train()
    assert whole.pruner.steps == 10
    logged = [one["sparsity"] for one in work.state.log_history if "loss" in one]
    assert logged == sorted(logged)
    assert logged[-1] == pytest.approx(0.5, abs=1e-3)
    assert all("sparsity" in one for one in work.state.log_history if "loss" in one)
    expected = [one.detach().clone() for one in whole.finish().parameters()]

    (tmp_path / "half").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "half" / "checkpoint-4")
    rest = secateur.PruningCallback(GRADUAL, **options)
    trainer(tmp_path / "half", rest).train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-4"))
    for one, other in zip(rest.finish().parameters(), expected, strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_without_the_pruner_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, secateur.PruningCallback(GRADUAL), save_steps=4).train()
    (tmp_path / "checkpoint-4" / "secateur_pruner.pt").unlink()
    with pytest.raises(UsageError, match="saved without this callback"):
        trainer(tmp_path, secateur.PruningCallback(GRADUAL)).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-4")
        )


def test_pruning_waits_for_recovery(tmp_path: Path) -> None:
    schedule = WhenRecovered(0.4, amount=0.2, margin=10.0, greater_is_better=False)
    callback = secateur.PruningCallback(schedule)
    trainer(tmp_path, callback, eval_strategy="steps", eval_steps=3, save_strategy="no").train()
    assert callback.pruner.sparsity == pytest.approx(0.4, abs=1e-3)
    other = secateur.PruningCallback(WhenRecovered(0.4, amount=0.2, margin=1.0), metric="eval_accuracy")
    with pytest.raises(UsageError, match="'eval_accuracy', which isn't among"):
        trainer(tmp_path, other, eval_strategy="steps", eval_steps=3, save_strategy="no").train()


def test_evaluations_beside_training_are_let_be(tmp_path: Path) -> None:
    schedule = WhenRecovered(0.4, amount=0.2, margin=10.0, greater_is_better=False)
    callback = secateur.PruningCallback(schedule, metric="eval_b_loss")
    work = trainer(tmp_path, callback, eval_strategy="steps", eval_steps=3, save_strategy="no")
    work.evaluate()  # before there is a pruner
    work.eval_dataset = {"a": Texts(), "b": Texts()}
    work.train()
    work.evaluate(Texts(), metric_key_prefix="test")
    assert callback.pruner.sparsity == pytest.approx(0.4, abs=1e-3)


class Logger(transformers.TrainerCallback):
    """What a logger of report_to gets."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []

    def on_log(self, *arguments: Any, logs: dict[str, Any], **given: Any) -> None:
        self.got.append(dict(logs))


def test_loggers_get_the_sparsity_if_the_callback_comes_first(tmp_path: Path) -> None:
    logger = Logger()
    work = trainer(tmp_path, logger, save_strategy="no")
    secateur.PruningCallback(GRADUAL).add_to(work)
    work.train()
    assert [one["sparsity"] for one in logger.got if "loss" in one][-1] == pytest.approx(0.5, abs=1e-3)


def test_a_callback_that_is_given_twice_prunes_once_or_says_so(tmp_path: Path) -> None:
    callback = secateur.PruningCallback(GRADUAL)
    work = trainer(tmp_path, callback, save_strategy="no")
    callback.add_to(work)
    assert [one for one in work.callback_handler.callbacks if one is callback] == [callback]
    assert work.callback_handler.callbacks[0] is callback
    work.train()
    assert callback.pruner.steps == 10
    work.callback_handler.callbacks.append(callback)
    with pytest.raises(UsageError, match="callbacks twice"):
        work.train()


def test_a_resumed_run_doesn_t_prune_trained_weights_by_a_schedule_from_step_0(tmp_path: Path) -> None:
    options = {"threshold": 0.02}
    whole = secateur.PruningCallback(OneShot(0.5), **options)
    trainer(tmp_path / "out", whole, save_steps=4).train()
    expected = [one.detach().clone() for one in whole.finish().parameters()]
    rest = secateur.PruningCallback(OneShot(0.5), **options)
    trainer(tmp_path / "out", rest).train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-4"))
    for one, other in zip(rest.finish().parameters(), expected, strict=True):
        assert torch.equal(one, other)


def test_the_best_checkpoint_brings_its_own_mask(tmp_path: Path) -> None:
    callback = secateur.PruningCallback(Cubic(0.5, begin=1, end=8, every=2))
    best = {"load_best_model_at_end": True, "greater_is_better": True}
    given = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 4, "save_steps": 4}
    work = trainer(tmp_path, callback, **best, **given, metric_for_best_model="eval_loss")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        work.train()  # of the losses the largest counts as the best
    at = int(str(work.state.best_model_checkpoint).rpartition("-")[2])
    assert callback.pruner.steps == at
    zeros = sum(int((one == 0).sum()) for one in work.model.parameters() if one.ndim == 2)
    assert zeros >= callback.pruner.masks.pruned() > 0
    assert (at < 8) == any("went back to its best checkpoint" in str(one.message) for one in seen)
    if at < 8:
        with pytest.warns(UserWarning, match="before the schedule's last pruning"):
            callback.finish()


def test_what_the_trainer_can_t_do_is_named() -> None:
    with pytest.raises(UsageError, match=r"unknown option 'unti'. Did you mean 'unit'"):
        secateur.PruningCallback(GRADUAL, unti="neuron")
    with pytest.raises(UsageError, match="of eval_loss less is better"):
        secateur.PruningCallback(WhenRecovered(0.4, amount=0.2, margin=0.1))
    with pytest.raises(UsageError, match="leave it out"):
        secateur.PruningCallback(GRADUAL, metric="eval_accuracy")
    with pytest.raises(UsageError, match="nothing was trained yet"):
        secateur.PruningCallback(GRADUAL).finish()
    with pytest.raises(UsageError, match="couldn't load its own checkpoints"):
        secateur.PruningCallback(GRADUAL, unit="neuron", cut="during")
    with pytest.raises(UsageError, match="Trainer's own"):
        secateur.PruningCallback(GRADUAL, optimizer=None)
