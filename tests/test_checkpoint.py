"""What is on disk: exact zeros counted without secateur, for every family, in a checkpoint that stock tools load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import secateur
from secateur.network.families import FAMILIES
from tiny import TINY, filed, save_tiny, write_wavs
from zeros import counted


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token ids to calibrate on."""
    random = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("text") / "ids.jsonl"
    rows = (json.dumps({"input_ids": torch.randint(5, 90, (40,), generator=random).tolist()}) for _ in range(20))
    path.write_text("\n".join(rows))
    return path


@pytest.mark.parametrize("family", sorted(TINY))
def test_every_layer_on_disk_is_half_zero_to_the_weight(family: str, ids: Path, tmp_path: Path) -> None:
    model = save_tiny(family, tmp_path / "dense")
    data = write_wavs(tmp_path / "sounds", 3) if FAMILIES[family].inputs == "audio" else ids
    result = secateur.prune(
        model, sparsity=0.5, calibration=str(data), samples=8, length=24, output=tmp_path / "out", evaluate=False
    )
    assert result.reload == 0.0
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    dense = load_file(model / "model.safetensors")
    zeros = counted(tmp_path / "out")
    assert {name: (t.shape, t.dtype) for name, t in tensors.items()} == {
        name: (t.shape, t.dtype) for name, t in dense.items()
    }
    for layer in result.stages[0].layers:
        names = filed(family, layer.name, tensors)
        weights = sum(tensors[name].numel() for name in names)
        assert sum(zeros[name]["zeros"] for name in names) == round(0.5 * weights), names


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_stays_and_the_count_is_exact_in_16_bits(dtype: str, ids: Path, tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense")
    options = {"calibration": str(ids), "samples": 8, "length": 24, "evaluate": False}
    result = secateur.prune(model, sparsity=0.5, dtype=dtype, output=tmp_path / "out", **options)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{dtype}"}
    assert all(layer.zeros == round(0.5 * layer.weights) for layer in result.stages[0].layers)


def test_plain_transformers_generates_from_the_output_and_everything_is_beside_it(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "dense", tokenizer=True)
    result = secateur.prune(model, pattern="2:4", samples=4, length=24, output=tmp_path / "out", speed=False)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert {"secateur.json", "report.html", "README.md"} <= names
    assert (
        json.loads((tmp_path / "out" / "secateur.json").read_text())["recipe"]["stages"][0]["prune"]["pattern"] == "2:4"
    )
    code = (
        "import sys; sys.modules['secateur'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "ids = AutoTokenizer.from_pretrained(sys.argv[1])('ab', return_tensors='pt').input_ids\n"
        "print(model.generate(ids, max_new_tokens=5, do_sample=False, min_new_tokens=5).shape[1] - ids.shape[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "5", done.stderr
    assert result.comparison is not None


def test_perplexity_is_that_of_transformers_own_loss_and_the_dense_model_diverges_from_itself_by_nothing(
    ids: Path, tmp_path: Path
) -> None:
    model = save_tiny("llama", tmp_path / "dense")
    comparison = secateur.compare([model, model], text=str(ids), windows=4, length=24, speed=False)
    plain = transformers.AutoModelForCausalLM.from_pretrained(model)
    tokens = [token for line in ids.read_text().splitlines() for token in json.loads(line)["input_ids"]]
    windows = torch.tensor(tokens[: 4 * 24]).view(4, 24)
    loss = plain(windows, labels=windows).loss.detach()
    assert comparison.dense.perplexity == pytest.approx(float(loss.exp()), rel=1e-4)
    assert comparison.others[0].kl == 0.0
    assert comparison.others[0].top1_agreement == 1.0


def test_a_recipe_file_and_the_flags_write_the_same_bytes(tmp_path: Path) -> None:
    model = save_tiny("gpt2", tmp_path / "dense", tokenizer=True)
    options = {"samples": 4, "length": 24, "evaluate": False}
    secateur.prune(model, sparsity=0.4, score="wanda", output=tmp_path / "one", **options)
    (tmp_path / "recipe.yaml").write_text(
        f"model: {model}\noutput: {tmp_path / 'two'}\ncalibration: {{samples: 4, length: 24}}\nevaluate: null\n"
        "stages:\n  - prune: {sparsity: 0.4, score: wanda}\n"
    )
    secateur.run_recipe(secateur.Recipe.read(tmp_path / "recipe.yaml"))
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
