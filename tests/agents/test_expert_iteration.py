"""Expert iteration: what it trains on and from, when it stops, what survives being stopped, and where it ends up."""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tokengym.agents import RFT, ExpertIteration, STaR, expert_iteration
from tokengym.agents import rounds as in_rounds
from tokengym.agents.rollouts import collect as rollouts
from tokengym.agents.rollouts.attempts import Attempt, AttemptFile
from tokengym.agents.rollouts.collect import collect
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.agents.training import learner, rounds
from tokengym.agents.training.learner import Example
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.models import load_tokenizer
from tokengym.models.outcome import OutcomeModel
from tokengym.rewards import Verdict

LETTERS = load_tokenizer("chars:ab?")
EOS = LETTERS.eos_token_id
VOCABULARY = len(LETTERS)


class Letters(ProblemList):
    """Correct is whatever begins with the answer, one letter: solutions are many, and easy to come by."""

    def __init__(self, questions: str = "a b ab ba aa bb", split: str = "train") -> None:
        super().__init__([Problem(f"{split}-{q}", q + "?", q[-1], q[-1]) for q in questions.split()], split)

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = completion.startswith(problem.answer)
        return Verdict(correct, "correct" if correct else "wrong", completion[:1] or None)


class Bandit(ProblemList):
    """One question, and two right completions among all."""

    RIGHT = ("ab", "ba")

    def __init__(self) -> None:
        super().__init__([Problem("bandit", "?", "ab", "ab")])

    def grade(self, completion: str, problem: Problem) -> Verdict:
        return Verdict(completion in self.RIGHT, "correct" if completion in self.RIGHT else "wrong", completion)


def slots(problems: ProblemList, num_envs: int = 16, **settings: Any) -> TokenVectorEnv:
    settings = {"tokenizer": LETTERS, "prompt": "{question}", "max_prompt_tokens": 8, "max_new_tokens": 3} | settings
    return TokenVectorEnv(problems, num_envs, autoreset_mode="Disabled", copy=False, **settings)


@pytest.fixture(scope="session")
def letters_folder(make_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("letters")
    ids = {"eos_token_id": EOS, "pad_token_id": LETTERS.pad_token_id}
    make_model("gpt2", vocab_size=VOCABULARY, **ids).save_pretrained(path)
    LETTERS.save_pretrained(path)
    return path


FAST = {
    "rounds": 3, "samples_per_problem": 12, "epochs": 2, "batch_size": 8, "learning_rate": 3e-3, "save_steps": 2,
    "validation_problems": 6, "patience": 9, "demonstrations": 3,
}  # fmt: skip


@pytest.fixture
def make_agent(letters_folder) -> Callable[..., ExpertIteration]:
    def make(cls: type[ExpertIteration] = ExpertIteration, source: ProblemList | None = None, **settings: Any):
        return cls(
            slots(source or Letters()),
            letters_folder,
            validation_env=slots(source or Letters(split="validation")),
            device="cpu",
            **(FAST | settings),
        )

    return make


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def saved(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def metrics_of(run: Path) -> list[dict[str, float]]:
    """The run's metrics but for the times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


@pytest.fixture
def trainings(monkeypatch) -> list[tuple[dict, list, dict]]:
    """Of each training: weights before, examples, weights after."""
    seen = []
    real = expert_iteration.fine_tune

    def spy(model, examples, *args, **options):
        before = weights(model)
        real(model, examples, *args, **options)
        seen.append((before, list(examples), weights(model)))

    monkeypatch.setattr(expert_iteration, "fine_tune", spy)
    return seen


def texts(examples: list) -> list[tuple[str, str]]:
    """Question and solution of each example; the end of sequence is checked on the way."""
    assert all(example.completion[-1] == EOS for example in examples)
    return [
        (str(LETTERS.decode(example.prompt.tolist())), str(LETTERS.decode(example.completion[:-1].tolist())))
        for example in examples
    ]


# ------------------------------------------------------------------------------------------------ what it is trained on


@pytest.mark.parametrize("restart", ["base", "previous"])
@pytest.mark.parametrize("accumulate", [True, False])
def test_each_round_trains_on_its_distinct_correct_attempts_and_from_where_it_should(
    make_agent, trainings, tmp_path, accumulate: bool, restart: str
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
    make_agent, tmp_path, monkeypatch, orm_filter: str
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
        with pytest.raises(Killed):
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


def test_nothing_to_train_on_is_an_error_that_says_so(make_agent) -> None:
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


# ------------------------------------------------------------------------------------------------------- named settings


def solution(problem: str, key: str, text: str) -> expert_iteration.Solution:
    return expert_iteration.Solution(problem, key, text, Example(np.array([1]), np.array([len(text)])))


def test_of_solutions_that_are_the_same_the_more_distant_one_is_kept() -> None:
    """Distances by hand: "aaaa" is 4 from "bbbb", "aabb" 2, "abbb" 1; of equally distant ones the first stays."""
    found = [
        solution("p", "x", "aabb"), solution("p", "y", "bbbb"), solution("p", "x", "abbb"),  # nearer to y
        solution("p", "x", "aaaa"), solution("p", "x", "cccc"),  # farther, then as far
        solution("q", "x", "aabb"), solution("q", "x", "longer, but with nothing to differ from"),
    ]  # fmt: skip
    kept = expert_iteration.most_distant(found, {})
    assert kept == {("p", "x"): found[3].example, ("p", "y"): found[1].example, ("q", "x"): found[5].example}
    # A reference is another solution to differ from.
    kept = expert_iteration.most_distant(found, {"p": ["aaaa"]})
    assert kept["p", "x"] == found[4].example


def test_attempts_with_wrong_equations_are_left_out_and_counted(make_agent, monkeypatch) -> None:
    monkeypatch.setattr(
        expert_iteration, "equations", lambda text: ["1+1=2", "1+1=3"] if "b" in text[1:] else ["1+1=2"]
    )
    logged: list[dict[str, float]] = []
    agent = make_agent(RFT, rounds=1, samples_per_problem=30, demonstrations=0, temperature=2.0)
    agent.learn(callback=lambda _, metrics: logged.append(metrics))
    metrics = next(metrics for metrics in logged if "rollout/kept" in metrics)
    assert metrics["rollout/wrong_equations"] > 0
    assert metrics["rollout/kept"] > 0
    assert all("b" not in agent.env.decode(example.completion)[1:] for example in agent._dataset.values())


def test_rft_and_star_are_named_settings() -> None:
    ei, rft, star = ExpertIteration.config_class(), RFT.config_class(), STaR.config_class()
    assert (ei.keep, ei.reject_wrong_equations) == ("first", False)
    assert (rft.keep, rft.reject_wrong_equations) == ("distant", True)
    assert (ei.samples_per_problem, ei.temperature, ei.rounds, ei.epochs, ei.batch_size) == (96, 1.0, 2, 4, 128)
    assert (ei.restart, ei.accumulate, ei.deduplicate, ei.threshold) == ("base", True, "equation_sequence", 1.0)
    assert (rft.samples_per_problem, rft.temperature, rft.rounds, rft.epochs) == (100, 0.7, 1, 3)
    assert (rft.restart, rft.deduplicate) == ("base", "equation_sequence")
    assert (star.samples_per_problem, star.restart, star.accumulate) == (1, "previous", False)
    assert RFT.learn is STaR.learn is ExpertIteration.learn


def test_star_trains_each_round_on_its_own_attempts_from_the_newest_policy(make_agent, trainings) -> None:
    make_agent(STaR, samples_per_problem=6, rounds=2).learn()
    (_, demonstrations, first), (before, examples, _), _ = trainings
    assert same(before, first)
    assert len(texts(demonstrations)) == 3
    assert len(examples) > 0


class Endless(Letters):
    """The same few questions under numbers without end."""

    size = None

    def __getitem__(self, index: int) -> Problem:
        question = super().__getitem__(index % 5).question
        return Problem(f"{index}-{question}", question, question[-2], question[-2])

    def find(self, problem_id: str) -> Problem:
        return self[int(problem_id.split("-")[0])]


@pytest.mark.parametrize(("cls", "fresh"), [(STaR, True), (ExpertIteration, False)])
def test_star_draws_new_problems_in_every_round_where_they_never_end(make_agent, tmp_path, cls, fresh: bool) -> None:
    settings = {"source": Endless(), "samples_per_problem": 2, "problems": 15, "rounds": 2, "accumulate": False}
    make_agent(cls, run=tmp_path / "run", **settings).learn()
    rounds = []
    for number in (1, 2):
        lines = (tmp_path / "run" / f"round-{number}" / "attempts-0.jsonl").read_text().splitlines()
        ids = [json.loads(line)["problem_id"] for line in lines]
        assert ids[::2] == ids[1::2]  # both attempts at a problem in a row
        assert len(set(ids)) == 15
        rounds.append(set(ids))
    assert rounds[0].isdisjoint(rounds[1]) == fresh
    if not fresh:
        assert rounds[0] == rounds[1] == {Endless()[i].id for i in range(15)}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rounds", 0), ("samples_per_problem", 0), ("temperature", 0.0), ("temperature", float("nan")),
        ("temperature", float("inf")), ("validation_problems", 0), ("patience", 0), ("deduplicate", "text"),
        ("restart", "best"), ("epochs", 0), ("problems", 0), ("demonstrations", -1), ("shots", -1),
        ("learning_rate", -1e-3), ("learning_rate", float("nan")), ("orm_filter", "or"), ("orm_threshold", 1.5),
        ("orm_threshold", float("nan")),
    ],
)  # fmt: skip
def test_a_bad_value_is_named(make_agent, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        make_agent(**{setting: value})


# ------------------------------------------------------------------------------------------------------------- stopping


def script(monkeypatch, accuracies: list[float]) -> None:
    """Validation results, round by round, instead of measured ones."""
    values = iter(accuracies)

    monkeypatch.setattr(in_rounds, "validate", lambda *_: {"eval/maj@1": next(values)})


@pytest.mark.parametrize(
    ("accuracies", "patience", "rounds_run", "best"),
    [
        ([0.2, 0.5, 0.4, 0.9], 1, 2, 1),
        ([0.2, 0.5, 0.4, 0.5, 0.9], 2, 3, 1),  # as good as before is not better
        ([0.2, 0.5, 0.4, 0.6, 0.5], 2, 4, 3),
        ([0.7, 0.5], 1, 1, 0),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 1, 4, 4),
    ],
)
def test_learning_stops_when_validation_does_not_improve_and_keeps_the_best_round(
    make_agent, trainings, monkeypatch, tmp_path, accuracies, patience, rounds_run, best
) -> None:
    script(monkeypatch, accuracies)
    agent = make_agent(rounds=4, patience=patience, run=tmp_path / "run").learn()
    assert len(trainings) == rounds_run + 1
    assert same(trainings[best][2], weights(agent.model))
    assert same(saved(tmp_path / "run"), weights(agent.model))
    assert [line["eval/maj@1"] for line in metrics_of(tmp_path / "run")] == accuracies[: rounds_run + 1]
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [72 * i for i in range(rounds_run + 1)]


def test_the_budget_of_attempts_is_kept(make_agent, trainings) -> None:
    agent = make_agent().learn(total_episodes=2 * 72 + 71)
    assert agent.num_attempts == 144
    assert len(trainings) == 3
    with pytest.raises(ValueError, match=r"6 problems x 12 = 72 attempts.*total_episodes=71"):
        make_agent().learn(total_episodes=71)


def test_a_callback_may_end_learning_and_what_was_learnt_stays(make_agent, trainings, monkeypatch) -> None:
    script(monkeypatch, [0.1, 0.2])
    agent = make_agent().learn(callback=lambda _, metrics: metrics["round"] < 1)
    assert len(trainings) == 2
    assert same(trainings[1][2], weights(agent.model))


# ---------------------------------------------------------------------------------------------------- being interrupted


class Killed(BaseException):
    """As abrupt as Ctrl-C."""


def die_at(monkeypatch, owner: Any, name: str, call: int) -> None:
    """Lets `owner.name` fail from its `call`-th call on."""
    real, calls = getattr(owner, name), itertools.count(1)

    def dying(*args, **options):
        if next(calls) >= call:
            raise Killed
        return real(*args, **options)

    monkeypatch.setattr(owner, name, dying)


# What dies, and in which call; for updates, in which round and how far into its training.
POINTS = {
    "sampling round 1": (AttemptFile, "write", 30),
    "sampling round 2": (AttemptFile, "write", 72 + 71),
    "training round 0": (learner.Learner, "update", (0, 0.5)),
    "training round 1": (learner.Learner, "update", (1, 0.5)),
    "training round 2": (learner.Learner, "update", (2, 0.8)),
    "training round 3": (learner.Learner, "update", (3, 0.99)),
    "validating round 0": (in_rounds, "validate", 1),
    "validating round 2": (in_rounds, "validate", 3),
    "keeping round 0": (rounds, "save_file", 1),
    "keeping round 1": (rounds, "save_file", 2),
    "keeping the best": (ExpertIteration, "save", 1),
}


@pytest.fixture(scope="module")
def whole(letters_folder, tmp_path_factory) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The metrics and the weights of a run that nothing interrupts."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    agent = ExpertIteration(
        slots(Letters()), letters_folder, validation_env=slots(Letters(split="validation")), device="cpu", run=run,
        **FAST,
    )  # fmt: skip
    agent.learn()
    assert [line["round"] for line in metrics_of(run)] == [0, 1, 2, 3]
    return metrics_of(run), weights(agent.model)


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_resumed_equals_never_killed(make_agent, whole, tmp_path, monkeypatch, point: str) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        owner, name, call = POINTS[point]
        if isinstance(call, tuple):
            number, share = call
            updates = [2 * -(-int(line["train/examples"]) // 8) for line in whole[0]]  # two epochs, batches of 8
            call = sum(updates[:number]) + 1 + int(share * updates[number])
        die_at(patch, owner, name, call)
        with pytest.raises(Killed):
            make_agent(run=run).learn()
    if (run / "model").exists():
        shutil.rmtree(run / "model")  # a process that is killed for good writes none
    if point.startswith("sampling"):
        record = run / f"round-{point[-1]}" / "attempts-0.jsonl"
        record.write_bytes(record.read_bytes()[:-7])
    agent = make_agent(run=run, resume=True).learn()
    assert metrics_of(run) == whole[0]
    assert same(weights(agent.model), whole[1])
    assert same(saved(run), whole[1])
    assert agent.num_attempts == 3 * 72


def test_killed_twice_and_a_finished_run_resumed_is_left_as_it_is(make_agent, whole, tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"
    for call in (40, 72):
        with monkeypatch.context() as patch:
            die_at(patch, AttemptFile, "write", call)
            with pytest.raises(Killed):
                make_agent(run=run, resume="auto").learn()
    for _ in range(2):
        agent = make_agent(run=run, resume=True).learn()
        assert metrics_of(run) == whole[0]
        assert same(weights(agent.model), whole[1])


@pytest.mark.parametrize("where", ["sampling", "training", "callback"])
def test_ctrl_c_leaves_the_best_finished_rounds_policy(
    make_agent, trainings, monkeypatch, tmp_path, where: str
) -> None:
    script(monkeypatch, [0.3, 0.6, 0.9, 0.9])
    run, told = tmp_path / "run", []

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    def callback(_, metrics):
        told.append(metrics["round"])
        if metrics["round"] == 1 and where == "sampling":
            monkeypatch.setattr(AttemptFile, "write", interrupt)
        if metrics["round"] == 1 and where == "training":
            monkeypatch.setattr(learner.Learner, "update", interrupt)
        if metrics["round"] == 2:
            raise KeyboardInterrupt

    agent = make_agent(run=run)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(callback=callback)
    assert told == ([0, 1, 2] if where == "callback" else [0, 1])
    assert same(trainings[1][2], weights(agent.model))
    assert same(saved(run), weights(agent.model))
    loaded = CausalLMPolicy(agent.model, agent.tokenizer)
    assert len(list(collect(loaded, slots(Letters()), 5, seed=0))) == 5


def test_ctrl_c_before_any_round_leaves_the_model_as_it_was(make_agent, monkeypatch) -> None:
    agent = make_agent()
    base = weights(agent.model)
    die_at(monkeypatch, learner.Learner, "update", 2)
    with pytest.raises(Killed):
        agent.learn()
    assert same(weights(agent.model), base)


# ------------------------------------------------------------------------------ a language that can be enumerated whole


def completions(model: torch.nn.Module, prompt: list[int], limit: int) -> dict[tuple[int, ...], float]:
    """The probability of every completion of at most `limit` tokens, by a full forward pass for every prefix."""
    found: dict[tuple[int, ...], float] = {}
    open_ = {(): 1.0}
    for _ in range(limit):
        longer = {}
        for prefix, probability in open_.items():
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *prefix]])).logits[0, -1, :VOCABULARY]
            for token, p in enumerate(logits.double().softmax(-1).tolist()):
                (found if token == EOS else longer)[(*prefix, token)] = probability * p
        open_ = longer
    return found | open_


def chances(model: torch.nn.Module) -> list[float]:
    """The probability of each right completion."""
    table = completions(model, LETTERS("?", add_special_tokens=False)["input_ids"], 3)
    return [table[(*LETTERS(text, add_special_tokens=False)["input_ids"], EOS)] for text in Bandit.RIGHT]


def test_sampled_frequencies_are_the_enumerated_probabilities(make_agent) -> None:
    agent = make_agent(source=Bandit())
    table = completions(agent.model, LETTERS("?", add_special_tokens=False)["input_ids"], 3)
    assert len(table) == 1 + 4 + 16 + 64
    assert sum(table.values()) == pytest.approx(1, abs=1e-6)
    attempts = list(collect(agent.policy, slots(Bandit(), 64), 6000, seed=0))
    counts = Counter(tuple(attempt.completion.tolist()) for attempt in attempts)
    assert set(counts) <= set(table)
    chi_square = sum((counts[tokens] - 6000 * p) ** 2 / (6000 * p) for tokens, p in table.items())
    assert chi_square < 140  # 84 degrees of freedom: exceeded once in 10,000
    for attempt in attempts[:200]:
        tokens = tuple(attempt.completion.tolist())
        assert np.exp(attempt.logprobs.sum()) == pytest.approx(table[tokens], rel=1e-3)
        assert attempt.terminated == (tokens[-1] == EOS)


@pytest.mark.parametrize("restart", ["base", "previous"])
def test_expected_success_does_not_fall_and_the_bandit_is_solved(make_model, tmp_path, restart: str) -> None:
    make_model("llama", vocab_size=VOCABULARY, eos_token_id=EOS, pad_token_id=EOS).save_pretrained(tmp_path)
    LETTERS.save_pretrained(tmp_path)
    agent = ExpertIteration(
        slots(Bandit(), 256), tmp_path, validation_env=slots(Bandit(), 1), device="cpu", demonstrations=0, rounds=4,
        samples_per_problem=500, epochs=60, learning_rate=1e-2, restart=restart, patience=4, validation_problems=1,
    )  # fmt: skip
    curve = [chances(agent.model)]
    agent.learn(callback=lambda learning, _: curve.append(chances(learning.model)))
    success = [sum(pair) for pair in curve]
    assert success[1] == success[0] < 0.1  # round 0 has nothing to train on
    assert all(after >= before - 0.01 for before, after in itertools.pairwise(success)), curve
    assert success[-1] > 0.95, curve
    assert min(curve[-1]) > 0.2, curve  # both solutions stay: imitation of what was found, not collapse onto one
    assert sum(chances(agent.model)) > 0.95


# ------------------------------------------------------------------------------------------------ a second call


@pytest.mark.parametrize("restart", ["base", "previous"])
def test_a_second_call_of_learn_runs_as_many_rounds_again(make_agent, tmp_path, monkeypatch, restart: str) -> None:
    """Where every round is the best so far, two calls are one of twice the length, also resumed in a folder."""

    def improving(*_: Any) -> dict[str, float]:
        steps.append(0.0)
        return {"eval/maj@1": len(steps) / 100}

    monkeypatch.setattr(in_rounds, "validate", improving)
    steps: list[float] = []
    whole = make_agent(rounds=2, restart=restart).learn()
    steps.clear()
    halves = make_agent(rounds=1, restart=restart).learn()
    first = weights(halves.model)
    halves.learn(24 * 6)
    assert same(weights(whole.model), weights(halves.model))
    assert not same(first, weights(halves.model))
    assert (whole.num_attempts, whole.num_tokens) == (halves.num_attempts, halves.num_tokens)
    with pytest.raises(ValueError, match="more than total_episodes=71"):
        halves.learn(71)

    steps.clear()
    cut = make_agent(rounds=1, restart=restart, run=tmp_path / "cut").learn()
    monkeypatch.setattr(in_rounds, "validate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cut.learn()
    monkeypatch.setattr(in_rounds, "validate", improving)
    resumed = make_agent(rounds=1, restart=restart, run=tmp_path / "cut", resume=True).learn()
    assert same(first, weights(resumed.model))
    resumed.learn()
    assert same(weights(whole.model), weights(resumed.model))
    assert resumed.num_attempts == whole.num_attempts
    assert same(saved(tmp_path / "cut"), weights(resumed.model))
    assert [line["round"] for line in metrics_of(tmp_path / "cut") if "round" in line] == [0, 1, 2]


def test_patience_of_a_second_call_begins_anew_and_the_best_round_stays(make_agent, monkeypatch) -> None:
    accuracies = iter([0.1, 0.9, 0.2, 0.3, 0.4, 0.5])
    monkeypatch.setattr(in_rounds, "validate", lambda *_: {"eval/maj@1": next(accuracies)})
    logged: list[float] = []
    agent = make_agent(rounds=5, patience=2)
    agent.learn(callback=lambda _, metrics: logged.append(metrics["round"]))
    best = weights(agent.model)
    agent.learn(callback=lambda _, metrics: logged.append(metrics["round"]))
    assert logged == [0, 1, 2, 3, 4, 5]
    assert same(best, weights(agent.model))
