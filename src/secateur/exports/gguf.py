"""GGUF: `model.gguf`, which llama.cpp reads: llama-like models and GPT-2, with their tokenizer.

Tensors are named as the gguf package says, projections to queries and keys are reordered to llama.cpp's rotary order
where its architecture wants that, and matrices are stored as f16 or in blocks of 32 (q8_0, q4_0). Widths of MLPs and
numbers of heads may differ from layer to layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from secateur.errors import ExportError, UsageError
from secateur.exports.gguf_tokenizer import add_tokenizer
from secateur.network.network import Network

FILE = "model.gguf"
KINDS = ("f16", "q8_0", "q4_0")
BLOCK = 32
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gpt2": "gpt2",
}
Array = npt.NDArray[Any]


def check_gguf(network: Network | None) -> None:
    """Raises UsageError if llama.cpp has no architecture for a model that is known here, or no such positions."""
    kind = None if network is None else network.family.name
    if network is None or kind not in ARCHITECTURES:
        named = "an image classifier" if network is None else network.architecture
        raise UsageError(
            f"export --to gguf is for {', '.join(sorted(ARCHITECTURES))}; {named} goes --to onnx or openvino."
        )
    if network.tokenizer is None:
        raise UsageError("export --to gguf takes a tokenizer, and the checkpoint has none.")
    if network.factorized:
        raise UsageError("a GGUF has no place for factors: factorize with merged: true, or export --to onnx.")
    rope = getattr(network.model.config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise UsageError(
            f"export --to gguf: positions of the kind '{rope['rope_type']}' aren't written yet; export --to onnx."
        )


def write_gguf(network: Network, folder: Path, kind: str) -> dict[str, Array]:
    """Writes a model, and returns its tensors as they come back from the file, by their names in the model.

    Args:
        network: The model, in float32.
        folder: Where to.
        kind: `f16`, `q8_0` or `q4_0`: of matrices whose inputs make whole blocks of 32; the others are f16, and vectors
            float32.

    Raises:
        ExportError: A tensor has no name in llama.cpp's architecture.
    """
    import gguf  # noqa: PLC0415 (an extra)

    architecture = ARCHITECTURES[network.family.name]
    stored = {
        "f16": gguf.GGMLQuantizationType.F16,
        "q8_0": gguf.GGMLQuantizationType.Q8_0,
        "q4_0": gguf.GGMLQuantizationType.Q4_0,
    }[kind]
    files = {
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
        "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    }
    writer = gguf.GGUFWriter(folder / FILE, architecture)
    _describe(writer, network)
    writer.add_file_type(files[kind])
    add_tokenizer(writer, network)
    number = {arch: key for key, arch in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, len(network.blocks))
    back: dict[str, Array] = {}
    for name, tensor in _tensors(network):
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ExportError(f"llama.cpp's architecture '{architecture}' has no place for {name}.")
        array = _ordered(network, architecture, name, tensor)
        if array.ndim < 2:
            writer.add_tensor(target, array)
            back[name] = array
            continue
        dtype = stored if array.shape[-1] % BLOCK == 0 else gguf.GGMLQuantizationType.F16
        data = gguf.quants.quantize(array, dtype)
        writer.add_tensor(target, data, raw_dtype=dtype)
        back[name] = _ordered_back(network, architecture, name, gguf.quants.dequantize(data, dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return back


def uneven(network: Network) -> int:
    """Returns how many matrices have inputs that make no whole blocks."""
    shapes = (_ordered(network, "", name, tensor).shape for name, tensor in _tensors(network) if tensor.ndim > 1)
    return sum(shape[-1] % BLOCK != 0 for shape in shapes)


def _tensors(network: Network) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the model's tensors, without the head where it is the embedding."""
    tied = bool(network.model.config.tie_word_embeddings)
    for name, tensor in network.model.state_dict().items():
        if not (tied and name == "lm_head.weight") and not name.endswith((".attn.bias", ".attn.masked_bias")):
            yield name, tensor.detach()


def _ordered(network: Network, architecture: str, name: str, tensor: torch.Tensor) -> Array:
    """Returns a tensor as llama.cpp has it: outputs first, and rotary pairs side by side."""
    array: Array = tensor.float().numpy()
    if _is_conv1d(network, name):
        return np.ascontiguousarray(array.T)
    heads = _rotary_heads(network, architecture, name)
    if heads is None:
        return np.ascontiguousarray(array)
    parts = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2).reshape(array.shape))


def _ordered_back(network: Network, architecture: str, name: str, array: Array) -> Array:
    if _is_conv1d(network, name):
        return np.ascontiguousarray(array.T)
    heads = _rotary_heads(network, architecture, name)
    if heads is None:
        return array
    parts = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2).reshape(array.shape))


def _is_conv1d(network: Network, name: str) -> bool:
    module, _, kind = name.rpartition(".")
    return kind == "weight" and type(network.model.get_submodule(module)).__name__ == "Conv1D"


def _rotary_heads(network: Network, architecture: str, name: str) -> int | None:
    """Returns the number of heads of a projection that llama.cpp wants in its rotary order; None of all others."""
    module = name.rpartition(".")[0]
    if architecture != "llama" or not module.endswith(("q_proj", "k_proj")):
        return None
    attention: Any = network.model.get_submodule(module.rpartition(".")[0])
    return int(network.model.get_submodule(module).out_features // attention.head_dim)


def _describe(writer: Any, network: Network) -> None:
    """Says what llama.cpp has to know of the model's shape."""
    config: Any = network.model.config
    blocks: tuple[Any, ...] = network.blocks
    writer.add_name(network.source.path.name)
    writer.add_block_count(len(blocks))
    if network.family.name == "gpt2":
        writer.add_context_length(config.n_positions)
        writer.add_embedding_length(config.n_embd)
        writer.add_feed_forward_length(_even([block.mlp.c_fc.nf for block in blocks]))
        writer.add_head_count(_even([block.attn.num_heads for block in blocks]))
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    attentions = [block.self_attn for block in blocks]
    width = attentions[0].head_dim
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(network.dimension("vocabulary"))
    writer.add_feed_forward_length(_even([block.mlp.up_proj.out_features for block in blocks]))
    writer.add_head_count(_even([one.q_proj.out_features // width for one in attentions]))
    writer.add_head_count_kv(_even([one.k_proj.out_features // width for one in attentions]))
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    window = getattr(config, "sliding_window", None)
    if window is not None:
        writer.add_sliding_window(window)


def _even(numbers: list[int]) -> int | list[int]:
    """Returns one number where all are the same."""
    return numbers[0] if len(set(numbers)) == 1 else numbers
