"""What training wins back: SST-2 with MiniLM, SmolLM2 distilled, GPT-2 and XLNet from scratch, and what a step costs.

    python bench/recovery.py --data DATA [--only TASK [--row ROW]] [--keep FOLDER]
    python bench/recovery.py --table

sst2: MiniLM-L6 (an encoder of 22 million parameters) is fine-tuned on 12,000 rows of SST-2 for two epochs; the dense
classifier is then pruned in several ways, each trained for two epochs, all with products in bf16. Accuracy is on the
7,607 rows of dev and test. smollm2: the protocol of bench/protocol.py, then distillation for thirty minutes
on documents of C4 that calibration didn't take, with products in bf16; WikiText isn't trained on. scratch:
examples/from_scratch.py, dense and half of the blocks' weights zero in the end. overhead: what `pruner.step()` takes of
a training step of MiniLM.

Figures go to bench/results/recovery.json, and with --table the tables of docs/recovery.md are printed from them. Rows
that were measured before stay unless --again is given. What rows of a task begin with (the dense classifier) is made
anew unless --keep names a folder that has it.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import secateur as library
from protocol import HERE, call, check_texts, secateur
from rows import Row, parser_of, printed, take_tasks
from secateur.calibration.tables import Table, read_table
from secateur.schedules import Cubic

RESULTS = HERE / "results" / "recovery.json"
TASKS = ("sst2", "smollm2", "scratch", "overhead")
ROWS_TRAINED, LENGTH, BATCH, EPOCHS, RATE = 12_000, 64, 32, 2, 1e-4
AMOUNTS = (0.5, 0.7, 0.9)


def run(stages: list[dict[str, Any]], model: str, out: Path, **more: Any) -> Any:
    """Carries out a recipe by the command line, and returns its report."""
    recipe = {"model": model, "output": str(out), "overwrite": True, "stages": stages, **more}
    path = out.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return secateur("run", str(path))


class Sst2:
    """The rows on SST-2."""

    def __init__(self, data: Path, scratch: Path, keep: Path) -> None:
        self.folder, self.scratch = data / "classification/sst2", scratch
        self.train = str(self.folder / "train.tsv")
        self.judged = scratch / "judged.tsv"
        parts = [(self.folder / name).read_text(encoding="utf-8").splitlines() for name in ("dev.tsv", "test.tsv")]
        self.judged.write_text("\n".join([*parts[0], *parts[1][1:]]) + "\n", encoding="utf-8")
        self.texts = scratch / "texts.jsonl"
        sentences = [line.rsplit("\t", 1)[0] for line in Path(self.train).read_text(encoding="utf-8").splitlines()[1:]]
        self.texts.write_text("\n".join(json.dumps({"text": one}) for one in sentences[:ROWS_TRAINED]))
        self.dense = keep / "sst2-dense"

    def rows(self) -> dict[str, Callable[[], Row]]:
        """Returns what is measured, the dense model first."""
        finetune = {"finetune": self.training()}
        found: dict[str, Callable[[], Row]] = {"dense": self._train_dense}
        for amount in AMOUNTS:
            cut = {"prune": {"sparsity": amount}}
            name = f"weights {100 * amount:.0f} %"
            found[f"{name}, one-shot"] = lambda cut=cut: self._recipe([cut])
            found[f"{name}, one-shot, then fine-tuning"] = lambda cut=cut: self._recipe([cut, finetune])
            found[f"{name}, gradual fine-tuning"] = lambda amount=amount: self._gradual(amount, False)
            found[f"{name}, gradual distillation"] = lambda amount=amount: self._gradual(amount, True)
        by_movement = "weights 70 %, gradual distillation by movement"
        found[by_movement] = lambda: self._gradual(0.7, True, score="movement")
        found[f"{by_movement}, weights may return"] = lambda: self._gradual(0.7, True, score="movement", regrow=True)
        for unit in ("neuron", "head"):
            cut = {"prune": {"unit": unit, "sparsity": 0.5}}
            found[f"{unit}s 50 %, cut"] = lambda cut=cut: self._recipe([cut])
            found[f"{unit}s 50 %, then fine-tuning"] = lambda cut=cut: self._recipe([cut, finetune])
            distill = {"distill": {**self.training(), "labels": 0.5, "hidden": 0.1}}
            found[f"{unit}s 50 %, then distillation"] = lambda cut=cut, after=distill: self._recipe([cut, after])
        return found

    def training(self) -> dict[str, Any]:
        """Returns the settings of two epochs."""
        given = {"data": self.train, "samples": ROWS_TRAINED, "length": LENGTH, "batch": BATCH, "rate": RATE}
        return {**given, "epochs": EPOCHS, "compute": "bfloat16", "held_out": 256, "judged": 4, "keep": "last"}

    def _train_dense(self) -> Row:
        return self._recipe([{"finetune": self.training()}], "demo:minilm-l6", self.dense)

    def _recipe(self, stages: list[dict[str, Any]], model: str = "", out: Path | None = None) -> Row:
        if not model and not self.dense.is_dir():
            self._train_dense()
        calibration = {"data": str(self.texts), "samples": 64, "length": 128}
        evaluate = {"text": str(self.judged), "length": LENGTH, "speed": False}
        told = {"calibration": calibration, "evaluate": evaluate}
        found = run(stages, model or str(self.dense), out or self.scratch / "out", **told)
        (other,) = found["comparison"]["others"]
        trained = found["stages"][-1].get("training") or {}
        seconds = sum(found["stages"][-1]["seconds"].values()) if trained else 0.0
        return _figures(other, seconds, trained.get("steps", 0))

    def _gradual(self, amount: float, distilled: bool, score: str = "l1", regrow: bool = False) -> Row:
        if not self.dense.is_dir():
            self._train_dense()
        torch.manual_seed(0)
        out = self.scratch / "out"
        tokenizer = AutoTokenizer.from_pretrained(self.dense)
        model, teacher = (AutoModelForSequenceClassification.from_pretrained(self.dense) for _ in range(2))
        steps = EPOCHS * -(-ROWS_TRAINED // BATCH)
        schedule = Cubic(amount, begin=steps // 10, end=steps * 7 // 10, every=max(1, steps // 30))
        callback = library.PruningCallback(schedule, score=score, regrow=regrow)
        trainer = Taught(
            model=model,
            args=TrainingArguments(
                str(self.scratch / "training"),
                num_train_epochs=EPOCHS,
                per_device_train_batch_size=BATCH,
                learning_rate=RATE,
                warmup_steps=steps // 20,
                lr_scheduler_type="cosine",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                bf16=True,
                seed=0,
            ),
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=Tokenized(read_table(self.train, ROWS_TRAINED, None), tokenizer),
            callbacks=[callback],
        )
        trainer.teacher = teacher.eval() if distilled else None
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        callback.pruner.save(out, tokenizer=tokenizer, overwrite=True)
        found = secateur("evaluate", str(out), "--text", str(self.judged), "--length", str(LENGTH), "--no-speed")
        return {**_figures(found, seconds, steps), "score": score}


class Taught(Trainer):  # type: ignore[misc]
    """The Trainer, with the distance from a teacher's logits beside the labels' loss if there is a teacher."""

    teacher: nn.Module | None = None

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **given: Any) -> Tensor:
        """Returns half of each, or the labels' alone."""
        output = model(**inputs)
        if self.teacher is None:
            return output.loss
        with torch.no_grad():
            wanted = self.teacher(**inputs).logits.log_softmax(-1)
        distance = functional.kl_div(output.logits.log_softmax(-1), wanted, log_target=True, reduction="batchmean")
        return 0.5 * output.loss + 0.5 * distance


class Tokenized(Dataset[dict[str, Any]]):
    """Rows of a table as a collator takes them."""

    def __init__(self, table: Table, tokenizer: Any) -> None:
        self.table, self.tokenizer = table, tokenizer

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> dict[str, Any]:
        ids = self.tokenizer(self.table.texts[row], truncation=True, max_length=LENGTH)
        return {**ids, "labels": int(self.table.classes[row])}


def smollm2(data: Path, scratch: Path) -> dict[str, Callable[[], Row]]:
    """Half of the weights, or a fifth of the parameters by neurons, then distillation."""
    text = str(data / "text/c4_sample.jsonl")
    told = {
        "calibration": {"data": text, "samples": 32, "length": 1024},
        "evaluate": {"text": str(data / "text/wiki.test.raw"), "windows": 20, "length": 1024, "speed": False},
    }
    training = {"data": text, "length": 512, "batch": 4, "minutes": 30, "judged": 6, "compute": "bfloat16"}
    distill = {"distill": training}

    def measured(cut: dict[str, Any], *after: dict[str, Any]) -> Row:
        found = run([{"prune": cut}, *after], "demo:smollm2-135m", scratch / "out", **told)
        dense, (other,) = found["comparison"]["dense"], found["comparison"]["others"]
        trained = found["stages"][-1].get("training") or {}
        share = {"parameters": round(other["parameters"] / dense["parameters"], 4), "steps": trained.get("steps", 0)}
        return {"perplexity": round(other["perplexity"], 2), "dense": round(dense["perplexity"], 2), **share}

    structure = {"unit": "neuron", "params": 0.8, "gradient": "loss", "allocation": "global"}
    return {
        "weights 50 %": lambda: measured({"sparsity": 0.5}),
        "weights 50 %, distilled": lambda: measured({"sparsity": 0.5}, distill),
        "parameters 80 %": lambda: measured(structure),
        "parameters 80 %, distilled": lambda: measured(structure, distill),
    }


def scratch_rows(data: Path, scratch: Path) -> dict[str, Callable[[], Row]]:
    """GPT-2 and XLNet, dense and half zero."""

    def measured(kind: str, sparsity: float) -> Row:
        script = str(HERE.parent / "examples/from_scratch.py")
        text = str(data / "text/wiki.valid.raw")
        start = time.perf_counter()
        code = "import json, runpy, sys, io, contextlib; out = io.StringIO(); sys.argv = sys.argv[1:]\n"
        code += "with contextlib.redirect_stdout(out): runpy.run_path(sys.argv[0], run_name='__main__')\n"
        code += "print(json.dumps(out.getvalue()))"
        command = [sys.executable, "-c", code, script, kind, text, "1500", str(scratch / "out"), str(sparsity)]
        said = call(command)
        loss, entropy = re.findall(r"held-out loss ([\d.]+) .*: ([\d.]+)", said)[0]
        parameters, zero = re.findall(r"([\d,]+) parameters, ([\d.]+)%", said)[0]
        return {
            "loss": float(loss),
            "unigram_entropy": float(entropy),
            "parameters": int(parameters.replace(",", "")),
            "sparsity": float(zero) / 100,
            "seconds": round(time.perf_counter() - start),
        }

    return {
        f"{kind}, {what}": lambda kind=kind, sparsity=sparsity: measured(kind, sparsity)
        for kind in ("gpt2", "xlnet")
        for what, sparsity in (("dense", 0.0), ("half of it zero", 0.5))
    }


def overhead(data: Path, scratch: Path) -> dict[str, Callable[[], Row]]:
    """What pruning takes of a step, as the share of the time that all else takes."""

    def measured() -> Row:
        sst2 = Sst2(data, scratch, scratch)
        network = library.load("demo:minilm-l6")
        encoder = AutoModelForSequenceClassification.from_pretrained(network.source.path, num_labels=2)
        collate = DataCollatorWithPadding(network.tokenizer)
        table = Tokenized(read_table(sst2.train, 60 * BATCH, None), network.tokenizer)
        optimizer = torch.optim.AdamW(encoder.parameters(), RATE)
        schedule = Cubic(0.5, begin=50, end=500, every=50)
        pruner = library.TrainingPruner(encoder, schedule, optimizer=optimizer)
        batches = [collate([table[row] for row in range(at, at + BATCH)]) for at in range(0, len(table), BATCH)]
        training, pruning = [], []
        for step in range(550):
            start = time.perf_counter()
            encoder(**batches[step % len(batches)]).loss.backward()
            optimizer.step()
            between = time.perf_counter()
            pruner.step()
            end = time.perf_counter()
            optimizer.zero_grad()
            training.append(between - start)
            pruning.append(end - between)
        due = [seconds for step, seconds in enumerate(pruning, start=1) if schedule.due(step)]
        return {
            "overhead": round(sum(pruning) / sum(training), 4),
            "step_ms": round(1000 * sum(training) / len(training), 2),
            "pruning_ms": round(1000 * sum(due) / len(due), 2),
            "holding_ms": round(1000 * (sum(pruning) - sum(due)) / (len(pruning) - len(due)), 3),
            "sparsity": round(pruner.sparsity, 4),
        }

    return {"MiniLM, 50 % of the weights": measured}


def _figures(metrics: dict[str, Any], seconds: float, steps: int) -> Row:
    figures = {name: round(metrics[name], 4) for name in ("accuracy", "loss")}
    share = {"parameters": metrics["parameters"], "sparsity": round(metrics["zeros"] / metrics["weights"], 4)}
    return {**figures, **share, "seconds": round(seconds), "steps": steps}


FORMS = {"accuracy": "{:.2%}", "sparsity": "{:.1%}", "overhead": "{:.2%}", "perplexity": "{:.1f}", "dense": "{:.1f}"}


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Returns a table in markdown for each task that was measured."""
    return {task: _table(task, rows) for task in TASKS if (rows := results["rows"].get(task))}


def _table(task: str, rows: dict[str, Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    titles = " | ".join(column.replace("_", " ") for column in columns)
    lines = [f"| {task} | {titles} |", "|---|" + "---:|" * len(columns)]
    for name, row in rows.items():
        cells = (_form(column, row[column]) if column in row else "" for column in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _form(column: str, value: Any) -> str:
    if column == "parameters":  # a number, or a share of the dense model's
        return f"{value:,}" if isinstance(value, int) else f"{value:.1%}"
    return FORMS.get(column, "{}").format(value)


def main() -> None:
    """Measures and writes the results, row by row."""
    parser = parser_of(__doc__, TASKS)
    parser.add_argument("--row", action="append", help="Run only this row of the task; repeatable.")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="Where checkpoints stay for further runs.")
    arguments = parser.parse_args()
    if printed(arguments, RESULTS, lambda found: "\n\n".join(tables(found).values())):
        return
    check_texts(arguments.data)
    with tempfile.TemporaryDirectory() as folder:
        scratch, keep = Path(folder), arguments.keep or Path(folder)
        keep.mkdir(parents=True, exist_ok=True)
        tasks = {
            "sst2": lambda: Sst2(arguments.data, scratch, keep).rows(),
            "smollm2": lambda: smollm2(arguments.data, scratch),
            "scratch": lambda: scratch_rows(arguments.data, scratch),
            "overhead": lambda: overhead(arguments.data, scratch),
        }
        take_tasks(parser, arguments, RESULTS, "python bench/recovery.py --data DATA", tasks)


if __name__ == "__main__":
    main()
