import json
import os
import pickle
from pathlib import Path

import datasets
import pytest

from tokengym.envs.problems.base import SPLITS
from tokengym.envs.problems.svamp import SVAMP


def row(number: int, **fields: object) -> dict[str, object]:
    return {
        "ID": f"chal-{number}",
        "Body": f"Ann had {number} nuts.",
        "Question": "How many nuts are 2 more?",
        "Equation": f"( {number}.0 + 2.0 )",
        "Answer": number + 2.0,
        "Type": "Addition",
    } | fields


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "SVAMP.json", [row(number) for number in range(1000)])


def test_a_thousand_rows_are_600_100_300(data):
    sources = [SVAMP(split, data=data) for split in SPLITS]
    assert [source.size for source in sources] == [600, 100, 300]
    assert len({problem.question for source in sources for problem in source}) == 1000
    assert len({problem.id for source in sources for problem in source}) == 1000
    assert SVAMP(data=str(Path(data).parent)).problems == sources[0].problems
    assert pickle.loads(pickle.dumps(sources[0])).problems == sources[0].problems  # noqa: S301 - our own pickle
    for source in sources:
        for problem in source:
            assert source.grade(problem.solution or "", problem).correct
            assert source.find(problem.id) == problem


def test_the_split_does_not_depend_on_the_order_of_the_rows(data, tmp_path):
    (tmp_path / "other").mkdir()
    backwards = write(tmp_path / "other" / "SVAMP.json", [row(number) for number in reversed(range(1000))])
    for split in SPLITS:
        assert set(SVAMP(split, data=data)) == set(SVAMP(split, data=backwards))


def find(tmp_path: Path, special: dict[str, object]):
    data = write(tmp_path / "SVAMP.json", [special, *(row(number) for number in range(1, 500))])
    problems = [problem for split in SPLITS for problem in SVAMP(split, data=data)]
    (problem,) = (problem for problem in problems if problem.id == "svamp-chal-0")
    return problem


@pytest.mark.parametrize(
    ("equation", "answer", "solution"),
    [
        ("( 76.0 - 25.0 )", 51.0, "76-25 = <<76-25=51>>51\n#### 51"),
        ("( 7.0 / ( 4.0 + 3.0 ) )", 1.0, "4+3 = <<4+3=7>>7\n7/7 = <<7/7=1>>1\n#### 1"),
        ("( ( 2.5 * 2.0 ) - 8.0 )", "-3", "2.5*2 = <<2.5*2=5>>5\n5-8 = <<5-8=-3>>-3\n#### -3"),
        ("( 1.0 / 8.0 )", 0.125, "1/8 = <<1/8=0.125>>0.125\n#### 0.125"),
        ("8.0", 8.0, "#### 8"),
        ("( ( 4.0 - 2.0 ) + 3.0 )", 1.0, "#### 1"),  # as in chal-680: the equation gives another value
    ],
)
def test_solutions_from_equations(tmp_path, equation, answer, solution):
    problem = find(tmp_path, row(0, Equation=equation, Answer=answer))
    assert problem.solution == solution
    assert problem.answer == solution.rpartition("#### ")[2]


@pytest.mark.parametrize(
    ("body", "question"),
    [
        ("Ann had 3 nuts.", "Ann had 3 nuts. How many?"),
        ("If Ann had 3 nuts", "If Ann had 3 nuts, how many?"),
        ("If Ann had 3 nuts, ", "If Ann had 3 nuts, how many?"),
    ],
)
def test_body_and_question_become_one_text(tmp_path, body, question):
    assert find(tmp_path, row(0, Body=body, Question="How many?")).question == question


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"Answer": "many"}, "row 0: field 'Answer' is 'many'"),
        ({"Answer": None}, "row 0: field 'Answer' is None"),
        ({"Answer": float("nan")}, "row 0: field 'Answer' is nan"),
        ({"Answer": True}, "row 0: field 'Answer' is True"),
        ({"Equation": "( 1.0 + "}, "row 0: field 'Equation': "),
        ({"Equation": "( 1.0 / 0.0 )"}, "row 0: field 'Equation': "),
        ({"Body": ""}, "row 0: field 'Body' is empty"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, fields, message):
    with pytest.raises(ValueError, match=rf"SVAMP\.json, {message}"):
        find(tmp_path, row(0, **fields))


def test_missing_or_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"SVAMP\.json"):
        SVAMP(data=tmp_path)
    with pytest.raises(ValueError, match="3 rows"):
        SVAMP(data=write(tmp_path / "SVAMP.json", [row(number) for number in range(3)]))
    (tmp_path / "SVAMP.json").write_text("{}")
    with pytest.raises(ValueError, match="not a list of objects"):
        SVAMP(data=tmp_path)


def test_the_hub_has_its_own_test_split(monkeypatch):
    def load_dataset(name, config, split):
        assert (name, config) == ("ChilleD/SVAMP", None)
        numbers = range(700) if split == "train" else range(700, 1000)
        return datasets.Dataset.from_list([row(number) for number in numbers])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    sources = [SVAMP(split) for split in SPLITS]
    assert [source.size for source in sources] == [600, 100, 300]
    assert len({problem.question for source in sources for problem in source}) == 1000


@pytest.mark.skipif("TOKENGYM_DATA" not in os.environ, reason="TOKENGYM_DATA names no folder with the real data")
def test_the_original_file():
    sources = [SVAMP(split, data=Path(os.environ["TOKENGYM_DATA"]) / "svamp") for split in SPLITS]
    assert [source.size for source in sources] == [600, 100, 300]
    for source in sources:
        for problem in source:
            assert source.grade(problem.solution or "", problem).correct, problem
