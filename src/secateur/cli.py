"""The command line: parses, calls the API, prints."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from secateur import api, options
from secateur.automl.choices import has_choices
from secateur.command_process import RANK, carry_out, friendly
from secateur.errors import SecateurError, UsageError
from secateur.journal import left_over
from secateur.network import packed
from secateur.network.graph.network import Fixed
from secateur.progress import Progress, TerminalProgress
from secateur.recipe import Recipe, read_data
from secateur.report.page import comparison_page
from secateur.report.structure import structure_table, units_table
from secateur.report.terminal import comparison_table, exported_table, packed_table, result_table, to_text
from secateur.result import Comparison, Result
from secateur.run import run_recipe

NOT_SETTINGS = ("model", "output", "calibration", "evaluate", "no_evaluate", "no_repair")  # of `prune`, by these names
OF_THE_COMMAND = ("resume", "as_json", "quiet", "debug")


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
    context: typer.Context,
    model: options.Model,
    output: options.Output,
    sparsity: options.Sparsity = None,
    threshold: options.Threshold = None,
    pattern: options.Pattern = None,
    unit: options.Unit = "weight",
    params: options.Params = None,
    macs: options.Macs = None,
    memory: options.Memory = None,
    latency: options.Latency = None,
    remove: options.Remove = None,
    score: options.Score = None,
    gradient: options.Gradient = "block",
    combine: options.Combine = None,
    allocation: options.Allocation = "uniform",
    per: options.Per = "layer",
    include: options.Include = None,
    exclude: options.Exclude = None,
    protect_first: options.ProtectFirst = None,
    protect_last: options.ProtectLast = None,
    min_units: options.MinUnits = None,
    min_per_output: options.MinPerOutput = 0,
    round_to: options.RoundTo = None,
    uniform: options.Uniform = False,
    pad: options.Pad = False,
    solver: options.Solver = None,
    damping: options.Damping = None,
    block_size: options.BlockSize = None,
    no_repair: options.NoRepair = False,
    reconstruct: options.Reconstruct = False,
    reconstruct_passes: options.ReconstructPasses = None,
    reconstruct_halves: options.ReconstructHalves = False,
    calibration: options.Calibration = "self",
    images: options.Images = None,
    samples: options.Samples = None,
    length: options.Length = None,
    compute: options.Compute = None,
    activation_memory: options.ActivationMemory = None,
    evaluate: options.Evaluate = None,
    windows: options.Windows = None,
    no_evaluate: options.NoEvaluate = False,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    stream: options.Stream = None,
    dtype: options.Dtype = None,
    device: options.Device = "auto",
    trust_remote_code: options.Trust = False,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Prune a model: load, calibrate, prune, save, reload, evaluate, report."""
    with friendly(debug, quiet) as progress:
        if no_evaluate and evaluate is not None:
            raise UsageError("give --evaluate or --no-evaluate, not both.")
        recipe = api.single_stage(model, output, calibration, evaluate or not no_evaluate, _settings(context))
        result = _carry_out(recipe, progress, resume)
    _show(result, as_json)


def _settings(context: typer.Context) -> dict[str, Any]:
    """Returns what `prune` was given that recipes know by the same names."""
    given = {
        name: value
        for name, value in context.params.items()
        if name not in (*NOT_SETTINGS, *OF_THE_COMMAND) and value not in ([], ())  # repeatable ones that weren't given
    }
    return {**given, "repair": False} if context.params.get("no_repair") else given


@app.command(
    epilog="""Examples:

    secateur search demo:smollm2-135m -o out/found --sparsity 0.7 --seconds 1200

    secateur search MODEL -o OUT --params 0.75 --strategy policy --trials 500

    secateur search RESNET -o OUT --unit filter --macs 0.7 --images train/ --trials 100

    secateur search MODEL -o OUT --sparsity 0.7 --storage postgresql://host/db"""
)
def search(
    context: typer.Context,
    model: options.Model,
    output: options.Output,
    sparsity: options.Sparsity = None,
    params: options.Params = None,
    macs: options.Macs = None,
    unit: options.Unit = "weight",
    round_to: options.RoundTo = None,
    min_units: options.MinUnits = None,
    halves: options.HalvesToo = True,
    strategy: options.Strategy = None,
    trials: options.Trials = None,
    seconds: options.Seconds = None,
    reward: options.Reward = None,
    table: options.TableFile = None,
    weigh: options.Weigh = None,
    limit: options.Limit = None,
    front: options.Front = None,
    tokens: options.Tokens = None,
    start: options.Start = None,
    level_solver: options.LevelSolver = None,
    levels: options.LevelsFolder = None,
    storage: options.StorageUrl = None,
    study: options.StudyName = None,
    score: options.Score = None,
    losses: options.Losses = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    solver: options.Solver = None,
    damping: options.Damping = None,
    reconstruct: options.Reconstruct = False,
    calibration: options.Calibration = "self",
    images: options.Images = None,
    samples: options.Samples = None,
    length: options.Length = None,
    compute: options.Compute = None,
    activation_memory: options.ActivationMemory = None,
    evaluate: options.Evaluate = None,
    windows: options.Windows = None,
    no_evaluate: options.NoEvaluate = False,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    dtype: options.Dtype = None,
    device: options.Device = "auto",
    trust_remote_code: options.Trust = False,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Search for how much goes from each place, and prune the model as the best candidate says."""
    with friendly(debug, quiet) as progress:
        if no_evaluate and evaluate is not None:
            raise UsageError("give --evaluate or --no-evaluate, not both.")
        given = _settings(context)
        recipe = api.single_stage(model, output, calibration, evaluate or not no_evaluate, given, searches=True)
        result = _carry_out(recipe, progress, resume)
    _show(result, as_json)


@app.command(epilog="Example:\n\n    secateur run examples/half.yaml -o out/half")
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Instead of the recipe's output.")] = None,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's seed (default 0).")] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Carry out a recipe: one or several stages."""
    with friendly(debug, quiet) as progress:
        data = read_data(recipe)
        changes: dict[str, Any] = {"overwrite": True} if overwrite else {}
        changes |= {} if seed is None else {"seed": seed}
        changes |= {} if output is None else {"output": str(output)}
        if has_choices({name: value for name, value in data.items() if name != "search"}):
            result = _choose({**data, **changes}, progress, resume)
        else:
            built = Recipe.read(recipe).model_copy(update=changes)
            if built.output is None:
                raise UsageError(f"{recipe} names no output; add 'output:' to it, or give -o FOLDER.")
            result = _carry_out(built, progress, resume)
    _show(result, as_json)


def _choose(data: dict[str, Any], progress: Progress, resume: bool) -> Result:
    from secateur.run_choices import run_choices  # noqa: PLC0415 (Optuna's import takes a second)

    return run_choices(data, progress, resume)


def _carry_out(recipe: Recipe, progress: Progress, resume: bool) -> Result:
    """Carries out a recipe; if it ends early, says what is kept for --resume."""
    try:
        return run_recipe(recipe, progress, resume)
    except (SecateurError, OSError, MemoryError, KeyboardInterrupt) as error:
        kept = left_over(Path(recipe.output).expanduser()) if recipe.output else None
        if kept is not None and not isinstance(error, UsageError) and RANK == "0":
            (progress.say if isinstance(progress, TerminalProgress) else _say_anyway)(kept)
        raise


def _say_anyway(line: str) -> None:
    """Says what even --quiet has to say."""
    typer.echo(line, err=True)


@app.command(
    epilog="""Examples:

    secateur export out/half --to onnx -o out/half-onnx

    secateur export out/small --to gguf --type q8_0 -o out/small-gguf"""
)
def export(
    model: options.Model,
    output: options.Output,
    to: options.ExportTo,
    kind: options.GgufType = None,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    trust_remote_code: options.Trust = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write a checkpoint for another runtime, and hold what it gives there against torch."""
    from secateur.run_export import export as run_export  # noqa: PLC0415 (few commands need it)

    with friendly(debug, quiet) as progress:
        result = run_export(
            model,
            output=output,
            to=to,
            kind=kind,
            overwrite=overwrite,
            seed=seed,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    _print(asdict(result), as_json, lambda: exported_table(result))


@app.command(epilog="Example:\n\n    secateur evaluate out/half --text wiki.test.raw --windows 20 --length 1024 --json")
def evaluate(
    model: options.Model,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text, .jsonl, hub data set, folder of .wav, table of text and label; self: what the model writes.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    images: options.Images = None,
    windows: Annotated[
        int | None, typer.Option(min=1, help="Windows at most; default 20.", rich_help_panel=options.DATA)
    ] = None,
    length: options.Length = None,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Don't measure speed.")] = False,
    task: options.Task = None,
    limit: options.Limited = None,
    stream: options.Stream = None,
    dtype: options.Dtype = None,
    device: options.Device = "auto",
    trust_remote_code: options.Trust = False,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure one model: perplexity (of an image classifier accuracy), sparsity, size, speed."""
    with friendly(debug, quiet) as progress:
        metrics = api.evaluate(
            model,
            text=text,
            images=images,
            **_windows(windows, images),
            length=length,
            speed=not no_speed,
            tasks=tuple(task or ()),
            limit=limit,
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
        str,
        typer.Option(
            help="Text, .jsonl, hub data set, folder of .wav, table of text and label; self: the first model writes.",
            rich_help_panel=options.DATA,
        ),
    ] = "self",
    images: options.Images = None,
    windows: Annotated[
        int | None, typer.Option(min=1, help="Windows at most; default 8.", rich_help_panel=options.DATA)
    ] = None,
    length: options.Length = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page, too.")] = None,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Don't measure speed.")] = False,
    task: options.Task = None,
    limit: options.Limited = None,
    stream: options.Stream = None,
    dtype: options.Dtype = None,
    device: options.Device = "auto",
    trust_remote_code: options.Trust = False,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure models side by side: quality, KL to the first, size, speed."""
    with friendly(debug, quiet) as progress:
        if len(models) < 2:
            raise UsageError("compare needs two models or more; secateur evaluate measures one.")
        comparison = api.compare(
            models,
            text=text,
            images=images,
            **_windows(windows, images),
            length=length,
            speed=not no_speed,
            tasks=tuple(task or ()),
            limit=limit,
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


@app.command(
    epilog="""Examples:

    secateur bench demo:smollm2-135m out/small --text wiki.test.raw

    secateur bench out/small-onnx out/small-openvino out/small-gguf --threads 1"""
)
def bench(
    models: Annotated[
        list[str], typer.Argument(help="Checkpoints and exports; the others are held against the first.")
    ],
    threads: Annotated[int | None, typer.Option(min=1, help="Of each process; default all processors.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that count.")] = 5,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens that are read.")] = 128,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens that are written.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Texts, or images, that are read at once.")] = 8,
    text: Annotated[str | None, typer.Option(help="Measure checkpoints' perplexity on it, too.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page, too.")] = None,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Time checkpoints and exports side by side, in turns, each in a process of its own."""
    from secateur.benchmark.bench import bench as run_bench  # noqa: PLC0415 (few commands need it)
    from secateur.report.bench import bench_page, bench_table  # noqa: PLC0415

    with friendly(debug, quiet) as progress:
        found = run_bench(
            models,
            threads=threads,
            repeats=repeats,
            prompt=prompt,
            tokens=tokens,
            batch=batch,
            text=text,
            seed=seed,
            progress=progress,
        )
        if report is not None:
            bench_page(found, report)
    _print(asdict(found), as_json, lambda: bench_table(found))


@app.command(epilog="Example:\n\n    secateur pack out/half -o out/half-packed")
def pack(
    checkpoint: Annotated[Path, typer.Argument(help="A pruned checkpoint's folder.")],
    output: options.Output,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Store pruned weights as a bit mask and what is left: really smaller files, to be unpacked before use."""
    with friendly(debug, quiet) as progress:
        done = packed.pack(_folder(checkpoint), output, overwrite, progress)
    _print(asdict(done), as_json, lambda: packed_table(done))


@app.command(epilog="Example:\n\n    secateur unpack out/half-packed -o out/half")
def unpack(
    checkpoint: Annotated[Path, typer.Argument(help="A folder that secateur pack wrote.")],
    output: options.Output,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Restore a packed checkpoint to the very bytes that it was made of."""
    with friendly(debug, quiet) as progress:
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
    model: options.Model,
    layers: Annotated[
        bool, typer.Option("--layers", help="List every layer, or group of units, by its full name.")
    ] = False,
    units: Annotated[bool, typer.Option("--units", help="List the units that can be removed.")] = False,
    stream: options.Stream = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.Trust = False,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show a model's structure: dimensions, layers, parameters, zeros."""
    with friendly(debug, quiet) as progress:
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
        lambda: units_table(found["units"], fixed, layers) if units else structure_table(found, every_layer=layers),
    )


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


def main() -> None:
    """The entry point."""
    carry_out(app)
