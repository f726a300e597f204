"""Supervised fine-tuning on token sequences: the training phase of SFT and of every round of expert iteration."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ..configs.optimizer import FineTuneConfig
from .checkpoints import load_checkpoint, save_checkpoint
from .learner import Example, Learner, MicroBatch
from .losses import masked_aggregate
from .sharding import local, named_parameters, release, rows

if TYPE_CHECKING:
    from tqdm import tqdm


class NothingToLearnError(ValueError):
    """There are no demonstrations, and no attempt was good enough to learn from."""


def fine_tune(
    model: PreTrainedModel,
    examples: Sequence[Example],
    config: FineTuneConfig,
    *,
    accelerator: Accelerator,
    seed: int,
    vocab_size: int,
    input_only: int | None = None,
    checkpoints: Path | None = None,
    on_step: Callable[[int, int, dict[str, float]], None] | None = None,
) -> int:
    """Minimises -log pi(completion | prompt), averaged over the completion tokens of each batch (Havrilla et al. 2024).

    Every batch is a pure function of `seed` and its number, so a run that continues from a checkpoint ends with the
    very weights of one that was never stopped.

    Args:
        model: Model to train in place, with dropout if it has any; it is left in evaluation mode.
        examples: Training examples, at least one.
        config: Settings of epochs, batches and optimizer.
        accelerator: Device and data parallelism.
        seed: Seed of the order of examples and of dropout.
        vocab_size: Vocabulary size of the tokenizer.
        input_only: Id from which on tokens are only read: no loss falls on them.
        checkpoints: Folder for a checkpoint every `config.save_steps` optimizer steps and at the end. Training
            continues from the checkpoint there, and a finished training is not repeated.
        on_step: Function that is called with the number of optimizer steps done, the number in total, and the metrics
            of `Learner.update`; for a training that was finished before with those of its last step.

    Returns:
        The optimizer steps of the whole training.

    Raises:
        NothingToLearnError: There are no examples.
    """
    if not examples:
        raise NothingToLearnError("there is nothing to fine-tune on: no demonstrations and no attempt that was kept")
    learner = Learner(model, config, updates(len(examples), config), accelerator, vocab_size)

    def update(rows: NDArray[np.int64], seed: int) -> dict[str, float]:
        batch = [examples[row] for row in rows]
        learnt = sum(_learnt(example, input_only) for example in batch)
        return learner.update(batch, functools.partial(nll, denominator=learnt, input_only=input_only), seed)

    model.train()
    run_epochs(learner, len(examples), config, update, seed=seed, checkpoints=checkpoints, on_step=on_step)
    model.eval()
    return learner.total_steps


def updates(count: int, config: FineTuneConfig) -> int:
    """Optimizer steps of a whole training on `count` examples."""
    return -(-count // config.batch_size) * config.epochs


def report_to(bar: "tqdm[Any]", metrics: dict[str, float]) -> Callable[[int, int, dict[str, float]], None]:
    """What `fine_tune` is to call after each step: it moves a bar, and keeps the newest metrics under `train/`."""

    def on_step(step: int, total: int, newest: dict[str, float]) -> None:
        bar.total = total
        bar.update()
        metrics.update({f"train/{name}": value for name, value in newest.items()})

    return on_step


def run_epochs(
    learner: Learner,
    count: int,
    config: FineTuneConfig,
    update: Callable[[NDArray[np.int64], int], dict[str, float]],
    *,
    seed: int,
    checkpoints: Path | None = None,
    on_step: Callable[[int, int, dict[str, float]], None] | None = None,
) -> None:
    """Trains for the configured number of epochs, each in an order of its own, from the newest checkpoint on.

    Args:
        learner: Learner made for `updates(count, config)` steps.
        count: Number of examples.
        config: Settings of epochs and batches.
        update: Function that makes one optimizer step on the examples with the given numbers, with a seed, and returns
            its metrics.
        seed: Seed of the order of examples and of dropout.
        checkpoints: Folder for checkpoints, as in `fine_tune`.
        on_step: Function that is called after each step, as in `fine_tune`.
    """
    per_epoch = -(-count // config.batch_size)
    state = load_checkpoint(learner, checkpoints)
    if learner.steps == learner.total_steps and on_step is not None:
        on_step(learner.steps, learner.total_steps, state["metrics"])
    for step in range(learner.steps, learner.total_steps):
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        metrics = update(order[position * config.batch_size : (position + 1) * config.batch_size], seed + step)
        if on_step is not None:
            on_step(step + 1, learner.total_steps, metrics)
        due = step + 1 == learner.total_steps or (step + 1) % config.save_steps == 0
        if checkpoints is not None and due:
            save_checkpoint(learner, checkpoints, {"metrics": metrics})


def nll(batch: MicroBatch, logprobs: Tensor, denominator: int, input_only: int | None = None) -> Tensor:
    """-log pi(completion | prompt) over `denominator`, usually the number of completion tokens in the whole batch.

    Tokens from the id `input_only` on do not count.
    """
    mask = batch.action_mask if input_only is None else batch.action_mask & (batch.actions < input_only)
    return masked_aggregate(-logprobs, mask, denominator)


def _learnt(example: Example, input_only: int | None) -> int:
    """Number of an example's completion tokens that loss falls on."""
    return len(example.completion) if input_only is None else int((example.completion < input_only).sum())


def snapshot(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of the trainable weights, to start again from; of a sharded model, its shards."""
    return {name: p.detach().clone() for name, p in named_parameters(model) if p.requires_grad}


def restore(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Puts back what `snapshot` copied, or whole weights."""
    release(model)
    with torch.no_grad():
        for name, parameter in named_parameters(model):
            if name in weights:
                whole = weights[name]
                local(parameter).copy_(local(whole) if isinstance(whole, DTensor) else whole[rows(parameter)])
