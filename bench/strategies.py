"""What strategies find beside one another: over seeds, over a CNN's widths, over algorithms, and with several workers.

    python bench/strategies.py --data DATA [--only TASK [--row ROW]] [--keep FOLDER] [--storage URL]
    python bench/strategies.py --table

seeds: SmolLM2-135M at 70 % of its weights, on a cheaper setting than bench/search.py's: 16 calibration windows of 512
tokens, candidates judged on 512 and 2,048 tokens, four minutes each, three seeds, all from the knapsack solution.
resnet56: half of the MACs of CIFAR-10's ResNet-56, five minutes each, accuracy
before and after two epochs. digits and minilm: a search over score, solver and how often is pruned, beside the default
recipe: a fully connected network on scikit-learn's digits loses 90 % of its neurons, whichever the way (300 digits
choose, 597 others judge in the end, five networks each); MiniLM on SST-2 loses 80 % of its weights, trained for 120
steps of 32 rows, judged on dev while searching and on test in the end. workers: trials per minute of one worker on all
processors and of three that share them, and of three of which one is killed; --storage names where they meet, such as
postgresql://..., and is a SQLite file otherwise.

Figures go to bench/results/strategies.json, and with --table the tables of docs/search.md are printed from them. Rows
that were measured before stay unless --again is given. --keep names a folder where levels and the dense classifier of
bench/recovery.py stay for further runs.
"""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import optuna
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import secateur as library
import vision_training
from protocol import HERE, MODEL, check_texts, secateur
from recovery import Sst2, run
from rows import Row, parser_of, printed, take_tasks
from secateur.automl.outer import Report, search_choices
from secateur.run_network import graph_network
from secateur.schedules import Cubic

RESULTS = HERE / "results" / "strategies.json"
SEEDS = (0, 1, 2)
SEARCHES = ("evolution", "policy", "random")
SHORT, LONG = 240, 300  # seconds of a search: of seeds, of ResNet-56
WORKING, KILLED = 180, 60  # seconds that workers search, and after which one of them is killed
DENSE, EPOCHS, REMOVED = 30, 10, 0.9  # of the digits network
STEPS, SPARSITY, TRIALS = 120, 0.8, 16  # of MiniLM


@dataclass(frozen=True)
class Place:
    """Where rows read and write.

    Attributes:
        data: Texts, images and networks.
        scratch: A folder of this run's own.
        keep: A folder for what further runs use again.
        storage: Where workers meet, if not in a file.
    """

    data: Path
    scratch: Path
    keep: Path
    storage: str | None


def search_command(place: Place, out: Path, *options: str) -> list[str]:
    """Returns a search of SmolLM2's amounts on the cheaper setting."""
    text = str(place.data / "text/c4_sample.jsonl")
    cheap = ["--samples", "16", "--length", "512", "--tokens", "512", "--tokens", "2048", "--solver", "sparsegpt"]
    levels = ["--levels", str(place.keep / "levels"), "--calibration", text, "--overwrite"]
    return ["search", MODEL, "-o", str(out), "--sparsity", "0.7", *cheap, *levels, *options]


def seeds(place: Place) -> dict[str, Callable[[], Row]]:
    """Each strategy with each seed."""
    judged = ["--evaluate", str(place.data / "text/wiki.test.raw"), "--windows", "10"]

    def measured(strategy: str, seed: int) -> Row:
        how = ["--strategy", strategy, "--seed", str(seed), "--seconds", str(SHORT)]
        found = secateur(*search_command(place, place.scratch / "out", *how, *judged))
        told, (other,) = found["search"], found["comparison"]["others"]
        divergences = {f"{name}_kl": -told[name] for name in ("start", "best", "solved")}
        return {
            **{name: round(value, 4) for name, value in divergences.items()},
            "perplexity": round(other["perplexity"], 2),
            "trials": told["trials"],
            "seconds": round(told["seconds"]),
        }

    return {f"{strategy}, seed {seed}": partial(measured, strategy, seed) for seed in SEEDS for strategy in SEARCHES}


def resnet56(place: Place) -> dict[str, Callable[[], Row]]:
    """A CNN's widths under a budget of MACs."""

    def measured(strategy: str | None) -> Row:
        images, dense = vision_training.cifar(place.data), vision_training.resnet(place.data, 56)
        given = {"example_inputs": images.x_train[:1], "calibration": images.calibration, "evaluate": False}
        given |= {"unit": "filter", "macs": 0.5, "score": "l1"}
        if strategy is None:
            result = library.prune(dense, **given)
        elif strategy == "global":
            result = library.prune(dense, **given, allocation="global")
        else:
            result = library.search(dense, **given, strategy=strategy, seconds=LONG)
        small = result.model
        assert isinstance(small, nn.Module)
        row = {
            "macs": vision_training.macs(small, images.x_test[:1]) / vision_training.macs(dense, images.x_test[:1]),
            "dense": vision_training.accuracy(dense, images) / 100,
            "repaired": vision_training.accuracy(small, images) / 100,
        }
        vision_training.tune(small, images)
        row["tuned"] = vision_training.accuracy(small, images) / 100
        told = result.search or {}
        row |= {name: told[name] for name in ("trials", "start", "best") if name in told}
        seconds = {"seconds": round(told["seconds"])} if told else {}
        return {**{name: round(value, 4) for name, value in row.items()}, **seconds}

    rows = {"uniform": partial(measured, None), "by l1 over all layers": partial(measured, "global")}
    return {**rows, **{strategy: partial(measured, strategy) for strategy in SEARCHES}}


class Digits:
    """A fully connected network on scikit-learn's digits: 64 to 128 to 64 to 10."""

    def __init__(self) -> None:
        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        x = torch.tensor(digits.data[order] / 16, dtype=torch.float32)
        y = torch.tensor(digits.target[order])
        self.train, self.chosen_by, self.judged = (
            (x[part], y[part]) for part in (slice(900), slice(900, 1200), slice(1200, None))
        )
        self.dense = [self._learnt(seed) for seed in range(5)]

    def _learnt(self, seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
        self.learn(model, torch.optim.Adam(model.parameters(), 1e-3), DENSE)
        return model

    def learn(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, after: Callable[[], None] = lambda: None
    ) -> None:
        """Trains for some epochs; `after` follows each step of the optimizer."""
        x, y = self.train
        for _ in range(epochs):
            for some in torch.randperm(len(x)).split(32):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[some]), y[some]).backward()
                optimizer.step()
                after()

    def smaller(self, how: dict[str, Any], seed: int) -> nn.Module:
        """Removes neurons as it is told, and trains: in rounds, or by a schedule while it trains."""
        torch.manual_seed(seed)
        model: nn.Module = copy.deepcopy(self.dense[seed])
        if "every" in how:
            optimizer = torch.optim.Adam(model.parameters(), 1e-3)
            steps = EPOCHS * -(-len(self.train[0]) // 32)
            schedule = Cubic(REMOVED, begin=1, end=steps * 7 // 10, every=how["every"])  # scores may need gradients
            given = {"unit": "neuron", "score": how["score"], "optimizer": optimizer, "cut": "during"}
            pruner = library.TrainingPruner(model, schedule, **given, example_inputs=self.train[0][:1])
            self.learn(model, optimizer, EPOCHS, pruner.step)
            return pruner.finish()
        given = {"example_inputs": self.train[0][:1], "calibration": self.train, "evaluate": False, "unit": "neuron"}
        given |= {name: how[name] for name in ("score", "solver") if name in how}
        widths = {group.name: group.count for group in graph_network(model, given["example_inputs"]).groups}
        there = dict(widths)
        for number in range(1, how["rounds"] + 1):
            left = {name: round(width * (1 - REMOVED) ** (number / how["rounds"])) for name, width in widths.items()}
            small = library.prune(model, **given, amounts={name: there[name] - left[name] for name in widths}).model
            assert isinstance(small, nn.Module)
            model, there = small.train(), left
            self.learn(model, torch.optim.Adam(model.parameters(), 1e-3), EPOCHS // how["rounds"])
        return model

    def neurons(self, model: nn.Module) -> list[int]:
        """Returns how many neurons each hidden layer has."""
        return [layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)][:-1]

    def accuracy(self, model: nn.Module, part: tuple[Tensor, Tensor]) -> float:
        """Returns how many of some digits are right."""
        with torch.no_grad():
            return float((model.eval()(part[0]).argmax(1) == part[1]).float().mean())


def digits(place: Place) -> dict[str, Callable[[], Row]]:
    """Which algorithm suits the digits network."""
    by_score = {"choice": ["l1", "l2", "taylor", "fisher", "random"]}
    solved = {"solver": "obs", "rounds": {"choice": [1, 2, 5, 10]}}
    scored = {"score": by_score, "rounds": {"choice": [1, 2, 5, 10]}}
    trained = {"score": by_score, "every": {"int": [4, 128], "log": True}}
    space = {"how": {"choice": [solved, scored, trained]}}
    data = Digits()

    def judged(models: list[nn.Module]) -> Row:
        (neurons,) = {tuple(data.neurons(model)) for model in models}  # the same, however they came about
        accuracy = mean(data.accuracy(model, data.judged) for model in models)
        return {"accuracy": round(accuracy, 4), "neurons": " and ".join(map(str, neurons))}

    def smaller(how: dict[str, Any]) -> Row:
        return judged([data.smaller(how, seed) for seed in range(len(data.dense))])

    def dense() -> Row:
        return judged([*data.dense])

    def default() -> Row:
        return smaller({"rounds": 1})

    def found() -> Row:
        def worth(chosen: dict[str, Any], report: Report) -> float:
            right = []
            for seed in range(3):
                right.append(data.accuracy(data.smaller(chosen["how"], seed), data.chosen_by))
                report(seed, mean(right))
            return mean(right)

        outcome = search_choices(space, worth, trials=60)
        return {
            **smaller(outcome.best["how"]),
            "trials": outcome.trials,
            "pruned": outcome.pruned,
            "seconds": round(outcome.seconds),
            "chosen": said(outcome.best["how"]),
        }

    return {"dense": dense, "default: one cut, then training": default, "found by TPE": found}


def minilm(place: Place) -> dict[str, Callable[[], Row]]:
    """Which algorithm suits an encoder that classifies sentences."""
    sst2 = Sst2(place.data, place.scratch, place.keep)
    told = {
        "calibration": {"data": str(sst2.texts), "samples": 64, "length": 128},
        "evaluate": {"text": str(sst2.folder / "test.tsv"), "length": 64, "speed": False},
    }

    def tuned(steps: int) -> Row:
        given = {"data": sst2.train, "samples": STEPS * 32, "length": 64, "batch": 32, "steps": steps, "keep": "last"}
        return {"finetune": {**given, "rate": 1e-4, "compute": "bfloat16", "held_out": 32, "judged": 1}}

    def carried_out(stages: Any, **more: Any) -> Row:
        if not sst2.dense.is_dir():
            sst2.rows()["dense"]()
        found = run(stages, str(sst2.dense), place.scratch / "out", **told, **more)
        (other,) = found["comparison"]["others"]
        row = {"accuracy": round(other["accuracy"], 4), "sparsity": round(other["zeros"] / other["weights"], 4)}
        if found["search"] is None:
            return row
        searched = {name: found["search"][name] for name in ("trials", "pruned")}
        stages = found["recipe"]["stages"]
        named = {name.rpartition(".")[2]: value for name, value in found["search"]["params"].items()}
        chosen = {name: value for name, value in named.items() if not str(value).startswith("#")}  # lists, by number
        chosen["rounds"] = stages[0]["repeat"]["times"] if "repeat" in stages[0] else 1
        seconds = round(found["search"]["seconds"])
        return {**row, **searched, "seconds": seconds, "chosen": said(chosen), "stages": stages}

    default = {"prune": {"sparsity": SPARSITY}}
    masked = {"sparsity": SPARSITY, "solver": "none", "score": {"choice": ["l1", "wanda", "ria", "taylor"]}}
    solved = {"sparsity": SPARSITY, "solver": {"choice": ["sparsegpt", "admm", "alps"]}}
    cut = {"prune": {"choice": [masked, solved]}}
    rounds = ([{"repeat": times, "stages": [cut, tuned(STEPS // times)]}] for times in (2, 4))
    stages = {"choice": [[cut, tuned(STEPS)], *rounds]}
    search = {"strategy": "tpe", "trials": TRIALS, "judge": {"text": str(sst2.folder / "dev.tsv"), "length": 64}}
    return {
        "cut by default, not trained": lambda: carried_out([default]),
        "default: one cut, then training": lambda: carried_out([default, tuned(STEPS)]),
        "found by TPE": lambda: carried_out(stages, search=search),
    }


def workers(place: Place) -> dict[str, Callable[[], Row]]:
    """How many candidates one worker judges, and three."""

    def measured(number: int, kill: bool) -> Row:
        name = f"workers-{number}-{int(kill)}-{int(time.time())}"
        storage = place.storage or f"sqlite:///{place.scratch / name}.db"
        threads = str(max(1, (os.cpu_count() or 1) // number))
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        options = ["--storage", storage, "--study", name, "--seconds", str(WORKING), "--no-evaluate", "--quiet"]
        commands = [search_command(place, place.scratch / f"{name}-{n}", *options) for n in range(number)]
        running = [
            subprocess.Popen([sys.executable, "-m", "secateur", *one], env=environment, stdout=subprocess.DEVNULL)
            for one in commands
        ]
        if kill:
            while _ended(storage, name) < 2 * number:
                if any(worker.poll() is not None for worker in running):
                    sys.exit("a worker ended before it was to be killed; see its message above.")
                time.sleep(1)
            time.sleep(KILLED)
            running[0].send_signal(signal.SIGKILL)
        codes = [worker.wait() for worker in running]
        if codes.count(0) < number - kill:
            sys.exit(f"{number - kill} workers were to end well, and {codes.count(0)} did; see their messages above.")
        trials = optuna.load_study(study_name=name, storage=storage).trials
        complete = [trial for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE]
        failed = [trial for trial in trials if trial.state == optuna.trial.TrialState.FAIL]
        begun = min(trial.datetime_start for trial in trials if trial.datetime_start is not None)
        ended = max(trial.datetime_complete for trial in complete if trial.datetime_complete is not None)
        return {
            "trials_per_minute": round(60 * len(complete) / (ended - begun).total_seconds(), 1),
            "complete": len(complete),
            "failed": len(failed),
            "numbered": [trial.number for trial in trials] == list(range(len(trials))),
            "workers": len({trial.user_attrs["worker"] for trial in trials}),
            "ended_well": codes.count(0),
            "threads": int(threads),
            "storage": storage.partition(":")[0],
        }

    return {
        "one worker": partial(measured, 1, False),
        "three workers": partial(measured, 3, False),
        "three workers, one killed": partial(measured, 3, True),
    }


def _ended(storage: str, name: str) -> int:
    """Returns how many trials a study has that have ended; none while it isn't there."""
    try:
        trials = optuna.load_study(study_name=name, storage=storage).trials
    except Exception:  # it isn't there yet
        return 0
    return sum(trial.state.is_finished() for trial in trials)


def said(chosen: dict[str, Any]) -> str:
    """Returns choices as words."""
    return ", ".join(f"{name} {value}" for name, value in chosen.items())


TASKS = {"seeds": seeds, "resnet56": resnet56, "digits": digits, "minilm": minilm, "workers": workers}
SHARES = ("accuracy", "sparsity", "macs", "dense", "repaired", "tuned")
QUIET = ("stages", "numbered", "storage")


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Returns a table in markdown for each task that was measured."""
    return {task: _table(task, rows) for task in TASKS if (rows := results["rows"].get(task))}


def _table(task: str, rows: dict[str, Row]) -> str:
    columns = [name for name in dict.fromkeys(name for row in rows.values() for name in row) if name not in QUIET]
    lines = [f"| {task} | {' | '.join(name.replace('_', ' ') for name in columns)} |", "|---|" + "---:|" * len(columns)]
    for name, row in rows.items():
        cells = (f"{row[one]:.2%}" if one in SHARES and one in row else str(row.get(one, "")) for one in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and writes the results, row by row."""
    parser = parser_of(__doc__, TASKS)
    parser.add_argument("--row", action="append", help="Run only this row of the task; repeatable.")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="Where levels and the dense classifier stay.")
    parser.add_argument("--storage", metavar="URL", help="Where workers meet; default a SQLite file.")
    arguments = parser.parse_args()
    if printed(arguments, RESULTS, lambda found: "\n\n".join(tables(found).values())):
        return
    check_texts(arguments.data)
    with tempfile.TemporaryDirectory() as folder:
        keep = arguments.keep or Path(folder) / "keep"
        keep.mkdir(parents=True, exist_ok=True)
        place = Place(arguments.data, Path(folder), keep, arguments.storage)
        tasks = {name: partial(rows_of, place) for name, rows_of in TASKS.items()}
        take_tasks(parser, arguments, RESULTS, "python bench/strategies.py --data DATA", tasks)


if __name__ == "__main__":
    main()
