"""Critics: how much reward a language model's policy can still expect at each token.

Three kinds, by what they share with the policy:

- `BranchCritic`: trained copies of its top layers on the hidden states below them, where the gradient stops (Havrilla
  et al. 2024);
- `HeadCritic`: a linear head on its last hidden states, whose gradient reaches the policy;
- `ModelCritic`: a trained copy of the whole.

The first two read the policy's own forward pass.
"""

import copy
from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedModel

from ..registry import unknown_name
from .forward import Index, action_logits
from .layers import check_depth, decoder_layers, final_norm, without_adapters

CRITICS = ("branch", "head", "model")


class Critic(nn.Module, ABC):
    """Values of states, which are sequences of tokens so far, by a linear head on hidden states.

    The head starts at zero: at first no reward is expected anywhere.

    Args:
        policy: the language model whose states are valued.
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.head = nn.Linear(policy.config.get_text_config().hidden_size, 1, device=policy.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

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
        head = cast(nn.Module, policy.get_output_embeddings())
        return [head.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))]

    def hidden(self, heard: list[Any], select: Index, inputs: dict[str, Tensor]) -> Tensor:
        return heard[0][select]


class BranchCritic(Critic):
    """Copies of the policy's top layers and final norm; their gradient stops at the hidden states that they start from.

    Each copy is called as transformers calls the layer it was made from, with its masks and positions, so this works
    for every architecture that keeps its layers in one list.

    Args:
        policy: the language model.
        depth: how many layers.

    Raises:
        ValueError: the model has fewer layers.
    """

    def __init__(self, policy: PreTrainedModel, depth: int) -> None:
        super().__init__(policy)
        check_depth("critic_layers", depth, policy)
        stack, layers = decoder_layers(policy)
        self.depth = depth
        self.layers = nn.ModuleList(_plain_copy(layer) for layer in layers[-depth:])
        self.norm = _plain_copy(final_norm(stack))

    def listen(self, policy: PreTrainedModel, heard: list[Any]) -> list[RemovableHandle]:
        note = lambda _, inputs, named: heard.append((inputs, named))  # noqa: E731
        _, layers = decoder_layers(policy)
        return [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers[-self.depth :]]

    def hidden(self, heard: list[Any], select: Index, inputs: dict[str, Tensor]) -> Tensor:
        states = heard[0][0][0].detach()
        for layer, (arguments, named) in zip(self.layers, heard, strict=True):
            states = layer(states, *arguments[1:], **named)
            states = states[0] if isinstance(states, tuple) else states
        return self.norm(states[select])


class ModelCritic(Critic):
    """A copy of the policy without its head, trained apart; twice the memory and forward passes."""

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__(policy)
        self.trunk = _plain_copy(without_adapters(policy).base_model)

    def hidden(self, heard: list[Any], select: Index, inputs: dict[str, Tensor]) -> Tensor:
        return self.trunk(**inputs, use_cache=False).last_hidden_state[select]


class ActorCritic(nn.Module):
    """A policy and its critic as one module, so that data parallel training wraps both."""

    def __init__(self, policy: PreTrainedModel, critic: Critic) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic

    @property
    def config(self) -> PreTrainedConfig:
        return self.policy.config

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, select: Index, **inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits `[A, V]` and values `[A]` at the A selected positions.

        Args:
            input_ids: `[B, T]` right-padded tokens.
            attention_mask: `[B, T]`, 1 at tokens, or a mask for attention itself, `[B, 1, T, T]`.
            select: the positions where the next token is an action.
            inputs: what else the policy is called with.
        """
        heard: list[Any] = []
        hooks = self.critic.listen(self.policy, heard)
        try:
            logits = action_logits(self.policy, self.policy, input_ids, attention_mask, select, **inputs)
        finally:
            for hook in hooks:
                hook.remove()
        inputs |= {"input_ids": input_ids, "attention_mask": attention_mask}
        return logits, self.critic(heard, select, inputs)


_WHOLE: dict[str, type[Critic]] = {"head": HeadCritic, "model": ModelCritic}


def make_critic(kind: str, policy: PreTrainedModel, layers: int) -> Critic:
    """A new critic for a policy, in evaluation mode.

    Args:
        kind: "branch", "head" or "model"; see above.
        policy: what it shares layers with or copies them from; adapters are not copied, they begin as the identity.
        layers: depth of a branch.

    Raises:
        UnknownNameError: no such kind.
        ValueError: the model has fewer layers than the branch.
    """
    if kind not in CRITICS:
        raise unknown_name("critic", kind, CRITICS)
    critic = BranchCritic(policy, layers) if kind == "branch" else _WHOLE[kind](policy)
    return critic.eval()


def _plain_copy(module: nn.Module) -> nn.Module:
    """A trainable copy without adapters."""
    module = copy.deepcopy(module)
    for name, part in list(module.named_modules()):
        if hasattr(part, "lora_A"):
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, cast(Any, part).get_base_layer())
    return module.requires_grad_()
