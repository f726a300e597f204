"""Gymnasium's contract: its own vector environment as an oracle, autoreset modes, copies and seeds."""

import copy
import itertools
import json
import pickle

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tokengym.envs import TokenEnv, slot_info
from tokengym.models import load_tokenizer

MODES = list(AutoresetMode)
TOKENIZER = load_tokenizer("chars:0123456789+=#\n")
EOS = TOKENIZER.eos_token_id
VOCABULARY = len(TOKENIZER)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_envs", [1, 3])
def test_equals_gymnasiums_vector_env_over_single_envs(make, random_actions, sums, mode, num_envs):
    # Single environments draw from streams of their own and count their own attempts: with one slot everything is
    # comparable, with several the problem is held fixed and the counts are left out.
    settings = {"tokenizer": TOKENIZER, "prompt": "{question}", "max_prompt_tokens": 5, "max_new_tokens": 4}
    settings["num_problems"] = None if num_envs == 1 else 1
    sync = SyncVectorEnv([lambda: TokenEnv(sums(), **settings)] * num_envs, autoreset_mode=mode)
    env = make(num_envs, autoreset_mode=mode, num_problems=settings["num_problems"])
    assert env.metadata["autoreset_mode"] == sync.metadata["autoreset_mode"] == mode
    assert env.observation_space == sync.observation_space
    assert env.action_space == sync.action_space

    def comparable(result):
        if num_envs > 1:
            for infos in (result[-1], result[-1].get("final_info", {})):
                infos.pop("attempt", None)
                infos.pop("_attempt", None)
        return result

    assert data_equivalence(comparable(env.reset(seed=3)), comparable(sync.reset(seed=3)), exact=True)
    ends = 0
    for actions in random_actions(0, 60, num_envs):
        result = env.step(actions)
        assert data_equivalence(comparable(result), comparable(sync.step(actions)), exact=True)
        finished = result[2] | result[3]
        ends += finished.sum()
        if mode is AutoresetMode.DISABLED and finished.any():
            again = env.reset(options={"reset_mask": finished.copy()})
            expected = sync.reset(options={"reset_mask": finished.copy()})
            assert data_equivalence(comparable(again), comparable(expected), exact=True)
    assert ends > 10


def test_same_step_gives_the_final_observation_and_info_of_what_ended(make, tokens_of):
    env = make(2, autoreset_mode="SameStep")
    env.reset(seed=0, options={"problem_id": "sum-12"})
    env.step(tokens_of("33"))
    observation, rewards, terminations, _, infos = env.step([EOS, tokens_of("3")[0]])
    assert terminations.tolist() == [True, False]
    assert rewards.tolist() == [1, 0]
    final = infos["final_obs"][0]
    assert final["input_ids"][:6].tolist() == [*tokens_of("1+2=3"), EOS]
    assert final["attention_mask"].sum() == 6
    assert observation["attention_mask"].sum(axis=1).tolist() == [4, 6]
    assert infos["final_obs"][1] is None
    assert slot_info(infos["final_info"], 0)["verdict"] == "correct"
    assert infos["problem_id"][0] == env.problem(0).id
    assert infos["_problem_id"].tolist() == [True, False]


def test_next_step_ignores_the_action_after_the_end(make):
    env = make(1, autoreset_mode="NextStep")
    env.reset(options={"problem_id": "sum-12"})
    env.step([EOS])
    observation, rewards, terminations, truncations, infos = env.step([10**6])
    assert (rewards[0], terminations[0], truncations[0]) == (0, False, False)
    assert observation["attention_mask"].sum() == infos["prompt_length"][0] == 4
    assert len(env.completion(0)) == 0


def test_disabled_keeps_finished_slots_until_they_are_reset(make):
    env = make(2, autoreset_mode="Disabled")
    env.reset(seed=0)
    env.step([EOS, 1])
    before = env.completion(0).tolist()
    for _ in range(2):
        _, rewards, terminations, truncations, infos = env.step([-1, 1])
        assert (rewards[0], terminations.tolist(), truncations[0]) == (0, [True, False], False)
        assert infos == {}
        assert env.completion(0).tolist() == before
    _, infos = env.reset(options={"reset_mask": np.array([True, False])})
    assert infos["_problem_id"].tolist() == [True, False]
    assert len(env.completion(1)) == 3
    _, _, terminations, truncations, _ = env.step([1, 1])
    assert terminations.tolist() == [False, False]
    assert truncations.tolist() == [False, True]


def test_a_first_reset_may_leave_slots_out(make):
    env = make(3, autoreset_mode="Disabled")
    env.reset(seed=0, options={"reset_mask": np.array([False, True, False])})
    with pytest.raises(ResetNeeded):
        env.problem(0)
    observation, _, terminations, truncations, infos = env.step([1, EOS, 1])
    assert (terminations | truncations).all()
    assert infos["_verdict"].tolist() == [False, True, False]
    assert observation["attention_mask"].sum(axis=1).tolist() == [0, 5, 0]


def test_stepping_before_the_first_reset_is_an_error(make):
    with pytest.raises(ResetNeeded):
        make().step([1])


@pytest.mark.parametrize("action", [VOCABULARY, -1])
def test_actions_outside_the_vocabulary_name_the_slot_and_change_nothing(make, action):
    env = make(2)
    env.reset(seed=0)
    before = env.step([1, 2])[0]
    with pytest.raises(ValueError, match=rf"slot 1: token id {action} is outside the vocabulary \[0, {VOCABULARY}\)"):
        env.step([1, action])
    assert data_equivalence(env._observation(), before)


@pytest.mark.parametrize("actions", [[1], [[1, 2]], [0.5, 1.0], 1])
def test_actions_of_another_shape_or_type(make, actions):
    env = make(2)
    env.reset()
    with pytest.raises(ValueError, match="actions must be 2 integers"):
        env.step(actions)


@pytest.mark.parametrize("mode", MODES)
def test_returned_data_share_no_memory(make, play, random_actions, mode):
    env = make(2, autoreset_mode=mode)
    results = [env.reset(seed=0), *play(env, random_actions(1, 12, 2))]
    arrays = [arrays_in(result) for result in results]
    for one, other in itertools.combinations(arrays, 2):
        assert not any(np.shares_memory(a, b) for a, b in itertools.product(one, other))
    assert not any(np.shares_memory(a, env._tokens) or np.shares_memory(a, env._mask) for a in itertools.chain(*arrays))


def arrays_in(data) -> list[np.ndarray]:
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list | tuple):
        return [array for item in data for array in arrays_in(item)]
    if not isinstance(data, np.ndarray):
        return []
    return arrays_in(data.tolist()) if data.dtype == object else [data]


def test_without_copies_the_observations_are_live_views(make):
    env = make(2, copy=False)
    observation, _ = env.reset(seed=0)
    after, *_ = env.step([1, 2])
    assert np.shares_memory(observation["input_ids"], after["input_ids"])
    assert observation["attention_mask"].sum(axis=1).tolist() == [5, 5]


@pytest.mark.parametrize("mode", MODES)
def test_two_environments_of_one_seed_are_equal(make, play, random_actions, mode):
    one, other = make(3, autoreset_mode=mode), make(3, autoreset_mode=mode, seed=8)
    assert data_equivalence(one.reset(seed=8), other.reset(), exact=True)
    actions = random_actions(2, 40, 3)
    assert data_equivalence(play(one, actions), play(other, actions), exact=True)
    again = one.reset(seed=8)
    assert data_equivalence(again, make(3, autoreset_mode=mode).reset(seed=8), exact=True)
    assert not data_equivalence(again[1], one.reset(seed=9)[1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])  # noqa: S301
def test_a_copy_goes_on_as_the_original(make, play, random_actions, mode, duplicate):
    env = make(3, autoreset_mode=mode)
    env.reset(seed=1)
    play(env, random_actions(3, 5, 3))
    twin = duplicate(env)
    actions = random_actions(4, 30, 3)
    assert data_equivalence(play(env, actions), play(twin, actions), exact=True)


@pytest.mark.parametrize("curriculum", ["uniform", {"name": "sequential", "repeats": 3}])
def test_saved_state_goes_on_as_the_original(make, play, random_actions, curriculum):
    env = make(3, curriculum=curriculum)
    env.reset(seed=1)
    play(env, random_actions(3, 20, 3))
    other = make(3, curriculum=curriculum, seed=77)
    other.load_state_dict(json.loads(json.dumps(env.state_dict())))
    with pytest.raises(ResetNeeded):
        other.step([1, 1, 1])
    assert data_equivalence(env.reset(), other.reset(), exact=True)
    actions = random_actions(4, 30, 3)
    assert data_equivalence(play(env, actions), play(other, actions), exact=True)
    assert env.state_dict() == other.state_dict()
