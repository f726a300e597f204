"""A scalar head on the base model of any causal language model."""

from typing import Any

from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

from .layers import trunk


class TokenScorer(PreTrainedModel):
    """One logit for each token, by a linear head on the last hidden states of a causal language model's base model.

    transformers has token-classification classes for some of its model types, of which a few drop arguments on their
    way to the base model. This one serves all types. Its weights have the names that most of those classes give them.

    Args:
        config: Configuration of the causal language model.
    """

    base_model_prefix = "model"
    # What the base model supports is checked there.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: PreTrainedConfig) -> None:
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        causal: PreTrainedModel = kind(config)  # first, so that each part of it chooses what it supports
        super().__init__(config)
        self.model: Any = trunk(causal)
        embeddings: Any = causal.get_output_embeddings()
        inputs = causal.get_input_embeddings()
        self._embeddings = next(name for name, module in self.model.named_modules() if module is inputs)
        self.score = nn.Linear(embeddings.weight.shape[1], 1)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_submodule(self._embeddings)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # checked in the base model, too

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> TokenClassifierOutput:
        """Logits `[B, T, 1]`.

        Args:
            input_ids: `[B, T]` token ids.
            attention_mask: `[B, T]` with 1 at tokens.
            inputs: Further arguments of the base model.
        """
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        return TokenClassifierOutput(logits=self.score(hidden))
