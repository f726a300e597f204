"""What all agents share: names, settings, environments, saving and loading."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from tokengym import registry
from tokengym.agents import AGENTS, RFT, SFT, Agent, ExpertIteration, STaR, make_agent
from tokengym.agents.base import DEFAULT_PROBLEMS
from tokengym.agents.evaluation.evaluate import evaluate
from tokengym.agents.rollouts.attempts import RolloutStatistics
from tokengym.agents.rollouts.collect import collect
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.registry import UnknownNameError
from tokengym.rewards import DenseReward, SparseReward

SMALL = {"device": "cpu", "num_envs": 4}


class Thirds(ExpertIteration):
    """A third party's agent."""

    name = "thirds"


class Point(SimpleNamespace):
    """An entry point of a distribution that is not there."""

    def load(self) -> Any:
        self.loads.append(self.name)
        return Thirds


@pytest.fixture
def third_parties(monkeypatch) -> tuple[list[Point], list[str]]:
    """Entry points that seem to be installed, and the names of those that were loaded."""
    points: list[Point] = []

    def entry_points(group: str, name: str | None = None) -> list[Point]:
        return [p for p in points if group == "tokengym.agents" and name in (None, p.name)]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    return points, []


def point(name: str, owner: str, loads: list[str]) -> Point:
    return Point(name=name, value="m:c", dist=SimpleNamespace(name=owner), loads=loads)


def test_agents_are_made_by_name(folder, sums) -> None:
    assert {"ei", "rft", "sft", "star"} <= set(AGENTS.names())
    for name, cls in (("ei", ExpertIteration), ("rft", RFT), ("star", STaR), ("sft", SFT)):
        agent = make_agent(name, sums, folder, **SMALL)
        assert type(agent) is cls
        assert type(agent.config) is cls.config_class


@pytest.mark.parametrize(("name", "nearest"), [("sftt", "sft"), ("rtf", "rft"), ("stra", "star")])
def test_an_unknown_agent_suggests_the_nearest(folder, sums, name: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"unknown agent '{name}': did you mean '{nearest}'\?"):
        make_agent(name, sums, folder)


def test_an_unknown_setting_suggests_the_nearest_before_the_model_is_read(sums) -> None:
    with pytest.raises(TypeError, match=r"ExpertIterationConfig 'sample_per_problem'.*'samples_per_problem'"):
        ExpertIteration(sums, "no such model anywhere", sample_per_problem=3)
    with pytest.raises(TypeError, match="'num_env': did you mean 'num_envs'"):
        ExpertIteration(sums, "no such model anywhere", num_env=3)


def test_an_unknown_environment_suggests_the_nearest(folder) -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'tokengym/Arithmetic-v0'\?"):
        ExpertIteration("tokengym/Arithmatic-v0", folder)


def test_a_third_partys_agent_joins_by_entry_point_and_is_loaded_when_asked_for(folder, sums, third_parties) -> None:
    points, loads = third_parties
    points.append(point("thirds", "their-package", loads))
    assert "thirds" in AGENTS.names()
    assert loads == []
    assert type(make_agent("thirds", sums, folder, **SMALL)) is Thirds
    assert loads == ["thirds"]


def test_a_builtin_wins_and_two_distributions_of_one_name_are_both_named(third_parties) -> None:
    points, loads = third_parties
    points += [point("ei", "usurper", loads), point("x", "one-package", loads), point("x", "another", loads)]
    assert AGENTS.get("ei") is ExpertIteration
    with pytest.raises(ValueError, match=r"agent 'x' is claimed by another and one-package"):
        AGENTS.get("x")
    assert loads == []


# ------------------------------------------------------------------------------------------------------- environments


def test_an_environment_may_come_as_id_spec_single_or_vector(folder, sums, make_sums, tokenizer) -> None:
    vector = gym.make_vec(sums.spec.id, 9, vectorization_mode="vector_entry_point", autoreset_mode="SameStep",
                          **sums.spec.kwargs)  # fmt: skip
    for env in (sums, sums.spec, vector):
        agent = ExpertIteration(env, folder, **SMALL)
        assert agent.env.num_envs == 4
        assert agent.env.max_new_tokens == 4
        assert agent.make_env(split="validation").problems.split == "validation"
        assert agent.make_validation_env().problems[0] != agent.env.problems[0]
    ready = TokenVectorEnv(
        ProblemList([Problem("p", "1", "1")]), 3,
        tokenizer=tokenizer, prompt="{question}", autoreset_mode="Disabled", max_prompt_tokens=16, max_new_tokens=4,
    )  # fmt: skip
    agent = ExpertIteration(ready, folder, **SMALL)
    assert agent.env is ready
    with pytest.raises(ValueError, match="made already"):
        agent.make_validation_env()


def test_validation_pays_by_the_grader_alone(folder, make_sums) -> None:
    spec = make_sums(2, reward="dense", tokenizer=str(folder)).spec
    agent = ExpertIteration(spec, folder, **SMALL)
    assert isinstance(agent.env.reward, DenseReward)
    assert type(agent.make_validation_env().reward) is SparseReward


def test_the_environment_gets_the_models_tokenizer(folder) -> None:
    agent = ExpertIteration(
        gym.make(
            "tokengym/Arithmetic-v0", tokenizer=str(folder), style="equation", max_prompt_tokens=16, max_new_tokens=4
        ).spec,
        folder,
        **SMALL,
    )
    assert agent.env.tokenizer.get_vocab() == agent.tokenizer.get_vocab()


def test_another_tokenizer_than_the_models_is_named(folder) -> None:
    env = gym.make("tokengym/Arithmetic-v0", tokenizer="chars:0123456789+= ", style="equation", prompt="{question}")
    with pytest.raises(
        ValueError, match=rf"tokenizer .* is not that of the model .*{folder.name}.*leave `tokenizer` out"
    ):
        ExpertIteration(env, folder, **SMALL)


def test_demonstrations_are_the_first_problems_and_too_long_ones_are_errors(folder, sums, make_sums) -> None:
    agent = ExpertIteration(sums, folder, **SMALL)
    examples = agent.demonstrations(5)
    assert list(examples) == [agent.env.problems[i].id for i in range(5)]
    for problem_id, example in examples.items():
        problem = agent.env.problems.find(problem_id)
        assert agent.env.decode(example.prompt) == problem.question
        assert agent.env.decode(example.completion) == problem.solution
        assert example.completion[-1] == agent.tokenizer.eos_token_id
    assert len(agent.demonstrations(None)) == DEFAULT_PROBLEMS, "of a source without an end"
    short = gym.make(sums.spec.id, **{**sums.spec.kwargs, "max_new_tokens": 2, "num_problems": 30})
    with pytest.raises(ValueError, match=r"'arithmetic-train-0-0' has 5 prompt and 3 solution tokens.*max_new_tokens"):
        ExpertIteration(short, folder, **SMALL).demonstrations(None)
    skipping = gym.make(sums.spec.id, **{**short.spec.kwargs, "on_long_prompt": "skip"})
    some = ExpertIteration(skipping, folder, **SMALL).demonstrations(None)
    fitting = [p for p in (agent.env.problems[i] for i in range(30)) if len(agent.env.encode_solution(p)) <= 2]
    assert list(some) == [problem.id for problem in fitting]
    assert 0 < len(some) < 30
    # Of a limited number the first that fit, however many are passed over before them.
    assert list(ExpertIteration(skipping, folder, **SMALL).demonstrations(3)) == list(some)[:3]
    assert next(i for i in range(30) if agent.env.problems[i].id == list(some)[2]) > 2
    assert all(len(example.completion) <= 2 for example in some.values())


def test_attempts_at_the_first_problems_leave_the_curriculum_as_it_was(folder, sums) -> None:
    agent = ExpertIteration(sums, folder, **SMALL)
    curriculum = agent.env.curriculum
    attempts = agent.collect_attempts(agent.policy, agent.env, 3, 2, seed=0, folder=None)
    first = [agent.env.problems[i].id for i in range(3)]
    assert [attempt.problem.id for attempt in attempts] == [name for name in first for _ in range(2)]
    assert agent.env.curriculum is curriculum
    with pytest.raises(AttributeError):
        agent.collect_attempts(None, agent.env, 3, 2, seed=0, folder=None)  # pyright: ignore[reportArgumentType]
    assert agent.env.curriculum is curriculum


def test_continuations_are_counted_with_their_tokens(folder, sums, tmp_path) -> None:
    agent = ExpertIteration(sums, folder, **SMALL)
    attempts = agent.collect_attempts(agent.policy, agent.env, 4, 2, seed=0, folder=None)
    ends = [np.arange(len(attempt.completion)) for attempt in attempts]
    counts, sampled = agent.count_successes(
        agent.policy, agent.env, attempts, 3, seed=1, stem=tmp_path / "labels", ends=ends
    )
    prefixes = {(a.problem.id, *a.completion[: i + 1].tolist()) for a in attempts for i in range(len(a.completion) - 1)}
    lines = [json.loads(line) for line in (tmp_path / "labels-0.jsonl").read_text().splitlines()]
    assert len(lines) == len(prefixes)
    assert sampled == {"attempts": 3 * len(prefixes), "tokens": sum(line["tokens"] for line in lines)}
    assert sampled["tokens"] >= sampled["attempts"]
    assert [len(found) for found in counts] == [len(attempt.completion) for attempt in attempts]


def test_attempts_are_shown_once_with_what_is_logged_next(folder, sums, tmp_path, monkeypatch) -> None:
    agent = ExpertIteration(sums, folder, **SMALL, run=tmp_path / "run")
    shown: list[list[str]] = []
    monkeypatch.setattr(
        agent.run, "log", lambda step, metrics, attempts: shown.append([one.question for one in attempts])
    )
    statistics = RolloutStatistics()
    attempts = agent.collect_attempts(agent.policy, agent.env, 2, 2, seed=0, folder=None)
    for attempt in attempts:
        statistics.add(attempt)
    for _ in range(2):
        agent.count(statistics, 1.0)
    assert agent.num_attempts == 8
    assert agent.num_tokens == 2 * sum(len(attempt.completion) for attempt in attempts)
    agent.log({"a": 1.0}, None)
    agent.log({"b": 1.0}, None)
    assert shown == [[agent.env.problems[i].question for i in range(2)], []]


@pytest.mark.parametrize("name", sorted({*AGENTS.names()} - {"backtranslation", "mpo"}))
def test_every_agent_has_defaults_for_an_endless_source(folder, sums, monkeypatch, caplog, name) -> None:
    """Agents that need a number of problems ask `count_problems`; those that never end by themselves do without."""

    def stop(*args: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    for work in ("Agent.collect_attempts", "Learner.__init__", "RolloutStatistics.__init__"):
        monkeypatch.setattr(f"tokengym.agents.base.{work}", stop)
    shallow = {"critic_layers": 1} if hasattr(AGENTS.get(name).config_class, "critic_layers") else {}
    agent = AGENTS.get(name)(sums, folder, **shallow)
    with pytest.raises(KeyboardInterrupt):
        agent.learn()
    assert caplog.text.count("never end: ") == len(agent._defaulted)


@pytest.mark.parametrize("name", ["ei", "sft", "reinforce"])
def test_prompts_over_the_limit_are_found_before_anything_is_learned(folder, sums, name) -> None:
    settings = {"max_prompt_tokens": 2, "num_problems": 8}
    short = gym.make(sums.spec.id, **{**sums.spec.kwargs, **settings})
    agent = AGENTS.get(name)(short, folder, validation_problems=4)
    with pytest.raises(ValueError, match=r"\d of 8 prompts are over max_prompt_tokens=2, the longest, of problem"):
        agent.learn()
    assert agent.num_attempts == 0
    with pytest.raises(ValueError, match="of 2 prompts are over"):
        evaluate(agent, agent.make_env(split="test"), problems=2)


def test_prompts_that_nobody_asks_for_may_be_too_long(folder, tokenizer) -> None:
    env = TokenVectorEnv(
        ProblemList([Problem("p", "1+1=", "2"), Problem("q", "1+1+1=", "3")]), 3,
        tokenizer=tokenizer, prompt="{question}", autoreset_mode="Disabled", max_prompt_tokens=4, max_new_tokens=4,
    )  # fmt: skip
    agent = ExpertIteration(env, folder, **SMALL)
    assert agent.count_problems(1) == 1
    with pytest.raises(ValueError, match="1 of 2 prompts are over max_prompt_tokens=4"):
        agent.count_problems(None)


# ------------------------------------------------------------------------------------------------- saving and loading


TINY = {
    "rounds": 1, "samples_per_problem": 2, "problems": 3, "demonstrations": 4, "epochs": 1, "batch_size": 4,
    "learning_rate": 1e-2, "validation_problems": 3, "betas": (0.9, 0.95), "threshold": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_a_saved_agent_predicts_the_same_and_learns_on(folder, sums, tmp_path, lora_rank: int | None) -> None:
    agent = ExpertIteration(sums, folder, **SMALL, **TINY, seed=3, lora_rank=lora_rank)
    before = [tuple(a.completion) for a in collect(agent.policy, agent.env, 30, seed=0)]
    agent.learn()
    agent.save(tmp_path / "agent")
    loaded = ExpertIteration.load(tmp_path / "agent", device="cpu")
    assert loaded.config == agent.config
    assert hash(loaded.config) == hash(agent.config)
    assert (loaded.seed, loaded.num_envs) == (3, 4)
    assert loaded.env.problems[5] == agent.env.problems[5]
    ours, theirs = (list(collect(a.policy, a.env, 30, seed=0)) for a in (agent, loaded))
    assert [a.completion.tolist() for a in ours] == [a.completion.tolist() for a in theirs]
    np.testing.assert_allclose(
        np.concatenate([a.logprobs for a in ours]), np.concatenate([a.logprobs for a in theirs]), atol=1e-5
    )
    assert [tuple(a.completion) for a in ours] != before  # learning changed something that saving has to keep
    observation, _ = loaded.make_env(autoreset_mode="NextStep").reset(seed=0)
    for deterministic in (True, False):
        assert agent.predict(observation, deterministic=deterministic)[0].tolist() == (
            loaded.predict(observation, deterministic=deterministic)[0].tolist()
        )
    loaded.learn()
    other = ExpertIteration.load(tmp_path / "agent", device="cpu", rounds=5, num_envs=2)
    assert (other.config, other.num_envs) == (dataclasses.replace(agent.config, rounds=5), 2)


def test_saving_leaves_the_agents_adapters_in_place(folder, sums, tmp_path) -> None:
    agent = ExpertIteration(sums, folder, **SMALL, lora_rank=2)
    names = [name for name, _ in agent.model.named_parameters()]
    agent.save(tmp_path / "agent")
    assert [name for name, _ in agent.model.named_parameters()] == names
    assert any("lora_" in name for name in names)


def test_an_agent_on_an_environment_made_by_hand_is_loaded_with_one(folder, tokenizer, tmp_path) -> None:
    env = TokenVectorEnv(
        ProblemList([Problem("p", "1+1=", "2")]), 3,
        tokenizer=tokenizer, prompt="{question}", autoreset_mode="Disabled", max_prompt_tokens=16, max_new_tokens=4,
    )  # fmt: skip
    ExpertIteration(env, folder, device="cpu").save(tmp_path / "agent")
    assert ExpertIteration.load(tmp_path / "agent", env, device="cpu").env is env
    with pytest.raises(ValueError, match="env"):
        ExpertIteration.load(tmp_path / "agent", device="cpu")


def test_loading_what_is_no_such_agent_says_so(folder, sums, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no agent\.json"):
        ExpertIteration.load(folder)
    SFT(sums, folder, **SMALL).save(tmp_path / "agent")
    with pytest.raises(ValueError, match="holds the agent 'sft', not 'ei'"):
        ExpertIteration.load(tmp_path / "agent")


def test_a_run_is_not_overwritten_and_not_resumed_with_other_settings(folder, sums, tmp_path) -> None:
    ExpertIteration(sums, folder, **SMALL, run=tmp_path / "run").log({"a": 1.0}, None)
    with pytest.raises(FileExistsError, match="holds a run already"):
        ExpertIteration(sums, folder, **SMALL, run=tmp_path / "run")
    with pytest.raises(ValueError, match=r"\(config\.temperature: 1\.0 -> 0\.5\)"):
        ExpertIteration(sums, folder, **SMALL, run=tmp_path / "run", resume=True, temperature=0.5)
    with pytest.raises(ValueError, match="lora_rank: None -> 2"):
        ExpertIteration(sums, folder, **SMALL, run=tmp_path / "run", resume=True, lora_rank=2)
    with pytest.raises(ValueError, match="dtype: 'float32' -> 'bfloat16'"):
        ExpertIteration(sums, folder, **SMALL, run=tmp_path / "run", resume=True, dtype="bfloat16")
    ExpertIteration(sums, folder, **SMALL, run=tmp_path / "run", resume=True)


# ---------------------------------------------------------------------------------------------------------------- SFT


def test_sft_learns_the_demonstrations_and_says_how_it_went(folder, sums, tmp_path) -> None:
    told = []
    agent = SFT(
        sums, folder, **SMALL, demonstrations=6, epochs=150, batch_size=6, learning_rate=1e-2, validation_problems=5,
        run=tmp_path / "run",
    )  # fmt: skip
    agent.learn(callback=lambda learning, metrics: told.append((learning is agent, metrics)))
    for i in range(6):
        problem = agent.env.problems[i]
        prompt, tokens = agent.env.encode_prompt(problem), []
        for _ in range(4):
            ids = torch.from_numpy(np.append(prompt, np.array(tokens, np.int64)))[None]
            tokens.append(int(agent.model(ids).logits[0, -1].argmax()))
            if tokens[-1] == agent.tokenizer.eos_token_id:
                break
        assert tokens == agent.env.encode_solution(problem).tolist()
    assert all(own for own, _ in told)
    merged = {name: value for _, metrics in told for name, value in metrics.items()}
    assert merged["train/loss"] < 0.1
    assert 0 <= merged["eval/maj@1"] <= 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, 151), 150]
    assert isinstance(SFT.load(tmp_path / "run" / "model", device="cpu"), Agent)
    again = SFT(
        sums, folder, **SMALL, demonstrations=6, epochs=150, batch_size=6, learning_rate=1e-2, validation_problems=5,
        run=tmp_path / "run", resume=True,
    )  # fmt: skip
    again.learn(callback=lambda *_: pytest.fail("a finished run has nothing to tell"))
    assert all(map(torch.equal, agent.model.parameters(), again.model.parameters()))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == len(lines)
    with pytest.raises(ValueError, match="samples no attempts"):
        agent.learn(total_episodes=5)
    with pytest.raises(ValueError, match="this sft agent has learned already"):
        agent.learn()


def test_adapters_are_shaped_by_arguments_and_a_shape_without_a_rank_is_refused(folder, sums) -> None:
    shape = {"lora_rank": 4, "lora_alpha": 6, "lora_targets": ("q_proj", "v_proj"), "lora_rank_stabilized": True}
    agent = ExpertIteration(sums, folder, **SMALL, **shape)

    def adapters(agent) -> dict[str, float]:
        layers = agent.model.named_modules()
        return {name.split(".")[-1]: layer.scaling["default"] for name, layer in layers if hasattr(layer, "lora_A")}

    assert adapters(agent) == {"q_proj": 3.0, "v_proj": 3.0}  # 6 / sqrt(4)
    settings = {"lora_rank": 4, "lora_rank_stabilized": True, "lora_targets": ("all-linear",)}
    default = adapters(ExpertIteration(sums, folder, **SMALL, **settings))
    assert default.keys() > {"q_proj", "v_proj"}
    assert set(default.values()) == {1.0}
    with pytest.raises(ValueError, match="shape adapters: give lora_rank, too"):
        ExpertIteration(sums, folder, **SMALL, lora_alpha=6)
    with pytest.raises(ValueError, match="q_porj"):
        ExpertIteration(sums, folder, **SMALL, lora_rank=4, lora_targets=("q_porj",))
