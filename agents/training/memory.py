"""Memory of training and sampling, counted before any weight is loaded.

What is kept all along (weights, optimizer state, copies) follows from the parameters' number and type. What a pass
through the model needs is counted by a dry run of the very code that does it: `Learner.forward` with the backward pass
on one micro-batch, `SlotDecoder` with all slots at their longest.
"""

import logging
import math
import resource
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...models.critics import ActorCritic
from ...models.dry_run import ByteCounter, dry_run, without_weights
from ...models.engine.decoder import SlotDecoder
from ...models.engine.half_copy import half_copy
from ...models.engine.sampling import SamplingConfig, sample
from ...models.forward import compute_dtype, default_micro_batch_tokens, output_head, selected_logits
from ...models.linear import packed_weights
from ...models.packing import plan_rows
from ...models.quantized import CountedLinear
from ...models.token_scorer import TokenScorer
from ...models.vocabulary import num_embeddings
from ..configs.optimizer import OptimizerConfig
from .learner import Example, Learner, MicroBatch, collate
from .masters import LEAST_IN_8BIT
from .sharding import gathered_units

GIB = 2**30

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """Modules that an agent holds in memory and runs.

    Attributes:
        policy: Model that samples.
        trained: Module that the learner updates: the policy, the policy with a critic, or another model.
        make_learner: Makes the learner, of the accelerator and the vocabulary's size.
        frozen: Models that are held beside, by what they are for.
        copies: Copies of the policy's trainable weights that are held beside, such as the best policy so far.
        samples_per_prompt: Attempts at each problem of an update, whose prompt they share in micro-batches.
        keeps_optimizer: True if the optimizer's state stays while attempts are sampled.
        always_decodes: True if the built-in decoder samples even if vLLM is used.
    """

    policy: PreTrainedModel
    trained: PreTrainedModel | ActorCritic
    make_learner: Callable[[Any, int], Learner]
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)
    copies: int = 0
    samples_per_prompt: int = 1
    keeps_optimizer: bool = False
    always_decodes: bool = False


class Limits(NamedTuple):
    """Sizes that memory depends on beside the model.

    Attributes:
        num_envs: Environment slots.
        max_prompt_tokens: Longest prompt.
        max_new_tokens: Longest completion.
        processes: Processes that train together.
        vllm: Bytes that vLLM takes here, none where servers sample; `None` samples with the built-in decoder.
        sharded: True if each process has a part of every weight (FSDP) instead of a whole model.
    """

    num_envs: int
    max_prompt_tokens: int
    max_new_tokens: int
    processes: int = 1
    vllm: int | None = None
    sharded: bool = False

    @property
    def parts(self) -> int:
        """Parts that weights, gradients and optimizer state are cut into."""
        return self.processes if self.sharded else 1

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.max_prompt_tokens + self.max_new_tokens


class Item(NamedTuple):
    """A part of the memory: what it is, its bytes, and how they come about."""

    name: str
    size: int
    formula: str


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one process, by what they are for.

    Attributes:
        kept: Parts that are there all along.
        phases: Further parts of each phase, of which there is one at a time: "sampling", "learning", "stepping".
    """

    kept: tuple[Item, ...]
    phases: Mapping[str, tuple[Item, ...]]

    def total(self, phase: str) -> int:
        """Bytes in a phase, with what is kept."""
        return sum(item.size for item in (*self.kept, *self.phases[phase]))

    @property
    def peak(self) -> int:
        """Largest number of bytes at a time."""
        return max(map(self.total, self.phases))

    def largest(self) -> str:
        """The largest parts of the fullest phase, in words."""
        phase = max(self.phases, key=self.total)
        parts = sorted((*self.kept, *self.phases[phase]), key=lambda item: -item.size)
        return ", ".join(f"{item.name} {_gib(item.size)}" for item in parts[:5])

    def __str__(self) -> str:
        lines = _lines("kept all along", self.kept)
        for phase, items in self.phases.items():
            lines += _lines(f"further while {phase}", items)
        for phase in self.phases:
            lines.append(f"{f'total while {phase}':32}{_gib(self.total(phase)):>10}")
        return "\n".join(lines)


def plan_memory(work: Work, config: OptimizerConfig, limits: Limits, counter: ByteCounter) -> MemoryPlan:
    """The memory of an agent on a model without weights; only inside of `models.dry_run`.

    Args:
        work: Modules that the agent holds and runs.
        config: Settings of the agent's optimizer and batches.
        limits: Slots, tokens and processes.
        counter: Byte counter of the dry run.
    """
    trainable, parts = [parameter for parameter in work.trained.parameters() if parameter.requires_grad], limits.parts
    kept = list(_weights(work, parts))
    optimizer = _optimizer(trainable, config, parts)
    if work.copies:
        copied = [parameter for parameter in work.policy.parameters() if parameter.requires_grad]
        kept.append(_item("copies of trained weights", [copied] * work.copies, parts))
    gradients = _gradients(trainable, config, parts)
    state = [gradients] if work.keeps_optimizer else [optimizer, gradients]
    if work.keeps_optimizer:
        kept.append(optimizer)
    if not limits.sharded and limits.processes > 1 and all(_grad_dtype(p, config) == p.dtype for p in trainable):
        state.append(Item("buckets of data parallelism", gradients.size, "as the gradients"))
    phases: dict[str, tuple[Item, ...]] = {}
    if limits.vllm:
        kept.append(Item("vLLM", limits.vllm, "its share of the device"))
    if limits.vllm is None or work.always_decodes:
        half = half_copy(work.policy) if config.bf16 else None
        if half is not None:
            kept.append(_item("copy for sampling", [half.tensors()]))
        decoded = work.policy if half is None else half.newest()
        phases["sampling"] = tuple(_sampling(decoded, config, limits, counter))
    if limits.sharded:
        whole = _item("gathered policy", [work.policy.parameters()])
        phases["sampling"] = (whole, *phases.get("sampling", ()))
    gathered = [_gathered_layers(work)] if limits.sharded else []
    if in_4bit := _in_4bit(work.policy):
        largest = max(in_4bit, key=lambda part: part.in_use)
        gathered.append(Item("expanded weight", largest.in_use, f"{_count(largest.weight.numel())}, one at a time"))
        phases = {phase: (*items, gathered[-1]) for phase, items in phases.items()}
    phases["learning"] = (*state, *gathered, *_learning(work, config, limits, counter))
    if step := max((_numel(p, parts) for p in trainable if p.dtype != torch.float32), default=0):
        largest = Item("step of the largest weight", 16 * step, f"{_count(step)} x 16 bytes")
        phases["stepping"] = (*state, largest)
    return MemoryPlan(tuple(kept), phases)


def _weights(work: Work, parts: int) -> Iterable[Item]:
    named = list(work.policy.named_parameters())
    in_4bit = {id(part.weight): part for part in _in_4bit(work.policy)}
    floats = [p for name, p in named if ".lora_" not in name and id(p) not in in_4bit]
    yield _item("weights", [floats, work.policy.buffers()], parts)
    if in_4bit:
        numbers = sum(part.weight.numel() for part in in_4bit.values())
        stored = sum(part.stored for part in in_4bit.values())
        yield Item("weights in 4 bits", stored, f"{_count(numbers)} x 4.13 bits")
    if adapters := [p for name, p in named if ".lora_" in name]:
        yield _item("adapters", [adapters], parts)
    own = {id(parameter) for _, parameter in named}
    if others := [p for p in work.trained.parameters() if id(p) not in own]:
        yield _item("critic" if hasattr(work.trained, "critic") else "trained model", [others], parts)
    for name, module in work.frozen.items():
        yield _item(name, [module.parameters(), module.buffers()], parts)


def _in_4bit(policy: PreTrainedModel) -> list[CountedLinear]:
    return [part for part in policy.modules() if isinstance(part, CountedLinear)]


def _gathered_layers(work: Work) -> Item:
    """Weights that a pass gathers: those outside of layers all the time, layers by two, one of them ahead.

    The backward pass has gradients of as many weights as are gathered, and a float32 buffer to add them up in.
    """
    around, layer = [0, 0], [0, 0]
    for module in list(work.trained.children()) if isinstance(work.trained, ActorCritic) else [work.trained]:
        units = [_gathering(list(unit.parameters())) for unit in gathered_units(module)]
        inside = {id(parameter) for unit in gathered_units(module) for parameter in unit.parameters()}
        own = _gathering([parameter for parameter in module.parameters() if id(parameter) not in inside])
        around = [around[0] + own[0], max(around[1], own[1])]
        layer = max([layer, *units])
    size = around[0] + max(around[1], layer[0] + layer[1])
    return Item("gathered layers", size, "weights outside of layers, two layers, their gradients")


def _gathering(parameters: list[nn.Parameter]) -> list[int]:
    """Bytes of weights with their gradients, and of what is gathered ahead or added up."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    weights = sum(parameter.nbytes for parameter in parameters)
    return [weights + sum(p.nbytes for p in trained), max(weights, sum(4 * p.numel() for p in trained))]


def _numel(tensor: Tensor, parts: int) -> int:
    """Numbers of a tensor in the largest of some parts; only weights are cut, by rows."""
    if parts == 1 or not isinstance(tensor, nn.Parameter):
        return tensor.numel()
    return -(-len(tensor) // parts) * math.prod(tensor.shape[1:])


def _optimizer(trainable: list[nn.Parameter], config: OptimizerConfig, parts: int) -> Item:
    """Two moments, in float32 or 8 bits; exact steps of weights in bfloat16 keep lower halves of their masters, too."""
    sizes = [_numel(parameter, parts) for parameter in trainable]
    small = sum(size for size in sizes if config.optimizer == "adamw_8bit" and size >= LEAST_IN_8BIT)
    count = sum(sizes) - small
    halves = sum(_numel(p, parts) for p in trainable if p.dtype != torch.float32) if config.rounding == "exact" else 0
    masters = f" + {_count(halves)} x 2 bytes of masters" if halves else ""
    in_8bit = f"{_count(small)} x 2.03 bytes + " if small else ""
    size = 8 * count + 2 * small + 8 * (small // 256) + 2 * halves
    return Item("optimizer", size, f"{in_8bit}{_count(count)} x 8 bytes{masters}")


def _gradients(trainable: list[nn.Parameter], config: OptimizerConfig, parts: int) -> Item:
    size = sum(_numel(p, parts) * _grad_dtype(p, config).itemsize for p in trainable)
    return Item("gradients", size, f"{_count(sum(_numel(p, parts) for p in trainable))} trained")


def _grad_dtype(parameter: nn.Parameter, config: OptimizerConfig) -> torch.dtype:
    return torch.float32 if config.rounding == "exact" else parameter.dtype


# ------------------------------------------------------------------------------------------------------------- learning


def _learning(work: Work, config: OptimizerConfig, limits: Limits, counter: ByteCounter) -> list[Item]:
    """Activations of the largest micro-batch, and what its logits and backward pass need beside."""
    learner = work.make_learner(_SingleProcess(), _vocabulary(work.policy))
    for parameter in learner.parameters:
        parameter.grad = torch.empty_like(parameter, dtype=_grad_dtype(parameter, config))
    tokens = config.micro_batch_tokens or default_micro_batch_tokens(work.policy.device)
    batch = _largest_batch(learner, work, tokens, limits)
    training = work.trained.training
    work.trained.train()  # dropout keeps masks
    held, at_head = counter.restart(), list[int]()
    try:
        with ExitStack() as stack:
            stack.enter_context(learner.saving_memory())
            stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=config.bf16))
            hook = _head(work.trained).register_forward_pre_hook(lambda *_: at_head.append(counter.live))
            stack.callback(hook.remove)
            outputs = learner.forward(batch, 1.0)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            value = sum((output.float().sum() for output in outputs), torch.zeros(()))
            value.backward()
    finally:
        work.trained.train(training)
        for parameter in learner.parameters:
            parameter.grad = None
    activations = at_head[:2][-1] - held  # the head ends the model's own pass, and then runs on the actions
    rows, width = batch.inputs.segments.shape
    recomputed = ", layers computed again" if config.gradient_checkpointing else ""
    return [
        Item("activations", activations, f"{rows} rows x {width} tokens{recomputed}"),
        Item("logits and backward pass", counter.peak - held - activations, f"{batch.action_mask.numel()} actions"),
    ]


def _largest_batch(learner: Learner, work: Work, tokens: int, limits: Limits) -> MicroBatch:
    """The micro-batch of the most tokens, of sequences of the greatest length."""
    config, group = work.policy.config.get_text_config(), work.samples_per_prompt
    prompts = max(1, math.ceil(tokens / (limits.max_prompt_tokens + group * limits.max_new_tokens)) + 1)
    examples = [
        Example(np.full(limits.max_prompt_tokens, prompt), np.zeros(limits.max_new_tokens, np.int64))
        for prompt in range(prompts)
        for _ in range(group)
    ]
    batches = plan_rows(
        [example.prompt for example in examples], [limits.max_new_tokens] * len(examples), tokens, config.hidden_size
    )
    numbers = {i: n for n, i in enumerate(np.concatenate(batches[0]).tolist())}
    rows = [np.array([numbers[i] for i in row.tolist()]) for row in batches[0]]
    return collate([examples[i] for i in numbers], rows, torch.device("cpu"), learner.read_after)


def _head(trained: PreTrainedModel | ActorCritic) -> nn.Module:
    """The output layer of what is trained."""
    if isinstance(trained, ActorCritic):
        return output_head(trained.policy)
    return trained.score if isinstance(trained, TokenScorer) else output_head(trained)


class NotEnoughMemoryError(ValueError):
    """A device has too little free memory for what an agent is about to do."""


def check_memory(
    make_work: Callable[[PreTrainedModel], Work],
    model: PreTrainedModel,
    config: OptimizerConfig,
    limits: Limits,
    device: torch.device,
    free: int | None,
) -> int:
    """Makes sure that learning from one sequence fits, and warns where whole micro-batches or all slots may not.

    Nothing is counted where a generous bound is far below what is free, which is usual for small models.

    Args:
        make_work: Function from a model without weights to the modules that the agent holds and runs.
        model: Policy, loaded already.
        config: Settings of the agent's optimizer and batches.
        limits: Slots, tokens and processes.
        device: Device to train on; a model that is sharded is loaded elsewhere.
        free: Bytes that are free there; `None` if that is not known.

    Returns:
        Tokens of a micro-batch: those of `config`, or if it leaves the choice open, what suits the device and fits.

    Raises:
        NotEnoughMemoryError: The training does not fit; the message has the numbers and what to lower.
    """
    parameters, text = sum(p.numel() for p in model.parameters()), model.config.get_text_config()
    per_token = 100 * text.num_hidden_layers * text.hidden_size + 8 * text.vocab_size
    bound = 64 * parameters + 4 * limits.longest * per_token
    tokens = config.micro_batch_tokens or default_micro_batch_tokens(device)
    if free is None or 2 * bound < free:
        return tokens
    loaded = 0 if limits.sharded else sum(p.numel() * p.element_size() for p in model.parameters())
    here = loaded + (limits.vllm or 0)
    with dry_run() as counter:
        work = make_work(without_weights(model))
        least = plan_memory(work, replace(config, micro_batch_tokens=1), limits._replace(num_envs=1), counter)
        if least.peak - here > free:
            raise NotEnoughMemoryError(
                f"learning from one sequence of {limits.longest} tokens takes {_gib(least.peak - here)} beside the "
                f"weights that are loaded, and {_gib(free)} are free on {device} ({least.largest()}): "
                f"{_remedies(work, config)}; `tokengym plan` shows what fits"
            )
        if parameters >= _LARGE:
            sized = lambda tokens: plan_memory(work, replace(config, micro_batch_tokens=tokens), limits, counter)  # noqa: E731
            whole = sized(tokens)
            smallest = limits.longest if config.micro_batch_tokens is None else tokens
            # Smaller micro-batches make no room for slots, so sampling does not count.
            while tokens > smallest and whole.total("learning") - here > free:
                tokens //= 2
                whole = sized(tokens)
            if whole.peak - here > free:
                _logger.warning(
                    "the longest attempts would take %s beside the weights that are loaded, and %s are free on %s "
                    "(%s): lower micro_batch_tokens or num_envs; `tokengym plan` shows what fits",
                    _gib(whole.peak - here), _gib(free), device, whole.largest(),
                )  # fmt: skip
    return tokens


# Parameters from which on it is worth a few seconds to count whole micro-batches before a run.
_LARGE = 100_000_000


def _remedies(work: Work, config: OptimizerConfig) -> str:
    """Settings that take less memory, the most effective first."""
    trained = [p for p in work.trained.parameters() if p.requires_grad]
    adapted = any(".lora_" in name for name, _ in work.policy.named_parameters())
    wide = any(p.dtype == torch.float32 and ".lora_" not in name for name, p in work.policy.named_parameters())
    remedies = [
        (not adapted and bool(trained), "train adapters (lora_rank=16)"),
        (wide, 'dtype="bfloat16"'),
        (not config.gradient_checkpointing, "gradient_checkpointing=True"),
        ("reference" in work.frozen, "kl_coef=0, which does without a reference"),
        (True, "lower max_prompt_tokens and max_new_tokens, or take a smaller model"),
    ]
    return ", or ".join(text for wanted, text in remedies if wanted)


def free_memory(device: torch.device, processes: int = 1) -> int | None:
    """Bytes that are free on a device for each of some processes; `None` where that is not known."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu" or not _MEMORY.exists():
        return None
    available = next(line for line in _MEMORY.read_text().splitlines() if line.startswith("MemAvailable:"))
    return int(available.split()[1]) * 1024 // processes


def check_held(count: int, what: str, settings: str) -> None:
    """Makes sure, before any work, that what is held together can be in this machine's memory at all.

    Args:
        count: Number of attempts or examples that are held.
        what: Word for them, in the plural.
        settings: Settings that lower their number, in backticks.

    Raises:
        NotEnoughMemoryError: They take more than there is, however short they are.
    """
    size, there_is = count * _LEAST_BYTES, _main_memory()
    if there_is is not None and size > there_is:
        raise NotEnoughMemoryError(
            f"{count:,} {what} at a time take more than {_gib(size)}, and there are {_gib(there_is)} in all: "
            f"lower {settings}"
        )


# Bytes of an attempt or an example at the least: an empty array of NumPy's alone has 112.
_LEAST_BYTES = 100


def _main_memory() -> int | None:
    """Bytes that this process may have at most: the machine's memory with its swap, or what `ulimit -v` allows."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    known = [] if limit == resource.RLIM_INFINITY else [limit]
    if _MEMORY.exists():
        values = dict(line.split(":") for line in _MEMORY.read_text().splitlines())
        known.append(sum(int(values[name].split()[0]) for name in ("MemTotal", "SwapTotal")) * 1024)
    return min(known, default=None)


_MEMORY = Path("/proc/meminfo")


class _SingleProcess:
    """Stands in for a learner's accelerator, for one process."""

    num_processes, process_index = 1, 0


class ScoreLearner(Learner):
    """Reads a model's one logit after each action, as outcome models are trained."""

    read_after = True

    def forward(self, batch: MicroBatch, temperature: float) -> Tensor:
        scorer = cast(Any, self.base)
        inputs = batch.inputs.arguments(compute_dtype(self.base))
        return batch.scatter(selected_logits(scorer, scorer.score, select=batch.inputs.read, **inputs)[:, 0].float())


# ------------------------------------------------------------------------------------------------------------- sampling


def _sampling(policy: PreTrainedModel, config: OptimizerConfig, limits: Limits, counter: ByteCounter) -> list[Item]:
    """The key-value cache of all slots at their longest, and what prompts and logits need beside."""
    slots, prompt = limits.num_envs, limits.max_prompt_tokens
    ids = num_embeddings(policy)
    # As in validation, one attempt at each problem: no two prompts are the same.
    prompts = [np.array([slot % ids, *[slot // ids % ids] * (prompt - 1)]) for slot in range(slots)]
    held = counter.restart()
    decoder = SlotDecoder(policy, slots, _vocabulary(policy))
    decoder.cache.reserves = False
    decoder.begin(np.arange(slots), prompts, np.zeros(slots, np.int64))
    last = np.full((slots, 1), limits.longest - 1)
    with torch.inference_mode():
        logits = decoder.forward(slice(slots), np.arange(slots), np.zeros((slots, 1), np.int64), last).logits
        zeros = torch.zeros(slots, dtype=torch.long)
        truncation = {name: getattr(config, name, None) for name in ("top_k", "top_p", "min_p")}
        sample(logits[:, -1], zeros, zeros, SamplingConfig(0.7, **truncation))
    del logits
    layers, capacity = cast(Any, decoder.cache.layers), decoder.cache.capacity
    cache = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    per_token = cache // (slots * capacity)
    packed = _item("weights packed for sampling", [packed_weights(policy, slots)])
    return [
        *([packed] if packed.size else []),
        Item("key-value cache", cache, f"{slots} slots x {capacity} tokens x {per_token:,} bytes"),
        Item("prompts, growth, logits", counter.peak - held - cache, f"{slots} prompts x {prompt} tokens at once"),
    ]


def _vocabulary(model: PreTrainedModel) -> int:
    return model.config.get_text_config().vocab_size


# -------------------------------------------------------------------------------------------------------------- writing


def _item(name: str, groups: Iterable[Iterable[Tensor]], parts: int = 1) -> Item:
    """Tensors as a part of the memory, or the largest of some parts of them: their number and bytes by data type."""
    counts: dict[torch.dtype, int] = {}
    for tensor in (tensor for group in groups for tensor in group):
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + _numel(tensor, parts)
    formula = " + ".join(f"{_count(n)} x {dtype.itemsize} bytes" for dtype, n in counts.items() if n > 1e3)
    return Item(name, sum(n * dtype.itemsize for dtype, n in counts.items()), formula)


def _lines(title: str, items: Iterable[Item]) -> list[str]:
    return [title, *(f"  {item.name:30}{_gib(item.size):>10}  {item.formula}" for item in items)]


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:.1f} MiB"


def _count(number: int) -> str:
    for power, letter in ((9, "B"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {letter}"
    return str(number)
