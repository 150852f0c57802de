"""What holds of every cut, over every family and every kind of unit that it has."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from cuts import (
    CAUSAL,
    CELLS,
    GROUPED,
    IDS,
    RAGGED,
    Proof,
    has,
    logits,
    loss,
    output,
    prove,
    some,
    tiny_network,
    windows,
)
from secateur.errors import UsageError
from secateur.evaluation.reloading import reload_difference
from secateur.network.families import FAMILIES
from secateur.network.loading import load
from secateur.network.modeling import FILE
from secateur.network.network import Network
from secateur.network.saving import save_network
from secateur.network.surgery import Cut, cut
from secateur.network.units import UNITS, unit_groups
from secateur.progress import Progress
from tiny import TINY, same

# half after half and half after width are where a reshaped model is cut again
SEQUENCES = [
    ("neuron", "head"),
    ("attention", "neuron"),
    ("layer", "neuron"),
    ("mlp", "channel"),
    ("head", "attention"),
    ("expert", "neuron"),
    ("attention", "expert"),
]
FRESH = [
    ("llama", "neuron"),
    ("gpt2", "head"),
    ("bert", "attention"),
    ("mixtral", "expert"),
    ("t5", "mlp"),
    ("whisper", "attention"),
]
ROUNDING = 1e-5  # sums over fewer terms round otherwise; logits are about 5

every_cell = pytest.mark.parametrize(("name", "unit"), CELLS)
every_family = pytest.mark.parametrize("name", FAMILIES)


@functools.cache
def proof(name: str, unit: str, ragged: bool = False) -> Proof:
    """The cut model; tests leave it as it is."""
    return prove(tiny_network(name), unit, some(ragged=ragged))


def assert_exact(found: Proof) -> None:
    torch.testing.assert_close(logits(found.network, found.ids), found.expected, atol=ROUNDING, rtol=ROUNDING)


def saved(network: Network, folder: Path) -> dict[str, Any]:
    """Saves into a new folder; returns what config.json says."""
    folder.mkdir()
    save_network(network, folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what transformers copies of a checkpoint's code out of the user's cache."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def stock(folder: Path, config: dict[str, Any]) -> Any:
    """Loads a checkpoint with transformers alone, by the code that lies beside it if there is any."""
    (architecture,) = config["architectures"]
    if "auto_map" not in config:
        return getattr(transformers, architecture).from_pretrained(folder)
    auto = next(name for name, target in config["auto_map"].items() if target.endswith(f".{architecture}"))
    return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)


@every_cell
def test_cutting_what_nobody_reads_or_what_adds_nothing_leaves_the_logits_unchanged(name: str, unit: str) -> None:
    found = proof(name, unit)
    assert_exact(found)
    assert found.network.parameters() < tiny_network(name).parameters()
    assert all(one.left < one.group.count for one in found.cuts)


@pytest.mark.parametrize(("name", "unit"), RAGGED)
def test_widths_that_differ_from_block_to_block_are_exact_too(name: str, unit: str) -> None:
    found = proof(name, unit, ragged=True)
    assert len({one.left for one in found.cuts}) == min(len(found.cuts), found.cuts[0].group.count)
    assert found.network.architecture == f"Secateur{tiny_network(name).architecture}"
    assert_exact(found)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [(name, *units) for name in FAMILIES for units in SEQUENCES if all(has(name, unit) for unit in units)],
)
def test_a_second_cut_of_another_kind_is_as_exact_as_the_first(name: str, first: str, second: str) -> None:
    before = prove(tiny_network(name), first, some(ragged=True))
    after = prove(before.network, second, some(seed=2))
    assert_exact(after)
    assert after.network.parameters() < before.network.parameters()


def next_tokens(found: Proof, cache: bool) -> Tensor:
    """Returns the logits of greedy steps: (steps, vocabulary)."""
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "use_cache": cache}
    output = found.network.model.generate(
        found.ids, **options, pad_token_id=0, return_dict_in_generate=True, output_logits=True
    )
    assert len(output.logits) == 3
    return torch.cat(output.logits)


@pytest.mark.parametrize(("name", "unit"), [(name, unit) for name, unit in CELLS if name in CAUSAL])
def test_a_cut_model_generates_with_a_cache_what_it_generates_without(name: str, unit: str) -> None:
    found = proof(name, unit)
    torch.testing.assert_close(next_tokens(found, True), next_tokens(found, False), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
def test_ragged_widths_and_blocks_without_attention_generate_with_a_cache(name: str) -> None:
    ragged = prove(proof_again(name, "neuron"), "head", some(ragged=True))
    (halves,) = unit_groups(ragged.network, "attention")
    for first in (True, False):  # the cache counts positions by its first layer
        keep = torch.tensor([not first, first])
        found = Proof(cut(copy_of(ragged.network), [Cut(halves, keep)]), (), IDS, ragged.expected)
        torch.testing.assert_close(next_tokens(found, True), next_tokens(found, False), atol=1e-4, rtol=1e-4)


def proof_again(name: str, unit: str) -> Network:
    """Returns a ragged model that may be cut again."""
    return copy_of(proof(name, unit, ragged=True).network)


def copy_of(network: Network) -> Network:
    return network.with_model(copy.deepcopy(network.model))


def step(network: Network, ids: Tensor) -> tuple[set[str], float, float]:
    """Takes one step of training; returns which parameters got no gradient, and the losses before and after."""
    model = network.model.requires_grad_(True)
    before = loss(network, ids)
    before.backward()
    gradients = {parameter_name: parameter.grad for parameter_name, parameter in model.named_parameters()}
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values() if gradient is not None)
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    without = {parameter_name for parameter_name, gradient in gradients.items() if gradient is None}
    return without, before.item(), loss(network, ids).item()


@functools.cache
def untrained(name: str) -> set[str]:
    """Parameters that training leaves alone in the dense model, for instance XLNet's of segments."""
    return step(tiny_network(name), IDS)[0]


@every_cell
def test_a_training_step_reaches_every_parameter_of_a_cut_model_and_lowers_its_loss(name: str, unit: str) -> None:
    found = proof(name, unit)
    without, before, after = step(copy_of(found.network), found.ids)
    assert without <= untrained(name)
    assert after < before < float("inf")


@every_cell
def test_a_saved_cut_model_gives_the_same_logits_by_transformers_and_by_secateur(
    name: str, unit: str, tmp_path: Path
) -> None:
    check_saved(proof(name, unit), tmp_path / "out")


@pytest.mark.parametrize(("name", "unit"), RAGGED)
def test_a_saved_ragged_model_gives_the_same_logits_by_transformers_and_by_secateur(
    name: str, unit: str, tmp_path: Path
) -> None:
    check_saved(proof(name, unit, ragged=True), tmp_path / "out")


def check_saved(found: Proof, folder: Path) -> None:
    """Loads by transformers and by secateur; a plain model's folder has nothing of ours in it."""
    config = saved(found.network, folder)
    expected = logits(found.network, found.ids)
    assert config["architectures"] == [found.network.architecture]
    reshaped = found.network.architecture.startswith("Secateur")
    assert [key in config for key in ("secateur", "auto_map")] == [reshaped, reshaped]
    assert (folder / FILE).is_file() == reshaped
    with torch.no_grad():
        assert same(output(found.network, found.ids, stock(folder, config).eval()), expected)
    own = load(folder)
    assert own.architecture == found.network.architecture
    assert own.family is found.network.family
    assert same(logits(own, found.ids), expected)


@pytest.mark.parametrize(("name", "unit"), FRESH)
def test_a_fresh_process_without_secateur_loads_a_plain_and_a_reshaped_checkpoint(
    name: str, unit: str, tmp_path: Path
) -> None:
    found = proof(name, unit)
    saved(found.network, tmp_path / "out")
    assert reload_difference(found.network, tmp_path / "out", windows(found.network, found.ids), Progress()) < ROUNDING


def last_hidden_states(network: Network) -> Tensor:
    """Returns what the model without its head gives; T5 has no such part, so its decoder is listened to."""
    if network.base is not network.model:
        return output(network, IDS, network.base)
    heard: list[Tensor] = []
    hook = network.model.decoder.register_forward_hook(lambda _, __, given: heard.append(given[0]))
    output(network)
    hook.remove()
    return heard[0]


@every_family
def test_a_reshaped_model_loads_without_its_head(name: str, tmp_path: Path) -> None:
    found = proof(name, "attention" if has(name, "attention") else "mlp")
    saved(found.network, tmp_path / "out")
    base = transformers.AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    with torch.no_grad():
        expected = last_hidden_states(found.network)
        assert same(output(found.network, IDS, base), expected)
    base.save_pretrained(tmp_path / "base")
    assert same(logits(load(tmp_path / "base")), expected)


@every_cell
def test_a_group_never_loses_all_of_its_units_unless_it_is_of_halves(name: str, unit: str) -> None:
    network = tiny_network(name)
    cuts = [Cut(group, torch.zeros(group.count, dtype=torch.bool)) for group in unit_groups(network, unit)]
    if unit in ("attention", "mlp"):
        assert cut(network, cuts).parameters() < tiny_network(name).parameters()
        return
    with pytest.raises(UsageError, match=f"{cuts[0].group.name} would lose all {cuts[0].group.count} units"):
        cut(network, cuts)


def test_an_unknown_unit_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown unit 'neurons'\. Did you mean 'neuron'\?"):
        unit_groups(tiny_network("llama"), "neurons")


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(GROUPED)))
def test_query_heads_are_refused_where_each_head_has_a_key_of_its_own(name: str) -> None:
    with pytest.raises(UsageError, match="use --unit head"):
        unit_groups(tiny_network(name), "query-head")


def test_the_cells_are_all_families_and_all_units() -> None:
    assert {name for name, _ in CELLS} == set(TINY)
    assert {unit for _, unit in CELLS} == set(UNITS)
