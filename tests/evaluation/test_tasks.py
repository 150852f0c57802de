"""Zero-shot tasks by lm-eval, from a file of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import secateur
from command_line import secateur as secateur_command
from secateur.errors import SecateurError, UsageError
from secateur.evaluation.tasks import figures_of
from secateur.network.loading import load
from tiny import save_tiny

CHOICES = ["abc", "de fg", "h"]
TASK = """task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "What is {{{{query}}}}?"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    rows = [{"query": str(number), "choices": CHOICES, "gold": number % 3} for number in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    return tmp_path / "mine.yaml"


@torch.inference_mode()
def counted(folder: Path) -> float:
    """The same accuracy, counted by hand: the choice whose tokens are likeliest after the question."""
    network = load(folder)
    right = 0
    for number in range(24):
        question = network.tokenizer(f"What is {number}?").input_ids
        worth = []
        for choice in CHOICES:
            whole = network.tokenizer(f"What is {number}? {choice}").input_ids
            logits = network.model(torch.tensor([whole])).logits[0, :-1].log_softmax(-1)
            chosen = logits.gather(1, torch.tensor(whole[1:])[:, None])
            worth.append(float(chosen[len(question) - 1 :].sum()))
        right += worth.index(max(worth)) == number % 3
    return right / 24


def test_the_accuracy_is_that_of_a_count_by_hand(task: Path, tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "m", tokenizer=True)
    found = secateur.evaluate(source, tasks=[str(task)])
    assert found.tasks == {"mine acc": pytest.approx(counted(source))}
    assert found.perplexity is None


def test_the_command_line_shows_tasks_beside_perplexity(task: Path, tmp_path: Path) -> None:
    one, two = (save_tiny("llama", tmp_path / name, tokenizer=True) for name in ("one", "two"))
    (tmp_path / "text.txt").write_text("What is cut off is gone. " * 80)
    done = secateur_command(
        "compare", one, two, "--text", tmp_path / "text.txt", "--no-speed", "--length", 32, "--task", task, "--limit", 9
    )
    assert done.code == 0, done.err
    assert "mine acc" in done.out
    assert "perplexity" in done.out


def test_the_same_metric_read_in_two_ways_is_told_twice() -> None:
    told = {"alias": "gsm8k", "exact_match,strict-match": 0.1, "exact_match,flexible-extract": 0.3}
    told |= {"exact_match_stderr,strict-match": 0.01, "exact_match_stderr,flexible-extract": "N/A", "acc,none": 1}
    assert figures_of({"gsm8k": told}) == {
        "gsm8k exact_match strict-match": 0.1, "gsm8k exact_match flexible-extract": 0.3, "gsm8k acc": 1.0,
    }  # fmt: skip


def test_misuse_is_named(task: Path, tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "m", tokenizer=True)
    with pytest.raises(UsageError, match=r"there is no file other\.yaml"):
        secateur.evaluate(source, tasks=["other.yaml"])
    with pytest.raises(SecateurError, match="no_such_task"):
        secateur.evaluate(source, tasks=["no_such_task"])
    with pytest.raises(UsageError, match="predict the next token"):
        secateur.evaluate(save_tiny("bert", tmp_path / "bert", tokenizer=True), tasks=[str(task)])
    with pytest.raises(UsageError, match="limit counts the documents of tasks"):
        secateur.compare([source, source], limit=3)
    task.write_text("dataset_path: json\n")
    with pytest.raises(UsageError, match="names no task"):
        secateur.evaluate(source, tasks=[str(task)])
