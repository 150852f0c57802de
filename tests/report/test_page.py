"""Claims about the HTML page, checked on its parsed tags and on the data of its plots."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from report_records import NOT_FASTER, comparison, layers, metrics, result, stage
from secateur.report.page import NO_ERRORS, comparison_page, write_page
from secateur.report.stage_plots import block_numbers, kind_labels
from secateur.result import BlockReport, Comparison, LayerReport, Result, StageReport

ALERT = "<script>alert(1)</script>"


class Page(HTMLParser):
    """A page as a browser reads it: tags with their attributes, the scripts, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    @property
    def drawings(self) -> dict[str, dict[str, Any]]:
        """The plots by id. Each is checked to be one that plotly knows how to draw."""
        found = re.search(r"^const drawings = (.*);$", self.scripts[-1], flags=re.MULTILINE)
        assert found
        plots = {plot["id"]: plot for plot in json.loads(found[1])}
        for plot in plots.values():
            go.Figure(data=plot["data"], layout=plot["layout"])
        return plots

    def ids(self) -> set[str]:
        return {attributes["id"] or "" for _, attributes in self.tags if "id" in attributes}


def page_of(run: Result | Comparison, folder: Path) -> Page:
    path = folder / "report.html"
    if isinstance(run, Result):
        write_page(run, path)
    else:
        comparison_page(run, path)
    return Page(path.read_text(encoding="utf-8"))


RUNS = {
    "one stage": result(),
    "three stages": result(stages=(stage(3), stage(3, errors=False), StageReport({"distill": {}}, (), {}))),
    "no comparison": result(comparison=None, calibration=None, reload=None, output=None),
    "no stage": result(stages=(), seconds={}, peak_memory=0, peak_memory_pruning=0, versions={}),
    "comparison": comparison("out/a", "out/b", "out/c"),
    "dense alone": Comparison(metrics("dense", False), ()),
}


@pytest.fixture(params=RUNS)
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Page:
    """The page of each kind of run in turn."""
    return page_of(RUNS[request.param], tmp_path)


def test_nothing_is_loaded_from_the_network(page: Page) -> None:
    loading = ("src", "href", "srcset", "action", "data", "poster")
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in loading]
    assert all(value is not None and value.startswith("data:") for value in links)
    assert not re.search(r"@import|url\(", page.source.replace(get_plotlyjs(), ""))
    policies = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert (policies[0] or "").startswith("default-src 'none'")
    assert "http" not in (policies[0] or "")


def test_plotly_is_inlined_exactly_once(page: Page) -> None:
    assert page.source.count(get_plotlyjs()) == 1
    assert len(page.scripts) == 2


def test_every_plot_has_its_element_and_every_element_its_plot(page: Page) -> None:
    elements = {a["id"] for tag, a in page.tags if a.get("class") == "plot"}
    assert elements == set(page.drawings)


def test_nothing_reads_none(page: Page) -> None:
    assert "None" not in page.text
    assert "null" not in json.dumps(page.drawings)


def test_texts_are_escaped(tmp_path: Path) -> None:
    evil = tuple(LayerReport(f"{ALERT}.{n}.x", 4, 4, 0, 8, 0, 0, 0.1, 0.05) for n in range(3))
    others = (metrics(ALERT, True, sample=ALERT, sparsity_by_layer={f"{ALERT}.0.x": 0.5}),)
    measured = Comparison(metrics(ALERT, False, sample=ALERT, prompt=None, text=ALERT), others, (ALERT,))
    run = result(
        about={"source": ALERT},
        comparison=measured,
        stages=(StageReport({ALERT: {"a": ALERT}}, evil, {ALERT: 1.0}, (ALERT,)),),
        recipe={"model": ALERT},
        calibration={"data": ALERT},
        versions={ALERT: ALERT},
        seconds={ALERT: 1.0},
        output=ALERT,
        notes=(ALERT,),
    )
    for shown in (run, measured):
        page = page_of(shown, tmp_path)
        assert ALERT not in page.source
        assert page.source.count(html.escape(ALERT)) >= 5
        assert len(page.scripts) == 2
        assert "<script" not in json.dumps(page.drawings)


def test_every_layer_of_every_stage_is_in_the_plots_and_in_a_table(tmp_path: Path) -> None:
    stages = (stage(30), stage(4))
    page = page_of(result(stages=stages), tmp_path)
    for number, one in enumerate(stages, start=1):
        names = sorted(layer.name for layer in one.layers)
        dots = [
            (x[0], y)
            for trace in page.drawings[f"sparsity-{number}"]["data"]
            for x, y in zip(trace["customdata"], trace["y"], strict=True)
        ]
        assert sorted(name for name, _ in dots) == names
        assert dict(dots) == {layer.name: layer.sparsity for layer in one.layers}
        errors = page.drawings[f"errors-{number}"]["data"]
        assert sorted(x[0] for trace in errors for x in trace["customdata"]) == sorted(2 * names)
    assert page.source.count("<td>model.layers.0.mlp.up_proj</td>") == 2


def test_layers_of_one_block_stand_at_that_block_side_by_side(tmp_path: Path) -> None:
    traces = page_of(result(), tmp_path).drawings["sparsity-1"]["data"]
    assert [trace["name"] for trace in traces][:3] == ["q_proj", "k_proj", "v_proj"]
    places = [x for trace in traces for x in trace["x"]]
    assert len(set(places)) == len(places) == 210
    for trace in traces:
        blocks = [int(name.split(".")[2]) for name, _ in trace["customdata"]]
        assert [round(x) for x in trace["x"]] == blocks


def test_where_no_error_was_measured_the_page_says_why(tmp_path: Path) -> None:
    page = page_of(result(stages=(stage(2, errors=False),)), tmp_path)
    assert "errors-1" not in page.drawings
    assert NO_ERRORS in page.text
    assert NO_ERRORS not in page_of(result(), tmp_path).text


def test_an_error_of_zero_is_told_as_a_log_scale_cannot_show_it(tmp_path: Path) -> None:
    exact = (LayerReport("h.0.a", 4, 4, 0, 8, 0, 0, 0.1, 0.0), *layers(1))
    page = page_of(result(stages=(StageReport(stage().stage, exact, {}),)), tmp_path)
    assert "1 of the values are 0, which a log scale can't show" in page.text


def test_speed_bars_are_drawn_only_where_speed_was_measured(tmp_path: Path) -> None:
    assert [x["data"][0]["y"] for x in bars(page_of(result(), tmp_path))] == [[1021.5, 1043.0], [27.1, 27.4]]
    unmeasured = {"prefill": None, "decode": None}
    quiet = Comparison(metrics("d", False, **unmeasured), (metrics("p", True, **unmeasured),))
    page = page_of(result(comparison=quiet), tmp_path)
    assert not bars(page)
    assert "tokens/s" not in page.text


def bars(page: Page) -> list[dict[str, Any]]:
    return [plot for name, plot in page.drawings.items() if name.startswith("bars")]


def test_the_page_says_what_was_done_and_what_is_not_faster(tmp_path: Path) -> None:
    page = page_of(result(notes=("the run says so",)), tmp_path)
    assert "demo:smollm2-135m, pruned" in page.text
    assert "Zeroed 50 % of the weights" in page.text
    for words in (NOT_FASTER, "the run says so", "solver: sparsegpt", "2.35 GB", "torch 2.9.1"):
        assert words in page.text
    assert "a dense file save nothing" in page_of(result(comparison=None), tmp_path).text


def test_a_comparison_draws_the_layers_of_each_pruned_checkpoint(tmp_path: Path) -> None:
    page = page_of(comparison("out/a", "out/b"), tmp_path)
    assert [trace["name"] for trace in page.drawings["layers"]["data"]] == ["out/a", "out/b"]
    assert all(len(trace["y"]) == 210 for trace in page.drawings["layers"]["data"])
    assert "layers" not in page_of(RUNS["dense alone"], tmp_path).drawings


def test_two_checkpoints_of_one_name_keep_a_bar_each(tmp_path: Path) -> None:
    page = page_of(comparison("same", "same"), tmp_path)
    assert all(plot["data"][0]["x"] == [0, 1, 2] for plot in bars(page))


def test_kinds_are_told_apart_where_their_last_word_is_the_same() -> None:
    names = ["bert.layer.0.attention.output.dense", "bert.layer.1.output.dense", "bert.layer.0.a.query"]
    assert list(kind_labels(names).values()) == ["attention.output.dense", "output.dense", "query"]
    assert kind_labels(["pooler"]) == {"pooler": "pooler"}


def test_reconstruction_is_drawn_block_by_block(tmp_path: Path) -> None:
    blocks = tuple(BlockReport(f"model.layers.{number}", 0.2, 0.1 + number / 100, 4) for number in range(3))
    before, after = page_of(result(stages=(replace(stage(), blocks=blocks),)), tmp_path).drawings["blocks-1"]["data"]
    assert before["y"] == [0.2, 0.2, 0.2]
    assert after["y"] == pytest.approx([0.1, 0.11, 0.12])
    assert "blocks-1" not in page_of(result(), tmp_path).drawings


def test_a_decoders_layers_stand_behind_its_encoders_and_are_told_from_them() -> None:
    kinds = ("encoder.layers.{}.self_attn.q", "decoder.layers.{}.self_attn.q", "decoder.layers.{}.encoder_attn.q")
    names = [f"model.{kind.format(block)}" for kind in kinds for block in (0, 2)] + ["proj_out"]
    assert list(block_numbers(names).values()) == [0, 2, 3, 5, 3, 5]
    labels = ["encoder self_attn.q", "decoder self_attn.q", "encoder_attn.q"]
    assert list(dict.fromkeys(kind_labels(names).values())) == [*labels, "proj_out"]
    assert block_numbers(["encoder.block.1", "decoder.block.0", "h.3", "0.weight"]) == {
        "encoder.block.1": 1,
        "decoder.block.0": 2,
        "h.3": 6,
        "0.weight": 7,
    }
