"""Stock Stable-Baselines3 on the vector environment."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from tokengym.envs import SB3VecEnv

# One-digit sums of one-digit numbers: two tokens, the digit and end-of-sequence.
ADDITION = {
    "style": "equation",
    "operations": "+",
    "steps": 1,
    "max_value": 9,
    "tokenizer": "chars:0123456789+=",
    "prompt": "{question}",
    "max_prompt_tokens": 4,
    "max_new_tokens": 2,
}


def make(num_envs: int, **settings) -> SB3VecEnv:
    settings = {**ADDITION, "autoreset_mode": "SameStep", **settings}
    return SB3VecEnv(gym.make_vec("tokengym/Arithmetic-v0", num_envs, **settings))


def test_what_sb3_is_told():
    envs = make(2)
    eos = envs.get_attr("tokenizer")[0].eos_token_id
    envs.seed(3)
    start = envs.reset()
    assert start["input_ids"].shape == (2, 6)
    problems = envs.env_method("problem")
    assert [info["problem_id"] for info in envs.reset_infos] == [problem.id for problem in problems]
    assert envs.env_method("problem", indices=[1]) == problems[1:]
    answer = int(problems[0].answer)
    _, rewards, dones, infos = envs.step(np.array([answer, answer]))
    assert (rewards.tolist(), dones.tolist()) == ([0, 0], [False, False])
    assert infos == [{"TimeLimit.truncated": False}] * 2
    observation, rewards, dones, infos = envs.step(np.array([eos, 0]))
    assert rewards.dtype == np.float32
    assert (rewards.tolist(), dones.tolist()) == ([1, 0], [True, True])
    final = infos[0].pop("terminal_observation")
    assert final["input_ids"].tolist() == [*start["input_ids"][0, :4], answer, eos]
    assert infos[0] == {
        "is_success": True,
        "verdict": "correct",
        "answer": str(answer),
        "problem_id": problems[0].id,
        "attempt": 0,
        "episode": {"r": 1.0, "l": 2},
        "TimeLimit.truncated": False,
    }
    # The budget is a part of the task: SB3 must not look for value beyond it.
    assert (infos[1]["verdict"], infos[1]["TimeLimit.truncated"]) == ("truncated", False)
    assert observation["attention_mask"].sum(axis=1).tolist() == [4, 4]
    assert [info["prompt_length"] for info in envs.reset_infos] == [4, 4]
    assert envs.env_is_wrapped(Monitor) == [True, True]
    envs.close()


def test_seeds_and_options_reach_the_environment():
    one, other = make(3), make(3)
    for envs in (one, other):
        envs.seed(5)
    assert np.array_equal(one.reset()["input_ids"], other.reset()["input_ids"])
    one.set_options({"prefix": "7"})
    assert one.reset()["attention_mask"].sum(axis=1).tolist() == [5, 5, 5]
    assert one.reset()["attention_mask"].sum(axis=1).tolist() == [4, 4, 4]
    one.set_options([{"problem_id": 5}, {}, {"problem_id": 9, "prefix": "7"}])
    assert one.reset()["attention_mask"].sum(axis=1).tolist() == [4, 4, 5]
    assert [info["problem_id"].rpartition("-")[2] for info in one.reset_infos][::2] == ["5", "9"]


def test_other_autoreset_modes_are_refused():
    with pytest.raises(ValueError, match=r"SameStep.*NextStep"):
        make(2, autoreset_mode="NextStep")


def test_other_environments_are_told_what_to_give():
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(make(2).envs)
    copies = gym.make_vec("tokengym/Arithmetic-v0", 2, vectorization_mode="sync", **ADDITION)
    for envs in ("tokengym/Arithmetic-v0", gym.make("tokengym/Arithmetic-v0", **ADDITION), wrapped, copies):
        with pytest.raises(
            TypeError, match=r"takes a TokenVectorEnv without wrappers, got .*: make it by gym\.make_vec"
        ):
            SB3VecEnv(envs)


def test_observations_that_the_next_step_changes_are_refused():
    with pytest.raises(ValueError, match="copy=True"):
        make(2, copy=False)


def test_stock_ppo_learns_one_digit_addition():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = PPO(
            "MultiInputPolicy",
            make(256, seed=0),
            n_steps=8,
            batch_size=512,
            n_epochs=8,
            learning_rate=1e-3,
            ent_coef=0.05,
            policy_kwargs={"net_arch": [128, 128], "activation_fn": torch.nn.ReLU},
            seed=0,
            device="cpu",
        )
        # One of 14 tokens, twice: a policy that knows nothing succeeds once in 196 attempts, and one that knows digits
        # and when to end, once in 10.
        untrained, _ = evaluate_policy(model, make(64, seed=1), n_eval_episodes=2000, deterministic=False)
        model.learn(65_536)
        trained, _ = evaluate_policy(model, make(64, seed=1), n_eval_episodes=2000, deterministic=False)
    finally:
        torch.set_num_threads(threads)
    assert untrained < 0.03
    assert trained > 0.4
