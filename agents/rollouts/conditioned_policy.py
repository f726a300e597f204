"""A policy that is asked for a return: a label stands before each step, for the model alone to see."""

from pathlib import Path
from typing import Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...models.condition_tokens import OWN, Labels
from ...models.engine.conditioned_decoder import ConditionedDecoder
from ...models.engine.decoder import SlotDecoder
from ...models.engine.sampling import SamplingConfig
from ...models.engine.self_check import decoding
from ...models.engine.vllm_decoder import BaseVLLM
from ...models.layers import model_name
from ...models.loading import load
from ...models.vocabulary import num_embeddings, num_token_ids
from ...rewards.steps import newline_tokens
from .policy import CausalLMPolicy


class ConditionedPolicy(CausalLMPolicy):
    """Acts under a label, by default the best one (Havrilla et al. 2024).

    The labels are this policy's business and not the environment's: the decoder of its slots puts them between the
    tokens of an attempt. So actions, attempts and rewards are those of any other policy; there is no action that does
    nothing and still spends the budget of tokens; and no text of a problem can be read as a label.

    A step begins with an attempt and behind each token with a newline in it. Steps that a reset's prefix holds have no
    labels, and `predict` needs the state of its last call to know where a step began.

    Args:
        model: Language model that was trained with labels.
        tokenizer: Tokenizer of the model without labels, which must be the environment's.
        labels: Labels of the model.
        condition: Label to act under, by default the best; "own" lets the model draw the labels itself.
        sampling: Settings for drawing actions unless the caller asks for deterministic ones.
        seed: Seed of the random streams of `predict`.

    Raises:
        UnknownNameError: The model has no such label.
        ValueError: The model has no embeddings for the labels, or was not trained to draw them itself.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        labels: Labels,
        condition: str | None = None,
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008  # frozen
        seed: int = 0,
    ) -> None:
        super().__init__(model, tokenizer, sampling, seed)
        if labels.first < num_token_ids(tokenizer) or labels.stop > num_embeddings(model):
            raise ValueError(
                f"the model has no embeddings for the labels {', '.join(labels.tokens)} behind its tokenizer's "
                f"{num_token_ids(tokenizer)} ids: `tokengym train rcrl` trains a model that has"
            )
        if condition == OWN and not labels.learnt:
            raise ValueError("the model was not trained to draw labels itself (train_labels): condition it on one")
        self.labels = labels
        self.condition = labels.best if condition is None else condition
        self._label = None if self.condition == OWN else labels.id(self.condition)

    def with_condition(self, condition: str | None) -> "ConditionedPolicy":
        """The same model under another label."""
        policy = ConditionedPolicy(self.model, self.tokenizer, self.labels, condition, self.sampling, self.seed)
        return policy.with_half(self._half)

    def with_vllm(self, vllm: BaseVLLM | None) -> Self:
        """Raises `ValueError` for a vLLM, which cannot be told a label in the middle of an attempt."""
        if vllm is not None:
            raise ValueError("a policy that acts under labels is sampled by the built-in decoder: leave vLLM out")
        return self

    def with_compiled(self, compiled: bool) -> Self:
        """Raises `ValueError` for a compiled decoder, which cannot put a label in the middle of an attempt."""
        if compiled:
            raise ValueError(
                "a policy that acts under labels is not sampled by compiled steps: leave out compile_decoder"
            )
        return self

    def with_graphs(self, graphs: bool) -> Self:
        """Raises `ValueError` for CUDA graphs, in whose middle no label can be put."""
        if graphs:
            raise ValueError("a policy that acts under labels is not sampled by CUDA graphs: leave out cuda_graphs")
        return self

    def check(self) -> None:
        """Raises `ValueError` unless labels can be put between the model's tokens."""
        check_takes_labels(self.model)

    def decoder(self, num_slots: int) -> SlotDecoder:
        """A fresh key-value cache for `num_slots` slots; the model is put in evaluation mode (no dropout)."""
        self.check()
        ends_step = newline_tokens(self.tokenizer)
        return ConditionedDecoder(
            self.decoded_model(), num_slots, num_token_ids(self.tokenizer), self.labels, self._label, ends_step
        )


def check_takes_labels(model: PreTrainedModel) -> None:
    """Raises `ValueError` unless a model is decoded in slots, where labels can be put between its tokens."""
    if decoding(model) != "slots":
        raise ValueError(f"{model_name(model)} cannot act under labels, because it is decoded one row at a time")


def load_policy(
    name_or_path: str | Path,
    condition: str | None = None,
    *,
    device: str | None = None,
    dtype: str = "float32",
    load_in_4bit: bool = False,
    attn: str | None = None,
) -> CausalLMPolicy:
    """The policy of a saved model: under the best label, or under `condition`, if it was trained with labels.

    Args:
        name_or_path: Model, anything that `models.load` takes.
        condition: Label to act under, or "own" for labels that the model draws itself.
        device: Device of the model.
        dtype: Data type of the model's weights.
        load_in_4bit: Keep the weights of linear layers in 4 bits, see `models.load`.
        attn: Attention implementation; by default the choice of transformers.

    Raises:
        ValueError: A condition is given for a model without labels.
        UnknownNameError: The model has no such label.
    """
    labels = Labels.load(name_or_path)
    if labels is None and condition is not None:
        raise ValueError(
            f"{str(name_or_path)!r} has no label tokens and cannot be conditioned on {condition!r}: train such a model "
            "with `tokengym train rcrl`, or leave the condition out"
        )
    model, tokenizer = load(name_or_path, device=device, dtype=dtype, load_in_4bit=load_in_4bit, attn=attn)
    if labels is None:
        return CausalLMPolicy(model, tokenizer)
    return ConditionedPolicy(model, tokenizer, labels, condition)
