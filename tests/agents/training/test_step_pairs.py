"""Pairs of steps: those found by hand, labels that cost what they need, and agents that learn from them and resume."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tokengym.agents import DPO, PreferenceModel
from tokengym.agents.rollouts.attempts import Attempt
from tokengym.agents.training.fine_tuning import NothingToLearnError
from tokengym.agents.training.step_pairs import label_next_steps, make_step_pairs, step_groups
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.files import LineFile
from tokengym.models import load_tokenizer
from tokengym.rewards import Verdict

LINES = load_tokenizer("chars:yz\n?")
EOS = LINES.eos_token_id


class Letters(ProblemList):
    """Right is what begins with the problem's letter; a right step has it alone."""

    def __init__(self, split: str = "train") -> None:
        super().__init__([Problem(f"{split}-{q}", q + "?", q) for q in "yz"], split)

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = completion.startswith(problem.answer)
        return Verdict(correct, "correct" if correct else "wrong", completion)

    def check_steps(self, steps, problem: Problem) -> list[bool]:
        return [step == problem.answer for step in steps]


def slots(problems: ProblemList | None = None) -> TokenVectorEnv:
    return TokenVectorEnv(
        problems or Letters(), 16, tokenizer=LINES, autoreset_mode="Disabled", prompt="{question}",
        max_prompt_tokens=4, max_new_tokens=6,
    )  # fmt: skip


ENV = slots()


def attempt(text: str, terminated: bool = True, index: int = 0) -> Attempt:
    problem = ENV.problems[index]
    tokens = np.append(ENV.encoder.encode(text), [EOS] * terminated).astype(np.int32)
    nothing, correct = np.zeros(len(tokens), np.float32), terminated and ENV.problems.grade(text, problem).correct
    prompt = ENV.encode_prompt(problem)
    return Attempt(problem, 0, prompt, tokens, nothing, nothing, correct, "", None, terminated)


def never(attempts, ends):
    raise AssertionError("exact labels need no continuations")


def texts(pairs) -> list[tuple[str, str, str]]:
    return [
        tuple(LINES.decode(t) for t in (p.chosen.prompt, p.chosen.completion, p.rejected.completion)) for p in pairs
    ]


def test_exact_labels_give_the_pairs_found_by_hand() -> None:
    attempts = [attempt(text) for text in ("y\nz", "y\ny", "z\ny", "z\nz", "y\nyy", "y\ny")]
    attempts += [attempt("zz\ny", terminated=False), attempt("y", index=1)]
    labelled = label_next_steps(attempts, ENV, "exact", 1, never)
    pairs = make_step_pairs(step_groups(labelled, LINES, 0.5), 99, 0)
    end, prompt = LINES.eos_token, LINES.decode(ENV.encode_prompt(ENV.problems[0]))
    assert sorted(texts(pairs)) == [
        (prompt, "y\n", "z\n"),
        (prompt + "y\n", f"y{end}", f"yy{end}"),
        (prompt + "y\n", f"y{end}", f"z{end}"),
    ]
    assert {pair.problem_id for pair in pairs} == {"train-y"}
    assert all((pair.chosen.prompt == pair.rejected.prompt).all() for pair in pairs)
    assert len({texts(make_step_pairs(step_groups(labelled, LINES, 0.5), 1, seed))[0] for seed in range(9)}) > 1


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_those_of_all_pairs_of_attempts(seed: int) -> None:
    """Against pairs of texts, compared line by line."""
    every = ["\n".join(lines) for n in (1, 2, 3) for lines in itertools.product(["y", "z", "zz"], repeat=n)]
    rng = np.random.default_rng(seed)
    chosen = [every[i] for i in rng.permutation(len(every))[:12] if len(every[i]) < 6]
    expected = set()
    for a, b in itertools.permutations((text.split("\n") for text in chosen), 2):
        for k in range(min(len(a), len(b))):
            if a[:k] == b[:k] == ["y"] * k and a[k] == "y" != b[k]:
                expected.add(("\n".join(["", *a[:k]]).strip(), a[k], b[k]))
    labelled = label_next_steps([attempt(text) for text in chosen], ENV, "exact", 1, never)
    prompt = len(ENV.encode_prompt(ENV.problems[0]))
    pairs = make_step_pairs(step_groups(labelled, LINES, 1.0), 99, 0)
    strip = lambda tokens: LINES.decode(tokens, skip_special_tokens=True).strip()  # noqa: E731
    found = [(strip(p.chosen.prompt[prompt:]), strip(p.chosen.completion), strip(p.rejected.completion)) for p in pairs]
    assert sorted(found) == sorted(expected)
    assert expected


def test_labels_of_continuations_are_counted_where_attempts_part_and_compared_by_the_margin() -> None:
    attempts = [attempt(text) for text in ("y\ny\ny", "z\ny", "yz\ny", "z\ny", "y\ny\nz")]
    asked: list[list[int]] = []

    def count(attempts, ends):
        asked.extend(own.tolist() for own in ends)
        shares = {"y\n": 6, "z\n": 2, "yz\n": 4, "y\ny\ny": 8, "y\ny\nz": 0}
        text = lambda tokens: LINES.decode(tokens, skip_special_tokens=True)  # noqa: E731
        return [
            np.array([shares[text(a.completion[: end + 1])] for end in own], np.int64)
            for a, own in zip(attempts, ends, strict=True)
        ]

    labelled = label_next_steps(attempts, ENV, "mean", 8, count)
    assert asked == [[1, 5], [1], [2], [], [5]], "the step y after y has no other beside it, and z is asked once"
    groups = step_groups(labelled, LINES, 0.5)
    assert [group.labels.tolist() for group in groups] == [[0.75, 0.25, 0.5], [1.0, 0.0]]
    end, prompt = LINES.eos_token, LINES.decode(ENV.encode_prompt(ENV.problems[0]))
    by_hand = [(prompt, "y\n", "z\n"), (prompt + "y\ny\n", f"y{end}", f"z{end}")]
    assert sorted(texts(make_step_pairs(groups, 9, 0))) == by_hand
    smaller = texts(make_step_pairs(step_groups(labelled, LINES, 0.25), 9, 0))
    assert sorted(smaller) == sorted([*by_hand, (prompt, "y\n", "yz\n"), (prompt, "yz\n", "z\n")])
    assert step_groups(labelled, LINES, 1.0)[0].labels.tolist() == [1.0, 0.0]


# ------------------------------------------------------------------------------------------------------------- agents


@pytest.fixture(scope="module")
def policy_folder(make_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("policy")
    make_model(vocab_size=len(LINES), eos_token_id=EOS, pad_token_id=EOS).save_pretrained(path)
    LINES.save_pretrained(path)
    return path


FAST = {
    "samples_per_problem": 24, "batch_size": 8, "epochs": 2, "learning_rate": 3e-3, "validation_problems": 2,
    "pairs": "steps", "rollouts_per_step": 2, "temperature": 1.0,
}  # fmt: skip


@pytest.fixture
def make(policy_folder):
    def make(cls: Any, problems: ProblemList | None = None, **settings: Any) -> Any:
        if cls is DPO:
            settings = {"rounds": 2, "patience": 9} | settings
        validation = slots(Letters("validation"))
        settings = FAST | settings
        if settings.get("step_labels") == "exact" or settings["pairs"] == "attempts":
            del settings["rollouts_per_step"]  # nothing is continued
        return cls(slots(problems), policy_folder, validation_env=validation, device="cpu", **settings)

    return make


def weights(agent: Any) -> list[torch.Tensor]:
    model = agent.model if isinstance(agent, DPO) else agent.outcome_model.model
    return [weight.detach().clone() for weight in model.parameters()]


@pytest.mark.parametrize("cls", [DPO, PreferenceModel])
def test_continuations_are_counted_and_a_killed_run_takes_them_up(make, cls: Any, tmp_path, monkeypatch) -> None:
    whole = make(cls, run=tmp_path / "whole").learn()
    paths = list((tmp_path / "whole").glob("*/prefixes-0.jsonl"))
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    assert len(paths) == (2 if cls is DPO else 1)
    assert whole.num_attempts == len(paths) * 2 * 24 + 2 * len(lines)
    tokens = sum(line["tokens"] for line in lines)
    assert whole.num_tokens > tokens > 0
    if cls is DPO:
        metrics = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
        assert sum(line.get("labels/tokens", 0) for line in metrics) == tokens

    class Killed(BaseException):
        pass

    write, calls = LineFile.write, []

    def dying(self, line) -> None:
        if "prefix" in line:
            calls.append(1)
            if len(calls) == 2:
                raise Killed
        write(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(LineFile, "write", dying)
        with pytest.raises(Killed):
            make(cls, run=tmp_path / "cut").learn()
    cut = make(cls, run=tmp_path / "cut", resume=True).learn()
    assert all(map(torch.equal, weights(cut), weights(whole)))
    assert (cut.num_attempts, cut.num_tokens) == (whole.num_attempts, whole.num_tokens)


def test_it_learns_from_exact_steps_and_of_a_pool_without_any_sampling(make, tmp_path) -> None:
    told: list[dict[str, float]] = []
    settings = {"samples_per_problem": 48, "step_labels": "exact", "pairs_per_problem": 64, "epochs": 8}
    agent = make(DPO, run=tmp_path / "first", **settings)
    agent.learn(callback=lambda _, metrics: told.append(metrics))
    assert agent.num_attempts == 2 * 2 * 48, "exact labels sample nothing"
    assert told[-1]["rollout/success_rate"] > told[1]["rollout/success_rate"] + 0.2, told
    again = make(DPO, pool=str(tmp_path / "first"), rounds=1, step_labels="exact").learn()
    assert again.num_attempts == 0
    labelled = make(DPO, pool=str(tmp_path / "first"), rounds=1).learn()
    assert labelled.num_attempts > 0, "continuations are sampled, whoever sampled the attempts"


def test_a_preference_model_tells_the_better_next_step(make, tmp_path) -> None:
    settings = {"samples_per_problem": 48, "step_labels": "exact", "epochs": 20, "learning_rate": 1e-2}
    agent = make(PreferenceModel, run=tmp_path / "run", **settings).learn()
    assert agent.num_attempts == 2 * 48
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["train/pairs"] >= lines[-1]["train/steps"] - 2 > 0
    accuracy = [line["train/accuracy"] for line in lines[:-1]]
    assert np.mean(accuracy[-5:]) > 0.9 > np.mean(accuracy[:1])


@pytest.mark.parametrize("cls", [DPO, PreferenceModel])
def test_what_cannot_be_paired_is_named(make, cls: Any) -> None:
    class Unknown(Letters):
        check_steps = ProblemList.check_steps

    with pytest.raises(ValueError, match=r'step_labels="exact": .*cannot tell right steps.*choose step_labels="mean"'):
        make(cls, Unknown(), step_labels="exact").learn()
    with pytest.raises(ValueError, match='counts only with pairs="steps"'):
        make(cls, pairs="attempts", step_labels="exact")
    for settings in ({"rollouts_per_step": 2}, {"step_margin": 0.25}):
        with pytest.raises(ValueError, match=f'{next(iter(settings))} is .*, but it counts only with pairs="steps"'):
            cls.config_class(**settings)
    with pytest.raises(ValueError, match='rollouts_per_step is 2, but it counts only with step_labels="mean"'):
        cls.config_class(pairs="steps", step_labels="exact", rollouts_per_step=2)
    with pytest.raises(NothingToLearnError, match=r"no two .*steps that follow the same beginning"):
        make(cls, temperature=1e-6).learn()
    with pytest.raises(ValueError, match="step_margin must be above 0 and at most 1, got 0"):
        make(cls, step_margin=0.0)


# ---------------------------------------------------------------------------------------------------------- two ranks

TWO_RANKS = """
    import sys
    import torch
    from safetensors.torch import save_file
    from tokengym.agents import DPO, PreferenceModel
    from tokengym.envs import Problem, ProblemList, TokenVectorEnv
    from tokengym.models import load_tokenizer
    from tokengym.rewards import Verdict

    torch.set_num_threads(1)

    class Letters(ProblemList):
        def grade(self, completion, problem):
            return Verdict(completion.startswith(problem.answer), "", completion[:1])

    def slots(split):
        problems = Letters([Problem(f"{split}-{i}", q + "?", q) for i, q in enumerate("yzyzy")], split)
        return TokenVectorEnv(problems, 8, tokenizer=load_tokenizer("chars:yz\\n?"), prompt="{question}",
                              max_prompt_tokens=4, max_new_tokens=6, autoreset_mode="Disabled")

    tensors = {}
    for name, cls in (("dpo", DPO), ("preference", PreferenceModel)):
        more = {"rounds": 1} if name == "dpo" else {}
        agent = cls(slots("train"), sys.argv[2], validation_env=slots("validation"), device="cpu", pairs="steps",
                    rollouts_per_step=4, step_margin=0.25, samples_per_problem=20, temperature=1.0, batch_size=4,
                    epochs=2, learning_rate=1e-3, micro_batch_tokens=24, validation_problems=5,
                    run=f"{sys.argv[3]}/{name}", **more)
        told = {}
        agent.learn(callback=lambda _, metrics: told.update(metrics))
        counts = {key: float(value) for key, value in told.items()
                  if key in ("labels/attempts", "labels/tokens", "rollout/pairs", "train/steps", "train/pairs")}
        counts |= {"attempts": agent.num_attempts, "tokens": agent.num_tokens}
        tensors |= {f"{name}.count.{key}": torch.tensor(value) for key, value in counts.items()}
        tensors |= {f"{name}.{key}": torch.tensor(value) for key, value in told.items() if key.startswith("train/")}
        model = agent.model if name == "dpo" else agent.outcome_model.model
        tensors |= {f"{name}.{key}": value.detach().clone() for key, value in model.named_parameters()}
    if agent.accelerator.is_main_process:
        save_file(tensors, sys.argv[1])
    agent.accelerator.end_training()
"""


@pytest.mark.slow
def test_two_ranks_learn_from_the_pairs_of_one(policy_folder, run_script, tmp_path) -> None:
    """The ranks sample and continue different problems, and train on the pairs of all of them."""
    for ranks in (1, 2):
        run_script(TWO_RANKS, tmp_path / f"{ranks}", policy_folder, tmp_path / f"run-{ranks}", processes=ranks)
    assert (tmp_path / "run-2" / "dpo" / "round-1" / "prefixes-1.jsonl").exists()  # there were two indeed
    one, two = load_file(tmp_path / "1"), load_file(tmp_path / "2")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        # Adam turns the rounding of a vanishing gradient into a step of its own.
        atol = 0 if ".count." in name else 2e-3
        torch.testing.assert_close(two[name], tensor, atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert one["dpo.count.rollout/pairs"] > 4
    assert one["dpo.count.labels/attempts"] > 0
    assert one["preference.count.attempts"] > 5 * 20, "steps are continued"
    assert one["dpo.train/loss"] > 0
