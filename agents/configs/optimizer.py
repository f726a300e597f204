"""Settings of the optimizer, which all agents that train have, and of supervised fine-tuning."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from ...settings import Count, NonNegative, Positive, Share, check_settings


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, learning-rate schedule and batches.

    Attributes:
        learning_rate: Peak learning rate; `None` uses the model's `recommended_learning_rate` if it has one,
            else 2e-5. [Havrilla et al. 2024]
        min_learning_rate_ratio: Final learning rate of the cosine schedule as a share of the peak; 0.01
            is 2e-7 / 2e-5. [Havrilla et al. 2024]
        warmup_ratio: Share of the optimizer steps with linear warm-up. [Yuan et al. 2023, public script]
        betas: Decay rates of AdamW's running averages of the gradient and of its square. [choice]
        weight_decay: Weight decay of AdamW. [Yuan et al. 2023, public script]
        max_grad_norm: Norm that longer gradients are scaled down to before each optimizer step. [choice]
        micro_batch_tokens: Tokens in one forward pass, padding included; bounds memory and does not change the
            result. `None` chooses what suits the device: 2,048 on a CPU, else 16,384, or fewer where a large model
            leaves too little memory free. [choice]
        gradient_checkpointing: Recompute activations in the backward pass instead of keeping them, which takes less
            memory and about a third more compute.
        bf16: Run the forward pass of training in bfloat16 by autocast, and sample and validate with a copy of the
            weights in bfloat16.
        rounding: Rounding of weights in bfloat16 after each optimizer step: "exact" keeps float32 master weights in 2
            more bytes per weight; "stochastic" rounds at random, correct on average, and needs 4 bytes per weight less
            than "exact". [choice]
        optimizer: Optimizer: "adamw", or "adamw_8bit", whose moments are in 8 bits and take 6 bytes per weight less; it
            needs the extra "quantization". [choice]
    """

    renamed: ClassVar[Mapping[str, str]] = {}
    """Today's names of fields by the names that they had in the version before."""

    learning_rate: NonNegative | None = None
    min_learning_rate_ratio: Share = 0.01
    warmup_ratio: Share = 0.03
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    micro_batch_tokens: Count | None = None
    gradient_checkpointing: bool = False
    bf16: bool = False
    rounding: Literal["exact", "stochastic"] = "exact"
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))  # JSON makes lists of them
        check_settings(self)


@dataclass(frozen=True)
class FineTuneConfig(OptimizerConfig):
    """Supervised fine-tuning with AdamW and a cosine schedule with warm-up, as in Havrilla et al. 2024.

    Attributes:
        epochs: Passes over the training data. [Havrilla et al. 2024]
        batch_size: Sequences per optimizer step. [Havrilla et al. 2024]
        save_steps: Optimizer steps between checkpoints, in runs with a folder. [choice]
    """

    epochs: Count = 4
    batch_size: Count = 128
    save_steps: Count = 500
