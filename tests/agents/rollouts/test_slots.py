"""Slots for rollouts: whose settings take precedence, what ends an attempt, and what does not fit a policy."""

from typing import Any

import gymnasium as gym
import pytest

from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.agents.rollouts.slots import check_vllm, make_rollout_env, make_vllm
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.models import load_tokenizer


@pytest.fixture
def policy(make_model, tokenizer) -> CausalLMPolicy:
    return CausalLMPolicy(make_model(), tokenizer)


def test_arguments_take_precedence_over_settings_of_a_spec_and_these_over_the_policys(sums, policy) -> None:
    own: dict[str, Any] = {**sums.spec.kwargs, "tokenizer": policy.tokenizer, "split": "train", "eos_token_ids": [3]}
    spec = gym.make(sums.spec.id, disable_env_checker=True, **own).spec
    assert spec is not None
    env = make_rollout_env(spec, policy, 2)
    assert env.problems.split == "train"
    assert env.eos_token_ids == {3, policy.tokenizer.eos_token_id}
    assert make_rollout_env(spec, policy, 2, split="validation", eos_token_ids=[]).eos_token_ids == {
        policy.tokenizer.eos_token_id
    }
    assert make_rollout_env(spec, policy, 2, split="validation").problems.split == "validation"


@pytest.mark.parametrize(("ends", "expected"), [(None, {15}), (15, {15}), (4, {4, 15}), ([4, 15, 16], {4, 15, 16})])
def test_an_attempt_ends_by_the_models_end_tokens_and_the_tokenizers(sums, policy, ends, expected) -> None:
    assert policy.tokenizer.eos_token_id == 15
    policy.model.generation_config.eos_token_id = ends
    assert make_rollout_env(sums.spec, policy, 2).eos_token_ids == expected


@pytest.mark.parametrize("characters", ["0123456789+=", "0123456789+=-/ "])
def test_slots_with_another_tokenizer_than_the_policys_are_refused(policy, characters: str) -> None:
    """Also one of as many tokens."""
    env = TokenVectorEnv(
        ProblemList([Problem("p", "1+1=", "2")]), 2, tokenizer=load_tokenizer(f"chars:{characters}"),
        prompt="{question}", autoreset_mode="Disabled", max_prompt_tokens=8, max_new_tokens=4,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"the environment's tokenizer .* is not that of the model"):
        make_rollout_env(env, policy, 2)


def test_an_attempt_fits_into_the_models_positions_with_its_prompt(sums, policy) -> None:
    make_rollout_env(sums.spec, policy, 2, max_prompt_tokens=40, max_new_tokens=24)
    with pytest.raises(
        ValueError, match=r"an attempt of 65 tokens .* 64 positions.*Lower max_prompt_tokens or max_new"
    ):
        make_rollout_env(sums.spec, policy, 2, max_prompt_tokens=40, max_new_tokens=25)


def test_two_ways_to_sample_and_a_folder_that_nobody_reads_are_refused(tmp_path) -> None:
    check_vllm(None, ["http://there:8000"], tmp_path)
    check_vllm(0.5, [], None)
    with pytest.raises(ValueError, match="vllm_memory and vllm_servers are two ways to sample"):
        check_vllm(0.5, ["http://there:8000"], None)
    with pytest.raises(ValueError, match="vllm_folder is where vLLM servers read weights: give vllm_servers, too"):
        check_vllm(0.5, [], tmp_path)


def test_vllm_has_room_for_the_longest_attempt(policy, make_sums, monkeypatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr("tokengym.agents.rollouts.slots.VLLM", lambda *args, **named: made.append((args, named)))
    env = make_sums(3)
    make_vllm(policy, env, 0.4, dtype="bfloat16")
    length = env.max_prompt_tokens + env.max_new_tokens
    assert made == [((policy.model, 3, length), {"memory": 0.4, "dtype": "bfloat16"})]
