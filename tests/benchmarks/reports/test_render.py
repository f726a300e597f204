"""Attempts to look at: read from runs as they were recorded, shown whole in a terminal, as a picture and as a page."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console

from tokengym.__main__ import main
from tokengym.agents import SFT
from tokengym.agents.rollouts.attempts import Attempt, AttemptFile
from tokengym.agents.rollouts.source import fingerprint
from tokengym.benchmarks.reports.content import AttemptRecord, StepRecord
from tokengym.benchmarks.reports.gather import Wanted, gather
from tokengym.benchmarks.reports.html import attempts_page
from tokengym.benchmarks.reports.terminal import attempt_panel, picture
from tokengym.envs import Problem, ProblemList, TokenVectorEnv, make_vec_env
from tokengym.envs.registration import make_spec
from tokengym.models import load_tokenizer
from tokengym.registry import UnknownNameError

RECORD = AttemptRecord(
    "PPO", "p-1", "How many?", "7", "wrong", "8",
    (StepRecord("3+4 = 8\n", 0.0, 0.25), StepRecord("#### 8\n", -0.5, 0.1), StepRecord("", 0.0)),
)  # fmt: skip


def shown(record: AttemptRecord, width: int = 80, **settings) -> str:
    console = Console(file=io.StringIO(), width=width, **settings)
    console.print(attempt_panel(record))
    return console.file.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with a collection at training and one at validation problems: two solutions and one cut off."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    for split, name in (("train", "round-1"), ("validation", "validation")):
        env = make_vec_env("tokengym/Arithmetic-v0", 1, tokenizer="tokengym/tiny", split=split)
        (folder / name).mkdir(parents=True)
        with AttemptFile(folder / name / "attempts-0.jsonl") as file:
            for number in range(3):
                problem = env.problems[number]
                tokens = env.encode_solution(problem).astype(np.int32)
                wrong = number == 1
                tokens = tokens[:-4] if wrong else tokens
                rewards = np.zeros(len(tokens), np.float32)
                rewards[-1] = not wrong
                verdict, answer = ("no_answer", None) if wrong else ("correct", problem.answer)
                logprobs = np.zeros(len(tokens), np.float32)
                prompt = env.encode_prompt(problem)
                file.write(
                    Attempt(problem, 0, prompt, tokens, logprobs, rewards, not wrong, verdict, answer, not wrong)
                )
    spec = gym.spec("tokengym/Arithmetic-v0").to_json()
    (folder / "config.json").write_text(json.dumps({"agent": "ei", "model": "tokengym/tiny", "env": spec}))
    return folder


def spec_of(own):
    assert own is not None
    return own


def test_outcome_models_that_score_no_steps_are_named_before_any_attempt_is_made(tmp_path) -> None:
    load_tokenizer("chars:01").save_pretrained(tmp_path)
    (tmp_path / "outcome_model.json").write_text('{"kind": "preference"}')
    with pytest.raises(ValueError, match=r"a score beside each step needs p\(correct\), .* is a preference model"):
        gather("nobody/nothing", Wanted(), spec_of, orm=tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean 'tokengym/tiny-orm'"):
        gather("nobody/nothing", Wanted(), spec_of, orm="tokengym/tiny_orm")


def test_recorded_attempts_are_those_of_their_split_with_their_rewards(run: Path) -> None:
    found = gather(run, Wanted(), spec_of)
    assert {(a.system, a.problem_id.split("-")[1]) for a in found} == {("round-1", "train"), ("validation",) * 2}
    for attempt in found:
        split = attempt.problem_id.split("-")[1]
        problem = make_vec_env("tokengym/Arithmetic-v0", 1, tokenizer="tokengym/tiny", split=split).problems.find(
            attempt.problem_id
        )
        text = "".join(step.text for step in attempt.steps)
        assert (attempt.question, attempt.reference) == (problem.question, problem.answer)
        assert problem.solution is not None
        assert problem.solution.startswith(text.strip())
        assert (text.strip() == problem.solution) == (attempt.verdict == "correct")
        assert [step.reward for step in attempt.steps][-1] == sum(step.reward for step in attempt.steps)
        assert sum(step.reward for step in attempt.steps) == (attempt.verdict == "correct")


def test_attempts_are_chosen_by_number_verdict_problem_and_file(run: Path) -> None:
    assert [a.verdict for a in gather(run, Wanted(2, "correct"), spec_of)] == ["correct"] * 2
    assert {a.verdict for a in gather(run, Wanted(verdict="no_answer"), spec_of)} == {"no_answer"}
    assert len(gather(run, Wanted(4), spec_of)) == 4  # more than one collection has
    found = gather(run / "round-1" / "attempts-0.jsonl", Wanted(), spec_of)
    assert [a.system for a in found] == ["round-1"] * 3
    (one,) = gather(run, Wanted(problem=found[1].problem_id), spec_of)
    assert one == found[1]
    with pytest.raises(ValueError, match="no attempts with the verdict 'nope'"):
        gather(run, Wanted(verdict="nope"), spec_of)
    with pytest.raises(ValueError, match="at least 1"):
        Wanted(0)


@pytest.mark.parametrize("line", [b"garbage", b"[1, 2]", b"{}", b'{"problem_id": 5}', b"\xff\xfe"])
def test_a_file_of_something_else_than_attempts_is_named(run: Path, tmp_path: Path, line: bytes) -> None:
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    (tmp_path / "attempts-0.jsonl").write_bytes(line + b"\n")
    with pytest.raises(ValueError, match=r"attempts-0\.jsonl, line 1 is no attempt: restore the file"):
        gather(tmp_path, Wanted(), spec_of)


@pytest.mark.parametrize(("part", "digest"), [("round-1", "data"), ("validation", "validation")])
def test_attempts_are_not_shown_beside_other_problems_of_the_same_ids(
    run: Path, tmp_path: Path, part: str, digest: str
) -> None:
    """The problems of one step have the ids of those with two to four."""
    (tmp_path / "attempts-0.jsonl").write_text((run / part / "attempts-0.jsonl").read_text())
    split = "train" if part == "round-1" else part
    problems = make_vec_env("tokengym/Arithmetic-v0", 1, tokenizer="tokengym/tiny", split=split).problems
    config = json.loads((run / "config.json").read_text()) | {digest: fingerprint(problems)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert len(gather(tmp_path, Wanted(), spec_of)) == 3

    def other(own: gym.envs.registration.EnvSpec | None) -> gym.envs.registration.EnvSpec:
        spec = spec_of(own)
        spec.kwargs["steps"] = 1
        return spec

    with pytest.raises(ValueError, match=r"attempts-0\.jsonl are at other problems than Arithmetic\(.* has now"):
        gather(tmp_path, Wanted(), other)


def test_a_model_whose_environment_was_made_by_hand_is_named(tmp_path: Path, capsys) -> None:
    env = TokenVectorEnv(ProblemList([Problem("one", "1+1?", "2")]), 1, autoreset_mode="Disabled")
    SFT(env, "tokengym/tiny", validation_problems=0, device="cpu").save(tmp_path / "model")
    assert main(["render", str(tmp_path / "model")]) == 1
    message = (
        "model was trained on ProblemList(1 problems, split='train'), which was made by hand: it cannot be made again"
    )
    assert message in capsys.readouterr().err


def test_relative_data_of_a_run_are_told_from_another_folder(run: Path, tmp_path: Path, capsys) -> None:
    spec = make_spec({"id": "tokengym/Dataset-v0", "data": "data/rows.jsonl", "question": "q", "answer": "a"})
    config = json.loads((run / "config.json").read_text()) | {"env": spec.to_json()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "attempts-0.jsonl").write_bytes((run / "round-1" / "attempts-0.jsonl").read_bytes())
    assert main(["render", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("tokengym: no such file or folder: data/rows.jsonl")
    assert f"relative paths of {tmp_path} count from where it was trained: go there, or give --data" in message


def test_a_file_outside_of_any_run_says_what_is_missing(tmp_path: Path, run: Path) -> None:
    stray = tmp_path / "attempts-0.jsonl"
    stray.write_text((run / "round-1" / "attempts-0.jsonl").read_text())
    with pytest.raises(ValueError, match=r"no config\.json beside it or above"):
        gather(stray, Wanted(), spec_of)


def test_a_panel_says_all_there_is_and_keeps_to_its_width() -> None:
    text = shown(RECORD)
    words = ("p-1", "PPO", "How many?", "3+4 = 8", "#### 8", "-0.50", "0.25", "0.10", "✗ wrong", "answer 8",
             "right answer 7", "total reward -0.50")  # fmt: skip
    for word in words:
        assert word in text, word
    assert "p(correct)" not in shown(replace(RECORD, steps=(StepRecord("x", 0.0),)))
    long = replace(RECORD, question="q" * 500, steps=(StepRecord("s" * 500, 0.0),))
    narrow = shown(long, width=40)
    assert narrow.count("q") == 500
    assert narrow.count("s") == 500 + "step".count("s") + "answer".count("s") * 2
    assert max(map(len, narrow.splitlines())) == 40


def test_colors_are_for_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch, hostile: str) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" in shown(RECORD, force_terminal=True)
    assert "\x1b" not in shown(RECORD)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[\d;]*3[12]", shown(RECORD, force_terminal=True))
    everywhere = AttemptRecord(*[hostile] * 6, (StepRecord(hostile, 0.0),))
    assert "\x1b" not in shown(everywhere)


def test_a_picture_is_one_file_of_text(hostile: str) -> None:
    svg = picture([RECORD, AttemptRecord(*[hostile] * 6, (StepRecord(hostile, 1.0, 0.5),))], "render <runs/a>")
    text = "".join(ElementTree.fromstring(svg).itertext()).replace("\xa0", " ")  # noqa: S314
    assert "3+4 = 8" in text
    assert "render <runs/a>" in text
    assert not re.search(r"url\((?!#)", svg)
    assert "<script" not in svg


def test_the_page_has_the_browser_of_attempts_and_nothing_that_is_empty() -> None:
    page = attempts_page("Attempts of <a>", {"Attempts": "1"}, [RECORD])
    assert "Attempts of &lt;a&gt;" in page
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)[0])
    assert data["attempts"][0][4] == [["3+4 = 8", 0.0, 0.25], ["#### 8", -0.5, 0.1], ["", 0.0, None]]
    assert not re.search(r"\{\{|This report|Findings|<!--", page)


def test_the_command_shows_and_writes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", str(run), "--verdict", "correct", "--count", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("✓ correct") == shown.count("╭") == 1
    assert main(["render", str(run), "--output", str(tmp_path / "all.HTML")]) == 0
    assert "6 attempts are in" in capsys.readouterr().out
    for option, value in (("split", "test"), ("temperature", "0.1"), ("seed", "1")):
        assert main(["render", str(run), f"--{option}", value]) == 1
        assert f"{option} is " in capsys.readouterr().err
    assert main(["render", str(run), "--output", str(tmp_path / "all.pdf")]) == 1
    assert "takes a .html or a .svg file" in capsys.readouterr().err


def test_a_model_makes_new_attempts(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["render", "tokengym/tiny", "--count", "2", "--env-args", "steps=1", "max_new_tokens=40"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert [name in shown for name in ("train-1-0", "arithmetic-train-0-0", "arithmetic-train-0-1")] == [
        False,
        True,
        True,
    ]
    assert main(arguments) == 0
    assert capsys.readouterr().out == shown
    assert main([*arguments, "--problem", "arithmetic-train-0-0"]) == 1
    assert "holds no recorded attempts" in capsys.readouterr().err
