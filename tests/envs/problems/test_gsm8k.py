import json
import os
import pickle
from pathlib import Path

import datasets
import pytest

from tokengym.envs.problems.base import SPLITS, MissingSplitError, make_problems
from tokengym.envs.problems.gsm8k import GSM8K
from tokengym.registry import UnknownNameError

TRAIN_ROWS, TEST_ROWS = 500, 12


def row(number: int) -> dict[str, str]:
    answer = f"{number} twice is 2*{number} = <<2*{number}={2 * number}>>{2 * number}.\n#### {2 * number:,}"
    return {"question": f"What is {number} twice?", "answer": answer}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(TRAIN_ROWS)))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row(1000 + i)) + "\n" for i in range(TEST_ROWS)))
    return tmp_path


def test_the_last_473_train_rows_are_the_validation_split(folder):
    train, validation, test = (GSM8K(split, data=str(folder)) for split in SPLITS)
    assert [source.size for source in (train, validation, test)] == [27, 473, 12]
    assert [problem.question for problem in (*train, *validation)] == [row(i)["question"] for i in range(TRAIN_ROWS)]
    assert (train[0].id, validation[0].id, test[0].id) == ("gsm8k-train-0", "gsm8k-train-27", "gsm8k-test-0")
    assert validation[0].answer == "54"
    assert test[0].answer == "2,000"
    assert test[0].solution == row(1000)["answer"]
    assert test.grade("#### 2000", test[0]).correct
    assert validation.find("gsm8k-train-499") == validation[472]
    with pytest.raises(ValueError, match="has no problem 'gsm8k-train-27'"):
        train.find("gsm8k-train-27")


def test_one_of_the_files_will_do(folder):
    assert GSM8K("validation", data=folder / "train.jsonl").size == 473
    assert GSM8K("test", data=folder / "test.jsonl").size == TEST_ROWS
    for split, file in (("test", "train.jsonl"), ("train", "test.jsonl")):
        with pytest.raises(MissingSplitError, match=f"no {split} problems"):
            GSM8K(split, data=folder / file)
    (folder / "train.jsonl").rename(folder / "latest.jsonl")
    assert GSM8K(data=folder / "latest.jsonl").size == 27, "'latest' is no test"


def test_a_source_pickles(folder):
    source = pickle.loads(pickle.dumps(GSM8K(data=str(folder))))  # noqa: S301 - our own pickle
    (folder / "train.jsonl").unlink()
    assert source.size == 27


def test_bad_input_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r"nowhere"):
        GSM8K(data="nowhere")
    with pytest.raises(UnknownNameError, match="'validation'"):
        GSM8K(split="valid")
    (folder / "test.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.jsonl"):
        GSM8K("test", data=folder)
    (folder / "train.jsonl").write_text(json.dumps(row(1)) + "\n")
    with pytest.raises(ValueError, match="has 1 rows"):
        GSM8K(data=folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "a"', "line 3: not JSON"),
        ("[1, 2]", r"line 3: \[1, 2\] is not an object"),
        ('{"question": "a"}', "line 3: there is no field 'answer', only 'question'"),
        ('{"answer": "#### 4"}', "line 3: there is no field 'question'"),
        ('{"question": " ", "answer": "#### 4"}', "line 3: field 'question' is empty"),
        ('{"question": null, "answer": "#### 4"}', "line 3: field 'question' is None"),
        ('{"question": "a", "answer": "4"}', "line 3: field 'answer' does not end with '#### answer'"),
        ('{"question": "a", "answer": "4\\n#### "}', "line 3: field 'answer' does not end with '#### answer'"),
        ('{"question": "a", "answer": "4\\n#### four"}', "line 3: the gold answer 'four' is not a number"),
        ('{"question": "a", "answer": "4\\n#### inf"}', "line 3: the gold answer 'inf' is not a number"),
        ('{"question": "a", "answer": "4\\n#### 12,34"}', "line 3: the gold answer '12,34' is not a number"),
        ('{"question": "a", "n": ' + "9" * 5000 + "}", "line 3: not JSON"),
        ("[" * 100_000, "line 3: not JSON"),
    ],
)
def test_a_malformed_row_is_named(folder, line, message):
    (folder / "test.jsonl").write_text(f"{json.dumps(row(1))}\n\n{line}\n")
    with pytest.raises(ValueError, match=rf"test\.jsonl, {message}"):
        GSM8K("test", data=folder)


def test_the_hub_is_asked_at_first_use_and_once(monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([row(i) for i in range(TRAIN_ROWS if split == "train" else TEST_ROWS)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    sources = [make_problems("gsm8k", split=split) for split in SPLITS]
    pickle.dumps(sources)
    assert asked == []
    assert [source.size for source in sources] == [27, 473, 12]
    assert [source[0].answer for source in sources] == ["0", "54", "0"]
    assert asked == [("openai/gsm8k", "main", split) for split in ("train", "train", "test")]


def test_an_unreachable_hub_is_one_clear_error(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(OSError, match=r"'openai/gsm8k' \(main\), split 'train'.*no route"):
        GSM8K()[0]


@pytest.mark.skipif("TOKENGYM_DATA" not in os.environ, reason="TOKENGYM_DATA names no folder with the real data")
def test_the_original_files():
    sources = [GSM8K(split, data=Path(os.environ["TOKENGYM_DATA"]) / "gsm8k") for split in SPLITS]
    assert [source.size for source in sources] == [7000, 473, 1319]
    assert len({problem.question for source in sources for problem in source}) == 8792
    for source in sources:
        for problem in source:
            assert source.grade(problem.solution or "", problem).correct, problem
