"""What each round trains on: thresholds, duplicates, outcome models, worked examples."""

import json
from collections import Counter
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from tokengym.agents import ExpertIteration, expert_iteration
from tokengym.agents.rollouts import collect as rollouts
from tokengym.agents.rollouts.attempts import Attempt, AttemptFile
from tokengym.agents.rollouts.collect import collect
from tokengym.envs import TokenVectorEnv
from tokengym.models import load_tokenizer
from tokengym.models.outcome import OutcomeModel

LETTERS = load_tokenizer("chars:ab?")
EOS = LETTERS.eos_token_id


@pytest.mark.parametrize("restart", ["base", "previous"])
@pytest.mark.parametrize("accumulate", [True, False])
def test_each_round_trains_on_its_distinct_correct_attempts_and_from_where_it_should(
    same, texts, weights, make_agent, trainings, tmp_path, accumulate: bool, restart: str
) -> None:
    agent = make_agent(accumulate=accumulate, restart=restart, run=tmp_path / "run")
    base = weights(agent.model)
    agent.learn()
    assert len(trainings) == 4
    datasets = [texts(examples) for _, examples, _ in trainings]
    demonstrations = [("a?", "a"), ("b?", "b"), ("ab?", "b")]
    assert datasets[0] == demonstrations
    questions = {f"train-{question}": question + "?" for question in ["a", "b", "ab", "ba", "aa", "bb"]}
    for number, dataset in enumerate(datasets[1:], start=1):
        assert len(set(dataset)) == len(dataset)
        assert all(solution.startswith(question[-2]) for question, solution in dataset)
        sampled = set()  # read from the record, without the agent's or the library's help
        for line in (tmp_path / "run" / f"round-{number}" / "attempts-0.jsonl").read_text().splitlines():
            attempt = json.loads(line)
            text = str(LETTERS.decode([token for token in attempt["completion"] if token != EOS]))
            if attempt["completion"][-1] == EOS and text.startswith(attempt["problem_id"][-1]):
                sampled.add((questions[attempt["problem_id"]], text))
        expected = sampled | set(datasets[number - 1]) if accumulate else sampled
        assert set(dataset) == expected
        assert len(sampled) > 4
    for number, (before, _, after) in enumerate(trainings):
        start = base if restart == "base" or number == 0 else trainings[number - 1][2]
        assert same(before, start)
        assert not same(before, after)


def fake_attempts(env: TokenVectorEnv, given: list[tuple[int, str, float, bool]]) -> list[Attempt]:
    """Attempts at problems by index: with that text, return and end."""
    attempts = []
    for index, text, reward, terminated in given:
        problem = env.problems[index]
        tokens = np.array([*env.tokenizer(text, add_special_tokens=False)["input_ids"]], np.int32)
        tokens = np.append(tokens, np.int32(env.tokenizer.eos_token_id)) if terminated else tokens
        paid = np.zeros(len(tokens), np.float32)
        paid[-1] = reward
        attempts.append(
            Attempt(problem, 0, env.encode_prompt(problem), tokens, paid, paid, reward >= 1, "", None, terminated)
        )
    return attempts


GIVEN = [
    (0, "1+1=2", 1.0, True),
    (0, "1 + 1 = 2", 1.0, True),
    (0, "2-1=1 1+1=2", 1.0, True),
    (0, "2", 0.5, True),
    (0, "3", 0.0, True),
    (0, "4", 1.0, False),  # a reward on the way does not make up for an end that never came
    (1, "1+1=2", 1.0, True),
]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [(0, "1+1=2"), (0, "2-1=1 1+1=2"), (1, "1+1=2")]),
        ({"deduplicate": "exact_text"}, [(0, "1+1=2"), (0, "1 + 1 = 2"), (0, "2-1=1 1+1=2"), (1, "1+1=2")]),
        ({"threshold": 0.5}, [(0, "1+1=2"), (0, "2-1=1 1+1=2"), (0, "2"), (1, "1+1=2")]),
        ({"threshold": 0.0}, [(0, "1+1=2"), (0, "2-1=1 1+1=2"), (0, "2"), (0, "3"), (1, "1+1=2")]),
    ],
    ids=["equation_sequence", "exact_text", "threshold=0.5", "threshold=0"],
)
def test_threshold_and_duplicates(folder, sums, trainings, monkeypatch, settings, expected) -> None:
    agent = ExpertIteration(
        sums, folder, device="cpu", num_envs=4, rounds=1, samples_per_problem=4, problems=2, demonstrations=0,
        validation_problems=2, epochs=1, **settings,
    )  # fmt: skip
    monkeypatch.setattr(rollouts, "collect", lambda _, env, *args, **options: iter(fake_attempts(env, GIVEN)))
    told = {}
    agent.learn(callback=lambda _, metrics: told.update(metrics))
    (_, examples, _), problems = trainings[0], agent.env.problems
    found = [(example.prompt.tolist(), agent.env.decode(example.completion)) for example in examples]
    assert found == [(agent.env.encode_prompt(problems[index]).tolist(), text) for index, text in expected]
    assert told["rollout/distinct"] == len(expected)
    assert told["rollout/problems_solved"] == 2
    assert told["rollout/success_rate"] == pytest.approx(5 / 7)
    assert told["rollout/truncation_rate"] == pytest.approx(1 / 7)
    assert told["rollout/mean_reward"] == pytest.approx(5.5 / 7)


class Scores:
    """Stands in for an outcome model: p(correct) as scripted, and the attempts that it was shown."""

    aggregate = "last"

    def __init__(self, given: list[float]) -> None:
        self.given, self.shown = given, []

    def check_probability(self, use: str) -> None:
        assert use == "orm_threshold"

    def score(self, sequences, positions) -> list[np.ndarray]:
        assert all(
            wanted.tolist() == [len(sequence) - 1] for sequence, wanted in zip(sequences, positions, strict=True)
        )
        begun = len(self.shown)
        self.shown += [sequence.tolist() for sequence in sequences]
        return [np.array([score]) for score in self.given[begun : len(self.shown)]]


SCORES = [0.9, 0.4, 0.5, 0.8, 0.6, 0.99, 0.1]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [(0, "1+1=2"), (0, "2-1=1 1+1=2"), (0, "2"), (0, "3")]),  # whatever the answer; not what was cut off
        ({"orm_threshold": 0.7}, [(0, "1+1=2"), (0, "2")]),
        ({"orm_threshold": 0.0}, [(0, "1+1=2"), (0, "2-1=1 1+1=2"), (0, "2"), (0, "3"), (1, "1+1=2")]),
        ({"orm_filter": "and"}, [(0, "1+1=2"), (0, "2-1=1 1+1=2")]),
        ({"orm_filter": "and", "threshold": 0.5}, [(0, "1+1=2"), (0, "2-1=1 1+1=2"), (0, "2")]),
    ],
)
@pytest.mark.parametrize("together", [1, 3, 256])
def test_an_outcome_model_filters(folder, sums, trainings, monkeypatch, settings, expected, together: int) -> None:
    orm = Scores(SCORES)
    monkeypatch.setattr(expert_iteration.OutcomeModel, "load", lambda path, tokenizer, device: orm)
    monkeypatch.setattr(expert_iteration, "_SCORED_TOGETHER", together)
    agent = ExpertIteration(
        sums, folder, device="cpu", num_envs=4, rounds=1, samples_per_problem=4, problems=2, demonstrations=0,
        validation_problems=2, epochs=1, orm="any", **settings,
    )  # fmt: skip
    monkeypatch.setattr(rollouts, "collect", lambda _, env, *args, **options: iter(fake_attempts(env, GIVEN)))
    agent.learn()
    (_, examples, _), problems = trainings[0], agent.env.problems
    found = [(example.prompt.tolist(), agent.env.decode(example.completion)) for example in examples]
    assert found == [(agent.env.encode_prompt(problems[index]).tolist(), text) for index, text in expected]
    assert orm.shown == [a.tokens.tolist() for a in fake_attempts(agent.env, GIVEN)]


def save_orm(agent: ExpertIteration, path: Path) -> str:
    """An outcome model that was never trained, whose scores are a matter of chance."""
    orm = OutcomeModel.from_causal_lm(agent.model, agent.tokenizer, "orm", seed=3)
    torch.nn.init.normal_(orm.head.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    orm.save(path)
    return str(path)


@pytest.mark.parametrize("orm_filter", ["replace", "and"])
def test_with_an_outcome_model_killed_and_resumed_equals_never_killed(
    die_at, killed, metrics_of, same, weights, make_agent, tmp_path, monkeypatch, orm_filter: str
) -> None:
    settings = {
        "orm": save_orm(make_agent(), tmp_path / "orm"),
        "orm_filter": orm_filter,
        "orm_threshold": 0.08,
        "rounds": 2,
    }
    whole = make_agent(run=tmp_path / "whole", **settings).learn()
    (first, *_), kept = metrics_of(tmp_path / "whole")[1:], []
    plain = make_agent(rounds=2).learn(callback=lambda _, metrics: kept.append(metrics.get("rollout/kept")))
    assert first["rollout/kept"] > 0
    assert first["rollout/kept"] != kept[1]
    assert not same(weights(whole.model), weights(plain.model))
    with monkeypatch.context() as patch:
        die_at(patch, AttemptFile, "write", 50)
        with pytest.raises(killed):
            make_agent(run=tmp_path / "run", **settings).learn()
    agent = make_agent(run=tmp_path / "run", resume=True, **settings).learn()
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    assert same(weights(agent.model), weights(whole.model))


def test_an_outcome_model_that_cannot_be_is_named_before_anything_is_written(make_agent, folder, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no outcome model 'nowhere'"):
        make_agent(orm="nowhere", run=tmp_path / "run")
    with pytest.raises(ValueError, match="is not an outcome model"):
        make_agent(orm=str(folder), run=tmp_path / "run")
    OutcomeModel.from_causal_lm(make_agent().model, load_tokenizer("chars:xy?"), "orm").save(tmp_path / "orm")
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        make_agent(orm=str(tmp_path / "orm"), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_each_problem_is_attempted_exactly_k_times_at_the_temperature(make_agent, tmp_path, monkeypatch) -> None:
    temperatures = []

    def spy(policy, *args, **options):
        temperatures.append(policy.sampling.temperature)
        return collect(policy, *args, **options)

    monkeypatch.setattr(rollouts, "collect", spy)
    agent = make_agent(problems=4, temperature=0.9, run=tmp_path / "run", rounds=2).learn()
    for number in (1, 2):
        record = AttemptFile(tmp_path / "run" / f"round-{number}" / "attempts-0.jsonl")
        counts = Counter(attempt.problem.id for attempt in record.read(agent.env))
        assert counts == {f"train-{question}": 12 for question in ["a", "b", "ab", "ba"]}
    assert temperatures == [0.9, 0.9]
    assert agent.num_attempts == 96
    lengths = [
        len(attempt.completion)
        for number in (1, 2)
        for attempt in AttemptFile(tmp_path / "run" / f"round-{number}" / "attempts-0.jsonl").read(agent.env)
    ]
    assert agent.num_tokens == sum(lengths)
    # Rounds draw from streams of their own, also where the policy is the same.
    assert len(set(map(tuple, np.split(np.array(lengths), 2)))) == 2


def test_worked_examples_are_in_the_first_rounds_prompts_and_in_no_training(
    make_model, trainings, monkeypatch, tmp_path
) -> None:
    """With them some prompts are too long: what is left is attempted K times still, and no problem twice as often."""
    tokenizer = load_tokenizer("chars:0123456789+=\n")
    make_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=None).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    settings = {"style": "equation", "steps": 1, "max_value": 50, "operations": "+", "prompt": "{question}"}
    settings |= {"tokenizer": str(tmp_path), "max_new_tokens": 4, "num_problems": 12, "on_long_prompt": "skip"}
    make = partial(gym.make, "tokengym/Arithmetic-v0", disable_env_checker=True, **settings)
    roomy = make(max_prompt_tokens=40, shots=1).unwrapped.slots
    lengths = [len(roomy.encode_prompt(roomy.problems[i])) for i in range(12)]
    env = make(max_prompt_tokens=max(lengths) - 1)
    rounds: list[list[Attempt]] = []

    def spy(policy, env, stop, **options):
        rounds.append(list(collect(policy, env, stop, **options)))
        for attempt in rounds[-1]:  # so that there is something to train on
            attempt.rewards[-1], attempt.terminated = 1.0, True
        return rounds[-1]

    monkeypatch.setattr(rollouts, "collect", spy)
    agent = ExpertIteration(
        env, tmp_path, device="cpu", num_envs=4, rounds=2, samples_per_problem=3, demonstrations=0, shots=1, epochs=1,
        validation_problems=2, patience=2,
    ).learn()  # fmt: skip
    with_example = agent.make_env(shots=1)
    fitting = [agent.env.problems[i] for i in range(12) if lengths[i] < max(lengths)]
    assert 0 < len(fitting) < 12
    assert [attempt.problem for attempt in rounds[0]] == [problem for problem in fitting for _ in range(3)]
    assert all(a.prompt.tolist() == with_example.encode_prompt(a.problem).tolist() for a in rounds[0])
    assert len(rounds[1]) == 36
    assert all(a.prompt.tolist() == agent.env.encode_prompt(a.problem).tolist() for a in rounds[1])
    bare = {tuple(agent.env.encode_prompt(agent.env.problems[i])) for i in range(12)}
    assert all(tuple(example.prompt) in bare for _, examples, _ in trainings for example in examples)


def test_nothing_to_train_on_is_an_error_that_says_so(same, weights, make_agent) -> None:
    agent = make_agent(demonstrations=0, threshold=2.0)
    base = weights(agent.model)
    with pytest.raises(ValueError, match="nothing to fine-tune on"):
        agent.learn()
    assert same(weights(agent.model), base)


def test_without_demonstrations_the_first_round_samples_from_the_model_as_it_is(make_agent, trainings) -> None:
    rounds = []
    make_agent(demonstrations=0, rounds=2, samples_per_problem=60).learn(
        callback=lambda _, metrics: rounds.append(metrics)
    )
    assert len(trainings) == 2
    assert [metrics["round"] for metrics in rounds] == [0, 1, 2]
    assert "train/loss" not in rounds[0]
