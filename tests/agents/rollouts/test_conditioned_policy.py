"""A conditioned policy through rollouts, `predict` and `evaluate`: the environment's tokens are actions alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from tokengym.agents.evaluation.evaluate import evaluate
from tokengym.agents.rollouts.collect import Start, collect, continue_from
from tokengym.agents.rollouts.conditioned_policy import ConditionedPolicy, load_policy
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.envs import Problem, ProblemList, TokenEnv, TokenVectorEnv
from tokengym.envs.curriculum import Sequential
from tokengym.models import load_tokenizer
from tokengym.models.condition_tokens import Labels
from tokengym.models.engine.sampling import sample, stream_key
from tokengym.registry import UnknownNameError
from tokengym.rewards import Verdict

LINES = load_tokenizer("chars:ab?\n")
NEWLINE = LINES.encode("\n", add_special_tokens=False)[0]
SIZE = len(LINES)
IDS = {"eos_token_id": LINES.eos_token_id, "pad_token_id": LINES.pad_token_id}
SETTINGS = {"tokenizer": LINES, "prompt": "{question}", "max_prompt_tokens": 12, "max_new_tokens": 9}


class Questions(ProblemList):
    """Correct is whatever begins with an a."""

    def __init__(self) -> None:
        super().__init__([Problem(f"p{i}", "ab?\naab?\nb?"[: i % 11 + 1], "a") for i in range(40)])

    def grade(self, completion: str, problem: Problem) -> Verdict:
        return Verdict(completion.startswith("a"), "correct" if completion.startswith("a") else "wrong", completion[:1])


def slots(num_envs: int, mode: AutoresetMode = AutoresetMode.DISABLED) -> TokenVectorEnv:
    return TokenVectorEnv(Questions(), num_envs, autoreset_mode=mode, curriculum=Sequential(), copy=False, **SETTINGS)


def labels_for(granularity: Any = "step", learnt: bool = True) -> Labels:
    return Labels(("[BAD]", "[GOOD]"), SIZE, granularity, (0.5,), learnt)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, make_model) -> Any:
    return make_model(request.param, vocab_size=SIZE + 2, initializer_range=0.5, **IDS)


@pytest.fixture(params=["step", "attempt"])
def policy(request, model) -> ConditionedPolicy:
    return ConditionedPolicy(model, LINES, labels_for(request.param))


def naive(policy: ConditionedPolicy, prompt: np.ndarray, label: int, key: int = 0) -> list[int]:
    """A whole attempt by full forward passes, labels inserted by hand."""
    ids, drawn = prompt.tolist(), []
    while len(drawn) < SETTINGS["max_new_tokens"] and LINES.eos_token_id not in drawn:
        if not drawn or (policy.labels.granularity == "step" and ids[-1] == NEWLINE):
            ids.append(label)
        with torch.no_grad():
            logits = policy.model(torch.tensor([ids])).logits[:, -1, :SIZE]
        token = int(sample(logits, torch.tensor([key]), torch.tensor([len(drawn)]), policy.sampling)[0])
        ids.append(token)
        drawn.append(token)
    return drawn


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("condition", ["[BAD]", "[GOOD]"])
def test_attempts_equal_the_naive_loop_whatever_the_slots(policy, condition: str, temperature: float) -> None:
    policy = policy.with_condition(condition).with_sampling(temperature=temperature)
    for num_envs in (3, 16):
        env = slots(num_envs)
        for attempt in collect(policy, env, 16, seed=7):
            key = stream_key(7, attempt.problem.id, 0)
            expected = naive(policy, attempt.prompt, policy.labels.id(condition), key)
            assert attempt.completion.tolist() == expected
            assert attempt.prompt.tolist() == env.encode_prompt(attempt.problem).tolist()  # no label in it


def test_continuations_of_a_prefix_have_a_label_behind_it(policy) -> None:
    starts = [Start("p3", np.array([0, NEWLINE])), Start("p3", np.array([1])), Start("p5", np.empty(0, np.int64))]
    for i, attempt in enumerate(continue_from(policy, slots(2), starts, seed=3)):
        key = stream_key(3, attempt.problem.id, attempt.index)
        left = SETTINGS["max_new_tokens"] - len(starts[i].prefix)
        assert attempt.completion.tolist() == naive(policy, attempt.prompt, SIZE + 1, key)[:left]


def test_predict_is_the_same_policy_through_resets_and_other_actions(policy) -> None:
    env = slots(4, AutoresetMode.NEXT_STEP)
    observation, _ = env.reset(seed=0)
    state, start = None, np.ones(4, bool)
    rng = np.random.default_rng(0)
    histories: list[list[int]] = [[] for _ in range(4)]
    for _ in range(40):
        actions, state = policy.predict(observation, state, start, deterministic=True)
        for i in range(4):
            ids = observation["input_ids"][i, : observation["attention_mask"][i].sum()].tolist()
            begins = policy.labels.granularity == "step" and ids[-1] == NEWLINE
            histories[i] = [*ids, SIZE + 1] if start[i] else [*histories[i], ids[-1], *[SIZE + 1] * begins]
            with torch.no_grad():
                logits = policy.model(torch.tensor([histories[i]])).logits[0, -1, :SIZE]
            assert actions[i] == int(logits.argmax())
        assert env.action_space.contains(actions)
        done = np.where(rng.random(4) < 0.3, rng.choice([0, 1, NEWLINE], 4), actions)
        observation, *_ = env.step(done)
        start = np.array([len(env.completion(slot)) == 0 for slot in range(4)])


def test_a_single_environment_and_the_evaluation_see_the_same_attempts(policy) -> None:
    single = TokenEnv(Questions(), curriculum="sequential", **SETTINGS)
    greedy = list(collect(policy.with_sampling(temperature=0.0), slots(5), 8, seed=0))
    for i, attempt in enumerate(greedy):
        observation, _ = single.reset(seed=0 if i == 0 else None)
        tokens, state, ended = [], None, False
        while not ended:
            action, state = policy.predict(observation, state, deterministic=True)
            tokens.append(action)
            observation, _, terminated, truncated, _ = single.step(action)
            ended = terminated or truncated
        assert tokens == attempt.completion.tolist()
    result = evaluate(policy, slots(5), problems=8)
    assert result.metrics["maj@1"].value == np.mean([attempt.is_success for attempt in greedy])


def test_a_saved_model_is_conditioned_on_the_best_label_unless_told_otherwise(model, tmp_path: Path) -> None:
    labels = labels_for()
    model.save_pretrained(tmp_path)
    labels.save(tmp_path, LINES)
    best: Any = load_policy(tmp_path, device="cpu")
    assert (best.condition, best.labels, len(best.tokenizer)) == ("[GOOD]", labels, SIZE)
    for condition in ("[BAD]", "own"):
        assert load_policy(tmp_path, condition, device="cpu").condition == condition  # pyright: ignore
    with pytest.raises(UnknownNameError, match=r"unknown label '\[WORSE\]'"):
        load_policy(tmp_path, "[WORSE]", device="cpu")


def test_a_model_without_labels_cannot_be_conditioned(make_model, tmp_path: Path) -> None:
    make_model(vocab_size=SIZE, **IDS).save_pretrained(tmp_path)
    LINES.save_pretrained(tmp_path)
    assert type(load_policy(tmp_path, device="cpu")) is CausalLMPolicy
    with pytest.raises(ValueError, match=r"has no label tokens and cannot be conditioned on '\[GOOD\]'"):
        load_policy(tmp_path, "[GOOD]")
    with pytest.raises(ValueError, match="the model has no embeddings for the labels"):
        ConditionedPolicy(make_model(vocab_size=SIZE, **IDS), LINES, labels_for())
    with pytest.raises(ValueError, match="was not trained to draw labels itself"):
        ConditionedPolicy(make_model(vocab_size=SIZE + 2, **IDS), LINES, labels_for(learnt=False), "own")
