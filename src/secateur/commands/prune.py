"""Commands that prune: `prune`, `search`, `run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secateur import api
from secateur.automl.choices import has_choices
from secateur.commands import options
from secateur.commands.process import RANK, friendly
from secateur.commands.showing import show
from secateur.errors import SecateurError, UsageError
from secateur.journal import left_over
from secateur.progress import Progress, TerminalProgress
from secateur.recipe import Recipe, read_data
from secateur.report.terminal import result_table
from secateur.result import Result
from secateur.run import run_recipe

NOT_SETTINGS = ("model", "output", "calibration", "evaluate", "no_evaluate", "no_repair")  # of `prune`, by these names
OF_THE_COMMAND = ("resume", "as_json", "quiet", "debug")

app = typer.Typer()


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
    _report(result, as_json)


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

    secateur search MODEL -o OUT --params 0.75 --latency 0.8 --strategy policy --trials 500

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
    latency: options.LatencyLimit = None,
    memory: options.MemoryLimit = None,
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
    _report(result, as_json)


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
    _report(result, as_json)


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


def _report(result: Result, as_json: bool) -> None:
    if RANK != "0":
        return  # the first process reports
    show(result.to_dict(), as_json, lambda: result_table(result))
    if not as_json and result.output is not None:
        typer.echo(f"checkpoint: {result.output}\nreport:     {Path(result.output) / 'report.html'}")
