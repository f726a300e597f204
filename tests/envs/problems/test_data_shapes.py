"""The shapes that well-known data sets come in, a few rows of each, made by hand: read, checked, and graded."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokengym.envs import Dataset, diagnose
from tokengym.envs.problems import tables
from tokengym.envs.problems.base import Message
from tokengym.envs.problems.tables import Row, shortest_decimal
from tokengym.registry import UnknownNameError

# Of each data set: a row as published, the arguments for it, a completion that solves it, and one that does not.
DAPO_PROMPT = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\nWhat is 30 + 4?\n\nRemember to put your "
    'answer on its own line after "Answer:".'
)
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "MATH-500": (
        {
            "problem": r"Convert $(0,3)$ to polar coordinates.",
            "solution": r"We get $\boxed{\left( 3, \frac{\pi}{2} \right)}.$",
            "answer": r"\left( 3, \frac{\pi}{2} \right)",
            "subject": "Precalculus",
            "level": 2,
            "unique_id": "test/precalculus/807.json",
        },
        {"question": "problem", "solution": "solution", "answer_format": "boxed"},
        r"\boxed{(3, \pi/2)}",
        r"\boxed{(3, \pi)}",
    ),
    "AIME 2024": (
        {
            "id": 60,
            "problem": "Find $p+q$.",
            "solution": "It is 204.",
            "answer": "204",
            "url": "https://example.org",
            "year": "2024",
        },
        {"question": "problem", "answer_format": "boxed"},
        r"so \boxed{204}",
        r"so \boxed{024}",
    ),
    "AMC (a float column)": (
        {"id": 0, "problem": "$\\frac{m}{n}$ ... find $m+n$.", "answer": 142.0, "url": "https://example.org"},
        {"question": "problem", "answer_format": "boxed"},
        r"\boxed{142}",
        r"\boxed{14.2}",
    ),
    "Minerva": (
        {"question": "What power is absorbed?", "answer": "4.5e33"},
        {"answer_format": "boxed"},
        r"\boxed{4.5e33}",
        r"\boxed{4.5e32}",
    ),
    "OlympiadBench": (
        {
            "id": 1606,
            "question": "Find all $x$.",
            "solution": ["First, ...", "Hence $x=2$ or $x=3$."],
            "final_answer": ["2", "3"],
            "context": None,
            "modality": "Text-only",
            "is_multiple_answer": True,
            "unit": None,
            "answer_type": "Numerical",
        },
        {
            "question": ["context", "question"],
            "answer": "final_answer",
            "solution": "solution",
            "answer_format": "boxed",
        },
        r"\boxed{3, 2}",
        r"\boxed{2}",
    ),
    "AQuA": (
        {
            "question": "A grocery sells 11 and 10. How many?",
            "options": ["A)20", "B)21", "C)22", "D)23", "E)24"],
            "rationale": "11 + 10 = 21. The answer is B.",
            "correct": "B",
        },
        {"question": ["question", "options"], "answer": "correct", "solution": "rationale", "answer_format": "choice"},
        "11 + 10 = 21, so the answer is (B).",
        "Answer: C",
    ),
    "ASDiv": (
        {
            "body": "Seven red apples and two green apples are in the basket.",
            "question": "How many apples are in the basket?",
            "solution_type": "Addition",
            "answer": "9 (apples)",
            "formula": "7+2=9",
        },
        {"question": ["body", "question"], "answer_format": "last_number"},
        "7 + 2 = 9, so there are 9 apples.",
        "There are 7.",
    ),
    "MAWPS": (
        {
            "iIndex": 2,
            "sQuestion": "Joan found 70 seashells and gave away 43. How many are left?",
            "lEquations": ["X=70.0-43.0"],
            "lSolutions": [27.0],
        },
        {"question": "sQuestion", "answer": "lSolutions"},
        "#### 27",
        "#### 70",
    ),
    "SVAMP": (
        {
            "ID": "chal-1",
            "Body": "Each pack of dvds costs 76 dollars.",
            "Question": "How much are 2 packs?",
            "Answer": 152.0,
        },
        {"question": ["Body", "Question"], "answer": "Answer"},
        "#### $152",
        "#### 76",
    ),
    "GSM8K, answered in a box": (
        {"question": "48 and half as many?", "answer": "48/2 = <<48/2=24>>24\n48+24 = <<48+24=72>>72\n#### 72"},
        {"answer_format": "boxed"},
        r"\boxed{72}",
        "#### 72",
    ),
    "DeepScaleR": (
        {"problem": r"Simplify $\frac{2}{4}$.", "answer": r"\frac{1}{2}", "solution": ""},
        {"question": "problem", "solution": "solution", "answer_format": {"name": "tag", "tag": "answer"}},
        "<think>hm <answer>2</think> <answer>0.5</answer>",
        "<answer>2</answer>",
    ),
    "DAPO, verl": (
        {
            "data_source": "math_dapo",
            "prompt": [{"content": DAPO_PROMPT, "role": "user"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": "9a9b"},
        },
        {
            "question": "prompt",
            "answer": "reward_model.ground_truth",
            "answer_format": {"name": "marker", "marker": "Answer:", "answers": "latex"},
        },
        "30 + 4 = 34\nAnswer: 34",
        "Answer: 30",
    ),
    "Skywork, verl (a list in a text)": (
        {
            "prompt": [{"role": "user", "content": "Half of one?"}],
            "reward_model": {"ground_truth": r'["\\frac{1}{2}"]'},
        },
        {"question": "prompt", "answer": "reward_model.ground_truth", "answer_format": "boxed"},
        r"\boxed{0.5}",
        r"\boxed{2}",
    ),
    "chats": (
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "1+1?"},
                {"role": "assistant", "content": "1+1 = 2\n#### 2"},
            ]
        },
        {"question": "messages", "answer": "messages[-1].content"},
        "#### 2",
        "#### 3",
    ),
}
KINDS = {".jsonl", ".json", ".parquet"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", sorted(KINDS))
@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_read_checked_and_graded(tmp_path, shape, suffix):
    row, settings, right, wrong = SHAPES[shape]
    source = Dataset(write(tmp_path / f"rows{suffix}", [row]), **settings, validation=0, test=0)
    problem = source[0]
    assert source.grade(right, problem).correct, (problem, source.grade(right, problem))
    assert not source.grade(wrong, problem).correct
    assert not diagnose(source).errors
    if problem.solution is not None:
        assert source.grade(problem.solution, problem).correct, problem.solution


def test_two_columns_stand_below_one_another_and_empty_ones_are_left_out(tmp_path):
    row, settings, _, _ = SHAPES["AQuA"]
    problem = Dataset(write(tmp_path / "a.jsonl", [row]), **settings, validation=0, test=0)[0]
    assert problem.question == "A grocery sells 11 and 10. How many?\nA)20\nB)21\nC)22\nD)23\nE)24"
    assert problem.solution == "11 + 10 = 21. The answer is B."
    row, settings, _, _ = SHAPES["OlympiadBench"]
    problem = Dataset(write(tmp_path / "b.jsonl", [row]), **settings, validation=0, test=0)[0]
    assert (problem.question, problem.answer) == ("Find all $x$.", "2, 3")
    assert problem.solution == "First, ...\nHence $x=2$ or $x=3$.\n\\boxed{2, 3}"


def test_a_conversation_is_kept_up_to_the_users_last_turn(tmp_path):
    row, settings, _, _ = SHAPES["chats"]
    problem = Dataset(write(tmp_path / "a.jsonl", [row]), **settings, validation=0, test=0)[0]
    assert problem.messages == (Message("system", "Be brief."), Message("user", "1+1?"))
    assert (problem.question, problem.answer, problem.solution) == ("1+1?", "2", "1+1 = 2\n#### 2")
    only_system = {"messages": row["messages"][:1] + row["messages"][2:]}
    with pytest.raises(ValueError, match="line 1: field 'messages' has no message of the user's"):
        Dataset(write(tmp_path / "b.jsonl", [only_system]), **settings)


def test_a_solution_shows_the_answer_in_the_format(tmp_path):
    row, _, _, _ = SHAPES["GSM8K, answered in a box"]
    path = write(tmp_path / "a.jsonl", [row])
    ends = {"marker": "#### 72", "boxed": r"\boxed{72}", "tag": "<answer>72</answer>"}
    for name, end in ends.items():
        solution = Dataset(path, answer_format=name, validation=0, test=0)[0].solution
        assert solution is not None
        assert solution.splitlines() == [*row["answer"].splitlines()[:2], end]


# ------------------------------------------------------------------------------------------------ numbers as written


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "numbers.jsonl"
    path.write_text(f'{{"question": "q", "answer": {text}}}\n')
    return Dataset(path, validation=0, test=0)[0].answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1e23", "1" + "0" * 23),
        ("12345678901234567890", "12345678901234567890"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("12345678901234567890.5", "12345678901234567890.5"),
        ("7.0", "7"),
        ("-0.0", "0"),
        ("1e-7", "1E-7"),
        ("2.5E3", "2500"),
        ("1e200", "1E+200"),
    ],
)
def test_numbers_in_json_are_read_as_written(tmp_path, text, answer):
    assert written(tmp_path, text) == answer


@pytest.mark.parametrize("text", ["1e5000", "1e99999999999999999999"])
def test_a_number_beyond_the_grammar_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"line 1: the gold answer '1[eE].*' is not a number"):
        written(tmp_path, text)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**10), max_value=10**10))
def test_any_decimal_survives_json(tmp_path_factory, number):
    row = next(iter(tables._read_jsonl(_jsonl(tmp_path_factory, f'{{"x": {number}}}'))))
    assert isinstance(row, Row)
    assert Decimal(row.text("x")) == number


def _jsonl(factory: pytest.TempPathFactory, line: str) -> Path:
    path = factory.getbasetemp() / "one.jsonl"
    path.write_text(line)
    return path


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (pa.float32(), 1 / 3, "0.33333334"),
        (pa.float32(), 0.1, "0.1"),
        (pa.float32(), 16777216.0, "16777216"),
        (pa.float32(), 1e23, "1" + "0" * 23),
        (pa.float16(), 0.1, "0.1"),
        (pa.float64(), 1e23, "1" + "0" * 23),
        (pa.float64(), 0.1 + 0.2, "0.30000000000000004"),
        (pa.float64(), 2.0**53, "9007199254740992"),
        (pa.float64(), 142.0, "142"),
        (pa.int64(), 2**63 - 1, "9223372036854775807"),
        (pa.decimal128(38, 4), Decimal("12345678901234567890.5000"), "12345678901234567890.5000"),
    ],
)
def test_numbers_in_parquet_are_read_as_written(tmp_path, kind, value, text):
    nested = pa.struct([("of", pa.list_(kind))])
    table = pa.table({"x": pa.array([value], kind), "y": pa.array([{"of": [value]}], nested)})
    pq.write_table(table, tmp_path / "a.parquet")
    row = tables.read_file(tmp_path / "a.parquet")[0]
    assert row.text("x") == row.text("y.of[0]") == text


@pytest.mark.parametrize(("kind", "value"), [(pa.float64(), 12345678901234567890), (pa.float32(), 123456789)])
def test_a_whole_number_that_a_float_column_cannot_hold_is_refused(tmp_path, kind, value):
    pq.write_table(
        pa.table({"question": ["q"], "answer": pa.array([float(value)], pa.float64()).cast(kind, safe=False)}),
        tmp_path / "a.parquet",
    )
    with pytest.raises(ValueError, match=r"row 0: field 'answer' is 1\.?2345.*cannot hold all the digits.*as text"):
        Dataset(tmp_path / "a.parquet", validation=0, test=0)


def test_the_hubs_reader_refuses_what_it_has_rounded(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text('{"question": "q", "answer": 12345678901234567890}\n')
    loaded = datasets.load_dataset("json", data_files=str(tmp_path / "a.json"), cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: loaded[split])
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: ["train"])
    with pytest.raises(ValueError, match=r"train row 0: field 'answer' is 1\.2345678901234567e\+19.*cannot hold"):
        len(Dataset("owner/name", validation=0, test=0))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_shortest_decimal_is_the_same_float(value):
    assert float(shortest_decimal(value, 64)) == value


# --------------------------------------------------------------------------------------------- paths, bad rows, splits


def test_paths():
    row = Row(0, "here", {"a.b": "dotted", "a": {"b": "inner", "c": [{"d": "x"}, {"d": "y"}]}, "e f": "g"})
    found = {path: row.text(path) for path in ("a.b", "a.c[0].d", "a.c[-1].d", "e f")}
    assert found == {"a.b": "dotted", "a.c[0].d": "x", "a.c[-1].d": "y", "e f": "g"}
    for path in ("a.x", "a.c[2].d", "a.c.d", "a.b.c", "z", "a..b", "a[", "[0]", "", "."):
        with pytest.raises(ValueError, match=r"here: there is no field '.*', only 'a\.b', 'a\.b', 'a\.c', 'e f'"):
            row.text(path)


def test_a_path_that_no_row_has_names_what_there_is_and_the_arguments(tmp_path):
    row, settings, _, _ = SHAPES["DAPO, verl"]
    path = write(tmp_path / "a.jsonl", [row])
    for on_bad_row in ("error", "skip"):
        with pytest.raises(
            ValueError, match=r"no column 'reward_model\.truth'.*'reward_model\.ground_truth'.*--env-args"
        ):
            Dataset(path, **settings | {"answer": "reward_model.truth", "on_bad_row": on_bad_row})


def test_bad_rows_are_left_out_and_counted(tmp_path, caplog):
    lines = [
        '{"question": "a", "answer": 1}',
        "{",
        '{"question": "b"}',
        '{"question": "c", "answer": "two"}',
        "[1]",
        "",
    ]
    lines += [f'{{"question": "d{i}", "answer": {i}}}' for i in range(8)]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"line 2: not JSON"):
        Dataset(path)
    source = Dataset(path, on_bad_row="skip", validation=0, test=0)
    assert source.size == 9
    assert source[1].id == "mine-5"  # the row's own number
    assert "line 2: not JSON" in source.bad_rows[0]
    assert [reason.partition(", ")[2] for reason in source.bad_rows[1:]] == [
        "line 5: [1] is not an object with named fields",
        "line 3: there is no field 'answer', only 'question'",
        "line 4: the gold answer 'two' is not a number that the grader reads",
    ]
    assert "4 of 13 rows are left out, the first because of:" in caplog.text
    path.write_text('{"question": "a", "answer": "one"}\n{"question": "b", "answer": "two"}')
    with pytest.raises(ValueError, match=r"none of 2 rows can be read: .*line 1: the gold answer 'one'"):
        Dataset(path, on_bad_row="skip")
    with pytest.raises(UnknownNameError, match="did you mean 'skip'"):
        Dataset(path, on_bad_row="skipp")


def test_split_files_say_what_is_which(tmp_path):
    rows = [{"question": f"{i}?", "answer": i} for i in range(20)]
    write(tmp_path / "easy.jsonl", rows)
    write(tmp_path / "math500.parquet", rows[:5])
    write(tmp_path / "train.jsonl", rows[:1])  # not read
    splits = {"train": "easy.jsonl", "test": "math500.parquet"}
    sources = {split: Dataset(tmp_path, split=split, split_files=splits) for split in ("train", "validation", "test")}
    assert {split: source.size for split, source in sources.items()} == {"train": 18, "validation": 2, "test": 5}
    assert sources["test"][0].id == "math500-0"
    assert sources["train"].with_split("test").problems == sources["test"].problems
    alone = Dataset(split="test", split_files={"test": tmp_path / "math500.parquet"})
    assert alone.problems == sources["test"].problems
    with pytest.raises(ValueError, match=r"has no train split and none to carve it from, only test"):
        Dataset(split_files={"test": tmp_path / "math500.parquet"})
    with pytest.raises(FileNotFoundError, match=r"no such file for the train split: .*nowhere\.jsonl"):
        Dataset(tmp_path, split_files={"train": "nowhere.jsonl"})
    with pytest.raises(UnknownNameError, match="did you mean 'test'"):
        Dataset(tmp_path, split_files={"tset": "easy.jsonl"})
    with pytest.raises(ValueError, match=r"easy\.jsonl is a file"):
        Dataset(tmp_path / "easy.jsonl", split_files={"train": "easy.jsonl"})
    with pytest.raises(ValueError, match=r"needs its data: .*--data"):
        Dataset()


@pytest.mark.parametrize(
    ("name", "warns"), [("test", True), ("aime_test", True), ("gsm8k-dev", True), ("latest", False)]
)
def test_a_file_named_test_does_not_become_train_without_a_word(tmp_path, caplog, name, warns):
    Dataset(write(tmp_path / f"{name}.jsonl", [{"question": f"{i}?", "answer": i} for i in range(20)]))
    assert ("is read as train rows, of which 10% are held out for validation" in caplog.text) is warns


def test_hub_splits_with_other_names(monkeypatch):
    tables = {"train_sft": 4, "test_sft": 2}
    rows = [{"question": f"{i}?", "answer": f"{i}"} for i in range(4)]
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, config, split: datasets.Dataset.from_list(rows[: tables[split]])
    )
    source = Dataset("owner/name", split="test", split_files={"train": "train_sft", "test": "test_sft"})
    assert [problem.id for problem in source.problems] == ["owner/name-test_sft-0", "owner/name-test_sft-1"]


def test_what_the_hub_said_is_in_the_error(monkeypatch):
    def load_dataset(name, config, split):
        try:
            raise TimeoutError("no route to host")
        except TimeoutError as error:
            raise ConnectionError(f"Couldn't reach {name!r} on the Hub") from error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        OSError, match=r"ConnectionError: Couldn't.*; because of TimeoutError: no route.*HF_HUB_OFFLINE"
    ):
        tables.read_hub("owner/name", None, "test")


def test_json_lines_in_a_file_named_json(tmp_path):
    (tmp_path / "a.json").write_text('{"question": "a", "answer": 1}\n{"question": "b", "answer": 2}\n')
    assert [problem.answer for problem in Dataset(tmp_path / "a.json", validation=0, test=0).problems] == ["1", "2"]
    (tmp_path / "a.json").write_text('{"question": "a", "answer": 1}')
    with pytest.raises(ValueError, match="is not a list of objects, nor one object a line"):
        Dataset(tmp_path / "a.json")


def test_half_of_a_character_is_a_row_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "halves.jsonl"
    path.write_text('{"question": "1+1", "answer": "2"}\n{"question": "a\\ud83d", "answer": "2"}\n')
    with pytest.raises(ValueError, match=r"halves.jsonl, line 2: field 'question' has '\\ud83d', half of a character"):
        Dataset(path, validation=0, test=0)
    assert len(Dataset(path, on_bad_row="skip", validation=0, test=0)) == 1


@pytest.mark.parametrize("name", ["dataset_info.json", "dataset_dict.json"])
def test_a_folder_of_save_to_disk_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=r"was written by save_to_disk of datasets.*to_json"):
        Dataset(tmp_path)
