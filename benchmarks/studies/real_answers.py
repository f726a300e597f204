r"""Real models on GSM8K and SVAMP: what the environment says of each attempt, beside a reader that knows no grader.

    python -m tokengym.benchmarks.studies.real_answers --instruct CHAT.gguf --base BASE.gguf \
        --gsm8k GSM8K --svamp SVAMP --problems 100 --output real_answers.json

The instruct model is asked by its chat template, with four worked examples as turns before, and answers in a box. The
base model sees the same examples as text and goes on into a next question of its own, where its attempt is ended. The
second reader is a few lines: the number in the last box, or behind the last marker, with all that is no digit, sign or
point around it left out. It reads most answers of such models, and where it reads otherwise than the environment, the
attempt is kept for you to judge.
"""

import argparse
import json
import re
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import transformers

from ...agents.evaluation.evaluate import Interval, evaluate
from ...agents.rollouts.attempts import Attempt
from ...agents.rollouts.policy import CausalLMPolicy
from ...agents.rollouts.slots import make_rollout_env
from ...envs.token_vector_env import TokenVectorEnv
from ...exits import exit_status
from ...files import check_output, write_text
from ...models.loading import load

INSTRUCT = {"prompt": "chat", "shots": 4, "answer_format": "boxed", "max_new_tokens": 160}
BASE = {"shots": 4, "max_new_tokens": 160}
_ANSWERS = {"boxed": re.compile(r"\\boxed\{([^{}]*)\}"), "marker": re.compile(r"####([^\n]*)")}
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


@dataclass(frozen=True)
class Dispute:
    """An attempt that the two read otherwise.

    Attributes:
        question: Question of the problem.
        gold: Gold answer of the problem.
        end: Last characters of the attempt.
        verdict: Verdict of the environment.
        second: Answer that the second reader found; `None` if it found none.
    """

    question: str
    gold: str
    end: str
    verdict: str
    second: str | None


@dataclass
class Graded:
    """Greedy attempts of one model at one data set.

    Attributes:
        maj: Accuracy of greedy attempts, maj@1, with the bounds of its interval.
        verdicts: Number of attempts by verdict.
        marked: Number of attempts in which the second reader found an answer.
        right: Number of attempts that the second reader finds right.
        ended_by_stop: Number of attempts that a stop string ended.
        agree: Number of attempts that both call right, or both not.
        disputes: Attempts that one of them alone calls right.
        tokens: Number of tokens of all attempts.
        cpu_seconds: CPU time of the evaluation.
    """

    maj: Interval
    verdicts: dict[str, int]
    marked: int = 0
    right: int = 0
    ended_by_stop: int = 0
    agree: int = 0
    tokens: int = 0
    cpu_seconds: float = 0.0
    disputes: list[Dispute] = field(default_factory=list[Dispute])


def second_reading(text: str, style: str) -> str | None:
    """The number in the last box or behind the last marker; `None` if there is none."""
    found = _ANSWERS[style].findall(text)
    numbers = _NUMBER.findall(found[-1]) if found else []
    return numbers[-1].replace(",", "") if len(numbers) == 1 else None


def graded(policy: CausalLMPolicy, env: TokenVectorEnv, style: str, problems: int) -> Graded:
    """Both readings of the greedy attempts at the first problems of the test split."""
    attempts: list[Attempt] = []
    started = time.process_time()
    result = evaluate(policy, env, problems=problems, on_problem=attempts.extend)
    seconds = time.process_time() - started
    found = Graded(
        result.metrics["maj@1"],
        dict(Counter(attempt.verdict for attempt in attempts)),
        tokens=sum(len(attempt.completion) for attempt in attempts),
        cpu_seconds=seconds,
    )
    for attempt in attempts:
        text, gold = env.decode(attempt.completion), attempt.problem.answer.replace(",", "")
        number = second_reading(text, style)
        # A cut attempt has no answer, however it reads so far.
        right = attempt.terminated and number is not None and float(number) == float(gold)
        found.marked += number is not None
        found.right += right
        found.ended_by_stop += attempt.terminated and attempt.completion[-1] not in env.eos_token_ids
        if right == attempt.is_success:
            found.agree += 1
        else:
            found.disputes.append(Dispute(attempt.problem.question, gold, text[-200:], attempt.verdict, number))
    return found


def run(models: dict[str, str], data: dict[str, str], problems: int, num_envs: int) -> dict[str, Graded]:
    """The figures of every model at every data set, printed as they come."""
    found: dict[str, Graded] = {}
    for kind, path in models.items():
        policy = CausalLMPolicy(*load(path, device="cpu"))
        for name, place in data.items():
            settings: dict[str, Any] = {**(INSTRUCT if kind == "instruct" else BASE), "split": "test", "data": place}
            env = make_rollout_env(
                gym.spec(f"tokengym/{name}-v0"), policy, num_envs, max_prompt_tokens=1024, **settings
            )
            style = settings.get("answer_format", "marker")
            found[f"{name}, {kind}"] = graded(policy, env, style, problems)
            print(f"{name}, {kind}", json.dumps(asdict(found[f"{name}, {kind}"])), flush=True)
    return found


def main() -> None:
    """Prints the figures, and writes them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instruct", help="model with a chat template")
    parser.add_argument("--base", help="model without")
    parser.add_argument("--gsm8k", help="folder of GSM8K")
    parser.add_argument("--svamp", help="folder of SVAMP")
    parser.add_argument("--problems", type=int, default=100, help="problems of each data set")
    parser.add_argument("--num-envs", type=int, default=25, help="attempts at the same time")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    check_output(options.output)
    models = {kind: path for kind in ("instruct", "base") if (path := getattr(options, kind)) is not None}
    data = {name: place for name in ("GSM8K", "SVAMP") if (place := getattr(options, name.lower())) is not None}
    if not models or not data:
        raise ValueError("nothing to run: give a model by --instruct or --base, and data by --gsm8k or --svamp")
    found = run(models, data, options.problems, options.num_envs)
    record = {
        "models": {kind: Path(path).name for kind, path in models.items()},
        "settings": {"instruct": INSTRUCT, "base": BASE},
        "problems": options.problems,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "figures": {name: asdict(one) for name, one in found.items()},
    }
    if options.output is not None:
        write_text(options.output, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(exit_status(main))
