"""Invented results for the tests of the reports, with figures as a real run has them."""

from __future__ import annotations

import dataclasses
from typing import Any

from secateur.result import Comparison, LayerReport, Metrics, Result, StageReport

SHAPES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}
NOT_FASTER = "not faster: the zeros are stored in a dense file, and the CPU's matrix kernels don't skip them"


def layers(blocks: int = 30, errors: bool = True) -> tuple[LayerReport, ...]:
    """Returns the layers of a small llama at 47 to 53 % zeros, in forward order."""
    reports = []
    for block in range(blocks):
        for kind, (name, (rows, columns)) in enumerate(SHAPES.items()):
            error = 0.004 * (1 + block) ** 0.7 * (1 + kind / 3)
            reports.append(
                LayerReport(
                    name=f"model.layers.{block}.{name}",
                    rows=rows,
                    columns=columns,
                    zeros_before=0,
                    zeros=int(rows * columns * (0.47 + 0.02 * (block % 4))),
                    dead_rows=0,
                    dead_columns=0,
                    error_masked=2.4 * error if errors else None,
                    error=error if errors else None,
                    damping=0.01 if errors else None,
                    seconds=0.31,
                )
            )
    return tuple(reports)


def stage(blocks: int = 30, errors: bool = True, notes: tuple[str, ...] = (), **settings: Any) -> StageReport:
    """Returns a stage that set half of the weights to zero; `settings` change what the recipe says."""
    prune: dict[str, Any] = {
        "unit": "weight",
        "sparsity": 0.5,
        "pattern": None,
        "threshold": None,
        "score": None if errors else "l1",
        "solver": "sparsegpt" if errors else "none",
        "allocation": "uniform",
        "per": "layer",
    }
    seconds = {"prelude": 1.2, "plan": 0.1, "gather": 48.0, "solve": 65.3, "propagate": 31.7}
    return StageReport({"prune": prune | settings}, layers(blocks, errors), seconds, notes)


def metrics(name: str, pruned: bool, **figures: Any) -> Metrics:
    """Returns the figures of the dense model or of the pruned one; `figures` change some of them."""
    weights = sum(layer.weights for layer in layers())
    zeros = sum(layer.zeros for layer in layers()) if pruned else 0
    known = Metrics(
        name=name,
        parameters=134_515_008,
        weights=weights,
        zeros=zeros,
        bytes_on_disk=538_090_408,
        text="wiki.test.raw",
        windows=20,
        tokens=20_460,
        perplexity=31.87 if pruned else 23.23,
        bits_per_byte=1.131 if pruned else 1.028,
        kl=0.3127 if pruned else None,
        top1_agreement=0.712 if pruned else None,
        prefill=1043.0 if pruned else 1021.5,
        decode=27.4 if pruned else 27.1,
        prompt="The river",
        sample="The river was cold and <b>wide</b>." if pruned else "The river ran down to the sea.",
        sparsity_by_layer={layer.name: layer.sparsity if pruned else 0.0 for layer in layers()},
    )
    return dataclasses.replace(known, **figures)


def comparison(*others: str, notes: tuple[str, ...] = (NOT_FASTER,)) -> Comparison:
    """Returns the dense model beside pruned ones called `others`; just one if none is named."""
    names = others or ("out/small",)
    return Comparison(metrics("demo:smollm2-135m", False), tuple(metrics(n, True) for n in names), notes)


def result(**changes: Any) -> Result:
    """Returns a run of one stage with its comparison; `changes` replace fields of the result."""
    known = Result(
        output="out/small",
        about={
            "source": "demo:smollm2-135m",
            "architecture": "LlamaForCausalLM",
            "family": "llama",
            "dtype": "float32",
        },
        recipe={
            "version": 1,
            "model": "demo:smollm2-135m",
            "seed": 0,
            "calibration": {"data": "self", "samples": 64, "length": 512},
            "stages": [{"prune": {"unit": "weight", "sparsity": 0.5, "solver": "sparsegpt"}}],
            "output": "out/small",
        },
        calibration={"data": "self", "windows": 64, "length": 512, "tokens": 32_768, "held_out": 8},
        stages=(stage(),),
        comparison=comparison(),
        reload=0.0,
        seconds={
            "load": 2.1,
            "calibrate": 40.2,
            "prune": 146.3,
            "save": 3.3,
            "evaluate": 95.0,
            "total": 286.9,
        },
        peak_memory_pruning=1_234_567_890,
        peak_memory=2_345_678_901,
        versions={"secateur": "0.1.0", "torch": "2.9.1", "transformers": "5.20.0"},
    )
    return dataclasses.replace(known, **changes)
