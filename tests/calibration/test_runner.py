"""The block runner against the model's own forward pass: the same hidden states, the same inputs."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from feeding import random_windows, run
from secateur.calibration.activations import Storage
from secateur.calibration.inputs import model_inputs
from secateur.calibration.loss import loss_gradients, output_sensitivity
from secateur.calibration.precision import COMPUTE, half_in_float32, products
from secateur.calibration.runner import BlockRunner
from secateur.calibration.statistics import GRADIENTS, Needs, Statistics
from secateur.calibration.windows import Windows
from secateur.errors import CalibrationError, UsageError
from secateur.network.families import FAMILIES
from secateur.network.loading import load
from secateur.network.network import Layer, Network, Source
from secateur.progress import Progress
from tiny import EXPERTS, FRAMES, has, save_tiny, tiny_model

WINDOWS, LENGTH = 5, 24  # longer than the 16 that Gemma's sliding window sees

every_family = pytest.mark.parametrize("family", FAMILIES)
ENCODER_DECODERS = [name for name, family in FAMILIES.items() if family.encoder_decoder]


@pytest.fixture(autouse=True, params=["one batch", "three batches"])
def batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Has every test run with all windows at once, and with two windows at a time."""
    if request.param == "one batch":
        return 1
    monkeypatch.setattr("secateur.calibration.runner.TOKENS_PER_BATCH", 2 * LENGTH + 3)
    return 3


def network(family: str, dtype: torch.dtype = torch.float32) -> Network:
    model = tiny_model(family).to(dtype).requires_grad_(False)
    return Network(model, FAMILIES[family], None, Source(f"tiny:{family}", Path(), "float32"), torch.device("cpu"))


def windows(family: str = "llama") -> Windows:
    return random_windows(family, WINDOWS, LENGTH)


def tokens_of(one: Network, name: str) -> int:
    """Returns how many tokens of a window an input (`Layer.reads`) has."""
    if one.family.encoder_decoder is None:
        # XLNet's positions are the distances between any two tokens, LENGTH before and LENGTH after.
        return LENGTH * (2 if one.family.name == "xlnet" and name.endswith("/position") else 1)
    encoded = name.endswith("/encoder output") or "encoder." in name
    if one.family.inputs == "audio":
        return FRAMES // 2 if encoded else LENGTH
    return LENGTH // 2 if encoded else 1 + LENGTH // 2  # the decoder begins with a token of its own


def nothing() -> None:
    """Doesn't watch the progress."""


def readers(layers: list[Layer], needs: Needs = Needs.GRAM) -> dict[str, tuple[Layer, Needs]]:
    found: dict[str, tuple[Layer, Needs]] = {}
    for layer in layers:
        found.setdefault(layer.reads, (layer, needs))
    return found


def gathered(one: Network, needs: Needs = Needs.GRAM) -> dict[str, Statistics]:
    """Returns the statistics of all blocks' inputs, block by block, in strict float32."""
    runner, found = BlockRunner(one, windows(one.family.name), "float32"), {}
    for block in range(len(one.blocks)):
        found |= runner.gather(readers(one.block_layers(block), needs), nothing)
        runner.advance(nothing)
    return found


class Products(TorchFunctionMode):
    """Notes the first operand of each einsum and linear whose second one lies where a watched weight does."""

    def __init__(self, names: dict[int, str], seen: dict[str, list[Tensor]]) -> None:
        super().__init__()
        self.names, self.seen = names, seen

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operands = args[1:3] if function is torch.einsum else args[:2] if function is functional.linear else ()
        if len(operands) == 2 and operands[1].data_ptr() in self.names:
            self.seen[self.names[operands[1].data_ptr()]].append(operands[0])
        return function(*args, **(kwargs or {}))


def inputs_of(one: Network, layers: list[Layer]) -> dict[str, Tensor]:
    """Returns each layer's input (tokens, in), float64, from plain forward passes of the whole model."""
    seen: dict[str, list[Tensor]] = defaultdict(list)
    handles = []
    for layer in layers:
        if layer.module is not None and layer.expert is None:

            def note(_: nn.Module, args: Any, name: str = layer.name) -> None:
                seen[name].append(args[0])

            handles.append(layer.module.register_forward_pre_hook(note))
    bare = [layer for layer in layers if layer.module is None or layer.expert is not None]
    pointers = {layer.matrix().data_ptr(): layer.name for layer in bare}
    usual = getattr(one.model.config, "_experts_implementation", None)
    one.model.config._experts_implementation = "eager"  # one expert after the other
    with torch.inference_mode(), Products(pointers, seen):
        for part in windows(one.family.name).batches(1):
            run(one, part)
    one.model.config._experts_implementation = usual
    for handle in handles:
        handle.remove()
    widths = {layer.name: layer.shape[1] for layer in layers}
    return {name: torch.cat([x.reshape(-1, widths[name]) for x in some]).double() for name, some in seen.items()}


def outputs_of_blocks(one: Network, part: Windows) -> list[Tensor]:
    """Returns what each block gives in a plain forward pass."""
    seen: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda _, __, out: seen.append(out if isinstance(out, Tensor) else out[0]))
        for block in one.blocks
    ]
    with torch.inference_mode():
        run(one, part)
    for handle in handles:
        handle.remove()
    return seen


def hidden_states(one: Network, output: Any) -> list[Tensor]:
    """Returns the hidden states before each block."""
    if one.family.encoder_decoder is None:
        return list(output.hidden_states)
    encoder, decoder = one.ranges
    return [*output.encoder_hidden_states[: len(encoder)], *output.decoder_hidden_states[: len(decoder)]]


@every_family
def test_hidden_states_are_the_models_own_block_by_block(family: str, batches: int) -> None:
    one = network(family)
    runner = BlockRunner(one, windows(family), "float32")
    assert len(runner.hidden) == batches
    parts = windows(family).batches(-(-WINDOWS // batches))
    with torch.inference_mode():
        states = [hidden_states(one, run(one, part, output_hidden_states=True)) for part in parts]
    outputs = [outputs_of_blocks(one, part) for part in parts]
    for block in range(len(one.blocks)):
        assert runner.position == block
        for hidden, own in zip(runner.hidden, states, strict=True):
            windows_first = hidden.transpose(0, one.family.batch_axis)
            assert torch.equal(windows_first, own[block])
        runner.advance(nothing)
        for hidden, own in zip(runner.outputs, outputs, strict=True):
            assert torch.equal(hidden, own[block])


@every_family
def test_the_gram_matrix_of_each_layers_input_is_that_of_the_whole_models_forward_pass(family: str) -> None:
    one = network(family)
    found, inputs = gathered(one), inputs_of(one, one.layers())
    for layer in one.layers():
        X = inputs[layer.name]
        G = X.T @ X
        scale = float(G.diagonal().max())
        torch.testing.assert_close(found[layer.reads].G.double() / scale, G / scale, rtol=1e-4, atol=1e-5)


@every_family
def test_bf16_products_move_a_gram_matrix_by_less_than_their_rounding(family: str) -> None:
    one = network(family)
    layers = one.block_layers(0)
    rounded = BlockRunner(one, windows(family)).gather(readers(layers), nothing)
    exact = BlockRunner(one, windows(family), "float32").gather(readers(layers), nothing)
    for name, statistics in exact.items():
        norms = statistics.G.diagonal().sqrt()
        assert bool(((rounded[name].G - statistics.G).abs() <= 2**-8 * torch.outer(norms, norms)).all()), name


@every_family
def test_moments_alone_are_the_same_as_those_beside_a_gram_matrix(family: str) -> None:
    moments, grams = gathered(network(family), Needs.MOMENTS), gathered(network(family))
    assert moments.keys() == grams.keys()
    for name, one in moments.items():
        assert one.gram is None
        assert one.count == grams[name].count
        torch.testing.assert_close(one.norms, grams[name].norms, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one.mean, grams[name].mean, rtol=1e-4, atol=1e-5)


def inputs(one: Network, block: int) -> set[str]:
    """Returns the names of a block's inputs, as the family describes them."""
    found = set()
    for projection in one.stack_of(block).projections:
        if projection.where is None or has(one.blocks[block], projection.where):
            numbers = [f".{expert}" for expert in range(EXPERTS)] if projection.experts else [""]
            found |= {projection.columns + number for number in numbers}
    return found


@every_family
def test_layers_that_share_an_input_share_one_entry(family: str) -> None:
    one = network(family)
    found = gathered(one)
    names = [inputs(one, block) for block in range(len(one.blocks))]
    assert set(found) == {f"{one.block_name(block)}/{name}" for block, some in enumerate(names) for name in some}
    assert {layer.reads for layer in one.layers()} == set(found)


@every_family
def test_every_token_counts_once_and_there_is_no_padding(family: str) -> None:
    one = network(family)
    counts = Counter()
    for name, statistics in gathered(one).items():
        counts[re.sub(r"\.\d$", " of an expert", name)] += statistics.count
    for name, count in counts.items():
        if name.endswith(" of an expert"):
            assert count == WINDOWS * LENGTH * 2
        else:
            assert count == WINDOWS * tokens_of(one, name)


@every_family
def test_statistics_do_not_depend_on_which_of_the_layers_are_asked_for(family: str) -> None:
    one = network(family)
    whole = BlockRunner(one, windows(family), "float32").gather(readers(one.block_layers(0)), nothing)
    for layer in one.block_layers(0):
        alone = BlockRunner(one, windows(family), "float32").gather(readers([layer]), nothing)
        assert set(alone) == {layer.reads}
        assert torch.equal(alone[layer.reads].G, whole[layer.reads].G)


@every_family
def test_a_changed_block_gives_the_hidden_states_of_the_changed_model(family: str, batches: int) -> None:
    one = network(family)
    runner = BlockRunner(one, windows(family), "float32")
    before = gathered(network(family))
    runner.gather(readers(one.block_layers(0)), nothing)
    for layer in one.block_layers(0):
        W = layer.matrix().clone()
        layer.write(W, W.abs() > 0.1)
    runner.advance(nothing)
    parts = windows(family).batches(-(-WINDOWS // batches))
    for hidden, part in zip(runner.hidden, parts, strict=True):
        assert torch.equal(hidden, outputs_of_blocks(one, part)[0])
    found = runner.gather(readers(one.block_layers(1)), nothing)
    inputs = inputs_of(one, one.block_layers(1))
    for layer in one.block_layers(1):
        X = inputs[layer.name]
        G = X.T @ X
        scale = float(G.diagonal().max())
        torch.testing.assert_close(found[layer.reads].G.double() / scale, G / scale, rtol=1e-4, atol=1e-5)
        if not layer.reads.endswith("/position"):
            assert not torch.allclose(found[layer.reads].norms, before[layer.reads].norms, rtol=1e-3)


@every_family
def test_the_model_is_left_as_it_was(family: str) -> None:
    one, fresh = network(family), network(family)
    blocks = list(one.blocks)
    gathered(one)
    assert all(block is before for block, before in zip(one.blocks, blocks, strict=True))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in one.model.modules())
    assert one.model.state_dict().keys() == fresh.model.state_dict().keys()
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, fresh.model.state_dict()[name]), name
    with torch.inference_mode():
        assert torch.equal(run(one, windows(family)).logits, run(fresh, windows(family)).logits)


@every_family
def test_the_heads_input_is_seen_by_full_forward_passes(family: str) -> None:
    one = network(family)
    (head,) = [layer for layer in one.outside() if layer.module is one.model.get_output_embeddings()]
    runner = BlockRunner(one, windows(family), "float32")
    for _ in one.blocks:
        runner.advance(nothing)
    found = runner.gather_outside([(head, Needs.GRAM)], nothing)
    X = inputs_of(one, [head])[head.name]
    assert set(found) == {head.reads}
    assert found[head.reads].count == WINDOWS * tokens_of(one, head.reads)
    torch.testing.assert_close(found[head.reads].G.double(), X.T @ X, rtol=1e-4, atol=1e-2)


def test_nothing_is_gathered_where_nothing_is_needed() -> None:
    one = network("llama")
    assert BlockRunner(one, windows(), "float32").gather({}, nothing) == {}
    assert BlockRunner(one, windows(), "float32").gather(readers(one.block_layers(0), Needs.NOTHING), nothing) == {}
    (head,) = [layer for layer in one.outside() if not layer.table]
    assert BlockRunner(one, windows(), "float32").gather_outside([(head, Needs.NOTHING)], nothing) == {}


def test_each_batch_moves_the_progress_by_one(batches: int) -> None:
    one, ticks = network("llama"), []
    runner = BlockRunner(one, windows(), "float32")
    runner.gather(readers(one.block_layers(0)), lambda: ticks.append("gather"))
    runner.advance(lambda: ticks.append("advance"))
    assert ticks == ["gather"] * batches + ["advance"] * batches


def test_an_input_that_is_not_finite_is_an_error_that_names_the_layer() -> None:
    one = network("llama")
    one.block_layers(0)[2].parameter[3] = float("inf")  # v_proj: reaches o_proj
    runner = BlockRunner(one, windows(), "float32")
    with pytest.raises(CalibrationError, match=r"model\.layers\.0\.self_attn\.o_proj are NaN or infinite"):
        runner.gather(readers(one.block_layers(0)), nothing)


def test_a_block_that_gets_its_hidden_states_by_keyword_is_named_and_the_model_put_back() -> None:
    one = network("llama")
    blocks = list(one.blocks)
    plain = type(one.base).forward

    def by_keyword(base: Any, ids: Tensor, **_: Any) -> Any:
        return base.layers[0](hidden_states=base.embed_tokens(ids))

    one.base.forward = by_keyword.__get__(one.base)
    with pytest.raises(CalibrationError, match="LlamaDecoderLayer gets its hidden states by keyword"):
        BlockRunner(one, windows(), "float32")
    one.base.forward = plain.__get__(one.base)
    assert all(block is before for block, before in zip(one.blocks, blocks, strict=True))


def test_a_model_that_skips_a_block_is_refused() -> None:
    one = network("llama")
    one.base.forward = (lambda base, ids, **_: base.layers[0](base.embed_tokens(ids))).__get__(one.base)
    with pytest.raises(CalibrationError, match="LlamaForCausalLM called 1 of its 2 blocks"):
        BlockRunner(one, windows(), "float32")


def halve(one: Network, blocks: range) -> None:
    """Sets the smaller half of the weights of some blocks to zero."""
    for block in blocks:
        for layer in one.block_layers(block):
            W = layer.matrix().clone()
            layer.write(W, W.abs() > W.abs().median())


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_the_decoders_blocks_see_what_the_pruned_encoder_gives(family: str) -> None:
    one = network(family)
    encoder, decoder = one.ranges
    dense = gathered(network(family))
    runner = BlockRunner(one, windows(family), "float32")
    for block in encoder:
        halve(one, range(block, block + 1))
        runner.advance(nothing)
    inputs = inputs_of(one, one.layers())
    for block in decoder:
        found = runner.gather(readers(one.block_layers(block)), nothing)
        (read,) = [name for name in found if name.endswith("/encoder output")]
        for layer in one.block_layers(block):
            X = inputs[layer.name]
            G = X.T @ X
            scale = float(G.diagonal().max())
            torch.testing.assert_close(found[layer.reads].G.double() / scale, G / scale, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found[read].norms, dense[read].norms, rtol=1e-2)
        runner.advance(nothing)


@every_family
def test_behind_the_last_block_the_runner_gives_the_changed_models_own_output(family: str, batches: int) -> None:
    one = network(family)
    runner = BlockRunner(one, windows(family), "float32")
    for block in range(len(one.blocks)):
        halve(one, range(block, block + 1))
        runner.advance(nothing)
    with torch.inference_mode():
        for number, part in enumerate(windows(family).batches(-(-WINDOWS // batches))):
            assert torch.equal(runner.output(number), run(one, part)[0])


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("position", [1, 2, 3])
def test_activations_in_files_can_be_taken_up_before_any_block(family: str, position: int, tmp_path: Path) -> None:
    one, storage = network(family), Storage(tmp_path, limit=0, run="this one")
    runner = BlockRunner(one, windows(family), "float32", storage)
    for _ in range(position):
        runner.advance(nothing)
    halve(one, range(position))  # what is behind the runner may have changed since
    other = BlockRunner(one, windows(family), "float32", storage)
    other.restore(position)
    assert other.position == position
    while runner.position < len(one.blocks):
        one_found, other_found = (a.gather(readers(one.block_layers(a.position)), nothing) for a in (runner, other))
        for name, statistics in one_found.items():
            assert torch.equal(statistics.G, other_found[name].G)
        runner.advance(nothing)
        other.advance(nothing)
    runner.close()
    assert not list(tmp_path.iterdir())


def test_what_is_wider_than_the_model_stays_so(tmp_path: Path) -> None:
    one = load(save_tiny("t5", tmp_path / "t5"), dtype="float16")  # transformers keeps its wo in float32
    assert {parameter.dtype for parameter in one.model.parameters()} == {torch.float16, torch.float32}
    runner = BlockRunner(one, windows("t5"), "float32")
    for block in range(len(one.blocks)):
        runner.advance(nothing)
        parts = windows("t5").batches(len(runner.hidden[0]))
        with half_in_float32(torch.float16, torch.device("cpu")):
            own = torch.cat([outputs_of_blocks(one, part)[block] for part in parts])
        assert torch.equal(torch.cat(list(runner.outputs)), own)


def test_windows_of_sounds_differ_in_length_and_are_passed_without_padding() -> None:
    one, lengths = network("whisper"), torch.tensor([24, 5, 17, 9, 2])
    ragged = replace(windows("whisper"), lengths=lengths)
    assert ragged.tokens == 57
    runner = BlockRunner(one, ragged, "float32")
    assert len(runner.hidden) == WINDOWS
    for _ in one.blocks:
        runner.advance(nothing)
    with torch.inference_mode():
        for number, length in enumerate(lengths.tolist()):
            alone = one.model(ragged.features[number : number + 1], decoder_input_ids=ragged.ids[number, None, :length])
            assert torch.equal(runner.output(number), alone.logits)


@pytest.mark.parametrize("length", [2, 7, 24])
def test_t5_encodes_the_first_half_of_a_window_and_decodes_the_second(length: int) -> None:
    one, ids = network("t5"), torch.arange(5, 5 + 2 * length).view(2, length)
    first, others = model_inputs(one, Windows(ids, "counted"))
    start = torch.full((2, 1), one.model.config.decoder_start_token_id)
    assert torch.equal(torch.cat([first, others["decoder_input_ids"][:, 1:]], 1), ids)
    assert torch.equal(others["decoder_input_ids"][:, :1], start)
    assert first.shape[1] == length // 2


def test_a_model_that_hears_refuses_windows_of_text() -> None:
    with pytest.raises(CalibrationError, match="WhisperForConditionalGeneration hears sounds, but random holds none"):
        BlockRunner(network("whisper"), windows("llama"), "float32")


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "xlnet", "t5", "whisper"])
def test_a_bfloat16_model_keeps_its_dtype_and_sums_in_float32(family: str) -> None:
    one = network(family, torch.bfloat16)
    runner = BlockRunner(one, windows(family), "float32")
    found = runner.gather(readers(one.block_layers(0)), nothing)
    runner.advance(nothing)
    exact = gathered(network(family))
    for hidden in runner.hidden:
        assert hidden.dtype == torch.bfloat16
    for name, statistics in found.items():
        assert statistics.gram.dtype == torch.float32
        # bfloat16 has 8 bits: a relative error of 0.4 % per rounding, of which there are a few.
        torch.testing.assert_close(statistics.norms, exact[name].norms, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("compute", COMPUTE)
def test_any_precision_of_the_products_keeps_hidden_states_in_the_models_dtype(compute: str) -> None:
    one, exact = network("llama"), gathered(network("llama"))
    before = torch.backends.mkldnn.matmul.fp32_precision
    runner = BlockRunner(one, windows(), compute)
    found = runner.gather(readers(one.block_layers(0)), nothing)
    runner.advance(nothing)
    assert {hidden.dtype for hidden in runner.hidden} == {torch.float32}
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    tolerance = {"float32": 0, "auto": 0.005, "bfloat16": 0.05}[compute]
    for name, statistics in found.items():
        torch.testing.assert_close(statistics.norms, exact[name].norms, rtol=tolerance, atol=tolerance)


def test_an_unknown_precision_is_refused_with_the_known_ones() -> None:
    with (
        pytest.raises(UsageError, match=r"unknown --compute 'float8'\. Known: auto, float32, bfloat16"),
        products("float8", torch.float32, torch.device("cpu")),
    ):
        pass


def block_loss(one: Network, block: int) -> Tensor:
    """The loss of gradient scores, all windows at once, from a plain forward pass."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, args: Any, out: Any) -> None:
        seen.append((args[0], out if isinstance(out, Tensor) else out[0]))

    handle = one.blocks[block].register_forward_hook(note)
    run(one, windows(one.family.name))
    handle.remove()
    ((x, y),) = seen
    return 0.5 * (y - x.detach()).square().sum(-1).mean()


@every_family
def test_gradients_are_those_of_what_the_block_adds(family: str, batches: int) -> None:
    one = network(family)
    runner = BlockRunner(one, windows(family), "float32")
    runner.advance(nothing)
    layers = one.block_layers(1)
    found = runner.gradients(layers, GRADIENTS, nothing)
    assert not any(parameter.requires_grad for parameter in one.model.parameters())
    for layer in layers:
        assert found[layer.name].count == batches
        assert found[layer.name].total.shape == layer.shape
        assert bool((found[layer.name].sizes >= found[layer.name].total.abs() - 1e-6).all())
    if batches > 1:
        return
    for layer in layers:
        layer.parameter.requires_grad_(True)
    gradients = torch.autograd.grad(block_loss(one, 1), [layer.parameter for layer in layers])
    for layer, gradient in zip(layers, gradients, strict=True):
        expected = layer.as_matrix(gradient)
        assert float(expected.abs().max()) > 0
        torch.testing.assert_close(found[layer.name].total, expected, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(found[layer.name].sizes, expected.abs(), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(found[layer.name].squares, expected.square(), rtol=1e-2, atol=1e-8)


def test_gradients_of_the_loss_are_those_of_transformers_own() -> None:
    one = network("llama")
    layers = one.layers()
    found = loss_gradients(one, layers, windows(), Needs.GRADIENT, "auto", Progress())
    for layer in layers:
        layer.parameter.requires_grad_(True)
    ids = windows().ids
    gradients = torch.autograd.grad(one.model(ids, labels=ids).loss, [layer.parameter for layer in layers])
    for layer, gradient in zip(layers, gradients, strict=True):
        mean = found[layer.name].total / found[layer.name].count
        torch.testing.assert_close(mean, layer.as_matrix(gradient), rtol=1e-3, atol=1e-6)
        assert found[layer.name].squares is None


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_gradients_of_the_decoders_loss_are_those_of_transformers_own(family: str) -> None:
    one, whole = network(family), windows(family)
    layers = one.layers()
    found = loss_gradients(one, layers, whole, Needs.GRADIENT, "auto", Progress())
    for layer in layers:
        layer.parameter.requires_grad_(True)
    first, others = model_inputs(one, whole)
    ids = others["decoder_input_ids"]
    loss = one.model(first, decoder_input_ids=ids[:, :-1], labels=ids[:, 1:].contiguous()).loss
    gradients = torch.autograd.grad(loss, [layer.parameter for layer in layers])
    for layer, gradient in zip(layers, gradients, strict=True):
        mean = found[layer.name].total / found[layer.name].count
        torch.testing.assert_close(mean, layer.as_matrix(gradient), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_sensitivity_is_the_squared_gradient_of_the_loss_by_what_is_added_to_the_outputs(family: str) -> None:
    one, whole = network(family), windows(family)
    layer = one.block_layers(0)[-1]
    found = output_sensitivity(one, one.block_layers(0), whole, "float32", Progress())
    added: list[torch.Tensor] = []

    def add(_: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        added.append(torch.zeros_like(output, requires_grad=True))
        return output + added[-1]

    layer.module.register_forward_hook(add)
    first, others = model_inputs(one, whole)
    ids = others.get("decoder_input_ids", first)
    logits = one.model(first, **others).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, added)
    expected = gradient.flatten(0, -2).square().sum(0) / whole.tokens
    assert float(expected.max()) > 0
    torch.testing.assert_close(found[layer.name], expected, rtol=1e-3, atol=1e-9)


def test_gradients_of_the_loss_need_a_head() -> None:
    one = network("bert")
    with pytest.raises(UsageError, match="--gradient loss needs a next-token loss"):
        loss_gradients(one, one.layers(), windows(), Needs.GRADIENT, "auto", Progress())
