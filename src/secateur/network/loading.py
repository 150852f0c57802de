"""Loading: a hub id, a checkpoint folder, a .gguf file or a demo model becomes a `Network`."""

from __future__ import annotations

import io
import json
import re
import struct
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from secateur.errors import ModelError, UsageError, first_line
from secateur.network.demo import DEMOS, demo_model
from secateur.network.families import check_model_type, family_of
from secateur.network.family import Family
from secateur.network.modeling import KEY, check_differences, class_of, config_of, type_of
from secateur.network.network import Network, Source
from secateur.network.packed import is_packed, unpack_into
from secateur.network.quantized import OnGrid, dequantize_into, is_quantized
from secateur.network.quiet import quiet_transformers
from secateur.network.shards import indexed_shards
from secateur.network.streaming import streamed_model
from secateur.network.vocabulary import load_kept
from secateur.progress import Progress

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    model: str | Path,
    *,
    dtype: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    seed: int = 0,
    stream: bool | None = False,
    progress: Progress | None = None,
) -> Network:
    """Loads a model and describes it.

    Args:
        model: A hub id, a checkpoint folder (packed or not), a .gguf file, or `demo:NAME`.
        dtype: `float32`, `bfloat16` or `float16`; None keeps the checkpoint's own (a GGUF becomes float32).
        device: `auto`, `cpu`, `cuda` or `mps`: where blocks are computed.
        trust_remote_code: Whether code that comes with the checkpoint may run.
        seed: For the values of weights that the checkpoint lacks.
        stream: Whether the blocks' weights stay in the files until they are used (`Network.resident`); None does so
            if the checkpoint is larger than half of the free memory, and can be streamed.
        progress: Shows a download's progress.

    Returns:
        The network, in eval mode, in main memory.

    Raises:
        UsageError: `dtype` or `device` is unknown or not to be had, `demo:NAME` doesn't exist, or the model can't be
            streamed.
        ModelError: The model is missing, corrupt, a pickle, of an unknown architecture, or has NaN weights.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{dtype}'. Known: {', '.join(DTYPES)}.")
    compute = pick_device(device)
    path = find(str(model), trust_remote_code, progress or Progress())
    if stream is None:
        large = path.is_dir() and not is_packed(path) and weight_bytes(path) > psutil.virtual_memory().available / 2
        stream = large and not _is_reshaped(path) and not is_quantized(path)
    if stream:
        return _stream(str(model), path, dtype, compute, trust_remote_code, seed)
    quantized: dict[str, OnGrid] = {}
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if path.suffix == ".gguf":
            loaded, family, tokenizer = _load_gguf(path, dtype)
            notes: tuple[str, ...] = ()
        elif is_packed(path):
            with tempfile.TemporaryDirectory(prefix="secateur-unpacked-") as scratch:
                unpack_into(path, Path(scratch), progress or Progress())
                loaded, family, tokenizer, notes = _load_folder(Path(scratch), dtype, trust_remote_code)
        elif is_quantized(path):
            with tempfile.TemporaryDirectory(prefix="secateur-dequantized-") as scratch:
                quantized = dequantize_into(path, Path(scratch))
                loaded, family, tokenizer, notes = _load_folder(Path(scratch), dtype, trust_remote_code)
        else:
            loaded, family, tokenizer, notes = _load_folder(path, dtype, trust_remote_code)
    loaded.eval().requires_grad_(False)
    refuse_nan(loaded)
    source = Source(str(model), path, str(loaded.dtype).removeprefix("torch."), trust_remote_code)
    network = _with_record(Network(loaded, family, tokenizer, source, compute, notes))
    network.quantized = quantized
    return network


def streamable(path: Path) -> bool:
    """Whether a checkpoint's blocks can be read one by one: it is a plain folder (`load` refuses encoder-decoders)."""
    return path.is_dir() and not is_packed(path) and not is_quantized(path) and not _is_reshaped(path)


def weight_bytes(path: Path) -> int:
    """Returns the size of a checkpoint's weight files."""
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def _stream(name: str, path: Path, dtype: str | None, device: torch.device, trust: bool, seed: int) -> Network:
    """Loads what lies outside of the blocks, and leaves the blocks in the files."""
    if not path.is_dir() or is_packed(path) or is_quantized(path):
        kind = "a .gguf file" if path.is_file() else "quantized"
        kind = "a packed checkpoint; unpack it first" if is_packed(path) else kind
        raise UsageError(f"{name} is {kind}: only folders of safetensors files can be streamed.")
    if _is_reshaped(path):
        raise UsageError(
            f"{name} was pruned to widths that differ from block to block, and such a model can't be streamed; "
            "run without --stream."
        )
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config, family = _described(path, trust)
        if family.encoder_decoder is not None:
            raise UsageError(f"{name} is an encoder-decoder, which can't be streamed; --no-stream loads it whole.")
        shards = check_shards(path)
        kind = _model_class(config, family)
        loaded, store = streamed_model(shards, config, kind, family, DTYPES[dtype] if dtype else None, trust)
        tokenizer = _tokenizer(path, trust)
    loaded.eval()
    note = "The model was streamed: blocks were read from its files when their turn came."
    source = Source(name, path, str(loaded.dtype).removeprefix("torch."), trust)
    return _with_record(Network(loaded, family, tokenizer, source, device, (note,), store))


def _with_record(network: Network) -> Network:
    """Reads which tokens were kept, if the checkpoint's vocabulary was cut."""
    network.kept = load_kept(network.source.path, network.dimension("vocabulary"))
    return network


def find(model: str, trust_remote_code: bool, progress: Progress) -> Path:
    """Returns the checkpoint folder or .gguf file that `model` names, fetched if need be."""
    if model.startswith("demo:"):
        return demo_model(model.removeprefix("demo:"), progress)
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        raise ModelError(_refusal(path) if _is_pickle(path) else f"{path} is neither a folder nor a .gguf file.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model.startswith("."):
        raise ModelError(
            f"no model at '{model}': no such folder or .gguf file, and not a hub id of the form owner/name. "
            f"Demo models: {', '.join('demo:' + name for name in DEMOS)}."
        )
    return _from_hub(model, trust_remote_code)


def pick_device(device: str) -> torch.device:
    """Returns the device that blocks are computed on.

    Raises:
        UsageError: The device is unknown, or this machine has none.
    """
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, there in found.items() if there))
    if device not in found:
        raise UsageError(f"unknown device '{device}'. Known: auto, cpu, cuda, mps.")
    if not found[device]:
        raise UsageError(f"this machine has no {device} device; use --device auto or cpu.")
    return torch.device(device)


def _from_hub(model: str, trust_remote_code: bool) -> Path:
    """Fetches a hub model's safetensors, config and tokenizer; never a pickle."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (a slow import that most runs don't need)
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"] + ["*.py"] * trust_remote_code
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise ModelError(
            f"'{model}' is neither a local folder nor a model that the hub gives us: {reason} "
            "Check the spelling and the network, or give a folder."
        ) from error


def _described(folder: Path, trust: bool) -> tuple[Any, Family]:
    """Returns a checkpoint folder's config, and the family of its architecture."""
    config = read_config(folder, trust)
    return config, family_of(config.model_type, config)


def _tokenizer(folder: Path, trust: bool) -> Any:
    """Returns a checkpoint folder's tokenizer, None if it has none."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f"the tokenizer in {folder} can't be read: {first_line(error)}") from error


def _load_folder(folder: Path, dtype: str | None, trust: bool) -> tuple[Any, Family, Any, tuple[str, ...]]:
    config, family = _described(folder, trust)
    check_shards(folder)
    reshaped = hasattr(config, KEY)
    kind = class_of(_architecture(config), folder) if reshaped else _model_class(config, family)
    try:
        model, info = kind.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[dtype] if dtype else "auto",
            trust_remote_code=trust and not reshaped,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # to name them ourselves: its own error points to a log
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, SafetensorError) as error:
        raise ModelError(f"{folder} can't be loaded: {first_line(error)}") from error
    notes = _check_weights(folder, family, info)
    return model, family, _tokenizer(folder, trust), notes


def refuse_mismatched(folder: Path, info: dict[str, Any]) -> None:
    """Raises ModelError if a weight has another shape than the config says."""
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise ModelError(
            f"{folder}: {name} has the shape {tuple(found)}, but config.json makes it {tuple(expected)}; "
            "they don't belong together."
        )


def _check_weights(folder: Path, family: Family, info: dict[str, Any]) -> tuple[str, ...]:
    """Returns notes on weights that the checkpoint lacks, or has and nobody reads.

    Raises:
        ModelError: A weight has another shape than the config says, or one of a block is missing.
    """
    refuse_mismatched(folder, info)
    notes = []
    if missing := sorted(info["missing_keys"]):
        inside = [name for name in missing if any(f"{stack.blocks}." in name for stack in family.stacks)]
        if inside:
            raise ModelError(f"{folder} lacks {len(missing)} weights, {inside[0]} among them; it is incomplete.")
        notes.append(f"The checkpoint has no weights for {', '.join(missing)}: they are random.")
    if unread := sorted(info["unexpected_keys"]):
        more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
        notes.append(
            f"The model has no place for the checkpoint's {', '.join(unread[:3])}{more}: nobody reads them, "
            "and an output lacks them."
        )
    return tuple(notes)


def _load_gguf(path: Path, dtype: str | None) -> tuple[Any, Family, Any]:
    """Reads a GGUF into plain layers that can be saved again."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file (it doesn't begin with 'GGUF').")
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        # the converter shows a bar of its own that no setting of transformers turns off
        with redirect_stderr(io.StringIO()):
            config = transformers.AutoConfig.from_pretrained(**where)
            family = family_of(config.model_type, config)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                **where,
                config=config,
                dtype=DTYPES[dtype or "float32"],
                quantization_config=transformers.GgufConfig(dequantize=True),
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(**where, config=config)
    except (OSError, ValueError, RuntimeError, KeyError, IndexError, struct.error) as error:
        raise ModelError(f"{path} can't be loaded: {first_line(error)}. Is it whole?") from error
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # it would make a saved checkpoint claim to be quantized
    model.config.architectures = [type(model).__name__]
    return model, family, tokenizer


def check_shards(folder: Path) -> list[Path]:
    """Returns a folder's safetensors files, each opened once to see that it is whole.

    Raises:
        ModelError: A shard is missing or corrupt, or the weights are in a pickle.
    """
    shards = indexed_shards(folder) or sorted(folder.glob("*.safetensors"))
    if not shards:
        pickles = sorted(file for pattern in PICKLES for file in folder.glob(pattern))
        if pickles:
            raise ModelError(_refusal(pickles[0]))
        raise ModelError(f"{folder} has no .safetensors file.")
    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{shard} is corrupt ({first_line(error)}); fetch it again.") from error
    return shards


def raw_config(folder: Path) -> dict[str, Any]:
    """Returns what a checkpoint folder's config.json holds."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json; is it a Hugging Face checkpoint folder?")
    try:
        raw = json.loads((folder / "config.json").read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder / 'config.json'} is not JSON: {error}.") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{folder / 'config.json'} is not a JSON object.")
    return raw


def _is_reshaped(folder: Path) -> bool:
    """Whether a folder holds a model with shapes of its own, whose class is ours."""
    return (folder / "config.json").is_file() and KEY in raw_config(folder)


def read_config(folder: Path, trust: bool, check_type: Callable[[str], None] = check_model_type) -> Any:
    """Returns a checkpoint folder's config.

    Args:
        folder: The folder.
        trust: Whether code from it may run.
        check_type: Refuses kinds of models.

    Raises:
        ModelError: There is none, or it can't be read.
    """
    raw = raw_config(folder)
    if KEY in raw:
        check_differences(raw, folder / "config.json")
    own_code = "auto_map" in raw and KEY not in raw
    if own_code and not trust:
        raise ModelError(
            f"{folder} brings its own code ({', '.join(sorted(map(str, raw['auto_map'].values())))}). "
            "It runs only with --trust-remote-code."
        )
    if raw.get("quantization_config"):
        raise ModelError(
            f"{folder} is quantized, and packed weights can't be pruned; give the checkpoint it was made of."
        )
    kind = type_of(raw)
    if kind is None:
        raise ModelError(f"{folder / 'config.json'} names no model_type.")
    if not own_code:
        check_type(kind)
    try:
        if KEY in raw:
            return config_of(raw, folder)
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=own_code)
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise ModelError(f"{folder / 'config.json'} can't be read: {' '.join(str(error).split())}") from error


def _architecture(config: Any) -> str:
    return str((config.architectures or [""])[0])


def _model_class(config: Any, family: Family) -> Any:
    """Returns the class that the checkpoint was saved from, or the family's plain one."""
    name = _architecture(config)
    known: Any = getattr(transformers, name, None) if name else None
    fits = isinstance(known, type) and issubclass(known, transformers.PreTrainedModel)
    if fits and isinstance(config, known.config_class):
        return known
    if family.objective == "seq2seq":
        heard = family.inputs == "audio"
        return transformers.AutoModelForSpeechSeq2Seq if heard else transformers.AutoModelForSeq2SeqLM
    causal = family.objective == "causal" and (not name or "CausalLM" in name)
    return transformers.AutoModelForCausalLM if causal else transformers.AutoModel


def refuse_nan(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(f"{name} holds NaN or infinite weights; the checkpoint is broken.")


def _is_pickle(path: Path) -> bool:
    return any(path.match(pattern) for pattern in PICKLES)


def _refusal(path: Path) -> str:
    return (
        f"{path} is a pickle, which can run code when it is read. Only safetensors and GGUF are read: "
        "convert it with a tool that you trust."
    )
