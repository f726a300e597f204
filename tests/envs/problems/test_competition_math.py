"""MATH's format, local and small."""

import json
import pickle
from pathlib import Path

import gymnasium as gym
import pytest

from tokengym import models
from tokengym.envs import MATH, Problem, diagnose
from tokengym.envs.problems import MissingSplitError
from tokengym.envs.problems import tables as rows_module
from tokengym.registry import UnknownNameError

TRAIN = [
    {
        "problem": rf"What is $\frac{{{n}}}{{3}}$ of $2$?",
        "level": f"Level {1 + n % 5}",
        "type": "Algebra",
        "solution": rf"It is not $\boxed{{{n}}}$ but" + "\n\n" + rf"$\boxed{{\frac{{{2 * n}}}{{3}}}}$.",
    }
    for n in range(45)
]
TEST = [{"problem": "What is $1+1$?", "solution": r"$1+1=\boxed{2}.$"}]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, TRAIN)))
    (tmp_path / "test.json").write_text(json.dumps(TEST))
    return tmp_path


def test_splits_are_the_published_ones_and_validation_is_carved_out_of_train(folder):
    splits = {split: MATH(split, folder) for split in ("train", "validation", "test")}
    assert {split: len(source) for split, source in splits.items()} == {"train": 42, "validation": 3, "test": 1}
    ids = {split: {problem.id for problem in source.problems} for split, source in splits.items()}
    assert ids["train"] | ids["validation"] == {f"math-train-{n}" for n in range(45)}
    assert not ids["train"] & ids["validation"]
    assert splits["test"][0] == Problem("math-test-0", "What is $1+1$?", "2", r"$1+1=\boxed{2}.$")
    assert MATH("train", folder / "train.jsonl").problems == splits["train"].problems
    assert splits["train"].find("math-train-" + next(iter(ids["train"])).rpartition("-")[2]).answer.startswith(r"\frac")


def test_the_published_folders(tmp_path):
    files = {"algebra/10.json": TRAIN[10], "algebra/2.json": TRAIN[2], "geometry/0.json": TRAIN[0]}
    for split in ("train", "test"):
        for name, row in files.items():
            path = tmp_path / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(row))
        (tmp_path / split / "algebra" / "README").write_text("not read")
    source = MATH("test", tmp_path)
    assert [problem.id for problem in source.problems] == [
        "math-test-algebra-2",
        "math-test-algebra-10",
        "math-test-geometry-0",
    ]
    assert source[1].answer == r"\frac{20}{3}"
    assert {p.id for p in MATH("train", tmp_path).problems} == {
        "math-train-algebra-2",
        "math-train-algebra-10",
        "math-train-geometry-0",
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("3.json", "{", r"3\.json, line 1: not JSON"),
        ("3.json", "[1]", r"3\.json: \[1\] is not an object with named fields"),
        ("3.json", '{"problem": "1+1?"}', r"3\.json: there is no field 'solution'"),
        ("3.json", "\xff", r"3\.json is not UTF-8 text"),
        ("x.json", "{}", r"x\.json: the files of algebra hold one problem each and are named by their numbers"),
        ("README", "", "algebra has no files of one problem each"),
    ],
)
def test_a_bad_file_of_the_published_folders_is_named(tmp_path, name, text, message):
    path = tmp_path / "test" / "algebra" / name
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        MATH("test", tmp_path)


def test_limits_fill_the_embedded_model_and_long_prompts_are_passed_over(tmp_path):
    long = {"problem": "[asy] draw((0,0)--(1,1)); [/asy]" * 100, "solution": r"\boxed{1}"}
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, [long, *TEST])))
    env = gym.make_vec("tokengym/MATH-v0", 3, data=str(tmp_path), split="test", vectorization_mode="vector_entry_point")
    _, infos = env.reset(seed=0)
    assert infos["problem_id"].tolist() == ["math-test-1"] * 3
    positions = json.loads((Path(models.__file__).parent / "tiny" / "config.json").read_text())[
        "max_position_embeddings"
    ]
    assert env.single_observation_space["input_ids"].shape == (positions,)


def test_graded_by_value_and_pickled_without_the_worker(folder):
    source = MATH("train", folder)
    problem = source.find("math-train-4") if "math-train-4" in {p.id for p in source.problems} else source[0]
    n = int(problem.id.rpartition("-")[2])
    assert problem.answer == rf"\frac{{{2 * n}}}{{3}}"
    assert source.grade(rf"so \boxed{{\dfrac{{{4 * n}}}{{6}}}}", problem).correct
    again = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert again.grade(rf"\boxed{{{2 * n}/3 + 1}}", problem).reason == "wrong"
    assert again.grade(f"#### {problem.answer}", problem).reason == "no_answer"


def test_an_attempt_in_the_registered_environment(folder):
    env = gym.make(
        "tokengym/MATH-v0", data=str(folder), split="test", tokenizer="chars:\\boxed{}2+$ ", prompt="{question}"
    )
    slots = env.unwrapped.slots
    slots.encoder.encode_prompt = lambda problem: slots.encoder.encode("2+2")
    env.reset()
    for token in [*slots.encoder.encode(r"$\boxed{2}$"), slots.tokenizer.eos_token_id]:
        _, reward, terminated, _, info = env.step(token)
    assert (reward, terminated, info["verdict"], info["answer"]) == (1.0, True, "correct", "2")


def test_the_doctor_finds_nothing_in_gold_answers(folder):
    assert diagnose(MATH("test", folder)).findings == ()


def test_the_hubs_subjects_are_one_table(monkeypatch):
    asked = []

    def read_hub(name, config, split):
        asked.append((name, config, split))
        return [rows_module.Row(0, f"{config} row 0", {**TRAIN[0], "problem": f"of {config}"})]

    monkeypatch.setattr("tokengym.envs.problems.competition_math.read_hub", read_hub)
    source = MATH("test")
    assert not asked
    assert source[0].id == "math-test-algebra-0"
    assert len(source) == len(asked) == 7
    assert {(name, split) for name, _, split in asked} == {("EleutherAI/hendrycks_math", "test")}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "1+1?", "solution": "it is 2"}, r"line 1: field 'solution' has no answer in a \\boxed"),
        ({"problem": "1+1?", "solution": r"\boxed{2"}, "has no answer in a"),
        ({"problem": "1+1?", "solution": r"\boxed{2} \boxed{}"}, "has no answer in a"),
        ({"problem": "1+1?", "solution": rf"\boxed{{{'2' * 257}}}"}, "has 257 characters, over the grader's 256"),
        ({"problem": "1+1?"}, "line 1: there is no field 'solution', only 'problem'"),
        ({"problem": "", "solution": r"\boxed{2}"}, "field 'problem' is empty"),
    ],
)
def test_malformed_rows_are_named(tmp_path, row, message):
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        MATH("test", tmp_path)


def test_other_bad_arguments(folder, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'test'"):
        MATH("tset", folder)
    with pytest.raises(FileNotFoundError, match="no/such"):
        MATH("train", "no/such.jsonl")
    (folder / "test.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither folders test/algebra and so on nor a file test\.jsonl"):
        MATH("test", folder)
    with pytest.raises(MissingSplitError, match="has no test problems"):
        MATH("test", folder / "train.jsonl")
    (folder / "train.jsonl").write_text(json.dumps(TRAIN[0]))
    with pytest.raises(ValueError, match="1 train rows: too few to hold some out"):
        MATH("validation", folder)


@pytest.mark.parametrize(
    ("question", "solution", "answer", "ends"),
    [
        ("Enter all values, separated by commas.", r"$x = \boxed{-1}$ or $x = \boxed{2}$.", "-1, 2", r"\boxed{2}$."),
        ("What is $a+b$?", r"It is $\boxed{\frac{7+\sqrt2}{3}}$, so $\boxed{12}$.", "12", r"\boxed{12}$."),
        ("Which vertex?", r"$\boxed{(1,0)}$ (or $\boxed{(0,0)}$).", "(0,0)", r"\boxed{(0,0)}$)."),
        (r"Fill $\boxed{\phantom{2}}=7$.", r"$\boxed{\phantom{2}}=7$ if it is $\boxed{7}$.", "7", r"\boxed{7}$."),
        (r"$\boxed{N}$ is $2N$. What is $\boxed{5}$?", r"$\boxed{5}=2$, so $\boxed{2}$.", "2", r"\boxed{2}$."),
    ],
)  # fmt: skip
def test_solutions_with_several_boxes_grade_right(tmp_path, question, solution, answer, ends):
    (tmp_path / "test.jsonl").write_text(json.dumps({"problem": question, "solution": solution}))
    source = MATH("test", tmp_path)
    problem = source[0]
    assert problem.answer == answer
    assert problem.solution.endswith(ends)
    assert source.grade(problem.solution, problem).correct


def test_a_formula_of_the_question_in_a_box_earns_nothing(tmp_path):
    row = {"problem": r"Simplify $\sqrt{180}$.", "solution": r"It is $\boxed{6\sqrt5}$."}
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    source = MATH("test", tmp_path)
    assert source.grade(r"\boxed{\sqrt{180}}", source[0]).reason == "unparsed"
    assert source.grade(r"\boxed{\sqrt{36}\sqrt5}", source[0]).reason == "unparsed"
    assert source.grade(r"\boxed{6\sqrt{5}}", source[0]).correct
