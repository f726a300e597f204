"""Attempts to look at: those that a run recorded, or new ones of a model."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from ...agents.rollouts.attempts import Attempt, AttemptFile
from ...agents.rollouts.collect import collect
from ...agents.rollouts.conditioned_policy import load_policy
from ...agents.rollouts.slots import make_rollout_env
from ...agents.rollouts.source import fingerprint
from ...agents.training.run_folder import CONFIG
from ...envs.curriculum import Sequential
from ...envs.registration import make_vec_env
from ...envs.token_vector_env import TokenVectorEnv
from ...files import lines, read_json
from ...models.outcome import OutcomeModel, check_probability, saved_kind
from ...models.tokenizers import load_tokenizer
from ...rewards.steps import step_ends
from .attempts import attempt_records
from .content import AttemptRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "validation", "test")
NEW_ATTEMPTS = 64
"""Attempts that a model makes where no number is given."""


@dataclass(frozen=True)
class Wanted:
    """Selection of attempts to look at.

    Attributes:
        count: Number of attempts; `None` for all that were recorded, or 64 new ones.
        verdict: Only attempts that were graded so, such as "correct".
        problem: Only recorded attempts at the problem with this id.
    """

    count: int | None = None
    verdict: str | None = None
    problem: str | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"the number of attempts to show must be at least 1, got {self.count}")

    def choose(self, attempts: Iterable[Attempt]) -> list[Attempt]:
        """The first of the attempts that are wanted."""
        return list(islice(filter(self._fits, attempts), self.count))

    def _fits(self, attempt: Attempt) -> bool:
        return self.verdict in (None, attempt.verdict) and self.problem in (None, attempt.problem.id)

    def __str__(self) -> str:
        limits = {"the verdict": self.verdict, "the problem": self.problem}
        return " and ".join(f"{name} {value!r}" for name, value in limits.items() if value is not None)


def recorded_files(source: str | Path) -> list[Path]:
    """The files of recorded attempts that a source is or holds, those that were written last first; none of a model."""
    path = Path(source)
    return [path] if path.suffix == ".jsonl" else sorted(path.rglob("attempts-*.jsonl"), key=_written, reverse=True)


def gather(
    source: str | Path,
    wanted: Wanted,
    make_spec: Callable[[EnvSpec | None], EnvSpec],
    *,
    orm: str | Path | None = None,
    temperature: float = 1.0,
    num_envs: int = 64,
    seed: int = 0,
) -> list[AttemptRecord]:
    """Attempts of a run, of one of its files, or of a model, for `attempt_panel` and `attempts_page`.

    Args:
        source: A file `attempts-<rank>.jsonl`, a run's folder, of which the collections that were written last come
            first, or a model, which then makes one attempt at each of its environment's first problems. A run that
            recorded no attempts stands for its trained model.
        wanted: Selection of attempts.
        make_spec: Returns the environment, given the one the run or the model was trained on, or `None`.
        orm: Folder of an outcome model that scores every step, or "tokengym/tiny-orm".
        temperature: Sampling temperature of a model; 0 is greedy.
        num_envs: Environment slots of a model.
        seed: Seed of a model's samples.

    Raises:
        ValueError: There is no attempt, none is wanted, nothing says what was attempted, the environment has other
            problems than those that were attempted, or the outcome model is a preference model, whose scores are no
            p(correct).
    """
    if orm is not None:  # before any attempt is made
        kind, _ = saved_kind(orm)
        if kind == "preference":
            check_probability(kind, str(orm), "a score beside each step")
    path = Path(source)
    if files := recorded_files(path):
        if not path.exists():
            raise ValueError(f"{path} is not there")
        run, record = _run_of(path)
        kept = run / "model"
        tokenizer = load_tokenizer(str(kept if kept.exists() else record["model"]))
        with _settings_of(run):
            found = _recorded(run, record, files, make_spec(EnvSpec.from_json(record["env"])), wanted, tokenizer)
    else:
        if wanted.problem is not None:
            raise ValueError(f"{source} holds no recorded attempts, and a problem can only be chosen among such")
        model = path / "model" if (path / CONFIG).exists() and (path / "model").exists() else source
        policy = load_policy(model).with_sampling(temperature=temperature)
        tokenizer = policy.tokenizer
        trained_on = Path(model) / "agent.json"
        spec = EnvSpec.from_json(_remade(Path(model), read_json(trained_on)["env"])) if trained_on.exists() else None
        count = wanted.count or NEW_ATTEMPTS
        with _settings_of(source):
            env = make_rollout_env(make_spec(spec), policy, min(num_envs, count))
        env.curriculum = Sequential()
        # A verdict may be rare: up to as many attempts again for each one that is looked for.
        most = count if wanted.verdict is None else NEW_ATTEMPTS * count
        found = {str(source): wanted.choose(collect(policy, env, min(most, env.size or most), seed=seed))}
    if not any(found.values()):
        raise ValueError(f"{source} has no attempts" + (f" with {wanted}" if str(wanted) else ""))
    judge = None if orm is None else OutcomeModel.load(orm, tokenizer)
    return [
        record
        for system, attempts in found.items()
        for record in attempt_records(system, attempts, tokenizer, judge and _scores(judge, attempts, tokenizer))
    ]


@contextmanager
def _settings_of(source: str | Path) -> Iterator[None]:
    """Adds to an error about a file that is not there what to do if it is a path among the settings of a run."""
    try:
        yield
    except FileNotFoundError as error:
        error.add_note(
            f"relative paths of {source} count from where it was trained: go there, or give --data, --env-args"
        )
        raise


def _written(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, str(path)


def _run_of(path: Path) -> tuple[Path, dict[str, Any]]:
    """The run that a path is or is in, and its configuration."""
    for folder in (path, *path.absolute().parents):
        if (folder / CONFIG).is_file():
            record = read_json(folder / CONFIG)
            if isinstance(record, dict) and {"agent", "model", "env"} <= record.keys():
                _remade(folder, record["env"])
                return folder, record
    raise ValueError(f"{path} is in no run's folder: no {CONFIG} beside it or above says what was attempted")


def _remade(folder: Path, env: str) -> str:
    """The recorded environment of a run or a model, if it can be made again."""
    if not env.startswith("{"):
        raise ValueError(f"{folder} was trained on {env}, which was made by hand: it cannot be made again")
    return env


def _recorded(
    run: Path,
    record: Mapping[str, Any],
    files: list[Path],
    spec: EnvSpec,
    wanted: Wanted,
    tokenizer: "PreTrainedTokenizerBase",
) -> dict[str, list[Attempt]]:
    """The wanted attempts in a run's files, by collection; those of a file are all at problems of one split."""
    found: dict[str, list[Attempt]] = {}
    left, own_split = wanted, make_vec_env(spec, 1, tokenizer=tokenizer).problems.split
    for file in files:
        first = next(lines(file), None)
        if first is None:
            continue
        problem_id = _problem_id(first[2])
        if problem_id is None:
            raise ValueError(f"{file}, line 1 is no attempt: restore the file, or delete that line")
        env = next((env for env in _splits(spec, tokenizer) if _has(env, problem_id)), None)
        if env is None:
            raise ValueError(f"{file}, line 1: no split of {spec.id} has the problem {problem_id!r}")
        # The digests that the run took of what it was trained and validated on.
        digests = {"validation": record.get("validation"), own_split: record.get("data")}
        if digests.get(env.problems.split) not in (None, fingerprint(env.problems)):
            raise ValueError(
                f"the attempts in {file} are at other problems than {env.problems} has now: leave --env-args out, or "
                "give the data and settings that the run was trained with"
            )
        name = run.name if file.parent == run else str(file.absolute().parent.relative_to(run.absolute()))
        chosen = left.choose(AttemptFile(file).read(env))
        found.setdefault(name, []).extend(chosen)
        if left.count is not None:
            if len(chosen) == left.count:
                break
            left = replace(left, count=left.count - len(chosen))
    return found


def _splits(spec: EnvSpec, tokenizer: "PreTrainedTokenizerBase") -> Iterator[TokenVectorEnv]:
    """The environment as the run had it, then at other splits."""
    settings = {"tokenizer": tokenizer}
    yield make_vec_env(spec, 1, **settings)
    for split in SPLITS:
        with suppress(ValueError):
            yield make_vec_env(spec, 1, **settings, split=split)


def _problem_id(line: bytes) -> str | None:
    """The id of the problem that a line of attempts is about; `None` if it is no such line."""
    with suppress(ValueError, KeyError, TypeError):
        problem_id = json.loads(line)["problem_id"]
        return problem_id if isinstance(problem_id, str) else None
    return None


def _has(env: TokenVectorEnv, problem_id: str) -> bool:
    with suppress(ValueError):
        env.problems.find(problem_id)
        return True
    return False


def _scores(
    judge: OutcomeModel, attempts: list[Attempt], tokenizer: "PreTrainedTokenizerBase"
) -> list[NDArray[np.floating]]:
    """p(correct) after each step of each attempt."""
    ends = step_ends([a.completion for a in attempts], [a.terminated for a in attempts], tokenizer)
    positions = [len(attempt.prompt) + steps for attempt, steps in zip(attempts, ends, strict=True)]
    return list(judge.score([attempt.tokens for attempt in attempts], positions))
