"""The options of the command line, in the panels that --help shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

GOES = "What goes"
CHOSEN = "How it is chosen"
CORRECTED = "How what is left is corrected"
DATA = "Calibration and evaluation"
WHERE = "How it is computed"

Model = Annotated[str, typer.Argument(help="Hub id, checkpoint folder, .gguf file, or demo:NAME.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder to write; it appears only when complete.")]
Seed = Annotated[
    int,
    typer.Option(min=0, max=2**32 - 1, metavar="<int>", help="Seed of everything that draws.", rich_help_panel=WHERE),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16 or float16; default: the checkpoint's (GGUF: float32).", rich_help_panel=WHERE
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps: where blocks are computed.", rich_help_panel=WHERE)]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let code from the checkpoint run.", rich_help_panel=WHERE)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, nothing but errors and the result.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Read blocks from the files when their turn comes; default: if the model exceeds half the free memory.",
    ),
]
Images = Annotated[
    str | None,
    typer.Option(
        help="Image classifiers: folder of .jpg and .png files, flat or with a subfolder per class.",
        rich_help_panel=DATA,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from what the same command left, if it ended early.")]
Length = Annotated[
    int | None, typer.Option(help="Tokens per window; default 1024, or the model's positions.", rich_help_panel=DATA)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]


Sparsity = Annotated[
    float | None, typer.Option(help="Share of weights to remove, exact to the weight.", rich_help_panel=GOES)
]
Threshold = Annotated[
    str | None,
    typer.Option(help="Remove what scores below it: a number, p90 (percentile), mean-1std.", rich_help_panel=GOES),
]
Pattern = Annotated[str | None, typer.Option(help="N:M keeps N of every M consecutive inputs.", rich_help_panel=GOES)]
Unit = Annotated[
    str,
    typer.Option(
        help="What is removed: weight (set to zero), or for good: neuron, head, query-head, channel, layer, "
        "attention, mlp, expert, token; of image classifiers filter, neuron, head; neuron,head share a budget.",
        rich_help_panel=GOES,
    ),
]
Params = Annotated[
    float | None, typer.Option(help="Units: share of the parameters that may be left.", rich_help_panel=GOES)
]
Macs = Annotated[
    float | None, typer.Option(help="Units: share of the multiply-accumulates left.", rich_help_panel=GOES)
]
Memory = Annotated[str | None, typer.Option(help="Units: what the weights may take, 400MB say.", rich_help_panel=GOES)]
Latency = Annotated[
    float | None, typer.Option(help="Units: share of the time left, measured on this machine.", rich_help_panel=GOES)
]
Remove = Annotated[
    int | None, typer.Option(help="Units: how many go (neurons, heads, experts: of every layer).", rich_help_panel=GOES)
]
Score = Annotated[
    str | None,
    typer.Option(
        help="l1, l2, mean_abs, random, wanda, ria, obs, taylor, fisher, snip; default: solver's. Units also: "
        "variance, activation, mean_activation, flap, apoz, entropy, correlation, bn-scale, fpgm, block-influence, "
        "loo-kl, reap, frequency, or your own function: module:function.",
        rich_help_panel=CHOSEN,
    ),
]
Gradient = Annotated[
    str,
    typer.Option(
        help="Of what gradient scores take gradients: block (its reconstruction) or loss.", rich_help_panel=CHOSEN
    ),
]
Combine = Annotated[
    str | None,
    typer.Option(help="Units: how a score over coupled tensors becomes one: sum, mean, max.", rich_help_panel=CHOSEN),
]
Allocation = Annotated[
    str,
    typer.Option(
        help="uniform (each layer the same), global, error; weights: owl, alpha; units: ramp.", rich_help_panel=CHOSEN
    ),
]
Per = Annotated[str, typer.Option(help="Compare weights within a layer or within an output.", rich_help_panel=CHOSEN)]
Include = Annotated[
    list[str] | None,
    typer.Option(help="Glob on names of layers or groups of units; repeatable.", rich_help_panel=CHOSEN),
]
Exclude = Include
ProtectFirst = Annotated[
    int | None, typer.Option(help="Units: blocks at the beginning that keep all.", rich_help_panel=CHOSEN)
]
ProtectLast = Annotated[
    int | None, typer.Option(help="Units: blocks at the end that keep all.", rich_help_panel=CHOSEN)
]
MinUnits = Annotated[int | None, typer.Option(help="Units that every layer keeps at least.", rich_help_panel=CHOSEN)]
MinPerOutput = Annotated[int, typer.Option(help="Weights that each output keeps at least.", rich_help_panel=CHOSEN)]
RoundTo = Annotated[int | None, typer.Option(help="Units: numbers left are multiples of it.", rich_help_panel=CHOSEN)]
Uniform = Annotated[
    bool,
    typer.Option(
        "--uniform", help="Units: the same width everywhere, a plain checkpoint, or an error.", rich_help_panel=CHOSEN
    ),
]
Pad = Annotated[
    bool,
    typer.Option(
        "--pad", help="Units: make widths that differ plain by filling up with zeros.", rich_help_panel=CHOSEN
    ),
]
Solver = Annotated[
    str | None,
    typer.Option(
        help="none, sparsegpt, admm, alps, refit, swap, dsnot or a chain: admm+refit; units: obs, greedy, none.",
        rich_help_panel=CORRECTED,
    ),
]
Damping = Annotated[
    float | None,
    typer.Option(
        help="Added to the Gram matrix, relative to its diagonal; default 0.01, admm 0.1.", rich_help_panel=CORRECTED
    ),
]
BlockSize = Annotated[
    int | None, typer.Option(help="Columns that sparsegpt handles at once.", rich_help_panel=CORRECTED)
]
NoRepair = Annotated[
    bool,
    typer.Option("--no-repair", help="Units: don't fit what reads the removed units anew.", rich_help_panel=CORRECTED),
]
Reconstruct = Annotated[
    bool,
    typer.Option(
        "--reconstruct",
        help="Tune each block's kept weights to give the dense block's outputs.",
        rich_help_panel=CORRECTED,
    ),
]
ReconstructPasses = Annotated[
    int | None, typer.Option(help="Passes over the activations; default 6.", rich_help_panel=CORRECTED)
]
ReconstructHalves = Annotated[
    bool,
    typer.Option("--reconstruct-halves", help="Tune attention and MLP one after the other.", rich_help_panel=CORRECTED),
]
Calibration = Annotated[
    str,
    typer.Option(
        help="self (the model writes it), text or .jsonl file, hub data set; folder of .wav.", rich_help_panel=DATA
    ),
]
Samples = Annotated[
    int | None, typer.Option(help="Calibration windows; default 32 (images: 256).", rich_help_panel=DATA)
]
Compute = Annotated[
    str | None,
    typer.Option(help="Calibration's forward passes: auto (model's dtype), float32, bfloat16.", rich_help_panel=DATA),
]
ActivationMemory = Annotated[
    str | None,
    typer.Option(help="Memory for activations, 500MB say; more are kept in files. Default 2GB.", rich_help_panel=DATA),
]
Evaluate = Annotated[
    str | None,
    typer.Option(help="Text, or folder of images, to measure on; default: what was held back.", rich_help_panel=DATA),
]
Windows = Annotated[int | None, typer.Option(help="Evaluation windows at most; default 20.", rich_help_panel=DATA)]
NoEvaluate = Annotated[bool, typer.Option("--no-evaluate", help="Skip the evaluation.", rich_help_panel=DATA)]


Task = Annotated[
    list[str] | None,
    typer.Option(help="A zero-shot task of lm-eval, by name or as .yaml file. Repeatable.", rich_help_panel=DATA),
]
Limited = Annotated[
    int | None, typer.Option("--limit", min=1, help="Documents per task at most.", rich_help_panel=DATA)
]
ExportTo = Annotated[str, typer.Option("--to", help="onnx, openvino, torch (a torch.export program) or gguf.")]
GgufType = Annotated[
    str | None,
    typer.Option(
        "--type", help="Of a GGUF's matrices: f16 (default), q8_0, q4_0; of ONNX and OpenVINO: float32 (default), int8."
    ),
]


SEARCHED = "How it is searched for"
Strategy = Annotated[
    str | None,
    typer.Option(help="evolution (default), policy, annealing, random, tpe, nsga2, cmaes.", rich_help_panel=SEARCHED),
]
Trials = Annotated[
    int | None,
    typer.Option(min=1, help="Candidates to judge at most; 200 if no --seconds either.", rich_help_panel=SEARCHED),
]
Seconds = Annotated[float | None, typer.Option(min=0, help="Wall time of judging at most.", rich_help_panel=SEARCHED)]
Reward = Annotated[
    str | None,
    typer.Option(
        help="kl (minus the divergence from the dense model, the default), perplexity, accuracy (of a classifier on "
        "--table), or your own module:function of (network, tokens).",
        rich_help_panel=SEARCHED,
    ),
]
TableFile = Annotated[
    str | None, typer.Option("--table", help="Text and label, for --reward accuracy.", rich_help_panel=SEARCHED)
]
Weigh = Annotated[
    list[str] | None,
    typer.Option(
        help="Take a share of the dense model's params, macs, memory or latency off the reward: macs=0.5. Repeatable.",
        rich_help_panel=SEARCHED,
    ),
]
Limit = Annotated[
    list[str] | None,
    typer.Option(help="Refuse candidates with a larger share: latency=0.8. Repeatable.", rich_help_panel=SEARCHED),
]
LatencyLimit = Annotated[
    float | None,
    typer.Option("--latency", help="Refuse candidates that take a larger share of the time.", rich_help_panel=SEARCHED),
]
MemoryLimit = Annotated[
    float | None,
    typer.Option("--memory", help="Refuse candidates that take a larger share of memory.", rich_help_panel=SEARCHED),
]
Front = Annotated[
    list[str] | None,
    typer.Option(help="A measure that is a goal of its own: a Pareto front. Repeatable.", rich_help_panel=SEARCHED),
]
Tokens = Annotated[
    list[int] | None,
    typer.Option(help="Tokens to judge on, repeatable, ascending; default 512, 2048, 8192.", rich_help_panel=SEARCHED),
]
Start = Annotated[
    str | None, typer.Option(help="knapsack (by measured losses, the default) or uniform.", rich_help_panel=SEARCHED)
]
HalvesToo = Annotated[
    bool,
    typer.Option("--halves/--no-halves", help="Units: whether whole halves of layers may go.", rich_help_panel=GOES),
]
Losses = Annotated[
    str | None,
    typer.Option(
        help="What the knapsack goes by: loss (errors weighed by the next-token loss, the default), layer.",
        rich_help_panel=SEARCHED,
    ),
]
LevelSolver = Annotated[
    str | None, typer.Option(help="What solves the level database; default sparsegpt.", rich_help_panel=SEARCHED)
]
LevelsFolder = Annotated[
    str | None,
    typer.Option(help="Folder of level databases; default .secateur-levels beside OUT.", rich_help_panel=SEARCHED),
]
StorageUrl = Annotated[
    str | None,
    typer.Option(
        help="Optuna storage that workers share: postgresql://...; default study.db in OUT.", rich_help_panel=SEARCHED
    ),
]
StudyName = Annotated[str | None, typer.Option(help="The study's name there.", rich_help_panel=SEARCHED)]
