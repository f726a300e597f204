"""ARES: corrections of attempts written by hand, PPO's weights without fine-tuning, and runs that are killed."""

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokengym.agents import ARES, PPO
from tokengym.agents import ares as module
from tokengym.agents.ares import JudgedPPO
from tokengym.agents.rollouts.attempts import Attempt
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.agents.training.corrections import by_proposer, by_reference, is_right, make_drafts
from tokengym.agents.training.rounds import Round
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.files import read_jsonl
from tokengym.models import load, load_tokenizer
from tokengym.rewards import JudgedReward, Verdict
from tokengym.rewards.grading.solutions import equation
from tokengym.rewards.grading.solutions import is_right as holds

SUMS = Problem("sum", "1+2+3", "6", "1+2=3\n3+3=6\n#### 6")
CENTERED = {"name": "judged", "form": "centered"}


class Sums(ProblemList):
    """A step is right if its equation holds, and the answer's line if it has the answer."""

    def __init__(self, split: str = "train") -> None:
        super().__init__([SUMS], split)

    def check_steps(self, steps, problem: Problem) -> list[bool]:
        said = [equation(step) for step in steps]
        return [
            step == "#### 6" if "#" in step else own is not None and holds(own)
            for step, own in zip(steps, said, strict=True)
        ]


TOKENIZERS = {"characters": load_tokenizer("chars:0123456789+=# so\n"), "words": load_tokenizer("tokengym/tiny")}


def sums(tokenizer: str, exact: bool, budget: int = 99) -> TokenVectorEnv:
    return TokenVectorEnv(
        Sums() if exact else ProblemList([SUMS]), 1, tokenizer=TOKENIZERS[tokenizer], prompt="{question}",
        reward=CENTERED, autoreset_mode="Disabled", max_new_tokens=budget,
    )  # fmt: skip


def play(
    text: str, tokenizer: str = "characters", end: bool = True, exact: bool = True
) -> tuple[Attempt, TokenVectorEnv]:
    """An attempt as the environment pays and grades it; without `end` it runs out of tokens."""
    whole = sums(tokenizer, exact)
    tokens = whole.encoder.encode(text)
    env = whole if end else sums(tokenizer, exact, len(tokens))
    tokens = np.append(tokens, env.encoder.eos_token_id) if end else tokens
    env.reset()
    _, rewards, terminations, _, infos = env.step_tokens([tokens], [len(tokens)])
    assert bool(terminations[0]) == end
    attempt = Attempt(
        SUMS, 0, env.prompt(0), tokens.astype(np.int32), np.zeros(len(tokens), np.float32),
        rewards[0].astype(np.float32), bool(infos["is_success"][0]), infos["verdict"][0], None, end,
    )  # fmt: skip
    return attempt, whole


def correct(text: str, **how: Any) -> tuple[str, str]:
    """What stays of an attempt, and its first completion by the reference that is right."""
    attempt, env = play(text, **how)
    exact = how.get("exact", True)
    (draft,) = make_drafts([attempt], env, exact)
    choices = [draft.tokens] if draft.is_whole else by_reference(draft, env)
    completion = next(choice for choice in choices if is_right(SUMS, choice, env, exact))
    assert env.encoder.is_eos[completion[-1]]
    assert not env.encoder.is_eos[completion[:-1]].any()
    return env.decode(draft.tokens), env.decode(completion)


SOLUTION = SUMS.solution or ""


@pytest.mark.parametrize(("tokenizer", "exact"), [("characters", True), ("words", False)])
@pytest.mark.parametrize(
    ("text", "end", "kept", "corrected"),
    [
        (SOLUTION, True, SOLUTION, SOLUTION),
        ("1+2=3\n3+3=7\n#### 7", True, "1+2=3\n", SOLUTION),
        ("1+2=3\n1+2=3\n3+3=6\n#### 6\n#### 6", True, "1+2=3\n3+3=6\n#### 6\n", f"{SOLUTION}\n"),
        ("1+2=3\n1+2=3\n3+3=8", False, "1+2=3\n", SOLUTION),
        ("1+2=4\n#### 4", True, "", SOLUTION),
        ("2+1=3\n3+3=7\n", False, "2+1=3\n", "2+1=3\n3+3=6\n#### 6"),  # another way to the same result
        ("1+2=3\n3+3", False, "1+2=3\n", SOLUTION),  # cut off within a line
        ("1+2=3", True, "1+2=3\n", SOLUTION),
        ("3+3=6\n#### 9", True, "3+3=6\n", "3+3=6\n#### 6"),
        ("1+2=3\n#### 6\n1+1=3", True, "1+2=3\n", SOLUTION),  # nothing is calculated after the answer
        ("", True, "", SOLUTION),
        ("\n\n", False, "", SOLUTION),
    ],
)
def test_corrections_by_hand(text: str, end: bool, kept: str, corrected: str, exact: bool, tokenizer: str) -> None:
    assert correct(text, end=end, exact=exact, tokenizer=tokenizer) == (kept, corrected)


LINES = ["1+2=3", "3+3=6", "2+1=3", "1+2=4", "so", "", "#### 6", "#### 7", " 3+3=6 "]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(LINES), max_size=7), st.booleans(), st.sampled_from([*TOKENIZERS]))
def test_every_correction_is_right_and_keeps_the_right_steps(lines: list[str], end: bool, tokenizer: str) -> None:
    attempt, env = play("\n".join(lines) or "\n", tokenizer, end)
    (draft,) = make_drafts([attempt], env, True)
    right = [choice for choice in by_reference(draft, env) if is_right(SUMS, choice, env, True)]
    assert right
    said = [line.strip() for line in (lines if end else lines[:-1]) if line.strip()]
    new = list(dict.fromkeys(said))
    wrong = [*Sums().check_steps(new, SUMS), False].index(False)
    if not draft.is_whole:
        wrong = [*new[:wrong], "#### 6"].index("#### 6")
    assert draft.steps == new[:wrong]
    if said[:wrong] == new[:wrong] and not draft.is_whole and wrong < len(said):  # nothing repeated before: a prefix
        assert attempt.completion[: len(draft.tokens)].tolist() == draft.tokens.tolist()
        assert right[0][: len(draft.tokens)].tolist() == draft.tokens.tolist()


# ---------------------------------------------------------------------------------------- runs

YES = load_tokenizer("chars:yz\n?")


class AllYes(ProblemList):
    """Right is what has lines of `y` alone."""

    def __init__(self, split: str = "train", solution: str | None = "y\nyy") -> None:
        super().__init__([Problem(f"{split}-{q}", q + "?", "?", solution) for q in ("y", "z", "yz", "zy")], split)

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = bool(completion.split()) and set("".join(completion.split())) == {"y"}
        return Verdict(correct, "correct" if correct else "wrong", completion)

    def check_steps(self, steps, problem: Problem) -> list[bool]:
        return [set(step) == {"y"} for step in steps]


def by_letters(steps) -> list[float]:
    return [float(set(step.text) == {"y"}) for step in steps]


def slots(problems: ProblemList, reward: Any = None) -> TokenVectorEnv:
    reward = JudgedReward(by_letters, "centered") if reward is None else reward
    return TokenVectorEnv(
        problems, 16, tokenizer=YES, prompt="{question}", max_prompt_tokens=4, max_new_tokens=6,
        autoreset_mode="Disabled", copy=False, reward=reward,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("yes")
    ids = {"eos_token_id": YES.eos_token_id, "pad_token_id": YES.pad_token_id}
    make_model("llama", vocab_size=len(YES), **ids).save_pretrained(path)
    YES.save_pretrained(path)
    return path


BY_PPO = {
    "iterations": 2, "problems_per_iteration": 4, "samples_per_problem": 4, "minibatch_size": 8, "epochs": 1,
    "learning_rate": 3e-3, "critic_layers": 1, "save_iterations": 1, "keep_best": False, "kl_coef": 0.1,
}  # fmt: skip
BY_SFT = {"rounds": 2, "sft_epochs": 3, "sft_batch_size": 4, "sft_learning_rate": 3e-3, "validation_problems": 4}


@pytest.fixture
def make(folder):
    def make(cls: type = ARES, reward: Any = None, source: ProblemList | None = None, **settings: Any) -> Any:
        own = {**BY_PPO, **BY_SFT} if cls is ARES else {**BY_PPO, "validation_problems": 0}
        env, validation = slots(source or AllYes(), reward), slots(AllYes("validation"), "sparse")
        return cls(env, folder, validation_env=validation, device="cpu", **(own | settings))

    return make


def weights(agent: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in agent.model.named_parameters()}


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(weight, b[name]) for name, weight in a.items())


def metrics_of(folder: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if not name.startswith("time/")}
        for line in read_jsonl(folder / "metrics.jsonl")
    ]


@pytest.mark.parametrize("neutral", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_without_fine_tuning_it_is_ppo_to_the_last_bit(make, tmp_path, neutral: bool) -> None:
    """Under a judge without an opinion it is PPO that is held to its reference and paid nothing."""
    judge = JudgedReward(lambda steps: [0.5] * len(steps), "centered") if neutral else None
    reward = {"name": "sum", "terms": [[0, "sparse"]]} if neutral else None
    plain = make(PPO, reward, patience=None).learn()
    ares = make(reward=judge, rounds=1, sft_epochs=0, run=tmp_path / "ares").learn()
    trained = Round.load(tmp_path / "ares" / "round-1", 1)
    assert trained is not None
    assert same(weights(plain), dict(trained.weights))
    assert same(weights(make()), dict(trained.weights)) == neutral  # nothing is paid where it began
    assert ares.num_attempts == plain.num_attempts == 32


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def unbroken(folder, tmp_path_factory) -> Any:
    """A run of two rounds that was left alone, and what is known of it."""
    run = tmp_path_factory.mktemp("whole") / "run"
    env, validation = slots(AllYes()), slots(AllYes("validation"), "sparse")
    agent = ARES(env, folder, validation_env=validation, device="cpu", run=run, patience=9, **BY_PPO, **BY_SFT)
    return agent.learn(), run


def test_rounds_train_on_corrections_that_are_right(unbroken) -> None:
    agent, run = unbroken
    assert agent.num_attempts == 2 * (32 + 16)
    for example in agent._corrections:
        text = agent.env.decode(example.completion)
        assert set("".join(text.split())) == {"y"}
    logged = metrics_of(run)
    assert [line["round"] for line in logged] == [0, 1, 2]
    assert logged[1]["corrections/failed"] == 0
    assert 0 < logged[1]["corrections/examples"] <= 16
    assert logged[2]["corrections/right_steps"] > 0
    assert logged[1]["train/loss"] > 0
    assert {path.name for path in (run / "round-1" / "ppo").iterdir()}.isdisjoint({"training", "model"})


@pytest.mark.parametrize(
    "when", ["ppo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sampling", "fine-tuning"))]
)
def test_a_run_killed_in_either_stage_ends_as_one_that_was_not(make, unbroken, tmp_path, monkeypatch, when) -> None:
    whole, run = unbroken
    agent = make(run=tmp_path / "killed", patience=9)
    if when == "ppo":  # in the second iteration of the second round
        improve = JudgedPPO.improve

        def improve_and_die(self: Any, learner: Any, attempts: Any, iteration: int) -> Any:
            if self.seed and iteration:
                raise KeyboardInterrupt
            return improve(self, learner, attempts, iteration)

        monkeypatch.setattr(JudgedPPO, "improve", improve_and_die)
    elif when == "sampling":  # when attempts are written, before they are corrected
        monkeypatch.setattr(module, "make_drafts", killed)
    else:
        train = module.fine_tune

        def train_and_die(*arguments: Any, seed: int, on_step: Any, **others: Any) -> Any:
            return train(*arguments, seed=seed, on_step=killed if seed else on_step, **others)

        monkeypatch.setattr(module, "fine_tune", train_and_die)
    with pytest.raises(KeyboardInterrupt):
        agent.learn()
    monkeypatch.undo()
    del agent
    again = make(run=tmp_path / "killed", resume=True, patience=9).learn()
    assert same(weights(again), weights(whole))
    assert (again.num_attempts, again.num_tokens) == (whole.num_attempts, whole.num_tokens)
    assert metrics_of(tmp_path / "killed") == metrics_of(run)
    for number in (1, 2):
        found, right = (Round.load(path / f"round-{number}", number) for path in (tmp_path / "killed", run))
        assert found is not None
        assert right is not None
        assert same(found.weights, right.weights)


def test_a_proposer_continues_drafts(folder) -> None:
    env = slots(AllYes(solution=None))
    model, tokenizer = load(folder, device="cpu")
    nothing = np.zeros(6, np.float32)
    attempts = [
        Attempt(env.problems[0], 0, env.encode_prompt(env.problems[0]), env.encoder.encode(text).astype(np.int32),
                nothing, nothing, False, "wrong", None, False)
        for text in ("y\nz\nyz", "zzzzzz", "y\nyy\ny")
    ]  # fmt: skip
    drafts = make_drafts(attempts, env, True)
    assert [env.decode(one.tokens) for one in drafts] == ["y\n", "", "y\nyy\n"]
    completed = by_proposer(drafts, env, CausalLMPolicy(model.eval(), tokenizer), 40, seed=0)
    assert all(len(found) <= 40 for found in completed)
    verdicts = []
    for one, found in zip(drafts, completed, strict=True):
        for completion in found:
            assert completion[: len(one.tokens)].tolist() == one.tokens.tolist()
            assert env.encoder.is_eos[completion[-1]]
            verdicts.append(is_right(one.attempt.problem, completion, env, True))
            assert verdicts[-1] == env.problems.grade(env.decode(completion), one.attempt.problem).correct
    assert {True, False} == set(verdicts)


@pytest.mark.slow
def test_a_run_with_a_proposer_and_problems_without_solutions(make, folder, tmp_path) -> None:
    settings: dict[str, Any] = {"proposer": str(folder), "proposals": 8, "rounds": 1, "patience": 9}
    agents = [make(source=AllYes(solution=None), run=tmp_path / name, **settings).learn() for name in ("a", "b")]
    assert agents[0]._corrections
    assert same(*map(weights, agents))
    assert metrics_of(tmp_path / "a") == metrics_of(tmp_path / "b")


def test_an_environment_that_names_no_reward_is_paid_by_the_judge() -> None:
    spec = copy.deepcopy(gym.spec("tokengym/Arithmetic-v0"))
    spec.kwargs.update(steps=1, max_new_tokens=32)
    agent = ARES(spec, num_envs=2, device="cpu")
    assert isinstance(agent.env.reward, JudgedReward)
    assert (agent.env.reward.judge, agent.env.reward.form) == ("reference", "centered")
    assert not isinstance(agent.make_validation_env().reward, JudgedReward)
    spec.kwargs.update(reward="sparse")
    with pytest.raises(ValueError, match="leave out the environment's reward and set judge"):
        ARES(spec, num_envs=2, device="cpu")


def test_bad_settings(make, tmp_path) -> None:
    for changes, message in (
        ({"reward": "sparse"}, "ares is paid for each step by a judge"),
        ({"reward": {"name": "judged", "judge": "reference"}}, "ares is paid for each step by a judge"),
        ({"reward": {**CENTERED, "shaping": "potential"}}, "ares is paid for each step by a judge"),
        ({"min_pass_rate": 0.1}, "ares trains on all problems"),
        ({"vllm_memory": 0.5}, "leave out vllm_memory"),
        ({"problems": 0}, "problems must be at least 1"),
        ({"source": AllYes(solution=None)}, "has none: give a proposer"),
        ({"proposer": "tokengym/tiny"}, "the tokenizers of proposer='tokengym/tiny' and of the policy differ"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**changes)
    with pytest.raises(ValueError, match="more than total_episodes=47"):
        make().learn(47)
