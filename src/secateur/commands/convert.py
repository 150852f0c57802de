"""Commands that write a checkpoint in another form: `export`, `pack`, `unpack`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from secateur.commands import options
from secateur.commands.process import friendly
from secateur.commands.showing import show
from secateur.errors import UsageError
from secateur.network import packed
from secateur.report.terminal import exported_table, packed_table

app = typer.Typer()


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
    show(asdict(result), as_json, lambda: exported_table(result))


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
    show(asdict(done), as_json, lambda: packed_table(done))


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
    show(asdict(done), as_json, lambda: packed_table(done))


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise UsageError(f"there is no folder '{path}'.")
    return path
