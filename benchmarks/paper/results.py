"""What the jobs of the paper's grid found, by system and seed, and why it is missing where it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ...arrays import FloatArray
from ...files import read_json
from ..jobs import Done, Job, Missing
from ..reports.content import Cell, MissingCell
from ..statistics import crossed_mean
from .jobs import OUTCOMES
from .scales import Scale
from .systems import System, systems

METRICS = ("maj@1", "maj@n", "rerank@n", "pass@n")


def job_name(system: str, seed: int, what: str) -> str:
    """The job that does `what` ("train", "evaluate", "rerank") with a system."""
    return f"seed-{seed}/{system}/{what}"


def system_of(name: str) -> str:
    """The system whose job has that name."""
    return name.split("/", 1)[1].rpartition("/")[0]


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

    def outcomes(self, system: str, metric: str) -> dict[int, FloatArray]:
        """A metric at each problem, `[P]`, by seed, where there is one; "maj@n" stands for that of the scale's n.

        A seed in which a system had nothing to learn from counts with the outcomes of its start.

        Raises:
            ValueError: Evaluations are of different problems.
        """
        what = "rerank" if metric.startswith("rerank") else "evaluate"
        name, found = self.metric_name(metric), dict[int, FloatArray]()
        for seed in self.seeds:
            source = self.stands_for(system, seed)
            values = self.file(source, seed, what, OUTCOMES)
            if values is None:
                continue
            if values["problem_ids"] != self._problem_ids:
                raise ValueError(
                    f"{job_name(source, seed, what)} is of other problems than the first evaluation: compare systems "
                    "on the same problems"
                )
            found[seed] = np.array(values["by_problem"][name])
        return found

    @cached_property
    def _problem_ids(self) -> list[str]:
        """Ids of the problems of the first evaluation, which all others share."""
        done = (state for name, state in self.states.items() if name.endswith("/evaluate") and isinstance(state, Done))
        return read_json(next(done).folder / OUTCOMES)["problem_ids"]

    def stands_for(self, system: str, seed: int) -> str:
        """The system whose evaluation counts: itself, or its start where there was nothing to learn from."""
        state = self.states.get(self._training(system, seed))
        if isinstance(state, Missing) and state.reason.startswith("NothingToLearnError"):
            return self._system(system).start
        return system

    def _training(self, system: str, seed: int) -> str:
        """The job that trains a system's policy; that of a round is expert iteration's."""
        rounds = [known for known in systems(self.scale) if known.name == system and known.after_round is not None]
        return job_name(rounds[0].needs[0] if rounds else system, seed, "train")

    def values(self, system: str, metric: str) -> dict[int, float]:
        """A metric of an evaluation by seed, where there is one."""
        return {seed: float(values.mean()) for seed, values in self.outcomes(system, metric).items()}

    def metric_name(self, metric: str) -> str:
        """The metric by its number of samples: maj@8 for maj@n."""
        return metric.replace("@n", f"@{self.scale.n}")

    def title(self, system: str) -> str:
        """A system of the scale as it is called in figures."""
        return self._system(system).title

    def _system(self, name: str) -> System:
        return next(known for known in systems(self.scale) if known.name == name)

    def cell(self, system: str, metric: str) -> Cell | MissingCell:
        """A metric with its interval over seeds and problems; of a single seed over problems alone."""
        what = "rerank" if metric.startswith("rerank") else "evaluate"
        found = self.outcomes(system, metric)
        lacking = {seed: job_name(system, seed, what) for seed in self.seeds if seed not in found}
        missing = {seed: self.reason(name) for seed, name in lacking.items() if name in self.jobs}
        if not found:
            return MissingCell(next(iter(missing.values()), f"{system} is not among the systems that were run"))
        estimate = crossed_mean(np.stack(list(found.values())))
        missing |= {
            seed: f"{self.reason(self._training(system, seed))}; counted as {self.title(source)}"
            for seed in found
            if (source := self.stands_for(system, seed)) != system
        }
        by_seed = {seed: float(values.mean()) for seed, values in found.items()}
        return Cell(by_seed, estimate.mean, *estimate.interval, missing)

    def builds_on(self, system: str) -> list[str]:
        """Systems whose training comes before a system's own; what they sampled was sampled for it, too."""
        found: dict[str, None] = {}
        for name in self._system(system).needs:
            found |= dict.fromkeys([*self.builds_on(name), name])
        return list(found)

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

    def cumulative_curves(self, system: str) -> dict[int, list[dict[str, float]]]:
        """The same at steps that count the attempts sampled for what a system builds on in its seed, too."""
        found: dict[int, list[dict[str, float]]] = {}
        for seed, curve in self.curves(system).items():
            done = [self.done(name, seed, "train") for name in self.builds_on(system)]
            before = sum(job.result["attempts"] for job in done if job is not None)
            found[seed] = [{**point, "step": point["step"] + before} for point in curve]
        return found

    def file(self, system: str, seed: int, what: str, name: str) -> Any:
        """The JSON values in a file that a job left in its folder; `None` without the job's result."""
        job = self.done(system, seed, what)
        return None if job is None else read_json(job.folder / name)
