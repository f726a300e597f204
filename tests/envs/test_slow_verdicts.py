"""Verdicts that take long: the other slots go on, and each attempt is what stepping alone would have made it.

How long a verdict really takes is nowhere measured: here it is there when somebody waits for it, and not before.
"""

import itertools
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.models import load_tokenizer
from tokengym.rewards import Verdict
from tokengym.rewards.base import Step, StepReward

TOKENIZER = load_tokenizer("chars:0123456789+=\n")
EOS, PAD = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id
FIVE = TOKENIZER("5", add_special_tokens=False)["input_ids"][0]
NEWLINE = TOKENIZER("\n", add_special_tokens=False)["input_ids"][0]


class OnDemand(Future[Verdict]):
    """A verdict that is there once somebody waits for it."""

    def __init__(self, verdict: Verdict, waited: list[str], name: str) -> None:
        super().__init__()
        self.verdict, self.waited, self.name = verdict, waited, name

    def result(self, timeout=None) -> Verdict:
        self.waited.append(self.name)
        return self.verdict


class Judged(ProblemList):
    """Sums, of which those with an even first number are graded by somebody slow."""

    def __init__(self) -> None:
        pairs = itertools.product(range(4), repeat=2)
        super().__init__([Problem(f"{a}+{b}", f"{a}+{b}=", str(a + b)) for a, b in pairs])
        self.waited: list[str] = []
        self.begun: list[Future[Verdict]] = []

    def grade(self, completion: str, problem: Problem) -> Verdict:
        return Verdict("5" in completion, "correct" if "5" in completion else "wrong", completion)

    def begin_grading(self, completion: str, problem: Problem) -> Verdict | Future[Verdict]:
        verdict = self.grade(completion, problem)
        if int(problem.id[0]) % 2:
            return verdict
        self.begun.append(OnDemand(verdict, self.waited, problem.id))
        return self.begun[-1]


class Lines(StepReward):
    """Pays each step by its length, and the last one by the verdict as well."""

    def step_rewards(self, steps: list[Step]) -> list[float]:
        return [0.1 * len(s.text) + (0 if s.verdict is None else 1 + s.verdict.correct) for s in steps]


def make(num_envs: int, **arguments) -> TokenVectorEnv:
    arguments = {"prompt": "{question}", "max_prompt_tokens": 4, "max_new_tokens": 6} | arguments
    mode = arguments.pop("autoreset_mode", "Disabled")
    return TokenVectorEnv(Judged(), num_envs, tokenizer=TOKENIZER, autoreset_mode=mode, **arguments)


def test_a_slot_waits_before_its_last_token_while_the_others_go_on() -> None:
    env = make(2)
    env.reset(seed=0, options={"problem_id": ["2+3", "1+1"]})
    before = env.completion(0).tolist()
    observation, rewards, terminations, _, infos = env.step_on([EOS, FIVE], patience=3)
    assert env.awaits_verdict.tolist() == [True, False]
    assert not terminations.any()
    assert not infos
    assert not rewards.any()
    assert env.completion(0).tolist() == before
    assert observation["input_ids"][0, 4:].tolist() == [PAD] * 6
    assert observation["attention_mask"][0].sum() == 4
    for _ in range(2):
        _, rewards, terminations, _, infos = env.step_on([FIVE, FIVE], patience=3)  # what a waiting slot is given
        assert (terminations.any(), rewards.any(), infos) == (False, False, {})
    assert env.problems.waited == []  # pyright: ignore[reportAttributeAccessIssue]
    observation, rewards, terminations, truncations, infos = env.step_on([FIVE, FIVE], patience=3)
    assert env.problems.waited == ["2+3"]  # pyright: ignore[reportAttributeAccessIssue]
    assert terminations.tolist() == [True, False]
    assert not truncations.any()
    assert not env.awaits_verdict.any()
    assert env.completion(0).tolist() == [EOS]
    assert observation["attention_mask"][0].sum() == 5
    assert infos["verdict"].tolist()[0] == "wrong"
    assert infos["episode_length"].tolist()[0] == 1
    assert len(env.completion(1)) == 4


def test_a_verdict_is_there_at_once_where_no_other_slot_runs() -> None:
    env = make(3)
    env.reset(seed=0, options={"problem_id": ["0+1", "2+1", "1+1"]})
    env.step_on([EOS, FIVE, FIVE], patience=50)
    assert env.awaits_verdict.tolist() == [True, False, False]
    _, _, terminations, _, _ = env.step_on([FIVE, FIVE, EOS], patience=50)  # not slow
    assert terminations.tolist() == [False, False, True]
    _, rewards, terminations, _, infos = env.step_on([FIVE, EOS, FIVE], patience=50)
    assert terminations.tolist() == [False, True, True]  # the last one that ran need not wait for one that does not
    assert rewards.tolist() == [0, 1, 0]
    assert infos["problem_id"].tolist()[1] == "2+1"
    _, rewards, terminations, _, infos = env.step_on([FIVE] * 3, patience=50)
    assert terminations.all()
    assert infos["_verdict"].tolist() == [True, False, False]


@pytest.mark.parametrize("several", [False, True])
def test_steps_that_wait_for_nobody_take_the_verdicts_that_are_due(several: bool) -> None:
    env = make(3)
    env.reset(seed=0, options={"problem_id": ["0+1", "2+1", "1+1"]})
    env.step_on([EOS, EOS, FIVE], patience=50)
    assert env.awaits_verdict.tolist() == [True, True, False]
    if several:
        _, _, terminations, _, _ = env.step_tokens(np.full((3, 2), FIVE), [2, 0, 2])
        assert len(env.completion(2)) == 3
    else:
        _, _, terminations, _, _ = env.step([FIVE] * 3)
        assert len(env.completion(2)) == 2
    assert terminations.tolist() == [True, True, False]
    assert [env.completion(slot).tolist() for slot in (0, 1)] == [[EOS], [EOS]]


def test_an_attempt_that_begins_anew_forgets_the_verdict_of_the_one_before() -> None:
    env = make(2)
    env.reset(seed=0, options={"problem_id": ["0+1", "1+1"]})
    env.step_on([EOS, FIVE], patience=5)
    env.reset(options={"reset_mask": np.array([True, False]), "problem_id": "2+2"})
    assert not env.awaits_verdict.any()
    assert env.problems.begun[0].cancelled()  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(5):
        _, _, terminations, truncations, _ = env.step_on([FIVE, FIVE], patience=5)
    assert (terminations.tolist(), truncations.tolist()) == ([False, False], [False, True])
    assert env.completion(0).tolist() == [FIVE] * 5


@settings(max_examples=60)
@given(seed=st.integers(0, 2**20), num_envs=st.integers(1, 6), patience=st.integers(1, 9), dense=st.booleans())
def test_attempts_are_those_of_plain_steps(seed: int, num_envs: int, patience: int, dense: bool) -> None:
    """Random tokens, also given to slots that wait; what each attempt was paid, and where, and how it ended."""
    rng = np.random.default_rng(seed)
    ids = [f"{a}+{b}" for a, b in rng.integers(4, size=(num_envs, 2))]
    tokens = rng.choice([EOS, FIVE, NEWLINE], p=[0.2, 0.4, 0.4], size=(num_envs, 6))
    found = []
    for slow in (False, True):
        env = make(num_envs, reward=Lines() if dense else "sparse")
        env.reset(seed=0, options={"problem_id": ids})
        taken, paid = np.zeros(num_envs, int), [dict[int, float]() for _ in range(num_envs)]
        ended = np.zeros(num_envs, bool)
        endings = dict[int, tuple]()
        while not ended.all():
            waits = env.awaits_verdict
            actions = np.where(waits | (taken > 5), FIVE, tokens[np.arange(num_envs), np.minimum(taken, 5)])
            _, rewards, terminations, truncations, infos = env.step_on(actions, patience) if slow else env.step(actions)
            taken += ~(waits | ended | env.awaits_verdict)
            taken += waits & ~env.awaits_verdict
            for slot in np.flatnonzero(rewards).tolist():
                paid[slot][len(env.completion(slot))] = rewards[slot]
            for slot in np.flatnonzero((terminations | truncations) & ~ended).tolist():
                values = (infos[name][slot] for name in ("verdict", "episode_return", "episode_length", "answer"))
                endings[slot] = (terminations[slot], *values)
            ended = terminations | truncations
        found.append((paid, endings, [env.completion(slot).tolist() for slot in range(num_envs)]))
    assert found[0] == found[1]


@pytest.mark.parametrize(("mode", "patience"), [("NextStep", 3), ("SameStep", 3), ("Disabled", 0)])
def test_where_nobody_can_wait(mode: str, patience: int) -> None:
    env = make(2, autoreset_mode=mode)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"step_on needs autoreset_mode='Disabled' and patience of at least 1"):
        env.step_on([FIVE, FIVE], patience)


@pytest.mark.parametrize("later", [False, True])
def test_what_is_no_verdict_is_named(monkeypatch: pytest.MonkeyPatch, later: bool) -> None:
    env = make(1)
    env.reset(seed=0, options={"problem_id": "0+1"})
    answer: Future[bool] = Future()
    answer.set_result(True)
    monkeypatch.setattr(env.problems, "begin_grading", lambda *_: answer if later else True)
    with pytest.raises(TypeError, match="Judged graded an attempt with True: grade returns a Verdict, begin_grading"):
        env.step_on([EOS], patience=2)
