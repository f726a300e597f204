"""Settings of outcome models: ORM and SORM."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...settings import Count, FinitePositive
from .optimizer import FineTuneConfig


@dataclass(frozen=True)
class OutcomeModelConfig(FineTuneConfig):
    """Settings that all agents which train an outcome model share.

    Attributes:
        problems: Number of problems that attempts are sampled at, the first of the split; `None` uses all, or 256
            where they never end.
        samples_per_problem: Attempts at each problem. [choice]
        temperature: Sampling temperature of the attempts, that of the samples which the source
            reranks. [Havrilla et al. 2024]
        pool: Attempts to learn from instead of sampling, a file or the folder of a run: the first `samples_per_problem`
            at each of the first `problems` problems.
        base: Model that the outcome model starts from, a language model or an outcome model trained before, such as
            "tokengym/tiny-orm"; `None` uses the policy.
        epochs: Passes over the training data. [choice]
        validation_problems: Held-out problems that the report covers, the first of the validation split. [choice]
    """

    renamed: ClassVar[Mapping[str, str]] = {"start_from": "base"}

    problems: Count | None = None
    samples_per_problem: Count = 16
    temperature: FinitePositive = 0.7
    pool: str | None = None
    base: str | None = None
    epochs: Count = 2
    validation_problems: Count = 200


@dataclass(frozen=True)
class ORMConfig(OutcomeModelConfig):
    """Settings of `ORM`; how Havrilla et al. 2024 trained theirs is not known.

    Attributes:
        balance: Train on as many correct as incorrect attempts at each problem, drawn at random, so that the model
            learns which attempts are right and not which problems are hard. [choice]
    """

    balance: bool = True


@dataclass(frozen=True)
class SORMConfig(ORMConfig):
    """Settings of `SORM`.

    Attributes:
        samples_per_problem: Attempts at each problem, each of whose prefixes is continued. [choice]
        rollouts_per_step: Continuations that are sampled from the end of each step. [Havrilla et al. 2024, GLoRe]
        consistent: Count a continuation only if it uses the results of its prefix, as far as equations show it (GLoRe,
            Havrilla et al. 2024).
        balance: Train on as many positive as negative labels at each number of steps, drawn at
            random. [Havrilla et al. 2024, GLoRe]
        compare: Outcome model to report on beside this one, on the same held-out attempts and labels.
    """

    renamed: ClassVar[Mapping[str, str]] = {**ORMConfig.renamed, "continuations": "rollouts_per_step"}

    samples_per_problem: Count = 4
    rollouts_per_step: Count = 8
    consistent: bool = False
    compare: str | None = None
