"""A causal language model as a policy over token environments."""

import copy
from collections import defaultdict
from dataclasses import asdict
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...arrays import IntArray
from ...envs.token_vector_env import TokenVectorEnv
from ...models.engine.compiled_decoder import CompiledDecoder
from ...models.engine.decoder import SlotDecoder
from ...models.engine.graph_decoder import GraphDecoder
from ...models.engine.half_copy import HalfCopy
from ...models.engine.row_decoder import RowDecoder
from ...models.engine.sampling import GREEDY, SamplingConfig, stream_key
from ...models.engine.self_check import decoding
from ...models.engine.vllm_decoder import BaseVLLM, VLLMDecoder
from ...models.layers import model_name
from ...models.linear import use_onednn
from ...models.loading import check_vocabulary
from ...models.vocabulary import check_largest_id, num_token_ids
from ..configs.arguments import configure


class CausalLMPolicy:
    """Acts by sampling next tokens from a causal language model.

    Args:
        model: Language model; `predict` and rollouts do not change its weights. On some processors its linear layers
            take their products from oneDNN from then on, as those of `models.load` do.
        tokenizer: Tokenizer of the model, which must be the environment's.
        sampling: Settings for drawing actions unless the caller asks for deterministic ones.
        seed: Seed of the random streams of `predict`.

    Raises:
        TypeError: The model or the tokenizer is something else, such as its name.
        ValueError: The tokenizer has ids that the model lacks. Those of added tokens that no attempt needs are an error
            only where a text has them, when it is read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008  # frozen
        seed: int = 0,
    ) -> None:
        if not isinstance(model, nn.Module) or not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TypeError(
                f"a policy is made of a language model and its tokenizer, got {type(model).__name__} and "
                f"{type(tokenizer).__name__}: load_policy makes one of a name or a folder"
            )
        check_vocabulary(model, tokenizer, added=False)
        self.model = use_onednn(model)
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.seed = seed
        self._vllm: BaseVLLM | None = None
        self._half: HalfCopy | None = None
        self._compiled = self._graphs = False

    def with_sampling(self, **changes: Any) -> Self:
        """The same model with other sampling settings.

        Raises:
            TypeError: There is no such setting; the nearest is suggested.
            ValueError: A value is out of its bounds, see `SamplingConfig`.
        """
        policy = copy.copy(self)
        policy.sampling = configure(SamplingConfig, {**asdict(self.sampling), **changes})
        return policy

    def decoder(self, num_slots: int) -> SlotDecoder | RowDecoder:
        """A fresh key-value cache for `num_slots` slots; the model is put in evaluation mode (no dropout).

        Raises:
            ValueError: The model cannot be decoded token by token, see `self_check.decoding`.
        """
        arguments = self.decoded_model(), num_slots, num_token_ids(self.tokenizer)
        if decoding(self.model) == "rows":
            return RowDecoder(*arguments)
        if self._graphs:
            return GraphDecoder(*arguments, compiled=self._compiled)
        return CompiledDecoder(*arguments) if self._compiled else SlotDecoder(*arguments)

    def decoded_model(self) -> PreTrainedModel:
        """The model that decoders run, in evaluation mode: the policy's, or its copy in bfloat16 as it is now."""
        self.model.eval()
        return self.model if self._half is None else self._half.newest()

    def check(self) -> None:
        """Raises `ValueError` unless the model can be sampled: by vLLM if the policy has it, else token by token."""
        chosen = {"compile_decoder": self._compiled, "cuda_graphs": self._graphs}
        faster = next((name for name, value in chosen.items() if value), None)
        if self._vllm is not None:
            if faster:
                raise ValueError(f"vLLM and {faster} are two ways to sample: leave one of them out")
        elif decoding(self.model) == "rows" and faster:
            raise ValueError(
                f"{model_name(self.model)} is decoded one row at a time, which is neither compiled nor recorded: leave "
                f"out {faster}"
            )
        if self._graphs and self.model.device.type != "cuda":
            raise ValueError(f"cuda_graphs needs a GPU, and the model is on {self.model.device}: leave it out")

    def with_vllm(self, vllm: BaseVLLM | None) -> Self:
        """The same model with vLLM to sample its rollouts, or without."""
        policy = copy.copy(self)
        policy._vllm = vllm
        return policy

    def with_compiled(self, compiled: bool) -> Self:
        """The same model with its decoder compiled, or as it is."""
        policy = copy.copy(self)
        policy._compiled = compiled
        return policy

    def with_graphs(self, graphs: bool) -> Self:
        """The same model with the steps of its decoder replayed from CUDA graphs, or as it is."""
        policy = copy.copy(self)
        policy._graphs = graphs
        return policy

    def with_half(self, half: HalfCopy | None) -> Self:
        """The same model with a copy in bfloat16 to decode with, or without."""
        policy = copy.copy(self)
        policy._half = half
        return policy

    def rollout_decoder(self, env: TokenVectorEnv) -> SlotDecoder | RowDecoder | VLLMDecoder:
        """Decoder for rollouts in an environment: vLLM if the policy has it, else that of `decoder`."""
        if self._vllm is None:
            return self.decoder(env.num_envs)
        return self._vllm.decoder(
            self.model, env.num_envs, num_token_ids(self.tokenizer), env.eos_token_ids, env.max_new_tokens
        )

    def predict(
        self,
        observation: dict[str, NDArray[Any]],
        state: "PolicyState | None" = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[Any, "PolicyState"]:
        """Actions for observations, in the manner of Stable-Baselines3's recurrent policies.

        Args:
            observation: Arrays `input_ids` and `attention_mask`, `[N, L]` from a vector environment or `[L]` from a
                single one.
            state: State that the last call returned, with the key-value cache; `None` starts anew. One from before a
                change of the weights, or of another model, starts anew as well.
            episode_start: `[N]` bool, true where an episode began with this observation.
            deterministic: Take the most likely token.

        Returns:
            Actions, `[N]` int64 or one integer for an unbatched observation, and the state for the next call.

        Raises:
            ValueError: The state is of observations of another shape, or the model has no embedding for a token.
        """
        ids = np.atleast_2d(observation["input_ids"])
        lengths = np.atleast_2d(observation["attention_mask"]).sum(1).astype(np.int64)
        if state is not None and state.ids.shape != ids.shape:
            raise ValueError(
                f"the state is of observations of shape {list(state.ids.shape)}, and this one has {list(ids.shape)}: "
                "give state=None where another environment begins"
            )
        if state is None or not state.weights.are_those_of(self.model):
            begun = 0 if state is None else state.begun
            state = PolicyState(self.decoder(len(ids)), ids.shape[1], _WeightsSeen(self.model), begun)
        if state.decoder.model.training:  # put in training mode since, which has dropout
            state.decoder.model.eval()
        actions = state.advance(ids, lengths, episode_start, self.seed, GREEDY if deterministic else self.sampling)
        return (actions if observation["input_ids"].ndim == 2 else int(actions[0])), state


class PolicyState:
    """The decoder behind `CausalLMPolicy.predict`, and the sequences of at most `width` tokens that its cache holds.

    Args:
        decoder: Decoder with a slot for each observation.
        width: Tokens of an observation.
        weights: Weights that the cache was computed with.
        begun: Random streams that have been used.
    """

    def __init__(self, decoder: SlotDecoder | RowDecoder, width: int, weights: "_WeightsSeen", begun: int) -> None:
        self.decoder = decoder
        self.weights = weights
        self.begun = begun
        self.ids = np.zeros((decoder.num_slots, width), np.int64)  # as last seen
        self.lengths = np.full(decoder.num_slots, -2)  # tokens of each slot; at first no slot can have grown by one

    def advance(
        self,
        ids: IntArray,
        lengths: IntArray,
        episode_start: NDArray[np.bool_] | None,
        seed: int,
        sampling: SamplingConfig,
    ) -> IntArray:
        """One action per slot: continues the slots that grew by one token, begins the others."""
        # A new prompt may happen to be one token longer than what it follows: only the tokens tell.
        before = np.arange(ids.shape[1]) < self.lengths[:, None]
        fresh = (lengths != self.lengths + 1) | ((ids != self.ids) & before).any(1)
        if episode_start is not None:
            fresh |= np.asarray(episode_start, bool)
        if fresh.any():
            slots = np.flatnonzero(fresh)
            keys = np.array([stream_key(seed, "predict", self.begun + i) for i in range(len(slots))])
            self.begun += len(slots)
            self.decoder.begin(slots, [ids[slot, : lengths[slot]] for slot in slots], keys)
        self.ids[:], self.lengths = ids, lengths
        order = self.decoder.slots
        # The environment has the last word on what was done.
        newest = ids[order, lengths[order] - 1]
        check_largest_id(self.decoder.model, int(newest.max()))
        self.decoder.replace_pending(newest)
        actions = np.empty(len(ids), np.int64)
        actions[order] = self.decoder.step(sampling)[0]
        return actions


class _WeightsSeen:
    """A model's weights as they are now."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._places = _places(model)
        # Fused optimizers and changes of `.data` are not counted by PyTorch: some numbers of each weight tell of them.
        self._views: defaultdict[torch.device, list[Tensor]] = defaultdict(list)
        for weight in (each.detach() for each in model.parameters() if not each.is_meta):
            if type(weight) is Tensor and weight.is_contiguous() and weight.numel():
                self._views[weight.device].append(weight.view(-1)[:: max(1, weight.numel() // 8)])
        self._numbers = self._read()

    def are_those_of(self, model: PreTrainedModel) -> bool:
        """True unless that is another model, or its weights were changed or moved meanwhile."""
        same = model is self.model and _places(model) == self._places
        return same and all(map(torch.equal, self._read(), self._numbers))

    @torch.no_grad()
    def _read(self) -> list[Tensor]:
        return [torch.cat(views) for views in self._views.values()]


def _places(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Where each weight is, and PyTorch's count of its changes."""
    weights = [weight for weight in model.parameters() if not weight.is_meta]
    return [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]
