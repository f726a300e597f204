"""PPO against TRL 1.12.0's experimental PPOTrainer: samples per CPU second, where a step's time goes, and its memory.

1.12.0 is the last release that has one. Both sides train the same model on the same prompts with the same reward, one
step being 64 samples, 4 at each of 16 problems, and 4 epochs with one update each: clipped surrogate, GAE, whitened
advantages, the k1 penalty inside the reward against a frozen copy, clipped value loss, AdamW. The critic is a copy of
the model on both sides, which is all that TRL has. One process, one thread. The model has random weights and T/4
tokens, so an attempt ends at every token with a probability near 4/T: lengths are geometric and cut off at T; the
learning rate is so small that this stays so. TRL without gradient checkpointing, which would only slow it down.

TRL needs an environment of its own:

    python -m venv trl && trl/bin/pip install torch==2.13.0 && trl/bin/pip install trl==1.12.0 "transformers==5.17.*"
    python -m tokengym.benchmarks.speed.peers.trl_ppo --trl-python trl/bin/python --output trl-ppo.json

The sides run in turns, each run a process of its own. This file is what both run, one as a module and one by its path,
so it imports the package only where its own side begins.
"""

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

VERSION = "1.12.0"
"""Release of TRL that is compared with."""
PROBLEMS, SAMPLES, EPOCHS = 16, 4, 4
CASES = ((16, 64), (16, 192), (128, 128))
"""Tokens of a prompt, and the largest number of new ones of an attempt."""
GOALS = {"float32": 4.0, "bfloat16": 2.5}
"""Samples per CPU second over those of TRL in float32, at least."""
LEARNING_RATE = 1e-7
MICRO_BATCH_TOKENS = 640
"""Tokens of our micro-batches; TRL takes all samples at once."""
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
SIZES = {"speed": {"depth": 4, "width": 256, "heads": 8}, "memory": {"depth": 12, "width": 512, "heads": 8}}
LORA_RANK = 16


def run(
    trl_python: str, cases: Sequence[tuple[int, int]] = CASES, steps: int = 3, warmup: int = 1, repeats: int = 3
) -> dict[str, Any]:
    """Measures both sides in turns.

    Args:
        trl_python: Interpreter of an environment with TRL.
        cases: Tokens of a prompt and of an attempt at most.
        steps: Number of steps that are timed in each run.
        warmup: Number of steps before the timed ones.
        repeats: Number of runs of each side.

    Returns:
        JSON values: settings; "cases", for each of which and for each side the "runs", their median rate in "rates",
        and "speedups", ours over TRL's in float32; and "memory", our peak above that of the imports, with a branch of 4
        layers, with and without LoRA.
    """
    from .versions import check_trl

    check_trl(trl_python, VERSION)
    results: dict[str, Any] = {"samples_per_step": PROBLEMS * SAMPLES, "epochs": EPOCHS, "steps": steps, "cases": {}}
    with tempfile.TemporaryDirectory() as folder:
        for prompt, length in cases:
            _make_model(folder, prompt, length, "speed")
            found: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for seed in range(repeats):
                for side in ("trl", "tokengym"):
                    for dtype in GOALS:
                        found[f"{side} {dtype}"].append(
                            _process(trl_python, side, folder, dtype, prompt, length, steps, warmup, seed)
                        )
            rates = {name: sorted(one["rate"] for one in runs)[repeats // 2] for name, runs in found.items()}
            speedups = {dtype: rates[f"tokengym {dtype}"] / rates["trl float32"] for dtype in GOALS}
            results["cases"][f"{prompt} + {length}"] = {"rates": rates, "speedups": speedups, "runs": found}
        prompt, length = cases[-1]
        _make_model(folder, prompt, length, "memory")
        results["memory"] = {
            name: _process(trl_python, "memory", folder, "float32", prompt, length, 1, 0, rank)
            for name, rank in (("full", 0), (f"LoRA of rank {LORA_RANK}", LORA_RANK))
        }
    return results


def _process(trl_python: str, side: str, *arguments: Any) -> dict[str, Any]:
    program = (
        [trl_python, __file__] if side == "trl" else [sys.executable, "-m", "tokengym.benchmarks.speed.peers.trl_ppo"]
    )
    command = [*program, side, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[str, Any]) -> str:
    """Formats the results of `run` as text."""
    lines = [f"{'prompt + new':<14}{'side':<20}{'samples/s':>10}{'over TRL':>10}{'goal':>6}  parts of a step; padding"]
    for length, found in results["cases"].items():
        for name, runs in found["runs"].items():
            side, dtype = name.split()
            rate = found["rates"][name]
            goal = f"{GOALS[dtype]:>6}" if side == "tokengym" else " " * 6
            parts = ", ".join(f"{part} {_mean(runs, part):.0%}" for part in runs[0]["parts"])
            padding = ", ".join(f"{part} {_mean(runs, part, 'padding'):.0%}" for part in runs[0]["padding"])
            lines.append(
                f"{length:<14}{name:<20}{rate:>10.2f}{rate / found['rates']['trl float32']:>10.2f}{goal}  "
                f"{parts}; padding: {padding}; mean length {sum(one['mean_length'] for one in runs) / len(runs):.1f}"
            )
    for name, found in results["memory"].items():
        lines.append(
            f"memory of a step, {name}: {found['megabytes']:.0f} MB at {found['parameters'] / 1e6:.1f} M parameters, "
            f"{found['trained'] / 1e6:.1f} M of them and the critic's {found['critic'] / 1e6:.1f} M trained"
        )
    return "\n".join(lines)


def _mean(runs: Sequence[dict[str, Any]], part: str, kind: str = "parts") -> float:
    return sum(one[kind][part] for one in runs) / len(runs)


class PhaseTimes:
    """CPU seconds of the parts of a step, by name."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts for `part` and for no part around it."""

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            inside = sum(self.seconds.values())
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.process_time() - started - (sum(self.seconds.values()) - inside)

        return wrapped


class Padding:
    """Positions that forward passes spent on no token, by the part of a step."""

    def __init__(self) -> None:
        self.positions: defaultdict[str, int] = defaultdict(int)
        self.tokens: defaultdict[str, int] = defaultdict(int)

    def count(self, part: str, positions: int, tokens: int) -> None:
        self.positions[part] += positions
        self.tokens[part] += tokens

    def shares(self) -> dict[str, float]:
        return {part: 1 - self.tokens[part] / count for part, count in self.positions.items()}


def _make_model(folder: str, prompt: int, length: int, size: str) -> None:
    from ....models import load_tokenizer
    from ....models.new_model import new_model

    tokenizer = load_tokenizer("chars:" + CHARACTERS[: length // 4 - 2])
    shape = SIZES[size]
    model = new_model(tokenizer, "llama", positions=prompt + length, seed=0, **shape)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _prompts(count: int, length: int, seed: int) -> list[str]:
    import random

    rng = random.Random(seed)
    return ["".join(rng.choices(CHARACTERS[:10], k=length)) for _ in range(count)]


def _agent(folder: str, dtype: str, prompt: int, length: int, iterations: int, seed: int, **settings: Any) -> Any:
    from ....agents.ppo import PPO
    from ....envs import Problem, ProblemList, TokenVectorEnv
    from ....models import load_tokenizer
    from ....rewards.base import AttemptReward, FinishedAttempt

    class Even(AttemptReward):
        def attempt_reward(self, attempt: FinishedAttempt) -> float:
            return float((attempt.tokens % 2 == 0).mean())

    prompts = _prompts(PROBLEMS * iterations, prompt, seed)
    env = TokenVectorEnv(
        ProblemList([Problem(str(number), text, "0") for number, text in enumerate(prompts)]),
        PROBLEMS * SAMPLES,
        tokenizer=load_tokenizer(folder),
        reward=Even(),
        prompt="{question}",
        max_prompt_tokens=prompt,
        max_new_tokens=length,
        autoreset_mode="Disabled",
        copy=False,
    )
    return PPO(
        env,
        folder,
        device="cpu",
        seed=seed,
        iterations=iterations,
        problems_per_iteration=PROBLEMS,
        samples_per_problem=SAMPLES,
        minibatch_size=PROBLEMS * SAMPLES,
        epochs=EPOCHS,
        temperature=1.0,
        learning_rate=LEARNING_RATE,
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        validation_problems=0,
        bf16=dtype == "bfloat16",
        **settings,
    )


def _tokengym(folder: str, dtype: str, prompt: int, length: int, steps: int, warmup: int, seed: int) -> dict[str, Any]:
    import torch

    from ....agents import ppo
    from ....agents.training import learner

    torch.set_num_threads(1)
    agent = _agent(folder, dtype, prompt, length, warmup + steps, seed, critic="model")
    clock, padding = PhaseTimes(), Padding()
    times: list[float] = []
    lengths: list[float] = []

    def told(_: object, metrics: dict[str, float]) -> None:
        times.append(time.process_time())
        lengths.append(metrics["rollout/mean_length"] * PROBLEMS * SAMPLES)
        if len(times) == warmup:
            clock.seconds.clear()

    def counted(collate: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            batch = collate(*args)
            padding.count("forward passes", batch.inputs.segments.numel(), int(batch.inputs.is_token.sum()))
            return batch

        return wrapped

    learner.collate = counted(learner.collate)
    agent._sample = clock.timed("rollout", agent._sample)
    agent._reference.logprobs = clock.timed("reference", agent._reference.logprobs)
    ppo.evaluate_as_trained = clock.timed("value", ppo.evaluate_as_trained)
    learner.Learner.update = clock.timed("update", learner.Learner.update)  # pyright: ignore[reportAttributeAccessIssue]
    agent.learn(callback=told)
    return _summary(times, lengths, warmup, clock, padding, torch=torch.__version__)


def _trl(folder: str, dtype: str, prompt: int, length: int, steps: int, warmup: int, seed: int) -> dict[str, Any]:
    import torch
    import transformers
    import trl  # pyright: ignore[reportMissingImports]
    from datasets import Dataset
    from transformers.modeling_outputs import BaseModelOutputWithPast
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    policy, reference = (transformers.AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    value = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    clock, padding = PhaseTimes(), Padding()
    times: list[float] = []
    lengths: list[float] = []

    class Even(torch.nn.Module):
        """A reward model without a model: the share of tokens with even ids."""

        base_model_prefix = "trunk"

        def trunk(self, input_ids: Any, attention_mask: Any, **_: Any) -> Any:
            tokens, now = input_ids[:, prompt:], attention_mask[:, prompt:].long()
            even = ((tokens % 2 == 0) & now.bool()).long()
            share = torch.nn.functional.pad(even.cumsum(1) / now.cumsum(1).clamp(min=1), (prompt, 0))
            return BaseModelOutputWithPast(hidden_states=(share[..., None],))

        def score(self, hidden: Any) -> Any:
            return hidden

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.process_time())
            if len(times) == warmup:
                clock.seconds.clear()

    with tempfile.TemporaryDirectory() as output:
        config = PPOConfig(
            output_dir=output,
            total_episodes=(warmup + steps) * PROBLEMS * SAMPLES,
            per_device_train_batch_size=PROBLEMS * SAMPLES,
            gradient_accumulation_steps=1,
            num_mini_batches=1,
            num_ppo_epochs=EPOCHS,
            local_rollout_forward_batch_size=PROBLEMS * SAMPLES,
            response_length=length,
            stop_token="eos",  # noqa: S106
            temperature=1.0,
            kl_coef=0.05,
            vf_coef=1.0,
            learning_rate=LEARNING_RATE,
            gradient_checkpointing=False,
            bf16=dtype == "bfloat16",
            use_cpu=True,
            num_sample_generations=0,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            seed=seed,
        )
        prompts = [text for text in _prompts(PROBLEMS * (warmup + steps), prompt, seed) for _ in range(SAMPLES)]
        trainer = PPOTrainer(
            config, tokenizer, policy, reference, Even(), Dataset.from_dict(dict(tokenizer(prompts))), value,
            eval_dataset=Dataset.from_dict(dict(tokenizer(prompts[:1]))), callbacks=[Watch()],
        )  # fmt: skip

        generation, forward, get_reward = ppo_trainer.batch_generation, ppo_trainer.forward, ppo_trainer.get_reward

        def truncate(stop: int, pad_token: int, responses: Any) -> Any:
            found = truncate_response(stop, pad_token, responses)
            lengths.append(int((found != pad_token).sum()))
            return found

        def count(query_responses: Any) -> None:
            responses = query_responses[:, prompt:]
            ended = (responses == tokenizer.eos_token_id).long().cumsum(1) - (
                responses == tokenizer.eos_token_id
            ).long()
            tokens = int((ended == 0).sum()) + prompt * len(responses)
            padding.count("forward passes", query_responses.numel(), tokens)

        def forwarded(model: Any, query_responses: Any, pad_token_id: int) -> Any:
            count(query_responses)
            part = "reference" if model is trainer.ref_model else "update"
            return clock.timed(part, forward)(model, query_responses, pad_token_id)

        def rewarded(model: Any, query_responses: Any, *rest: Any) -> Any:
            if isinstance(model, Even):
                return get_reward(model, query_responses, *rest)
            count(query_responses)
            return clock.timed("value", get_reward)(model, query_responses, *rest)

        truncate_response = ppo_trainer.truncate_response
        ppo_trainer.truncate_response = truncate
        ppo_trainer.batch_generation = clock.timed("rollout", generation)
        ppo_trainer.forward, ppo_trainer.get_reward = forwarded, rewarded
        trainer.accelerator.backward = clock.timed("update", trainer.accelerator.backward)
        trainer.optimizer.step = clock.timed("update", trainer.optimizer.step)
        trainer.train()
    versions = {"torch": torch.__version__, "trl": trl.__version__, "transformers": transformers.__version__}
    return _summary(times, lengths, warmup, clock, padding, **versions)


def _summary(
    times: Sequence[float], lengths: Sequence[float], warmup: int, clock: PhaseTimes, padding: Padding, **versions: str
) -> dict[str, Any]:
    """Samples per CPU second of the steps after the warm-up, their mean length, and what the time went into."""
    steps, samples = len(times) - warmup, PROBLEMS * SAMPLES
    seconds = times[-1] - times[warmup - 1]
    parts = {part: clock.seconds[part] / seconds for part in ("rollout", "reference", "value", "update")}
    return {
        "rate": steps * samples / seconds,
        "mean_length": sum(lengths[warmup:]) / (steps * samples),
        "parts": parts | {"other": 1 - sum(parts.values())},
        "padding": padding.shares(),
        **versions,
    }


def _memory(
    folder: str, dtype: str, prompt: int, length: int, steps: int, warmup: int, lora_rank: int
) -> dict[str, Any]:
    """Peak memory of a process that makes one step, above what it has after its imports, in MB."""
    import torch

    from ....agents import ppo  # noqa: F401  # imports count as none of a step's memory

    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    agent = _agent(folder, dtype, prompt, length, warmup + steps, 0, lora_rank=lora_rank or None)
    agent.learn()
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    return {
        "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "parameters": count(agent.model),
        "trained": sum(p.numel() for p in agent.model.parameters() if p.requires_grad),
        "critic": count(agent.critic),
    }


def main() -> None:
    """The command line of the comparison."""
    from ....files import check_output, write_json

    parser = argparse.ArgumentParser(description="PPO against TRL's, in turns")
    parser.add_argument("--trl-python", required=True, help="interpreter of an environment with TRL")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    check_output(options.output)
    results = run(options.trl_python, repeats=options.repeats, steps=options.steps)
    sys.stdout.write(table(results) + "\n")
    if options.output is not None:
        write_json(options.output, results)


SIDES = {"trl": _trl, "tokengym": _tokengym, "memory": _memory}

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in SIDES:
        folder, dtype, *numbers = sys.argv[2:]
        sys.stdout.write(json.dumps(SIDES[sys.argv[1]](folder, dtype, *map(int, numbers))) + "\n")
    else:
        from ....exits import exit_status

        sys.exit(exit_status(main))
