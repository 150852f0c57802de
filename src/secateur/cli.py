"""The command line: parses, calls the API, prints."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from secateur import api
from secateur.errors import SecateurError, UsageError
from secateur.journal import left_over
from secateur.network import packed
from secateur.network.graph.network import Fixed
from secateur.network.saving import explain
from secateur.progress import Progress, TerminalProgress
from secateur.recipe import Recipe
from secateur.report.page import comparison_page
from secateur.report.structure import structure_table, units_table
from secateur.report.terminal import comparison_table, packed_table, result_table, to_text
from secateur.result import Comparison, Result
from secateur.run import run_recipe

INTERRUPTED = 130
RANK = os.environ.get("RANK", "0")  # set by torchrun
# The base of what the parser raises; typer names the module that it lives in differently from release to release.
Misuse: type[Exception] = typer.BadParameter.__mro__[1]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("secateur"))
        raise typer.Exit


app = typer.Typer(
    help="Prune language models into smaller or sparser checkpoints that stock tools load.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Exit codes: 0 done, 1 failed, 2 misused, 130 interrupted.",
)


@app.callback()
def _common(
    show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Prune language models into smaller or sparser checkpoints that stock tools load."""


Model = Annotated[str, typer.Argument(help="Hub id, checkpoint folder, .gguf file, or demo:NAME.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder to write; it appears only when complete.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything that draws.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; default: the checkpoint's (GGUF: float32).")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps: where blocks are computed.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let code from the checkpoint run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
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
    typer.Option(help="Image classifiers: folder of .jpg and .png files, flat or with a subfolder per class."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from what the same command left, if it ended early.")]
Length = Annotated[int | None, typer.Option(help="Tokens per window; default 1024, or the model's positions.")]


@app.command(
    epilog="""Examples:

    secateur prune demo:smollm2-135m -o out/half --sparsity 0.5

    secateur prune MODEL -o OUT --pattern 2:4 --solver sparsegpt --calibration texts.jsonl

    secateur prune MODEL -o OUT --threshold 0.01 --score l1

    secateur prune MODEL -o OUT --unit neuron --params 0.8

    secateur prune MODEL -o OUT --unit layer --remove 4

    secateur prune CLASSIFIER -o OUT --unit filter --macs 0.7 --images FOLDER"""
)
def prune(
    model: Model,
    output: Output,
    sparsity: Annotated[float | None, typer.Option(help="Share of weights to remove, exact to the weight.")] = None,
    threshold: Annotated[
        str | None, typer.Option(help="Remove what scores below it: a number, p90 (percentile), mean-1std.")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="N:M keeps N of every M consecutive inputs.")] = None,
    unit: Annotated[
        str,
        typer.Option(
            help="What is removed: weight (set to zero), or for good: neuron, head, query-head, channel, layer, "
            "attention, mlp, expert, token; of image classifiers filter, neuron, head; neuron,head share a budget."
        ),
    ] = "weight",
    params: Annotated[float | None, typer.Option(help="Units: share of the parameters that may be left.")] = None,
    macs: Annotated[float | None, typer.Option(help="Units: share of the multiply-accumulates left.")] = None,
    memory: Annotated[str | None, typer.Option(help="Units: what the weights may take, 400MB say.")] = None,
    latency: Annotated[
        float | None, typer.Option(help="Units: share of the time left, measured on this machine.")
    ] = None,
    remove: Annotated[
        int | None, typer.Option(help="Units: how many go (neurons, heads, experts: of every layer).")
    ] = None,
    no_repair: Annotated[
        bool, typer.Option("--no-repair", help="Units: don't fit what reads the removed units anew.")
    ] = False,
    combine: Annotated[
        str | None, typer.Option(help="Units: how a score over coupled tensors becomes one: sum, mean, max.")
    ] = None,
    round_to: Annotated[int | None, typer.Option(help="Units: numbers left are multiples of it.")] = None,
    min_units: Annotated[int | None, typer.Option(help="Units that every layer keeps at least.")] = None,
    uniform: Annotated[
        bool, typer.Option("--uniform", help="Units: the same width everywhere, a plain checkpoint, or an error.")
    ] = False,
    pad: Annotated[
        bool, typer.Option("--pad", help="Units: make widths that differ plain by filling up with zeros.")
    ] = False,
    protect_first: Annotated[int | None, typer.Option(help="Units: blocks at the beginning that keep all.")] = None,
    protect_last: Annotated[int | None, typer.Option(help="Units: blocks at the end that keep all.")] = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="l1, l2, mean_abs, random, wanda, ria, obs, taylor, fisher, snip; default: solver's. Units also: "
            "variance, activation, mean_activation, flap, apoz, entropy, correlation, bn-scale, fpgm, block-influence, "
            "loo-kl, reap, frequency, or your own function: module:function."
        ),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(
            help="none, sparsegpt, admm, alps, refit, swap, dsnot or a chain: admm+refit; units: obs or none."
        ),
    ] = None,
    gradient: Annotated[
        str, typer.Option(help="Of what gradient scores take gradients: block (its reconstruction) or loss.")
    ] = "block",
    allocation: Annotated[
        str, typer.Option(help="uniform (each layer the same), global, error; weights: owl, alpha; units: ramp.")
    ] = "uniform",
    reconstruct: Annotated[
        bool, typer.Option("--reconstruct", help="Tune each block's kept weights to give the dense block's outputs.")
    ] = False,
    reconstruct_passes: Annotated[int | None, typer.Option(help="Passes over the activations; default 6.")] = None,
    reconstruct_halves: Annotated[
        bool, typer.Option("--reconstruct-halves", help="Tune attention and MLP one after the other.")
    ] = False,
    per: Annotated[str, typer.Option(help="Compare weights within a layer or within an output.")] = "layer",
    min_per_output: Annotated[int, typer.Option(help="Weights that each output keeps at least.")] = 0,
    include: Annotated[list[str] | None, typer.Option(help="Glob on layer names; repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Glob on layer names; repeatable.")] = None,
    damping: Annotated[
        float | None, typer.Option(help="Added to the Gram matrix, relative to its diagonal; default 0.01, admm 0.1.")
    ] = None,
    block_size: Annotated[int | None, typer.Option(help="Columns that sparsegpt handles at once.")] = None,
    calibration: Annotated[
        str, typer.Option(help="self (the model writes it), text or .jsonl file, hub data set; folder of .wav.")
    ] = "self",
    images: Images = None,
    samples: Annotated[int | None, typer.Option(help="Calibration windows; default 32 (images: 256).")] = None,
    length: Length = None,
    compute: Annotated[
        str | None,
        typer.Option(help="Calibration's forward passes: auto (model's dtype), float32, bfloat16."),
    ] = None,
    activation_memory: Annotated[
        str | None, typer.Option(help="Memory for activations, 500MB say; more are kept in files. Default 2GB.")
    ] = None,
    evaluate: Annotated[
        str | None, typer.Option(help="Text, or folder of images, to measure on; default: what was held back.")
    ] = None,
    windows: Annotated[int | None, typer.Option(help="Evaluation windows at most; default 20.")] = None,
    no_evaluate: Annotated[bool, typer.Option("--no-evaluate", help="Skip the evaluation.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    stream: Stream = None,
    resume: Resume = False,
    dtype: Dtype = None,
    device: Device = "auto",
    trust_remote_code: Trust = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Prune a model: load, calibrate, prune, save, reload, evaluate, report."""
    options = {
        "sparsity": sparsity,
        "threshold": threshold,
        "pattern": pattern,
        "unit": unit,
        "params": params,
        "macs": macs,
        "memory": memory,
        "latency": latency,
        "remove": remove,
        "repair": False if no_repair else None,
        "combine": combine,
        "round_to": round_to,
        "min_units": min_units,
        "uniform": uniform,
        "pad": pad,
        "protect_first": protect_first,
        "protect_last": protect_last,
        "score": score,
        "solver": solver,
        "gradient": gradient,
        "allocation": allocation,
        "reconstruct": reconstruct,
        "reconstruct_passes": reconstruct_passes,
        "reconstruct_halves": reconstruct_halves,
        "per": per,
        "min_per_output": min_per_output,
        "include": include or [],
        "exclude": exclude or [],
        "damping": damping,
        "block_size": block_size,
        "images": images,
        "samples": samples,
        "length": length,
        "compute": compute,
        "activation_memory": activation_memory,
        "windows": windows,
        "overwrite": overwrite,
        "stream": stream,
        "dtype": dtype,
        "device": device,
        "trust_remote_code": trust_remote_code,
        "seed": seed,
    }
    with _friendly(debug, quiet) as progress:
        if no_evaluate and evaluate is not None:
            raise UsageError("give --evaluate or --no-evaluate, not both.")
        recipe = api.single_stage(model, output, calibration, evaluate or not no_evaluate, options)
        result = _carry_out(recipe, progress, resume)
    _show(result, as_json)


@app.command(epilog="Example:\n\n    secateur run examples/half.yaml -o out/half")
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Instead of the recipe's output.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    resume: Resume = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's seed (default 0).")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Carry out a recipe: one or several stages."""
    with _friendly(debug, quiet) as progress:
        built = Recipe.read(recipe)
        changes: dict[str, Any] = {"overwrite": overwrite or built.overwrite}
        changes |= {} if seed is None else {"seed": seed}
        changes |= {} if output is None else {"output": str(output)}
        built = built.model_copy(update=changes)
        if built.output is None:
            raise UsageError(f"{recipe} names no output; add 'output:' to it, or give -o FOLDER.")
        result = _carry_out(built, progress, resume)
    _show(result, as_json)


def _carry_out(recipe: Recipe, progress: Progress, resume: bool) -> Result:
    """Carries out a recipe; if it ends early, says what is kept for --resume."""
    try:
        return run_recipe(recipe, progress, resume)
    except (SecateurError, OSError, MemoryError, KeyboardInterrupt) as error:
        kept = left_over(Path(recipe.output).expanduser()) if recipe.output else None
        if kept is not None and not isinstance(error, UsageError):
            progress.say(kept)
        raise


@app.command(epilog="Example:\n\n    secateur evaluate out/half --text wiki.test.raw --windows 20 --length 1024 --json")
def evaluate(
    model: Model,
    text: Annotated[
        str | None, typer.Option(help="Text or .jsonl file, hub data set, or folder of .wav files.")
    ] = None,
    images: Images = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Windows at most; default 20.")] = None,
    length: Length = None,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Don't measure speed.")] = False,
    stream: Stream = None,
    dtype: Dtype = None,
    device: Device = "auto",
    trust_remote_code: Trust = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure one model: perplexity (of an image classifier accuracy), sparsity, size, speed."""
    with _friendly(debug, quiet) as progress:
        metrics = api.evaluate(
            model,
            text=text,
            images=images,
            **_windows(windows, images),
            length=length,
            speed=not no_speed,
            stream=stream,
            seed=seed,
            progress=progress,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    found = Comparison(metrics, (), () if metrics.mask is None else (f"Mask: {metrics.mask}.",))
    _print(found.to_dict()["dense"], as_json, lambda: comparison_table(found))


@app.command(epilog="Example:\n\n    secateur compare demo:smollm2-135m out/half")
def compare(
    models: Annotated[list[str], typer.Argument(help="Two or more models; the first is the dense one.")],
    text: Annotated[
        str, typer.Option(help="Text, .jsonl, hub data set, folder of .wav; self: the first model writes it.")
    ] = "self",
    images: Images = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Windows at most; default 8.")] = None,
    length: Length = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page, too.")] = None,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Don't measure speed.")] = False,
    stream: Stream = None,
    dtype: Dtype = None,
    device: Device = "auto",
    trust_remote_code: Trust = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure models side by side: quality, KL to the first, size, speed."""
    with _friendly(debug, quiet) as progress:
        if len(models) < 2:
            raise UsageError("compare needs two models or more; secateur evaluate measures one.")
        comparison = api.compare(
            models,
            text=text,
            images=images,
            **_windows(windows, images),
            length=length,
            speed=not no_speed,
            stream=stream,
            seed=seed,
            progress=progress,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        if report is not None:
            comparison_page(comparison, report)
    _print(comparison.to_dict(), as_json, lambda: comparison_table(comparison))


def _windows(windows: int | None, images: str | None) -> dict[str, int]:
    """Returns how many windows were asked for, if any were; images aren't counted by them."""
    if windows is not None and images is not None:
        raise UsageError("--windows counts windows of text; all images of the folder are measured on.")
    return {} if windows is None else {"windows": windows}


@app.command(epilog="Example:\n\n    secateur pack out/half -o out/half-packed")
def pack(
    checkpoint: Annotated[Path, typer.Argument(help="A pruned checkpoint's folder.")],
    output: Output,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Store pruned weights as a bit mask and what is left: really smaller files, to be unpacked before use."""
    with _friendly(debug, quiet) as progress:
        done = packed.pack(_folder(checkpoint), output, overwrite, progress)
    _print(asdict(done), as_json, lambda: packed_table(done))


@app.command(epilog="Example:\n\n    secateur unpack out/half-packed -o out/half")
def unpack(
    checkpoint: Annotated[Path, typer.Argument(help="A folder that secateur pack wrote.")],
    output: Output,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Restore a packed checkpoint to the very bytes that it was made of."""
    with _friendly(debug, quiet) as progress:
        done = packed.unpack(_folder(checkpoint), output, overwrite, progress)
    _print(asdict(done), as_json, lambda: packed_table(done))


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise UsageError(f"there is no folder '{path}'.")
    return path


@app.command(
    epilog="Examples:\n\n    secateur inspect demo:smollm2-135m\n\n    secateur inspect demo:smollm2-135m --units"
)
def inspect(
    model: Model,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer by its full name.")] = False,
    units: Annotated[bool, typer.Option("--units", help="List the units that can be removed.")] = False,
    stream: Stream = None,
    dtype: Dtype = None,
    trust_remote_code: Trust = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show a model's structure: dimensions, layers, parameters, zeros."""
    with _friendly(debug, quiet) as progress:
        found = api.inspect(
            model,
            units=units,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            seed=seed,
            stream=stream,
            progress=progress,
        )
    fixed = [Fixed(**one) for one in found.get("fixed", ())]
    _print(
        found,
        as_json,
        lambda: units_table(found["units"], fixed) if units else structure_table(found, every_layer=layers),
    )


def main() -> None:
    """The entry point."""
    signal.signal(signal.SIGTERM, _terminated)
    if "--debug" not in sys.argv:
        sys.excepthook = _unexpected
    sys.unraisablehook = _once_more
    # get_command(app), as app() would put typer's own excepthook in place of ours
    code = _parse_and_run(typer.main.get_command(app))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done or cleaned up; leaving takes a moment
    if code == INTERRUPTED:
        sys.stdout.flush()
        os._exit(code)  # if a library was just executing generated code, python itself would die of the signal
    sys.exit(code)


def _parse_and_run(command: Any) -> int:
    """Returns the exit code; what the parser doesn't understand gets one line like any other error."""
    try:
        code = command(standalone_mode=False) or 0
    except typer.Abort:
        code = INTERRUPTED
    except Misuse as error:
        found: Any = error
        if message := found.format_message():  # empty where the help was printed instead
            path = found.ctx.command_path if found.ctx else "secateur"
            end = "" if message.endswith((".", "?")) else "."
            _complain(f"{message}{end} '{path} --help' says more.")
        return int(found.exit_code)
    if code == INTERRUPTED:
        _complain("interrupted; there is no half-written output.")
    return int(code)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """A polite kill cleans up as Ctrl-C does."""
    raise KeyboardInterrupt


def _once_more(unraisable: Any) -> None:
    """An interrupt that hits a destructor or a callback is lost there, so it is sent again a moment later."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    again = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
    again.daemon = True
    again.start()


def _unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """One line for a bug of ours; python exits with 1 after it."""
    _complain(f"unexpected {kind.__name__}: {error}. Please report it, with what --debug prints.")


@contextmanager
def _friendly(debug: bool, quiet: bool) -> Iterator[Progress]:
    """Gives a progress display, and turns errors into one line and an exit code."""
    try:
        with Progress() if quiet or RANK != "0" else TerminalProgress() as progress:
            yield progress
    except SecateurError as error:
        if debug:
            raise
        _complain(str(error))
        raise typer.Exit(error.exit_code) from error
    except OSError as error:
        if debug:
            raise
        _complain(explain(error, Path(error.filename or "the output")))
        raise typer.Exit(1) from error
    except MemoryError as error:
        if debug:
            raise
        _complain("out of memory; use fewer --samples or a shorter --length.")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error  # main says so


def _complain(message: str) -> None:
    line = ("" if RANK == "0" else f"rank {RANK}: ") + " ".join(message.split())
    Console(stderr=True).print(f"error: {line}", style="red", markup=False, highlight=False, soft_wrap=True)


def _show(result: Result, as_json: bool) -> None:
    if RANK != "0":
        return  # the first process reports
    _print(result.to_dict(), as_json, lambda: result_table(result))
    if not as_json and result.output is not None:
        typer.echo(f"checkpoint: {result.output}\nreport:     {Path(result.output) / 'report.html'}")


def _print(data: Any, as_json: bool, table: Any) -> None:
    if as_json:
        typer.echo(json.dumps(data, indent=1))
    elif sys.stdout.isatty():
        Console(width=min(100, Console().width)).print(table())
    else:
        typer.echo(to_text(table()))
