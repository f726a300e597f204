"""Return-conditioned RL: Bayes' rule on an enumerable model, sources of labels, going on, bad input."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tokengym.agents import base, rcrl
from tokengym.agents.evaluation.evaluate import evaluate
from tokengym.agents.rcrl import RCRL
from tokengym.agents.rollouts.attempts import Attempt, AttemptFile
from tokengym.agents.rollouts.collect import collect
from tokengym.agents.rollouts.conditioned_policy import ConditionedPolicy, load_policy
from tokengym.agents.training.return_labels import labels_of
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.models import load_tokenizer
from tokengym.models.condition_tokens import add_labels, with_labels
from tokengym.models.outcome import OutcomeModel
from tokengym.registry import UnknownNameError
from tokengym.rewards import AttemptReward, Verdict
from tokengym.rewards.steps import step_ends

LINES = load_tokenizer("chars:ab?\n")
SIZE, EOS = len(LINES), LINES.eos_token_id
IDS = {"eos_token_id": EOS, "pad_token_id": LINES.pad_token_id}


class Odd(ProblemList):
    """Correct is an odd number of a's."""

    def __init__(self, split: str = "train", questions: tuple[str, ...] = ("?", "a?", "b?", "ab?")) -> None:
        super().__init__([Problem(f"{split}-{question}", question, "a") for question in questions], split)

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = completion.count("a") % 2 == 1
        return Verdict(correct, "correct" if correct else "wrong", str(completion.count("a")))


class Letters(AttemptReward):
    """A reward that is neither 0 nor 1: the number of a's."""

    def attempt_reward(self, attempt: Any) -> float:
        return float((attempt.tokens == 0).sum())


def slots(problems: ProblemList | None = None, num_envs: int = 16, budget: int = 6, **settings: Any) -> TokenVectorEnv:
    return TokenVectorEnv(
        problems or Odd(), num_envs, tokenizer=LINES, prompt="{question}", max_prompt_tokens=8, max_new_tokens=budget,
        autoreset_mode="Disabled", copy=False, eos_token_ids=[LINES.pad_token_id], **settings,
    )  # fmt: skip


@pytest.fixture(scope="session")
def folders(make_model, tmp_path_factory) -> dict[str, Path]:
    found = {}
    for name, seed in (("policy", 0), ("base", 1)):
        found[name] = tmp_path_factory.mktemp(name)
        ids = IDS | {"eos_token_id": [EOS, LINES.pad_token_id]}
        make_model("gpt2" if name == "base" else "llama", seed, SIZE, **ids).save_pretrained(found[name])
        LINES.save_pretrained(found[name])
    return found


FAST = {"samples_per_problem": 10, "rollouts_per_step": 3, "batch_size": 8, "epochs": 2, "validation_problems": 4}


@pytest.fixture
def make(folders):
    def make(env: TokenVectorEnv | None = None, model: str = "policy", **settings: Any) -> RCRL:
        settings = {"base": str(folders["base"]), "learning_rate": 1e-3, "save_steps": 3} | FAST | settings
        validation = slots(Odd("validation"))
        return RCRL(env or slots(), folders[model], validation_env=validation, device="cpu", **settings)

    return make


# ---------------------------------------------------------------------------------------------------- Bayes' rule


def enumerate_completions(budget: int) -> list[tuple[int, ...]]:
    """All completions: ended by either end-of-sequence token, or cut off."""
    going, ends = range(SIZE - 2), (EOS, LINES.pad_token_id)
    ended = [(*tokens, end) for n in range(budget) for tokens in itertools.product(going, repeat=n) for end in ends]
    return ended + list(itertools.product(going, repeat=budget))


def probabilities(model: Any, prefix: list[int], completions: list[tuple[int, ...]]) -> np.ndarray:
    """Of each completion, by full forward passes over the environment's vocabulary."""
    longest = max(map(len, completions))
    ids = torch.tensor([[*prefix, *tokens, *[3] * (longest - len(tokens))] for tokens in completions])
    with torch.no_grad():
        logprobs = model(ids).logits[:, len(prefix) - 1 : -1, :SIZE].double().log_softmax(-1)
    found = logprobs.gather(-1, ids[:, len(prefix) :, None])[..., 0]
    return np.array([found[i, : len(tokens)].sum().exp().item() for i, tokens in enumerate(completions)])


def write_pool(path: Path, problem: Problem, completions: list[tuple[int, ...]], counts: Any, good: Any) -> None:
    """Attempts in proportion to their probabilities: a pool without sampling noise."""
    with AttemptFile(path) as pool:
        for completion, count, is_success in zip(completions, np.rint(counts).astype(int), good, strict=True):
            rewards = np.zeros(len(completion), np.float32)
            rewards[-1] = is_success
            tokens, terminated = np.array(completion, np.int32), completion[-1] in (EOS, LINES.pad_token_id)
            attempt = Attempt(
                problem, 0, np.array([2]), tokens, rewards, rewards, bool(is_success), "", None, terminated
            )
            for _ in range(count):
                pool.write(attempt)


@pytest.mark.parametrize("train_labels", [True, False])
def test_conditioning_on_the_return_reproduces_bayes_rule(make, folders, tmp_path, train_labels) -> None:
    """p(completion | good) = p(completion) [completion is good] / p(good), and bad gives the complement."""
    budget, question = 3, Odd(questions=("?",))
    agent = make(
        slots(question, 64, budget), base=str(folders["policy"]), pool=str(tmp_path), granularity="attempt",
        positive_ratio=None, train_labels=train_labels, epochs=200, batch_size=10_000, learning_rate=0.01,
        validation_problems=0, micro_batch_tokens=100_000,
    )  # fmt: skip
    prompt = LINES.encode("?", add_special_tokens=False)
    completions = enumerate_completions(budget)
    prior = probabilities(agent.model, prompt, completions)
    assert prior.sum() == pytest.approx(1)
    good = np.array([c[-1] in (EOS, LINES.pad_token_id) and c.count(0) % 2 == 1 for c in completions])
    write_pool(tmp_path / "attempts-0.jsonl", question[0], completions, prior * 500, good)
    agent.learn()
    labels = agent.labels
    assert labels is not None
    for label, kind in (("[GOOD]", good), ("[BAD]", ~good)):
        found = probabilities(agent.model, [*prompt, labels.id(label)], completions)
        assert found.sum() == pytest.approx(1)
        np.testing.assert_allclose(found, prior * kind / prior[kind].sum(), atol=1e-2)
    with torch.no_grad():
        at_start = agent.model(torch.tensor([prompt])).logits[0, -1].softmax(-1)[labels.first :].numpy()
    if train_labels:  # what the model expects of itself
        np.testing.assert_allclose(at_start, [prior[~good].sum(), prior[good].sum()], atol=1e-2)
    # The agent's own policy acts on it: through the environment, tokens of the environment alone.
    policy = agent.policy
    assert isinstance(policy, ConditionedPolicy)
    for condition, wanted in (("[GOOD]", 1), ("[BAD]", 0)):
        attempts = list(collect(policy.with_condition(condition), slots(question, 64, budget), 500, seed=1))
        assert abs(np.mean([attempt.is_success for attempt in attempts]) - wanted) < 0.05
    if train_labels:
        attempts = list(collect(policy.with_condition("own"), slots(question, 64, budget), 2000, seed=1))
        assert abs(np.mean([attempt.is_success for attempt in attempts]) - prior[good].sum()) < 0.05


def test_the_highest_of_numeric_buckets_earns_the_most(make) -> None:
    env = slots(num_envs=64, reward=Letters())
    agent = make(
        env, granularity="attempt", return_buckets=3, samples_per_problem=250, positive_ratio=None, epochs=8,
        batch_size=100, learning_rate=0.01, validation_problems=0,
    )  # fmt: skip
    agent.learn()
    assert agent.labels is not None
    assert agent.labels.tokens == tuple(f"[RETURN {i}]" for i in range(len(agent.labels.edges) + 1))
    means = []
    for label in agent.labels.tokens:
        policy: Any = agent.policy
        attempts = list(collect(policy.with_condition(label), slots(num_envs=64, reward=Letters()), 200, seed=0))
        means.append(np.mean([attempt.total_reward for attempt in attempts]))
        inside = labels_of(np.array([attempt.total_reward for attempt in attempts]), agent.labels.edges)
        assert np.mean(inside == agent.labels.tokens.index(label)) > 0.8
    assert means == sorted(means)
    assert agent.policy.condition == agent.labels.tokens[-1]  # pyright: ignore[reportAttributeAccessIssue]


# ---------------------------------------------------------------------------------------------------- the labels


def test_steps_are_labelled_by_the_share_of_continuations_that_succeed(make, tmp_path) -> None:
    """The examples that are trained on, from the files of the pool, step by step."""
    seen: list[Any] = []
    agent = make(run=tmp_path / "run", positive_ratio=None, threshold=2 / 3)
    real = rcrl.fine_tune
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            rcrl, "fine_tune", lambda model, examples, *a, **k: (seen.extend(examples), real(model, examples, *a, **k))
        )
        agent.learn()
    env, pool = slots(), tmp_path / "run" / "pool"
    attempts = list(AttemptFile(pool / "attempts-0.jsonl").read(env))
    lines = map(json.loads, (pool / "labels-3-rollouts-0.jsonl").read_text().splitlines())
    counts = {(line["problem_id"], tuple(line["prefix"])): line["successes"] for line in lines}
    expected = []
    for attempt in attempts:
        (ends,) = step_ends([attempt.completion], [attempt.terminated], LINES)
        if not len(ends):
            continue
        tokens, sequence, begun = attempt.completion.tolist(), [], 0
        stop = len(tokens) if attempt.terminated else ends[-1] + 1
        for at in range(stop):
            if at == 0 or tokens[at - 1] == 3:
                end = next((end for end in ends if end >= at), ends[-1])
                whole = end == len(tokens) - 1
                count = 3 * attempt.is_success if whole else counts[attempt.problem.id, tuple(tokens[: end + 1])]
                sequence.append(SIZE + (count >= 2))
                begun += 1
            sequence.append(tokens[at])
        expected.append((attempt.prompt.tolist(), sequence))
    assert [(example.prompt.tolist(), example.completion.tolist()) for example in seen] == expected
    assert agent.num_attempts == len(attempts) + 3 * len(counts)


@pytest.mark.parametrize("granularity", ["step", "attempt"])
@pytest.mark.parametrize("kind", ["orm", "sorm"])
def test_labels_by_an_outcome_model(make, make_model, tmp_path, monkeypatch, kind: str, granularity: Any) -> None:
    judge = OutcomeModel.from_causal_lm(make_model("llama", 5, SIZE, **IDS), LINES, kind)
    with torch.no_grad():
        judge.head.weight.mul_(5)
    judge.save(tmp_path / "judge")
    judged: list[Any] = []

    def scale(self: RCRL, items: Any) -> tuple[tuple[str, ...], tuple[float, ...]]:
        judged.extend(items)
        return ("[BAD]", "[GOOD]"), (float(np.median(np.concatenate([item.values for item in items]))),)

    monkeypatch.setattr(RCRL, "_scale", scale)
    monkeypatch.setattr(base, "label_prefixes", None)  # nothing is continued
    agent = make(
        label_source=kind, orm=str(tmp_path / "judge"), granularity=granularity, positive_ratio=None,
        epochs=1, validation_problems=0,
    ).learn()  # fmt: skip
    assert len({round(float(value), 3) for item in judged for value in item.values}) > 5
    for item in judged:
        attempt = item.attempt
        for end, value in zip(item.ends, item.values, strict=True):
            ids = torch.from_numpy(np.append(attempt.prompt, attempt.completion[: end + 1]).astype(np.int64))
            with torch.no_grad():
                expected = judge.model(ids[None]).logits[0, -1, 0].sigmoid().item()
            cut_off = granularity == "attempt" and not attempt.terminated
            assert value == pytest.approx(0 if cut_off else expected, abs=1e-5)
    wrong = {"orm": "sorm", "sorm": "orm"}[kind]
    with pytest.raises(ValueError, match=f"is an {kind}: set label_source='{kind}'"):
        make(label_source=wrong, orm=str(tmp_path / "judge"))
    assert agent.num_attempts == 40


# ---------------------------------------------------------------------------------------------------- going on


class Killed(Exception):
    pass


def kill_after(monkeypatch, stage: str, count: int) -> None:
    """Kills the process that is simulated after so many attempts, labels or optimizer steps."""
    told = itertools.count(1)

    def tell(*_: Any) -> None:
        if next(told) >= count:
            raise Killed

    if stage == "sampling":
        real_write = AttemptFile.write
        monkeypatch.setattr(AttemptFile, "write", lambda self, attempt: (real_write(self, attempt), tell()))
    elif stage == "labeling":
        real_label = base.label_prefixes
        monkeypatch.setattr(
            "tokengym.agents.base.label_prefixes", lambda *a, **k: real_label(*a, **{**k, "on_step": tell})
        )
    else:
        real_train = rcrl.fine_tune
        monkeypatch.setattr(rcrl, "fine_tune", lambda *a, **k: real_train(*a, **{**k, "on_step": tell}))


@pytest.mark.parametrize(("stage", "count"), [("sampling", 7), ("labeling", 5), ("training", 4)])
def test_killed_and_resumed_equals_never_stopped(make, tmp_path, stage: str, count: int, weights, same) -> None:
    whole = make(run=tmp_path / "whole").learn()
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, stage, count)
        with pytest.raises(Killed):
            make(run=tmp_path / "cut").learn()
    resumed = make(run=tmp_path / "cut", resume=True).learn()
    assert same(weights(whole), weights(resumed))
    assert (whole.num_attempts, whole.num_tokens) == (resumed.num_attempts, resumed.num_tokens)
    lines = [json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("whole", "cut")]
    plain = [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]
    assert plain[0] == plain[1]
    for name in ("attempts-0.jsonl", "labels-3-rollouts-0.jsonl"):
        assert (tmp_path / "cut/pool" / name).read_text() == (tmp_path / "whole/pool" / name).read_text()
    again = make(run=tmp_path / "cut", resume=True).learn()  # nothing is left to do
    with pytest.raises(ValueError, match="this rcrl agent has learned already"):
        again.learn()
    assert same(weights(whole), weights(again))
    (tmp_path / "cut" / "model").rename(tmp_path / "lost")  # killed before it had saved the model
    make(run=tmp_path / "cut", resume=True).learn()
    assert len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) == 1


def test_another_run_takes_the_pool_with_its_labels(make, tmp_path, monkeypatch, weights, same) -> None:
    first = make(run=tmp_path / "first").learn()
    monkeypatch.setattr(rcrl.RCRL, "collect_attempts", None)
    monkeypatch.setattr("tokengym.agents.rollouts.continuations.continue_from", lambda *a, start, **k: iter(()))
    pool = str(tmp_path / "first" / "pool")
    second = make(pool=pool).learn()
    assert same(weights(first), weights(second))
    assert second.num_attempts == first.num_attempts
    third = make(pool=pool, positive_ratio=0.8, threshold=1.0).learn()
    assert not same(weights(first), weights(third))
    with pytest.raises(ValueError, match="holds no attempts: give the `pool` folder"):
        make(pool=str(tmp_path)).learn()


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}], ids=["all weights", "adapters"])
def test_what_is_saved_acts_and_learns_under_its_labels(make, folders, tmp_path, settings) -> None:
    agent = make(run=tmp_path / "run", learning_rate=0.01, **settings).learn()
    loaded = RCRL.load(tmp_path / "run" / "model", slots(), device="cpu")
    env = slots(Odd("validation"))
    expected = [a.completion.tolist() for a in collect(agent.policy, env, 30, seed=0)]
    assert agent.policy.condition == "[GOOD]"  # pyright: ignore[reportAttributeAccessIssue]
    for policy in (loaded.policy, load_policy(tmp_path / "run" / "model", device="cpu")):
        assert [a.completion.tolist() for a in collect(policy, env, 30, seed=0)] == expected
    bad = load_policy(tmp_path / "run" / "model", "[BAD]", device="cpu")
    pairs = zip(collect(bad, env, 30, seed=0), collect(agent.policy, env, 30, seed=0), strict=True)
    assert any(not np.allclose(one.logprobs[:1], other.logprobs[:1], atol=1e-3) for one, other in pairs)
    result = evaluate(agent, env, problems=4).metrics["maj@1"].value
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["eval/maj@1"] == result
    # The labelled model may be trained once more, from itself, and keeps its labels.
    more = RCRL.load(tmp_path / "run" / "model", slots(), device="cpu", base=None, validation_problems=0).learn()
    assert more.labels == agent.labels


TWO_RANKS = """
    import sys
    import torch
    from safetensors.torch import save_file
    from tokengym.agents import RCRL
    from tokengym.envs import Problem, ProblemList, TokenVectorEnv
    from tokengym.models import load_tokenizer
    from tokengym.rewards import Verdict

    torch.set_num_threads(1)

    class Odd(ProblemList):
        def grade(self, completion, problem):
            return Verdict(completion.count("a") % 2 == 1, "", completion[:1])

    odd = Odd([Problem(q, q, "a") for q in ("?", "a?", "b?")])
    env = TokenVectorEnv(odd, 4, tokenizer=load_tokenizer("chars:ab?\\n"), prompt="{question}",
                         max_prompt_tokens=8, max_new_tokens=6, autoreset_mode="Disabled")
    told = []
    agent = RCRL(env, sys.argv[2], run=sys.argv[3], device="cpu", learning_rate=1e-3, samples_per_problem=7,
                 rollouts_per_step=3, batch_size=64, epochs=1, validation_problems=0, positive_ratio=None)
    agent.learn(callback=lambda _, metrics: told.append(metrics))
    if agent.accelerator.is_main_process:
        counts = {key: torch.tensor(float(value)) for key, value in told[0].items()
                  if not key.startswith("time/") and "padding" not in key}
        tensors = {key: p.detach().clone() for key, p in agent.model.named_parameters()}
        save_file(tensors | counts | {"attempts": torch.tensor(agent.num_attempts)}, sys.argv[1])
    agent.accelerator.end_training()
"""


@pytest.mark.slow
def test_two_ranks_label_and_learn_what_one_does(folders, run_script, tmp_path) -> None:
    for ranks in (1, 2):
        run_script(TWO_RANKS, tmp_path / f"{ranks}", folders["policy"], tmp_path / f"run-{ranks}", processes=ranks)
    one, two = load_file(tmp_path / "1"), load_file(tmp_path / "2")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# ---------------------------------------------------------------------------------------------------- bad input


def test_attempts_without_a_step_boundary(make, tmp_path, monkeypatch) -> None:
    """One is left out and counted; nothing but such is an error."""
    metrics: list[dict[str, float]] = []
    agent = make(slots(budget=2), positive_ratio=None, run=tmp_path / "run", validation_problems=0)
    agent.learn(callback=lambda _, newest: metrics.append(newest))
    attempts = list(AttemptFile(tmp_path / "run/pool/attempts-0.jsonl").read(slots(budget=2)))

    def bare(attempt: Attempt) -> bool:
        text = str(LINES.decode(attempt.completion.tolist(), skip_special_tokens=True))
        return not (text.strip() and (attempt.terminated or "\n" in text.lstrip()))

    assert metrics[0]["labels/attempts_without_steps"] == sum(map(bare, attempts)) > 0
    monkeypatch.setattr(RCRL, "_collect_pool", lambda self: [attempt for attempt in attempts if bare(attempt)])
    with pytest.raises(ValueError, match=r'none of the .* attempts has a step boundary, .* granularity="attempt"'):
        make(pool=str(tmp_path), positive_ratio=None).learn()


def test_labels_that_are_all_the_same(make) -> None:
    class Hopeless(Odd):
        def grade(self, completion: str, problem: Problem) -> Verdict:
            return Verdict(False, "wrong", None)

    with pytest.raises(ValueError, match=r"all \d+ labels are \[BAD\], which leaves nothing to tell apart"):
        make(slots(Hopeless()), positive_ratio=None).learn()
    with pytest.raises(ValueError, match=r"none of the 40 attempts is correct, but positive_ratio=0\.5 wants some"):
        make(slots(Hopeless()), granularity="attempt").learn()
    with pytest.raises(ValueError, match=r"all 40 labels are \[GOOD\]"):
        make(granularity="attempt", threshold=0.0, positive_ratio=None).learn()


def test_a_base_model_that_does_not_fit(make, make_model, tmp_path) -> None:
    known = with_labels(LINES, ["[GOOD]"])
    (tmp_path / "known").mkdir()
    make_model("llama", 0, len(known), **IDS).save_pretrained(tmp_path / "known")
    known.save_pretrained(tmp_path / "known")
    env = TokenVectorEnv(
        Odd(), 4, tokenizer=known, prompt="{question}", max_prompt_tokens=8, max_new_tokens=6, autoreset_mode="Disabled"
    )
    agent = RCRL(env, tmp_path / "known", device="cpu", **FAST, problems=4, positive_ratio=None)
    with pytest.raises(ValueError, match=r"has a token '\[GOOD\]' of its own"):
        agent.learn()
    with pytest.raises(ValueError, match="has another tokenizer than"):
        make(base=str(tmp_path / "known"))
    make(granularity="attempt", positive_ratio=None, run=tmp_path / "run", validation_problems=0).learn()
    base = str(tmp_path / "run" / "model")
    with pytest.raises(ValueError, match=r"has other labels already, \[BAD\], \[GOOD\]"):
        make(base=base, granularity="attempt", return_edges=(0.5,), positive_ratio=None).learn()
    with pytest.raises(ValueError, match=r"base='tokengym/tiny-orm' is an outcome model"):
        make(base="tokengym/tiny-orm")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"granularity": "token"}, "granularity must be one of step, attempt"),
        ({"label_source": "oracle"}, "label_source must be one of monte_carlo, orm, sorm"),
        ({"label_source": "orm"}, "'orm' and orm=None do not go together"),
        ({"orm": "x"}, "'monte_carlo' and orm='x' do not go together"),
        ({"positive_ratio": 1.5}, "positive_ratio must be between 0 and 1"),
        ({"return_edges": (1.0,)}, 'set granularity="attempt"'),
        ({"granularity": "attempt", "return_edges": (2.0, 1.0)}, "one or more ascending numbers"),
        ({"granularity": "attempt", "return_edges": (1.0,), "return_buckets": 3}, "set one of them"),
        (
            {"granularity": "attempt", "return_buckets": 3, "threshold": 0.9},
            "threshold is 0.9, but it counts only with",
        ),
        ({"granularity": "attempt", "return_buckets": 1}, "return_buckets must be at least 2"),
        ({"rollouts_per_step": 0}, "rollouts_per_step must be at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": float("inf")}, "temperature must be above 0 and finite"),
    ],
)
def test_bad_settings(make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_names_are_known_before_anything_is_sampled(make) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown outcome model .* did you mean 'tokengym/tiny-orm'"):
        make(label_source="orm", orm="tokengym/tiny-rom")
    with pytest.raises(UnknownNameError, match="unknown model 'tokengym/tini': did you mean 'tokengym/tiny'"):
        make(base="tokengym/tini")


def test_there_is_a_position_for_a_label(make) -> None:
    agent = make(slots(budget=64 - 8))
    with pytest.raises(ValueError, match="with a label of 65 tokens is longer than the model's 64 positions"):
        agent.learn()
    assert agent.num_attempts == 0


def test_the_budget_covers_the_pool(make) -> None:
    with pytest.raises(ValueError, match="4 problems x 10 = 40 attempts, more than total_episodes=39"):
        make().learn(39)
    assert make(validation_problems=0).learn(40).num_attempts > 40  # those of the labels come on top


def test_add_labels_is_what_the_agent_trains_from(make, folders, weights, same) -> None:
    """With a learning rate of zero the agent's model is the base model with labels added, whatever samples."""
    from tokengym.models import load

    base, _ = load(folders["base"], device="cpu")
    add_labels(base, LINES, ("[BAD]", "[GOOD]"))
    agent = make(learning_rate=0.0, validation_problems=0).learn()
    assert same({name: p.detach() for name, p in base.named_parameters()}, weights(agent))
