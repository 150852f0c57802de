"""Whisper with fewer neurons: what it writes before and after, with repair and without.

Removes a fifth of the neurons of encoder and decoder, calibrated on sentences of a text that espeak-ng speaks, and lets
each model write down a recording. MODEL is a Whisper checkpoint folder, TEXT a .jsonl file with a key `text`, SOUND a
.wav file. Figures go to bench/results/whisper.json.

    python bench/whisper.py --model MODEL --text TEXT --sound SOUND
    python bench/whisper.py --table
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from protocol import HERE, secateur

RESULTS = HERE / "results" / "whisper.json"
VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-us+f3", "en-gb+f4", "en-us+m3")
SENTENCES = 48
STAGE = ["--unit", "neuron", "--sparsity", "0.2"]
ROWS: dict[str, list[str]] = {
    "obs, repair": STAGE,
    "obs, no repair": [*STAGE, "--no-repair"],
    "l2, no repair": [*STAGE, "--score", "l2", "--no-repair"],
}


def sentences(text: Path) -> list[str]:
    """Returns the first sentences of 8 to 25 words, one from each document."""
    found = []
    for line in text.read_text(encoding="utf-8").splitlines():
        for sentence in re.split(r"(?<=[.!?])\s+", json.loads(line)["text"]):
            if 8 <= len(sentence.split()) <= 25 and sentence.isascii():
                found.append(sentence)
                break
        if len(found) == SENTENCES:
            break
    return found


def speak(text: Path, folder: Path) -> None:
    """Has espeak-ng speak sentences, each by the next voice."""
    folder.mkdir()
    for number, sentence in enumerate(sentences(text)):
        wav = folder / f"{number:02}.wav"
        subprocess.run(["espeak-ng", "-v", VOICES[number % len(VOICES)], "-w", str(wav), sentence], check=True)


def table(results: dict[str, Any]) -> str:
    """Returns the table in markdown: a row per model."""
    lines = ["| model | parameters | writes |", "|---|---:|---|"]
    for name, row in results["rows"].items():
        share = f"{row['parameters']:.0%}" if "parameters" in row else ""
        lines.append(f"| {name} | {share} | {row['writes']} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--sound", type=Path)
    parser.add_argument("--table", action="store_true", help="Print the table of what was measured.")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(RESULTS.read_text())))
        return
    if None in (arguments.model, arguments.text, arguments.sound):
        parser.error("--model, --text and --sound are needed.")
    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng isn't installed; it speaks the calibration sentences.")
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        speak(arguments.text, scratch / "spoken")
        heard = scratch / "heard"
        heard.mkdir()
        shutil.copy(arguments.sound, heard / arguments.sound.name)
        for name, options in {"dense": None, **ROWS}.items():
            model = arguments.model if options is None else scratch / "out"
            row: dict[str, Any] = {}
            if options is not None:
                given = ["--calibration", str(scratch / "spoken"), "--samples", str(SENTENCES), "--no-evaluate"]
                done = secateur("prune", str(arguments.model), "-o", str(model), *options, *given, "--overwrite")
                budget = done["stages"][0]["budget"]
                row = {
                    "parameters": round(budget["after"]["parameters"] / budget["before"]["parameters"], 4),
                    "reload": done["reload"],
                    "options": " ".join(options),
                }
            found = secateur("evaluate", str(model), "--text", str(heard), "--no-speed")
            row |= {"perplexity": round(found["perplexity"], 3), "writes": found["sample"].strip()}
            rows[name] = row
            print(name, row, flush=True)
            command = "python bench/whisper.py --model MODEL --text TEXT --sound SOUND"
            RESULTS.write_text(json.dumps({"rows": rows, "sentences": SENTENCES, "command": command}, indent=1) + "\n")


if __name__ == "__main__":
    main()
