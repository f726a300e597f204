"""Pools: attempts that an earlier run sampled, to learn from without sampling."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from ...envs.token_vector_env import TokenVectorEnv
from .attempts import Attempt, AttemptFile

# So many correct attempts of a pool's file are graded again: in another tokenizer's words they would not be correct. So
# are as many wrong ones: a right one among them would make pairs of two right attempts.
_CHECKED = 10
_UNSURE = ("timeout", "crashed")
"""Verdicts that depend on the machine."""


def pool_files(path: str) -> list[Path]:
    """The files of training attempts at a path: a file itself, or those in the folder of a run, round by round.

    Raises:
        FileNotFoundError: There is nothing at that path.
        ValueError: The folder holds no attempts.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"there is no pool {path!r}: no such file or folder as {place.absolute()}")
    if place.is_file():
        return [place]
    found = (file for file in place.rglob("attempts-*.jsonl") if file.parent.name != "validation")
    files = sorted(found, key=lambda file: _by_number(file.relative_to(place)))
    if not files:
        raise ValueError(
            f"the folder {path!r} holds no attempts-*.jsonl: a pool is a file of attempts, or a run's folder"
        )
    return files


def _by_number(path: Path) -> list[tuple[str, int]]:
    """A key that sorts paths by name, and numbers in their names by value: `round-2` is before `round-10`."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", str(path))]


def read_pool(path: str, env: TokenVectorEnv, problems: int | None, samples: int | None) -> dict[str, list[Attempt]]:
    """A pool's attempts by problem.

    Args:
        path: File of attempts, or the folder of a run.
        env: Token environment of the attempts' problems.
        problems: Largest number of problems, the first ones in the pool; `None` reads all.
        samples: Largest number of attempts at each problem; `None` reads all.

    Raises:
        FileNotFoundError: There is nothing at that path.
        ValueError: The pool is empty, or has other problems or another tokenizer; the message names the file.
    """
    groups: dict[str, list[Attempt]] = {}
    for attempt in itertools.chain.from_iterable(_read(file, env) for file in pool_files(path)):
        group = groups.get(attempt.problem.id)
        if group is None:
            if problems is not None and len(groups) == problems:
                continue
            group = groups[attempt.problem.id] = []
        if samples is None or len(group) < samples:
            group.append(attempt)
    if not groups:
        raise ValueError(f"the pool {path!r} holds no attempts")
    return groups


def _read(path: Path, env: TokenVectorEnv) -> Iterator[Attempt]:
    """Attempts in a file, which must be at this environment's problems and in its tokens."""
    doubtful = {True: _CHECKED, False: _CHECKED}
    try:
        for attempt in AttemptFile(path).read(env):
            if attempt.terminated and doubtful[attempt.is_success]:
                doubtful[attempt.is_success] -= 1
                is_right = env.problems.grade(env.decode(attempt.completion), attempt.problem).correct
                if attempt.is_success and not is_right:
                    raise ValueError(f"the attempt at {attempt.problem.id!r} reads otherwise by the policy's tokenizer")
                if is_right and not attempt.is_success and attempt.verdict not in _UNSURE:
                    raise ValueError(
                        f"attempt {attempt.number} at {attempt.problem.id!r} is right, and recorded as wrong: a pool "
                        "needs the verdicts of this environment's grader"
                    )
            yield attempt
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is no pool of this policy's attempts at these problems: {error}") from error
