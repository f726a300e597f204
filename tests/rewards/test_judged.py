"""Judged rewards: what each judge has paid where, and that shaped returns are those of the other terms."""

import hashlib
import math
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.models import OutcomeModel, load_tokenizer
from tokengym.models.new_model import new_model
from tokengym.models.tokenizers import TINY_ORM
from tokengym.registry import UnknownNameError
from tokengym.rewards import JudgedReward, RewardError, Step, make_reward
from tokengym.rewards.steps import step_ends, step_texts

TOKENIZER = load_tokenizer("chars:0123456789+-*=#. abcdefghijklmnopqrstuvwxyz\n")
EOS = TOKENIZER.eos_token_id
REFERENCE = "1+2=3 pens\n3*4=12\n12-5=7 left\n#### 7"


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def play(attempt: str, reward, *, prefix: str = "", end: bool = True, reference: str | None = REFERENCE) -> np.ndarray:
    """The rewards of an attempt, token by token, its end-of-sequence included; without `end` the budget cuts it off."""
    tokens = [*encode(attempt), *([EOS] if end else [])]
    problems = ProblemList([Problem("only", "q", "7", reference)])
    env = TokenVectorEnv(
        problems, 1, tokenizer=TOKENIZER, prompt="{question}", max_new_tokens=len(encode(prefix)) + len(tokens),
        reward=reward,
    )  # fmt: skip
    env.reset(options={"prefix": prefix})
    _, rewards, terminations, _, infos = env.step_tokens([tokens], [len(tokens)])
    assert bool(terminations[0]) == end
    assert infos["episode_return"][0] == pytest.approx(rewards.sum(), abs=1e-12)
    return rewards[0]


def at_ends(attempt: str, paid: Sequence[float]) -> np.ndarray:
    """Payments at the ends of an attempt's lines, the last at end-of-sequence."""
    expected = np.zeros(len(attempt) + 1)
    ends = [i for i, letter in enumerate(attempt) if letter == "\n" and attempt[:i].rpartition("\n")[2].strip()]
    expected[[*ends, len(attempt)]] = paid
    return expected


def random_scores(steps: Sequence[Step]) -> list[float]:
    """Scores in [0, 1] that depend on a step and those before it."""
    digests = [hashlib.sha256(repr((*step.previous, step.text)).encode()).digest() for step in steps]
    return [int.from_bytes(digest[:4], "big") / 2**32 for digest in digests]


# ---------------------------------------------------------------------------------------- payments by hand


@pytest.mark.parametrize(
    ("attempt", "scores"),
    [
        (REFERENCE, [1, 1, 1, 1]),
        ("1+2=3\nso 3\n3*4=13\n12-5=7\n#### 7", [1, 0, 0, 1, 1]),  # 3 again in other words; a wrong step
        ("12-5=7\n3*4=12\n#### 8", [1, 0, 0]),  # against the order; a wrong answer
        ("1+2=3\n\n#### 7.0", [1, 1]),  # by the grader, where the attempt ends
        ("no idea", [0]),
    ],
)
def test_the_reference_judges_steps_and_the_answers_line(attempt: str, scores: list[int]) -> None:
    np.testing.assert_array_equal(play(attempt, "judged"), at_ends(attempt, scores))
    np.testing.assert_array_equal(
        play(attempt, {"name": "judged", "form": "centered"}), at_ends(attempt, np.array(scores) - 0.5)
    )


def test_the_answers_line_is_the_references_where_more_follows_and_is_paid_once() -> None:
    assert (
        play("#### 7\n#### 7\n####  7\n", "judged").tolist()
        == at_ends("#### 7\n#### 7\n####  7\n", [1, 0, 0, 0]).tolist()
    )
    assert play("7\n7", "judged", reference="7").tolist() == [0, 1, 0, 0]  # data whose solution is the bare answer


def test_centered_pays_nothing_for_what_was_written_before() -> None:
    attempt = "so\n1+2=3\nso\n 1+2=3 \nso  \n8"
    centered = {"name": "judged", "form": "centered", "weight": 0.4}
    expected = at_ends(attempt, 0.4 * np.array([-0.5, 0.5, 0, 0, 0, -0.5]))
    np.testing.assert_allclose(play(attempt, centered), expected, atol=1e-15)
    assert play("so\n8", centered, prefix="so\n1+2=3\n").tolist() == pytest.approx([0, 0, 0, 0, -0.2])


def test_steps_of_a_prefix_are_known_to_judges_and_not_paid() -> None:
    assert play("3*4=12\n3", "judged", prefix="1+2=3\n").sum() == 1
    seen: list[Step] = []

    def judge(steps: Sequence[Step]) -> list[float]:
        seen.extend(steps)
        return [0.25] * len(steps)

    rewards = play("d e\n\nf", JudgedReward(judge, weight=2), prefix="a\nb c")
    assert [(step.previous, step.text) for step in seen] == [(("a",), "b cd e"), (("a", "b cd e"), "f")]
    assert rewards.tolist() == [0, 0, 0, 0.5, 0, 0, 0.5]
    assert play("a\nb", JudgedReward(judge), end=False).tolist() == [0, 0.25, 0]  # a line that was cut off is no step


def test_an_outcome_model_judges_as_the_dense_reward_of_it_pays(tmp_path) -> None:
    language = new_model(TOKENIZER, "llama", depth=2, width=32, heads=4, positions=64, seed=0)
    model = OutcomeModel.from_causal_lm(language, TOKENIZER, "orm")
    attempt, prefix = "1+2=3\n\nso\n1+2=3\n#### 7", "7\n8"
    dense = play(attempt, {"name": "dense_orm", "orm": model}, prefix=prefix)
    assert np.count_nonzero(dense) == 4
    np.testing.assert_allclose(play(attempt, JudgedReward(model), prefix=prefix), dense, atol=1e-6)
    model.save(tmp_path / "orm")
    by_folder = {"name": "judged", "judge": str(tmp_path / "orm"), "form": "centered", "device": "cpu"}
    paid = np.flatnonzero(dense)
    np.testing.assert_allclose(play(attempt, by_folder, prefix=prefix)[paid], dense[paid] - 0.5, atol=1e-6)
    assert play("1\n1", by_folder)[2:].tolist() == [0, 0]
    comparing = OutcomeModel.from_causal_lm(language, TOKENIZER, "preference")
    assert np.isfinite(play("1", JudgedReward(comparing))).all()
    with pytest.raises(ValueError, match=r"a centered reward needs p\(correct\), and .* is a preference model"):
        play("1", JudgedReward(comparing, "centered"))


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("a\n\nb", ["a", "b"]),  # blank lines before a line that only the end of the attempt ends
        ("\n\na\n \n b c\n", ["a", "b c"]),
        ("\n", []),
        ("a", ["a"]),
    ],
)
@pytest.mark.parametrize("name", ["chars:abc7 \n", "tokengym/tiny"])
def test_texts_of_steps_are_those_that_rewards_see(text: str, texts: list[str], name: str) -> None:
    tokenizer = load_tokenizer(name)
    tokens = np.array([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])
    (ends,) = step_ends([tokens], [True], tokenizer)
    assert step_texts(tokens, ends.tolist(), tokenizer) == texts
    seen: list[str] = []

    def judge(steps: Sequence[Step]) -> list[float]:
        seen.extend(step.text for step in steps)
        return [0.0] * len(steps)

    env = TokenVectorEnv(
        ProblemList([Problem("p", "a", "7")]), 1, tokenizer=tokenizer, prompt="{question}", reward=JudgedReward(judge)
    )
    env.reset()
    env.step_tokens([tokens], [len(tokens)])
    assert seen == texts


# ---------------------------------------------------------------------------------------- returns

SPARSE = "sparse"
LINES = st.lists(st.sampled_from(["1+2=3", "3*4=12", "12-5=7 left", "so", "", "9", "#### 3"]), max_size=8)


@settings(max_examples=25, deadline=None)
@given(
    LINES,
    st.sampled_from(["#### 7", "#### 8", "none", ""]),
    st.booleans(),
    st.sampled_from(["", "3\n", "1+2=3\n3*"]),
    st.sampled_from(["shift", "centered"]),
    st.sampled_from(["reference", random_scores]),
)
def test_potential_shaping_pays_early_and_takes_everything_back(lines, answer, end, prefix, form, judge) -> None:
    attempt = "\n".join([*lines, answer]) or "1"
    plain = play(attempt, JudgedReward(judge, form, 0.3), prefix=prefix, end=end)
    shaped = play(attempt, JudgedReward(judge, form, 0.3, "potential"), prefix=prefix, end=end)
    np.testing.assert_array_equal(shaped[:-1], plain[:-1])
    assert np.cumsum(shaped)[-1] == 0  # to the last bit
    summed = {"name": "sum", "terms": [[1, SPARSE], [1, JudgedReward(judge, form, 0.3, "potential")]]}
    both, sparse = (play(attempt, reward, prefix=prefix, end=end) for reward in (summed, SPARSE))
    assert both.sum() == pytest.approx(sparse.sum(), abs=1e-12)


@pytest.mark.parametrize("end", [True, False])
def test_what_an_attempt_is_paid_does_not_depend_on_the_one_before_it_in_its_slot(end: bool) -> None:
    shaped = {"name": "sum", "terms": [[1, SPARSE], [1, JudgedReward("reference", "shift", 0.3, "potential")]]}
    tokens = [*encode(REFERENCE), *([EOS] if end else [])]
    problems = ProblemList([Problem("only", "q", "7", REFERENCE)])
    env = TokenVectorEnv(
        problems, 1, tokenizer=TOKENIZER, prompt="{question}", max_new_tokens=len(tokens), reward=shaped,
        autoreset_mode="Disabled",
    )  # fmt: skip
    paid, parts = [], []
    for _ in range(2):
        env.reset(options={"reset_mask": np.ones(1, np.bool_)})
        _, rewards, _, _, infos = env.step_tokens([tokens], [len(tokens)])
        paid.append(rewards[0].tolist())
        parts.append({name: values[0] for name, values in infos["reward_components"].items()})
    assert paid[0] == paid[1]
    assert any(paid[0][:-1])
    assert parts[0] == parts[1]


def test_a_constant_shift_prefers_the_longer_of_two_attempts_and_a_shaped_one_does_not() -> None:
    """With c for each step, a wrong attempt of 5 steps returns more than a right one of 2 where 5 c > 1 + 2 c."""
    short, long = "1\n#### 7", "1\n2\n3\n4\n#### 8"
    for c in (0.3, 0.4):
        for shaping, preferred in ((None, 5 * c > 1 + 2 * c), ("potential", False)):
            judge = {"judge": lambda steps, c=c: [c] * len(steps), "shaping": shaping}
            terms = lambda judge=judge: {"name": "sum", "terms": [[1, SPARSE], [1, JudgedReward(**judge)]]}  # noqa: E731
            assert (play(long, terms()).sum() > play(short, terms()).sum()) == preferred


def test_a_judge_of_zeros_changes_nothing() -> None:
    summed = {"name": "sum", "terms": [[1, SPARSE], [1, JudgedReward(lambda steps: [0] * len(steps))]]}
    np.testing.assert_array_equal(play(REFERENCE, summed), play(REFERENCE, SPARSE))


# ---------------------------------------------------------------------------------------- bad input


def test_judges_that_return_something_else_are_named() -> None:
    for form, answer, message in (
        ("shift", [1.0], r"confused must give 2 scores in \[-1, 1\], one for each step, and gave \[1.0\]"),
        ("shift", [0, math.nan], r"confused must give 2 scores .*, and gave \[0, nan\]"),
        ("shift", [0, 2], r"in \[-1, 1\]"),
        ("centered", [0, -0.1], r"in \[0, 1\]"),
        ("centered", None, "and gave None"),
        ("centered", ["good", "bad"], "and gave .'good', 'bad'"),
        ("shift", torch.zeros(2, requires_grad=True), r"and gave tensor.* give \.detach\(\)"),
    ):

        def confused(steps: Sequence[Step], answer=answer):
            return answer

        with pytest.raises(RewardError, match=message):
            play("a\nb", JudgedReward(confused, form))


def test_bad_arguments(tmp_path) -> None:
    with pytest.raises(UnknownNameError, match="unknown form 'centred': did you mean 'centered'"):
        make_reward({"name": "judged", "form": "centred"})
    with pytest.raises(UnknownNameError, match="shaping 'potentail': did you mean 'potential'"):
        make_reward({"name": "judged", "shaping": "potentail"})
    with pytest.raises(ValueError, match="weight must be finite, got inf"):
        JudgedReward(weight=math.inf)
    with pytest.raises(ValueError, match=r'a judge is "reference", an OutcomeModel, .* or a function, not 7'):
        make_reward({"name": "judged", "judge": 7})
    with pytest.raises(FileNotFoundError, match="there is no judge 'referense': give \"reference\""):
        play("1", {"name": "judged", "judge": "referense"})
    with pytest.raises(ValueError, match="is not an outcome model"):
        play("1", {"name": "judged", "judge": str(tmp_path)})
    with pytest.raises(ValueError, match="needs a solution, and the problem 'q' has none"):
        play("1", "judged", reference=None)


@pytest.mark.parametrize("form", ["shift", "centered"])
def test_the_built_in_outcome_model_judges_by_its_name(form: str) -> None:
    env = gym.make("tokengym/Arithmetic-v0", reward={"name": "judged", "judge": TINY_ORM, "form": form})
    env.reset(seed=0)
    slots = env.unwrapped.slots
    solution = slots.encode_solution(slots.problem(0))
    paid = np.array([env.step(token)[1] for token in solution.tolist()])
    sequence = np.concatenate([slots.prompt(0), solution]).astype(np.int64)
    ends = np.flatnonzero(paid)
    assert len(ends) == slots.problem(0).solution.count("\n") + 1
    scores = OutcomeModel.load(TINY_ORM, slots.tokenizer, "cpu").score(
        [sequence], [len(sequence) - len(solution) + ends]
    )
    np.testing.assert_allclose(paid[ends], scores[0] - 0.5 * (form == "centered"), atol=1e-5)
    with pytest.raises(UnknownNameError, match="did you mean 'tokengym/tiny-orm'"):
        gym.make("tokengym/Arithmetic-v0", reward={"name": "judged", "judge": "tokengym/tiny-omr"}).reset()


def test_it_is_made_by_name_in_gymnasium() -> None:
    env = gym.make("tokengym/Arithmetic-v0", reward={"name": "judged", "form": "centered"}, steps=3)
    env.reset(seed=0)
    slots = env.unwrapped.slots
    assert isinstance(slots.reward, JudgedReward)
    lines = slots.problem(0).solution.split("\n")
    assert len({line.rpartition("=")[2] for line in lines}) == len(lines) == 4
    assert sum(env.step(token)[1] for token in slots.encode_solution(slots.problem(0)).tolist()) == 0.5 * len(lines)


@pytest.mark.parametrize(
    ("written", "stop", "judged"),
    [
        ("1+2=3\n#### 7\nq= ", "\nq=", ["1+2=3", "#### 7"]),
        ("1+2=3\n#### 7 so much", " so", ["1+2=3", "#### 7"]),
        ("1+2=3\n#### 7\n\nmore", "\n\n", ["1+2=3", "#### 7"]),
        ("1+2=3\n#### 7 more", "more", ["1+2=3", "#### 7"]),
    ],
)
def test_a_stop_string_is_no_step_and_no_part_of_one(written: str, stop: str, judged: list[str]) -> None:
    seen: list[str] = []

    def judge(steps: Sequence[Step]) -> list[float]:
        seen.extend(step.text for step in steps)
        return [1.0] * len(steps)

    problems = ProblemList([Problem("only", "q", "7", REFERENCE)])
    env = TokenVectorEnv(problems, 1, tokenizer=TOKENIZER, prompt="{question}", stop=stop, reward=JudgedReward(judge))
    env.reset()
    total, terminated = 0.0, False
    for token in encode(written):
        _, rewards, terminations, _, infos = env.step([token])
        total += rewards[0]
        if terminated := bool(terminations[0]):
            break
    assert terminated
    assert infos["is_success"][0]
    assert (seen, total) == (judged, len(judged))


def test_a_judge_in_the_home_folder_is_found(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="'~/empty' is not an outcome model"):
        play("#### 7", {"name": "judged", "judge": "~/empty"})
    with pytest.raises(FileNotFoundError, match="there is no judge '~/nothing'"):
        play("#### 7", {"name": "judged", "judge": "~/nothing"})
