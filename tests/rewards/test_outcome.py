"""Outcome models as rewards, in the environment, against one forward pass over each attempt."""

import copy
import json
import pickle
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.models import OutcomeModel, load_tokenizer
from tokengym.models.new_model import ARCHITECTURES, new_model
from tokengym.registry import UnknownNameError
from tokengym.rewards import OutcomeReward, make_reward

TOKENIZER = load_tokenizer("chars:0123456789+=#\n ")
EOS = TOKENIZER.eos_token_id
PROBLEMS = ProblemList([Problem(f"sum-{i}", f"{i}+2=", str(i + 2), f"{i}+2={i + 2}\n#### {i + 2}") for i in range(5)])


def outcome_model(architecture: str, tokenizer=TOKENIZER) -> OutcomeModel:
    language = new_model(tokenizer, architecture, depth=2, width=32, heads=4, positions=64, seed=0)
    model = OutcomeModel.from_causal_lm(language, tokenizer, "orm")
    with torch.no_grad():
        model.head.weight.mul_(20)
    return model


MODELS = {architecture: outcome_model(architecture) for architecture in ARCHITECTURES}


def make(reward, num_envs: int = 1, **arguments) -> TokenVectorEnv:
    arguments = {"tokenizer": TOKENIZER, "prompt": "{question}", "max_prompt_tokens": 8, **arguments}
    return TokenVectorEnv(PROBLEMS, num_envs, reward=reward, **arguments)


def orm(name: str, architecture: str = "llama", **arguments) -> dict:
    return {"name": name, "orm": MODELS[architecture], **arguments}


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def attempt(env: TokenVectorEnv, text: str, end: bool = True) -> np.ndarray:
    """Rewards of the tokens of an attempt in the only slot, end-of-sequence at its end."""
    tokens = encode(text) + [EOS] * end
    return env.step_tokens([tokens], [len(tokens)])[1][0]


def p(model: OutcomeModel, *parts) -> float:
    """The score after the last of some tokens, by a forward pass over all of them."""
    sequence = np.concatenate([np.asarray(part, np.int64) for part in parts])
    return model.score([sequence], [np.array([len(sequence) - 1])])[0][0]


@dataclass
class Record:
    """What an attempt was, and what it was paid."""

    prompt: np.ndarray
    given: int  # tokens of a reset prefix
    completion: list[int]
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False

    def expected(self, model: OutcomeModel, dense: bool) -> np.ndarray:
        """The rewards, read off the text one character at a time."""
        right = np.zeros(len(self.completion))
        if dense:
            line = ""
            for i, token in enumerate(self.completion):
                text = "" if token == EOS else TOKENIZER.decode([token])
                if (text == "\n" or token == EOS) and line.strip():
                    right[i] = p(model, self.prompt, self.completion[: i + 1])
                line = "" if text == "\n" else line + text
        elif self.terminated:
            right[-1] = p(model, self.prompt, self.completion)
        return right[self.given :]


def play(env: TokenVectorEnv, rng: np.random.Generator, calls: int, most: int) -> Iterator[Record]:
    """Attempts of random tokens, up to `most` at a time, and what they were paid; the unfinished ones come last."""
    alphabet = np.array([*encode("12+=\n \n"), EOS])

    def begin(slot: int) -> Record:
        given = env.completion(slot).tolist()
        return Record(env.prompt(slot).copy(), len(given), given)

    env.reset(seed=int(rng.integers(2**31)))
    records = [begin(slot) for slot in range(env.num_envs)]
    for _ in range(calls):
        live = ~(env._terminations | env._truncations)
        if env.autoreset_mode is AutoresetMode.DISABLED and not live.all():
            prefixes = [rng.choice(alphabet[:-1], rng.integers(0, 8)) for _ in range(np.count_nonzero(~live))]
            env.reset(options={"reset_mask": ~live, "prefix": prefixes})
            for slot in np.flatnonzero(~live):
                records[slot] = begin(slot)
            live[:] = True
        tokens = rng.choice(alphabet, (env.num_envs, most), p=[*[0.9 / 7] * 7, 0.1])
        first_eos = np.where((tokens == EOS).any(1), (tokens == EOS).argmax(1) + 1, most)
        left = [env.max_new_tokens - len(env.completion(slot)) if live[slot] else 1 for slot in range(env.num_envs)]
        lengths = np.minimum(np.minimum(first_eos, left), rng.integers(most == 1, most + 1, env.num_envs))
        if most == 1:
            _, rewards, terminations, truncations, _ = env.step(tokens[:, 0])
            rewards = rewards[:, None]
        else:
            _, rewards, terminations, truncations, _ = env.step_tokens(tokens, lengths)
        for slot in range(env.num_envs):
            if not live[slot]:
                if lengths[slot]:
                    records[slot] = begin(slot)
                continue
            record = records[slot]
            record.rewards += rewards[slot, : lengths[slot]].tolist()
            assert not rewards[slot, lengths[slot] :].any()
            record.completion += tokens[slot, : lengths[slot]].tolist()
            record.terminated = bool(terminations[slot])
            if terminations[slot] or truncations[slot]:
                yield record
                if env.autoreset_mode is AutoresetMode.SAME_STEP:
                    records[slot] = begin(slot)
    finished = env._terminations | env._truncations
    yield from (record for slot, record in enumerate(records) if not finished[slot])


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(ARCHITECTURES),
    st.booleans(),
    st.sampled_from(AutoresetMode),
    st.sampled_from([1, 3, 12]),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
)
def test_scores_are_those_of_one_forward_pass_however_tokens_come(
    architecture: str, dense: bool, mode: AutoresetMode, most: int, num_envs: int, seed: int
) -> None:
    model = MODELS[architecture]
    env = make(OutcomeReward(model, dense=dense), num_envs, max_new_tokens=24, autoreset_mode=mode)
    records = list(play(env, np.random.default_rng(seed), calls=40 if most == 1 else 12, most=most))
    for record in records:
        np.testing.assert_allclose(record.rewards, record.expected(model, dense), atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 3, 12]), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_differences_add_up_to_the_sparse_reward_less_the_score_of_the_prefix(
    most: int, num_envs: int, seed: int
) -> None:
    model = MODELS["llama"]
    env = make(OutcomeReward(model, dense=True, shaping="potential"), num_envs, max_new_tokens=24,
               autoreset_mode=AutoresetMode.DISABLED)  # fmt: skip
    for record in play(env, np.random.default_rng(seed), calls=40 if most == 1 else 12, most=most):
        scored = np.flatnonzero(record.expected(model, dense=True)) + record.given
        length, start = len(record.completion), record.given
        potential = p(model, record.prompt, record.completion[:start]) if start else 0.0
        right = np.zeros(length)
        ends = {int(i): p(model, record.prompt, record.completion[: i + 1]) for i in scored}
        if record.terminated:
            ends[length - 1] = p(model, record.prompt, record.completion)
        elif length == env.max_new_tokens:  # with the steps that its last token ends, if it does
            ends[length - 1] = 0.0
        for i in sorted(ends):
            right[i], potential = ends[i] - potential, ends[i]
        np.testing.assert_allclose(record.rewards, right[start:], atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sparse_pays_the_whole_attempt_and_dense_every_step(architecture: str) -> None:
    model = MODELS[architecture]
    text = "1+2=3\n\n#### 3"
    for name, paid in (("sparse_orm", [13]), ("orm", [13]), ("dense_orm", [5, 13])):
        env = make(orm(name, architecture))
        env.reset(options={"problem_id": "sum-1"})
        rewards = attempt(env, text)
        right = np.zeros(14)
        right[paid] = [p(model, encode("1+2="), [*encode(text), EOS][: i + 1]) for i in paid]
        np.testing.assert_allclose(rewards, right, atol=1e-5)
        assert np.all((rewards[paid] > 0) & (rewards[paid] < 1))


def test_the_graders_word_may_be_added() -> None:
    for name in ("sparse_orm", "dense_orm"):
        for text, correct in (("#### 3", True), ("#### 4", False), ("#### 3\n", True)):
            rewards = []
            for mix in ("replace", "add"):
                env = make(orm(name, orm_mix=mix))
                env.reset(options={"problem_id": "sum-1"})
                rewards.append(attempt(env, text))
            np.testing.assert_allclose(rewards[1] - rewards[0], [0] * len(text) + [correct], atol=1e-12)


def test_attempts_without_an_outcome_and_lines_that_were_cut_off_are_not_paid() -> None:
    (prompt,) = [encode("1+2=")]
    for name, text, paid in (
        ("sparse_orm", "1\n22", []),
        ("dense_orm", "1\n22", [1]),
        ("dense_orm", "1\n2\n", [1, 3]),  # the budget ends with a whole step
        ("dense_orm", "1111", []),
        ("dense_orm", "\n\n\n\n", []),
    ):
        env = make(orm(name, orm_mix="add"), max_new_tokens=4)
        env.reset(options={"problem_id": "sum-1"})
        right = np.zeros(4)
        right[paid] = [p(MODELS["llama"], prompt, encode(text)[: i + 1]) for i in paid]
        np.testing.assert_allclose(attempt(env, text, end=False), right, atol=1e-5)


def test_a_step_that_ends_with_the_token_budget_pays_what_was_paid_back() -> None:
    model = MODELS["llama"]
    env = make(OutcomeReward(model, dense=True, shaping="potential"), max_new_tokens=4)
    env.reset(options={"problem_id": "sum-1"})
    score = p(model, encode("1+2="), encode("1\n"))
    np.testing.assert_allclose(attempt(env, "1\n2\n", end=False), [0, score, 0, -score], atol=1e-5)


def test_empty_attempts_and_attempts_of_one_token_over_and_over() -> None:
    prompt = encode("1+2=")
    for text in ("", "\n\n\n", "777777", "######", "      "):
        for name in ("sparse_orm", "dense_orm"):
            env = make(orm(name))
            env.reset(options={"problem_id": "sum-1"})
            right = np.zeros(len(text) + 1)
            if name == "sparse_orm" or text.strip():
                right[-1] = p(MODELS["llama"], prompt, encode(text), [EOS])
            np.testing.assert_allclose(attempt(env, text), right, atol=1e-5)


def test_an_attempt_cut_in_the_middle_of_a_multi_byte_character() -> None:
    tokenizer = load_tokenizer("tokengym/tiny")
    model = outcome_model("llama", tokenizer)
    half = tokenizer("é", add_special_tokens=False)["input_ids"][:1]
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(half) == "\N{REPLACEMENT CHARACTER}"
    for budget, tokens in ((3, [*half, tokenizer.eos_token_id]), (3, [*half, *newline, *half])):
        for name in ("sparse_orm", "dense_orm"):
            env = make({"name": name, "orm": model}, tokenizer=tokenizer, max_prompt_tokens=16, max_new_tokens=budget)
            env.reset()
            prompt = env.prompt(0).copy()
            rewards = env.step_tokens([tokens], [len(tokens)])[1][0]
            right = np.zeros(len(tokens))
            if name == "dense_orm" or tokens[-1] == tokenizer.eos_token_id:
                right[1] = p(model, prompt, tokens[:2])
            np.testing.assert_allclose(rewards, right, atol=1e-5)


def test_steps_of_a_reset_prefix_are_read_but_not_paid() -> None:
    env = make(orm("dense_orm"))
    env.reset(options={"problem_id": "sum-1", "prefix": "1+2=3\n3"})
    rewards = attempt(env, "\n7")
    whole = [*encode("1+2=1+2=3\n3\n7"), EOS]
    np.testing.assert_allclose(rewards, [p(MODELS["llama"], whole[:-2]), 0, p(MODELS["llama"], whole)], atol=1e-5)


def test_environments_share_a_model_but_no_slots() -> None:
    envs = [make(orm("dense_orm")) for _ in range(2)]
    for env, problem in zip(envs, ("sum-0", "sum-1"), strict=True):
        env.reset(options={"problem_id": problem})
    found = [attempt(env, "1")[-1] for env in envs]
    right = [p(MODELS["llama"], encode(f"{i}+2=1"), [EOS]) for i in range(2)]
    np.testing.assert_allclose(found, right, atol=1e-5)


def test_rewards_by_path_survive_json_and_pickling(tmp_path) -> None:
    MODELS["llama"].save(tmp_path)
    reward = {"name": "dense_orm", "orm": str(tmp_path), "orm_mix": "add", "device": "cpu"}
    arguments = {"style": "equation", "tokenizer": "chars:0123456789+=#\n ", "prompt": "{question}", "operations": "+"}
    env = gym.make("tokengym/Arithmetic-v0", reward=reward, **arguments)
    specs = [EnvSpec.from_json(json.dumps(json.loads(env.spec.to_json()))), pickle.loads(pickle.dumps(env.spec))]  # noqa: S301
    paid = []
    for again in (env, *map(gym.make, specs), pickle.loads(pickle.dumps(env.unwrapped))):  # noqa: S301
        again.reset(seed=3)
        again.step(encode("1")[0])
        paid.append(again.step(EOS)[1])
    assert 0 < paid[0] < 1
    assert paid == pytest.approx([paid[0]] * 4, abs=1e-6)
    assert env.spec.kwargs["reward"] == reward


def test_a_part_of_a_sum() -> None:
    env = make({"name": "sum", "terms": [[1.0, "sparse"], [0.5, orm("dense_orm")]]})
    env.reset(options={"problem_id": "sum-1"})
    right = [0] * 6 + [1 + 0.5 * p(MODELS["llama"], encode("1+2=#### 3"), [EOS])]
    np.testing.assert_allclose(attempt(env, "#### 3"), right, atol=1e-5)


@pytest.mark.parametrize("kind", ["orm", "sorm", "preference", "prm"])
def test_each_kind_of_model_is_paid_for_what_it_judges(kind: str) -> None:
    model = copy.copy(MODELS["llama"])
    model.kind = kind
    for paid, refused in (
        ({"dense": False}, kind == "prm"),
        ({"dense": True, "shaping": "potential"}, kind == "prm"),
        ({"dense": True}, kind == "preference"),
    ):
        message = "a process reward model judges single steps" if kind == "prm" else "a preference model compares whole"
        with pytest.raises(ValueError, match=message) if refused else nullcontext():
            make(OutcomeReward(model, **paid))


def test_bad_arguments(tmp_path) -> None:
    with pytest.raises(ValueError, match="reward 'dense_orm' needs orm"):
        make_reward("dense_orm")
    with pytest.raises(UnknownNameError, match=r"unknown orm_mix 'both': .*known are add, replace"):
        make_reward(orm("orm", orm_mix="both"))
    with pytest.raises(UnknownNameError, match="shaping 'potentail': did you mean 'potential'"):
        make(orm("dense_orm", shaping="potentail"))
    with pytest.raises(ValueError, match="leave it out, or set dense"):
        OutcomeReward(MODELS["llama"], dense=False, shaping="potential")
    with pytest.raises(ValueError, match="orm must be an OutcomeModel or the folder of one, not 7"):
        make_reward({"name": "sparse_orm", "orm": 7})
    with pytest.raises(FileNotFoundError, match=r"there is no outcome model '.*nowhere'"):
        make({"name": "orm", "orm": str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match="is not an outcome model"):
        make({"name": "orm", "orm": str(tmp_path)})
    other = outcome_model("llama", load_tokenizer("chars:0123456789+-*/=\n"))
    for given_orm in (other, tmp_path / "other"):
        other.save(tmp_path / "other")
        with pytest.raises(ValueError, match="was trained with another tokenizer"):
            make({"name": "dense_orm", "orm": given_orm})
    env = make(orm("dense_orm"), max_new_tokens=80)
    env.reset(options={"problem_id": "sum-1"})
    with pytest.raises(ValueError, match="a sequence of 70 tokens is longer than the model's 64 positions"):
        attempt(env, "7" * 65)
