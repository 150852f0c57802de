"""From pruned to shipped: whole pipelines step by step, each shipped recipe, and what runtimes make of a smaller model.

    python bench/shipping.py --data DATA [--whisper MODEL] [--keep FOLDER] [--only ROW]
    python bench/shipping.py --table

minilm: MiniLM-L6 fine-tuned on SST-2 (the dense classifier of bench/recovery.py), half of its neurons removed,
distilled for two epochs, quantized, exported; accuracy on the 7,607 rows of dev and test. whisper: Whisper tiny.en by
examples/speech.yaml, on sentences that espeak-ng speaks; word error rate on others of them. resnet56: half of the MACs
of CIFAR-10's ResNet-56, two epochs, exports; accuracy on the 2,000 test images. runtimes: SmolLM2-135M at 70 % of its
parameters, distilled for ten minutes on C4, and what of that plain torch, ONNX Runtime, OpenVINO and llama.cpp turn
into speed, beside what each could at best: prefill by the products that it does (exports give all tokens' logits, torch
and llama.cpp are asked for the last one's), decoding by the weights that it reads. The other rows are the recipes in
examples/, carried out as they are, with quality and speed measured behind them.

Files of one row are timed beside one another by `secateur bench`. Figures go to bench/results/shipping.json, and with
--table the tables of docs/deploying.md are printed from them. Rows that were measured before stay unless --again is
given; --keep names a folder where the dense classifier stays for further runs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import secateur as library
import vision_training
import whisper
from protocol import HERE, MODEL, check_texts, secateur
from recovery import Sst2, run
from rows import Row, Rows, parser_of, printed
from secateur.benchmark.runners import kind_of
from secateur.calibration.audio import heard_windows
from secateur.calibration.data import window_length
from secateur.calibration.tables import read_table
from secateur.evaluation.costs import costs
from secateur.evaluation.error_rate import words
from secateur.network.saving import save_network
from shipping_tables import tables

RESULTS = HERE / "results" / "shipping.json"
EXAMPLES = HERE.parent / "examples"
QUALITY = ("accuracy", "wer", "perplexity", "bits_per_byte", "kl", "top1_agreement", "cosine")
HEARD = 24  # sentences of 48 that calibration doesn't hear
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LAST_ONLY = ("torch", "llama.cpp")  # what computes the logits of the last token only


@dataclass(frozen=True)
class Place:
    """Where a row reads and writes.

    Attributes:
        data: The texts and images.
        scratch: A folder of the row's own.
        keep: A folder for the dense classifier.
        whisper: Whisper's checkpoint, if there is one.
    """

    data: Path
    scratch: Path
    keep: Path
    whisper: Path | None


def minilm(place: Place) -> Row:
    """An encoder that classifies sentences."""
    sst2 = Sst2(place.data, place.scratch, place.keep)
    if not sst2.dense.is_dir():
        sst2.rows()["dense"]()
    given = {"calibration": {"data": str(sst2.texts), "samples": 64, "length": 128}, "evaluate": None}
    distill = {**sst2.training(), "labels": 0.5, "hidden": 0.1, "teacher": str(sst2.dense)}
    cut, tuned, int8 = (place.scratch / name for name in ("cut", "tuned", "int8"))
    run([{"prune": {"unit": "neuron", "sparsity": 0.5}}], str(sst2.dense), cut, **given)
    run([{"distill": distill}], str(cut), tuned, **given)
    run([{"quantize": {"bits": 8}}], str(tuned), int8, **given)
    shown = {"dense": sst2.dense, "half of the neurons": cut, "distilled": tuned, "int8": int8}
    steps = measured(shown, "--text", str(sst2.judged), "--length", "64")
    exported = exports(tuned, place.scratch, {"onnx": ("float32", "int8"), "openvino": ("float32", "int8")})
    table = read_table(str(sst2.judged), None, None)
    tokenizer = library.load(str(tuned)).tokenizer
    for name, folder in exported.items():
        ask = opened(folder).ask
        right = 0
        for at in range(0, len(table), 64):
            ids = tokenizer(list(table.texts[at : at + 64]), truncation=True, max_length=64, padding=True)
            fed = {key: np.array(ids[key], np.int64) for key in ("input_ids", "attention_mask")}
            right += int((ask(fed)["logits"].argmax(-1) == np.array(table.classes[at : at + 64])).sum())
        steps[name] = {"accuracy": round(right / len(table), 4)}
    return timed(steps, {**shown, **exported}, "--prompt", "64")


def speech(place: Place) -> Row:
    """A model that hears."""
    assert place.whisper is not None
    spoken, heard = sounds(place)
    recipe = yaml.safe_load((EXAMPLES / "speech.yaml").read_text())
    dense = place.scratch / "dense"  # the checkpoint may be of half precision, which the exports aren't
    dense.mkdir()
    network = library.load(str(place.whisper), dtype="float32")
    save_network(network, dense)
    shown = {"dense": dense}
    for name, last in (("a tenth of the neurons", 1), ("blocks tuned", 2), ("int8", 3)):
        shown[name] = place.scratch / f"step{last}"
        calibration = {**recipe["calibration"], "data": str(spoken)}
        run(recipe["stages"][:last], str(dense), shown[name], calibration=calibration, evaluate=None)
    steps = measured(shown, "--text", str(heard), "--windows", str(HEARD))
    exported = exports(shown["blocks tuned"], place.scratch, {"onnx": ("float32", "int8"), "openvino": ("float32",)})
    for name, folder in exported.items():
        steps[name] = {"wer": round(error_rate(opened(folder), network, heard), 4)}
    return timed(steps, {**shown, **exported})


def sounds(place: Place) -> tuple[Path, Path]:
    """Has sentences spoken; returns a folder to calibrate on, and another with what is said beside each."""
    spoken, heard = place.scratch / "spoken", place.scratch / "heard"
    text = place.data / "text/c4_sample.jsonl"
    whisper.speak(text, spoken)
    heard.mkdir()
    for number, sentence in enumerate(whisper.sentences(text)[:HEARD]):
        (spoken / f"{number:02}.wav").rename(heard / f"{number:02}.wav")
        (heard / f"{number:02}.txt").write_text(sentence)
    return spoken, heard


def error_rate(runner: Any, network: Any, heard: Path) -> float:
    """Returns the word error rate of an export, which writes the likeliest token each time."""
    import jiwer  # noqa: PLC0415 (an extra)

    told = network.model.generation_config
    start = [told.decoder_start_token_id, told.no_timestamps_token_id]
    never = [token for token in told.suppress_tokens or () if token != told.eos_token_id]
    most, said, written = window_length(network, None), [], []
    for path in sorted(heard.glob("*.wav")):
        (features,) = heard_windows(network, path)
        (hidden,) = runner.hear(dict.fromkeys(runner.inputs, np.asarray(features, np.float32))).values()
        ids, new, past = list(start), np.array([start], np.int64), {"encoder_hidden_states": hidden}
        while len(ids) < most and ids[-1] != told.eos_token_id:
            found, past = runner.say(new, past)
            logits = found[0, -1].copy()
            logits[never] = -np.inf
            if len(ids) == len(start):
                logits[list(told.begin_suppress_tokens or ())] = -np.inf
            ids.append(int(logits.argmax()))
            new = np.array([ids[-1:]], np.int64)
        written.append(words(network.tokenizer.decode(ids, skip_special_tokens=True)))
        said.append(words(path.with_suffix(".txt").read_text()))
    return float(jiwer.wer(said, written))


def opened(folder: Path) -> Any:
    """Loads an export in its runtime."""
    return kind_of(str(folder)).runner()(str(folder), os.cpu_count() or 1)


def resnet56(place: Place) -> Row:
    """A network that is no checkpoint."""
    images = vision_training.cifar(place.data)
    dense = vision_training.resnet(place.data, 56)
    found = library.prune(
        dense, example_inputs=images.x_train[:1], unit="filter", macs=0.5, allocation="global", round_to=4,
        calibration=images.calibration, evaluate=False,
    )  # fmt: skip
    small = found.network
    steps = {
        "dense": {"accuracy": vision_training.accuracy(dense, images) / 100},
        "half of the MACs": {"accuracy": vision_training.accuracy(small, images) / 100},
    }
    vision_training.tune(small, images)
    steps["two epochs"] = {"accuracy": vision_training.accuracy(small, images) / 100}
    shown = {}
    for name, model in (("dense", dense), ("small", small)):
        for to, kind in (("onnx", "float32"), ("openvino", "float32"), ("openvino", "int8")):
            if (name, kind) == ("dense", "int8"):
                continue
            what = f"{to} {kind}{', dense' if name == 'dense' else ''}"
            shown[what] = place.scratch / what
            x = images.x_train[:1]
            library.export(model, example_inputs=x, output=shown[what], to=to, kind=kind)
            runner = opened(shown[what])
            likeliest = [
                next(iter(runner.ask(dict.fromkeys(runner.inputs, part.numpy())).values())).argmax(1)
                for part in images.x_test.split(100)
            ]
            steps[what] = {"accuracy": round(float((np.concatenate(likeliest) == images.y_test.numpy()).mean()), 4)}
    return timed(steps, shown, "--batch", "64")


def runtimes(place: Place) -> Row:
    """The same smaller model in several runtimes, each beside the dense one."""
    dense, small = place.scratch / "dense", place.scratch / "small"
    text = str(place.data / "text/c4_sample.jsonl")
    stages = [
        {"prune": {"unit": "neuron", "params": 0.7, "round_to": 32}},
        {"distill": {"data": text, "length": 512, "batch": 4, "minutes": 10, "judged": 6, "compute": "bfloat16"}},
    ]
    network = library.load(MODEL)
    network.model.save_pretrained(dense)
    network.tokenizer.save_pretrained(dense)
    told = {
        "calibration": {"data": text, "samples": 32, "length": 1024},
        "evaluate": {"text": str(place.data / "text/wiki.test.raw"), "windows": 20, "length": 1024, "speed": False},
    }
    found = run(stages, str(dense), small, **told)["comparison"]
    (after,) = found["others"]
    kinds = {"onnx": ("float32",), "openvino": ("float32",)}
    if find_spec("llama_cpp") is not None:
        kinds["gguf"] = ("f16",)
    shown = {}
    for name, folder in (("dense", dense), ("small", small)):
        of = ", dense" if name == "dense" else ""
        shown |= {f"torch{of}": folder}
        made = exports(folder, place.scratch / f"{name}-exports", kinds)
        shown |= {f"{what}{of}": written for what, written in made.items()}
    row = timed({}, shown)
    row["perplexity"] = {"dense": round(found["dense"]["perplexity"], 2), "small": round(after["perplexity"], 2)}
    row["share"] = {name: round(after[name] / found["dense"][name], 4) for name in ("parameters", "macs")}
    both = network, library.load(str(small))
    decode = weights_read(both[0]) / weights_read(both[1])
    for name in [name for name in row["steps"] if f"{name}, dense" in row["steps"]]:
        own, before = row["steps"][name], row["steps"][f"{name}, dense"]
        last_only = own["runtime"].split()[0] in LAST_ONLY
        prefill = products(both[0], row["settings"]["prompt"], last_only)
        prefill /= products(both[1], row["settings"]["prompt"], last_only)
        own["gains"] = {
            "prefill": gained(before["first_ms"] / own["first_ms"], prefill),
            "batch": gained(own["batch"] / before["batch"], prefill),
            "decode": gained(own["decode"] / before["decode"], decode),
            "bytes": round(before["bytes"] / own["bytes"], 3),
        }
    return row


def products(network: Any, prompt: int, last_only: bool) -> float:
    """Returns the multiply-accumulates of reading a prompt, with a head for its last token only or for all."""
    head = sum(layer.weights for layer in network.outside() if not layer.table)
    return prompt * (costs(network, prompt).macs - head) + head * (1 if last_only else prompt)


def weights_read(network: Any) -> int:
    """Returns how many weights each token that is written takes: those of blocks and of the head, none of a table."""
    layers = [*network.layers(), *(layer for layer in network.outside() if not layer.table)]
    return sum(layer.weights for layer in layers)


def gained(gain: float, bound: float) -> Row:
    """Returns a gain in speed, what it could be at best, and the share of that which is reached."""
    return {"gain": round(gain, 3), "bound": round(bound, 3), "share": round((gain - 1) / (bound - 1), 3)}


def recipe_row(name: str) -> Callable[[Place], Row]:
    """Returns what carries a recipe of examples/ out as it is, with quality and speed behind it."""

    def measure(place: Place) -> Row:
        recipe = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
        recipe |= {"output": str(place.scratch / "out"), "overwrite": True}
        if name == "speech":
            spoken, heard = sounds(place)
            recipe["model"], recipe["calibration"]["data"] = str(place.whisper), str(spoken)
            recipe["evaluate"] = {"text": str(heard), "windows": HEARD}
        elif name == "encoder":
            recipe["calibration"]["data"] = str(HERE.parent / recipe["calibration"]["data"])
            recipe["evaluate"] = {"text": str(place.data / "text/wiki.test.raw"), "windows": 20, "length": 256}
        else:
            recipe["evaluate"] = {"text": str(place.data / "text/wiki.test.raw"), "windows": 20, "length": 1024}
        file = place.scratch / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe))
        found = secateur("run", str(file))
        dense, (other,) = found["comparison"]["dense"], found["comparison"]["others"]
        gains = {
            f"{what}_gain": round(other[what] / dense[what], 3)
            for what in ("prefill", "decode")
            if dense.get(what) and other.get(what)
        }
        plain = dense["parameters"] * BYTES[found["about"]["dtype"]]  # the demo's own file is a quantized one
        shares = {
            "parameters_share": round(other["parameters"] / dense["parameters"], 4),
            "bytes_on_disk_share": round(other["bytes_on_disk"] / plain, 4),
        }
        steps = {"dense": quality(dense), "out": {**quality(other), **shares, **gains}}
        return {"steps": steps, "seconds": round(found["seconds"]["total"])}

    return measure


ROWS: dict[str, Callable[[Place], Row]] = {
    "minilm": minilm,
    "whisper": speech,
    "resnet56": resnet56,
    "runtimes": runtimes,
    **{f"{name}.yaml": recipe_row(name) for name in ("edge", "half", "two-four", "tiny", "speech", "encoder")},
}


def quality(metrics: dict[str, Any]) -> Row:
    """Returns the figures of quality that there are."""
    return {name: round(metrics[name], 4) for name in QUALITY if metrics.get(name) is not None}


def measured(shown: dict[str, Path], *options: str) -> dict[str, Row]:
    """Compares checkpoints; returns their quality, step by step."""
    found = secateur("compare", *map(str, shown.values()), *options, "--no-speed")
    return {name: quality(metrics) for name, metrics in zip(shown, [found["dense"], *found["others"]], strict=True)}


def exports(folder: Path, into: Path, kinds: dict[str, tuple[str, ...]]) -> dict[str, Path]:
    """Exports a checkpoint; returns the folders by what they hold."""
    found = {}
    for to, some in kinds.items():
        for kind in some:
            found[f"{to} {kind}"] = into / f"{to}-{kind}"
            into.mkdir(exist_ok=True)
            secateur("export", str(folder), "--to", to, "--type", kind, "-o", str(found[f"{to} {kind}"]))
    return found


def timed(steps: dict[str, Row], shown: dict[str, Path], *options: str) -> Row:
    """Times folders beside one another, and adds what came of it to their steps."""
    found = secateur("bench", *map(str, shown.values()), *options)
    for name, one in zip(shown, found["models"], strict=True):
        row = {"runtime": " ".join(filter(None, (one["runtime"], one["dtype"])))}
        row |= {"bytes": one["bytes"], "peak": one["peak"], "first_ms": round(1000 * one["first"], 2)}
        row |= {what: round(one[what], 3) for what in ("decode", "batch", "real_time") if one[what] is not None}
        steps[name] = {**steps.get(name, {}), **row, "spread": round(one["spread"], 3)}
    return {"steps": steps, "settings": found["settings"]}


def main() -> None:
    """Measures and writes the results, row by row."""
    parser = parser_of(__doc__, ROWS)
    parser.add_argument("--whisper", type=Path, metavar="MODEL", help="Whisper tiny.en's checkpoint folder.")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="Where the dense classifier stays.")
    arguments = parser.parse_args()
    if printed(arguments, RESULTS, lambda found: "\n\n".join(tables(found).values())):
        return
    check_texts(arguments.data)
    results = Rows(RESULTS, "python bench/shipping.py --data DATA --whisper MODEL", ROWS, arguments.again)
    wanted = results.wanted(arguments.only)
    if arguments.whisper is None and {"whisper", "speech.yaml"} & set(wanted):
        parser.error("the rows whisper and speech.yaml need --whisper MODEL; others are named by --only.")
    for name in wanted:
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            keep = arguments.keep or scratch / "keep"
            keep.mkdir(parents=True, exist_ok=True)
            results.take(name, ROWS[name](Place(arguments.data, scratch, keep, arguments.whisper)))


if __name__ == "__main__":
    main()
