"""Prunes while transformers' Trainer (and so TRL's) trains."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from secateur.errors import UsageError, did_you_mean
from secateur.schedules import Schedule, WhenRecovered
from secateur.training.pruner import TrainingPruner
from secateur.training.sharded import is_sharded

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
        self._told, self._others = False, set[str]()

    def add_to(self, trainer: Any) -> None:
        """Joins a trainer before all of its other callbacks, so that its loggers (`report_to`) get the sparsity, too.

        Args:
            trainer: A Trainer.
        """
        others = [one for one in trainer.callback_handler.callbacks if one is not self]
        trainer.callback_handler.callbacks = [self, *others]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Makes the pruner, or takes up that of the checkpoint that training goes on from."""
        model: nn.Module = given["model"]
        before = None
        if state.global_step:
            before = _read(_checkpoint(args, state) / _file(model), f"step {state.global_step}")
        optimizer = given.get("optimizer")
        self.pruner = TrainingPruner(model, self._schedule, optimizer=optimizer, state=before, **self._options)
        self._told, self._others = False, set()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Applies the regularizer, once gradients are whole."""
        if self.pruner.regularizer is not None:
            self.pruner.regularize()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Prunes.

        Raises:
            UsageError: It did so in this step already.
        """
        if self.pruner.steps > state.global_step:
            raise UsageError(
                "this callback is among the Trainer's callbacks twice: give it by callbacks= or add_to(), not both."
            )
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
        if logs is not None and self._begun:
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
        if not self._begun or not isinstance(self.pruner.schedule, WhenRecovered):
            return
        if metrics is None or self._metric not in metrics:  # of another data set, perhaps
            self._others.update(metrics or {})
            return
        self.pruner.report(metrics[self._metric])
        self._told = True

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Raises UsageError if evaluation, which is over by now, didn't give the metric that the schedule goes by."""
        if self._others and not self._told:
            raise UsageError(
                f"WhenRecovered goes by '{self._metric}', which isn't among the Trainer's metrics: "
                f"{', '.join(sorted(self._others))}."
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Writes the pruner's state into the checkpoint that was just saved."""
        folder, name = _checkpoint(args, state), _file(self.pruner.model)
        if (state.is_world_process_zero or name != STATE_FILE) and folder.is_dir():
            torch.save(self.pruner.state_dict(), folder / name)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Takes up the pruner of the best checkpoint, where the Trainer has loaded that."""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            best, ended = Path(state.best_model_checkpoint), self.pruner.sparsity
            self.pruner.load_state_dict(_read(best / _file(self.pruner.model), "the best state"))
            if self.pruner.sparsity < ended:
                warnings.warn(
                    f"the Trainer went back to its best checkpoint, of step {self.pruner.steps}, where "
                    f"{self.pruner.sparsity:.2%} were pruned instead of {ended:.2%}: load_best_model_at_end goes by "
                    "the metric alone, which is best before pruning.",
                    stacklevel=2,
                )

    @property
    def _begun(self) -> bool:
        return hasattr(self, "pruner")

    def finish(self) -> nn.Module:
        """Returns the pruned model; see `TrainingPruner.finish`.

        Raises:
            UsageError: Nothing was trained yet.
        """
        if not self._begun:
            raise UsageError("nothing was trained yet: finish() follows trainer.train().")
        return self.pruner.finish()


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _file(model: nn.Module) -> str:
    """Returns where in a checkpoint the pruner's state is: under FSDP2 each process has a part of its own."""
    if not any(is_sharded(parameter) for parameter in model.parameters()):
        return STATE_FILE
    path = Path(STATE_FILE)
    return f"{path.stem}-{distributed.get_rank() + 1}-of-{distributed.get_world_size()}{path.suffix}"


def _read(path: Path, where: str) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(
            f"training goes on from {where}, but {path} isn't there: the checkpoint was saved without "
            "this callback or by another number of processes, or lies elsewhere. Start afresh, or copy the checkpoint "
            "into output_dir."
        )
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return found


__all__ = ["PruningCallback"]
