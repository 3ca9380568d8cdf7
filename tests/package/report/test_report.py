"""The report of a task: one page that opens anywhere."""

import base64
import json
import re
from dataclasses import replace

import pytest
from conftest import TINY_PLAN, write_project
from faulty import Made, write

from autoplan.base.errors import PlanError, TemplateError
from autoplan.bundle.saved import save_plan
from autoplan.data import decathlon as datasets
from autoplan.data.facts import Case, Dataset
from autoplan.report import page
from autoplan.report.blocks import Cell, Code, Fold, Note, Row, Section, Table, Text, cell, counted, number
from autoplan.report.build import build
from autoplan.report.sections import dataset as dataset_section
from autoplan.report.summaries import Summary

NASTY = "<img src=x onerror=alert(1)>&\"'"


def test_every_text_is_escaped() -> None:
    """Names of cases and classes come from strangers."""
    table = Table(NASTY, (NASTY,), [Row([Cell(NASTY, NASTY)], [Text(NASTY)])])
    html = page.render(NASTY, NASTY, [Section("a", NASTY, [table, Note(NASTY), Fold(NASTY, [Text(NASTY)])])])
    assert "<img" not in html
    assert html.count("&lt;img src=x") >= 9


@pytest.mark.parametrize("block", [Text, Note, Code])
def test_no_line_breaks_inside_a_flag(block) -> None:
    html = page.render("T", "t", [Section("a", "A", [block("python -m autoplan x-ray --group_by '^<p>'")])])
    flags = [f'<span class="flag">{flag}</span>' for flag in ("-m", "--group_by")]
    assert f"python {flags[0]} autoplan x-ray {flags[1]} &#39;^&lt;p&gt;&#39;<" in html


def test_json_holds_no_number_that_json_lacks() -> None:
    text = page.as_json("T", "s", [Section("a", "A", [], {"x": float("nan"), "y": [float("inf"), 1.5]})])
    assert json.loads(text)["a"] == {"x": None, "y": [None, 1.5]}


@pytest.mark.parametrize(
    ("value", "text", "order"), [(None, "-", float("-inf")), (-0.0001, "0.000", -0.0001), (1.23456, "1.235", 1.23456)]
)
def test_cell(value, text, order) -> None:
    assert (cell(value).text, cell(value).order) == (text, order)


@pytest.mark.parametrize(
    ("count", "noun", "text"), [(1, "case", "1 case"), (2000, "case", "2,000 cases"), (2, "class", "2 classes")]
)
def test_counted(count, noun, text) -> None:
    assert counted(count, noun) == text
    assert number(-0.0, 2) == "0.00"


def test_a_task_without_a_plan_is_one_line(tiny, tmp_path) -> None:
    with pytest.raises(PlanError, match="there is no plan"):
        build(datasets.load(tiny.folder), tmp_path)


def test_the_page_opens_anywhere_and_is_left_while_nothing_changes(tmp_path) -> None:
    project = write_project(tmp_path)
    dataset = datasets.load(project / "data" / TINY_PLAN.name)
    html = build(dataset, project / "bundles")
    first, when = html.read_text(), html.stat().st_mtime_ns
    assert not re.findall(r"https?://(?!doi\.org)", first)
    assert build(dataset, project / "bundles").stat().st_mtime_ns == when
    content = json.loads((html.parent / "report.json").read_text())
    assert [c["name"] for c in content["plan"]["configurations"]] == [c.name for c in TINY_PLAN.configurations]


@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_a_report_that_somebody_changed_is_not_lost(name, tmp_path) -> None:
    project = write_project(tmp_path)
    dataset = datasets.load(project / "data" / TINY_PLAN.name)
    path = build(dataset, project / "bundles").with_name(name)
    path.write_text("my words")
    (path.parent / "choice.json").write_text("{}")  # it has something new to tell
    with pytest.raises(TemplateError, match=f"{name} was changed by hand"):
        build(dataset, project / "bundles")
    assert path.read_text() == "my words"
    build(dataset, project / "bundles", force=True)
    assert (path.parent / "report.before" / name).read_text() == "my words"
    assert path.read_text() != "my words"


def _hostile(made: Made) -> None:
    made.rename({"case_07": "<img src=x onerror=alert(1)>&'", "case_08": "_$x^2$"})


def _nothing_to_test(made: Made) -> None:
    made.describe(test=[])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(_hostile, "&lt;img src=x onerror=alert(1)&gt;", id="names with HTML"),
        pytest.param(_nothing_to_test, "0 test images", id="no test images"),
        pytest.param(lambda m: m.describe(labels={"0": "b", "1": "ball", "2": "box", "3": "<b>cone"}),
                     "&lt;b&gt;cone occurs in no training label", id="a class in no case"),
        pytest.param(lambda m: m.path("case_07").write_bytes(b"x"), "unreadable", id="an image damaged since planning"),
    ],
)  # fmt: skip
def test_odd_datasets_have_a_page(tmp_path, change, said) -> None:
    made = write(tmp_path / "data" / "Task90_Tiny")
    change(made)
    dataset = datasets.load(made.folder)
    names = [case.name for case in dataset.training]
    folds = tuple(tuple(names[k::5]) for k in range(5))
    planned = replace(
        TINY_PLAN, labels=dataset.labels, modalities=("MRI",), normalization=(None,), num_training=len(names),
        single_component=(), folds=folds,
    )  # fmt: skip
    save_plan(planned, tmp_path / "bundles" / TINY_PLAN.name, fingerprint_key="key")
    html = build(dataset, tmp_path / "bundles", num_processes=1, progress=False).read_text()
    assert said in html
    assert "<img src=x" not in html


def test_two_thousand_cases(tmp_path) -> None:
    """A page of a bearable size, in seconds."""
    summary = Summary(
        "x", False, (), (9, 9, 9), (1.0, 1.0, 1.0), "RAS", 1.0, (50, 60), (1, 1), (0, 0), (0, 0),
        ((0.0, 1.0, 2.0, 3.0, 4.0),), (2.0,), content="", thumbnail=base64.b64encode(bytes(12**3)).decode(),
        picture="data:image/webp;base64," + "A" * 6000, picture_size=(300, 100),
    )  # fmt: skip
    many = [replace(summary, name=f"case_{i:04d}", content=str(i)) for i in range(2000)]
    cases = tuple(Case(s.name, (s.name,), s.name) for s in many)
    dataset = Dataset(tmp_path, "Task90_Tiny", ("MRI",), TINY_PLAN.labels, cases, ())
    html = page.render("T", "t", [dataset_section.section(dataset, many, TINY_PLAN, is_current=True)])
    assert html.count("case_1999") >= 1
    assert len(html) < 8_000_000
