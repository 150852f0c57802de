"""Prunes while transformers' Trainer (and so TRL's) trains."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from secateur.errors import UsageError, did_you_mean
from secateur.schedules import Schedule, WhenRecovered
from secateur.training.pruner import TrainingPruner

STATE_FILE = "secateur_pruner.pt"


class PruningCallback(TrainerCallback):  # type: ignore[misc]
    """A `TrainingPruner` for the Trainer: it prunes, logs the sparsity beside the loss, is saved and resumed with it.

    Attributes:
        pruner: The pruner, from the beginning of training on.

    Example:
        >>> callback = secateur.PruningCallback(Cubic(final=0.5, begin=100, end=2000, every=50))
        >>> trainer = Trainer(model, arguments, train_dataset=data, callbacks=[callback])
        >>> trainer.train()
        >>> model = callback.finish()
    """

    pruner: TrainingPruner

    def __init__(self, schedule: Schedule | None = None, *, metric: str | None = None, **options: Any) -> None:
        """
        Args:
            schedule: As for `TrainingPruner`.
            metric: What a `WhenRecovered` schedule goes by, by its name among the Trainer's metrics; None takes
                `eval_loss`.
            **options: As for `TrainingPruner`, but `optimizer`, which is the Trainer's.

        Raises:
            UsageError: `optimizer` is given, `cut="during"`, an unknown option, or a metric that nothing goes by.
        """
        known = [name for name in inspect.signature(TrainingPruner).parameters if name not in ("model", "schedule")]
        for name in options:
            if name not in known:
                raise UsageError(f"unknown option '{name}'.{did_you_mean(name, known)}")
        if metric is not None and not isinstance(schedule, WhenRecovered):
            raise UsageError("metric is what a WhenRecovered schedule goes by; leave it out.")
        metric = metric or "eval_loss"
        if isinstance(schedule, WhenRecovered) and metric.endswith("loss") and schedule.greater_is_better:
            raise UsageError(f"of {metric} less is better: give WhenRecovered greater_is_better=False.")
        if "optimizer" in options:
            raise UsageError("the optimizer is the Trainer's own; leave optimizer= out.")
        if options.get("cut") == "during":
            raise UsageError(
                "cut='during' doesn't go with the Trainer, which couldn't load its own checkpoints into the smaller "
                "model; take cut='end', or a TrainingPruner in a loop of your own."
            )
        self._schedule, self._metric, self._options = schedule, metric, options

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Makes the pruner, or takes up that of the checkpoint that training goes on from."""
        model: nn.Module = given["model"]
        self.pruner = TrainingPruner(model, self._schedule, optimizer=given.get("optimizer"), **self._options)
        if state.global_step:
            self.pruner.load_state_dict(_read(_path(args, state).parent, f"step {state.global_step}"))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Applies the regularizer, once gradients are whole."""
        if self.pruner.regularizer is not None:
            self.pruner.regularize()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Prunes."""
        self.pruner.step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **given: Any,
    ) -> None:
        """Adds the sparsity to what is logged."""
        if logs is not None:
            logs["sparsity"] = round(self.pruner.sparsity, 6)
            if state.log_history:
                state.log_history[-1]["sparsity"] = logs["sparsity"]

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **given: Any,
    ) -> None:
        """Tells a schedule that waits for recovery."""
        if not isinstance(self.pruner.schedule, WhenRecovered):
            return
        if metrics is None or self._metric not in metrics:
            raise UsageError(
                f"WhenRecovered goes by '{self._metric}', which isn't among the Trainer's metrics: "
                f"{', '.join(metrics or {})}."
            )
        self.pruner.report(metrics[self._metric])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Writes the pruner's state into the checkpoint that was just saved."""
        path = _path(args, state)
        if state.is_world_process_zero and path.parent.is_dir():
            torch.save(self.pruner.state_dict(), path)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Takes up the pruner of the best checkpoint, where the Trainer has loaded that."""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.pruner.load_state_dict(_read(Path(state.best_model_checkpoint), "the best state"))

    def finish(self) -> nn.Module:
        """Returns the pruned model; see `TrainingPruner.finish`.

        Raises:
            UsageError: Nothing was trained yet.
        """
        if not hasattr(self, "pruner"):
            raise UsageError("nothing was trained yet: finish() follows trainer.train().")
        return self.pruner.finish()


def _path(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / STATE_FILE


def _read(checkpoint: Path, where: str) -> dict[str, Any]:
    path = checkpoint / STATE_FILE
    if not path.is_file():
        raise UsageError(
            f"training goes on from {where}, but {path} isn't there: the checkpoint was saved without "
            "this callback, or lies elsewhere. Start afresh, or copy the checkpoint into output_dir."
        )
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return found


__all__ = ["PruningCallback"]
