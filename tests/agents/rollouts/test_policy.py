"""`predict` with its SB3-style state: the actions of a full forward pass, whatever the environment does with slots."""

import copy

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.evaluation import evaluate_policy
from torch import nn

from tokengym.agents import ExpertIteration, evaluate
from tokengym.agents.rollouts.collect import collect
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.envs import Problem, ProblemList, TokenEnv, TokenVectorEnv
from tokengym.envs.curriculum import Sequential
from tokengym.envs.sb3 import SB3VecEnv
from tokengym.models.engine.decoder import SlotDecoder
from tokengym.models.engine.row_decoder import RowDecoder
from tokengym.models.engine.sampling import SamplingConfig


class Strings(ProblemList):
    """Prompts of every length from one token on."""

    def __init__(self) -> None:
        super().__init__([Problem(f"p{i}", "1234567890+="[: i % 12 + 1], "7") for i in range(60)])


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def policy(request, make_model, tokenizer) -> CausalLMPolicy:
    return CausalLMPolicy(make_model(request.param), tokenizer)


def greedy(policy: CausalLMPolicy, row: np.ndarray, length: int) -> int:
    with torch.no_grad():
        return int(policy.model(torch.from_numpy(row[:length].copy())[None]).logits[0, -1].argmax())


def strings(num_envs: int, mode: AutoresetMode, tokenizer, **settings) -> TokenVectorEnv:
    settings = {"max_prompt_tokens": 12, "max_new_tokens": 5, "prompt": "{question}", "copy": False} | settings
    return TokenVectorEnv(Strings(), num_envs, tokenizer=tokenizer, autoreset_mode=mode, **settings)


@pytest.mark.parametrize("told", [True, False], ids=["episode_start", "no episode_start"])
@pytest.mark.parametrize("copy", [True, False], ids=["copies", "views"])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_greedy_actions_equal_a_full_forward_pass_through_resets(policy, tokenizer, mode, copy: bool, told) -> None:
    """A new prompt may be as long as what was there plus one, and has to be told from it all the same."""
    env = strings(5, mode, tokenizer, copy=copy, curriculum="uniform")
    observation, _ = env.reset(seed=0)
    state, start = None, np.ones(5, bool)
    rng = np.random.default_rng(0)
    for _ in range(60):
        actions, state = policy.predict(observation, state, start if told else None, deterministic=True)
        lengths = observation["attention_mask"].sum(1)
        expected = [greedy(policy, observation["input_ids"][i], lengths[i]) for i in range(5)]
        assert actions.tolist() == expected
        assert actions.dtype == np.int64
        # What is done need not be what was predicted.
        done = np.where(rng.random(5) < 0.3, rng.choice([3, 15], 5), actions)
        observation, _, terminations, truncations, _ = env.step(done)
        start = terminations | truncations


def _fused(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, fused=True)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()


@torch.no_grad()
def _in_place(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.mul_(-0.5)


def _data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(-0.5)


def _others(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * -0.5


@pytest.mark.parametrize("change", [_in_place, _fused, _data, _others], ids=lambda change: change.__name__)
@pytest.mark.parametrize("again", [True, False], ids=["the same prompts", "the middle of attempts"])
def test_a_state_that_is_kept_follows_changes_of_the_weights(policy, tokenizer, change, again: bool) -> None:
    policy = CausalLMPolicy(copy.deepcopy(policy.model), tokenizer)
    env = strings(5, AutoresetMode.NEXT_STEP, tokenizer)
    observation, _ = env.reset(seed=0)
    actions, state = policy.predict(observation, deterministic=True)
    policy.model.train()
    change(policy.model)
    observation = env.reset(seed=0)[0] if again else env.step(actions)[0]
    for _ in range(3):
        actions, state = policy.predict(observation, state, deterministic=True)
        lengths = observation["attention_mask"].sum(1)
        assert actions.tolist() == [greedy(policy, observation["input_ids"][i], lengths[i]) for i in range(5)]
        observation = env.step(actions)[0]


def test_a_state_that_is_kept_is_continued_while_the_weights_are_the_same(policy, tokenizer) -> None:
    env = strings(5, AutoresetMode.NEXT_STEP, tokenizer)
    observation, _ = env.reset(seed=0)
    actions, state = policy.predict(observation)
    policy.model.train()
    assert policy.with_sampling(top_k=3).predict(env.step(actions)[0], state)[1] is state
    assert not policy.model.training  # no dropout


def test_a_tokenizer_with_ids_that_the_model_lacks_is_refused(make_model, tokenizer) -> None:
    size = len(tokenizer)
    with pytest.raises(
        ValueError, match=rf"its token .* has id {size - 1}, .* embeddings for ids 0 to {size - 2} only"
    ):
        CausalLMPolicy(make_model(vocab_size=size - 1, pad_token_id=None), tokenizer)
    CausalLMPolicy(make_model(vocab_size=size + 1), tokenizer)  # many models have rows without a token


@pytest.mark.parametrize("decoder", [SlotDecoder, RowDecoder])
def test_an_added_token_that_the_model_lacks_is_an_error_where_a_text_has_it(
    policy, tokenizer, decoder, monkeypatch
) -> None:
    wider = copy.deepcopy(tokenizer)
    wider.add_tokens("!")
    monkeypatch.setattr(CausalLMPolicy, "decoder", lambda self, slots: decoder(self.model.eval(), slots, len(wider)))
    by_hand = CausalLMPolicy(policy.model, wider)
    observation, other = (strings(3, AutoresetMode.NEXT_STEP, each).reset(seed=0)[0] for each in (wider, tokenizer))
    actions, state = by_hand.predict(observation, deterministic=True)
    assert actions.tolist() == policy.predict(other, deterministic=True)[0].tolist()
    message = rf"the token id {len(tokenizer)} is to be read, .* ids 0 to {len(tokenizer) - 1} only: use its own tokeni"
    lengths = observation["attention_mask"].sum(1)
    for array, value in (("input_ids", len(tokenizer)), ("attention_mask", 1)):
        observation[array][np.arange(3), lengths] = value
    with pytest.raises(ValueError, match=message):
        by_hand.predict(observation, state)
    env = strings(3, AutoresetMode.DISABLED, wider, prompt="{question}!", max_prompt_tokens=13)
    with pytest.raises(ValueError, match=message):
        list(collect(by_hand, env, 3, seed=0))


def test_an_unknown_sampling_setting_suggests_the_nearest(policy) -> None:
    with pytest.raises(TypeError, match="unknown setting of SamplingConfig 'temprature': did you mean 'temperature'"):
        policy.with_sampling(temprature=1)
    assert policy.with_sampling(top_k=3).with_sampling(temperature=0.5).sampling == SamplingConfig(0.5, top_k=3)


def test_a_state_of_another_model_or_environment(policy, tokenizer) -> None:
    observation, _ = strings(5, AutoresetMode.NEXT_STEP, tokenizer).reset(seed=0)
    other = CausalLMPolicy(copy.deepcopy(policy.model), tokenizer)
    _in_place(other.model)
    state = policy.predict(observation)[1]
    actions, _ = other.predict(observation, state, np.ones(5, bool), deterministic=True)
    assert actions.tolist() == other.predict(observation, deterministic=True)[0].tolist()
    fewer, _ = strings(1, AutoresetMode.NEXT_STEP, tokenizer).reset(seed=0)
    with pytest.raises(
        ValueError, match=r"the state is of observations of shape \[5, 17\], and this one has \[1, 17\]"
    ):
        policy.predict(fewer, state)


def test_single_environment(policy, tokenizer) -> None:
    env = TokenEnv(Strings(), tokenizer=tokenizer, prompt="{question}", max_prompt_tokens=12, max_new_tokens=5)
    for episode in range(12):
        observation, _ = env.reset(seed=episode)
        state, start, ended = None if episode % 2 else locals().get("state"), np.array([True]), False
        while not ended:
            action, state = policy.predict(observation, state, start, deterministic=True)
            assert isinstance(action, int)
            assert action == greedy(policy, observation["input_ids"], observation["attention_mask"].sum())
            observation, _, terminated, truncated, _ = env.step(action)
            ended, start = terminated or truncated, np.array([False])


def test_episodes_equal_greedy_rollouts(policy, tokenizer) -> None:
    env = strings(4, AutoresetMode.DISABLED, tokenizer, curriculum=Sequential())
    attempts = list(collect(policy.with_sampling(temperature=0.0), env, 12, seed=0))
    single = TokenEnv(
        Strings(), tokenizer=tokenizer, prompt="{question}", max_prompt_tokens=12, max_new_tokens=5,
        curriculum="sequential",
    )  # fmt: skip
    for i, attempt in enumerate(attempts):
        observation, info = single.reset(seed=0 if i == 0 else None)
        assert info["problem_id"] == attempt.problem.id
        tokens, state, ended = [], None, False
        while not ended:
            action, state = policy.predict(observation, state, deterministic=True)
            tokens.append(action)
            observation, _, terminated, truncated, _ = single.step(action)
            ended = terminated or truncated
        assert tokens == attempt.completion.tolist()


def test_stochastic_actions_follow_the_distribution_and_the_seed(policy, tokenizer) -> None:
    env = strings(200, AutoresetMode.NEXT_STEP, tokenizer)
    observation, _ = env.reset(seed=0, options={"problem_id": "p4"})
    actions, _ = policy.predict(observation)
    again, state = policy.predict(observation)
    assert actions.tolist() == again.tolist()
    other, _ = CausalLMPolicy(policy.model, tokenizer, seed=1).predict(observation)
    assert actions.tolist() != other.tolist()
    counts = np.bincount(actions, minlength=17)
    for _ in range(9):  # new attempts, new draws
        actions, state = policy.predict(observation, state, np.ones(200, bool))
        counts += np.bincount(actions, minlength=17)
    with torch.no_grad():
        row = observation["input_ids"][0][: observation["attention_mask"][0].sum()]
        expected = policy.model(torch.from_numpy(row.copy())[None]).logits[0, -1].softmax(-1).numpy() * counts.sum()
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 46  # 16 degrees of freedom: exceeded once in 10,000


def test_sb3_evaluates_an_agent(folder, sums, make_sums, tokenizer) -> None:
    agent = ExpertIteration(sums, folder, device="cpu", num_envs=3)
    envs = make_sums(3, autoreset_mode="SameStep", curriculum=Sequential(3), tokenizer=agent.tokenizer)
    returns, lengths = evaluate_policy(
        agent,  # pyright: ignore[reportArgumentType]
        SB3VecEnv(envs),
        n_eval_episodes=9,
        deterministic=True,
        return_episode_rewards=True,
    )
    env = make_sums(3, curriculum=Sequential(3), tokenizer=agent.tokenizer)
    attempts = list(collect(agent.policy.with_sampling(temperature=0.0), env, 9, seed=0))
    # Three equal attempts at each problem, one per slot.
    assert sorted(returns) == sorted(attempt.total_reward for attempt in attempts)
    assert sorted(lengths) == sorted(len(attempt.completion) for attempt in attempts)


def test_names_and_models_without_tokenizer_are_no_policy(policy, tokenizer, folder) -> None:
    for given in ((str(folder), tokenizer), (policy.model, str(folder)), (tokenizer, policy.model)):
        with pytest.raises(
            TypeError, match=r"a policy is made of a language model and its tokenizer, got .*load_policy"
        ):
            CausalLMPolicy(*given)
    for given in (str(folder), policy.model):
        with pytest.raises(TypeError, match=r"evaluate takes a policy or an agent, got .*load_policy"):
            evaluate(given, "tokengym/Arithmetic-v0", problems=1)
