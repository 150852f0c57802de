"""A pruned model is trained by transformers' Trainer: zeros held, the best state kept, resumed where it was killed."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from secateur.errors import TrainingError, UsageError
from secateur.files import save_tensors, save_text
from secateur.network.quiet import quiet_transformers
from secateur.progress import Progress
from secateur.recipe import Training
from secateur.training.best import Best
from secateur.training.examples import Visits
from secateur.training.zeros import Zeros

Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
CLOCK = "clock.json"
LOGGED = ("loss", "eval_loss", "learning_rate", "grad_norm")
MOST_EPOCHS = 1000  # where steps or minutes end the stage
LOGGED_EVERY = 25  # steps at most
HELD_SHARE = 8  # one of so many examples judges, where there are few


class _Diverged(Exception):
    """The loss isn't finite."""


@dataclass(frozen=True)
class Trained:
    """What a training stage did.

    Attributes:
        trained, judged: How many examples were trained on, and how many others judged.
        steps: Steps of the optimizer.
        best: The step whose state was kept; 0 is the beginning.
        before, after: Mean loss on what wasn't trained on, before and of the state that was kept.
        log: Dicts of `step` and some of `epoch`, `loss`, `eval_loss`, `learning_rate` and `grad_norm`.
        notes: What the user should know.
    """

    trained: int
    judged: int
    steps: int
    best: int
    before: float
    after: float
    log: tuple[dict[str, float], ...]
    notes: tuple[str, ...]


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Holds zeros, keeps the best state, moves the bar, watches the clock, and says when to judge and to stop."""

    def __init__(
        self, model: nn.Module, zeros: Zeros, settings: Training, folder: Path, bar: Callable[[], None], parts: int
    ) -> None:
        self.model, self.zeros, self.settings, self.folder = model, zeros, settings, folder
        self.bar, self.parts, self.shown = bar, parts, 0
        self.best = Best(folder, latest=settings.keep == "last")
        self.start = time.monotonic()
        self.judgements = 0
        self.say: Callable[[str, float], None] = lambda where, loss: None

    @property
    def spent(self) -> float:
        """The share of the time that is over; 0 where none is set."""
        minutes = self.settings.minutes
        return 0.0 if minutes is None else (time.monotonic() - self.start) / (60 * minutes)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        known = self.folder / CLOCK
        if state.global_step and known.is_file():
            seconds, self.best.since = json.loads(known.read_text(encoding="utf-8"))
            self.start = time.monotonic() - seconds
        self.judgements = math.floor(self.spent * self.settings.judged)
        self._show(state)

    def _show(self, state: Any) -> None:
        """Moves the bar to where training stands, by steps or by the time."""
        stands = math.floor(self.parts * min(1.0, max(state.global_step / state.max_steps, self.spent)) + 1e-6)
        for _ in range(stands - self.shown):
            self.bar()
        self.shown = stands

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.zeros.hold()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
        self._show(state)
        over = self.spent >= 1 or state.global_step >= state.max_steps
        due = math.floor(self.spent * self.settings.judged)
        if over or due > self.judgements:
            self.judgements = due
            control.should_evaluate = control.should_save = control.should_log = True
        control.should_training_stop = control.should_training_stop or over
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **given: Any) -> Any:
        self.best.offer(self.model, metrics["eval_loss"], state.global_step)
        self.say(f"step {state.global_step}", metrics["eval_loss"])
        patience = self.settings.patience
        if patience is not None and self.best.since >= patience:
            control.should_training_stop = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        save_text(json.dumps([time.monotonic() - self.start, self.best.since]), self.folder / CLOCK)


class _Recovery(Trainer):  # type: ignore[misc]
    """The Trainer with a loss, a learning rate and files of weights of our own."""

    def __init__(self, loss: Loss, settings: Training, watch: _Watch, **given: Any) -> None:
        super().__init__(**given)
        self.model_accepts_loss_kwargs = False  # ours is a mean, so portions of a step are averaged
        self._loss, self._settings, self._watch = loss, settings, watch

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **given: Any) -> Tensor:
        return _finite(self._loss(model, inputs))

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **given: Any) -> tuple[Tensor, None, None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return _finite(self._loss(model, inputs).detach()), None, None

    def get_train_dataloader(self) -> Any:
        """Returns the batches in the order of the data set, which has one of its own."""
        loader = DataLoader(
            self.train_dataset, batch_size=self.args.per_device_train_batch_size, collate_fn=self.data_collator
        )
        return self.accelerator.prepare(loader)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes what is trained by the names that it has in the model, whatever files of its kind look like."""
        assert output_dir is not None
        tensors = {name: one.detach().cpu() for name, one in self.model.named_parameters() if one.requires_grad}
        save_tensors(tensors, Path(output_dir) / "model.safetensors", {"format": "pt"})

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        settings = self._settings

        def rate(step: int) -> float:
            way = min(1.0, max((step + 1) / (num_training_steps + 1), self._watch.spent))
            if way < settings.warmup:
                return way / settings.warmup
            rest = (way - settings.warmup) / max(1e-9, 1 - settings.warmup)
            return {"constant": 1.0, "linear": 1 - rest, "cosine": 0.5 * (1 + math.cos(math.pi * rest))}[
                settings.schedule
            ]

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, rate)
        return self.lr_scheduler


def train(
    model: Any,
    loss: Loss,
    batch_of: Callable[[Sequence[int], Sequence[int]], dict[str, Tensor]],
    examples: int,
    zeros: Zeros,
    settings: Training,
    *,
    folder: Path,
    seed: int,
    device: str,
    bf16: bool,
    label: str,
    progress: Progress,
) -> Trained:
    """Trains a model in place.

    Args:
        model: The model; what of it requires gradients is trained.
        loss: A function of the model and a batch.
        batch_of: Gives a batch for the places of examples, and the epochs in which they are visited.
        examples: How many there are; the last ones judge.
        zeros: Weights that stay zero.
        settings: The stage's settings.
        folder: For checkpoints; what an earlier run left there is gone on from.
        seed: Of the order of examples, and of what draws.
        device: `cpu`, or any other for what the Trainer chooses.
        bf16: Whether products are bf16.
        label: What the progress bar says.
        progress: Shows progress.

    Returns:
        What was done.

    Raises:
        UsageError: There are too few examples.
        TrainingError: The loss was NaN or infinite before any state was better than the first.
    """
    if examples < 2:
        raise UsageError(
            f"{label}: the data has {examples} {'example' if examples == 1 else 'examples'}, and at least two are "
            "needed: one trains, one judges. Give more data, or a smaller length."
        )
    held = min(settings.held_out, max(1, examples // HELD_SHARE))
    split = examples - held
    steps = _steps(settings, math.ceil(split / settings.batch))
    folder.mkdir(parents=True, exist_ok=True)
    parts = steps if settings.minutes is None else 100
    watch = _Watch(model, zeros, settings, folder, progress.bar(label, parts), parts)

    def collated(visits: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        return batch_of([place for place, _ in visits], [epoch for _, epoch in visits])

    notes: list[str] = []
    if held < settings.held_out and "held_out" in settings.model_fields_set:
        notes.append(
            f"{held} of the {examples} examples judge, not {settings.held_out} (held_out): at most one in {HELD_SHARE}."
        )
    if settings.batch > split:
        notes.append(
            f"A batch of {settings.batch} is more than the {split} examples that there are: each step repeats some."
        )
    with quiet_transformers(), _own_randomness():
        trainer = _Recovery(
            loss,
            settings,
            watch,
            model=model,
            args=_arguments(settings, steps, folder, seed, device, bf16),
            train_dataset=Visits(range(split), steps * settings.batch, seed),
            eval_dataset=Visits(range(split, examples), held, None),
            data_collator=collated,
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        try:
            before = float(trainer.evaluate()["eval_loss"])
        except _Diverged as error:
            raise TrainingError(f"{label}: the loss of the model as it is is NaN or infinite.") from error
        watch.say = lambda where, loss: progress.say(
            f"{label}, {where}: loss {loss:.4f} on what isn't trained on (at the beginning {before:.4f}), "
            f"{zeros.number:,} weights held at zero"
        )
        try:
            trainer.train(resume_from_checkpoint=_last(folder))
        except _Diverged as error:
            step = trainer.state.global_step + 1
            if watch.best.step == 0:
                raise TrainingError(
                    f"{label}: the loss is NaN or infinite at step {step}, before any state was worth keeping; "
                    f"lower the rate ({settings.rate:g})."
                ) from error
            notes.append(
                f"The loss was NaN or infinite at step {step}; the state after step {watch.best.step} was kept."
            )
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        vars(model).pop("forward", None)  # what accelerate put there for bf16 products
    watch.best.restore(model)
    zeros.hold()
    if watch.best.step == 0:
        notes.append("Training made nothing better, so the model is as it was; a lower rate or more data may help.")
    log = (
        {"step": 0, "eval_loss": before},
        *(_logged(one, settings.batch / split) for one in trainer.state.log_history),
    )
    state, best = trainer.state, watch.best
    return Trained(split, held, state.global_step, best.step, before, best.loss, log, tuple(notes))


def _steps(settings: Training, per_epoch: int) -> int:
    """Returns how many steps there are at most."""
    limited = settings.steps is not None or settings.minutes is not None
    epochs = settings.epochs if settings.epochs is not None else MOST_EPOCHS if limited else 1
    steps = max(1, round(epochs * per_epoch))
    return min(steps, settings.steps or steps)


def _arguments(settings: Training, steps: int, folder: Path, seed: int, device: str, bf16: bool) -> TrainingArguments:
    portion = settings.batch // settings.accumulate
    every = max(1, steps // settings.judged)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=portion,
        per_device_eval_batch_size=portion,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.rate,
        weight_decay=settings.decay,
        bf16=bf16,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=every,
        save_steps=every,
        logging_steps=min(LOGGED_EVERY, max(1, every // 4)),
        save_total_limit=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=list(settings.report_to) or "none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=device == "cpu",
        seed=seed,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several would be fed unasked, each with a part of a batch
    return arguments


def _finite(loss: Tensor) -> Tensor:
    if not bool(torch.isfinite(loss)):
        raise _Diverged
    return loss


def _last(folder: Path) -> str | None:
    """Returns the last whole checkpoint in a folder; what ends it is its state."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if path.stat().st_size]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def _logged(entry: Mapping[str, Any], epochs: float) -> dict[str, float]:
    """Returns what is kept of a log's entry; `epochs` are those that a step makes."""
    known = {name: float(entry[name]) for name in LOGGED if name in entry}
    return {"step": entry["step"], "epoch": round(entry["step"] * epochs, 4), **known}


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Gives back the sources of random numbers that the Trainer seeds anew."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
