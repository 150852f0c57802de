"""Trains a small GPT-2 or XLNet from scratch on characters, and sets half of its weights to zero on the way.

    python examples/from_scratch.py gpt2 TEXT [STEPS] [OUT] [SPARSITY]
    python examples/from_scratch.py xlnet TEXT [STEPS] [OUT] [SPARSITY]

TEXT is a file of at least a few hundred thousand characters, whose last twentieth isn't trained on. GPT-2 learns the
next character; XLNet, by permutations of the text, characters from those before and after them.
"""

import math
import sys
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForPermutationLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    XLNetConfig,
    XLNetLMHeadModel,
)

import secateur
from secateur.schedules import Cubic

kind, text = sys.argv[1], Path(sys.argv[2]).read_text(encoding="utf-8")
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 1500
out = sys.argv[4] if len(sys.argv) > 4 else f"out/{kind}"
sparsity = float(sys.argv[5]) if len(sys.argv) > 5 else 0.5
LENGTH = 128

counts = Counter(text)
known = ["<pad>", "<unk>", "<mask>", *(character for character, _ in counts.most_common(120))]
words = models.WordLevel({character: number for number, character in enumerate(known)}, unk_token="<unk>")
raw = Tokenizer(words)
raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", clean_up_tokenization_spaces=False
)
entropy = -sum(count / len(text) * math.log(count / len(text)) for count in counts.values())

ids = torch.tensor(tokenizer(text, verbose=False).input_ids)
windows = [{"input_ids": window} for window in ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)]
held_out = windows[-max(1, len(windows) // 20) :]

torch.manual_seed(0)
if kind == "gpt2":
    config = GPT2Config(vocab_size=len(known), n_positions=LENGTH, n_embd=256, n_layer=4, n_head=4, pad_token_id=0)
    model = GPT2LMHeadModel(config)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
else:
    sizes = {"d_model": 256, "n_layer": 4, "n_head": 4, "d_inner": 1024}
    config = XLNetConfig(vocab_size=len(known), **sizes, dropout=0.0, pad_token_id=0)
    model = XLNetLMHeadModel(config)
    collator = DataCollatorForPermutationLanguageModeling(tokenizer, plm_probability=1 / 3, max_span_length=3)

schedule = Cubic(sparsity, begin=steps // 3, end=steps * 4 // 5, every=max(1, steps // 50)) if sparsity else None
callbacks = [secateur.PruningCallback(schedule)] if schedule else []
trainer = Trainer(
    model,
    TrainingArguments(
        f"{out}-training",
        max_steps=steps,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        learning_rate=1e-3,
        warmup_steps=steps // 8,
        lr_scheduler_type="cosine",
        eval_strategy="steps",
        eval_steps=max(1, steps // 10),
        logging_steps=max(1, steps // 10),
        save_strategy="no",
        report_to=[],
        seed=0,
    ),
    data_collator=collator,
    train_dataset=windows[: -len(held_out)],
    eval_dataset=held_out[:64],
    callbacks=callbacks,
)
trainer.train()

torch.manual_seed(1)
loss = trainer.evaluate()["eval_loss"]
for callback in callbacks:
    callback.pruner.save(out, tokenizer=tokenizer, overwrite=True)
zero = callbacks[0].pruner.sparsity if callbacks else 0.0
print(f"{sum(one.numel() for one in model.parameters()):,} parameters, {zero:.1%} of the blocks' zero")
print(f"held-out loss {loss:.3f} nats per character; knowing how often each comes, and no more: {entropy:.3f}")
