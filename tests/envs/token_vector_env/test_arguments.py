"""Rendering, and arguments that do not fit."""

import copy

import numpy as np
import pytest
import torch

from tokengym.envs import Curriculum
from tokengym.models import load_tokenizer
from tokengym.registry import UnknownNameError
from tokengym.rewards import Reward, SparseReward, SumReward
from tokengym.rewards.base import RewardError

TOKENIZER = load_tokenizer("chars:0123456789+=#\n")
EOS = TOKENIZER.eos_token_id
VOCABULARY = len(TOKENIZER)


def test_rendering_shows_problem_tokens_and_the_reward_of_each_line(make, play, tokens_of):
    env = make(2, render_mode="ansi", max_new_tokens=6)
    env.reset(options={"problem_id": ["sum-34", "sum-11"]})
    play(env, [tokens_of("72"), tokens_of("\n=")])
    first, second = env.render()
    assert first.splitlines() == ["problem sum-34", "3+4=", "  +0.000 | 7"]
    assert second.splitlines() == ["problem sum-11", "1+1=", "  +0.000 | 2="]
    play(env, [[tokens_of("7")[0], EOS]])
    assert env.render()[0].splitlines() == ["problem sum-34", "3+4=", "  +0.000 | 7", "  +0.000 | 7"]


def test_rendering_shows_the_reward_where_it_was_paid(make, play, tokens_of):
    env = make(render_mode="ansi")
    env.reset(options={"problem_id": "sum-34"})
    play(env, [tokens_of("7"), [EOS]])
    assert env.render() == (f"problem sum-34\n3+4=\n  +1.000 | 7{TOKENIZER.eos_token}",)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_envs": 0}, ValueError, "num_envs must be at least 1"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1"),
        ({"num_problems": 0}, ValueError, "num_problems must be at least 1"),
        ({"on_long_prompt": "cut"}, ValueError, "'error' or 'skip'"),
        ({"render_mode": "human"}, TypeError, "render_mode"),
        ({"reward": "spars"}, UnknownNameError, "did you mean 'sparse'"),
        ({"curriculum": "sequentail"}, UnknownNameError, "did you mean 'sequential'"),
        ({"curriculum": {"repeats": 3}}, ValueError, "a curriculum is a name, a mapping .* or a Curriculum, not "),
        ({"curriculum": {"name": "sequential", "repeats": 0}}, ValueError, "repeats must be at least 1"),
        ({"prompt": "qaa"}, UnknownNameError, "did you mean 'qa'"),
        ({"prompt": "Question: "}, ValueError, "{question}"),
        ({"eos_token_ids": [VOCABULARY]}, ValueError, "outside the vocabulary"),
        ({"autoreset_mode": "Disable"}, UnknownNameError, "did you mean 'Disabled'"),
        ({"shots": "2"}, TypeError, "shots must be a whole number, got '2'"),
        ({"eos_token_ids": "12"}, TypeError, "eos_token_ids must be a list, got '12'"),
        ({"eos_token_ids": [None]}, TypeError, r"eos_token_ids\[0\] must be a whole number, got None"),
        ({"seed": "a"}, TypeError, "seed must be a whole number or None, got 'a'"),
    ],
)
def test_bad_arguments_name_themselves(make, settings, error, message):
    with pytest.raises(error, match=message):
        make(**settings)


def test_a_tokenizer_needs_an_end_of_sequence_token(make):
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        make(tokenizer=tokenizer)


def test_a_tokenizer_without_pad_token_pads_with_end_of_sequence(make):
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.pad_token = None
    env = make(tokenizer=tokenizer)
    observation, _ = env.reset()
    assert set(observation["input_ids"][0, 4:].tolist()) == {EOS}
    _, _, terminations, _, _ = env.step([1])
    assert not terminations[0]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros(1), r"Careless\.score must return shape \(2, 1\), got \(1,\)"),
        (None, r"Careless\.score must return shape \(2, 1\), got \(\)"),
        ([[0.0], ["x"]], r"Careless\.score must return numbers, got \[\[0\.0\], \['x'\]\]"),
        (torch.ones(2, 1, requires_grad=True), r"Careless\.score must return numbers, .*give \.detach\(\)"),
    ],
)
def test_what_a_reward_must_not_return_is_named(make, scores, message):
    class Careless(Reward):
        def score(self, lengths, ended, verdicts):
            return scores

    for reward in (Careless(), SumReward([("careless", 1.0, Careless()), ("sparse", 1.0, SparseReward())])):
        env = make(2, reward=reward)
        env.reset()
        with pytest.raises(RewardError, match=message):
            env.step([1, 1])


def test_rewards_may_be_a_list_or_of_another_type_of_numbers(make):
    class Counted(Reward):
        def score(self, lengths, ended, verdicts):
            return lengths[:, None].tolist()

    env = make(2, reward=Counted())
    env.reset()
    _, rewards, *_ = env.step([1, 1])
    assert rewards.dtype == np.float64
    assert rewards.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("changed", ["lengths", "ended", "completion"])
def test_a_reward_cannot_change_what_the_environment_counts_with(make, changed):
    class Changing(Reward):
        def score(self, lengths, ended, verdicts):
            {"lengths": lengths, "ended": ended, "completion": self.view.completion(0)}[changed][:] = 0
            return np.zeros((len(lengths), 1))

    env = make(2, reward=Changing())
    env.reset()
    with pytest.raises(ValueError, match="read-only"):
        env.step([1, 1])


def test_a_reward_that_leaves_its_base_out_is_told_so(make, play, tokens_of):
    class Unbound(SparseReward):
        def bind(self, view):
            pass

    class Unbegun(SparseReward):
        def begin(self, slots, problems, prefix_lengths):
            pass

    with pytest.raises(TypeError, match=r"Unbound.bind must call super\(\).bind\(view\)"):
        make(reward=Unbound())
    env = make(reward=Unbegun())
    env.reset()
    with pytest.raises(RewardError, match=r"Unbegun .* its `begin` must call super\(\).begin"):
        play(env, [tokens_of("7"), [EOS]])


@pytest.mark.parametrize(
    ("chosen", "given", "message"),
    [
        (None, "", "Careless.next chose None: it must return the index of a problem, or its id"),
        (1.0, "", "Careless.next chose 1.0: it must"),
        (0, None, "what Careless.prefix returns must be text, got None"),
        (0, [1, 2], r"what Careless.prefix returns must be text, got \[1, 2\]"),
    ],
)
def test_what_a_curriculum_must_not_return_is_named(make, chosen, given, message):
    class Careless(Curriculum):
        def next(self, rng, size):
            return chosen

        def prefix(self, problem):
            return given

    env = make(curriculum=Careless())
    with pytest.raises(TypeError, match=message):
        env.reset()


def test_what_a_source_must_not_return_is_named(make, sums):
    class Rows(sums):
        def __getitem__(self, index):
            return {"question": "1+1=", "answer": "2"}

    class Empty(sums):
        size = 0

    with pytest.raises(TypeError, match=r"gave \{'question': '1\+1=', .* for \d+: give Problem\(id, question, answer"):
        make(problems=Rows()).reset()
    with pytest.raises(ValueError, match="has no problems"):
        make(problems=Empty()).reset()


def test_a_reward_instance_belongs_to_one_environment(every_token, make):
    reward = every_token()
    make(reward=reward)
    with pytest.raises(ValueError, match="belongs to an environment"):
        make(reward=reward)


def test_limits_may_be_integers_of_numpy(make):
    env = make(num_envs=np.int64(2), max_new_tokens=np.int32(6), max_prompt_tokens=np.int64(10))
    observation, _ = env.reset(seed=0)
    assert observation["input_ids"].shape == (2, 16)
    assert type(env.max_new_tokens) is type(env.num_envs) is int
