"""The proof that a saved checkpoint loads: plain transformers, in a fresh process, gives the same outputs."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.calibration.inputs import model_inputs
from secateur.calibration.windows import Windows
from secateur.errors import SaveError, UsageError
from secateur.evaluation import reload
from secateur.evaluation.quality import outputs
from secateur.network.graph.tracing import evaluating
from secateur.network.graph.values import tensors
from secateur.network.network import Network
from secateur.progress import Progress

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}  # of the largest logit


def reload_difference(network: Network, folder: Path, probe: Windows, progress: Progress) -> float:
    """Loads the saved checkpoint in a fresh process without secateur and compares its output on `probe`.

    A streamed network's checkpoint is loaded with its blocks left on the disk (transformers' and accelerate's own
    offloading), so that memory stays bounded there, too; of float16 its outputs in memory come from float32 products,
    and differ by the rounding.

    Args:
        network: The model in memory, as it was saved; a streamed one reads the saved files.
        folder: The checkpoint.
        probe: One window to feed both.
        progress: Shows progress.

    Returns:
        The largest absolute difference.

    Raises:
        SaveError: The checkpoint doesn't load, or gives other outputs.
    """
    first, others = model_inputs(network, probe.one(0))
    inputs = {network.model.main_input_name: first, **others}
    with torch.inference_mode():
        if network.store is None:  # in its own precision, as the fresh process computes
            expected = network.model(**inputs)[0].float().flatten(0, -2)
        else:
            with outputs(network, probe, progress) as output_of:
                expected = output_of(0)
    blocks = "" if network.store is None else network.block_name(0).rpartition(".")[0]
    return _compared(network.model, folder, inputs, expected, network.source.trust_remote_code, blocks)


def model_difference(model: Any, folder: Path, inputs: tuple[Any, ...], trust_remote_code: bool = False) -> float:
    """Loads a saved checkpoint in a fresh process without secateur and compares its first output.

    Args:
        model: The transformers model in memory, as it was saved.
        folder: The checkpoint.
        inputs: Tensors: what both are fed, in the order of the model's `forward`.
        trust_remote_code: Whether code in the folder that isn't ours may run.

    Returns:
        The largest absolute difference.

    Raises:
        SaveError: The checkpoint doesn't load, or gives other outputs.
        UsageError: Not all of the inputs are tensors.
    """
    if not all(isinstance(one, Tensor) for one in inputs):
        raise UsageError(f"the example inputs of a {type(model).__name__} that is saved have to be tensors.")
    named = dict(zip(inspect.signature(model.forward).parameters, inputs, strict=False))
    with torch.inference_mode(), evaluating(model):
        expected = next(tensors(model(*inputs))).float()
    return _compared(model, folder, named, expected.flatten(0, -2), trust_remote_code)


def _compared(
    model: Any, folder: Path, inputs: dict[str, Tensor], expected: Tensor, trusted: bool, blocks: str = ""
) -> float:
    """Returns the largest difference of (rows, outputs) to what a fresh process makes of a checkpoint."""
    with tempfile.TemporaryDirectory() as scratch:
        fed = Path(scratch) / "inputs.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in inputs.items()}, fed)
        out = Path(scratch) / "output.safetensors"
        own = hasattr(model, "plain")  # reshaped: the code beside the weights is ours, and was just written
        trust = "1" if trusted or own else "0"
        done = subprocess.run(
            [sys.executable, "-I", reload.__file__, str(folder.absolute()), trust, str(fed), str(out), blocks],
            text=True,
            capture_output=True,
            check=False,
            cwd=scratch,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "HF_MODULES_CACHE": str(Path(scratch) / "modules"),  # code that is tried out isn't left anywhere
                "TOKENIZERS_PARALLELISM": "false",
                "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums in another order differ in the last bit
            },
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise SaveError(f"the saved checkpoint doesn't load in a fresh process: {lines[-1]}")
        found = load_file(out)["output"].flatten(0, -2)
    difference = float((found - expected).abs().max())
    allowed = TOLERANCE[model.dtype] * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise SaveError(f"the saved checkpoint gives other outputs than the model in memory (by {difference:g}).")
    return difference
