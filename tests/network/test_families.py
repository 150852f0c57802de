"""What a family says about its blocks, checked against what the real model computes."""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoTokenizer,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5EncoderModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from secateur.errors import ModelError
from secateur.network.families import FAMILIES, family_of
from secateur.network.family import Layout, Projection, Stack
from secateur.network.network import Network, Source
from tiny import ALPHABET, FRAMES, MELS, TINY, VOCABULARY, has, same, save_tiny, tiny_model, tiny_tokenizer

BATCH, LENGTH, ENCODED = 3, 7, 9  # windows, tokens of each, and those that an encoder before a decoder gets
ROUTERS = {"mlp.gate"}
# Tables of biases: XLNet's of heads, T5's of distances between positions.
BIASES = {f"rel_attn.{name}" for name in ("r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")}
BIASES |= {"layer.0.SelfAttention.relative_attention_bias"}

every_family = pytest.mark.parametrize("name", FAMILIES)
STACKS = [
    pytest.param(name, stack, id=name if len(family.stacks) == 1 else f"{name}'s {stack.name}")
    for name, family in FAMILIES.items()
    for stack in family.stacks
]
every_stack = pytest.mark.parametrize(("name", "stack"), STACKS)


@dataclass
class Call:
    """One use of a projection's weight."""

    path: str
    input: Tensor
    output: Tensor


@dataclass
class Observation:
    """What one forward pass did in a stack: the calls of each block, and what each block took and gave."""

    calls: dict[int, list[Call]] = field(default_factory=lambda: defaultdict(list))
    inputs: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Any] = field(default_factory=dict)


class ProductWatch(TorchFunctionMode):
    """Notes each einsum and linear of two operands of which the second lies where a weight in `owners` does."""

    def __init__(self, owners: dict[int, tuple[int, str]], seen: Observation) -> None:
        super().__init__()
        self.owners, self.seen = owners, seen

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        operands = args[1:3] if function is torch.einsum else args[:2] if function is functional.linear else ()
        if len(operands) == 2 and operands[1].data_ptr() in self.owners:
            block, path = self.owners[operands[1].data_ptr()]
            self.seen.calls[block].append(Call(path, operands[0], result))
        return result


def blocks_of(stack: Stack, model: PreTrainedModel) -> nn.ModuleList:
    return attrgetter(stack.blocks)(model.base_model)


def weight_of(projection: Projection, block: nn.Module) -> Tensor:
    found = attrgetter(projection.path)(block)
    return found.weight if isinstance(found, nn.Module) else found


def bias_of(projection: Projection, block: nn.Module) -> Tensor | None:
    return getattr(attrgetter(projection.path)(block), "bias", None)


def there(stack: Stack, block: nn.Module) -> list[Projection]:
    """Returns the projections that a block has."""
    return [p for p in stack.projections if p.where is None or has(block, p.where)]


def blocks_with(projection: Projection, stack: Stack, model: PreTrainedModel) -> list[nn.Module]:
    return [block for block in blocks_of(stack, model) if projection in there(stack, block)]


def matrices(projection: Projection, weight: Tensor) -> list[Tensor]:
    """Returns views of the weight as (out, in), one per expert if it has experts."""
    flats = [part.view(part.shape[0], -1) for part in (weight if projection.experts else [weight])]
    return flats if projection.layout is Layout.OUT_IN else [flat.T for flat in flats]


def matrix(projection: Projection, weight: Tensor) -> Tensor:
    """Returns a view of the weight, or of the first expert's, as (out, in)."""
    return matrices(projection, weight)[0]


def sites(stack: Stack, block: nn.Module) -> dict[str, tuple[Projection, Tensor, str]]:
    """Returns a block's matrices in the order of computation: each with its projection, and the name of its input."""
    found, routed = {}, {}
    for projection in there(stack, block):
        every = matrices(projection, weight_of(projection, block))
        if projection.experts:
            for expert, W in enumerate(every):
                routed[expert, projection.path] = (projection, W, f"{projection.columns} {expert}")
        else:
            found[projection.path] = (projection, every[0], projection.columns)
    by_expert = sorted(routed, key=lambda key: key[0])
    return found | {f"{path}.{expert}": routed[expert, path] for expert, path in by_expert}


def tokens() -> Tensor:
    return torch.randint(5, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))


def fed(model: PreTrainedModel) -> dict[str, Tensor]:
    """Returns what the model is called with."""
    if not model.config.is_encoder_decoder:
        return {"input_ids": tokens()}
    generator = torch.Generator().manual_seed(2)
    if model.main_input_name == "input_features":
        return {
            "input_features": torch.randn(BATCH, MELS, 2 * model.config.max_source_positions, generator=generator),
            "decoder_input_ids": tokens(),
        }
    encoded = torch.randint(5, VOCABULARY, (BATCH, ENCODED), generator=generator)
    return {"input_ids": encoded, "decoder_input_ids": tokens()}


def positions(name: str, stack: Stack) -> int:
    """Returns how many positions a stack's hidden states have."""
    if stack is FAMILIES[name].stacks[-1]:
        return LENGTH
    return FRAMES // 2 if FAMILIES[name].inputs == "audio" else ENCODED


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(**fed(model)).logits


def observe(name: str, stack: Stack) -> Observation:
    return _observe(name, FAMILIES[name].stacks.index(stack))


@functools.cache
def _observe(name: str, number: int) -> Observation:
    model, stack, seen = tiny_model(name), FAMILIES[name].stacks[number], Observation()
    model.config._experts_implementation = "eager"  # one expert after the other
    owners: dict[int, tuple[int, str]] = {}
    for index, block in enumerate(blocks_of(stack, model)):

        def note(_: nn.Module, args: Any, output: Tensor, index: int, path: str) -> None:
            seen.calls[index].append(Call(path, args[0], output))

        def note_block(_: nn.Module, args: Any, output: Any, index: int) -> None:
            seen.inputs[index], seen.outputs[index] = args[0], output

        block.register_forward_hook(functools.partial(note_block, index=index))
        for path, (projection, W, _) in sites(stack, block).items():
            found = attrgetter(projection.path)(block)
            if isinstance(found, nn.Module):
                found.register_forward_hook(functools.partial(note, index=index, path=path))
            else:
                owners[W.data_ptr()] = (index, path)
    with ProductWatch(owners, seen):
        logits(model)
    return seen


@every_stack
def test_every_projection_is_in_every_block_that_it_is_said_to_be_in_with_two_axes_or_more(
    name: str, stack: Stack
) -> None:
    seen = set()
    for block in blocks_of(stack, tiny_model(name)):
        for projection in there(stack, block):
            seen.add(projection)
            assert isinstance(weight_of(projection, block), nn.Parameter), projection.path
            assert weight_of(projection, block).ndim >= 2 + projection.experts, projection.path
    assert seen == set(stack.projections)


@every_stack
def test_no_matrix_of_a_block_is_forgotten(name: str, stack: Stack) -> None:
    for block in blocks_of(stack, tiny_model(name)):
        listed = {projection.path for projection in there(stack, block)}
        found = {path.removesuffix(".weight") for path, p in block.named_parameters() if p.ndim >= 2}
        assert found - BIASES - ROUTERS == listed


@every_stack
def test_projections_are_listed_in_the_order_of_computation_and_run_once(name: str, stack: Stack) -> None:
    seen, blocks = observe(name, stack), blocks_of(stack, tiny_model(name))
    assert len(seen.calls) == (3 if (name, stack.name) == ("t5_gated", "decoder") else 2)
    for index, calls in seen.calls.items():
        assert [call.path for call in calls] == list(sites(stack, blocks[index]))


@every_stack
def test_projections_read_the_same_tensor_exactly_when_their_columns_have_the_same_name(
    name: str, stack: Stack
) -> None:
    blocks = blocks_of(stack, tiny_model(name))
    for index, calls in observe(name, stack).calls.items():
        columns = {path: read for path, (_, _, read) in sites(stack, blocks[index]).items()}
        for one in calls:
            for other in calls:
                same = columns[one.path] == columns[other.path]
                assert (one.input is other.input) == same, (one.path, other.path)
                equal = one.input.shape == other.input.shape and torch.equal(one.input, other.input)
                assert equal == same, (one.path, other.path)


@every_stack
def test_the_layout_makes_each_projection_a_plain_matrix_product(name: str, stack: Stack) -> None:
    blocks = blocks_of(stack, tiny_model(name))
    for index, calls in observe(name, stack).calls.items():
        for call in calls:
            projection, W, _ = sites(stack, blocks[index])[call.path]
            bias = bias_of(projection, blocks[index])
            product = call.input.reshape(-1, W.shape[1]) @ W.T + (0 if bias is None else bias)
            torch.testing.assert_close(product, call.output.reshape(-1, W.shape[0]))


@every_stack
def test_a_block_returns_what_the_family_says_with_windows_on_its_batch_axis(name: str, stack: Stack) -> None:
    family, seen = FAMILIES[name], observe(name, stack)
    for index, output in seen.outputs.items():
        assert isinstance(output, tuple) == (stack.block_returns > 0)
        assert not isinstance(output, tuple) or len(output) == stack.block_returns
        hidden = output[0] if isinstance(output, tuple) else output
        assert hidden.ndim == 3
        assert hidden.shape[family.batch_axis] == BATCH
        assert hidden.shape[1 - family.batch_axis] == positions(name, stack)
        if index + 1 in seen.inputs:
            assert seen.inputs[index + 1] is hidden


def consumer_of(stack: Stack, columns: str) -> Projection:
    (projection,) = [p for p in stack.projections if p.columns == columns]
    return projection


def producers(stack: Stack, parts: str, experts: bool = False) -> list[tuple[Projection, str]]:
    listed = [p for p in stack.projections if p.experts == experts]
    return [(p, part) for p in listed for part in p.rows if part in parts.split(", ")]


UNITS = {
    "head": "q, k, v, r",
    "neuron": "gate, up, neuron",
    "expert neuron": "gate, up",
    "cross head": "cross q, cross k, cross v",
}
HAVE = [
    (entry, columns)
    for entry in STACKS
    for columns in UNITS
    if columns in {projection.columns for projection in entry.values[1].projections}
]


def test_every_stack_has_heads_and_neurons_and_a_decoder_behind_an_encoder_cross_heads() -> None:
    def that_have(*columns: str) -> set[str]:
        return {entry.id for entry, found in HAVE if found in columns}

    assert that_have("head") == {entry.id for entry in STACKS}
    assert that_have("neuron", "expert neuron") == {entry.id for entry in STACKS}
    assert that_have("expert neuron") == {name for name, family in FAMILIES.items() if family.experts}
    assert that_have("cross head") == {f"{n}'s decoder" for n, family in FAMILIES.items() if family.encoder_decoder}


def unit_rows(stack: Stack, model: PreTrainedModel, projection: Projection, part: str) -> Tensor:
    """Returns a part's rows of (out, in), per unit: (KV heads or neurons, rows of each)."""
    columns = "neuron" if part in ("gate", "up", "neuron") else "cross head" if part.startswith("cross ") else "head"
    consumer = consumer_of(stack, f"expert {columns}" if projection.experts else columns)
    block = blocks_with(consumer, stack, model)[0]
    width = matrix(consumer, weight_of(consumer, block)).shape[1]
    units = width
    sizes = dict.fromkeys(projection.rows, width)
    if columns != "neuron":
        heads = model.config.num_attention_heads
        units = getattr(model.config, "num_key_value_heads", heads)
        sizes |= {p: width * units // heads for p in projection.rows if p in ("k", "v")}
    rows = torch.arange(sum(sizes.values()))
    if projection.per_head:
        return rows.view(units, len(projection.rows), -1)[:, projection.rows.index(part)]
    return dict(zip(projection.rows, rows.split(list(sizes.values())), strict=True))[part].view(units, -1)


def change_rows(projection: Projection, block: nn.Module, rows: Tensor, factor: float, noise: float) -> None:
    bias = bias_of(projection, block)
    for target in matrices(projection, weight_of(projection, block)) + ([] if bias is None else [bias]):
        target[rows] = target[rows] * factor + noise * torch.randn(target[rows].shape)


@pytest.mark.parametrize(
    ("name", "stack", "columns"),
    [pytest.param(*entry.values, columns, id=f"{entry.id}-{columns}") for entry, columns in HAVE],
)
def test_a_unit_that_nobody_reads_may_compute_anything(name: str, stack: Stack, columns: str) -> None:
    model, consumer = tiny_model(name), consumer_of(stack, columns)
    made = producers(stack, UNITS[columns], consumer.experts)
    dense, unit = logits(model), 1
    with torch.no_grad():
        for block in blocks_with(consumer, stack, model):
            units = len(unit_rows(stack, model, *made[0]))
            for read in matrices(consumer, weight_of(consumer, block)):
                read.view(len(read), units, -1)[:, unit] = 0
    unread = logits(model)
    assert not torch.allclose(unread, dense, atol=1e-3)
    with torch.no_grad():
        for block in blocks_with(consumer, stack, model):
            for projection, part in made:
                change_rows(projection, block, unit_rows(stack, model, projection, part)[unit], 0, noise=1)
    assert same(logits(model), unread)


SCALED = {"head": "v", "neuron": "up", "expert neuron": "up", "cross head": "cross v"}


@pytest.mark.parametrize(
    ("name", "stack", "columns"),
    [
        pytest.param(*entry.values, columns, id=f"{entry.id}-{columns}")
        for entry, columns in HAVE
        if producers(entry.values[1], SCALED[columns], columns.startswith("expert "))
    ],
)
def test_what_v_and_up_rows_gain_their_consumer_can_give_back(name: str, stack: Stack, columns: str) -> None:
    model, consumer = tiny_model(name), consumer_of(stack, columns)
    dense = logits(model)
    ((projection, part),) = producers(stack, SCALED[columns], consumer.experts)
    with torch.no_grad():
        for block in blocks_with(consumer, stack, model):
            rows = unit_rows(stack, model, projection, part).flatten()
            change_rows(projection, block, rows, factor=2, noise=0)
            weight_of(consumer, block).div_(2)
    assert same(logits(model), dense)


@pytest.mark.parametrize(
    "name", [n for n, f in FAMILIES.items() if any({"q", "k"} <= set(p.rows) for p in f.projections)]
)
def test_of_a_fused_weight_only_the_q_rows_stay_with_their_position(name: str) -> None:
    def reached(part: str) -> bool:
        """Whether noise on a part of the first position's output reaches another position's heads."""
        model, inputs = tiny_model(name), []
        (stack,) = FAMILIES[name].stacks
        block, consumer = blocks_of(stack, model)[0], consumer_of(stack, "head")
        ((projection, _),) = producers(stack, part)
        rows = unit_rows(stack, model, projection, part).flatten()

        def disturb(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[:, 0, rows] += 1
            return output

        block.get_submodule(consumer.path).register_forward_hook(lambda _, args, __: inputs.append(args[0]))
        logits(model)
        block.get_submodule(projection.path).register_forward_hook(disturb)
        logits(model)
        return not torch.equal(inputs[0][:, 1:], inputs[1][:, 1:])

    assert {part: reached(part) for part in "qkv"} == {"q": False, "k": True, "v": True}


@every_family
def test_embeddings_and_head_are_where_the_family_says(name: str) -> None:
    model, family = tiny_model(name), FAMILIES[name]
    assert [attrgetter(path)(model.base_model) for path in family.embeddings] == [model.get_input_embeddings()]
    modules = dict(model.named_modules())
    assert [modules[path] for path in family.heads if path in modules] == [model.get_output_embeddings()]


def rebuilt(model: PreTrainedModel, **changes: int) -> PreTrainedModel:
    """Returns such a model on the changed config, less the fields that the config derives from others."""
    fields = model.config.to_dict() | {"layer_types": None, "d_head": None}
    aliases = {model.config.attribute_map.get(name) for name in changes}
    fields = {name: value for name, value in fields.items() if name not in aliases} | changes
    return type(model)(type(model.config).from_dict({k: v for k, v in fields.items() if v is not None}))


def longest_window(name: str, stack: Stack, model: PreTrainedModel) -> int:
    """Returns the rows of the table of positions, or what the rotary embedding was made for."""
    alone = len(FAMILIES[name].stacks) == 1
    where = model.base_model if alone else model.base_model.get_submodule(stack.blocks.rpartition(".")[0])
    for path, module in where.named_modules():
        if path.endswith(("wpe", "position_embeddings", "embed_positions")):
            return module.num_embeddings
    return model.base_model.rotary_emb.max_seq_len_cached


def heads_of(block: nn.Module) -> set[int]:
    """Returns how many heads the attentions of an encoder's or a decoder's block have."""
    found = (getattr(module, "n_heads", getattr(module, "num_heads", None)) for module in block.modules())
    return {heads for heads in found if heads is not None}


@every_stack
def test_each_config_field_sets_the_dimension_that_it_is_listed_for(name: str, stack: Stack) -> None:
    family, model = FAMILIES[name], tiny_model(name)
    new = {"hidden": 64, "layers": 3, "heads": 2, "kv_heads": 4, "head_dim": 12, "neurons": 20}
    new |= {"positions": 80, "vocabulary": 100, "mels": 12}
    new |= {"experts": 6, "experts_per_token": 3, "expert_neurons": 28}
    of_the_whole = {d: f for d, f in family.config.items() if d != "positions" or stack is family.stacks[-1]}
    listed = {**of_the_whole, **stack.config}
    assert set(listed) <= set(new)
    assert all(listed[dimension] == field_name for dimension, field_name in of_the_whole.items())
    for dimension, field_name in listed.items():
        changed = rebuilt(model, **{field_name: new[dimension] + (dimension == "layers" and name == "t5_gated")})
        blocks = blocks_of(stack, changed)
        heads = consumer_of(stack, "head")
        head_inputs = matrix(heads, weight_of(heads, blocks[0])).shape[1]
        match dimension:
            case "hidden":
                assert matrix(heads, weight_of(heads, blocks[0])).shape[0] == 64
            case "layers":
                assert len(blocks) == (4 if name == "t5_gated" else 3)
            case "heads":
                assert getattr(changed.config, field_name) == 2
                assert len(family.stacks) > 1 or changed.config.num_attention_heads == 2
                assert len(family.stacks) == 1 or heads_of(blocks[0]) == {2}
                assert head_inputs == (2 * model.config.head_dim if hasattr(model.config, "head_dim") else 32)
            case "kv_heads":
                ((projection, _),) = producers(stack, "k")
                assert unit_rows(stack, changed, projection, "k").shape[0] == 4
                rows = matrix(projection, weight_of(projection, blocks[0])).shape[0]
                assert rows == head_inputs * len(projection.rows)
            case "head_dim":
                assert head_inputs == 4 * 12
            case "neurons" | "expert_neurons":
                neurons = consumer_of(stack, dimension.removesuffix("s").replace("_", " "))
                found = [matrix(neurons, weight_of(neurons, block)) for block in blocks_with(neurons, stack, changed)]
                assert {W.shape[1] for W in found} == {new[dimension]}
            case "experts":
                assert {attrgetter(path)(blocks[-1]).shape[axis] for path, axis in family.expert_tensors} == {6}
            case "experts_per_token":
                assert blocks[-1].mlp.gate.top_k == 3
            case "positions":
                assert longest_window(name, stack, changed) == 80 + (2 if name == "opt" else 0)
            case "vocabulary":
                assert changed.get_input_embeddings().num_embeddings == 100
            case "mels":
                assert changed.base_model.encoder.conv1.in_channels == 12


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.experts])
def test_experts_may_stand_in_any_order_if_all_their_tensors_do(name: str) -> None:
    model, order = tiny_model(name), torch.tensor([2, 0, 3, 1])
    (stack,) = FAMILIES[name].stacks
    dense = logits(model)
    with torch.no_grad():
        for block in blocks_of(stack, model):
            for path, axis in FAMILIES[name].expert_tensors if has(block, FAMILIES[name].experts) else ():
                weight = attrgetter(path)(block)
                weight.copy_(weight.index_select(axis, order))
    torch.testing.assert_close(logits(model), dense, rtol=1e-5, atol=1e-5)


def test_xlm_roberta_has_robertas_parameters() -> None:
    roberta = tiny_model("roberta")
    other = XLMRobertaForMaskedLM(XLMRobertaConfig(**{**roberta.config.to_dict(), "model_type": "xlm-roberta"}))
    shapes = [{n: p.shape for n, p in model.state_dict().items()} for model in (roberta, other)]
    assert shapes[0] == shapes[1]
    assert family_of("xlm-roberta") is FAMILIES["roberta"]


@pytest.mark.parametrize("name", ["t5", "t5_gated"])
def test_mt5_has_t5s_parameters(name: str) -> None:
    t5 = tiny_model(name)
    other = MT5ForConditionalGeneration(MT5Config(**{**t5.config.to_dict(), "model_type": "mt5"}))
    shapes = [{n: p.shape for n, p in model.state_dict().items()} for model in (t5, other)]
    assert shapes[0] == shapes[1]
    assert family_of("mt5", other.config) is FAMILIES[name]


def test_every_model_type_leads_to_its_one_family() -> None:
    assert set(TINY) == set(FAMILIES)
    for name, family in FAMILIES.items():
        config = tiny_model(name).config
        assert config.model_type in family.model_types
        found = [family_of(model_type, config) for model_type in family.model_types]
        assert found == [family] * len(family.model_types)
        if not family.when:
            assert [family_of(model_type) for model_type in family.model_types] == [family] * len(family.model_types)


def test_a_config_that_says_neither_of_two_kinds_is_refused() -> None:
    with pytest.raises(ModelError, match=r"this 't5' model says neither \{'is_gated_act': False\} or"):
        family_of("t5", object())


@every_family
def test_a_familys_stacks_are_its_list_of_blocks_or_an_encoder_and_a_decoder(name: str) -> None:
    family = FAMILIES[name]
    if family.encoder_decoder is None:
        (stack,) = family.stacks
        assert (stack.blocks, stack.projections, stack.config) == (family.blocks, family.projections, family.config)
        assert stack.block_returns == family.block_returns
    else:
        assert [stack.name for stack in family.stacks] == ["encoder", "decoder"]
        assert (family.blocks, family.projections, family.block_returns) == ("", (), 0)


@every_family
def test_a_networks_blocks_are_those_of_its_stacks_in_the_order_of_computation(name: str) -> None:
    model, family = tiny_model(name), FAMILIES[name]
    network = Network(model, family, None, Source(name, Path(), "float32"), torch.device("cpu"))
    called: list[nn.Module] = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, _, __: called.append(module))
    logits(model)
    assert called == list(network.blocks)
    assert [len(indices) for indices in network.ranges] == [len(blocks_of(stack, model)) for stack in family.stacks]
    modules = dict(model.named_modules())
    for index, block in enumerate(network.blocks):
        assert modules[network.block_name(index)] is block
        paths = [layer.name.removeprefix(f"{network.block_name(index)}.") for layer in network.block_layers(index)]
        assert paths == list(sites(network.stack_of(index), block))
        assert index in network.ranges[family.stacks.index(network.stack_of(index))]
    assert [layer.block for layer in network.layers()] == sorted(layer.block or 0 for layer in network.layers())


def test_half_an_encoder_decoder_is_refused_by_what_it_lacks() -> None:
    whole = tiny_model("t5")
    with pytest.raises(ModelError, match=r"T5EncoderModel has no decoder\.block, where a t5 model has its decoder's"):
        Network(T5EncoderModel(whole.config), FAMILIES["t5"], None, Source("", Path(), ""), torch.device("cpu"))


def test_an_unknown_architecture_is_refused_with_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ModelError) as error:
        family_of("lama")
    assert "Did you mean 'llama'?" in str(error.value)
    for family in FAMILIES.values():
        for model_type in family.model_types:
            assert model_type in str(error.value)


@every_family
def test_a_saved_tiny_model_reloads_with_the_same_logits_and_its_tokenizer(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    folder = save_tiny(name, tmp_path / name, tokenizer=True)
    assert same(logits(type(model).from_pretrained(folder)), logits(model))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(ALPHABET)["input_ids"]) == ALPHABET
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_a_tiny_model_is_the_same_for_the_same_seed_and_differs_clearly_for_another() -> None:
    for name in TINY:
        assert same(logits(tiny_model(name)), logits(tiny_model(name)))
        # T5 1.0 scales its decoder's output down by the square root of hidden.
        assert (logits(tiny_model(name)) - logits(tiny_model(name, seed=1))).std() > (0.1 if name == "t5" else 0.5)


def test_the_tiny_tokenizer_gives_back_what_it_got() -> None:
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) == VOCABULARY
    text = "Prune, then repair:\n  {keep} [what] matters!"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("\u00e9")["input_ids"] == [tokenizer.unk_token_id] * 2
