"""A memory plan of an agent, from a model's configuration alone, and settings with which it fits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch

from ..models.dry_run import dry_run, model_on_meta, without_weights
from ..models.forward import default_micro_batch_tokens
from ..models.positions import check_length
from .configs.optimizer import OptimizerConfig
from .training.memory import GIB, Limits, MemoryPlan, plan_memory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from .base import Agent

# Share of a device's memory that a plan may fill: the rest is for its context and for gaps between tensors.
USABLE = 0.95
# The command that shares a model among processes.
LAUNCH = "accelerate launch --use_fsdp --fsdp_version 2"
# Adapters that are proposed where weights cannot be trained.
_LORA_RANK = 16


@dataclass(frozen=True)
class Planned:
    """Training that a plan is made for.

    Attributes:
        agent: Class of the agent.
        config: Configuration of the agent.
        model: Configuration of the model.
        limits: Slots, tokens and processes; its `vllm` counts if `vllm_memory` is 0.
        memory: Bytes of each device.
        dtype: Data type of the weights.
        attn: Attention implementation; `None` is transformers' own choice.
        lora_rank: Rank of adapters; `None` trains the weights.
        lora_targets: Names of the layers that get adapters.
        load_in_4bit: True if the weights under adapters are in 4 bits.
    """

    agent: "type[Agent]"
    config: OptimizerConfig
    model: "PreTrainedConfig"
    limits: Limits
    memory: int
    dtype: str = "float32"
    attn: str | None = None
    lora_rank: int | None = None
    lora_targets: str | Sequence[str] = "all-linear"
    load_in_4bit: bool = False

    def __post_init__(self) -> None:
        if self.config.micro_batch_tokens is None:
            tokens = default_micro_batch_tokens(torch.device("meta"))
            object.__setattr__(self, "config", replace(self.config, micro_batch_tokens=tokens))

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens in one forward pass of an update."""
        return cast(int, self.config.micro_batch_tokens)

    @cached_property
    def plan(self) -> MemoryPlan:
        """The memory of one process, counted when it is first asked for.

        Raises:
            ValueError: The longest attempt has more tokens than the model has positions.
        """
        check_length(self.model, self.limits.longest, "an attempt", ". Lower max_prompt_tokens or max_new_tokens")
        model = model_on_meta(
            self.model,
            dtype=self.dtype,
            attn=self.attn,
            lora_rank=self.lora_rank,
            lora_targets=self.lora_targets,
            load_in_4bit=self.load_in_4bit,
        )
        with dry_run() as counter:
            work = self.agent.work(self.config, without_weights(model))
            return plan_memory(work, self.config, self.limits, counter)

    @property
    def usable(self) -> int:
        """Bytes that the plan may fill."""
        return int(USABLE * self.memory)

    def sized(self, micro_batch_tokens: int, num_envs: int) -> "Planned":
        """The same with other micro-batches and another number of slots."""
        config = replace(self.config, micro_batch_tokens=micro_batch_tokens)
        return replace(self, config=config, limits=self.limits._replace(num_envs=num_envs))

    def flags(self, before: "Planned") -> str:
        """The settings that differ from another plan's, as flags of the command line."""
        new = {
            "--micro-batch-tokens": (self.micro_batch_tokens, before.micro_batch_tokens),
            "--num-envs": (self.limits.num_envs, before.limits.num_envs),
            "--dtype": (self.dtype, before.dtype),
            "--lora-rank": (self.lora_rank, before.lora_rank),
        }
        flags = [f"{flag} {now}" for flag, (now, then) in new.items() if now != then]
        if self.config.gradient_checkpointing and not before.config.gradient_checkpointing:
            flags.append("--gradient-checkpointing")
        if self.load_in_4bit and not before.load_in_4bit:
            flags.append("--load-in-4bit")
        return " ".join(flags)


def propose(wanted: Planned) -> Planned | None:
    """The settings nearest to the wanted ones that fit; `None` where none do.

    Smaller micro-batches and fewer slots change no result and come first, then layers that are computed again, then
    weights that the GPUs share, then weights in bfloat16, then adapters, then weights in 4 bits under them.

    Args:
        wanted: Training that does not fit as it is.
    """
    for choice in _choices(wanted):
        smallest = choice.sized(min(choice.limits.longest, choice.micro_batch_tokens), 1)
        least = smallest.plan
        if least.peak > wanted.usable:
            continue
        # Memory grows in a line with tokens and with slots, but for steps: the guess is lowered until it fits.
        whole, size = choice.plan, []
        for phase, small, large in (
            ("learning", smallest.micro_batch_tokens, choice.micro_batch_tokens),
            ("sampling", 1, choice.limits.num_envs),
        ):
            room, growth = 1.0, 0
            if phase in whole.phases:
                growth = whole.total(phase) - least.total(phase)
                room = (wanted.usable - least.total(phase)) / growth if growth else 1.0
            size.append(_rounded(small, large, room))
        while (fitting := choice.sized(*size)).plan.peak > wanted.usable:
            size = [
                _rounded(small, large, 0.8) for small, large in zip((smallest.micro_batch_tokens, 1), size, strict=True)
            ]
        return fitting
    return None


def _rounded(small: int, large: int, share: float) -> int:
    """A number between two, at a share of the way and of one leading binary digit or two."""
    if share >= 1:
        return large
    wanted = int(small + share * (large - small))
    step = max(1, 1 << (wanted.bit_length() - 2))
    return max(small, wanted // step * step)


def _choices(wanted: Planned) -> Iterator[Planned]:
    yield wanted
    wanted = replace(wanted, config=replace(wanted.config, gradient_checkpointing=True))
    yield wanted
    alone = wanted.limits.processes > 1 and not wanted.limits.sharded
    if alone and wanted.agent.shardable and not wanted.config.bf16:
        wanted = replace(wanted, limits=wanted.limits._replace(sharded=True))
        yield wanted
    if wanted.dtype != "bfloat16":
        wanted = replace(wanted, dtype="bfloat16")
        yield wanted
    if wanted.lora_rank is None and wanted.agent.takes_lora:
        wanted = replace(wanted, lora_rank=_LORA_RANK)
        yield wanted
    whole = wanted.lora_rank is None or wanted.limits.sharded
    if wanted.agent.takes_4bit and not (whole or wanted.load_in_4bit or wanted.config.bf16):
        yield replace(wanted, load_in_4bit=True)


def describe(planned: Planned) -> str:
    """The plan, whether it fits, and what to change if it does not.

    Args:
        planned: Training to plan.
    """
    plan, devices = planned.plan, planned.limits.processes
    each = "" if devices == 1 else f", each of {devices} GPUs{' by FSDP' if planned.limits.sharded else ''}"
    text = f"{planned.agent.name} on {planned.model.model_type}{each}: sequences of at most {planned.limits.longest} "
    text += f"tokens, {planned.dtype}\n\n{plan}\n\n"
    budget = f"{USABLE:.0%} of {planned.memory / GIB:.4g} GiB"
    if plan.peak <= planned.usable:
        return text + f"fits in {budget}"
    text += f"does not fit in {budget}"
    proposal = propose(planned)
    if proposal is None:
        return text + (
            ", nor does one sequence with gradient checkpointing, bfloat16 and adapters: take a smaller model or "
            "shorter attempts"
        )
    fitting, launched = proposal.plan, ""
    if proposal.limits.sharded and not planned.limits.sharded:
        launched = f"    {LAUNCH} --num_processes {devices} -m tokengym train ...\n"
    return text + f"; {fitting.peak / GIB:.2f} GiB with\n\n{launched}    {proposal.flags(planned)}\n\n{fitting}"


def check_agent(agent: "type[Agent]", sharded: bool = False) -> None:
    """Raises `ValueError` unless an agent updates a model as a plan counts it, and can be sharded if it shall be."""
    if sharded and not agent.shardable:
        raise ValueError(f"the agent {agent.name!r} cannot be sharded: leave out --fsdp")
    config: Any = agent.config_class
    if not issubclass(config, OptimizerConfig):
        raise ValueError(f"the agent {agent.name!r} has no settings of an optimizer: there is no update to plan")
