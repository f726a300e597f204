"""What a report says: means and intervals over seeds, what is missing, JSON and back, attempts as lines."""

import json
import math

import numpy as np
import pytest

from tokengym.agents.rollouts.attempts import Attempt
from tokengym.benchmarks.paper.published import paper_table
from tokengym.benchmarks.reports import text as report_text
from tokengym.benchmarks.reports.attempts import attempt_records
from tokengym.benchmarks.reports.content import (
    Cell,
    Cost,
    Figure,
    MissingCell,
    Report,
    ResultRow,
    ResultTable,
    RunRecord,
    StepRecord,
)
from tokengym.benchmarks.reports.published import PaperRow, PaperTable
from tokengym.envs import Problem
from tokengym.models import load_tokenizer
from tokengym.registry import UnknownNameError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cell({0: math.nan}, 0.5), "must be finite"),
        (lambda: Cell({0: 0.5}, 0.5, 0.4), "an interval has two ends"),
        (lambda: Cell({0: 0.5}, 0.5, 0.6, 0.7), "the mean 0.5 is outside of its interval"),
        (lambda: Cell({0: 0.5}, math.inf), "must be finite"),
        (lambda: StepRecord("1+1=2", math.nan), "a step's reward must be finite"),
        (lambda: StepRecord("1+1=2", 0.0, 1.5), "a step's score is a probability, got 1.5"),
        (lambda: Figure("../up", "", "", ""), "a figure's name is of small letters, digits, - and _, got '../up'"),
        (
            lambda: ResultTable("T", "", (ResultRow("EI", (MissingCell("no"),)),)),
            "table 'T': row 'EI' has 1 cells for the 4 metrics maj@1, maj@n, rerank@n, pass@n",
        ),
    ],
)
def test_figures_that_can_not_be_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("{", r"\{").replace("(", r"\(")):
        make()


def test_a_row_beside_a_row_that_the_paper_does_not_have() -> None:
    published = {"table_1": paper_table("table_1")}
    with pytest.raises(UnknownNameError, match="unknown row of Table 1 'sfd': did you mean 'sft'"):
        ResultTable("T", "", (ResultRow("SFT", (MissingCell("no"),) * 4, "table_1/sfd"),), published=published)
    with pytest.raises(UnknownNameError, match="unknown published table of 'T' 'table_2': did you mean 'table_1'"):
        ResultTable("T", "", (ResultRow("SFT", (MissingCell("no"),) * 4, "table_2/sft"),), published=published)


def test_any_figures_may_stand_beside_a_table() -> None:
    """Neither sizes, nor words for certainty, nor metrics are a particular paper's."""
    paper = PaperTable(
        "Table 9: Anything", "Somebody (2027)", "Llama", ("1B", "3B"), "any data", ("maj@1",),
        {"theirs": PaperRow("Theirs", {"1B": (0.25,), "3B": (0.5,)}, "read off a plot")},
        certainties={"read off a plot": "two digits are right"},
    )  # fmt: skip
    row = ResultRow("Ours", (MissingCell("not run"), MissingCell("not run")), "nine/theirs")
    table = ResultTable("T", "", (row,), ("maj@1", "length"), published={"nine": paper})
    assert report_text.paper_metrics(table) == {"maj@1": "maj@1"}
    assert report_text.paper_sizes(table) == "1B / 3B"
    assert report_text.paper_value(table, row, "maj@1") == "0.25 / 0.50"
    assert "read off a plot, that is, two digits are right" in " ".join(report_text.paper_notes(table))
    with pytest.raises(ValueError, match="does not explain 'sure'"):
        PaperTable("T", "S", "M", ("1B",), "D", ("maj@1",), {"x": PaperRow("X", {"1B": (0.5,)}, "sure")})


def test_costs_add_up(make_report) -> None:
    assert make_report(0).cost == Cost(4 * 12_345, 4 * 678_901, 4 * 987.0)


def test_time_that_sampled_nothing_is_a_cost_of_what_a_run_builds_on() -> None:
    sft = Cost(0, 0, 120.0)
    run = RunRecord("PPO", (0,), {}, Cost(100, 2_000, 60.0), builds_on=sft)
    assert report_text.run_cost(run).endswith("with what it builds on: 100 attempts, 2,000 tokens, 3 min 00 s")
    assert "builds on" not in report_text.run_cost(RunRecord("SFT", (0,), {}, sft))


def test_a_report_comes_back_from_json(make_report) -> None:
    report = make_report(8)
    again = Report.from_json(report.to_json())
    assert again == report
    assert list(again.tables[0].rows[0].cells[0].values) == [0, 1, 2]  # seeds are numbers again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("device"), "report: .*missing .* 'device'"),
        (lambda r: r.update(tables={}), r"report.tables: expected tuple.*got \{\}"),
        (lambda r: r["findings"][0].update(verdict="maybe"), r"report.findings\[0\].verdict: expected .*'maybe'"),
        (lambda r: r["runs"][1].update(color="red"), r"report.runs\[1\]: a RunRecord has no 'color'"),
        (
            lambda r: r["attempts"][0]["steps"][0].update(reward="much"),
            r"steps\[0\].reward: expected float, got 'much'",
        ),
        (lambda r: r["tables"][0]["rows"][0]["cells"].append(3), r"rows\[0\].cells\[4\]: expected a Cell, got 3"),
        (lambda r: r["tables"][0]["rows"][0]["cells"][1].update(mean=float("nan")), r"cells\[1\]: .* must be finite"),
        (lambda r: r["tables"][0]["rows"][0]["cells"][1]["values"].update(x=1.0), r"cells\[1\].values: .* got 'x'"),
        (lambda r: r["figures"].append(r["figures"][0]), "report: two figures are named 'sample-complexity'"),
    ],
)
def test_json_that_is_no_report_is_told_by_its_place(make_report, change, message: str) -> None:
    values = json.loads(make_report(2).to_json())
    change(values)
    with pytest.raises(ValueError, match=message):
        Report.from_json(json.dumps(values))


def attempt(tokenizer, text: str, end: bool) -> Attempt:
    completion = tokenizer(text)["input_ids"] + ([tokenizer.eos_token_id] if end else [])
    return Attempt(
        problem=Problem("sum-1", "What is 1+2?", "3"),
        index=0,
        prompt=np.array([5]),
        completion=np.array(completion, np.int32),
        logprobs=np.zeros(len(completion), np.float32),
        rewards=np.arange(1, len(completion) + 1, dtype=np.float32),
        is_success=end,
        verdict="correct" if end else "truncated",
        answer="3" if end else None,
        terminated=end,
    )


def test_attempts_are_shown_by_their_lines_and_no_reward_is_lost() -> None:
    tokenizer = load_tokenizer("chars:0123456789+=#\n ")
    whole, cut = attempt(tokenizer, "1+2=3\n# 3", True), attempt(tokenizer, "1+2=3\n1+", False)
    records = attempt_records("EI", [whole, cut], tokenizer, [np.array([0.25, 0.75]), np.array([0.5])])
    # One token per character: the first line pays 1 + ... + 6 at positions 1 to 6, the second the rest.
    assert records[0].steps == (StepRecord("1+2=3\n", 21.0, 0.25), StepRecord("# 3", 7.0 + 8 + 9 + 10, 0.75))
    # The line that was cut off is shown, and has no score.
    assert records[1].steps == (StepRecord("1+2=3\n", 21.0, 0.5), StepRecord("1+", 15.0, None))
    assert (records[0].system, records[0].problem_id, records[0].reference) == ("EI", "sum-1", "3")
    assert (records[1].verdict, records[1].answer) == ("truncated", None)
    unscored = attempt_records("EI", [whole], tokenizer)
    assert [step.score for step in unscored[0].steps] == [None, None]


def test_scores_of_other_steps_are_refused() -> None:
    tokenizer = load_tokenizer("chars:0123456789+=#\n ")
    with pytest.raises(ValueError, match="attempt 0 at sum-1 has 2 steps and 1 scores"):
        attempt_records("EI", [attempt(tokenizer, "1+2=3\n# 3", True)], tokenizer, [np.array([0.5])])
