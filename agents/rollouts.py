"""Rollouts: attempts at problems, collected by stepping a token environment.

The environment's slots are the decoder's cache slots, so stepping the vector environment is continuous batching: a slot
that ends is handed the next problem or leaves the batch.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ..envs.problems import Problem
from ..envs.token_vector_env import TokenVectorEnv
from ..models.decoding import COMPACT_BELOW
from ..models.sampling import SamplingConfig, stream_key
from .policy import CausalLMPolicy

IntArray = NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt at one problem: tokens, not observations.

    Attributes:
        problem: what was attempted.
        index: how often the problem had been attempted before, in this collection.
        prompt: `[P]` int64 tokens before the first action (a reset's `prefix` included); attempts share the array.
        completion: `[T]` int32 sampled tokens, the end-of-sequence token included.
        logprobs: `[T]` float32 log-probability of each under the distribution it was drawn from.
        rewards: `[T]` float32 reward of each.
        is_success: whether the final answer was correct.
        verdict: why, in one word (see `rewards.Verdict`).
        answer: the final answer, if one was given.
        terminated: whether the attempt ended by itself; otherwise its token budget ran out.
        reward_components: what each part of a reward with parts has paid, by name; empty for others.
    """

    problem: Problem
    index: int
    prompt: NDArray[np.int64]
    completion: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    rewards: NDArray[np.float32]
    is_success: bool
    verdict: str
    answer: str | None
    terminated: bool
    reward_components: dict[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Prompt and completion, `[P + T]`."""
        return np.concatenate([self.prompt, self.completion], dtype=np.int64)

    @property
    def total_reward(self) -> float:
        """The undiscounted return."""
        return float(self.rewards.sum())


def collect(
    policy: CausalLMPolicy,
    env: TokenVectorEnv,
    episodes: int,
    *,
    seed: int,
    start: int = 0,
    on_step: Callable[[int], object] | None = None,
) -> "Rollout":
    """Collects attempts in the order in which the environment's curriculum begins them.

    What attempt number i holds depends on the model, the curriculum and `seed`, not on the number of slots and not on
    `start`: a collection that was cut short goes on with `start` set to the attempts that are there already.

    Args:
        policy: draws the actions.
        env: a token environment with `autoreset_mode` DISABLED.
        episodes: number of the last attempt to collect, plus one.
        seed: of the curriculum and of the attempts' random streams.
        start: number of the first attempt to collect.
        on_step: called with the number of attempts that ended, after each environment step in which some did.

    Returns:
        An iterator over attempts `start` to `episodes - 1`.

    Raises:
        ValueError: when the environment resets finished slots by itself.
    """
    env.seek(seed, start)

    def begin(mask: NDArray[np.bool_], numbers: range) -> IntArray:
        return env.reset(options={"reset_mask": mask})[1]["attempt"][mask]

    return Rollout(policy, env, range(start, episodes), seed, begin, on_step)


def collect_into(
    path: Path | None,
    policy: CausalLMPolicy,
    env: TokenVectorEnv,
    episodes: int,
    *,
    seed: int,
    start: int = 0,
    on_step: Callable[[int], object] | None = None,
) -> Iterator[Attempt]:
    """What `collect` collects, written to an `AttemptFile` as it comes; attempts already there are not sampled again.

    Args:
        path: the file; `None` writes nothing.
        policy: as in `collect`, like all that follow.
        env: with `autoreset_mode` DISABLED.
        episodes: number of the last attempt, plus one.
        seed: of curriculum and random streams.
        start: number of the first attempt.
        on_step: called with the number of attempts that were read or that ended.
    """
    if path is None:
        yield from collect(policy, env, episodes, seed=seed, start=start, on_step=on_step)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    record = AttemptFile(path)
    for attempt in record.read(env):
        if on_step is not None:
            on_step(1)
        yield attempt
    with record:
        for attempt in collect(policy, env, episodes, seed=seed, start=start + record.count, on_step=on_step):
            record.write(attempt)
            yield attempt


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Where an attempt begins that is given its first steps.

    Attributes:
        problem_id: which problem.
        prefix: `[P]` tokens that its completion starts with; they may be none.
    """

    problem_id: str
    prefix: NDArray[np.integer]


def continue_from(
    policy: CausalLMPolicy,
    env: TokenVectorEnv,
    starts: Sequence[Start],
    *,
    seed: int,
    start: int = 0,
    on_step: Callable[[int], object] | None = None,
) -> "Rollout":
    """Collects an attempt from each of `starts`, in their order; `Attempt.prompt` holds the prompt and the prefix.

    Tokens that neighbouring starts share are computed once, so the prefixes of one attempt belong side by side.

    Args:
        policy: draws the actions.
        env: a token environment with `autoreset_mode` DISABLED.
        starts: problems, and what their completions start with.
        seed: of the attempts' random streams; those of one problem differ by their order in `starts`.
        start: number of the first of `starts` to collect an attempt from.
        on_step: called with the number of attempts that ended, after each environment step in which some did.

    Raises:
        ValueError: when the environment resets finished slots by itself, knows no such problem, or a prefix leaves no
            token of its budget.
    """
    env.seek(seed, 0)
    seen: Counter[str] = Counter()
    indices = np.zeros(len(starts), np.int64)
    for number, item in enumerate(starts):
        indices[number] = seen[item.problem_id]
        seen[item.problem_id] += 1

    def begin(mask: NDArray[np.bool_], numbers: range) -> IntArray:
        chosen = [starts[number] for number in numbers]
        problem_ids, prefixes = [item.problem_id for item in chosen], [item.prefix for item in chosen]
        env.reset(options={"reset_mask": mask, "problem_id": problem_ids, "prefix": prefixes})
        return indices[numbers.start : numbers.stop]

    return Rollout(policy, env, range(start, len(starts)), seed, begin, on_step)


class Rollout:
    """An iterator over attempts, in order, that samples as it goes; made by `collect` and `continue_from`.

    Args:
        policy: draws the actions.
        env: a token environment with `autoreset_mode` DISABLED.
        numbers: of the attempts.
        seed: of the attempts' random streams.
        begin: resets the slots of a mask `[N]` to the attempts of some numbers, in order; returns how often the problem
            of each had been attempted before.
        on_step: called with the number of attempts that ended, after each environment step in which some did.
    """

    def __init__(
        self,
        policy: CausalLMPolicy,
        env: TokenVectorEnv,
        numbers: range,
        seed: int,
        begin: Callable[[NDArray[np.bool_], range], IntArray],
        on_step: Callable[[int], object] | None,
    ) -> None:
        if env.metadata["autoreset_mode"] != AutoresetMode.DISABLED:
            raise ValueError("rollouts retire and refill slots themselves: make the env with autoreset_mode='Disabled'")
        self._decoder = policy.rollout_decoder(env)
        self._attempts = self._sample(policy.sampling, env, numbers, seed, begin, on_step)

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens computed so far; those that another slot had computed already do not count."""
        return self._decoder.prefill_tokens

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Attempt:
        return next(self._attempts)

    def _sample(
        self,
        sampling: SamplingConfig,
        env: TokenVectorEnv,
        numbers: range,
        seed: int,
        begin: Callable[[NDArray[np.bool_], range], IntArray],
        on_step: Callable[[int], object] | None,
    ) -> Iterator[Attempt]:
        decoder = self._decoder
        drawn_tokens = np.zeros((env.num_envs, env.max_new_tokens), np.int32)
        drawn_logprobs = np.zeros((env.num_envs, env.max_new_tokens), np.float32)
        rewards = np.zeros((env.num_envs, env.max_new_tokens), np.float32)
        drawn = np.zeros(env.num_envs, np.int64)
        number = np.full(env.num_envs, -1)  # of the attempt in each slot; -1 where none goes on
        index = np.zeros(env.num_envs, np.int64)
        prompts: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * env.num_envs
        actions = np.zeros(env.num_envs, np.int64)
        finished: dict[int, Attempt] = {}
        begun = due = numbers.start
        idle = np.arange(env.num_envs)

        while due < numbers.stop:
            if len(idle) and len(idle) >= (1 - COMPACT_BELOW) * len(decoder.slots):
                slots, retired = np.split(np.sort(idle), [min(len(idle), numbers.stop - begun)])
                decoder.retire(retired[np.isin(retired, decoder.slots)])
                if len(slots):
                    mask = np.zeros(env.num_envs, bool)
                    mask[slots] = True
                    following = range(begun, begun + len(slots))
                    index[slots] = begin(mask, following)
                    number[slots] = following
                    begun = following.stop
                    drawn[slots] = 0
                    keys = np.array([stream_key(seed, env.problem(slot).id, int(index[slot])) for slot in slots])
                    shared = {prompts[slot].tobytes(): prompts[slot] for slot in decoder.slots}
                    for slot in slots:
                        prompt = np.concatenate([env.prompt(slot), env.completion(slot)])
                        prompts[slot] = shared.setdefault(prompt.tobytes(), prompt)
                    decoder.begin(slots, [prompts[slot] for slot in slots], keys)
                idle = np.empty(0, np.int64)
            tokens, logprobs = decoder.step(sampling)
            slots = decoder.slots
            actions[slots] = tokens
            _, step_rewards, terminations, truncations, infos = env.step(actions)
            at = np.minimum(drawn[slots], env.max_new_tokens - 1)
            drawn_tokens[slots, at] = tokens
            drawn_logprobs[slots, at] = logprobs
            rewards[slots, at] = step_rewards[slots]
            drawn[slots] += 1
            ended = slots[(terminations | truncations)[slots] & (number[slots] >= 0)]
            for slot in ended:
                count = drawn[slot]
                finished[int(number[slot])] = Attempt(
                    problem=env.problem(slot),
                    index=int(index[slot]),
                    prompt=prompts[slot],
                    completion=drawn_tokens[slot, :count].copy(),
                    logprobs=drawn_logprobs[slot, :count].copy(),
                    rewards=rewards[slot, :count].copy(),
                    is_success=bool(infos["is_success"][slot]),
                    verdict=infos["verdict"][slot],
                    answer=infos["answer"][slot],
                    terminated=bool(terminations[slot]),
                    reward_components=_components(infos, slot),
                )
            if len(ended):
                number[ended] = -1
                decoder.finish(ended)
                idle = np.concatenate([idle, ended])
                if on_step is not None:
                    on_step(len(ended))
            while due in finished:
                yield finished.pop(due)
                due += 1


def _components(infos: Mapping[str, Any], slot: int) -> dict[str, float]:
    """What each part of the reward has paid an attempt that ended, if the reward has parts."""
    parts = infos.get("reward_components", {})
    return {name: float(paid[slot]) for name, paid in parts.items() if not name.startswith("_")}


class RolloutStatistics:
    """What agents log of the attempts they sample: success, verdicts, lengths, rewards; adds up over ranks."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)

    @property
    def attempts(self) -> int:
        return int(self._sums["attempts"])

    @property
    def tokens(self) -> int:
        """All sampled tokens, end-of-sequence included."""
        return int(self._sums["tokens"])

    def add(self, attempt: Attempt) -> None:
        """Counts an attempt."""
        sums = self._sums
        sums["attempts"] += 1
        sums["tokens"] += len(attempt.completion)
        sums["success_rate"] += attempt.is_success
        sums["truncation_rate"] += not attempt.terminated
        sums["mean_reward"] += attempt.total_reward
        sums[f"verdict/{attempt.verdict}"] += 1
        for name, paid in attempt.reward_components.items():
            sums[f"reward/{name}"] += paid

    def merge(self, other: "RolloutStatistics") -> None:
        """Adds what another process counted."""
        for name, value in other._sums.items():
            self._sums[name] += value

    def metrics(self, seconds: float) -> dict[str, float]:
        """Means over the attempts, by the names they are logged under.

        Args:
            seconds: wall time that the sampling took.
        """
        means = {
            f"rollout/{name}": value / self.attempts
            for name, value in self._sums.items()
            if name not in ("attempts", "tokens")
        }
        return means | {
            "rollout/mean_length": self.tokens / self.attempts,
            "time/rollout_seconds": seconds,
            "time/tokens_per_second": self.tokens / seconds,
        }


class AttemptFile:
    """Attempts as JSON lines, appended as they come.

    As a context manager it holds the file open for `write`; if the file has been read, a line that a killed process
    left unfinished is cut off first.

    Args:
        path: the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        """Attempts that the file holds."""
        self._complete: int | None = None  # bytes of the whole lines, once they have been read

    def read(self, env: TokenVectorEnv) -> Iterator[Attempt]:
        """The attempts in the file, their problems and prompts taken from `env`; log-probabilities are not kept."""
        if not self.path.exists():
            return
        complete = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                complete += len(line)
                record = json.loads(line)
                problem = env.problems.find(record["problem_id"])
                tokens = np.array(record["completion"], np.int32)
                rewards = np.zeros(len(tokens), np.float32)
                rewards[record["rewards"][0]] = record["rewards"][1]
                self.count += 1
                yield Attempt(
                    problem=problem,
                    index=record["index"],
                    prompt=env.encode_prompt(problem),
                    completion=tokens,
                    logprobs=np.full(len(tokens), np.nan, np.float32),
                    rewards=rewards,
                    is_success=record["is_success"],
                    verdict=record["verdict"],
                    answer=record["answer"],
                    terminated=record["terminated"],
                    reward_components=record["reward_components"],
                )
        self._complete = complete

    def __enter__(self) -> Self:
        self._file = self.path.open("a")
        if self._complete is not None:
            self._file.truncate(self._complete)
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def write(self, attempt: Attempt) -> None:
        """Appends one attempt; rewards that are not zero are kept as [positions, values]."""
        paid = np.flatnonzero(attempt.rewards)
        record = {
            "problem_id": attempt.problem.id,
            "index": attempt.index,
            "completion": attempt.completion.tolist(),
            "rewards": [paid.tolist(), attempt.rewards[paid].tolist()],
            "is_success": attempt.is_success,
            "verdict": attempt.verdict,
            "answer": attempt.answer,
            "terminated": attempt.terminated,
            "reward_components": attempt.reward_components,
        }
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self.count += 1
