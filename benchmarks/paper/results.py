"""What the jobs of the paper's grid found, by system and seed, and why it is missing where it is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..jobs import Done, Job, Missing
from ..reports.content import Cell, MissingCell, cell_over_seeds
from .scales import Scale
from .systems import systems

METRICS = ("maj@1", "maj@n", "rerank@n", "pass@n")


def job_name(system: str, seed: int, what: str) -> str:
    """The job that does `what` ("train", "evaluate", "rerank") with a system."""
    return f"seed-{seed}/{system}/{what}"


@dataclass(frozen=True)
class Results:
    """The states of a plan's jobs, as the report asks for them."""

    scale: Scale
    seeds: Sequence[int]
    jobs: Mapping[str, Job]
    states: Mapping[str, Done | Missing]

    def done(self, system: str, seed: int, what: str) -> Done | None:
        """The finished job, if it is in the plan and finished."""
        state = self.states.get(job_name(system, seed, what))
        return state if isinstance(state, Done) else None

    def values(self, system: str, metric: str) -> dict[int, float]:
        """A metric of an evaluation by seed, where there is one; "maj@n" stands for that of the scale's n."""
        return {seed: found[0] for seed, found in self._intervals(system, metric).items()}

    def _intervals(self, system: str, metric: str) -> dict[int, Sequence[float]]:
        what = "rerank" if metric.startswith("rerank") else "evaluate"
        name = self.metric_name(metric)
        done = {seed: self.done(system, seed, what) for seed in self.seeds}
        return {seed: job.result["metrics"][name] for seed, job in done.items() if job is not None}

    def metric_name(self, metric: str) -> str:
        """The metric by its number of samples: maj@8 for maj@n."""
        return metric.replace("@n", f"@{self.scale.n}")

    def title(self, system: str) -> str:
        """A system of the scale as it is called in figures."""
        return next(known.title for known in systems(self.scale) if known.name == system)

    def cell(self, system: str, metric: str) -> Cell | MissingCell:
        """A metric over seeds; of a single seed with the interval over problems, for there is none over seeds."""
        what = "rerank" if metric.startswith("rerank") else "evaluate"
        found = self._intervals(system, metric)
        missing = {seed: self.reason(job_name(system, seed, what)) for seed in self.seeds if seed not in found}
        if len(self.seeds) == 1 and found:
            ((seed, (value, low, high)),) = found.items()
            return Cell({seed: value}, value, min(low, value), max(high, value))
        return cell_over_seeds({seed: values[0] for seed, values in found.items()}, missing)

    def reason(self, name: str) -> str:
        """Why a job has no result: what failed first among all that it needs."""
        state = self.states[name]
        if isinstance(state, Done):
            raise ValueError(f"{name} has a result")
        if state.state == "failed":
            return f"{name} failed: {state.reason}"
        return self.reason(next(need for need in self.jobs[name].needs if isinstance(self.states[need], Missing)))

    def curves(self, system: str) -> dict[int, list[dict[str, float]]]:
        """What training logged of validation, by seed."""
        done = {seed: self.done(system, seed, "train") for seed in self.seeds}
        return {seed: job.result["curve"] for seed, job in done.items() if job is not None}

    def file(self, system: str, seed: int, what: str, name: str) -> Any:
        """The JSON values in a file that a job left in its folder; `None` without the job's result."""
        job = self.done(system, seed, what)
        return None if job is None else json.loads((job.folder / name).read_text())
