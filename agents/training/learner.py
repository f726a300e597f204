"""The training loop that all agents share: micro-batches, global denominators, schedule, optimizer state."""

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...files import read_tensors
from ...models.critics import ActorCritic
from ...models.forward import Entropy, action_logprobs, action_states, compute_dtype, default_micro_batch_tokens
from ...models.kept_tokens import KeptTokens
from ...models.layers import decoder_layers, recomputed
from ...models.packing import TokenRows, attention_window, pack, plan_rows, takes_shared_prompts
from ...models.positions import check_length
from ...models.quantized import is_in_4bit
from ..configs.optimizer import OptimizerConfig
from .masters import MasterAdamW
from .ranks import Ranks
from .sharding import full, gathered, is_sharded, local, named_parameters, release, rows, run, sharded_as

# Decayed by cosine to 2e-7, with warm-up (Havrilla et al. 2024).
PAPER_LEARNING_RATE = 2e-5


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A sequence to train on: loss falls on the completion's tokens alone.

    Attributes:
        prompt: `[P]` tokens of the prompt, at least one.
        completion: `[T]` tokens of the completion, the end-of-sequence token included.
        kept: Tokens that each of the completion's was drawn from, if its distribution was truncated; log-probabilities
            and entropies are those of the distribution among them.

    Raises:
        ValueError: A token of the completion is not among those that it was drawn from.
    """

    prompt: NDArray[np.integer]
    completion: NDArray[np.integer]
    kept: KeptTokens | None = None

    def __post_init__(self) -> None:
        if self.kept is not None and not self.kept.contain(self.completion):
            raise ValueError("a token of the completion is not among the tokens that it was drawn from")

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


Config = TypeVar("Config", bound=OptimizerConfig)


def with_rate(config: Config, model: PreTrainedModel, ratio: float) -> Config:
    """A configuration whose learning rate, if it has none, is a share of the model's own rate for fine-tuning.

    Args:
        config: Configuration to complete.
        model: Model to train, whose `recommended_learning_rate` is used; models without one use 2e-5.
        ratio: Share of the model's rate.
    """
    if config.learning_rate is not None:
        return config
    return replace(
        config, learning_rate=ratio * getattr(model.config, "recommended_learning_rate", PAPER_LEARNING_RATE)
    )


def cosine(step: int, total: int, warmup_ratio: float, floor: float) -> float:
    """Share of the peak learning rate in update `step` of `total`, counted from 0.

    It climbs in a line to 1 over the warm-up, whose first update counts already, and falls by half a cosine towards
    `floor`. (Schedules that begin at 0 waste an update, which is the only one when the data fit one batch.)
    """
    warmup = math.ceil(warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


@dataclass(slots=True)
class MicroBatch:
    """Sequences of a batch that go through the model together, and the rows of tokens that it sees of them.

    Losses live in `[B, T]`, a line for each sequence and a column for each token of its completion, an action, however
    the rows are laid out.

    Attributes:
        rows: `[B]` numbers of the sequences in the whole batch.
        actions: `[B, T]` tokens of the completions; meaningful under `action_mask`.
        action_mask: `[B, T]` bool, false at padding.
        inputs: Arguments of the model's forward pass, read at the actions in the order of `action_mask`.
        kept: Tokens that each action was drawn from, in the order of `action_mask`, if distributions were truncated.
    """

    rows: Tensor
    actions: Tensor
    action_mask: Tensor
    inputs: TokenRows
    kept: KeptTokens | None = None

    def scatter(self, values: Tensor) -> Tensor:
        """Values `[A]` of all actions as `[B, T]`; 0 outside `action_mask`."""
        return torch.zeros_like(self.actions, dtype=values.dtype).masked_scatter(self.action_mask, values)

    def spread(self, values: Sequence[NDArray[np.floating]]) -> Tensor:
        """Values of actions, `[T]` of each sequence of the whole batch, as `[B, T]`; 0 outside `action_mask`."""
        ours = np.concatenate([values[row] for row in self.rows.tolist()])
        return self.scatter(torch.from_numpy(ours).to(self.actions.device))


def collate(
    examples: Sequence[Example], rows: Sequence[NDArray[np.int64]], device: torch.device, read_after: bool = False
) -> MicroBatch:
    """The micro-batch of some examples.

    Args:
        examples: Examples of the whole batch.
        rows: Numbers of the examples in each row of tokens; the prompts of one row are equal.
        device: Device of the tensors.
        read_after: Position from which outputs are read, see `packing.pack`.
    """
    numbers = np.concatenate(rows)
    lengths = np.array([len(examples[i].completion) for i in numbers])
    mask = np.arange(lengths.max()) < lengths[:, None]
    actions = np.zeros(mask.shape, np.int64)
    actions[mask] = np.concatenate([examples[i].completion for i in numbers])
    pairs = [[(examples[i].prompt, examples[i].completion) for i in row] for row in rows]
    move = lambda array: torch.from_numpy(array).to(device, non_blocking=True)  # noqa: E731
    kept = [kept for i in numbers if (kept := examples[i].kept) is not None]
    inputs = pack(pairs, device, read_after=read_after)
    return MicroBatch(move(numbers), move(actions), move(mask), inputs, KeptTokens.join(kept) if kept else None)


def batch_logprobs(
    model: torch.nn.Module,
    base: PreTrainedModel,
    batch: MicroBatch,
    vocab_size: int,
    temperature: float = 1.0,
    entropy: Entropy = "none",
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities `[B, T]`, float32, of the batch's actions at a temperature, and entropies `[B, T]` if wanted.

    Both are 0 outside `action_mask`, and of truncated distributions if the batch says what was kept; see
    `forward.action_logprobs`.
    """
    states = action_states(model, base, select=batch.inputs.read, **batch.inputs.arguments(compute_dtype(base)))
    actions = batch.actions[batch.action_mask]
    logprobs, entropies = action_logprobs(base, states, actions, vocab_size, temperature, entropy, batch.kept)
    return batch.scatter(logprobs), None if entropies is None else batch.scatter(entropies)


Loss = Callable[[MicroBatch, Any], Tensor | tuple[Tensor, Mapping[str, Tensor]]]
"""Function from a micro-batch and the output of `Learner.forward` to a scalar, and further scalars by name."""

Forward = Callable[[MicroBatch, float], Tensor | tuple[Tensor, ...]]
"""Function from a micro-batch and a temperature to values `[B, T]` of its actions, or to several such."""


class NonFiniteError(ValueError):
    """A reward, a loss or a gradient is infinite or not a number."""


class Learner:
    """Optimizes a language model: one `update` is one optimizer step on one batch, however large.

    With several processes each has the whole model, or its shards where the model is sharded (`sharding.Sharding`).

    Args:
        model: Model to train in place, alone or with a critic; with LoRA only its adapter has gradients.
        config: Settings of optimizer and batches.
        total_steps: Length of the learning-rate schedule in optimizer steps.
        accelerator: Device and data parallelism; every rank passes the same batches and computes its share.
        vocab_size: Vocabulary size of the tokenizer; logits beyond it are dropped before the softmax.
    """

    read_after = False
    """True if the model is read after each action instead of before it, where the action is chosen."""

    def __init__(
        self,
        model: PreTrainedModel | ActorCritic,
        config: OptimizerConfig,
        total_steps: int,
        accelerator: Accelerator,
        vocab_size: int,
    ) -> None:
        rate = config.learning_rate
        if rate is None:
            rate = getattr(model.config, "recommended_learning_rate", PAPER_LEARNING_RATE)
        self.learning_rate, self.total_steps = rate, total_steps
        self.base, self.config, self.accelerator, self.vocab_size = model, config, accelerator, vocab_size
        self.ranks = Ranks(accelerator)
        self.parameters = [parameter for _, parameter in named_parameters(model) if parameter.requires_grad]
        self.optimizer = MasterAdamW(
            self.parameter_groups(), rate, config.betas, weight_decay=config.weight_decay, rounding=config.rounding,
            in_8bit=config.optimizer == "adamw_8bit",
        )  # fmt: skip
        self._sharded = is_sharded(model)
        # Gradients of another precision than their weights are more than the wrapper for data parallel training takes.
        same = all(p.grad_dtype == p.dtype for p in self.parameters)
        same = same and not is_in_4bit(model)  # which accelerate does not wrap on CPUs
        self._wrapped = self.ranks.count > 1 and not self._sharded and same
        self.model: nn.Module = accelerator.prepare_model(model) if self._wrapped else model
        self.steps = 0
        self.first_step = 0
        """Updates made before the learning-rate schedule began."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters to train, in the optimizer's groups: `params`, and `ratio`, their part of the learning rate."""
        return [{"params": self.parameters, "ratio": 1.0}]

    def forward(self, batch: MicroBatch, temperature: float) -> Any:
        """Outputs that losses are computed from: by default log-probabilities `[B, T]` of the actions.

        It must call `self.model`, which is the model or its wrapper for data parallel training.
        """
        base = cast(PreTrainedModel, self.base)
        return batch_logprobs(self.model, base, batch, self.vocab_size, temperature)[0]

    def update(
        self,
        examples: Sequence[Example],
        loss: Loss,
        seed: int,
        temperature: float = 1.0,
        accept: Callable[[Mapping[str, float]], bool] | None = None,
    ) -> dict[str, float]:
        """One optimizer step.

        Args:
            examples: Examples of the whole batch, the same on every rank.
            loss: Function from a micro-batch and the output of `forward` for it, the log-probabilities `[B, T]` of its
                actions, to a scalar. Losses of micro-batches are added up, so it divides by the whole batch's
                denominator itself (`masked_aggregate`). It may also return further scalars by name, which are added up
                too, except that names ending in "_max" or "_min" keep the extreme.
            seed: Seed of dropout, if the model has any.
            temperature: Temperature of the actions' log-probabilities.
            accept: Function that sees the metrics before the step; if it returns False, the step is not taken.

        Returns:
            `loss`, `grad_norm`, `learning_rate`, `padding`, the share of positions that held no token, and the further
            scalars of `loss`.

        Raises:
            ValueError: A sequence is longer than the model's positions.
            NonFiniteError: The loss or the gradient is infinite or NaN; the weights are left as they were.
        """
        totals, padding = self._backward(examples, loss, seed, temperature)
        norm = full(nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm))
        made, ratio = self.steps - self.first_step, self.config.min_learning_rate_ratio
        rate = self.learning_rate * cosine(made, self.total_steps, self.config.warmup_ratio, ratio)
        metrics = {name: value.item() for name, value in totals.items()}
        metrics |= {"grad_norm": norm.item(), "learning_rate": rate, "padding": padding}
        broken = [f"{name} {metrics[name]}" for name in ("loss", "grad_norm") if not math.isfinite(metrics[name])]
        if not broken and (accept is None or accept(metrics)):
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["ratio"]
            self.optimizer.step()
            self.steps += 1
        self.optimizer.zero_grad(set_to_none=True)
        if broken:
            raise NonFiniteError(
                f"update {self.steps + 1} has {' and '.join(broken)} and was not made: look for a bad reward, or too "
                f"high a learning rate ({rate:g})"
            )
        return metrics

    def _backward(
        self, examples: Sequence[Example], loss: Loss, seed: int, temperature: float
    ) -> tuple[dict[str, Tensor], float]:
        """Adds the gradient of a batch's loss to the parameters, by one micro-batch after the other.

        Returns:
            `loss` and its further scalars over the whole batch, and the share of positions that held no token.
        """
        ranks, rank = self.ranks.count, self.ranks.index
        groups = self._micro_batches(examples)
        # Ranks synchronise in their last backward pass, so all must run the same number: idle ones repeat at weight 0.
        rounds = -(-len(groups) // ranks)
        totals: dict[str, Tensor] = {"loss": torch.zeros((), device=self.base.device)}
        tokens = padding = 0
        with torch.random.fork_rng(devices=[self.base.device] if self.base.device.type == "cuda" else []):
            torch.manual_seed(seed)
            for i in range(rounds):
                turn = i * ranks + rank
                batch = self._collate(examples, groups[turn % len(groups)])
                quiet = self.accelerator.no_sync(self.model) if i < rounds - 1 and self._wrapped else nullcontext()
                bf16 = torch.autocast(self.base.device.type, torch.bfloat16, enabled=self.config.bf16)
                with quiet, self.saving_memory(), bf16:
                    value = loss(batch, run(self.base, functools.partial(self.forward, batch, temperature)))
                    value, further = value if isinstance(value, tuple) else (value, {})
                    value = value * (turn < len(groups))
                    # Data parallelism averages gradients over ranks; ours are shares of one sum.
                    (value * ranks).backward()
                if turn < len(groups):
                    for name, scalar in {"loss": value, **further}.items():
                        totals[name] = (
                            _combined(name)(totals[name], scalar.detach()) if name in totals else scalar.detach()
                        )
                tokens += int(batch.inputs.is_token.sum())
                padding += batch.inputs.segments.numel()
        if ranks > 1:
            self._reduce_gradients()
            totals = _combined_totals(self.ranks.gather({name: value.cpu() for name, value in totals.items()}))
        return totals, 1 - tokens / padding

    def _reduce_gradients(self) -> None:
        """Averages the gradients of all processes, where neither the wrapper nor the shards have done so."""
        if self._wrapped or self._sharded:
            return
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad = cast(Tensor, self.accelerator.reduce(parameter.grad, "mean"))

    def begin_schedule(self, total_steps: int) -> None:
        """Begins a learning-rate schedule of `total_steps` further updates; the optimizer's state stays."""
        self.first_step, self.total_steps = self.steps, total_steps

    def logprobs(
        self, examples: Sequence[Example], temperature: float = 1.0, model: PreTrainedModel | None = None
    ) -> list[NDArray[np.float32]]:
        """Log-probabilities `[T]` of each completion's tokens: `evaluate` for learners of policies alone.

        Args:
            examples: Examples whose completions are scored.
            temperature: Temperature of the log-probabilities.
            model: Model to use instead of the trained one, such as a frozen reference.
        """
        if model is None:
            return self.evaluate(examples, temperature)[0]
        other = lambda batch, temperature: batch_logprobs(model, model, batch, self.vocab_size, temperature)[0]  # noqa: E731
        # The policy without its adapters is a part of what is sharded, and another model is sharded by itself.
        return self.evaluate(examples, temperature, other, model if is_sharded(model) else None)[0]

    @torch.no_grad()
    def evaluate(
        self,
        examples: Sequence[Example],
        temperature: float = 1.0,
        forward: Forward | None = None,
        module: nn.Module | None = None,
    ) -> tuple[list[NDArray[np.float32]], ...]:
        """Outputs of `forward` for each completion's tokens, by the very forward pass of an `update` on `examples`.

        An update on the same examples in the same order cuts them into the same micro-batches, so these equal what its
        loss would be given.

        Args:
            examples: Examples whose completions are evaluated.
            temperature: Temperature of the log-probabilities.
            forward: Function that returns values `[B, T]` of actions, or a tuple of such; by default the learner's own.
            module: Module that `forward` runs; by default the one that is trained.

        Returns:
            For each output of `forward`, its values `[T]` for each example.
        """
        forward, module = self.forward if forward is None else forward, self.base if module is None else module
        values: dict[int, tuple[NDArray[np.float32], ...]] = {}
        groups = self._micro_batches(examples)
        wrapped, self.model = self.model, self.base  # ranks take part unequally often, and the wrapper would wait
        # Shards are gathered in every pass, so all ranks must run the same number, as in an update.
        turns = -(-len(groups) // self.ranks.count) * self.ranks.count if self._sharded else len(groups)
        try:
            for turn in range(self.ranks.index, turns, self.ranks.count):
                batch = self._collate(examples, groups[turn % len(groups)])
                with torch.autocast(self.base.device.type, torch.bfloat16, enabled=self.config.bf16):
                    found = run(module, functools.partial(forward, batch, temperature))
                if turn >= len(groups):
                    continue
                found = found if isinstance(found, tuple) else (found,)
                rows = batch.rows.tolist()
                ends = np.cumsum([len(examples[row].completion) for row in rows])[:-1]
                parts = [np.split(output[batch.action_mask].float().cpu().numpy(), ends) for output in found]
                values |= zip(rows, zip(*parts, strict=True), strict=True)
        finally:
            self.model = wrapped
        values = {row: arrays for part in self.ranks.gather(values) for row, arrays in part.items()}
        return tuple(list(arrays) for arrays in zip(*(values[row] for row in range(len(examples))), strict=True))

    def saving_memory(self) -> AbstractContextManager[None]:
        """Within the block, layers are computed again in the backward pass if the configuration says so."""
        if not self.config.gradient_checkpointing:
            return nullcontext()
        model = self.base.policy if isinstance(self.base, ActorCritic) else self.base
        return recomputed(decoder_layers(model)[1])

    def _collate(self, examples: Sequence[Example], rows: Sequence[NDArray[np.int64]]) -> MicroBatch:
        return collate(examples, rows, self.base.device, self.read_after)

    def _micro_batches(self, examples: Sequence[Example]) -> list[list[NDArray[np.int64]]]:
        """Rows of each micro-batch, by the numbers of the examples in each row."""
        longest = max(map(len, examples))
        config = self.base.config.get_text_config()
        check_length(config, longest)
        return plan_rows(
            [example.prompt for example in examples],
            [len(example.completion) for example in examples],
            self.config.micro_batch_tokens or default_micro_batch_tokens(self.base.device),
            config.hidden_size,
            share=longest <= self._shared_length,
        )

    @functools.cached_property
    def _shared_length(self) -> float:
        """The longest sequence, in tokens, that may share its prompt with others."""
        model = self.base.policy if isinstance(self.base, ActorCritic) else self.base
        with torch.no_grad():
            return attention_window(model) if run(model, lambda: takes_shared_prompts(model)) else 0

    def save(self, folder: Path | None) -> None:
        """Writes trainable weights and optimizer state, of the parameters that have one so far, as safetensors.

        Of a sharded model they are gathered, which all processes take part in. Any number of processes can load the
        file.

        Args:
            folder: Folder to write to; `None` on processes that only take part.
        """
        names = {id(parameter): name for name, parameter in named_parameters(self.base)}
        tensors: dict[str, Tensor] = {}
        for parameter in self.parameters:
            state = self.optimizer.state.get(parameter, {})  # nothing before the first update, or without a gradient
            for kind, value in {"weight": parameter, **state}.items():
                tensors[f"{kind}/{names[id(parameter)]}"] = value.detach() if value.dim() else value.reshape(1)
        tensors = gathered(tensors, wanted=folder is not None)
        if folder is not None:
            save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, folder / _LEARNER)

    def load(self, folder: Path, steps: int) -> None:
        """Restores what `save` wrote after `steps` updates.

        Raises:
            ValueError: The trained parameters differ from the saved ones in name or shape.
        """
        saved: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in read_tensors(folder / _LEARNER).items():
            kind, name = key.split("/", 1)
            saved[name][kind] = value
        names = {id(parameter): name for name, parameter in named_parameters(self.base)}
        trained = {names[id(parameter)]: parameter for parameter in self.parameters}
        shapes = {name: tuple(state["weight"].shape) for name, state in saved.items()}
        others = shapes.items() ^ {name: tuple(parameter.shape) for name, parameter in trained.items()}.items()
        if others:
            name = min(name for name, _ in others)
            raise ValueError(
                f"{folder / _LEARNER} was saved by a learner of other parameters: {name} has shape "
                f"{shapes.get(name, 'none')} there and {tuple(trained[name].shape) if name in trained else 'none'} here"
            )
        release(self.base)
        for name, parameter in trained.items():
            with torch.no_grad():
                local(parameter).copy_(saved[name].pop("weight")[rows(parameter)])
            self.optimizer.state.pop(parameter, None)
            if saved[name]:
                self.optimizer.state[parameter] = {
                    kind: sharded_as(value.reshape(()) if kind == "step" else value, parameter)
                    for kind, value in saved[name].items()
                }
        self.steps = steps


_LEARNER = "learner.safetensors"


def _combined(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Combines the shares of a scalar."""
    return torch.maximum if name.endswith("_max") else torch.minimum if name.endswith("_min") else torch.add


def _combined_totals(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Scalars of all ranks; a rank that had nothing to do may lack some."""
    combined: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            combined[name] = _combined(name)(combined[name], value) if name in combined else value
    return combined
