"""Warnings about a run that goes wrong: each names the cause, and the setting that may mend it."""

import logging
import math
from collections.abc import Mapping
from typing import Any

_logger = logging.getLogger(__name__)

# [choice] all of them: far outside of what runs that learn well show.
UNIFORM_ITERATIONS = 3
TRUNCATED = 0.5
ENTROPY_LEFT = 0.1
KL_PER_TOKEN = 0.2
REFERENCE_KL = 100.0
MISMATCH_KL = 0.01
MISMATCH_GROWTH = 10.0
REPEAT_AFTER = 10
"""Iterations between the first two warnings of a cause that comes and goes; then twice as many each time."""


class Alarms:
    """Watches the metrics of policy-gradient agents.

    A warning is given when its cause appears, and again only after it was gone, and later each time: in a long run
    causes come and go, and the metrics show when.
    """

    def __init__(self) -> None:
        self.load_state_dict({})

    def state_dict(self) -> dict[str, Any]:
        """What warnings depend on besides the newest metrics, as JSON values."""
        first = {"entropy": self._entropy, "mismatch": self._mismatch}
        state = {name: None if math.isnan(value) else value for name, value in first.items()}
        return {**state, "uniform": self._uniform, "ringing": sorted(self._ringing), "warned": self._warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state_dict` returned; an empty mapping is the beginning."""
        first = [state.get(name) for name in ("entropy", "mismatch")]
        self._entropy, self._mismatch = (math.nan if value is None else float(value) for value in first)
        self._uniform, self._ringing = int(state.get("uniform", 0)), set(state.get("ringing", ()))
        # The iteration of each cause's newest warning, and how many there were.
        self._warned = {name: (int(last), int(count)) for name, (last, count) in state.get("warned", {}).items()}

    def watch(self, metrics: Mapping[str, float], iteration: int) -> dict[str, float]:
        """Warns of what an iteration's metrics show; what is to be logged of it, `alarm/<name>`: 1 for each cause."""
        found = self._causes(metrics)
        for name in sorted(found.keys() - self._ringing):
            last, count = self._warned.get(name, (0, 0))
            if not count or iteration >= last + REPEAT_AFTER * 2 ** (count - 1):
                _logger.warning("iteration %d: %s", iteration, found[name])
                self._warned[name] = iteration, count + 1
        self._ringing = set(found)
        return {f"alarm/{name}": 1.0 for name in sorted(found)}

    def _causes(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """One line for each cause that is there, by its name."""
        causes: dict[str, str] = {}

        def value(name: str) -> float:
            return metrics.get(name, math.nan)  # which no comparison is true of

        self._uniform = self._uniform + 1 if value("rollout/uniform_groups") == 1 else 0
        if self._uniform >= UNIFORM_ITERATIONS:
            causes["uniform_groups"] = (
                f"in {self._uniform} iterations all attempts at each problem earned the same, which teaches nothing "
                f"(success {value('rollout/success_rate'):.3f}): choose easier or harder problems, raise "
                "samples_per_problem or temperature, or start from a fine-tuned model"
            )
        elif value("train/trained_attempts") == 0:
            causes["nothing_trained"] = (
                "no attempt had an advantage, or all were masked, and nothing was learned: raise "
                "problems_per_iteration or samples_per_problem"
            )
        if (left := value("rollout/unreplaced_groups")) > 0:
            causes["dynamic_sampling"] = (
                f"dynamic sampling spent its rounds, and {left:.0f} groups that teach nothing are left in the batch: "
                "raise dynamic_sampling, or choose problems nearer to what the policy can do"
            )
        if (rate := value("rollout/truncation_rate")) > TRUNCATED:
            causes["truncation"] = (
                f"{rate:.0%} of the attempts were cut off by their token budget: raise max_new_tokens, or set "
                'truncated="mask" or overlong_buffer'
            )
        entropy = value("rollout/entropy")
        if math.isnan(self._entropy):
            self._entropy = entropy
        if entropy < ENTROPY_LEFT * self._entropy:
            causes["entropy"] = (
                f"entropy fell from {self._entropy:.3g} to {entropy:.3g} nats per token, so that the policy hardly "
                "explores: lower learning_rate, or raise clip_high, entropy_coef or kl_coef"
            )
        step, distance = value("train/approx_kl"), value("train/reference_kl_per_attempt")
        if step > KL_PER_TOKEN:
            causes["kl"] = (
                f"updates moved the policy {step:.3g} nats per token from the one that acted: lower learning_rate, "
                "epochs or clip"
            )
        elif distance > REFERENCE_KL:
            causes["kl"] = (
                f"the policy is {distance:.3g} nats per attempt from the reference: lower learning_rate, or raise "
                "kl_coef"
            )
        mismatch = value("train/mismatch_kl")
        if math.isnan(self._mismatch):
            self._mismatch = mismatch
        if mismatch > MISMATCH_KL and (mismatch > MISMATCH_GROWTH * self._mismatch or mismatch > 10 * MISMATCH_KL):
            causes["mismatch"] = (
                f"the policy that samples is {mismatch:.3g} nats per token from the one that is trained "
                f'({self._mismatch:.3g} at first): set importance="token_truncate", or sample and train in the same '
                "precision"
            )
        return causes
