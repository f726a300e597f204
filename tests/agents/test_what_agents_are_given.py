"""What agents and evaluations are given: environments by id, wrapped ones, and models that are none."""

import gymnasium as gym
import pytest

from tokengym.agents import SFT, evaluate


def test_a_wrapped_environment_is_refused_and_not_unwrapped(sums, folder, make_sums):
    wrapped = gym.wrappers.TransformReward(sums, lambda reward: -reward)
    slots = gym.wrappers.vector.TransformReward(make_sums(2), lambda rewards: -rewards)
    for env in (wrapped, slots):
        with pytest.raises(TypeError, match="is wrapped, and an agent makes slots of its own"):
            SFT(env, folder, demonstrations=4)


def test_a_model_object_is_refused(sums, make_model):
    with pytest.raises(TypeError, match=r"not a LlamaForCausalLM: .*save_pretrained"):
        SFT(sums, make_model(), demonstrations=4)


def test_an_evaluation_takes_a_gymnasium_environment_and_then_its_test_split(sums, folder):
    agent = SFT(sums, folder, demonstrations=4, num_envs=2)
    seen = []
    result = evaluate(agent, sums, problems=2, on_problem=seen.extend)
    assert result.problems == 2
    assert [attempt.problem.id for attempt in seen] == ["arithmetic-test-0-0", "arithmetic-test-0-1"]
