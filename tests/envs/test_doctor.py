import json
import string

import pytest
from tokenizers.processors import TemplateProcessing

from tokengym.envs import MATH
from tokengym.envs.doctor import check_annotation, diagnose, diagnose_env
from tokengym.envs.problems.arithmetic import Arithmetic
from tokengym.envs.problems.base import SPLITS, Problem, ProblemList
from tokengym.envs.problems.dataset import Dataset
from tokengym.models.tokenizers import EOS, load_tokenizer
from tokengym.rewards import grade

CHARACTERS = "chars:" + string.printable
"""One token per character."""


def healthy(count: int = 4, prefix: str = "p") -> list[Problem]:
    return [
        Problem(
            f"{prefix}-{i}", f"What is {prefix}{i} for {i}+1?", f"{i + 1}", f"{i}+1 = <<{i}+1={i + 1}>>\n#### {i + 1}"
        )
        for i in range(count)
    ]


def found(*sources: ProblemList, **options) -> list[tuple[str, str, str, int, str]]:
    return [(f.severity, f.check, f.split, f.index, f.problem_id) for f in diagnose(sources, **options).findings]


def test_a_healthy_set_has_no_findings():
    findings = diagnose([ProblemList(healthy(), "train"), ProblemList(healthy(prefix="q"), "test")])
    assert findings.findings == findings.errors == findings.warnings == ()
    assert list(findings.checked.values()) == [4, 4]


@pytest.mark.parametrize("style", ["word", "equation"])
def test_endless_sources_are_sampled(style):
    findings = diagnose([Arithmetic(split, style=style) for split in SPLITS], limit=50)
    assert findings.findings == ()
    assert list(findings.checked.values()) == [50, 50, 50]
    # Few problems repeat in an endless source by its nature.
    assert diagnose(Arithmetic(max_value=5, steps=1, style=style), limit=200).findings == ()


@pytest.mark.parametrize(
    ("fault", "severity", "check", "message"),
    [
        (Problem("bad", "?", "four"), "error", "gold_answer", "'four'"),
        (
            Problem("bad", "?", "4", "2+2\n#### 5"),
            "error",
            "gold_answer",
            "the gold solution grades as wrong, with 5 for 4",
        ),
        (Problem("bad", "?", "4", "2+2 = 4"), "error", "gold_answer", "the gold solution grades as no_answer"),
        (Problem("bad", "?", "4", "#### 4"), "warning", "solution_steps", "no step"),
        (
            Problem("bad", "?", "4", "<<2+2=5>>\n#### 4"),
            "warning",
            "annotation",
            "<<2+2=5>> does not compute: it gives 4",
        ),
        (Problem("bad", "?", "4", "<<2+two=4>>\n#### 4"), "warning", "annotation", "cannot be read"),
        (Problem("bad", "what IS p1\nfor 1+1?", "2"), "warning", "duplicate", "asks the same as p-1"),
        (Problem("bad", "What is p1 for 1+1?", "3"), "error", "duplicate", "the answer 3 for 2"),
        (Problem("bad", "What is q3 for 3+1?", "4"), "error", "overlap", "asks the same as q-3 of test"),
    ],
)
def test_each_planted_fault_is_found_with_its_row(fault, severity, check, message):
    planted = ProblemList([*healthy(), fault, *healthy(prefix="r")], "train")
    findings = diagnose([ProblemList(healthy(prefix="q"), "test"), planted])
    (finding,) = findings.findings
    assert (finding.severity, finding.check) == (severity, check)
    assert (finding.split, finding.index, finding.problem_id) == ("train", 4, "bad")
    assert message in finding.message
    assert str(finding) == f"{severity}: bad (train 4): {finding.message}"
    assert findings.errors + findings.warnings == (finding,)


def test_findings_name_rows_of_a_file(tmp_path):
    rows = [{"question": f"{i}?", "answer": f"<<{i}+1={i + 1}>>\n#### {i + 1}"} for i in range(9)]
    rows[6]["answer"] = "<<6+1=8>>\n#### 7"
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (finding,) = diagnose(Dataset(tmp_path / "mine.jsonl", validation=0, test=0)).findings
    assert finding.problem_id == "mine-6"


def test_token_limits():
    problems = healthy(3)
    problems.insert(1, Problem("long", "x" * 100, "4", "y" * 100 + "\n#### 4"))
    source = ProblemList(problems, "validation")
    prompt, solution = len("Q: " + "x" * 100 + "\nA:\n"), len("y" * 100 + "\n#### 4") + 1
    assert found(source, tokenizer=CHARACTERS, max_prompt_tokens=prompt, max_new_tokens=solution) == []
    assert found(source, tokenizer=CHARACTERS, max_prompt_tokens=prompt - 1, max_new_tokens=solution - 1) == [
        ("error", "prompt_length", "validation", 1, "long"),
        ("warning", "solution_length", "validation", 1, "long"),
    ]
    # A shorter template makes room.
    assert found(source, tokenizer=CHARACTERS, max_prompt_tokens=100, prompt="{question}") == []
    with pytest.raises(ValueError, match="needs the tokenizer"):
        diagnose(source, max_prompt_tokens=10)


def test_worked_examples_count_as_part_of_prompts():
    source, example = ProblemList(healthy(1)), ProblemList(healthy(2, "e"), "validation")
    prompt = len(f"Q: {healthy(1)[0].question}\nA:\n")
    limits = {"tokenizer": CHARACTERS, "max_prompt_tokens": prompt}
    assert found(source, **limits) == []
    assert found(source, **limits, shots=1, examples=example) == [("error", "prompt_length", "train", 0, "p-0")]
    splits = ProblemList({"train": healthy(1), "validation": healthy(2, "e")})
    findings = diagnose_env("tokengym/Dataset-v0", problems=splits, shots=1, **limits)
    assert [finding.check for finding in findings.errors if finding.split == "train"] == ["prompt_length"]


def test_special_tokens_count_as_part_of_prompts():
    tokenizer = load_tokenizer(CHARACTERS)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{EOS} $A", special_tokens=[(EOS, tokenizer.eos_token_id)]
    )
    source = ProblemList(healthy(1))
    limits = {"tokenizer": tokenizer, "max_prompt_tokens": len(f"Q: {source[0].question}\nA:\n")}
    assert found(source, **limits) == [("error", "prompt_length", "train", 0, "p-0")]


def test_a_source_grades_by_its_own_rules():
    class Boxed(ProblemList):
        def grade(self, completion, problem):
            return grade(completion, problem.answer, marker="ANSWER:")

    assert found(Boxed([Problem("a", "?", "4", "2+2\nANSWER: 4")])) == [("error", "gold_answer", "train", 0, "a")]
    assert [finding.message for finding in diagnose(Boxed([Problem("a", "?", "4")])).findings] == [
        "the gold answer grades as no_answer, with None for 4"
    ]


def test_all_malformed_rows_are_listed_once_and_the_others_checked(tmp_path):
    lines = [json.dumps({"question": f"{i}?", "answer": f"<<{i}+1={i + 1}>>\n#### {i + 1}"}) for i in range(9)]
    lines[2], lines[5] = "{not JSON", json.dumps({"question": "5?", "answer": "no marker"})
    lines[7] = json.dumps({"question": "7?", "answer": "<<7+1=9>>\n#### 8"})
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    findings = diagnose_env("tokengym/Dataset-v0", data=str(tmp_path / "mine.jsonl"), validation=0.2, test=0.2)
    rows = [finding for finding in findings.findings if finding.check == "row"]
    assert len(rows) == 2
    assert "line 3" in rows[0].message
    assert "line 6" in rows[1].message
    assert str(rows[0]) == f"error: {rows[0].message}"
    assert [finding.problem_id for finding in findings.findings if finding.check == "annotation"] == ["mine-7"]
    assert sum(findings.checked.values()) == 7


def test_the_splits_that_are_there_are_checked(tmp_path):
    row = {"problem": "1+1?", "solution": r"It is $\boxed{2}$."}
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    findings = diagnose_env("tokengym/MATH-v0", data=str(tmp_path))
    assert list(findings.absent) == ["train", "validation"]
    assert "train.jsonl" in findings.absent["train"]
    assert list(findings.checked.values()) == [1]
    assert findings.errors == ()
    with pytest.raises(FileNotFoundError, match="no such file"):
        diagnose_env("tokengym/MATH-v0", data=str(tmp_path / "nowhere"))


def test_gold_answers_that_only_their_own_text_can_equal_are_named(tmp_path):
    gold = "the correct answer as we normally do"
    rows = [{"problem": f"{i}?", "solution": rf"$\boxed{{{i}}}$"} for i in range(3)]
    rows.append({"problem": "Which?", "solution": rf"\boxed{{{gold}}}"})
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (finding,) = diagnose(MATH("test", tmp_path)).findings
    assert (finding.severity, finding.check, finding.problem_id) == ("warning", "gold_answer", "math-test-3")
    assert gold in finding.message


@pytest.mark.parametrize(
    "annotation",
    ["48/2=24", "10*.2=2", "20*(1/4)=5", "$1,000 + 5 = 1005", "10/3=3.33", "2/3=.66", "2/3=.67", "20%*50=10",
     "1+1=4/2=2", "50=50"],
)  # fmt: skip
def test_annotations_that_compute(annotation):
    assert check_annotation(annotation) is None


@pytest.mark.parametrize(
    ("annotation", "complaint"),
    [
        ("48/2=25", "does not compute: it gives 24"),
        ("10/3=3", "does not compute: it gives 3.33333"),
        ("10/3=3.4", "does not compute"),
        ("10/3=3.35", "does not compute"),
        ("1/2=45.0%", "does not compute: it gives 0.5"),
        ("1+1=2=3", "does not compute: it gives 2"),
        ("48/2", "has no result"),
        ("560//10=56", "cannot be read"),
        ("2x3=6", "cannot be read"),
        ("__import__('os')=1", "cannot be read"),
        ("9**9**9=1", "cannot be read"),
        ("1/0=1", "cannot be read"),
        ("", "cannot be read"),
        ("=", "cannot be read"),
    ],
)
def test_annotations_that_do_not(annotation, complaint):
    assert complaint in (check_annotation(annotation) or "")


def test_the_command_prints_some_findings_of_each_kind(tmp_path, capsys):
    from tokengym.__main__ import main

    rows = [{"question": "again?", "answer": "1"}] * 5 + [{"question": f"{i}?", "answer": "x"} for i in range(4)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["doctor", "tokengym/Dataset-v0", "--data", str(path), "--env-args", "validation=0", "test=0"]
    with pytest.raises(SystemExit):
        main([*command, "--show", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert sum("asks the same" in line for line in lines) == 2
    assert "warning: 2 more of duplicate in train: --show 0 prints all" in lines
    assert "error: 2 more of row in train: --show 0 prints all" in lines
    with pytest.raises(SystemExit):
        main([*command, "--show", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert sum("asks the same" in line for line in lines) == 4
    assert sum("'x' is not a number" in line for line in lines) == 4


@pytest.mark.parametrize(
    ("test_rows", "fault"),
    [(b"\xff\xfe", "is not UTF-8 text"), (b"", "has no rows"), (b'{"a": 1}\n', "there is no column 'question'")],
)
def test_a_split_that_is_there_and_cannot_be_read_is_an_error(tmp_path, test_rows, fault):
    rows = [{"question": f"{i}?", "answer": str(i)} for i in range(10)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_bytes(test_rows)
    findings = diagnose_env("tokengym/Dataset-v0", data=str(tmp_path), validation=0)
    (error,) = findings.errors
    assert (error.check, error.split, error.index) == ("split", "test", -1)
    assert fault in error.message
    assert list(findings.absent) == ["validation"]
    assert list(findings.checked.values()) == [10]


def test_numbers_to_check_and_to_show_are_counts(capsys):
    from tokengym.__main__ import main

    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        diagnose([], limit=0)
    for option, least in (("limit", 1), ("show", 0)):
        assert main(["doctor", f"--{option}", "-1"]) == 1
        assert f"{option} must be at least {least}, got -1" in capsys.readouterr().err


def test_a_row_that_is_left_out_of_every_split_is_listed_once(tmp_path):
    rows = [{"question": f"{i}?", "answer": "x" if i == 7 else str(i)} for i in range(30)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    findings = diagnose_env("tokengym/Dataset-v0", data=str(tmp_path / "mine.jsonl"), on_bad_row="skip")
    assert len(findings.checked) == 3
    (error,) = findings.errors
    assert "line 8" in error.message
