"""Metrics and sample attempts for experiment trackers and TensorBoard, also under the names of other libraries."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...registry import unknown_name

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..rollouts.attempts import Attempt

ALIASES: dict[str, tuple[str, ...]] = {
    "rollout/mean_reward": ("train/reward", "rollout/ep_rew_mean"),
    "rollout/mean_length": ("train/completions/mean_length", "rollout/ep_len_mean"),
    "rollout/truncation_rate": ("train/completions/clipped_ratio",),
    "rollout/uniform_groups": ("train/frac_reward_zero_std",),
    "rollout/entropy": ("train/entropy",),
    "train/reference_kl": ("train/kl",),
}
"""Names that TRL and Stable-Baselines3 give to the same numbers."""


def with_aliases(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics under their own names and under those that other libraries give to them."""
    named = {alias: metrics[name] for name, aliases in ALIASES.items() if name in metrics for alias in aliases}
    return {**named, **metrics}


class Shown(NamedTuple):
    """An attempt as dashboards show it."""

    question: str
    attempt: str
    answer: str
    verdict: str
    total_reward: float

    def text(self) -> str:
        """The attempt as Markdown, in which it is a block of code."""
        body = "\n".join(f"    {line}" for line in (*self.question.splitlines(), "", *self.attempt.splitlines()))
        return f"{body}\n\n{self.verdict}, answer {self.answer or '-'}, return {self.total_reward:.3g}"

    @classmethod
    def of(cls, attempt: "Attempt", text: str) -> "Shown":
        """The attempt with its text."""
        return cls(attempt.problem.question, text, attempt.answer or "", attempt.verdict, attempt.total_reward)


def check_trackers(names: Sequence[str]) -> None:
    """Checks the names of experiment trackers before anything is loaded.

    Raises:
        ImportError: The package of a tracker is not installed; the message has the command that installs it.
        UnknownNameError: No tracker has that name.
        ValueError: TensorBoard is named, whose events every run's folder has anyway.
    """
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if name == "tensorboard":
            raise ValueError('TensorBoard events are in the folder of every run: leave "tensorboard" out of log_with')
        if name not in LOGGER_TYPE_TO_CLASS:
            raise unknown_name("tracker", name, set(LOGGER_TYPE_TO_CLASS) - {"tensorboard"})
        if name in LoggerType.list() and name not in available:
            raise ImportError(f"log_with {name!r} needs a package: pip install {name.replace('_', '-')}")


class Tracking:
    """Experiment trackers that receive a run's metrics, by way of accelerate.

    Weights & Biases and trackio continue the tracker's run when a run is resumed; other trackers begin a new one.

    Args:
        accelerator: Accelerator that was made with the trackers' names; it speaks on the main process alone.
        project: Project of the trackers.
        name: Name of the run.
        key: Id of the run, the same whenever it is resumed.
        path: Folder of the run, if there is one, for what trackers write on this machine.
        settings: Hyperparameters by name.
    """

    def __init__(
        self,
        accelerator: "Accelerator",
        project: str,
        name: str,
        key: str,
        path: Path | None,
        settings: Mapping[str, Any],
    ) -> None:
        self._accelerator, self._project, self._settings = accelerator, project, dict(settings)
        self._init: dict[str, dict[str, Any]] = {
            "wandb": {"id": key, "name": name, "resume": "allow"} | ({} if path is None else {"dir": str(path)}),
            "trackio": {"name": f"{name}-{key}", "resume": "allow"},  # which knows runs by their names alone
        }
        self._begin()

    def _begin(self) -> None:
        self._accelerator.init_trackers(self._project, self._settings, self._init)

    def log(self, step: int, metrics: Mapping[str, float], attempts: Sequence[Shown] = ()) -> None:
        """Sends metrics, those that are finite, and attempts to the trackers that take tables."""
        if not self._accelerator.trackers:  # finished, and learning continues
            self._begin()
        self._accelerator.log({name: value for name, value in metrics.items() if math.isfinite(value)}, step=step)
        for tracker in self._accelerator.trackers if attempts else ():
            if hasattr(tracker, "log_table"):
                tracker.log_table(
                    "attempts", columns=list(Shown._fields), data=[list(row) for row in attempts], step=step
                )

    def finish(self) -> None:
        """Ends the trackers' runs; logging again continues them."""
        for tracker in self._accelerator.trackers:
            tracker.finish()
        self._accelerator.trackers.clear()
