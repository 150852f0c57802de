"""Claims about the tables of text."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from rich.console import RenderableType

from report_records import NOT_FASTER, comparison, layers, metrics, result, stage
from secateur.report import numbers, terminal, words
from secateur.report.structure import units_table
from secateur.result import Comparison, Result, StageReport

LONG = "/srv/" + "a-very-long-folder-name/" * 30 + "checkpoint"
WIDE = "模型" * 90


def renderables(name: str) -> list[RenderableType]:
    """Returns one of each table, with `name` wherever a name can stand."""
    noted = stage(2, notes=(f"left out: {name}",))
    named = StageReport({name: {"path": name}}, noted.layers, noted.seconds)
    model = {"source": name, "architecture": name}
    measured = comparison(f"{name}/1", notes=(name,))
    measured = Comparison(metrics(name, False, text=name), measured.others, measured.notes)
    many = comparison(*(f"{name}/{number}" for number in range(9)))
    return [
        terminal.result_table(result(about=model, comparison=measured)),
        terminal.result_table(result(about=model, comparison=None, stages=(noted, named))),
        terminal.comparison_table(comparison(*(f"{name}/{number}" for number in range(3)))),
        terminal.comparison_table(many),
        terminal.layers_table(stage(30)),
        terminal.layers_table(StageReport(noted.stage, _renamed(name), noted.seconds)),
    ]


def _renamed(name: str) -> tuple[terminal.LayerReport, ...]:
    return tuple(terminal.LayerReport(f"{name}.{x.name}", x.rows, x.columns, 0, x.zeros, 0, 0) for x in layers(2))


@pytest.mark.parametrize("name", ["short", LONG, WIDE, "with [bold]markup[/] :smile: \x1b[31m\n"])
def test_no_line_is_wider_than_100_columns_and_none_has_an_escape_code(name: str) -> None:
    for renderable in renderables(name):
        text = terminal.to_text(renderable)
        assert max(cell_len(line) for line in text.splitlines()) <= 100
        assert "\x1b" not in text


def test_markup_in_a_name_is_shown_as_it_is() -> None:
    text = result(about={"source": "out[bold]/x[/bold] :smile:"}).table()
    assert "out[bold]/x[/bold] :smile:" in text


def test_the_table_has_the_figures_as_people_write_them() -> None:
    lines = {line[:26].strip(): line[26:].split() for line in result().table().splitlines()}
    assert lines["perplexity"] == ["23.23", "31.87", "1.37x"]
    assert lines["bytes on disk"] == ["538.1", "MB", "538.1", "MB", "1.00x"]
    assert lines["parameters"] == ["134.5", "M", "134.5", "M", "1.00x"]
    assert lines["top-1 agreement"] == ["71.2", "%"]
    assert lines["prefill tokens/s"] == ["1,022", "1,043", "1.02x"]


def test_a_figure_that_nobody_measured_has_no_row() -> None:
    text = result().table()
    assert "cosine" not in text
    bare = dict.fromkeys(("perplexity", "bits_per_byte", "kl", "top1_agreement", "prefill", "decode", "text"))
    encoder = Comparison(metrics("d", False, **bare), (metrics("p", True, **bare, cosine=0.97),))
    text = terminal.to_text(terminal.result_table(result(comparison=encoder)))
    assert "0.9700" in text
    assert not any(label in text for label in ("perplexity", "KL", "top-1", "tokens/s", "None", "Quality"))


def test_notes_are_printed_once_each() -> None:
    noted = result(stages=(stage(notes=("a note", NOT_FASTER)),), notes=("a note",))
    text = " ".join(noted.table().split())
    assert text.count("a note") == 1
    assert text.count(NOT_FASTER) == 1


def test_without_a_comparison_the_table_is_of_the_stages() -> None:
    first, second = stage(), stage(errors=False)
    text = result(comparison=None, stages=(first, second)).table()
    errors = [layer.error for layer in first.layers if layer.error is not None]
    row = next(line for line in text.splitlines() if line.startswith("1 prune"))
    assert row.split()[2:] == ["210", f"{first.zeros:,}", "49.9", "%", "0.0523", numbers.small(max(errors))]
    assert "not measured" in next(line for line in text.splitlines() if line.startswith("2 prune"))


@pytest.mark.parametrize("others", [0, 1, 2, 3, 4, 12])
def test_a_comparison_tells_every_checkpoint_apart(others: int) -> None:
    names = [f"{LONG}/{number}" for number in range(others)]
    measured = Comparison(
        metrics("dense", False, perplexity=100.0),
        tuple(metrics(name, True, perplexity=200.0 + n) for n, name in enumerate(names)),
    )
    text = terminal.to_text(terminal.comparison_table(measured))
    assert "100.00" in text
    for number, name in enumerate(names):
        assert f"{200 + number}.00" in text
        assert f"{number + 1}  {numbers.shorten(name, 94)}" in text


def test_few_layers_are_listed_and_many_are_grouped_by_kind() -> None:
    few, many = stage(2), stage(30)
    text = terminal.to_text(terminal.layers_table(few))
    assert all(layer.name in text for layer in few.layers)
    text = terminal.to_text(terminal.layers_table(many))
    assert "model.layers.*.mlp.down_proj ×30" in text
    assert len(text.splitlines()) < 15


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sparsity": 0.5}, "Zeroed 50 % of the weights"),
        ({"sparsity": None, "pattern": "2:4"}, "in the 2:4 pattern"),
        ({"sparsity": None, "threshold": "0.001"}, "every weight whose score is below 0.001"),
        ({"sparsity": None, "threshold": "mean-1std"}, "every weight whose score is below mean-1std"),
        ({"allocation": "uniform"}, "the same share in every layer"),
        ({"allocation": "global"}, "wherever in the model they are least"),
        ({"per": "output"}, "compared within each output"),
        ({"unit": "layer", "sparsity": None, "remove": 3}, "Removed 3 layers"),
        ({"allocation": "owl"}, "shared out by owl"),
        ({"score": "wanda", "solver": "none"}, "scored by wanda"),
        ({"solver": "none"}, "What stayed is as it was."),
        ({"solver": "none", "reconstruct": True}, ". Each block was tuned to give"),
        ({"score": "taylor", "solver": "none"}, "scored by taylor of each block by itself"),
        ({"score": "fisher", "solver": "none", "gradient": "loss"}, "scored by fisher of the next-token loss"),
        ({"allocation": "error", "gradient": "loss"}, "shared out by error weighed by the next-token loss"),
    ],
)
def test_a_stage_is_told_in_words(settings: dict[str, object], says: str) -> None:
    told = words.describe_stage(stage(**settings).stage)
    assert says in told
    assert "None" not in told


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ({"distill": {"teacher": "dense", "minutes": 20}}, "Distilled from the dense model for at most 20 minutes"),
        (
            {"distill": {"teacher": "big", "logits": 1.0, "hidden": 0.5}},
            "big, by distributions (1), hidden states (0.5)",
        ),
        (
            {"finetune": {"steps": 1000, "minutes": None}},
            "Fine-tuned for at most 1,000 steps; zeros stayed zero",
        ),
        ({"lora": {"rank": 4}}, "LoRA, rank 4"),
        ({"reconstruct": {}}, "Tuned each block"),
    ],
)
def test_a_recovery_stage_is_told_in_words(stage: dict[str, dict[str, object]], says: str) -> None:
    assert says in words.describe_stage(stage)


def test_stage_lines_name_the_worst_layer() -> None:
    lines = words.stage_lines(stage(notes=("seen",)))
    assert any("at worst, in model.layers.29.mlp.down_proj" in line for line in lines)
    assert lines[-1] == "seen"
    assert not any("error" in line for line in words.stage_lines(stage(errors=False)))


def test_a_stage_without_layers_has_a_table_and_lines() -> None:
    empty = StageReport({"distill": {"minutes": 20}}, (), {})
    assert len(words.stage_lines(empty)) == 1
    run: Result = result(comparison=None, stages=(empty,))
    assert "1 distill" in run.table()


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (numbers.size, 538_090_408, "538.1 MB"),
        (numbers.size, 999_960_000, "1.00 GB"),
        (numbers.size, 12, "12 bytes"),
        (numbers.count, 134_515_008, "134.5 M"),
        (numbers.count, 7_615_616_512, "7.62 B"),
        (numbers.count, 999, "999"),
        (numbers.percent, 0.47, "47.0 %"),
        (numbers.percent, 0.0, "0.0 %"),
        (numbers.percent, 1e-6, "<0.1 %"),
        (numbers.percent, 0.99999, ">99.9 %"),
        (numbers.decimal, 23.2345, "23.23"),
        (numbers.decimal, 123_456.0, "123,456"),
        (numbers.decimal, float("inf"), "inf"),
        (numbers.small, 0.0, "0"),
        (numbers.small, 3.14e-6, "3.1e-06"),
        (numbers.duration, 59.99, "1 min 00 s"),
        (numbers.duration, 7_800.0, "2 h 10 min"),
    ],
)
def test_numbers_are_written_for_people(write: object, value: float, text: str) -> None:
    assert callable(write)
    assert write(value) == text


def test_a_long_name_keeps_its_two_ends() -> None:
    short = numbers.shorten("out/" + "x" * 200 + "/final", 20)
    assert cell_len(short) <= 20
    assert short.startswith("out/")
    assert short.endswith("/final")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"unit": "head", "remove": 1}, "Removed 1 head of every layer for good"),
        ({"unit": "head", "remove": 2, "protect_last": 1}, "Removed 2 heads of every layer that isn't protected for"),
        ({"unit": "mlp", "remove": 1}, "Removed 1 MLP half for good"),
        ({"unit": "mlp", "remove": 3}, "Removed 3 MLP halves of layers for good"),
    ],
)
def test_what_was_removed_is_said_in_words(given: dict[str, object], says: str) -> None:
    assert says in words.describe_stage({"prune": given})


def test_groups_of_other_widths_share_a_row_of_units() -> None:
    rows = [
        {"group": f"layers.{block}/mlp", "unit": "neuron", "count": count, "parameters_each": 12}
        for block, count in enumerate((7, 9, 1200))
    ]
    said = terminal.to_text(units_table(rows)).split()
    assert said[said.index("neuron") + 1 :][:5] == ["3", "7", "to", "1,200", "12"]
