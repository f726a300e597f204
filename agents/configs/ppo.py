"""Settings of PPO."""

from dataclasses import dataclass
from typing import Literal

from ...settings import Count, CountOrZero, FinitePositive, NonNegative, Positive, Share, check_unused
from .proximal import ProximalConfig


@dataclass(frozen=True)
class PPOConfig(ProximalConfig):
    """Settings of `PPO`. What Havrilla et al. 2024 leave open is as in trlx, the library that they used.

    Attributes:
        iterations: Largest number of iterations of sampling and updating; 250 with 16 updates each make 4000
            updates. [Havrilla et al. 2024]
        problems_per_iteration: Problems drawn anew in each iteration. [Havrilla et al. 2024]
        samples_per_problem: Attempts at each problem of an iteration; 4 at each of 256 problems
            make 1024. [Havrilla et al. 2024]
        best_of: Number of attempts at each problem to learn from, the best ones; `None` learns from
            all. [Havrilla et al. 2024]
        temperature: Sampling temperature of the attempts; the source has 0.7 from an SFT checkpoint and 0.2 from a
            pretrained model without SFT. [Havrilla et al. 2024]
        betas: Decay rates of AdamW's running averages of the gradient and of its square. [trlx]
        weight_decay: Weight decay of AdamW. [trlx]
        epochs: Passes over the attempts of each iteration. [Havrilla et al. 2024]
        minibatch_size: Attempts per optimizer step. [Havrilla et al. 2024]
        gamma: Discount factor of rewards. [trlx]
        gae_lambda: GAE lambda: 0 uses one-step TD errors, 1 uses full returns. [trlx]
        whiten: Normalize advantages to mean 0 and variance 1 over all action tokens of an iteration. [trlx]
        value_clip: Clipping range of values around those at sampling time; `None` does not clip. [trlx]
        value_coef: Weight of the value loss. [trlx]
        kl_coef: Weight of the penalty for KL divergence from the reference, which is the policy before learning.
            Without it the source's policies collapse; 0 needs no reference. [Havrilla et al. 2024]
        kl_estimator: Estimator of the KL divergence (Schulman 2020): "k1", log(pi / pi_ref), is unbiased; "k2" is half
            its square; "k3" is unbiased and never negative. [Havrilla et al. 2024]
        kl_in: Place of the KL penalty: in the "reward" of each token, or in the "loss", where "k1" has no expected
            gradient. [Havrilla et al. 2024]
        adaptive_kl: Target for the KL divergence from the initial policy, in nats per attempt, that `kl_coef` is
            adapted to (Ziegler et al. 2019); `None` keeps `kl_coef` fixed. [choice]
        kl_horizon: Attempts over which an adaptive `kl_coef` changes by a factor of about e^0.2 at most. [trlx]
        target_kl: Stop an iteration before an update whose approximate KL divergence from the sampling policy
            exceeds 1.5 times this, as in Stable-Baselines3; `None` never stops. [choice]
        reward_clip: Clipping range of the environment's rewards, which lie in [-reward_clip, reward_clip]
            afterwards. [trlx]
        critic: Critic network: "branch" is a trained copy of the top layers that sends no gradient into the
            policy, "head" a linear head on the policy's last hidden states, "model" a copy of the whole
            model. [Havrilla et al. 2024]
        critic_layers: Number of layers in the critic's branch. [Havrilla et al. 2024]
        critic_learning_rate: Peak learning rate of the critic's own weights; `None` uses ten times the
            policy's. [choice]
        critic_lambda: Lambda of the returns that the critic learns, while advantages use `gae_lambda`; 1 uses full
            returns, and `None` uses `gae_lambda`. [Yuan et al. 2025, arXiv 2503.01491: 1]
        critic_warmup: Number of first iterations in which only the critic learns. [choice]
        critic_from: Folder of a saved PPO agent whose critic is taken over; `None` starts with a new one.
        bootstrap_truncated: Add the critic's value after the last token to the reward of attempts that reach their
            token limit; the environment's own reward of an attempt without an answer is 0. [choice]
        trained_layers: Number of top layers of the policy to train; `None` trains all, or the adapters of `lora_rank`.
        keep_best: End with the policy of the best validation maj@1 instead of the newest policy. [Havrilla et al. 2024]
        patience: Stop after this many validations without improvement; `None` never stops. [choice]
    """

    iterations: Count = 250
    problems_per_iteration: Count = 256
    samples_per_problem: Count = 4
    best_of: int | None = None
    temperature: FinitePositive = 0.7
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-6
    epochs: Count = 4
    minibatch_size: Count = 256
    gamma: Share = 1.0
    gae_lambda: Share = 0.95
    whiten: bool = True
    value_clip: Positive | None = 0.2
    value_coef: NonNegative = 1.0
    kl_coef: NonNegative = 0.05
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    kl_in: Literal["loss", "reward"] = "reward"
    adaptive_kl: Positive | None = None
    kl_horizon: Count = 10_000
    target_kl: Positive | None = None
    reward_clip: Positive = 10.0
    critic: Literal["branch", "head", "model"] = "branch"
    critic_layers: int = 4
    critic_learning_rate: NonNegative | None = None
    critic_lambda: Share | None = None
    critic_warmup: CountOrZero = 0
    critic_from: str | None = None
    bootstrap_truncated: bool = False
    trained_layers: int | None = None
    keep_best: bool = True
    patience: Count | None = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adaptive_kl is not None and not self.kl_coef:
            raise ValueError("adaptive_kl multiplies kl_coef, which is 0: start it above")
        if self.adaptive_kl is None:
            check_unused(self, ("kl_horizon",), "adaptive_kl")
        if not 1 <= self.kept <= self.samples_per_problem:
            raise ValueError(
                f"best_of must be between 1 and samples_per_problem={self.samples_per_problem}, got {self.best_of}"
            )
        if self.minibatch_size > self.problems_per_iteration * self.kept:
            raise ValueError(
                f"minibatch_size is {self.minibatch_size}, but an iteration learns from only "
                f"{self.problems_per_iteration} problems x {self.kept} attempts = "
                f"{self.problems_per_iteration * self.kept}: lower it, or raise problems_per_iteration"
            )

    @property
    def kept(self) -> int:
        """Attempts at each problem that are learned from."""
        return self.samples_per_problem if self.best_of is None else self.best_of

    @property
    def minibatches(self) -> int:
        """Updates of each epoch."""
        return -(-self.problems_per_iteration * self.kept // self.minibatch_size)
