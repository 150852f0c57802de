"""Zero-shot questions: ARC-easy by lm-eval for a dense model and three pruned ones, and the same by a count of our own.

SmolLM2-135M is pruned by the protocol of bench/protocol.py (32 windows of 1,024 tokens of C4): half of the weights,
2:4, and 80 % of the parameters by neurons, chosen by the loss and repaired. `secateur evaluate --task` judges each on a
task file that is written for the questions in DATA/tasks/arc_easy.jsonl. Our own count, in plain transformers without
lm-eval, sums the log-likelihoods of each answer's tokens: `acc` takes the likeliest answer, `acc_norm` the likeliest by
character. Both have to give the same. Figures go to bench/results/tasks.json; with --limit nothing is written.

    python bench/tasks.py --data DATA [--only ROW] [--limit N]
    python bench/tasks.py --table
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from protocol import HERE, check_texts, dense_checkpoint, prune, secateur
from rows import Row, Rows, parser_of, printed

RESULTS = HERE / "results" / "tasks.json"
QUESTIONS = "tasks/arc_easy.jsonl"
TASK = "arc_easy_local"
ROWS: dict[str, list[str]] = {
    "dense": [],
    "50 % of the weights": ["--sparsity", "0.5"],
    "2:4": ["--pattern", "2:4"],
    "80 % of the parameters": ["--unit", "neuron", "--params", "0.8", "--gradient", "loss", "--allocation", "global"],
}


def write_task(questions: Path, file: Path) -> None:
    """Writes a task of lm-eval's format: a question, `Answer:`, and the likeliest of the choices."""
    task = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(questions.resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ],
    }
    file.write_text(yaml.safe_dump(task))


def judged(model: str, task: Path, limit: int | None) -> Row:
    """Has lm-eval judge a checkpoint."""
    some = [] if limit is None else ["--limit", str(limit)]
    found = secateur("evaluate", model, "--task", str(task), *some)["tasks"]
    return {metric: round(found[f"{TASK} {metric}"], 6) for metric in ("acc", "acc_norm")}


@torch.inference_mode()
def counted(model: str, questions: Path, limit: int | None) -> Row:
    """Counts by itself: a question with each of its answers in one batch, the answers' tokens alone in the sum."""
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=True)
    network: Any = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=True).eval()
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()][:limit]
    right = [0, 0]
    for row in rows:
        begin = f"{row['query']}\nAnswer:"
        given = len(tokenizer(begin).input_ids)
        texts = [tokenizer(f"{begin} {choice}").input_ids for choice in row["choices"]]
        longest = max(map(len, texts))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
        said = network(ids).logits[:, given - 1 : -1].log_softmax(-1)  # what follows an answer doesn't change it
        each = said.gather(2, ids[:, given:, None])[..., 0]
        sums = [float(one[: len(text) - given].sum()) for one, text in zip(each, texts, strict=True)]
        norms = [one / len(choice) for one, choice in zip(sums, row["choices"], strict=True)]
        for place, worths in enumerate((sums, norms)):
            right[place] += worths.index(max(worths)) == row["gold"]
    return {"acc": round(right[0] / len(rows), 6), "acc_norm": round(right[1] / len(rows), 6), "questions": len(rows)}


def measure(model: str, questions: Path, scratch: Path, limit: int | None) -> Row:
    """Judges and counts."""
    task = scratch / "task.yaml"
    write_task(questions, task)
    ours = counted(model, questions, limit)
    number, theirs = ours.pop("questions"), judged(model, task, limit)
    return {**theirs, "counted": ours, "same": theirs == ours, "questions": number}


def table(results: Row) -> str:
    """Returns the table in markdown."""
    lines = ["| model | accuracy | per character | counted | per character | questions |", "|---|" + "---:|" * 5]
    for name, row in results["rows"].items():
        shares = (row["acc"], row["acc_norm"], row["counted"]["acc"], row["counted"]["acc_norm"])
        cells = " | ".join(f"{share:.2%}" for share in shares)
        lines.append(f"| {name} | {cells} | {row['questions']:,} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and writes the results, row by row."""
    parser = parser_of(__doc__, ROWS)
    parser.add_argument("--limit", type=int, metavar="N", help="Ask the first N questions only, and write nothing.")
    arguments = parser.parse_args()
    if printed(arguments, RESULTS, table):
        return
    check_texts(arguments.data)
    results = Rows(RESULTS, "python bench/tasks.py --data DATA", ROWS, arguments.again)
    differing = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        dense, out = scratch / "dense", scratch / "out"
        dense_checkpoint(dense)
        for name in results.wanted(arguments.only):
            options = ROWS[name]
            told = prune(options, arguments.data, out, str(dense)) if options else {}
            row = measure(str(out if options else dense), arguments.data / QUESTIONS, scratch, arguments.limit)
            row |= {"options": " ".join(options), **({"prune_seconds": told["seconds"]} if told else {})}
            if arguments.limit is None:
                results.take(name, row)
            else:
                print(name, row, flush=True)
            differing += [] if row["same"] else [name]
    if differing:
        sys.exit(f"lm-eval and our own count differ: {', '.join(differing)}.")


if __name__ == "__main__":
    main()
