"""The paper's tables: the figures, what they can't contradict, and how they stand beside ours."""

import io

import pytest
from rich.console import Console, RenderableType

from tokengym.agents.evaluation.evaluate import Evaluation, Interval
from tokengym.agents.evaluation.tables import evaluation_table
from tokengym.benchmarks.paper.published import paper_row, paper_table
from tokengym.benchmarks.paper.tables import paper_figures
from tokengym.registry import UnknownNameError

TABLES = ["table_1", "table_2", "table_3", "table_4"]


def test_figures_that_the_papers_summaries_quote() -> None:
    assert paper_row("table_1/ei")[1].values == {"7B": (0.48, 0.55, 0.64, 0.80), "13B": (0.53, 0.59, 0.71, 0.88)}
    assert paper_row("table_1/gpt_3")[1].values == {"6B": (0.20, None, 0.39, 0.71), "175B": (0.31, None, 0.55, None)}
    table, row = paper_row("table_3/sparse_ppo")
    assert table.values(row, "pass@n") == {"7B": 0.50, "13B": 0.83}
    assert paper_row("table_2/ei")[1].certainty == "recalled, medium"
    # Every system of the first paper, and what its other tables hold.
    assert [len(paper_table(name).rows) for name in TABLES] == [13, 5, 6, 4]


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_whole_and_contradicts_neither_itself_nor_another_table(name: str) -> None:
    table = paper_table(name)
    assert "2403.04642" in table.source
    for row in table.rows.values():
        assert row.certainty in table.certainties
        for values in row.values.values():
            assert len(values) == len(table.metrics) == 4
            known = [value for value in values if value is not None]
            assert all(0 < value < 1 for value in known)
            maj, rerank, solved = values[1:]
            # Where any choice among the samples is right, one of the samples is.
            assert all(choice <= solved for choice in (maj, rerank) if choice is not None and solved is not None)
    if name == "table_4":
        for row, same in (("sft_4", "table_1/sft"), ("ppo_from_sft_4", "table_1/sparse_ppo")):
            assert table.rows[row].values["7B"] == paper_row(same)[1].values["7B"]


def test_our_number_of_samples_is_beside_the_papers_but_one_sample_only_beside_one() -> None:
    table, row = paper_row("table_1/sft")
    assert table.values(row, "maj@8") == {"7B": 0.47, "13B": 0.53}
    assert table.values(row, "maj@1") == {"7B": 0.41, "13B": 0.48}
    assert table.values(row, "pass@1") == {}
    assert table.values(row, "diversity") == {}


def test_unknown_names_are_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown table of the paper 'table_7': did you mean 'table_"):
        paper_table("table_7")
    with pytest.raises(UnknownNameError, match=r"unknown row of Table 3 'dense_ppo': did you mean"):
        paper_row("table_3/dense_ppo")


def evaluated(problems: int, n: int, temperature: float = 0.7) -> Evaluation:
    metrics = {"maj@1": Interval(0.25, 0.2, 0.3)}
    if n:
        metrics |= {f"maj@{n}": Interval(0.3, 0.2, 0.4), f"pass@{n}": Interval(0.5, 0.4, 0.6)}
    return Evaluation(metrics, {"correct": 3, "wrong": 1}, 20.0, problems, n, temperature, 0, 900, 9000, 1.0, [], {})


def printed(*what: RenderableType | None, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(*what)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_our_table_in_the_terminal_knows_no_paper() -> None:
    text = printed(evaluation_table({"mine": evaluated(100, 8)}, "made-up problems"))
    assert "0.250 [0.200, 0.300]" in text
    assert "correct 75%" in text
    assert "wrong 25%" in text
    assert "Llama" not in text
    assert "paper" not in text


@pytest.mark.parametrize("names", [("SFT", "round 1", "round 2"), ("the base model", "SFT", "round 1", "round 2")])
def test_intervals_stay_whole_in_80_columns(names: tuple[str, ...]) -> None:
    text = printed(evaluation_table(dict.fromkeys(names, evaluated(100, 8)), "made-up problems"), width=80)
    for interval in ("[0.200, 0.300]", "[0.200, 0.400]", "[0.400, 0.600]"):
        assert text.count(interval) == len(names)
    assert max(map(len, text.splitlines())) <= 80


def test_the_papers_figures_stand_below_its_own_data_and_protocol_as_another_scale() -> None:
    text = printed(paper_figures(evaluated(1319, 96), "tokengym/GSM8K-v0", "test"))
    assert "another scale: GSM8K in the paper" in text
    (line,) = [line for line in text.splitlines() if "Llama-2 13B, EI" in line]
    assert [word for word in line.split() if word[0] == "0"] == ["0.53", "0.59", "0.88"]
    text = printed(paper_figures(evaluated(1319, 0), "tokengym/GSM8K-v0", "test"))  # greedy alone
    (line,) = [line for line in text.splitlines() if "Llama-2 7B, EI" in line]
    assert [word for word in line.split() if word[0] == "0"] == ["0.48"]


@pytest.mark.parametrize(
    "result", [evaluated(200, 96), evaluated(1319, 16), evaluated(1319, 96, 1.0)], ids=["problems", "n", "temperature"]
)
def test_another_protocol_has_a_line_in_place_of_the_papers_figures(result: Evaluation) -> None:
    text = " ".join(printed(paper_figures(result, "tokengym/GSM8K-v0", "test")).split())
    assert "--problems 1319 --n 96 --temperature 0.7" in text
    assert "Llama-2 7B" not in text


@pytest.mark.parametrize(
    ("env", "split"),
    [("tokengym/Parity-v0", "test"), ("tokengym/GSM8K-v0", "validation"), ("tokengym/Dataset-v0", "test")],
)
def test_other_data_has_no_figures_of_the_paper(env: str, split: str) -> None:
    assert paper_figures(evaluated(1319, 96), env, split) is None
