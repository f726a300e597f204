"""GRPO against TRL 1.16.0's GRPOTrainer: samples per CPU second of whole steps, sampling and update.

Both sides train the same model on the same prompts with the same reward, loss (GRPO's, averaged over each attempt's
tokens; no KL penalty; advantages over the group's standard deviation), optimizer (AdamW, gradient norm 1) and number of
samples per step, in float32 on one thread; TRL without gradient checkpointing, which would only slow it down. The model
has random weights and T/4 tokens, so an attempt ends at every token with a probability near 4/T: lengths are geometric
and cut off at T, as in `rollout_throughput`, and the learning rate is so small that this stays so. The reward, the
share of some letters, is hardly ever equal within a group: no attempt goes untrained.

Our side runs twice, as it is by default and with `compile_decoder`, whose compilation falls into the steps before the
timed ones and is stated beside the speeds. TRL's sampling is not compiled.

TRL needs an environment of its own:

    python -m venv trl && trl/bin/pip install torch==2.13.0 trl==1.16.0 transformers==5.23.0 accelerate==1.15.0
    python -m tokengym.benchmarks.speed.peers.trl_grpo --trl-python trl/bin/python --output trl.json

The sides run in turns, each run a process of its own. This file is what both run, one as a module and one by its path,
so it imports the package only where its own side begins.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

VERSION = "1.16.0"
"""Release of TRL that is compared with."""
PROBLEMS, SAMPLES = 8, 8


class Case(NamedTuple):
    """What is measured.

    Attributes:
        prompt: Tokens of a prompt.
        length: Largest number of new tokens of an attempt.
        depth: Layers of the model.
        width: Width of the model.
        goal: Samples per CPU second over TRL's, at least.
    """

    prompt: int
    length: int
    depth: int
    width: int
    goal: float


CASES = (
    Case(16, 64, 2, 128, 2.5),
    Case(128, 128, 2, 128, 4.0),
    Case(400, 128, 2, 128, 6.0),
    Case(128, 128, 4, 256, 4.0),
)
LEARNING_RATE = 1e-6
MICRO_BATCH_TOKENS = 2048
"""Tokens of our micro-batches; TRL's update takes all samples at once, its default."""
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def run(
    trl_python: str, cases: Sequence[Case] = CASES, steps: int = 8, warmup: int = 4, repeats: int = 3
) -> dict[str, Any]:
    """Measures both sides in turns.

    Args:
        trl_python: Interpreter of an environment with TRL.
        cases: Prompts, lengths and models to measure at.
        steps: Number of steps that are timed in each run.
        warmup: Number of steps before the timed ones.
        repeats: Number of runs of each side.

    Returns:
        JSON values: settings, and "cases", for each of which its fields, the runs of "trl", "tokengym" and "compiled"
        in samples per CPU second, with mean lengths, CPU seconds before the timed steps and versions, the medians, and
        the ratios of ours to TRL's, "speedup" and "compiled_speedup".
    """
    from .versions import check_trl

    check_trl(trl_python, VERSION)
    ours = [sys.executable, "-m", "tokengym.benchmarks.speed.peers.trl_grpo"]
    sides = {"trl": [trl_python, __file__], "tokengym": ours, "compiled": ours}
    found: list[dict[str, Any]] = []
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            _make_model(folder, case)
            runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for seed in range(repeats):
                for side, program in sides.items():
                    command = [*program, side, *map(str, (folder, case.prompt, case.length, steps, warmup, seed))]
                    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
                    done = subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603
                    if done.returncode:
                        raise ValueError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
                    runs[side].append(json.loads(done.stdout.splitlines()[-1]))
        rates = {side: sorted(run["rate"] for run in made)[repeats // 2] for side, made in runs.items()}
        speedups = {"speedup": rates["tokengym"] / rates["trl"], "compiled_speedup": rates["compiled"] / rates["trl"]}
        found.append({**case._asdict(), **rates, **speedups, "runs": runs})
    return {"steps": steps, "warmup": warmup, "samples_per_step": PROBLEMS * SAMPLES, "cases": found}


def table(results: dict[str, Any]) -> str:
    """Formats the results of `run` as text."""
    lines = [
        f"{'prompt + new, model':<24}{'TRL/s':>8}{'ours/s':>8}{'ratio':>7}{'compiled/s':>12}{'ratio':>7}{'goal':>6}"
        f"{'mean lengths':>20}"
    ]
    for found in results["cases"]:
        means = (f"{sum(run['mean_length'] for run in runs) / len(runs):.1f}" for runs in found["runs"].values())
        lines.append(
            f"{case_name(found):<24}{found['trl']:>8.1f}{found['tokengym']:>8.1f}{found['speedup']:>7.2f}"
            f"{found['compiled']:>12.1f}{found['compiled_speedup']:>7.2f}{found['goal']:>6}{', '.join(means):>20}"
        )
    return "\n".join(lines)


def case_name(case: Mapping[str, Any]) -> str:
    """Prompt and new tokens, and the model's shape: "128 + 128, 2 x 128"."""
    return f"{case['prompt']} + {case['length']}, {case['depth']} x {case['width']}"


def _make_model(folder: str, case: Case) -> None:
    from ....models import load_tokenizer
    from ....models.new_model import new_model

    tokenizer = load_tokenizer("chars:" + CHARACTERS[: case.length // 4 - 2])
    shape = {"depth": case.depth, "width": case.width, "heads": case.width // 32}
    model = new_model(tokenizer, "llama", positions=case.prompt + case.length, seed=0, **shape)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _prompts(count: int, length: int, seed: int) -> list[str]:
    import random

    rng = random.Random(seed)
    return ["".join(rng.choices(CHARACTERS[:10], k=length)) for _ in range(count)]


def _reward(completion: str) -> float:
    return sum(character in "02468ace" for character in completion) / max(len(completion), 1)


def _tokengym(
    folder: str, prompt: int, length: int, steps: int, warmup: int, seed: int, compiled: bool = False
) -> dict[str, Any]:
    import torch

    from ....agents import GRPO
    from ....envs import Problem, ProblemList, TokenVectorEnv
    from ....models import load_tokenizer
    from ....rewards.base import AttemptReward, FinishedAttempt

    torch.set_num_threads(1)
    times: list[float] = []
    lengths: list[float] = []

    class Letters(AttemptReward):
        def attempt_reward(self, attempt: FinishedAttempt) -> float:
            return _reward(self.decode(attempt.tokens))

    def clock(_: object, metrics: dict[str, float]) -> None:
        times.append(time.process_time())
        lengths.append(metrics["rollout/mean_length"] * PROBLEMS * SAMPLES)

    prompts = _prompts(PROBLEMS * (warmup + steps), prompt, seed)
    env = TokenVectorEnv(
        ProblemList([Problem(str(number), text, "0") for number, text in enumerate(prompts)]),
        PROBLEMS * SAMPLES,
        tokenizer=load_tokenizer(folder),
        reward=Letters(),
        prompt="{question}",
        max_prompt_tokens=prompt,
        max_new_tokens=length,
        autoreset_mode="Disabled",
        copy=False,
    )
    GRPO(
        env,
        folder,
        device="cpu",
        seed=seed,
        iterations=warmup + steps,
        problems_per_iteration=PROBLEMS,
        samples_per_problem=SAMPLES,
        learning_rate=LEARNING_RATE,
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        validation_problems=0,
        compile_decoder=compiled,
    ).learn(callback=clock)
    return _summary(times, lengths, warmup, torch=torch.__version__)


def _trl(folder: str, prompt: int, length: int, steps: int, warmup: int, seed: int) -> dict[str, Any]:
    import torch
    import transformers
    import trl  # pyright: ignore[reportMissingImports]
    from datasets import Dataset

    torch.set_num_threads(1)
    times: list[float] = []
    lengths: list[float] = []

    class StepTimes(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.process_time())

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.append(sum(map(len, completion_ids)))
        return [_reward(completion) for completion in completions]

    with tempfile.TemporaryDirectory() as output:
        config = trl.GRPOConfig(
            output_dir=output,
            max_steps=warmup + steps,
            per_device_train_batch_size=PROBLEMS * SAMPLES,
            num_generations=SAMPLES,
            max_completion_length=length,
            temperature=1.0,
            top_k=0,
            beta=0.0,
            loss_type="grpo",
            scale_rewards="group",
            learning_rate=LEARNING_RATE,
            max_grad_norm=1.0,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            seed=seed,
        )
        trainer = trl.GRPOTrainer(
            folder,
            reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": _prompts(PROBLEMS * (warmup + steps), prompt, seed)}),
            processing_class=transformers.AutoTokenizer.from_pretrained(folder),
            callbacks=[StepTimes()],
        )
        trainer.train()
    versions = {"torch": torch.__version__, "trl": trl.__version__, "transformers": transformers.__version__}
    return _summary(times, lengths, warmup, **versions)


def _summary(times: Sequence[float], lengths: Sequence[float], warmup: int, **versions: str) -> dict[str, Any]:
    """Speed and mean length of the steps after the warm-up, and what came before them."""
    steps, samples = len(times) - warmup, PROBLEMS * SAMPLES
    rate = steps * samples / (times[-1] - times[warmup - 1])
    length = sum(lengths[warmup:]) / (steps * samples)
    return {"rate": rate, "mean_length": length, "seconds_before": times[warmup - 1], **versions}


SIDES: dict[str, Callable[..., dict[str, Any]]] = {
    "trl": _trl,
    "tokengym": _tokengym,
    "compiled": functools.partial(_tokengym, compiled=True),
}


def main() -> None:
    """The command line of the comparison."""
    from ....files import check_output, write_json

    parser = argparse.ArgumentParser(description="GRPO against TRL's, in turns")
    parser.add_argument("--trl-python", required=True, help="interpreter of an environment with TRL")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    check_output(options.output)
    results = run(options.trl_python, repeats=options.repeats)
    sys.stdout.write(table(results) + "\n")
    if options.output is not None:
        write_json(options.output, results)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in SIDES:
        sys.stdout.write(json.dumps(SIDES[sys.argv[1]](sys.argv[2], *map(int, sys.argv[3:]))) + "\n")
    else:
        from ....exits import exit_status

        sys.exit(exit_status(main))
