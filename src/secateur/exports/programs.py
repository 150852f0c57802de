"""What is exported of a model: modules of plain tensors in, plain tensors out, with names, examples and free axes.

A model that generates takes the keys and values of what it has read and gives those with what it read now, under the
names that ONNX's generation libraries know (`past_key_values.0.key`, `present.0.key`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from secateur.errors import UsageError
from secateur.exports.program import Free, Program, example_ids
from secateur.exports.sounds import of_sounds
from secateur.network.graph.tracing import check_inputs
from secateur.network.graph.values import tensors
from secateur.network.loading import load
from secateur.network.network import Network
from secateur.network.vision import is_classifier, load_classifier
from secateur.progress import Progress


@dataclass(frozen=True)
class Exportable:
    """A model that is exported.

    Attributes:
        source: Its folder; None of networks in memory.
        programs: What a runtime gets.
        model: The model.
        tokenizer: Its tokenizer, or None.
        network: Its description; None of image classifiers, and of networks in memory.
    """

    source: Path | None
    programs: tuple[Program, ...]
    model: Any
    tokenizer: Any
    network: Network | None


class Generator(nn.Module):
    """A causal language model with its cache as plain tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> Any:
        """Returns logits, and keys and values layer by layer.

        Args:
            input_ids: (batch, length)
            attention_mask: (batch, past + length), 0 for padding.
            position_ids: (batch, length)
            past: (batch, heads, past, width) keys and values, layer by layer.
        """
        layers = list(zip(past[::2], past[1::2], strict=True))
        cache = DynamicCache(ddp_cache_data=layers)
        for layer, (keys, values) in zip(cache.layers, layers, strict=True):
            layer.keys, layer.values = keys, values  # as they are, not put behind an empty tensor
        output = self.model(
            input_ids=input_ids,
            attention_mask=self._masks(attention_mask, input_ids.shape[1]),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
        )
        after = output.past_key_values.layers
        return (output.logits, *(tensor for layer in after for tensor in (layer.keys, layer.values)))

    def _masks(self, attention_mask: Tensor, length: int) -> Any:
        """Returns (batch, 1, length, whole), 0 for what is seen; by kind of layer, if there are several."""
        config, dtype, whole = self.model.config, self.model.dtype, attention_mask.shape[1]
        places = torch.arange(whole, device=attention_mask.device)
        reads = places[whole - length :, None]
        seen = (places[None] <= reads)[None, None] & (attention_mask[:, None, None, :] > 0)

        def added(one: Tensor) -> Tensor:
            return torch.where(one, 0.0, torch.finfo(dtype).min).to(dtype)

        window, kinds = getattr(config, "sliding_window", None), set(getattr(config, "layer_types", None) or ())
        if window is None or (kinds and "sliding_attention" not in kinds):
            return added(seen)
        near = seen & (places[None] > reads - window)[None, None]
        return {"full_attention": added(seen), "sliding_attention": added(near)} if kinds else added(near)


class Encoder(nn.Module):
    """An encoder that reads text both ways: its first output."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Returns the model's first output. input_ids, attention_mask: (batch, length)."""
        dtype = self.model.dtype
        mask = torch.where(attention_mask[:, None, None, :] > 0, 0.0, torch.finfo(dtype).min).to(dtype)
        mask = mask.expand(-1, -1, input_ids.shape[1], -1)
        return (self.model(input_ids=input_ids, attention_mask=mask, return_dict=False)[0],)


class Looking(nn.Module):
    """An image classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Any:
        """Returns (batch, classes) logits from (batch, channels, height, width)."""
        return (self.model(pixel_values=pixel_values, return_dict=False)[0],)


class NetworkInMemory(nn.Module):
    """Any network: the tensors in what it gives."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Any:
        """Returns all tensors of the network's output, in order."""
        return tuple(tensors(self.model(*inputs)))


def exportable_network(model: nn.Module, example_inputs: Any) -> Exportable:
    """Says what is exported of a network in memory.

    Args:
        model: In eval mode, in float32.
        example_inputs: What it takes: a tensor, or a tuple of tensors. Their first axes count examples, and may have
            any length in the export.

    Raises:
        UsageError: It doesn't take the inputs, or isn't computed in float32 on the processor.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,)
    if not inputs or not all(isinstance(one, Tensor) and one.ndim and len(one) for one in inputs):
        raise UsageError(
            "export: example_inputs= takes a tensor, or a tuple of tensors, whose first axes count examples."
        )
    floats = [one for one in model.parameters() if one.is_floating_point()]
    other = [one for one in floats if (one.dtype, one.device.type) != (torch.float32, "cpu")]
    if other:
        raise UsageError(
            f"export: a network in memory is exported in float32 on the processor, and this one is {other[0].dtype} on "
            f"{other[0].device}; give model.float().cpu()."
        )
    module = NetworkInMemory(model).eval()
    two, one, three = (tuple(_so_many(tensor, number) for tensor in inputs) for number in (2, 1, 3))
    check_inputs(model, two)
    with torch.inference_mode():
        given: tuple[Tensor, ...] = module(*two)
    names = [
        parameter.name
        for parameter in signature(model.forward).parameters.values()
        if parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    ][: len(inputs)]
    names += [f"input.{number}" for number in range(len(names), len(inputs))]
    outputs = ("output",) if len(given) == 1 else tuple(f"output.{number}" for number in range(len(given)))
    free: tuple[Free, ...] = ({0: "batch"},) * len(inputs)
    program = Program("model", module, tuple(names), outputs, free, (two, one, three))
    return Exportable(None, (program,), model, None, None)


def _so_many(tensor: Tensor, number: int) -> Tensor:
    """Returns a number of examples, the first ones once more where there are fewer."""
    return tensor.repeat(-(-number // len(tensor)), *[1] * (tensor.ndim - 1))[:number].detach().clone()


def exportable(
    model: str, dtype: str | None, trust_remote_code: bool, progress: Progress, seed: int = 0, programs: bool = True
) -> Exportable:
    """Loads a checkpoint and says what is exported of it.

    Raises:
        UsageError: There is no program for its kind of model.
        ModelError: It can't be loaded.
    """
    if is_classifier(model, trust_remote_code, progress):
        found = load_classifier(model, dtype=dtype, trust_remote_code=trust_remote_code, progress=progress)
        program = _of_images(found.model, found.example(), seed)
        return Exportable(found.source.path, (program,), found.model, None, None)
    network = load(model, dtype=dtype, trust_remote_code=trust_remote_code, progress=progress)
    if network.family.experts is not None:
        network.model.set_experts_implementation("batched_mm")  # runtimes have no grouped products
    some = tuple(_programs(network, seed)) if programs else ()
    return Exportable(network.source.path, some, network.model, network.tokenizer, network)


def _programs(network: Network, seed: int) -> Iterator[Program]:
    family, model = network.family, network.model
    if family.inputs == "audio":
        yield from of_sounds(network, seed)
    elif family.encoder_decoder is not None:
        raise UsageError(
            f"export: {network.architecture} is an encoder-decoder of text, for which there is no program."
        )
    elif family.objective == "causal":
        yield _of_text(network, seed)
    elif family.objective == "encoder":
        free: tuple[Free, ...] = ({0: "batch", 1: "length"},) * 2
        examples = tuple(
            (example_ids(network, batch, length, seed), torch.ones(batch, length, dtype=torch.int64))
            for batch, length in ((2, 12), (1, 7))
        )
        padded = examples[0][1].clone()
        padded[1, 8:] = 0
        examples = ((examples[0][0], padded), examples[1])
        yield Program("model", Encoder(model), ("input_ids", "attention_mask"), (_output(model),), free, examples)
    else:
        raise UsageError(f"export: there is no program for {network.architecture}, which predicts tokens in any order.")


def _output(model: Any) -> str:
    return (
        "logits" if hasattr(model, "classifier") or model.get_output_embeddings() is not None else "last_hidden_state"
    )


@torch.inference_mode()
def _of_text(network: Network, seed: int) -> Program:
    module = Generator(network.model).eval()
    first = network.model(example_ids(network, 1, 2, seed), use_cache=True).past_key_values
    if first is None:
        raise UsageError(f"export: {network.architecture} keeps no cache of what it has read.")
    empty = [tensor[:, :, :0] for layer in first.layers for tensor in (layer.keys, layer.values)]
    cached = [f"{number}.{what}" for number in range(len(first.layers)) for what in ("key", "value")]
    examples = []
    for batch, before, length in ((2, 3, 5), (1, 0, 7), (1, 7, 1)):
        past = [tensor.expand(batch, -1, -1, -1).contiguous() for tensor in empty]
        whole = torch.ones(batch, before + length, dtype=torch.int64)
        if batch > 1:
            whole[1, :2] = 0  # padding on the left
        places = (whole.cumsum(1) - 1).clamp_min(0)
        if before:
            past = list(
                module(example_ids(network, batch, before, seed), whole[:, :before], places[:, :before], *past)[1:]
            )
        examples.append((example_ids(network, batch, length, seed), whole, places[:, before:].contiguous(), *past))
    text = {0: "batch", 1: "length"}
    free = (text, {0: "batch", 1: "whole"}, text, *({0: "batch", 2: "past"} for _ in cached))
    inputs = ("input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in cached))
    return Program("model", module, inputs, ("logits", *(f"present.{name}" for name in cached)), free, tuple(examples))


def _of_images(model: Any, example: Tensor, seed: int) -> Program:
    images = torch.randn(example.shape, generator=torch.Generator().manual_seed(seed)).to(model.dtype)
    free: tuple[Free, ...] = ({0: "batch"},)
    examples = ((images,), (images[:1] * 0.5,), (torch.cat([images, images.flip(0) * 2])[:3],))
    return Program("model", Looking(model).eval(), ("pixel_values",), ("logits",), free, examples)
