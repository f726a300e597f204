"""Options that several commands share."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from annotated_types import Ge, Le

from ..files import RepeatedKeyError, unique_keys
from ..registry import unknown_name
from ..settings import Count, check_settings
from .terminal import set_threads

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

EnvSettings = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")]
Threads = Annotated[int, Ge(1), Le(256)]
MAIN = tyro.conf.arg(name="")
"""Annotation of the parameter whose options need no heading of their own in a command's help."""


@dataclasses.dataclass(frozen=True)
class EnvChoice:
    """Choice of an environment.

    Attributes:
        env: Environment id; `tokengym list` shows all.
        data: Folder or file of the data set, for environments that read one; by default it is downloaded from the hub.
        env_args: Other settings of the environment, each with a value in JSON or as plain text, such as `steps=[2,3]
            max_new_tokens=128`.
    """

    env: str = "tokengym/Arithmetic-v0"
    data: str | None = None
    env_args: EnvSettings = ()

    def spec(self, **settings: Any) -> "EnvSpec":
        """The environment's spec with these settings and others."""
        import gymnasium as gym

        from ..envs import IDS

        try:
            spec = gym.spec(self.env)
        except gym.error.Error as error:
            raise unknown_name("environment", self.env, IDS) from error
        return self.with_settings(spec, **settings)

    def with_settings(self, spec: "EnvSpec", **settings: Any) -> "EnvSpec":
        """The spec with the chosen data and settings, and others."""
        spec = copy.deepcopy(spec)  # the registry's own
        given: set[str] = set()
        for item in self.env_args:
            name, equals, value = item.partition("=")
            if not equals:
                raise ValueError(f"--env-args takes NAME=VALUE, got {item!r}")
            if name in _SLOTS:
                raise ValueError(
                    f"--env-args {item} is of no effect: commands make the environment's slots themselves; leave it out"
                )
            if name in given:
                raise ValueError(f"--env-args has {name} more than once: give it one value")
            given.add(name)
            try:
                chosen = _value(value)
            except RepeatedKeyError as error:
                raise ValueError(f"--env-args {item}: {error}") from error
            if name in settings and settings[name] != chosen:
                raise ValueError(
                    f"--env-args {item} is of no effect here, where {name} is {settings[name]!r}: this command sets it "
                    "itself, or has an option for it"
                )
            spec.kwargs[name] = chosen
        if self.data is not None:
            spec.kwargs["data"] = self.data
        spec.kwargs.update(settings)
        return spec


_SLOTS = ("num_envs", "vectorization_mode", "autoreset_mode", "copy", "render_mode")
"""Arguments of environments that say how their slots are made, which is no choice of a command's user."""


def _value(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError:
        return text


@dataclasses.dataclass(frozen=True)
class ComputeOptions:
    """Settings for loading and running models.

    Attributes:
        num_envs: Number of environment slots, which are the rows of the decoder's batch.
        device: Device of the model, such as "cpu" or "cuda:1"; by default a GPU if there is one.
        dtype: Data type of the weights: "float32" or "bfloat16".
        load_in_4bit: Keep the weights of linear layers in 4 bits; training needs `--lora-rank` then (QLoRA). Needs the
            extra "quantization".
        attn: Attention implementation, such as "sdpa", "eager" or "flash_attention_2"; by default the choice of
            transformers.
        compile_decoder: Sample by a step that `torch.compile` has compiled, which takes some minutes at first.
        cuda_graphs: Sample by steps that are recorded as CUDA graphs and replayed; needs a GPU, and has not been run on
            one.
        vllm_memory: Share of the GPU's memory for vLLM, between 0 and 1, which then samples; needs the extra "vllm".
        vllm_servers: Addresses of running vLLM servers, such as http://10.0.0.2:8000, which then sample.
        vllm_folder: Folder in which weights are handed to vLLM servers, which see it by the same path; by default a
            temporary one, for servers on this machine.
        threads: Number of CPU threads; by default the choice of PyTorch.
    """

    num_envs: Count = 64
    device: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    load_in_4bit: bool = False
    attn: str | None = None
    compile_decoder: bool = False
    cuda_graphs: bool = False
    vllm_memory: float | None = None
    vllm_servers: tuple[str, ...] = ()
    vllm_folder: Path | None = None
    threads: Threads | None = None

    def begin(self) -> None:
        """Checks the values, and sets the number of threads.

        Raises:
            ValueError: A value is out of its bounds; the message names the option, its bounds and the value.
        """
        check_settings(self)  # not when it is made, where tyro would draw a box around the error
        set_threads(self.threads)


@dataclasses.dataclass(frozen=True)
class AdapterOptions:
    """Low-rank adapters (LoRA) to train instead of the weights.

    Attributes:
        lora_rank: Rank of the adapters; by default all weights are trained instead.
        lora_alpha: Scale of the adapters times their rank; by default the rank itself, a scale of 1.
        lora_targets: Names of the layers that get adapters; "all-linear" is all linear ones but the output head.
        lora_rank_stabilized: Divide the scale by the square root of the rank instead of the rank (rsLoRA).
    """

    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] = ("all-linear",)
    lora_rank_stabilized: bool = False
