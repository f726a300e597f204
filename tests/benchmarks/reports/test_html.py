"""The report's pages: everything is said, whatever a model wrote is text, and nothing comes from elsewhere."""

import base64
import errno
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tokengym.benchmarks.paper.published import paper_table
from tokengym.benchmarks.reports.content import (
    AttemptRecord,
    Cell,
    CheckedClaim,
    MissingCell,
    Report,
    ResultRow,
    ResultTable,
    StepRecord,
)
from tokengym.benchmarks.reports.html import html, write_report
from tokengym.benchmarks.reports.markdown import markdown
from tokengym.benchmarks.reports.published import PaperRow, PaperTable
from tokengym.benchmarks.reports.text import duration, visible


class Page(HTMLParser):
    """What a page has: its elements with their attributes, its text, and the contents of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self.lasttag = ""


def everywhere(report: Report, text: str) -> Report:
    """The report with a text in every place that takes one."""
    rows = (ResultRow(text, (MissingCell(text),) * 4), ResultRow(text, report.tables[0].rows[2].cells, "table_1/sft"))
    paper_row = PaperRow(text, {"7B": (0.5,)}, text, (text,))
    paper = PaperTable(text, text, text, ("7B",), text, ("maj@1",), {"sft": paper_row}, (text,), {text: text})
    table = ResultTable(text, text, rows, (text, "maj@1", "b", "c"), text, {"table_1": paper})
    figure = replace(report.figures[0], title=text, caption=text)
    run = replace(report.runs[0], name=text, settings={text: {text: text}}, versions={text: text})
    attempt = AttemptRecord(text, text, text, text, text, text, (StepRecord(text, 0.0),))
    return Report(
        text, text, text, {text: text}, text, text, 1.0,
        (table,), (figure,),
        (CheckedClaim(text, "holds", text, text),), (run,), (attempt,),
    )  # fmt: skip


def test_a_hostile_text_is_text_wherever_it_stands(make_report, hostile: str) -> None:
    page = Page(html(everywhere(make_report(0), hostile)))
    clean = Page(html(everywhere(make_report(0), "friendly")))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in clean.elements]
    assert [list(names) for _, names in page.elements] == [list(names) for _, names in clean.elements]
    # A setting's value is shown as JSON, where control characters are spelled otherwise.
    assert page.text.count(visible(hostile)) == clean.text.count("friendly") - 1 > 20
    (data,) = [json.loads(script) for script in page.scripts if script.startswith("{")]
    assert data["attempts"] == [[0, 0, 0, visible(hostile), [[visible(hostile), 0.0, None]]]]
    assert data["problems"] == [[visible(hostile)] * 3]


def test_only_the_pages_own_script_may_run_and_nothing_may_load(make_report) -> None:
    text = html(make_report(4))
    page = Page(text)
    (policy,) = [at["content"] for _, at in page.elements if at.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    (script,) = [script for script in page.scripts if "use strict" in script]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert "connect-src" not in rules
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert tag not in ("iframe", "object", "embed", "base")
        for name in ("src", "href", "data", "action"):
            assert re.match(r"#|data:|$", attributes.get(name) or ""), (tag, attributes)
    assert not re.search(r"url\((?!#)|@import", text)
    assert not re.search(r"\{\{\w+\}\}", html(replace(make_report(0), title="no braces")))


def test_ids_are_unique_and_links_lead_to_them(make_report) -> None:
    page = Page(html(make_report(4)))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {str(at["href"])[1:] for tag, at in page.elements if tag == "a" and "href" in at}
    assert len(used) == 6
    assert used <= set(ids)


def test_our_figures_have_intervals_and_reasons_and_the_papers_are_marked(make_report) -> None:
    report = make_report(0)
    cell = report.tables[0].rows[0].cells[0]
    for page in (" ".join(Page(html(report)).text.split()), markdown(report).replace("\\", "")):
        assert f"{cell.mean:.3f}" in page
        assert f"[{cell.low:.3f}, {cell.high:.3f}]" in page
        assert "made up: its ORM ran out of memory" in page
        assert "no seed 1: made up: no space was left" in page
        assert "one seed" in page
        assert "another scale" in page
        assert "0.48 / 0.53" in page  # EI, maj@1
        assert "maj@96" in page  # by the paper's name, not as our maj@8
        assert "stated, that is, copied from summaries of the paper" in page
        assert "12,345 attempts, 678,901 tokens, 16 min 27 s" in page
        assert "sampling.temperature" in page or '"temperature": 0.7' in page
    assert "does not hold" in markdown(report)


def test_a_reason_is_given_once_in_a_row(make_report) -> None:
    lacking = Cell({0: 0.5}, 0.5, missing={1: "it failed"})
    row = ResultRow("EI", (lacking, lacking, Cell({0: 0.5}, 0.5)))
    table = ResultTable("T", "", (row,), ("maj@1", "pass@8", "rerank@8"))
    report = replace(make_report(0), tables=(table,))
    for page in (" ".join(Page(html(report)).text.split()), markdown(report)):
        assert page.count("no seed 1: it failed") == 1
        assert page.count("no seed 1") == 3


def test_sizes_and_gaps_of_rows_that_are_not_like_the_others(make_report) -> None:
    cells = (MissingCell("not run"),) * 4
    rows = (ResultRow("GPT-3", cells, "table_1/gpt_3"), ResultRow("Llemma", cells, "table_1/llemma"))
    table = ResultTable("T", "", rows, published={"table_1": paper_table("table_1")})
    page = markdown(replace(make_report(0), tables=(table,)))
    assert "*0.20 (6B) / 0.31 (175B)*" in page
    assert "*0.71 (6B) / – (175B)*" in page
    assert "Llemma: Not like for like" in page


def test_a_report_of_nothing_says_so(make_report) -> None:
    empty = replace(make_report(0), tables=(), figures=(), findings=(), runs=())
    text = Page(html(empty)).text
    for what in ("tables", "figures", "findings", "runs"):
        assert f"This report has no {what}." in text
    assert "## Results" not in markdown(empty)


def rendered(text: str) -> Page:
    return Page(MarkdownIt("commonmark").enable("table").render(text))


def test_markdown_shows_hostile_text_as_text(make_report, hostile: str) -> None:
    page = rendered(markdown(everywhere(make_report(0), hostile)))
    clean = rendered(markdown(everywhere(make_report(0), "friendly")))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in clean.elements]
    assert page.text.count(visible(hostile)) >= 10


@given(st.text())
def test_any_title_comes_out_of_markdown_as_it_went_in(text: str) -> None:
    report = Report(text, "true", "", {}, "", "", 0.0)
    title = rendered(markdown(report).splitlines()[0])
    assert [tag for tag, _ in title.elements] == ["h1"]
    assert title.text.strip() == " ".join(visible(text).split())


@given(st.text())
def test_a_command_can_not_leave_its_block(command: str) -> None:
    page = rendered(markdown(Report("", command, "", {}, "", "", 0.0)).split("\n- Device")[0])
    assert [tag for tag, _ in page.elements] == ["h1", "pre", "code"]


@given(st.text())
def test_visible_text_hides_nothing_and_is_the_same_when_nothing_is_hidden(text: str) -> None:
    shown = visible(text)
    assert all(c in "\n\t" or c.isprintable() or c.isspace() for c in shown)
    if all(c.isprintable() for c in text):
        assert shown == text


def test_control_characters_show_by_their_number() -> None:
    assert visible("a\x1b[1m\u202e\ud800\r\nb\tc") == "a⟨U+001B⟩[1m⟨U+202E⟩⟨U+D800⟩⟨U+000D⟩\nb\tc"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.2 s"), (42, "42 s"), (60, "1 min 00 s"), (3599.6, "1 h 00 min"), (7384, "2 h 03 min")],
)
def test_times_in_their_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} 9">{}</svg>'


def test_a_drawing_is_an_image_as_it_was_drawn(make_report) -> None:
    """What it holds is no part of the page: an image runs nothing and loads nothing."""
    report = make_report(0)
    wide, narrow = SVG.format(648, "<script>evil()</script>"), SVG.format(396, '<image href="https://evil.example/"/>')
    figures = tuple(replace(report.figures[0], name=f"f{i}", svg=svg) for i, svg in enumerate((wide, narrow)))
    page = html(replace(report, figures=figures))
    images = [attributes for tag, attributes in Page(page).elements if tag == "img"]
    sources = [str(image["src"]).removeprefix("data:image/svg+xml;base64,") for image in images]
    assert [base64.b64decode(source).decode() for source in sources] == [wide, narrow]
    assert images[0]["alt"] == f"{figures[0].title}: {figures[0].caption}"
    assert "evil" not in page
    shown = [attributes.get("class") for tag, attributes in Page(page).elements if tag == "figure"]
    assert shown == ["wide", None]


def test_findings_are_counted_and_said_in_words(make_report) -> None:
    report = make_report(0)
    twice = replace(report, findings=(*report.findings, report.findings[0]))
    for page in (" ".join(Page(html(twice)).text.split()), markdown(twice)):
        assert "Of 4 claims 2 hold, 1 does not hold, 1 is undecided." in page
        assert page.count("Decided: the results here bear the claim out.") == 2
        assert "Decided: the results here bear out the opposite." in page
        assert "Not decided: the results here are compatible with the claim and with its opposite." in page


@pytest.mark.parametrize("text", ["", "<svg>", "<html xmlns='http://www.w3.org/1999/xhtml'/>", "<svg/>"])
def test_a_figure_that_is_not_svg_is_refused_before_anything_is_written(make_report, tmp_path, text: str) -> None:
    report = make_report(0)
    figures = (replace(report.figures[0], svg=text),)
    with pytest.raises(ValueError, match="figure 'sample-complexity' is not SVG"):
        write_report(replace(report, figures=figures), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_replace_an_earlier_reports(make_report, tmp_path) -> None:
    report = make_report(2)
    write_report(report, tmp_path / "out")
    write_report(replace(report, figures=report.figures[:1]), tmp_path / "out")
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == ["figures/sample-complexity.svg", "report.html", "report.md"]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "](figures/sample-complexity.svg)" in page
    assert (tmp_path / "out" / "figures" / "sample-complexity.svg").read_text() == report.figures[0].svg


def test_an_error_while_writing_leaves_the_earlier_page(make_report, tmp_path, monkeypatch) -> None:
    write_report(make_report(2), tmp_path)
    before = (tmp_path / "report.html").read_text()

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(replace(make_report(2), title="new"), tmp_path)
    assert (tmp_path / "report.html").read_text() == before
