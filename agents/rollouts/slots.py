"""Environment slots, and vLLM engines and servers, for a policy's rollouts."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import EnvSpec

from ...envs.registration import make_vec_env
from ...envs.token_vector_env import TokenVectorEnv
from ...models.engine.vllm_decoder import VLLM
from ...models.positions import check_length
from ...models.tokenizers import load_tokenizer
from .policy import CausalLMPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...models.engine.vllm_servers import VLLMServers


def make_rollout_env(
    env: EnvSpec | TokenVectorEnv, policy: CausalLMPolicy, num_envs: int, **settings: Any
) -> TokenVectorEnv:
    """Slots for rollouts of a policy: with its tokenizer, its model's end-of-sequence tokens, and no autoreset.

    Args:
        env: Environment to make the slots from; settings of a spec take precedence over those that the policy implies,
            except the number of slots and how they are reset.
        policy: Policy that will act in the slots.
        num_envs: Number of slots.
        settings: Arguments of the environment that take precedence over all others.

    Raises:
        ValueError: The environment's tokenizer is not the policy's, there are settings for a ready environment, or an
            attempt may be longer than the model's positions.
    """
    slots = _make_slots(env, policy, num_envs, settings)
    longest = slots.max_prompt_tokens + slots.max_new_tokens
    check_length(policy.model.config, longest, "an attempt", ". Lower max_prompt_tokens or max_new_tokens")
    return slots


def _make_slots(
    env: EnvSpec | TokenVectorEnv, policy: CausalLMPolicy, num_envs: int, settings: Mapping[str, Any]
) -> TokenVectorEnv:
    if isinstance(env, EnvSpec):
        own = {name: value for name, value in env.kwargs.items() if name not in _SLOTS}
        tokenizer = own.pop("tokenizer", policy.tokenizer)
        _check_tokenizer(load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer, policy)
        implied = {
            "autoreset_mode": "Disabled",
            "copy": False,
            "tokenizer": policy.tokenizer,
            "eos_token_ids": end_ids(policy),
        }
        spec = copy.deepcopy(env)
        spec.kwargs = {}
        return make_vec_env(spec, num_envs, **{**implied, **own, **settings})
    slots = make_vec_env(env, num_envs, **settings)
    _check_tokenizer(slots.tokenizer, policy)
    return slots


def end_ids(policy: CausalLMPolicy) -> list[int]:
    """Ids that end an attempt by the settings of a policy's model, beside its tokenizer's own."""
    config = policy.model.generation_config
    ends = None if config is None else config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def make_vllm(policy: CausalLMPolicy, env: TokenVectorEnv, memory: float, **arguments: Any) -> VLLM:
    """A vLLM for rollouts of a policy in an environment; `policy.with_vllm` takes it. See `VLLM` for the rest."""
    return VLLM(policy.model, env.num_envs, env.max_prompt_tokens + env.max_new_tokens, memory=memory, **arguments)


def check_vllm(memory: float | None, servers: Sequence[str], folder: str | Path | None) -> None:
    """Raises `ValueError` for settings of vLLM that exclude each other."""
    if memory is not None and servers:
        raise ValueError("vllm_memory and vllm_servers are two ways to sample: leave one of them out")
    if folder is not None and not servers:
        raise ValueError("vllm_folder is where vLLM servers read weights: give vllm_servers, too")


def make_vllm_servers(
    policy: CausalLMPolicy,
    env: TokenVectorEnv,
    urls: Sequence[str],
    folder: str | Path | None = None,
    dtype: str | None = None,
) -> "VLLMServers":
    """The vLLM servers at `urls` for rollouts of a policy in an environment; `policy.with_vllm` takes them.

    See `VLLMServers` for the rest.
    """
    from ...models.engine.vllm_servers import VLLMServers  # with an HTTP client, which few rollouts need

    length = env.max_prompt_tokens + env.max_new_tokens
    return VLLMServers(policy.model, urls, env.num_envs, length, folder=folder, dtype=dtype)


# Settings of a vector of slots that say nothing about what is in them.
_SLOTS = ("num_envs", "vectorization_mode", "autoreset_mode", "copy")


def _check_tokenizer(tokenizer: "PreTrainedTokenizerBase", policy: CausalLMPolicy) -> None:
    if tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ValueError(
            f"the environment's tokenizer {tokenizer.name_or_path!r} is not that of the model "
            f"{policy.model.name_or_path!r}: leave `tokenizer` out, and the environment gets the model's"
        )
