"""Base of GRPO and PPO: several clipped updates on the same attempts, and a reference policy to stay close to."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..models.dry_run import without_weights
from .configs.proximal import ProximalConfig
from .on_policy import PolicyGradientAgent
from .training.learner import Example, Learner, MicroBatch, batch_logprobs
from .training.losses import DIVERGENCES, clipped, k3_divergence, masked_aggregate
from .training.memory import Work
from .training.reference import Reference, TokenValues, evaluate_as_trained

ProximalConfigT = TypeVar("ProximalConfigT", bound=ProximalConfig)


class ProximalAgent(PolicyGradientAgent[ProximalConfigT]):
    """Base of agents that make several updates on a batch of attempts, and may stay close to a reference."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._reference: Reference | None = None

    @classmethod
    def work(cls, config: Any, policy: PreTrainedModel) -> Work:
        work = super().work(config, policy)
        if not config.kl_coef:
            return work
        if not hasattr(policy, "disable_adapter"):
            return replace(work, frozen={"reference": without_weights(policy)})
        return work if config.reference_refresh is None else replace(work, copies=work.copies + 1)

    def modules(self) -> list[nn.Module]:
        return super().modules() + ([] if self._reference is None else self._reference.modules)

    def tensors(self) -> dict[str, Tensor]:
        return {} if self._reference is None else self._reference.state()

    def kept_tensors(self) -> dict[str, Tensor]:
        return {} if self._reference is None else self._reference.weights()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        if self._reference is not None:
            self._reference.load_state(tensors)

    def begin_anew(self) -> None:
        if self._reference is not None:
            self._reference.refresh()

    def reference_logprobs(
        self,
        learner: Learner,
        examples: Sequence[Example],
        minibatches: Sequence[NDArray[np.int64]],
        iteration: int,
    ) -> TokenValues | None:
        """Log-probabilities `[T]` of each completion's tokens under the reference, if there is one.

        They are computed as those of the policy, see `evaluate_as_trained`.
        """
        config: ProximalConfig = self.config
        if (policy := self._reference) is None:
            return None
        if config.reference_refresh is not None and iteration and iteration % config.reference_refresh == 0:
            policy.refresh()
        found = evaluate_as_trained(
            lambda batch: (policy.logprobs(learner, batch, config.temperature),), examples, minibatches
        )
        return found[0] if found else None

    def penalties(self, logprobs: TokenValues, reference: TokenValues) -> TokenValues:
        """Estimates `[T]` of the divergence from the reference at each attempt's tokens."""
        config: ProximalConfig = self.config
        estimate = DIVERGENCES[config.kl_estimator]
        return [
            estimate(torch.from_numpy(p), torch.from_numpy(q), torch.ones(len(p), dtype=torch.bool)).numpy()
            for p, q in zip(logprobs, reference, strict=True)
        ]

    def ratio_metrics(
        self, ratios: Tensor, logprobs: Tensor, before: Tensor, mask: Tensor, actions: int
    ) -> dict[str, Tensor]:
        """Metrics of how far a minibatch's update has come from the policy that acted.

        Args:
            ratios: `[B, T]` log-ratios that the loss has clipped.
            logprobs: `[B, T]` log-probabilities of the actions now.
            before: `[B, T]` log-probabilities of the actions before the first update.
            mask: `[B, T]` bool, true at actions.
            actions: Number of actions in the whole minibatch.
        """
        config: ProximalConfig = self.config
        ratios, now = ratios.detach(), logprobs.detach()
        low, high = clipped(ratios, mask, config.clip, config.upper_clip)
        share = lambda where: masked_aggregate(where.float(), mask, actions)  # noqa: E731
        return {
            "clip_fraction": share(low | high),
            "clip_fraction_low": share(low),
            "clip_fraction_high": share(high),
            "approx_kl": masked_aggregate(k3_divergence(before, now, mask), mask, actions),
            "ratio_max": ratios[mask].max().exp(),
            "ratio_min": ratios[mask].min().exp(),
        }


class EntropyLearner(Learner):
    """Gives losses the entropies `[B, T]` of the policy, too, if `entropy` is set."""

    entropy = False

    def forward(self, batch: MicroBatch, temperature: float) -> Tensor | tuple[Tensor, Tensor]:
        base, entropy = cast(PreTrainedModel, self.base), "gradient" if self.entropy else "none"
        logprobs, entropies = batch_logprobs(self.model, base, batch, self.vocab_size, temperature, entropy)
        return logprobs if entropies is None else (logprobs, entropies)


def summarize(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over updates of what each has returned; extremes of what ends in "_max" or "_min"."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for update in updates:
        for name, value in update.items():
            found[name].append(value)
    extremes = {"max": max, "min": min}
    return {name: float(extremes.get(name.rpartition("_")[2], np.mean)(values)) for name, values in found.items()}


def at(values: TokenValues | None, rows: NDArray[np.int64]) -> TokenValues | None:
    """Selects the values of some attempts."""
    return None if values is None else [values[i] for i in rows]
