"""`tokengym plan`: the memory of a training, before it is begun."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from ..settings import Count, check_settings
from .options import MAIN, EnvChoice
from .terminal import flag, run_command, say
from .train import agent_settings


@dataclasses.dataclass(frozen=True)
class PlanOptions(EnvChoice):
    """Training to plan, and the memory there is.

    Attributes:
        agent: Agent to plan; `tokengym list` shows them.
        model: Model whose configuration is read, without its weights: a name, a folder with a `config.json`, a file.
        gpus: GPUs that train together, each with a whole model unless `--fsdp` is given.
        fsdp: Share the model among the GPUs, each of which keeps a part of every weight (FSDP2).
        memory: Memory of each GPU in GiB; the default is that of this machine's device.
        num_envs: Environment slots of each GPU.
        dtype: Data type of the weights.
        attn: Attention implementation; the default is transformers' own choice.
        lora_rank: Rank of adapters that are trained instead of all weights.
        lora_targets: Names of the layers that get adapters; the default is all linear ones but the output head.
        load_in_4bit: Keep the weights under adapters in 4 bits (QLoRA).
        vllm_memory: Share of each GPU's memory for vLLM, which then samples.
        vllm_servers: Addresses of vLLM servers, which then sample and take none of this memory.
        preset: Published recipe whose settings become the defaults.
    """

    agent: str = "ppo"
    model: str = "tokengym/tiny"
    gpus: int = 1
    fsdp: bool = False
    memory: float | None = None
    num_envs: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    attn: str | None = None
    lora_rank: Count | None = None
    lora_targets: tuple[str, ...] = ("all-linear",)
    load_in_4bit: bool = False
    vllm_memory: float | None = None
    vllm_servers: tuple[str, ...] = ()
    preset: str | None = None


def plan(arguments: Sequence[str]) -> None:
    """Plan the memory of a training, from the model's configuration alone."""
    from ..agents.registry import AGENTS, config_class

    name = flag(arguments, "--agent") or PlanOptions.agent
    config_type = config_class(name)

    def run(options: Annotated[PlanOptions, MAIN], config: Any) -> None:
        if options.memory is not None and not 0 < options.memory < 1e9:
            raise ValueError(f"--memory must be above 0 and finite, in GiB, got {options.memory}")
        check_settings(options)
        import torch

        from ..agents.configs.lora import LoRA
        from ..agents.planning import Planned, check_agent, describe
        from ..agents.training.memory import GIB, Limits, free_memory
        from ..envs.registration import token_limits
        from ..models.dry_run import read_config

        kind = AGENTS.get(name)
        check_agent(kind)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        memory = None if options.memory is None else round(options.memory * GIB)
        if memory is None and (memory := free_memory(device)) is None:
            raise ValueError("the memory of this machine is not known: give --memory, in GiB")
        if options.gpus < 1 or options.num_envs < 1:
            raise ValueError("--gpus and --num-envs must be at least 1")
        if options.vllm_memory is not None and not 0 < options.vllm_memory < 1:
            raise ValueError(f"--vllm-memory must be between 0 and 1, got {options.vllm_memory}")
        if options.vllm_memory is not None and options.vllm_servers:
            raise ValueError("--vllm-memory and --vllm-servers are two ways to sample: leave one of them out")
        if options.fsdp and options.gpus < 2:
            raise ValueError("--fsdp shares a model among several GPUs: give --gpus")
        check_agent(kind, options.fsdp)
        if options.fsdp and getattr(config, "bf16", False):
            raise ValueError("models in shards train in bfloat16 by --dtype bfloat16: leave out --bf16")
        if options.fsdp and getattr(config, "optimizer", "") == "adamw_8bit":
            raise ValueError("moments in 8 bits are not sharded: leave out --optimizer adamw_8bit, or --fsdp")
        if options.load_in_4bit and getattr(config, "bf16", False):
            raise ValueError("weights in 4 bits compute in bfloat16 by --dtype bfloat16: leave out --bf16")
        if options.load_in_4bit and (options.lora_rank is None or options.fsdp or not kind.takes_4bit):
            raise ValueError(
                "--load-in-4bit is for adapters on whole models: give --lora-rank, leave out --fsdp, and take an agent "
                "that trains adapters"
            )
        vllm = 0 if options.vllm_servers else None
        if options.vllm_memory is not None:
            vllm = round(options.vllm_memory * memory)
        if options.lora_rank is not None and not kind.takes_lora:
            raise ValueError(f"the agent {name!r} trains weights as a whole: leave out --lora-rank")
        if (options.vllm_memory is not None or options.vllm_servers) and not kind.takes_vllm:
            raise ValueError(
                f"the agent {name!r} samples with the built-in decoder: leave out --vllm-memory and --vllm-servers"
            )
        lora = LoRA(options.lora_rank, targets=options.lora_targets)
        planned = Planned(
            kind,
            config_type(**dataclasses.asdict(config)),
            read_config(options.model),
            Limits(options.num_envs, *token_limits(options.spec()), options.gpus, vllm, options.fsdp),
            memory,
            options.dtype,
            options.attn,
            lora.rank,
            lora.targets,
            options.load_in_4bit,
        )
        say(describe(planned))

    run.__annotations__["config"] = agent_settings(config_type, name, flag(arguments, "--preset"))
    run_command(run, "tokengym plan", arguments, plan.__doc__, getattr(config_type, "renamed", {}))
