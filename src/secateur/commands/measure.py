"""Commands that look at models: `evaluate`, `compare`, `bench`, `inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from secateur import api
from secateur.commands import options
from secateur.commands.process import friendly
from secateur.commands.showing import show
from secateur.errors import UsageError
from secateur.network.graph.network import Fixed
from secateur.report.page import comparison_page
from secateur.report.structure import structure_table, units_table
from secateur.report.terminal import comparison_table
from secateur.result import Comparison

app = typer.Typer()


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
    show(found.to_dict()["dense"], as_json, lambda: comparison_table(found))


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
    show(comparison.to_dict(), as_json, lambda: comparison_table(comparison))


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
    show(asdict(found), as_json, lambda: bench_table(found))


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
    show(
        found,
        as_json,
        lambda: units_table(found["units"], fixed, layers) if units else structure_table(found, every_layer=layers),
    )
