"""Fine-tunes a BERT on sentences with labels, and prunes it while it is trained on: weights, neurons and heads.

    python examples/sst2.py TRAIN TEST [MODEL] [ROWS] [OUT]

TRAIN and TEST are tables (.tsv, .csv, .jsonl) with the columns `sentence` and `label`, as SST-2 has them. MODEL is an
encoder, `demo:minilm-l6` unless something else is said. ROWS of TRAIN are taken, 12,000 or as many as there are.
"""

import sys

import torch
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import secateur
from secateur.calibration.tables import read_table
from secateur.schedules import Cubic

train, test = sys.argv[1:3]
model = sys.argv[3] if len(sys.argv) > 3 else "demo:minilm-l6"
rows = int(sys.argv[4]) if len(sys.argv) > 4 else 12_000
out = sys.argv[5] if len(sys.argv) > 5 else "out/sst2"

# The dense classifier: an encoder with a new head, fine-tuned as a stage of a recipe.
stage = {"data": train, "samples": rows, "epochs": 2, "batch": 32, "rate": 1e-4, "length": 64}
told = {"model": model, "output": f"{out}/dense", "overwrite": True, "stages": [{"finetune": stage}]}
result = secateur.run_recipe(secateur.Recipe.build({**told, "evaluate": {"text": test, "length": 64}}))
print(result.table())

# From there on transformers' own Trainer, with one more callback.
tokenizer = AutoTokenizer.from_pretrained(f"{out}/dense")
table = read_table(train, rows, None)


class Rows(Dataset):
    def __len__(self) -> int:
        return len(table)

    def __getitem__(self, row: int) -> dict:
        return {**tokenizer(table.texts[row], truncation=True, max_length=64), "labels": int(table.classes[row])}


steps = 2 * -(-len(table) // 32)
folders = [f"{out}/dense"]
for name, final, options in (
    ("weights-50", 0.5, {}),
    ("weights-70", 0.7, {}),
    ("weights-90", 0.9, {}),
    ("neurons-50", 0.5, {"unit": "neuron", "score": "taylor"}),
    ("heads-50", 0.5, {"unit": "head", "score": "taylor"}),
):
    torch.manual_seed(0)
    schedule = Cubic(final, begin=max(1, steps // 10), end=steps * 3 // 4, every=max(1, steps // 30))
    callback = secateur.PruningCallback(schedule, **options)
    Trainer(
        AutoModelForSequenceClassification.from_pretrained(f"{out}/dense"),
        TrainingArguments(
            f"{out}/{name}-training",
            num_train_epochs=2,
            per_device_train_batch_size=32,
            learning_rate=1e-4,
            warmup_steps=steps // 20,
            logging_steps=max(1, steps // 10),
            save_strategy="no",
            report_to=[],
        ),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=Rows(),
        callbacks=[callback],
    ).train()
    callback.pruner.save(f"{out}/{name}", tokenizer=tokenizer, overwrite=True)
    folders.append(f"{out}/{name}")

print(secateur.compare(folders, text=test, length=64).table())
