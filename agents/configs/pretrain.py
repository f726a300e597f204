"""Settings of pretraining."""

from dataclasses import dataclass
from typing import Literal

from ...settings import Count, CountOrZero, NonNegative, Share
from .optimizer import OptimizerConfig


@dataclass(frozen=True)
class PretrainConfig(OptimizerConfig):
    """Settings of `Pretrain`.

    Attributes:
        architecture: Architecture of a new model: "gpt2", or "llama" for rotary positions. [Tsilivis et al. 2025]
        depth: Number of layers of a new model; the source compares 2, 4 and 8. [Tsilivis et al. 2025]
        width: Size of the hidden states of a new model; the source compares 128 and 256. [Tsilivis et al. 2025]
        heads: Attention heads in each layer of a new model. [choice]
        steps: Number of optimizer steps; at 25 bits of parity a few hundred show what the source
            shows. [Tsilivis et al. 2025]
        batch_size: Demonstrations per optimizer step. [Tsilivis et al. 2025]
        learning_rate: Peak learning rate; `None` uses the model's `recommended_learning_rate` if it has one,
            else 2e-5. [choice]
        min_learning_rate_ratio: Final learning rate as a share of the peak; 1 keeps the rate constant, so that a
            checkpoint is the end of a shorter run. [choice]
        warmup_ratio: Share of the optimizer steps with linear warm-up. [choice]
        log_steps: Optimizer steps between lines of metrics. [choice]
        validation_problems: Validation problems that maj@1, pass@1 and response length are measured on; 0 turns
            validation off. [choice]
        save_steps: Optimizer steps between validations and checkpoints, whose models are all kept. [choice]
    """

    architecture: Literal["gpt2", "llama"] = "gpt2"
    depth: Count = 2
    width: Count = 128
    heads: Count = 4
    steps: Count = 50_000
    batch_size: Count = 256
    learning_rate: NonNegative | None = 1e-3
    min_learning_rate_ratio: Share = 1.0
    warmup_ratio: Share = 0.0
    log_steps: Count = 10
    validation_problems: CountOrZero = 200
    save_steps: Count = 500
