"""What agents and evaluations are given: environments by id, wrapped ones, and models that are none."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch

from tokengym.agents import ORM, PPO, SFT, Agent, collect, evaluate
from tokengym.agents.rollouts.conditioned_policy import load_policy
from tokengym.agents.training import Example
from tokengym.envs import Problem, ProblemList
from tokengym.models import load, num_token_ids


def test_a_wrapped_environment_is_refused_and_not_unwrapped(sums, folder, make_sums):
    wrapped = gym.wrappers.TransformReward(sums, lambda reward: -reward)
    slots = gym.wrappers.vector.TransformReward(make_sums(2), lambda rewards: -rewards)
    for env in (wrapped, slots):
        with pytest.raises(TypeError, match="is wrapped, and an agent makes slots of its own"):
            SFT(env, folder, demonstrations=4)


def test_problems_in_place_of_an_environment_are_refused(folder):
    with pytest.raises(TypeError, match=r"ProblemList.* is no environment: .*TokenVectorEnv\(problems, num_envs"):
        SFT(ProblemList([Problem("1", "1+1=", "2")]), folder)  # pyright: ignore[reportArgumentType]


def test_a_class_without_a_name_or_settings_is_refused(sums):
    class Nameless(Agent):
        def learn(self, total_episodes=None, callback=None, progress_bar=False):
            return self

    class Named(Nameless):
        name = "named"

    with pytest.raises(TypeError, match="Nameless has no name"):
        Nameless(sums)
    with pytest.raises(TypeError, match=r"Named has no config_class: .*OptimizerConfig"):
        Named(sums)


def test_a_model_object_is_refused(sums, make_model):
    with pytest.raises(TypeError, match=r"not a LlamaForCausalLM: .*save_pretrained"):
        SFT(sums, make_model(), demonstrations=4)


def test_an_agent_without_a_use_for_a_curriculum_says_so(folder, make_sums, caplog):
    PPO(make_sums(2, curriculum="prioritized_replay"), folder, critic_layers=1)
    SFT(make_sums(2, curriculum="sequential"), folder, demonstrations=4)
    assert "curriculum" not in caplog.text
    SFT(make_sums(2, curriculum="prioritized_replay"), folder, demonstrations=4)
    assert "environment's curriculum, PrioritizedReplay, does not count" in caplog.text


def test_an_agent_that_learns_on_the_test_split_says_so(folder, make_sums, caplog):
    SFT(make_sums(2, split="train"), folder, demonstrations=4)
    assert "test split" not in caplog.text
    SFT(make_sums(2, split="test"), folder, demonstrations=4)
    assert "this agent learns on the test split: its evaluation there says nothing" in caplog.text


def test_an_evaluation_takes_a_gymnasium_environment_and_then_its_test_split(sums, folder):
    agent = SFT(sums, folder, demonstrations=4, num_envs=2)
    seen = []
    result = evaluate(agent, sums, problems=2, on_problem=seen.extend)
    assert result.problems == 2
    assert [attempt.problem.id for attempt in seen] == ["arithmetic-test-0-0", "arithmetic-test-0-1"]


@pytest.fixture(scope="module")
def gap_folder(tmp_path_factory, make_model, tokenizer):
    """A model that often ends, by a token whose id is the tokenizer's last, behind eight that no token has."""
    folder, last = tmp_path_factory.mktemp("gap"), len(tokenizer) + 8
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    state["model"]["vocab"][tokenizer.eos_token] = last
    for token in state["added_tokens"]:
        token["id"] = state["model"]["vocab"][token["content"]]
    file.write_text(json.dumps(state))
    model = make_model(vocab_size=last + 1, eos_token_id=last)
    with torch.no_grad():
        model.lm_head.weight[last] *= 4
    model.save_pretrained(folder)
    return folder


def test_ids_that_no_token_has_change_nothing(gap_folder, make_sums):
    """Log-probabilities in rollouts and in training are those of one pass, over all outputs of the model."""
    policy = load_policy(gap_folder, device="cpu")
    assert (len(policy.tokenizer), num_token_ids(policy.tokenizer), policy.tokenizer.eos_token_id) == (17, 26, 25)
    env = make_sums(8, tokenizer=policy.tokenizer)
    attempts = list(collect(policy, env, 16, seed=0))
    assert {25} < set(np.concatenate([attempt.completion for attempt in attempts]).tolist())
    learner = PPO(env, gap_folder, device="cpu", critic_layers=1, minibatch_size=8).make_learner(1)
    examples = [Example(attempt.prompt, attempt.completion) for attempt in attempts]
    for attempt, found in zip(attempts, learner.logprobs(examples), strict=True):
        ids = torch.from_numpy(np.concatenate([attempt.prompt, attempt.completion]))[None]
        with torch.no_grad():
            rows = policy.model(ids).logits[0, len(attempt.prompt) - 1 : -1].log_softmax(-1)
        expected = rows.gather(1, torch.from_numpy(attempt.completion)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(attempt.logprobs, expected, atol=1e-5)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", [SFT, PPO, ORM])
def test_ids_that_no_token_has_stop_no_training(kind, gap_folder, make_sums):
    settings = {
        SFT: {"demonstrations": 4},
        PPO: {"iterations": 1, "problems_per_iteration": 4, "minibatch_size": 8, "critic_layers": 1},
        ORM: {"problems": 64, "balance": False},
    }[kind]
    if kind is not SFT:
        settings["samples_per_problem"] = 2 if kind is PPO else 8
    if kind is not PPO:
        settings["batch_size"] = 4 if kind is SFT else 64
    env, validation = (
        make_sums(16, tokenizer=load(gap_folder, device="cpu")[1], split=split, max_value=4)
        for split in ("train", "validation")
    )
    agent = kind(
        env,
        gap_folder,
        validation_env=validation,
        device="cpu",
        num_envs=4,
        epochs=1,
        validation_problems=4,
        **settings,
    )
    agent.learn()
    if kind is SFT:
        assert evaluate(agent, env, problems=4).problems == 4


@pytest.mark.parametrize("kind", [SFT, PPO, ORM, load_policy])
def test_a_model_without_embeddings_for_its_tokens_is_refused_by_all(kind, tmp_path, make_model, make_sums, tokenizer):
    make_model(vocab_size=len(tokenizer) - 2, pad_token_id=None, eos_token_id=None).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^the tokenizer does not fit the model: its token .* has id 16, .* 0 to 14"):
        kind(tmp_path) if kind is load_policy else kind(make_sums(), tmp_path)
