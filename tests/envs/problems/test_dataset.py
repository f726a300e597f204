import csv
import json
import os
import pickle
import random
from decimal import Decimal
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokengym.envs.problems.base import SPLITS, make_problems
from tokengym.envs.problems.dataset import Dataset
from tokengym.envs.problems.tables import carve, read_folder

ROWS = [{"question": f'What, "{i}"\nis {i}?', "answer": f"{i}", "working": f"It is {i}."} for i in range(40)]
WHOLE = {"validation": 0, "test": 0}


def write(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(params=[".jsonl", ".json", ".csv", ".parquet"])
def file(request, tmp_path) -> str:
    return write(tmp_path / f"mine{request.param}", ROWS)


def test_every_kind_of_file_gives_the_same_problems(file):
    source = Dataset(file, solution="working", **WHOLE)
    assert [problem.question for problem in source] == [row["question"] for row in ROWS]
    assert [problem.answer for problem in source] == [row["answer"] for row in ROWS]
    assert source[7].solution == "It is 7.\n#### 7"
    assert source[7].id == "mine-7"
    assert source.find("mine-7") == source[7]
    assert Dataset(file, **WHOLE)[7].solution is None
    assert list(pickle.loads(pickle.dumps(source))) == list(source)  # noqa: S301 - our own pickle


def test_a_file_is_carved_into_disjoint_splits(file):
    splits = {split: make_problems("dataset", data=file, split=split, validation=0.1, test=0.25) for split in SPLITS}
    assert {split: source.size for split, source in splits.items()} == {"train": 26, "validation": 4, "test": 10}
    ids = [problem.id for source in splits.values() for problem in source]  # type: ignore
    assert sorted(ids) == sorted(f"mine-{i}" for i in range(40))
    # A larger validation split leaves the test split alone.
    assert Dataset(file, split="test", validation=0.5, test=0.25).problems == splits["test"].problems


@given(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=40), st.data())
def test_carved_splits_never_share_a_question(questions, data):
    test = data.draw(st.integers(0, len(questions)))
    validation = data.draw(st.integers(0, len(questions) - test))
    splits = carve(questions, validation, test)
    found = {split: {q for q, s in zip(questions, splits, strict=True) if s == split} for split in SPLITS}
    assert sum(map(len, found.values())) == len(set(questions))
    assert splits.count("test") >= test
    order = list(range(len(questions)))
    random.Random(0).shuffle(order)
    assert carve([questions[i] for i in order], validation, test) == [splits[i] for i in order]


@given(st.sets(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=40), st.data())
def test_carved_splits_have_the_sizes_asked_for(questions, data):
    questions = [str(number) + question for number, question in enumerate(questions)]
    test = data.draw(st.integers(0, len(questions)))
    validation = data.draw(st.integers(0, len(questions) - test))
    splits = carve(questions, validation, test)
    assert (splits.count("validation"), splits.count("test")) == (validation, test)


def test_a_folder_has_its_own_splits_and_lacks_are_carved(tmp_path):
    write(tmp_path / "train.csv", ROWS[:30])
    write(tmp_path / "test.jsonl", ROWS[30:])
    sources = {split: Dataset(tmp_path, split=split) for split in SPLITS}
    assert {split: source.size for split, source in sources.items()} == {"train": 27, "validation": 3, "test": 10}
    assert [problem.id for problem in sources["test"]] == [f"test-{i}" for i in range(10)]
    write(tmp_path / "validation.parquet", ROWS[30:35])
    assert [Dataset(tmp_path, split=split).size for split in SPLITS] == [30, 5, 10]
    write(tmp_path / "test.csv", ROWS)
    with pytest.raises(ValueError, match=r"two files for the split 'test': test\.jsonl and test\.csv"):
        Dataset(tmp_path, split="test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no file train, validation or test"):
        Dataset(tmp_path / "empty")


def test_answers_inside_solutions_and_numbers_of_all_types(tmp_path):
    answers = ["3+4 = <<3+4=7>>7\n#### 7", 7, 7.0, 7.5, "  7 ", -7]
    data = write(tmp_path / "mine.jsonl", [{"q": f"{i}", "a": answer} for i, answer in enumerate(answers)])
    source = Dataset(data, question="q", answer="a", **WHOLE)
    assert [problem.answer for problem in source] == ["7", "7", "7", "7.5", "7", "-7"]
    assert [problem.solution for problem in source] == [answers[0]] + [None] * 5
    data = write(tmp_path / "mine.parquet", [{"q": "a", "a": Decimal("7.50"), "s": "4+3.5\n#### 7.5"}])
    source = Dataset(data, question="q", answer="a", solution="s", **WHOLE)
    assert (source[0].answer, source[0].solution) == ("7.50", "4+3.5\n#### 7.5")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", r"a\.jsonl has no rows"),
        ("a.json", "[]", r"a\.json has no rows"),
        ("a.csv", "question,answer\n", r"a\.csv has no rows"),
        ("a.csv", "question,answer\nx,1\ny\n", "line 3: 1 fields where the header has 2"),
        ("a.csv", "question,answer\nx,1\ny,2,3\n", "line 3: 3 fields where the header has 2"),
        ("a.csv", 'question,answer\nx,1\n"y,2\n', "line 3: not CSV"),
        ("a.csv", "question,answer\nx,1\ny,\n", "line 3: field 'answer' is empty"),
        ("a.csv", "question,answer\nx,1\ny,two\n", "line 3: the gold answer 'two' is not a number"),
        ("a.csv", "question,answer,answer,,\nx,1,2,,\n", r"a\.csv has two columns 'answer'"),
        ("a.csv", "question,reply\nx,1\n", "there is no column 'answer', only 'question', 'reply'"),
        ("a.json", '[{"question": "x",\n "answer" 1}]', r"a\.json, line 2: not JSON"),
        ("a.json", '[{"question": "x", "answer": 1}, 2]', "row 1: 2 is not an object"),
        ("a.jsonl", '{"question": "x", "answer": 1}\n{"question": "x"}', "line 2: there is no field 'answer'"),
        ("a.jsonl", '{"question": "x", "answer": {"is": 1}}', r"line 1: field 'answer' is \{'is': 1\}"),
        ("a.jsonl", '{"question": "x", "answer": [true]}', "line 1: field 'answer' is True"),
        ("a.jsonl", '{"question": "x", "answer": []}', "line 1: field 'answer' is empty"),
        ("a.jsonl", '{"question": "x", "answer": Infinity}', "line 1: field 'answer' is inf"),
        ("a.jsonl", '{"question": "x", "answer": "4\\n####"}', "line 1: field 'answer' does not end"),
        ("a.parquet", "no", "is not a Parquet file"),
        ("a.txt", "x", r"a\.txt is none of \.jsonl"),
    ],
)
def test_bad_files_are_named_with_row_and_field(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        Dataset(str(tmp_path / name), **WHOLE)


GOOD, TWICE = '{"question": "x", "answer": 1}', '{"question": "y", "about": [{"by": "me", "by": "you"}], "answer": 3}'


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("a.jsonl", f"{GOOD}\n\n{TWICE}\n{GOOD}", r"a\.jsonl, line 3"),
        ("a.json", f"[{GOOD},\n{TWICE},{GOOD}]", r"a\.json, row 1"),
        ("a.json", f"{GOOD}\n{TWICE}\n{GOOD}", r"a\.json, line 2"),
    ],
)
def test_a_row_with_a_key_twice_is_named_with_the_key(tmp_path: Path, name: str, text: str, place: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{place}: the key 'by' is given twice: leave one of them out"):
        Dataset(tmp_path / name, **WHOLE)
    assert len(Dataset(tmp_path / name, on_bad_row="skip", **WHOLE)) == 2


def test_a_file_of_one_problem_with_a_key_twice(tmp_path: Path) -> None:
    (tmp_path / "7.json").write_text(TWICE)
    with pytest.raises(ValueError, match=r"7\.json: the key 'by' is given twice"):
        read_folder(tmp_path)


def test_a_parquet_file_with_a_column_twice(tmp_path: Path) -> None:
    pq.write_table(pa.table([["x"], ["1"], ["2"]], ["question", "answer", "answer"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has two columns 'answer': rename one of them"):
        Dataset(tmp_path / "a.parquet", **WHOLE)


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"question": "\xff", "answer": 1}')
    with pytest.raises(ValueError, match=r"a\.jsonl is not UTF-8"):
        Dataset(tmp_path / "a.jsonl")
    (tmp_path / "b.csv").write_bytes("\ufeffquestion,answer\nx,1\n".encode())  # Excel's byte order mark
    assert Dataset(tmp_path / "b.csv", **WHOLE)[0].question == "x"


def test_splits_without_rows(tmp_path):
    data = write(tmp_path / "mine.csv", ROWS[:3])
    assert Dataset(data).size == 3
    with pytest.raises(ValueError, match=r"no test split, and test=0\.1 of its 3 rows are none: raise"):
        Dataset(data, split="test")
    with pytest.raises(ValueError, match=r"validation=0\.6 and test=0\.4"):
        Dataset(data, validation=0.6, test=0.4)
    with pytest.raises(ValueError, match="lower validation and test"):
        Dataset(write(tmp_path / "same.csv", [ROWS[0]] * 10))  # one question cannot be in two splits


@pytest.mark.parametrize("data", ["no.jsonl", "./owner/name", "../name", "no", "a/b/c", "a/b.csv", "/a/b", Path("a/b")])
def test_what_is_neither_here_nor_on_the_hub(data):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        Dataset(data)


def test_hub_data_sets_load_at_first_use(monkeypatch, tmp_path):
    tables = {"train": ROWS[:30], "test": ROWS[30:]}
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list(tables[split])

    def get_dataset_split_names(name, config):
        return list(tables)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", get_dataset_split_names)
    sources = {split: Dataset("owner/name", split=split, config="small") for split in SPLITS}
    assert asked == []
    assert {split: source.size for split, source in sources.items()} == {"train": 27, "validation": 3, "test": 10}
    assert asked == [("owner/name", "small", split) for split in ("train", "train", "test")]
    assert sources["test"][0].id == "owner/name-test-0"
    del tables["train"]
    with pytest.raises(ValueError, match="no train split and none to carve it from, only test"):
        len(Dataset("owner/name"))
    tables["train"] = []
    with pytest.raises(ValueError, match="split 'train', has no rows"):
        len(Dataset("owner/name"))
    monkeypatch.setattr(datasets, "load_dataset", None)
    with pytest.raises(OSError, match="'owner/name', split 'test', cannot be read"):
        len(Dataset("owner/name", split="test"))
    monkeypatch.delattr(datasets, "get_dataset_split_names")
    with pytest.raises(OSError, match="'owner/name' cannot be read from the hub"):
        len(Dataset("owner/name"))
    with pytest.raises(ValueError, match="config='small' is for data sets on the hub"):
        Dataset(write(tmp_path / "mine.csv", ROWS), config="small")


def test_a_file_of_any_split_that_is_not_there_is_a_slip_of_its_name(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    with pytest.raises(FileNotFoundError, match=r"no such file for the test split: .*tset\.jsonl"):
        Dataset(tmp_path, split_files={"train": "mine.jsonl", "test": "tset.jsonl"})


def test_a_pipe_is_no_file_that_each_split_could_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(ValueError, match=r"pipe\.jsonl is no file and no folder"):
        Dataset(tmp_path / "pipe.jsonl")
