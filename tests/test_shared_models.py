"""Trained small models, and a real encoder: what pruning leaves of them, counted in the files.

The models and texts aren't part of the project (`shared_data`). Without them these tests are skipped.
"""

import itertools
import json
import random
from pathlib import Path

import pytest
import torch
import transformers

import secateur
from secateur.calibration.tokens import token_counts
from secateur.network.loading import load
from secateur.network.tokenizers import closure, remap_tokenizer, save_tokenizer
from secateur.network.vocabulary import rank_of, remap_ids
from secateur.progress import Progress
from shared_data import DATA, needs_data
from zeros import counted


def layers_on_disk(result: secateur.Result) -> dict[str, tuple[int, int]]:
    """Returns zeros and size of each pruned layer, counted without secateur."""
    found = counted(Path(str(result.output)))
    names = [layer.name if layer.name in found else f"{layer.name}.weight" for layer in result.stages[0].layers]
    return {name: (found[name]["zeros"], found[name]["size"]) for name in names}


def sorted_right(model: transformers.PreTrainedModel) -> int:
    """Returns how many of the 729 sequences of six letters the network sorts."""
    letters = torch.tensor(list(itertools.product(range(3), repeat=6)))
    written = letters
    with torch.inference_mode():
        for _ in range(6):
            written = torch.cat([written, model(written).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return int((written[:, 6:] == letters.sort(dim=1).values).all(dim=1).sum())


@needs_data
def test_a_trained_gpt2_still_sorts_after_half_of_every_conv1d(tmp_path: Path) -> None:
    model = DATA / "models" / "gpt-nano-sort-hf"
    rows = []
    shuffle = random.Random(0)
    for _ in range(256):
        letters = [shuffle.randrange(3) for _ in range(6)]
        rows.append(json.dumps({"input_ids": letters + sorted(letters)[:5]}))
    (tmp_path / "sort.jsonl").write_text("\n".join(rows))
    options = {"calibration": str(tmp_path / "sort.jsonl"), "samples": 128, "length": 11}
    result = secateur.prune(model, sparsity=0.5, solver="sparsegpt", output=tmp_path / "half", **options)
    magnitude = secateur.prune(model, sparsity=0.5, score="l1", output=tmp_path / "l1", evaluate=False, **options)
    for found in (result, magnitude):
        assert found.reload == 0.0
        assert len(layers_on_disk(found)) == 12
        assert all(zeros == round(0.5 * size) for zeros, size in layers_on_disk(found).values())
    right = {
        name: sorted_right(transformers.AutoModelForCausalLM.from_pretrained(folder))
        for name, folder in (("dense", model), ("sparsegpt", tmp_path / "half"), ("l1", tmp_path / "l1"))
    }
    print(f"still sorted, of 729: {right}")
    assert right["dense"] == 729
    assert right["sparsegpt"] > right["l1"]
    assert right["sparsegpt"] > 700


@needs_data
def test_a_trained_llama_loses_less_by_sparsegpt_than_by_magnitude(tmp_path: Path) -> None:
    model = DATA / "models" / "stories260k-hf"
    perplexity = {}
    for name, options in (("sparsegpt", {"solver": "sparsegpt"}), ("l1", {"score": "l1"})):
        result = secateur.prune(
            model, sparsity=0.5, samples=32, length=512, output=tmp_path / name, speed=False, **options
        )
        assert result.reload == 0.0
        assert all(zeros == round(0.5 * size) for zeros, size in layers_on_disk(result).values())
        assert result.comparison is not None
        perplexity["dense"] = result.comparison.dense.perplexity or 0.0
        perplexity[name] = result.comparison.others[0].perplexity or 0.0
    print(f"perplexity on its own stories: {perplexity}")
    assert perplexity["dense"] < perplexity["sparsegpt"] < perplexity["l1"]


@pytest.mark.slow
def test_a_real_encoder_at_half_still_points_the_same_way(tmp_path: Path) -> None:
    here = Path(__file__).parents[1]
    sources = [here / "README.md", *sorted((here / "src").rglob("*.py"))]
    (tmp_path / "text.txt").write_text("\n\n".join(path.read_text() for path in sources))
    result = secateur.prune(
        "demo:minilm-l6",
        sparsity=0.5,
        calibration=str(tmp_path / "text.txt"),
        samples=64,
        length=128,
        output=tmp_path / "half",
        speed=False,
    )
    assert result.reload == 0.0
    assert len(layers_on_disk(result)) == 36
    assert all(zeros == round(0.5 * size) for zeros, size in layers_on_disk(result).values())
    assert result.comparison is not None
    cosine = result.comparison.others[0].cosine
    print(f"cosine similarity to the dense model's outputs: {cosine}")
    assert cosine is not None
    assert cosine > 0.8


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("model", ["demo:smollm2-135m", "demo:minilm-l6", "stories260k-hf"])
def test_a_real_tokenizer_cut_to_the_commonest_tokens_reads_texts_as_before(model: str, tmp_path: Path) -> None:
    network = load(model if model.startswith("demo:") else DATA / "models" / model)
    old, configs = network.tokenizer, (network.model.config, getattr(network.model, "generation_config", None))
    counts = token_counts(network, str(DATA / "text" / "c4_sample.jsonl"), Progress())
    wanted = torch.zeros(len(counts), dtype=torch.bool)
    wanted[counts.argsort(descending=True)[: len(counts) // 3]] = True
    keep = closure(old, wanted & (counts > 0), configs)
    new, rank = remap_tokenizer(old, keep), rank_of(keep)
    remap_ids(configs[0], keep).save_pretrained(tmp_path)
    save_tokenizer(new, tmp_path)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    kept = 0
    for line in (DATA / "text" / "wiki.test.raw").read_text().splitlines():
        before = old(line, verbose=False).input_ids
        after = new(line, verbose=False).input_ids
        assert read(line, verbose=False).input_ids == after
        if bool(keep[before].all()):
            kept += 1
            assert after == rank[before].tolist()
        assert new.decode(after, skip_special_tokens=True) == old.decode(before, skip_special_tokens=True)
    print(f"{int(wanted.sum())} wanted, {int(keep.sum())} of {len(keep)} kept; {kept} lines in kept tokens only")
    assert kept > 100
    assert int(keep.sum()) < len(keep)
