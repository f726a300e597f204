"""Critics: how much reward a language model's policy can still expect at each token.

Three kinds, by what they share with the policy:

- `BranchCritic`: trained copies of its top layers on the hidden states below them, where the gradient stops (Havrilla
  et al. 2024);
- `HeadCritic`: a linear head on its last hidden states, whose gradient reaches the policy;
- `ModelCritic`: a trained copy of the whole.

The first two read the policy's own forward pass.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedModel

from ..registry import unknown_name
from .forward import Index, action_states, ends_with_its_head
from .layers import check_depth, decoder_layers, deep_copy, evaluating, model_name, path_to_head, trunk
from .quantized import expand

CRITICS = ("branch", "head", "model")


class Critic(nn.Module, ABC):
    """Values of states, which are sequences of tokens so far, by a linear head on hidden states.

    The head starts at zero: at first no reward is expected anywhere.

    Args:
        policy: Language model whose states are valued.
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        embeddings: Any = policy.get_output_embeddings()
        self.head = _zero_head(embeddings.weight.shape[1], policy.device)

    def listen(self, policy: PreTrainedModel, heard: list[Any]) -> list[RemovableHandle]:
        """Hooks that put what is needed of a forward pass of the policy into `heard`."""
        return []

    @abstractmethod
    def hidden(self, heard: list[Any], select: Index, inputs: dict[str, Tensor]) -> Tensor:
        """Hidden states `[A, H]` at the selected tokens; `inputs` is what the policy was called with."""

    def forward(self, heard: list[Any], select: Index, inputs: dict[str, Tensor]) -> Tensor:
        """Values `[A]`, float32, at the selected tokens."""
        hidden = self.hidden(heard, select, inputs)
        with torch.autocast(hidden.device.type, enabled=False):  # the three digits of bfloat16 are few for a value
            return self.head(hidden.float())[:, 0]


class HeadCritic(Critic):
    """A head on the policy's last hidden states; its gradient reaches the policy."""

    def listen(self, policy: PreTrainedModel, heard: list[Any]) -> list[RemovableHandle]:
        return [_hear_head(policy, heard)]

    def hidden(self, heard: list[Any], select: Index, inputs: dict[str, Tensor]) -> Tensor:
        return heard[0][select]


class BranchCritic(Critic):
    """Copies of the policy's top layers and final norm; their gradient stops at the hidden states that they start from.

    Each copy is called as transformers calls the layer it was made from, with its masks and positions, so this works
    for every architecture that keeps its layers in one list.

    Args:
        policy: Language model whose top layers are copied.
        depth: Number of layers to copy.

    Raises:
        ValueError: The model has fewer layers, or copies of them do not make the hidden states that its head reads.
    """

    def __init__(self, policy: PreTrainedModel, depth: int) -> None:
        super().__init__(policy)
        check_depth("critic_layers", depth, policy)
        _, layers = decoder_layers(policy)
        self.depth = depth
        self.layers = nn.ModuleList(_plain_copy(layer) for layer in layers[-depth:])
        path, reads_it = path_to_head(policy)
        self.path_to_head = nn.Sequential(*map(_plain_copy, path))
        if not reads_it or not self._is_faithful(policy):
            raise ValueError(
                f"the top layers of {model_name(policy)} cannot be copied for a critic, because more than hidden "
                'states passes between them and the head: choose critic="head" or critic="model"'
            )

    @torch.no_grad()
    def _is_faithful(self, policy: PreTrainedModel) -> bool:
        """True if the new branch makes the hidden states that the policy's head reads, tried on a few tokens."""
        right: list[Any] = []
        heard: list[Any] = []
        hooks = [*self.listen(policy, heard), _hear_head(policy, right)]
        ids = torch.arange(1, 9, device=policy.device)[None] % policy.config.get_text_config().vocab_size
        with evaluating(policy), getattr(policy, "disable_adapter", nullcontext)():
            try:
                policy(input_ids=ids, use_cache=False)
            finally:
                for hook in hooks:
                    hook.remove()
        try:
            found = self.eval().hidden(heard, torch.ones_like(ids, dtype=torch.bool), {})
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
            return False
        return found.shape == right[0][0].shape and torch.allclose(found, right[0][0], rtol=1e-2, atol=1e-2)

    def listen(self, policy: PreTrainedModel, heard: list[Any]) -> list[RemovableHandle]:
        note = lambda _, inputs, named: heard.append((inputs, named))  # noqa: E731
        _, layers = decoder_layers(policy)
        return [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers[-self.depth :]]

    def hidden(self, heard: list[Any], select: Index, inputs: dict[str, Tensor]) -> Tensor:
        heard = [(_detached(list(arguments)), _detached(named)) for arguments, named in heard]
        states = heard[0][0][0]
        for layer, (arguments, named) in zip(self.layers, heard, strict=True):
            states = layer(states, *arguments[1:], **named)
            states = states[0] if isinstance(states, tuple | list) else states
        return self.path_to_head(states[select])


class ModelCritic(Critic):
    """A copy of the policy without its head, trained apart; twice the memory and forward passes."""

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__(policy)
        self.trunk = _plain_copy(trunk(policy))
        with torch.no_grad(), evaluating(self.trunk):
            hidden = self.trunk(input_ids=torch.zeros((1, 2), dtype=torch.long, device=policy.device), use_cache=False)
        if (width := hidden.last_hidden_state.shape[-1]) != self.head.in_features:  # between them RemBERT has a layer
            self.head = _zero_head(width, policy.device)

    def hidden(self, heard: list[Any], select: Index, inputs: dict[str, Tensor]) -> Tensor:
        return self.trunk(**inputs, use_cache=False).last_hidden_state[select]


class ActorCritic(nn.Module):
    """A policy and its critic as one module, so that data parallel training wraps both."""

    def __init__(self, policy: PreTrainedModel, critic: Critic) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic
        ends_with_its_head(policy)  # known before the critic listens to forward passes

    @property
    def config(self) -> PreTrainedConfig:
        return self.policy.config

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, select: Index, **inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Outputs of `forward.action_states` for the A selected positions, and values `[A]` there.

        Args:
            input_ids: `[B, T]` right-padded tokens.
            attention_mask: `[B, T]` with 1 at tokens, or a mask for attention itself, `[B, 1, T, T]`.
            select: Positions where the next token is an action.
            inputs: Further arguments of the policy.
        """
        heard: list[Any] = []
        hooks = self.critic.listen(self.policy, heard)
        try:
            states = action_states(self.policy, self.policy, input_ids, attention_mask, select, **inputs)
        finally:
            for hook in hooks:
                hook.remove()
        inputs |= {"input_ids": input_ids, "attention_mask": attention_mask}
        return states, self.critic(heard, select, inputs)


_WHOLE: dict[str, type[Critic]] = {"head": HeadCritic, "model": ModelCritic}


def make_critic(kind: str, policy: PreTrainedModel, layers: int) -> Critic:
    """A new critic for a policy, in evaluation mode.

    Args:
        kind: Kind of critic: "branch", "head" or "model"; see above.
        policy: Language model whose layers the critic shares or copies; adapters are not copied, they start as the
            identity.
        layers: Number of layers of a branch.

    Raises:
        UnknownNameError: There is no such kind.
        ValueError: The model has fewer layers than the branch.
    """
    if kind not in CRITICS:
        raise unknown_name("critic", kind, CRITICS)
    critic = BranchCritic(policy, layers) if kind == "branch" else _WHOLE[kind](policy)
    return critic.eval()


def _hear_head(policy: PreTrainedModel, heard: list[Any]) -> RemovableHandle:
    """A hook that puts the hidden states `[B, T, H]` that the policy's head reads into `heard`."""
    head = cast(nn.Module, policy.get_output_embeddings())
    return head.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))


def _zero_head(width: int, device: torch.device) -> nn.Linear:
    head = nn.Linear(width, 1, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _plain_copy(module: nn.Module) -> nn.Module:
    """A trainable copy without adapters; weights in 4 bits are expanded in it."""
    module = deep_copy(module)
    _strip_adapters(module)
    expand(module)
    return module.requires_grad_()


def _strip_adapters(module: nn.Module) -> None:
    """Puts what they adapt in the place of adapters, of which those of experts lie inside one another."""
    for name, part in list(module.named_children()):
        if hasattr(part, "lora_A"):
            setattr(module, name, cast(Any, part).get_base_layer())
        else:
            _strip_adapters(part)


def _detached(value: Any) -> Any:
    """Arguments of a layer without their gradients; keys and values that layers share stand in a mapping."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, list | tuple):
        return type(value)(map(_detached, value))
    if isinstance(value, Mapping):
        return type(value)({name: _detached(part) for name, part in value.items()})  # pyright: ignore[reportCallIssue]
    return value
