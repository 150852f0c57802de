"""The pruner beside what training loops use: accumulation, mixed precision, torch.compile, checkpointing, processes."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from in_processes import trained
from loops import adam, data, loss_of, network, train
from torch import nn

import secateur
from secateur.errors import ScoreError
from secateur.schedules import Cubic
from secateur.training.regularization import L1
from tiny import tiny_model

GRADUAL = Cubic(0.75, begin=1, end=12, every=3)
IDS = torch.randint(5, 96, (2, 12), generator=torch.Generator().manual_seed(3))


def test_accumulated_gradients_count_as_one_step() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = secateur.TrainingPruner(model, GRADUAL, score="taylor", optimizer=optimizer)
    x, y = data()
    for _ in range(12):
        for half in (slice(0, 8), slice(8, 16)):
            (nn.functional.cross_entropy(model(x[half]), y[half]) / 2).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert pruner.steps == 12
    assert pruner.mask().zeros == sum(round(0.75 * layer.weights) for layer in pruner.mask().layers.values())


def test_mixed_precision_with_a_scaler() -> None:
    model = network()
    optimizer = adam(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    pruner = secateur.TrainingPruner(model, GRADUAL, score="movement", optimizer=optimizer)
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model)
        scaler.scale(loss).backward()
        scaler.step(optimizer)  # takes the scale out of the gradients, which the score then reads
        scaler.update()
        pruner.step()
        optimizer.zero_grad()
    plain = train(network(), 12, schedule=GRADUAL, score="movement").mask()
    same = [
        float((one.keep == other.keep).float().mean())
        for one, other in zip(plain.layers.values(), pruner.mask().layers.values(), strict=True)
    ]
    assert min(same) > 0.8
    assert pruner.mask().zeros == plain.zeros


@pytest.mark.parametrize("options", [{"score": "movement"}, {"unit": "filter", "score": "taylor"}], ids=str)
def test_steps_that_a_scaler_skips_aren_t_gone_by(options: dict[str, Any]) -> None:
    model = network()
    optimizer = adam(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, backoff_factor=2.0**-50)
    if "unit" in options:
        options = {**options, "example_inputs": data()[0]}
    pruner = secateur.TrainingPruner(model, Cubic(0.75, begin=4, end=14, every=5), optimizer=optimizer, **options)
    for step in range(14):
        scaler.scale(loss_of(model) * (1e6 if step < 2 else 1)).backward()  # too large at first
        scaler.step(optimizer)
        scaler.update()
        pruner.step()
        optimizer.zero_grad()
    assert scaler.get_scale() < 2.0**120
    assert pruner.sparsity == pytest.approx(0.75, abs=1e-3)


def test_gradients_that_are_never_finite_end_the_run() -> None:
    model = network()
    pruner = secateur.TrainingPruner(model, Cubic(0.75, begin=1, end=12), score="taylor")
    for one in model.parameters():
        one.grad = torch.full_like(one, torch.inf)
    for _ in range(3):
        pruner.masks.watch()
    with pytest.raises(ScoreError, match="the 4 steps up to step 1 were NaN or infinite"):
        pruner.step()


def test_accelerate_s_portions_are_one_step() -> None:
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=4, cpu=True)
    model = network()
    model, optimizer = accelerator.prepare(model, adam(model))
    pruner = secateur.TrainingPruner(model, GRADUAL, score="taylor", optimizer=optimizer, regularizer=L1(1e-3))
    for _ in range(8):
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model))
            pruner.regularize()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
    assert pruner.steps == 2
    assert pruner.sparsity == pytest.approx(GRADUAL(2), abs=1e-2)


@pytest.mark.parametrize(
    "options", [{}, {"unit": "filter", "cut": "end"}, {"unit": "filter", "cut": "during"}], ids=str
)
def test_a_compiled_model_is_pruned_underneath(options: dict[str, Any]) -> None:
    results = []
    for compiled in (False, True):
        model = network()
        optimizer = adam(model)
        run = torch.compile(model, backend="aot_eager") if compiled else model
        if options:
            options = {**options, "example_inputs": data()[0]}
        pruner = secateur.TrainingPruner(run, GRADUAL, optimizer=optimizer, **options)
        train(run, 14, optimizer=optimizer, pruner=pruner)
        assert pruner.sparsity == pytest.approx(0.75, abs=1e-3)
        results.append([one.detach() for one in pruner.finish().parameters()])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(
    "options", [{}, {"unit": "neuron", "cut": "during"}, {"unit": "head", "cut": "during"}], ids=str
)
def test_gradient_checkpointing_goes_on(options: dict[str, Any]) -> None:
    model = tiny_model("llama").requires_grad_(True).train()
    model.gradient_checkpointing_enable()
    optimizer = adam(model)
    pruner = secateur.TrainingPruner(model, Cubic(0.5, begin=1, end=4), optimizer=optimizer, **options)
    for _ in range(5):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert model.is_gradient_checkpointing
    assert pruner.sparsity == pytest.approx(0.5, abs=0.02)
    plain = copy.deepcopy(model)
    plain.gradient_checkpointing_disable()
    assert torch.allclose(plain(input_ids=IDS).logits, model(input_ids=IDS).logits, atol=1e-6)


KINDS = ["ddp", "ddp-taylor", "ddp-filter", "accelerate", "fsdp2", "fsdp2-movement"]
REFUSED = {"ddp-during": "DistributedDataParallel has laid out", "fsdp2-filter": "sharded (FSDP2)"}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes came to, by kind."""
    out = tmp_path_factory.mktemp("processes") / "found.pt"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*start, str(Path(__file__).with_name("in_processes.py")), str(out), *KINDS, *REFUSED]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = torch.load(out, weights_only=True)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_end_with_the_masks_of_one(kind: str, of_two: dict[str, Any]) -> None:
    _, _, what = kind.partition("-")
    one = trained(f"plain-{what}" if what else "plain")
    assert isinstance(one, dict)
    assert of_two[kind].keys() == one.keys()
    for name, keep in one.items():
        assert torch.equal(of_two[kind][name], keep), name


@pytest.mark.parametrize("kind", REFUSED)
def test_what_processes_forbid_is_named(kind: str, of_two: dict[str, Any]) -> None:
    assert REFUSED[kind] in of_two[kind]
