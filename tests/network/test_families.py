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
from transformers import AutoTokenizer, PreTrainedModel, XLMRobertaConfig, XLMRobertaForMaskedLM

from secateur.errors import ModelError
from secateur.network.families import FAMILIES, family_of
from secateur.network.family import Layout, Projection
from tiny import ALPHABET, TINY, VOCABULARY, has, save_tiny, tiny_model, tiny_tokenizer

BATCH, LENGTH = 3, 7
ROUTERS = {"mlp.gate"}
XLNET_BIASES = {f"rel_attn.{name}" for name in ("r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")}

every_family = pytest.mark.parametrize("name", FAMILIES)


@dataclass
class Call:
    """One use of a projection's weight."""

    path: str
    input: Tensor
    output: Tensor


@dataclass
class Observation:
    """What one forward pass did: the calls of each block, and what each block took and gave."""

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


def blocks_of(name: str, model: PreTrainedModel) -> nn.ModuleList:
    return attrgetter(FAMILIES[name].blocks)(model.base_model)


def weight_of(projection: Projection, block: nn.Module) -> Tensor:
    found = attrgetter(projection.path)(block)
    return found.weight if isinstance(found, nn.Module) else found


def bias_of(projection: Projection, block: nn.Module) -> Tensor | None:
    return getattr(attrgetter(projection.path)(block), "bias", None)


def there(name: str, block: nn.Module) -> list[Projection]:
    """Returns the projections that a block has."""
    return [p for p in FAMILIES[name].projections if p.where is None or has(block, p.where)]


def blocks_with(projection: Projection, name: str, model: PreTrainedModel) -> list[nn.Module]:
    return [block for block in blocks_of(name, model) if projection in there(name, block)]


def matrices(projection: Projection, weight: Tensor) -> list[Tensor]:
    """Returns views of the weight as (out, in), one per expert if it has experts."""
    flats = [part.view(part.shape[0], -1) for part in (weight if projection.experts else [weight])]
    return flats if projection.layout is Layout.OUT_IN else [flat.T for flat in flats]


def matrix(projection: Projection, weight: Tensor) -> Tensor:
    """Returns a view of the weight, or of the first expert's, as (out, in)."""
    return matrices(projection, weight)[0]


def sites(name: str, block: nn.Module) -> dict[str, tuple[Projection, Tensor, str]]:
    """Returns a block's matrices in the order of computation: each with its projection, and the name of its input."""
    found, routed = {}, {}
    for projection in there(name, block):
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


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(tokens()).logits


@functools.cache
def observe(name: str) -> Observation:
    model, seen = tiny_model(name), Observation()
    model.config._experts_implementation = "eager"  # one expert after the other
    owners: dict[int, tuple[int, str]] = {}
    for index, block in enumerate(blocks_of(name, model)):

        def note(_: nn.Module, args: Any, output: Tensor, index: int, path: str) -> None:
            seen.calls[index].append(Call(path, args[0], output))

        def note_block(_: nn.Module, args: Any, output: Any, index: int) -> None:
            seen.inputs[index], seen.outputs[index] = args[0], output

        block.register_forward_hook(functools.partial(note_block, index=index))
        for path, (projection, W, _) in sites(name, block).items():
            found = attrgetter(projection.path)(block)
            if isinstance(found, nn.Module):
                found.register_forward_hook(functools.partial(note, index=index, path=path))
            else:
                owners[W.data_ptr()] = (index, path)
    with ProductWatch(owners, seen):
        logits(model)
    return seen


@every_family
def test_every_projection_is_in_every_block_that_it_is_said_to_be_in_with_two_axes_or_more(name: str) -> None:
    seen = set()
    for block in blocks_of(name, tiny_model(name)):
        for projection in there(name, block):
            seen.add(projection)
            assert isinstance(weight_of(projection, block), nn.Parameter), projection.path
            assert weight_of(projection, block).ndim >= 2 + projection.experts, projection.path
    assert seen == set(FAMILIES[name].projections)


@every_family
def test_no_matrix_of_a_block_is_forgotten(name: str) -> None:
    for block in blocks_of(name, tiny_model(name)):
        listed = {projection.path for projection in there(name, block)}
        found = {path.removesuffix(".weight") for path, p in block.named_parameters() if p.ndim >= 2}
        assert found - XLNET_BIASES - ROUTERS == listed


@every_family
def test_projections_are_listed_in_the_order_of_computation_and_run_once(name: str) -> None:
    seen, blocks = observe(name), blocks_of(name, tiny_model(name))
    assert len(seen.calls) == 2
    for index, calls in seen.calls.items():
        assert [call.path for call in calls] == list(sites(name, blocks[index]))


@every_family
def test_projections_read_the_same_tensor_exactly_when_their_columns_have_the_same_name(name: str) -> None:
    blocks = blocks_of(name, tiny_model(name))
    for index, calls in observe(name).calls.items():
        columns = {path: read for path, (_, _, read) in sites(name, blocks[index]).items()}
        for one in calls:
            for other in calls:
                same = columns[one.path] == columns[other.path]
                assert (one.input is other.input) == same, (one.path, other.path)
                equal = one.input.shape == other.input.shape and torch.equal(one.input, other.input)
                assert equal == same, (one.path, other.path)


@every_family
def test_the_layout_makes_each_projection_a_plain_matrix_product(name: str) -> None:
    blocks = blocks_of(name, tiny_model(name))
    for index, calls in observe(name).calls.items():
        for call in calls:
            projection, W, _ = sites(name, blocks[index])[call.path]
            bias = bias_of(projection, blocks[index])
            product = call.input.reshape(-1, W.shape[1]) @ W.T + (0 if bias is None else bias)
            torch.testing.assert_close(product, call.output.reshape(-1, W.shape[0]))


@every_family
def test_a_block_returns_what_the_family_says_with_windows_on_its_batch_axis(name: str) -> None:
    family, seen = FAMILIES[name], observe(name)
    for index, output in seen.outputs.items():
        assert isinstance(output, tuple) == (family.block_returns > 0)
        assert not isinstance(output, tuple) or len(output) == family.block_returns
        hidden = output[0] if isinstance(output, tuple) else output
        assert hidden.ndim == 3
        assert hidden.shape[family.batch_axis] == BATCH
        assert hidden.shape[1 - family.batch_axis] == LENGTH
        if index + 1 in seen.inputs:
            assert seen.inputs[index + 1] is hidden


def consumer_of(name: str, columns: str) -> Projection:
    (projection,) = [p for p in FAMILIES[name].projections if p.columns == columns]
    return projection


def producers(name: str, parts: str, experts: bool = False) -> list[tuple[Projection, str]]:
    listed = [p for p in FAMILIES[name].projections if p.experts == experts]
    return [(p, part) for p in listed for part in p.rows if part in parts.split()]


UNITS = {"head": "q k v r", "neuron": "gate up neuron", "expert neuron": "gate up"}
HAVE = [
    (name, columns)
    for name, f in FAMILIES.items()
    for columns in UNITS
    if columns in {p.columns for p in f.projections}
]


def test_every_family_has_heads_and_neurons() -> None:
    assert {name for name, columns in HAVE if columns == "head"} == set(FAMILIES)
    assert {name for name, columns in HAVE if columns != "head"} == set(FAMILIES)


def unit_rows(name: str, model: PreTrainedModel, projection: Projection, part: str) -> Tensor:
    """Returns a part's rows of (out, in), per unit: (KV heads or neurons, rows of each)."""
    columns = "neuron" if part in ("gate", "up", "neuron") else "head"
    consumer = consumer_of(name, f"expert {columns}" if projection.experts else columns)
    block = blocks_with(consumer, name, model)[0]
    width = matrix(consumer, weight_of(consumer, block)).shape[1]
    units = width
    sizes = dict.fromkeys(projection.rows, width)
    if consumer.columns == "head":
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


@pytest.mark.parametrize(("name", "columns"), HAVE)
def test_a_unit_that_nobody_reads_may_compute_anything(name: str, columns: str) -> None:
    model, consumer = tiny_model(name), consumer_of(name, columns)
    made = producers(name, UNITS[columns], consumer.experts)
    dense, unit = logits(model), 1
    with torch.no_grad():
        for block in blocks_with(consumer, name, model):
            units = len(unit_rows(name, model, *made[0]))
            for read in matrices(consumer, weight_of(consumer, block)):
                read.view(len(read), units, -1)[:, unit] = 0
    unread = logits(model)
    assert not torch.allclose(unread, dense, atol=1e-3)
    with torch.no_grad():
        for block in blocks_with(consumer, name, model):
            for projection, part in made:
                change_rows(projection, block, unit_rows(name, model, projection, part)[unit], 0, noise=1)
    assert torch.equal(logits(model), unread)


@pytest.mark.parametrize(
    ("name", "part", "columns"),
    [
        (name, {"head": "v"}.get(columns, "up"), columns)
        for name, columns in HAVE
        if producers(name, {"head": "v"}.get(columns, "up"), columns == "expert neuron")
    ],
)
def test_what_v_and_up_rows_gain_their_consumer_can_give_back(name: str, part: str, columns: str) -> None:
    model, consumer = tiny_model(name), consumer_of(name, columns)
    dense = logits(model)
    ((projection, _),) = producers(name, part, consumer.experts)
    with torch.no_grad():
        for block in blocks_with(consumer, name, model):
            rows = unit_rows(name, model, projection, part).flatten()
            change_rows(projection, block, rows, factor=2, noise=0)
            weight_of(consumer, block).div_(2)
    assert torch.equal(logits(model), dense)


@pytest.mark.parametrize(
    "name", [n for n, f in FAMILIES.items() if any({"q", "k"} <= set(p.rows) for p in f.projections)]
)
def test_of_a_fused_weight_only_the_q_rows_stay_with_their_position(name: str) -> None:
    def reached(part: str) -> bool:
        """Whether noise on a part of the first position's output reaches another position's heads."""
        model, inputs = tiny_model(name), []
        block, consumer = blocks_of(name, model)[0], consumer_of(name, "head")
        ((projection, _),) = producers(name, part)
        rows = unit_rows(name, model, projection, part).flatten()

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


def longest_window(model: PreTrainedModel) -> int:
    """Returns the rows of the table of positions, or what the rotary embedding was made for."""
    for path, module in model.base_model.named_modules():
        if path.endswith(("wpe", "position_embeddings", "embed_positions")):
            return module.num_embeddings
    return model.base_model.rotary_emb.max_seq_len_cached


@every_family
def test_each_config_field_sets_the_dimension_that_it_is_listed_for(name: str) -> None:
    family, model = FAMILIES[name], tiny_model(name)
    new = {"hidden": 64, "layers": 3, "heads": 2, "kv_heads": 4, "head_dim": 12, "neurons": 20}
    new |= {"positions": 80, "vocabulary": 100, "experts": 6, "experts_per_token": 3, "expert_neurons": 28}
    assert set(family.config) <= set(new)
    for dimension, field_name in family.config.items():
        changed = rebuilt(model, **{field_name: new[dimension]})
        blocks = blocks_of(name, changed)
        heads = consumer_of(name, "head")
        head_inputs = matrix(heads, weight_of(heads, blocks[0])).shape[1]
        match dimension:
            case "hidden":
                assert matrix(heads, weight_of(heads, blocks[0])).shape[0] == 64
            case "layers":
                assert len(blocks) == 3
            case "heads":
                assert changed.config.num_attention_heads == 2
                assert head_inputs == (2 * model.config.head_dim if hasattr(model.config, "head_dim") else 32)
            case "kv_heads":
                ((projection, _),) = producers(name, "k")
                assert unit_rows(name, changed, projection, "k").shape[0] == 4
                rows = matrix(projection, weight_of(projection, blocks[0])).shape[0]
                assert rows == head_inputs * len(projection.rows)
            case "head_dim":
                assert head_inputs == 4 * 12
            case "neurons":
                neurons = consumer_of(name, "neuron")
                assert matrix(neurons, weight_of(neurons, blocks[0])).shape[1] == 20
            case "experts":
                assert {attrgetter(path)(blocks[-1]).shape[axis] for path, axis in family.expert_tensors} == {6}
            case "experts_per_token":
                assert blocks[-1].mlp.gate.top_k == 3
            case "expert_neurons":
                neurons = consumer_of(name, "expert neuron")
                assert matrix(neurons, weight_of(neurons, blocks[-1])).shape[1] == 28
            case "positions":
                assert longest_window(changed) == 80 + (2 if name == "opt" else 0)
            case "vocabulary":
                assert changed.get_input_embeddings().num_embeddings == 100


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.experts])
def test_experts_may_stand_in_any_order_if_all_their_tensors_do(name: str) -> None:
    model, order = tiny_model(name), torch.tensor([2, 0, 3, 1])
    dense = logits(model)
    with torch.no_grad():
        for block in blocks_of(name, model):
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


def test_every_model_type_leads_to_its_one_family() -> None:
    assert set(TINY) == set(FAMILIES)
    for name, family in FAMILIES.items():
        assert tiny_model(name).config.model_type in family.model_types
        assert [family_of(model_type) for model_type in family.model_types] == [family] * len(family.model_types)


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
    assert torch.equal(logits(type(model).from_pretrained(folder)), logits(model))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(ALPHABET)["input_ids"]) == ALPHABET
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_a_tiny_model_is_the_same_for_the_same_seed_and_differs_clearly_for_another() -> None:
    for name in TINY:
        assert torch.equal(logits(tiny_model(name)), logits(tiny_model(name)))
        assert (logits(tiny_model(name)) - logits(tiny_model(name, seed=1))).std() > 0.5


def test_the_tiny_tokenizer_gives_back_what_it_got() -> None:
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) == VOCABULARY
    text = "Prune, then repair:\n  {keep} [what] matters!"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("\u00e9")["input_ids"] == [tokenizer.unk_token_id] * 2
