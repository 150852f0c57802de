"""Exports a checkpoint for another runtime, and holds what it gives there against torch."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Iterable
from contextlib import redirect_stderr
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from secateur.errors import ExportError, SaveError, UsageError, did_you_mean, first_line
from secateur.exports.gguf import FILE as GGUF_FILE
from secateur.exports.gguf import KINDS, check_gguf, uneven, write_gguf
from secateur.exports.onnx import Onnx
from secateur.exports.openvino import OpenVino
from secateur.exports.program import Program
from secateur.exports.programs import Exportable, exportable, exportable_network
from secateur.exports.runtime import Runtime
from secateur.exports.torch_program import TorchProgram
from secateur.network.graph.tracing import evaluating
from secateur.network.network import Network
from secateur.network.quiet import quiet_transformers
from secateur.network.saving import RESULT_FILE, check_output, complete_folder
from secateur.outcome import versions
from secateur.progress import Progress
from secateur.result import Exported
from secateur.timing import timed

RUNTIMES: dict[str, Runtime] = {one.name: one for one in (Onnx(), OpenVino(), TorchProgram())}
FORMATS = (*RUNTIMES, "gguf")
TOLERANCE = 1e-3  # of the largest output
TOLERANCE_HALF = 2e-2  # of the same, where weights or products are of half precision
BESIDE = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "*.jinja",
    "generation_config.json",
)
PROBE = 24  # tokens that a GGUF is held against torch on


def export(
    model: str | Path | nn.Module,
    *,
    output: str | Path,
    to: str,
    kind: str | None = None,
    example_inputs: Any = None,
    overwrite: bool = False,
    seed: int = 0,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Exports a checkpoint, or a network in memory.

    Args:
        model: A checkpoint, as for `load`, which is computed in float32; or any network in float32.
        output: The folder to write.
        to: `onnx`, `openvino`, `torch` or `gguf`.
        kind: Of a GGUF's matrices: `f16` (where nothing is said), `q8_0` or `q4_0`. Of ONNX and
            OpenVINO: `float32`, or `int8`, which quantizes weights, and activations as they come.
        example_inputs: Of a network in memory: what it takes, a tensor or a tuple of tensors whose first axes count
            examples. The export takes any number of them.
        overwrite: Whether an export that is there may be replaced.
        seed: Of the inputs that the outputs are compared on.
        trust_remote_code: Whether code that comes with the checkpoint may run.
        progress: Shows progress.

    Returns:
        What was written, and how far its outputs are from torch's.

    Raises:
        UsageError: The format doesn't know the model, a package is missing, or the output exists.
        ExportError: The format can't express the model, or gives other outputs: then what was written stays in
            `OUTPUT.failed`.
        ModelError, SaveError: See `load` and `complete_folder`.
    """
    progress = progress or Progress()
    folder = Path(output).expanduser()
    _check(to, kind)
    check_output(folder, overwrite)
    if isinstance(model, nn.Module):
        if to == "gguf":
            raise UsageError("export --to gguf is for checkpoints of language models; save the model first.")
        with evaluating(model):
            return _export(exportable_network(model, example_inputs), folder, to, kind, seed, {}, progress)
    if example_inputs is not None:
        raise UsageError("example_inputs= is for networks in memory; a checkpoint says what its model takes.")
    seconds: dict[str, float] = {}
    with timed(seconds, "load"):
        source = exportable(str(model), "float32", trust_remote_code, progress, seed, programs=to != "gguf")
    return _export(source, folder, to, kind, seed, seconds, progress)


def _export(
    source: Exportable,
    folder: Path,
    to: str,
    kind: str | None,
    seed: int,
    seconds: dict[str, float],
    progress: Progress,
) -> Exported:
    """Writes an export, and holds it against torch."""
    if to == "gguf":
        check_gguf(source.network)
    tick = progress.bar(f"exporting to {to}", 2 * max(1, len(source.programs)))
    with complete_folder(folder) as scratch:
        try:
            if to == "gguf":
                found = _gguf(source, scratch, kind or KINDS[0], seed, seconds)
                tick()
                tick()
            else:
                found = _programs(RUNTIMES[to], kind == "int8", source, scratch, seconds, tick)
        except ExportError:
            _keep_failed(scratch, folder)
            raise
        files = {path.name: path.stat().st_size for path in sorted(scratch.iterdir())}
        _copy_beside(source, scratch)
        result = replace(found, output=str(folder), to=to, files=files, seconds=seconds)
        told = {"export": asdict(result), "versions": versions()}
        (scratch / RESULT_FILE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return result


def _check(to: str, kind: str | None) -> None:
    if to not in FORMATS:
        raise UsageError(f"unknown format '{to}'.{did_you_mean(to, FORMATS)} There are {', '.join(FORMATS)}.")
    kinds = KINDS if to == "gguf" else RUNTIMES[to].kinds
    if kind is not None and kind not in kinds:
        raise UsageError(f"{to} has no type '{kind}'.{did_you_mean(kind, kinds)} There are {', '.join(kinds)}.")
    if kind == "int8":
        RUNTIMES[to].check_quantizer()
    if to == "gguf":
        if find_spec("gguf") is None:
            raise UsageError("export --to gguf takes gguf: pip install 'secateur[export]'.")
    else:
        RUNTIMES[to].check_writer()


def _programs(
    runtime: Runtime, int8: bool, source: Exportable, scratch: Path, seconds: dict[str, float], tick: Any
) -> Exported:
    """Writes each program, and holds its outputs against torch's; those of int8 products are told beside that."""
    worst: float | None = None
    notes: list[str] = []
    missing = runtime.missing_runtime
    for program in source.programs:
        with timed(seconds, "write"):
            runtime.write(program, scratch)
        tick()
        if missing is None:
            with timed(seconds, "check"):
                difference = _difference(_pairs(runtime, program, scratch))
            _check_difference(program.name, difference, TOLERANCE)
            worst = max(worst or 0.0, difference)
            if int8:
                notes.append(_quantized(runtime, program, scratch, seconds))
        tick()
    if missing:
        notes.append(f"Nothing has run it yet: pip install {missing} to have it held against torch.")
    by = None if missing else next(iter(runtime.runs_with), "torch")
    return Exported("", "", {}, worst, by, {}, tuple(notes))


def _quantized(runtime: Runtime, program: Program, scratch: Path, seconds: dict[str, float]) -> str:
    """Makes a program int8 that was right in float32; returns how far its outputs are now, in words."""
    with timed(seconds, "quantize"):
        matrices = runtime.quantize(program, scratch)
    with timed(seconds, "check"):
        pairs = _pairs(runtime, program, scratch)
        difference = _difference(pairs)
    if not difference < 1:
        raise ExportError(
            f"{program.name}: int8 outputs have nothing to do with torch's ({difference:.2g} of the largest)."
        )
    first, wanted = pairs[0]
    agreed = (
        ""
        if first.ndim < 2
        else f", the first output's largest is the same in {_agreement(first, wanted):.1%} of places"
    )
    return (
        f"{program.name}: {matrices} matrices are int8, and what was zero is zero. The comparison with torch is of "
        f"float32; int8 is off by up to {difference:.2g} of the largest output{agreed}."
    )


def _agreement(one: Tensor, other: Tensor) -> float:
    return float((one.argmax(-1) == other.argmax(-1)).float().mean())


def _pairs(runtime: Runtime, program: Program, scratch: Path) -> list[tuple[Tensor, Tensor]]:
    """Returns what the runtime gives and what torch gives, output by output of each example."""
    try:
        found = runtime.outputs(program, scratch)
    except Exception as error:  # whatever the runtime raises
        raise ExportError(f"{program.name}: {runtime.name} can't run what was written: {first_line(error)}") from error
    return [
        (one, wanted)
        for example, given in zip(program.examples, found, strict=True)
        for one, wanted in zip(given, program.expected(example), strict=True)
    ]


def _difference(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Returns the largest difference of outputs, relative to the largest output wanted."""
    worst = 0.0
    for found, wanted in pairs:
        if found.shape != wanted.shape:
            raise ExportError(f"an output has the shape {tuple(found.shape)}, and torch's has {tuple(wanted.shape)}.")
        if wanted.numel():
            size = float(wanted.float().abs().max()) or 1.0
            gap = float((found.float() - wanted.float()).abs().max()) / size
            worst = max(worst, torch.inf if math.isnan(gap) else gap)
    return worst


def _check_difference(name: str, difference: float, most: float) -> None:
    if difference > most:
        raise ExportError(
            f"{name}: the outputs differ from torch's by {difference:.2g} of the largest, and at most {most:g} counts "
            "as the same."
        )


def _gguf(source: Exportable, scratch: Path, kind: str, seed: int, seconds: dict[str, float]) -> Exported:
    """Writes a GGUF; what reads it is held against torch with the weights as they are in the file."""
    network = source.network
    assert network is not None
    with timed(seconds, "write"):
        back = write_gguf(network, scratch, kind)
    with timed(seconds, "check"):
        _load_back(network, back)
        random = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, network.dimension("vocabulary") or 2, (1, PROBE), generator=random)
        with torch.inference_mode():
            wanted = network.model(ids).logits[0].float()
        notes = list[str]()
        found, by = _run_gguf(scratch / GGUF_FILE, network, ids, notes)
    if kind != "f16" and (some := uneven(network)):
        notes.append(f"{some} matrices are f16: their inputs make no whole blocks of 32; prune with --round-to 32.")
    if found is None:
        how = "" if find_spec("llama_cpp") else ": pip install llama-cpp-python to have it held against torch"
        notes.append(f"Nothing has run it yet (transformers: {by}){how}.")
        return Exported("", "", {}, None, None, {}, tuple(notes))
    difference = _difference([(found, wanted)])
    _check_difference(GGUF_FILE, difference, TOLERANCE_HALF if by == "llama_cpp" else TOLERANCE)
    return Exported("", "", {}, difference, by, {}, tuple(notes))


@torch.no_grad()
def _load_back(network: Network, back: dict[str, Any]) -> None:
    """Gives the model in memory the weights as they are in the file."""
    state = network.model.state_dict()
    for name, array in back.items():
        state[name].copy_(torch.from_numpy(array))


def _run_gguf(file: Path, network: Network, ids: Tensor, notes: list[str]) -> tuple[Tensor | None, str | None]:
    """Returns (length, vocabulary) logits of the file, and what gave them: llama.cpp, or transformers' own reader.

    Without logits, why there are none. `notes` are told of a file that llama.cpp doesn't load.
    """
    if find_spec("llama_cpp") is not None:
        import llama_cpp  # noqa: PLC0415 (an extra)

        try:
            llama: Any = llama_cpp.Llama(str(file), n_ctx=2 * PROBE, logits_all=True, verbose=False)
        except ValueError:  # such as of a tokenizer without merges; it says why on standard error only
            notes.append(
                f"llama.cpp doesn't load {GGUF_FILE}: `python -c \"import llama_cpp; llama_cpp.Llama('{GGUF_FILE}')\"` "
                "in its folder says why."
            )
        else:
            llama.eval(ids[0].tolist())
            return torch.tensor(llama.scores[: ids.shape[1]]), "llama_cpp"
    try:
        with quiet_transformers(), redirect_stderr(io.StringIO()):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                dtype=torch.float32,
                quantization_config=transformers.GgufConfig(dequantize=True),
            )
        with torch.inference_mode():
            return model(ids).logits[0].float(), "transformers"
    except Exception as error:  # whatever its reader raises: it knows no widths that differ from layer to layer
        return None, first_line(error)


def _keep_failed(scratch: Path, folder: Path) -> None:
    """Keeps what didn't match out of the way."""
    failed = folder.with_name(f"{folder.name}.failed")
    shutil.rmtree(failed, ignore_errors=True)
    if any(scratch.iterdir()):
        try:
            shutil.copytree(scratch, failed)
        except OSError as error:
            raise SaveError(f"{failed} can't be written: {error}.") from error


def _copy_beside(source: Exportable, folder: Path) -> None:
    """Writes what a user needs beside an export: the config, the tokenizer's files, or the images' settings."""
    if isinstance(source.model, transformers.PreTrainedModel):
        source.model.config.save_pretrained(folder)
    if source.source is None:
        return
    if not source.source.is_dir():
        if source.tokenizer is not None:
            source.tokenizer.save_pretrained(folder)
        return
    for pattern in BESIDE:
        for path in source.source.glob(pattern):
            if path.is_file() and not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
