"""Where in a model's own code something is."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch
from torch import fx

OTHERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))  # code that isn't the model's own


def line_of(error: BaseException) -> str:
    """Returns where in the model's own code an error arose: file, line and what stands there."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(OTHERS)]
    frame = own[-1] if own else frames[-1]
    return f"{frame.filename}:{frame.lineno} ({frame.line})"


def where(node: fx.Node) -> str:
    """Returns what a node is, and the line of the model that it comes from."""
    kind = {"call_module": f"module {node.target}", "output": "the output"}
    text = kind.get(node.op, getattr(node.target, "__name__", str(node.target)))
    lines = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip()]
    frames = [
        index
        for index, line in enumerate(lines)
        if line.startswith("File ") and not any(other in line for other in OTHERS)
    ]
    if not frames:
        return text
    file, number = lines[frames[-1]].split(",")[:2]
    path = file.removeprefix("File ").strip('"').rpartition("/site-packages/")[2]
    return f"{text} at {path}:{number.removeprefix(' line ')}"
