"""Cost of bfloat16: the same 16 updates with float32 weights and with weights in bfloat16.

    python -m tokengym.benchmarks.studies.precision --output precision.json
    python -m tokengym.benchmarks.studies.precision --model M.gguf --data train.jsonl --output real.json

The first trains the built-in model: supervised fine-tuning, PPO with its critic branch, an outcome model. All see the
same examples in the same order. The second fine-tunes a model of your own on GSM8K's rows, with adapters and without,
saves it, loads it and evaluates what was loaded.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator

from ...agents import make_agent
from ...agents.configs.optimizer import OptimizerConfig
from ...agents.outcome_models import OutcomeLearner, bce
from ...agents.rollouts.attempts import Attempt
from ...agents.rollouts.collect import collect
from ...agents.training.fine_tuning import nll
from ...agents.training.learner import Example, Learner
from ...agents.training.masters import join
from ...agents.training.outcome_labels import outcome_labels, spread
from ...exits import exit_status
from ...files import check_output, write_text
from ...models.adapters import save_model
from ...models.loading import load
from ...models.outcome import OutcomeModel
from ...models.vocabulary import num_token_ids

UPDATES = 16
MODES: dict[str, tuple[str, Any]] = {
    "float32": ("float32", "exact"),
    "bfloat16, masters": ("bfloat16", "exact"),
    "bfloat16, stochastic": ("bfloat16", "stochastic"),
}
ENV = "tokengym/Arithmetic-v0"


def share_changed(learner: Learner, before: dict[str, torch.Tensor], part: str = "") -> float:
    """The share of trained numbers that are others than before, master weights where there are such."""
    changed = total = 0
    for name, weight in learner.base.named_parameters():
        if weight.requires_grad and name.startswith(part):
            state = learner.optimizer.state[weight]
            now = join(weight, state["low"]) if "low" in state else weight.detach().float()
            changed += int((now != before[name]).sum())
            total += now.numel()
    return changed / total


def values(learner: Learner) -> dict[str, torch.Tensor]:
    """A float32 copy of all weights, by name."""
    return {name: weight.detach().float().clone() for name, weight in learner.base.named_parameters()}


def batches(examples: Sequence[Example]) -> list[list[Example]]:
    """The examples in `UPDATES` parts."""
    return [[examples[i] for i in rows] for rows in np.array_split(np.arange(len(examples)), UPDATES)]


def fine_tuned(model: Any, examples: Sequence[Example], config: OptimizerConfig, size: int) -> dict[str, float]:
    """Loss on the examples before and after `UPDATES` updates on them, and the share of weights that changed."""
    learner = Learner(model, config, UPDATES, Accelerator(cpu=True), size)
    before, first = values(learner), _loss(learner, examples)
    for number, batch in enumerate(batches(examples)):
        count = sum(len(example.completion) for example in batch)
        learner.update(batch, lambda b, logprobs, count=count: nll(b, logprobs, count), number)
    return {"loss_before": first, "loss": _loss(learner, examples), "changed": share_changed(learner, before)}


def _loss(learner: Learner, examples: Sequence[Example]) -> float:
    return -float(np.concatenate(learner.logprobs(examples)).mean())


def built_in() -> dict[str, dict[str, dict[str, float]]]:
    """The built-in model's figures, by what is trained and by mode."""
    sampler: Any = make_agent("grpo", ENV, device="cpu")
    attempts = list(collect(sampler.policy, sampler.env, 256, seed=0))
    demonstrations = list(make_agent("sft", ENV, device="cpu", demonstrations=256).demonstrations(256).values())
    runs: dict[str, Callable[[str, Any], dict[str, dict[str, float]]]] = {
        "sft": lambda dtype, rounding: _sft(demonstrations, dtype, rounding),
        "ppo": lambda dtype, rounding: _ppo(attempts, dtype, rounding),
        "orm": lambda dtype, rounding: _orm(attempts, dtype, rounding),
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    for run in runs.values():
        for mode, (dtype, rounding) in MODES.items():
            for part, figures in run(dtype, rounding).items():
                found.setdefault(part, {})[mode] = figures
    return found


def _sft(examples: Sequence[Example], dtype: str, rounding: Any) -> dict[str, dict[str, float]]:
    model, tokenizer = load("tokengym/tiny", device="cpu", dtype=dtype)
    config = OptimizerConfig(learning_rate=2e-5, rounding=rounding)
    return {"SFT at 2e-5": fine_tuned(model, examples, config, num_token_ids(tokenizer))}


def _ppo(attempts: Sequence[Attempt], dtype: str, rounding: Any) -> dict[str, dict[str, float]]:
    settings: dict[str, Any] = {
        "problems_per_iteration": 64,
        "samples_per_problem": 4,
        "minibatch_size": 64,
        "critic_layers": 1,
    }
    agent: Any = make_agent("ppo", ENV, device="cpu", dtype=dtype, rounding=rounding, learning_rate=1e-6, **settings)
    learner = agent.make_learner(UPDATES)
    before = values(learner)
    metrics = agent.improve(learner, attempts, 0)
    names = {"policy": "policy_loss", "critic": "value_loss"}
    return {
        f"PPO at 1e-6, {part}": {"loss": metrics[name], "changed": share_changed(learner, before, part)}
        for part, name in names.items()
    }


def _orm(attempts: Sequence[Attempt], dtype: str, rounding: Any) -> dict[str, dict[str, float]]:
    model, tokenizer = load("tokengym/tiny", device="cpu", dtype=dtype)
    judge = OutcomeModel.from_causal_lm(model, tokenizer, "orm")
    labelled = outcome_labels(attempts, tokenizer)
    examples = [Example(item.attempt.prompt, item.attempt.completion) for item in labelled]
    targets = [spread(item) for item in labelled]
    learner = OutcomeLearner(
        judge, OptimizerConfig(learning_rate=2e-5, rounding=rounding), UPDATES, Accelerator(cpu=True)
    )
    before = values(learner)
    for number, rows in enumerate(np.array_split(np.arange(len(examples)), UPDATES)):
        learner.update([examples[i] for i in rows], bce([targets[i] for i in rows]), number)
    (logits,) = learner.evaluate(examples)
    pairs = [(x[~np.isnan(y)], y[~np.isnan(y)]) for x, y in zip(logits, targets, strict=True)]
    found, wanted = (torch.from_numpy(np.concatenate(side)) for side in zip(*pairs, strict=True))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(found, wanted).item()
    return {"outcome model at 2e-5": {"loss": loss, "changed": share_changed(learner, before)}}


def real(path: str, data: Path, rows: int) -> dict[str, dict[str, float]]:
    """Fine-tuning of a model on GSM8K's rows, then its loss on other rows, trained and saved and loaded."""
    lines = [json.loads(line) for line in data.read_text().splitlines()[: rows + 16]]
    found: dict[str, dict[str, float]] = {}
    ranks: tuple[int | None, ...] = (None, 8)
    for rank in ranks:
        for mode, (dtype, rounding) in MODES.items():
            if rank is not None and rounding == "stochastic":
                continue  # adapters are float32
            started = time.process_time()
            model, tokenizer = load(path, device="cpu", dtype=dtype, lora_rank=rank)
            encode = lambda text, tokenizer=tokenizer: np.array(tokenizer(text)["input_ids"])  # noqa: E731
            examples = [Example(encode(line["question"] + "\n"), encode(line["answer"])) for line in lines]
            config = OptimizerConfig(
                learning_rate=2e-5 if rank is None else 1e-4, rounding=rounding, micro_batch_tokens=2048
            )
            figures = fine_tuned(model, examples[:rows], config, num_token_ids(tokenizer))
            held_out, size = examples[rows:], num_token_ids(tokenizer)
            figures["held_out"] = _evaluated(model, held_out, config, size)
            with tempfile.TemporaryDirectory() as folder:
                save_model(model, Path(folder))
                tokenizer.save_pretrained(folder)
                place = Path(folder) / "adapter" if rank is not None and dtype != "float32" else folder
                # What was fine-tuned from a GGUF file is that file's model with the adapters in the folder.
                figures["loaded_held_out"] = _evaluated(
                    load(place, device="cpu", dtype=dtype)[0], held_out, config, size
                )
            figures["cpu_seconds"] = time.process_time() - started
            found[("all weights" if rank is None else f"LoRA {rank}") + ", " + mode] = figures
            print(list(found)[-1], json.dumps(figures), flush=True)
    return found


def _evaluated(model: Any, examples: Sequence[Example], config: OptimizerConfig, size: int) -> float:
    return _loss(Learner(cast(Any, model), config, 1, Accelerator(cpu=True), size), examples)


def main() -> None:
    """Prints the figures as JSON, and writes them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model to fine-tune on --data; by default the built-in model is studied")
    parser.add_argument("--data", type=Path, help="GSM8K's train.jsonl")
    parser.add_argument("--rows", type=int, default=32, help="rows to train on")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    check_output(options.output)
    if (options.model is None) != (options.data is None):
        raise ValueError("--model and --data go together: give both, or neither to study the built-in model")
    found = built_in() if options.model is None else real(options.model, options.data, options.rows)
    text = json.dumps({"torch": torch.__version__, "updates": UPDATES, "figures": found}, indent=1)
    print(text)
    if options.output is not None:
        write_text(options.output, text + "\n")


if __name__ == "__main__":
    sys.exit(exit_status(main))
