"""Makes the reports of docs/gallery.md, which `make docs` then puts into the site.

    python docs/gallery.py OUT

Each is the report page of a run that is made now, on this machine, on a model that pip fetches.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPORTS = {
    "weights": ("Half of an encoder's weights", "prune demo:minilm-l6 --sparsity 0.5 --samples 64 --length 128"),
    "units": (
        "Neurons and heads of an encoder, by the error they leave",
        "prune demo:minilm-l6 --unit neuron,head --params 0.8 --samples 64 --length 128",
    ),
    "layers": (
        "Two layers of a language model",
        "prune demo:smollm2-135m --unit layer --remove 2 --samples 8 --length 256",
    ),
    "search": (
        "A search for what each layer gives",
        "search demo:minilm-l6 --sparsity 0.7 --samples 64 --length 256 --trials 200",
    ),
}


def main() -> None:
    """Carries the runs out and keeps their pages."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name, (title, command) in REPORTS.items():
        print(f"{title}: secateur {command}", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / "out"
            what, model, *options = command.split()
            given = [what, model, "-o", str(made), *options, "--quiet"]
            subprocess.run([sys.executable, "-m", "secateur", *given], check=True, cwd=scratch)
            shutil.copy2(made / "report.html", out / f"{name}.html")


if __name__ == "__main__":
    main()
