"""What a cut model is: plain where a config can say its shapes, reshaped where it can't; and any shape at all."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from cuts import (
    GROUPED,
    IDS,
    SPARSE,
    cuts_of,
    logits,
    network_of,
    prove,
    prove_cuts,
    shrink_epsilon,
    some,
    tiny_network,
)
from secateur.errors import ModelError, UsageError
from secateur.network.families import FAMILIES
from secateur.network.loading import load
from secateur.network.network import Network
from secateur.network.saving import save_network
from secateur.network.surgery import Cut, cut, pad_to_plain
from secateur.network.units import unit_groups

VOCABULARY = 40
TIED = [name for name, family in FAMILIES.items() if family.tied_width]
SMALL: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": 16}

every_family = pytest.mark.parametrize("name", FAMILIES)


def config_field(network: Network, dimension: str) -> Any:
    """Returns what the config says of the whole model, or else of its last stack (a decoder)."""
    fields = {**network.family.stacks[-1].config, **network.family.config}
    return getattr(network.model.config, fields[dimension])


def assert_plain(network: Network, name: str) -> None:
    assert network.architecture == tiny_network(name).architecture
    assert not hasattr(network.model.config, "secateur")


@every_family
def test_the_same_number_of_neurons_everywhere_is_a_field_of_a_plain_config(name: str) -> None:
    found = prove(tiny_network(name), "neuron")
    assert_plain(found.network, name)
    for stack, blocks in zip(found.network.family.stacks, found.network.ranges, strict=True):
        for block in blocks:
            (left,) = {one.left for one in found.cuts if one.group.block == block}
            experts = any(layer.expert is not None for layer in found.network.block_layers(block))
            field = stack.config["expert_neurons" if experts else "neurons"]
            assert getattr(found.network.model.config, field) == left


@every_family
def test_fewer_layers_and_tokens_are_fields_of_a_plain_config(name: str) -> None:
    shallow, narrow = prove(tiny_network(name), "layer"), prove(tiny_network(name), "token")
    assert_plain(shallow.network, name)
    assert_plain(narrow.network, name)
    for stack, blocks in zip(shallow.network.family.stacks, shallow.network.ranges, strict=True):
        assert getattr(shallow.network.model.config, stack.config["layers"]) == len(blocks)
    assert len(shallow.network.blocks) == len(tiny_network(name).blocks) - len(shallow.network.ranges)
    assert config_field(narrow.network, "vocabulary") == narrow.cuts[0].left


@pytest.mark.parametrize("name", [name for name in FAMILIES if hasattr(tiny_network(name).model.config, "layer_types")])
def test_each_layer_that_stays_keeps_its_entry_in_lists_of_the_config(name: str) -> None:
    (group,) = unit_groups(tiny_network(name), "layer")
    types = tiny_network(name).model.config.layer_types
    for layer in (0, 1):
        network = cut(tiny_network(name), [Cut(group, torch.arange(2) == layer)])
        assert network.model.config.layer_types == types[layer : layer + 1]


@pytest.mark.parametrize("name", GROUPED)
def test_heads_are_said_by_the_config_with_a_head_dim_of_its_own(name: str) -> None:
    width = unit_groups(tiny_network(name), "head")[0].readers[0].index.shape[1] // 2
    for unit, heads, kv_heads in (("head", 2, 1), ("query-head", 2, 2), ("channel", 4, 2)):
        network = prove(tiny_network(name), unit).network
        assert_plain(network, name)
        found = [config_field(network, one) for one in ("heads", "kv_heads", "head_dim")]
        assert found == [heads, kv_heads, width], unit


@pytest.mark.parametrize("name", GROUPED)
def test_heads_and_query_heads_go_at_once(name: str) -> None:
    network, keep = tiny_network(name), some()
    found = prove_cuts(network, [*cuts_of(network, "head", keep), *cuts_of(network, "query-head", keep)])
    torch.testing.assert_close(logits(found.network), found.expected, atol=1e-5, rtol=1e-5)
    assert_plain(found.network, name)
    assert config_field(found.network, "heads") == config_field(found.network, "kv_heads") == 1


@pytest.mark.parametrize("name", TIED)
def test_where_the_width_of_all_heads_is_the_hidden_size_both_shrink_together(name: str) -> None:
    together = prove(tiny_network(name), "channel").network
    assert [config_field(together, one) for one in ("hidden", "heads")] == [24, 3]
    assert name == "xlnet" or not hasattr(together.model.config, "secateur")  # its positions stay 32 wide


@pytest.mark.parametrize("name", TIED)
def test_channels_alone_leave_the_heads_as_wide_as_they_are(name: str) -> None:
    network = tiny_network(name)
    (group,) = unit_groups(network, "channel")
    found = prove_cuts(network, [Cut(group, torch.arange(32) >= 8)])
    assert found.network.architecture.startswith("Secateur")
    torch.testing.assert_close(logits(found.network), found.expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TIED)
def test_channels_that_are_no_whole_number_of_heads_are_refused(name: str) -> None:
    network = tiny_network(name)
    (group,) = unit_groups(network, "channel")
    with pytest.raises(UsageError, match="Round to multiples of 8"):
        cut(network, [Cut(group, torch.arange(32) >= 5)])


def randomized(model: PreTrainedModel, seed: int = 0) -> Network:
    """Returns a network around the model, with random weights, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    if not isinstance(model, GPT2LMHeadModel):
        shrink_epsilon(model)
    return network_of(model.eval())


def six_heads(model: Any, config: Any, **fields: Any) -> Network:
    """Returns a network of 3 KV heads: when one goes, the 4 heads that are left don't divide the hidden size."""
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8}
    sizes = {"hidden_size": 30, "intermediate_size": 20, "num_hidden_layers": 2, "vocab_size": 96}
    return randomized(model(config(**sizes, **heads, **fields)))


def test_a_llama_whose_heads_no_longer_divide_its_width_becomes_a_mistral(tmp_path: Path) -> None:
    found = prove(six_heads(LlamaForCausalLM, LlamaConfig), "head")
    assert found.network.architecture == "MistralForCausalLM"
    assert config_field(found.network, "heads") == 4
    assert torch.equal(logits(found.network), found.expected)
    save_network(found.network, tmp_path)
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(IDS)[0], found.expected)
    assert load(tmp_path).family.name == "mistral"


@pytest.mark.parametrize(
    ("model", "config", "fields"),
    [
        (Gemma2ForCausalLM, Gemma2Config, {}),
        (LlamaForCausalLM, LlamaConfig, {"attention_bias": True}),
        (LlamaForCausalLM, LlamaConfig, {"mlp_bias": True}),
    ],
)
def test_where_no_other_class_computes_the_same_such_a_model_is_reshaped(
    model: Any, config: Any, fields: dict[str, Any], tmp_path: Path
) -> None:
    found = prove(six_heads(model, config, **fields), "head")
    assert found.network.architecture == f"Secateur{model.__name__}"
    torch.testing.assert_close(logits(found.network), found.expected, atol=1e-5, rtol=1e-5)
    save_network(found.network, tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(found.network))


def test_gpt2_says_its_neurons_when_they_are_no_longer_four_times_the_hidden_size() -> None:
    network = randomized(GPT2LMHeadModel(GPT2Config(n_embd=32, n_head=4, n_layer=2, n_positions=64, vocab_size=96)))
    found = prove(network, "channel")
    assert found.network.architecture == "GPT2LMHeadModel"
    assert [config_field(found.network, one) for one in ("hidden", "neurons")] == [24, 128]
    torch.testing.assert_close(logits(found.network), found.expected, atol=1e-5, rtol=1e-5)


def test_layers_stay_where_attention_is_scaled_by_their_index() -> None:
    config = GPT2Config(n_embd=8, n_head=2, n_layer=2, vocab_size=96, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(UsageError, match="scale_attn_by_inverse_layer_idx"):
        prove(randomized(GPT2LMHeadModel(config)), "layer")


def test_channels_that_leave_a_weight_without_a_place_are_refused_by_its_name() -> None:
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 8, "num_attention_heads": 4, "ffn_dim": 8, "vocab_size": 96}
    network = network_of(OPTForCausalLM(OPTConfig(**sizes, num_hidden_layers=1)))
    (group,) = unit_groups(network, "channel")
    with pytest.raises(UsageError, match=r"no place for .*project_in"):  # at equal widths OPT has no such projection
        cut(network, [Cut(group, torch.arange(16) >= 8)])


T5 = [name for name, family in FAMILIES.items() if any(stack.carries for stack in family.stacks)]


@pytest.mark.parametrize("name", T5)
def test_the_first_block_that_stays_makes_the_biases_of_positions(name: str) -> None:
    for block in range(len(tiny_network(name).blocks)):
        network = tiny_network(name)
        (layers,) = unit_groups(network, "layer")
        found = prove_cuts(network, [Cut(layers, torch.arange(layers.count) != block)])
        torch.testing.assert_close(logits(found.network), found.expected, atol=1e-5, rtol=1e-5)
        assert_plain(found.network, name)


@pytest.mark.parametrize("name", T5)
def test_encoder_decoder_and_cross_attention_may_keep_heads_of_their_own_number(name: str, tmp_path: Path) -> None:
    network = tiny_network(name)
    stays = {"encoder": 3, "decoder": 2, "cross": 1}
    cuts = []
    for group in unit_groups(network, "head"):
        assert group.block is not None
        kind = "cross" if "cross" in group.name else network.stack_of(group.block).name
        cuts.append(Cut(group, torch.arange(group.count) < stays[kind]))
    found = prove_cuts(network, cuts)
    torch.testing.assert_close(logits(found.network), found.expected, atol=1e-5, rtol=1e-5)
    save_network(found.network, tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(found.network))


@pytest.mark.parametrize("name", T5)
def test_blocks_that_hand_on_biases_of_positions_have_to_keep_as_many_heads(name: str) -> None:
    network = tiny_network(name)
    with pytest.raises(UsageError, match=r"the cross heads of the decoder have to be as many in every block"):
        prove(network, "head", some(ragged=True))


@pytest.mark.parametrize("name", SPARSE)
def test_fewer_experts_are_a_field_of_a_plain_config(name: str) -> None:
    found = prove(tiny_network(name), "expert")
    assert_plain(found.network, name)
    assert config_field(found.network, "experts") == 3


@pytest.mark.parametrize("name", SPARSE)
def test_a_router_never_has_fewer_experts_than_it_chooses(name: str) -> None:
    network = tiny_network(name)
    cuts = [Cut(group, torch.arange(group.count) == 0) for group in unit_groups(network, "expert")]
    with pytest.raises(UsageError, match="1 experts would stay, and each token is sent to 2; keep at least 2"):
        cut(network, cuts)


def test_every_block_has_to_keep_as_many_experts() -> None:
    network = tiny_network("mixtral")
    cuts = [Cut(group, torch.arange(4) > number) for number, group in enumerate(unit_groups(network, "expert"))]
    with pytest.raises(UsageError, match="keep the same number of experts"):
        cut(network, cuts)


@every_family
def test_padding_ragged_cuts_makes_them_plain(name: str) -> None:
    network = tiny_network(name)
    cuts = cuts_of(network, "neuron", some(ragged=True))
    padded = pad_to_plain(cuts)
    fields: dict[str, set[int]] = defaultdict(set)
    most: dict[str, int] = defaultdict(int)
    for one, two in zip(cuts, padded, strict=True):
        experts = any(reader.layer.expert is not None for reader in one.group.readers)
        field = network.stack_of(one.group.block).config["expert_neurons" if experts else "neurons"]
        fields[field].add(two.left)
        most[field] = max(most[field], one.left)
    assert fields == {field: {width} for field, width in most.items()}
    assert all(bool((two.keep | ~one.keep).all()) for one, two in zip(cuts, padded, strict=True))
    assert_plain(cut(network, padded), name)


def test_when_ragged_widths_become_even_again_the_model_is_plain_and_leaves_no_code(tmp_path: Path) -> None:
    ragged = prove(tiny_network("llama"), "neuron", some(ragged=True)).network
    (tmp_path / "ragged").mkdir()
    (tmp_path / "even").mkdir()
    save_network(ragged, tmp_path / "ragged")
    again = load(tmp_path / "ragged")
    least = min(group.count for group in unit_groups(again, "neuron"))
    even = cut(again, [Cut(group, torch.arange(group.count) < least) for group in unit_groups(again, "neuron")])
    assert_plain(even, "llama")
    save_network(even, tmp_path / "even")
    names = {path.name for path in (tmp_path / "even").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    assert not {"auto_map", "secateur"} & set(json.loads((tmp_path / "even" / "config.json").read_text()))


@pytest.fixture
def reshaped(tmp_path: Path) -> Path:
    save_network(prove(tiny_network("llama"), "attention").network, tmp_path)
    return tmp_path


def rewrite(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_code_in_a_folder_is_never_run_by_secateur(reshaped: Path) -> None:
    expected = logits(load(reshaped))
    (reshaped / "modeling_secateur.py").write_text("raise SystemExit('it ran')")
    rewrite(
        reshaped, auto_map={"AutoConfig": "modeling_secateur.Config", "AutoModelForCausalLM": "modeling_secateur.X"}
    )
    for trust in (False, True):
        assert torch.equal(logits(load(reshaped, trust_remote_code=trust)), expected)


def test_without_trust_nobody_takes_it_for_the_plain_model(reshaped: Path, tmp_path: Path) -> None:
    """The weights that are gone would be drawn anew, and the outputs be wrong."""
    expected = logits(load(reshaped))
    model = AutoModelForCausalLM.from_pretrained(reshaped, trust_remote_code=True)
    model.save_pretrained(tmp_path / "again")
    load(reshaped).model.save_pretrained(tmp_path / "ours")
    for folder in (reshaped, tmp_path / "again", tmp_path / "ours"):
        assert json.loads((folder / "config.json").read_text())["model_type"] == "secateur_llama"
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(logits(load(folder)), expected)


def test_code_of_others_still_needs_trust(reshaped: Path) -> None:
    config = json.loads((reshaped / "config.json").read_text())
    del config["secateur"]
    (reshaped / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="--trust-remote-code"):
        load(reshaped)


def test_a_reshaped_model_is_not_streamed(reshaped: Path) -> None:
    with pytest.raises(UsageError, match="run without --stream"):
        load(reshaped, stream=True)


@pytest.mark.parametrize(
    ("secateur", "message"),
    [
        ({"shapes": {}, "attributes": {}}, r"secateur\.replaced: Field required"),
        ({"shapes": {"a": "b"}, "attributes": {}, "replaced": {}}, r"secateur\.shapes\.a"),
        ({"shapes": {}, "attributes": {"a": {"forward": "x"}}, "replaced": {}}, r"secateur\.attributes\.a\.forward"),
        ({"shapes": {}, "attributes": {}, "replaced": {"model.norm": "exec"}}, r"secateur\.replaced\.model\.norm"),
        ({"shapes": {}, "attributes": {}, "replaced": {"model.nowhere": "zero"}}, "nowhere"),
    ],
)
def test_what_config_json_says_of_shapes_is_checked(reshaped: Path, secateur: dict[str, Any], message: str) -> None:
    rewrite(reshaped, secateur=secateur)
    with pytest.raises(ModelError, match=message):
        load(reshaped)


def test_shapes_of_an_architecture_that_nobody_knows_are_refused(reshaped: Path) -> None:
    rewrite(reshaped, architectures=["SecateurNothing"])
    with pytest.raises(ModelError, match="'SecateurNothing', which nobody knows"):
        load(reshaped)


@st.composite
def llama_like(draw: st.DrawFn) -> Network:
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    config = LlamaConfig(
        **SMALL,
        hidden_size=kv_heads * group * draw(st.sampled_from([2, 3, 5])),
        num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads,
        head_dim=draw(st.sampled_from([2, 4])),
        intermediate_size=draw(st.integers(2, 9)),
        num_hidden_layers=draw(st.integers(1, 3)),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
    )
    return randomized(LlamaForCausalLM(config), draw(st.integers(0, 99)))


@st.composite
def gpt2_like(draw: st.DrawFn) -> Network:
    heads = draw(st.integers(1, 4))
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=16,
        n_embd=heads * draw(st.sampled_from([2, 4])),
        n_head=heads,
        n_inner=draw(st.none() | st.integers(2, 9)),
        n_layer=draw(st.integers(1, 3)),
        tie_word_embeddings=draw(st.booleans()),
    )
    return randomized(GPT2LMHeadModel(config), draw(st.integers(0, 99)))


@st.composite
def several_cuts(draw: st.DrawFn, network: Network) -> list[Cut]:
    """Returns random cuts of several kinds at once; of the channels, what is left is a multiple of the heads."""
    kinds = ["neuron", "head", "channel", "layer", "attention", "mlp", "token"]
    heads, kv_heads = network.dimension("heads"), network.dimension("kv_heads")
    if kv_heads is not None and kv_heads != heads:
        kinds.append("query-head")
    cuts = []
    for unit in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4, unique=True)):
        for group in unit_groups(network, unit):
            if unit == "channel":
                assert heads is not None
                step = group.count // heads if network.family.tied_width else heads
                stays = step * draw(st.integers(1, group.count // step))
                keep = torch.zeros(group.count, dtype=torch.bool)
                keep[draw(st.permutations(range(group.count)))[:stays]] = True
            else:
                flags = st.lists(st.booleans(), min_size=group.count, max_size=group.count)
                keep = torch.tensor(draw(flags))
                keep[draw(st.integers(0, group.count - 1))] = True
            if unit == "token":
                keep[IDS] = True
            cuts.append(Cut(group, keep))
    return cuts


@pytest.mark.parametrize("kind", [llama_like, gpt2_like])
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_random_cuts_of_several_kinds_at_once_are_exact(kind: Any, data: st.DataObject) -> None:
    network = data.draw(kind())
    before = network.parameters()
    found = prove_cuts(network, data.draw(several_cuts(network)))
    assert found.network.parameters() <= before
    size = max(1.0, float(found.expected.abs().max()))
    torch.testing.assert_close(logits(found.network, found.ids), found.expected, atol=2e-5 * size, rtol=1e-4)
