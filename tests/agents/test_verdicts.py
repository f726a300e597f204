"""Every verdict of the grader, from an attempt's last token to what an evaluation prints."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console
from torch import nn

import tokengym  # noqa: F401 - registers the environments
from tokengym.agents.evaluation.evaluate import evaluate
from tokengym.agents.evaluation.tables import evaluation_table
from tokengym.agents.rollouts.attempts import RolloutStatistics
from tokengym.agents.rollouts.collect import collect
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.envs import TokenVectorEnv
from tokengym.models import load_tokenizer
from tokengym.models.vocabulary import num_token_ids
from tokengym.rewards import grade_free_form
from tokengym.rewards.grading.worker import Worker, Workers

TOKENIZER: Any = load_tokenizer("tokengym/tiny")
# What the policy writes at the problem that asks for it. The answer is an integral, which a stand-in reads.
SCRIPT = {
    "correct": r"\boxed{it is \int x}",
    "wrong": r"\boxed{it is \int y}",
    "ambiguous": r"\boxed{\frac{1}{2}} or \boxed{undecided}",
    "unparsed": r"\boxed{unreadable}",
    "no_answer": "x",
    "too_long": r"\boxed{" + "0" * 257 + "}",
    "timeout": r"\boxed{slow}",
    "crashed": r"\boxed{dying}",
    "truncated": "and so on " * 640,
}


class ScriptedDecoder:
    """Stands in for the decoder of a model: at each prompt the token of its script."""

    prefill_tokens = 0
    kept = None

    def __init__(self, num_slots: int) -> None:
        self.slots = np.empty(0, np.int64)
        self._left: dict[int, list[int]] = {}

    def begin(self, slots: np.ndarray, prompts: list[np.ndarray], keys: np.ndarray) -> None:
        for slot, prompt in zip(slots.tolist(), prompts, strict=True):
            (name,) = [name for name in SCRIPT if f"<{name}>" in TOKENIZER.decode(prompt)]
            self._left[slot] = [*TOKENIZER(SCRIPT[name], add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
        self.slots = np.array(sorted(self._left))

    def step(self, _: object) -> tuple[np.ndarray, np.ndarray]:
        tokens = [left.pop(0) if len(left := self._left[slot]) > 1 else left[0] for slot in self.slots.tolist()]
        return np.array(tokens), np.zeros(len(tokens))

    def finish(self, slots: np.ndarray) -> None:
        """A finished slot goes on with its last token until it is retired or begins anew."""

    def retire(self, slots: np.ndarray) -> None:
        for slot in slots.tolist():
            del self._left[slot]
        self.slots = np.array(sorted(self._left), np.int64)


class Unasked(nn.Module):
    """A model that fits the tokenizer, and is never asked: decoders are scripted."""

    def get_input_embeddings(self) -> nn.Module:
        return nn.Embedding(num_token_ids(TOKENIZER), 1)


class ScriptedPolicy(CausalLMPolicy):
    def decoder(self, num_slots: int) -> Any:
        return ScriptedDecoder(num_slots)


@pytest.fixture(scope="module", params=["waiting", "background"])
def worker(request, make_stand_in) -> Iterator[Worker | Workers]:
    """One that whoever asks waits for, and a pool that answers in the background."""
    stand_in = make_stand_in()
    if request.param == "waiting":
        yield stand_in
        return
    workers = Workers(2, stand_in.script)
    workers._workers = [make_stand_in(), make_stand_in()]  # which have the right patience with each answer
    workers._renew()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokengym.rewards.grading.worker.WORKERS", workers)
        yield workers
    workers.close()


@pytest.fixture
def env(tmp_path, monkeypatch, worker: Worker | Workers) -> TokenVectorEnv:
    rows = [{"problem": f"Write <{name}>.", "solution": r"\boxed{\int x}"} for name in SCRIPT]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr("tokengym.rewards.grading.formats.grade_free_form", partial(grade_free_form, worker=worker))
    env = gym.make_vec(
        "tokengym/MATH-v0",
        4,
        vectorization_mode="vector_entry_point",
        data=str(tmp_path),
        split="test",
        tokenizer=TOKENIZER,
        autoreset_mode="Disabled",
        curriculum="sequential",
    )
    assert isinstance(env, TokenVectorEnv)
    return env


def test_terminal_infos_logs_and_evaluation_tell_every_verdict(env: TokenVectorEnv, worker: Worker | Workers) -> None:
    policy = ScriptedPolicy(Unasked(), TOKENIZER)  # pyright: ignore[reportArgumentType]
    before = Counter(worker.counters)
    statistics = RolloutStatistics()
    for name, attempt in zip(SCRIPT, collect(policy, env, len(SCRIPT), seed=0), strict=True):
        assert (attempt.verdict, attempt.is_success) == (name, name == "correct")
        assert attempt.total_reward == attempt.is_success
        assert attempt.terminated == (name != "truncated")
        assert (attempt.answer is not None) == (name in ("correct", "wrong"))
        statistics.add(attempt)
    # The worker saw those that needed it.
    asked = ("correct", "wrong", "unparsed", "timeout", "crashed")
    assert Counter(worker.counters) - before == Counter(asked)
    metrics = statistics.metrics(seconds=1.0)
    for name in SCRIPT:
        assert metrics[f"rollout/verdict/{name}"] == pytest.approx(1 / len(SCRIPT))

    result = evaluate(policy, env, problems=len(SCRIPT), n=2)
    assert result.verdicts == dict.fromkeys(SCRIPT, 2)
    assert result.metrics["maj@1"].value == pytest.approx(1 / len(SCRIPT))
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(evaluation_table({"script": result}, "MATH"))
    text = " ".join(console.export_text().split())
    for name in SCRIPT:
        assert f"{name} 11%" in text
