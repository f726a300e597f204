"""Gymnasium's own wrappers around the environments, and what Stable-Baselines3 makes of an id."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorStatistics
from stable_baselines3.common.env_util import make_vec_env

ID = "tokengym/Arithmetic-v0"
SUMS = {
    "style": "equation", "steps": 1, "max_value": 9, "operations": "+", "tokenizer": "chars:0123456789+=",
    "prompt": "{question}", "max_prompt_tokens": 4, "max_new_tokens": 3,
}  # fmt: skip


def test_episode_statistics_of_one_environment():
    env = RecordEpisodeStatistics(gym.make(ID, **SUMS))
    env.reset(seed=0)
    for steps in range(1, 4):
        *_, truncated, info = env.step(0)
        assert truncated is (steps == 3)
    assert (info["episode"]["r"], info["episode"]["l"]) == (info["episode_return"], info["episode_length"]) == (0.0, 3)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_episode_statistics_of_native_slots(mode):
    env = RecordVectorStatistics(
        gym.make_vec(ID, 3, vectorization_mode="vector_entry_point", autoreset_mode=mode, **SUMS)
    )
    env.reset(seed=0)
    ended = 0
    for step in range(9):
        if mode is AutoresetMode.DISABLED and step and step % 3 == 0:
            env.reset(options={"reset_mask": np.ones(3, bool)})
        _, _, terminations, truncations, infos = env.step(np.zeros(3, int))
        done = terminations | truncations
        if done.any():
            own = infos["final_info"] if mode is AutoresetMode.SAME_STEP else infos
            assert infos["episode"]["l"][done].tolist() == own["episode_length"][done].tolist()
            assert infos["episode"]["r"][done].tolist() == own["episode_return"][done].tolist()
            ended += 1
    assert ended == (2 if mode is AutoresetMode.NEXT_STEP else 3)


def test_episode_statistics_of_gymnasiums_own_vector():
    env = RecordVectorStatistics(gym.make_vec(ID, 2, vectorization_mode="sync", **SUMS))
    env.reset(seed=[1, 2])
    for _ in range(3):
        *_, infos = env.step(np.zeros(2, int))
    assert infos["episode"]["l"].tolist() == infos["episode_length"].tolist() == [3, 3]


def test_a_time_limit_truncates():
    env = TimeLimit(gym.make(ID, **SUMS), 2)
    env.reset(seed=0)
    assert not env.step(0)[3]
    assert env.step(0)[3]
    env.reset(seed=1)
    assert not env.step(0)[3]


def test_stable_baselines3_makes_the_environment_by_its_id():
    env = make_vec_env(ID, 2, env_kwargs=SUMS)
    observation = env.reset()
    assert observation["input_ids"].shape == (2, 7)  # type: ignore


def test_native_slots_take_seeds_and_indices_as_gymnasiums_own_do():
    env = gym.make_vec(ID, 3, vectorization_mode="vector_entry_point", **SUMS)
    first, again, other = (env.reset(seed=seed)[1]["problem_id"].tolist() for seed in ([1, 2, 3], [1, 2, 3], [1, 2, 4]))
    assert first == again != other
    assert env.reset(options={"problem_id": 3})[1]["problem_id"].tolist() == ["arithmetic-train-0-3"] * 3
    assert env.reset(options={"problem_id": [0, None, np.int64(2)]})[1]["problem_id"][2] == "arithmetic-train-0-2"
