"""Rollouts: attempts at problems, collected by stepping a token environment.

The environment's slots are the decoder's cache slots, so stepping the vector environment is continuous batching: a slot
that ends is handed the next problem or leaves the batch.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ...arrays import IntArray
from ...envs.token_vector_env import TokenVectorEnv
from ...models.engine.decoder import COMPACT_BELOW
from ...models.engine.sampling import SamplingConfig, stream_key
from ...models.engine.vllm_decoder import VLLMDecoder
from .attempts import Attempt, AttemptFile, RecordedAttempts
from .policy import CausalLMPolicy
from .running import RunningAttempts

PATIENCE = 64
"""Steps that an attempt waits for its verdict while others go on. [choice]"""


def collect(
    policy: CausalLMPolicy,
    env: TokenVectorEnv,
    episodes: int,
    *,
    seed: int,
    start: int = 0,
    on_step: Callable[[int], object] | None = None,
    record_kept: bool = False,
) -> "Rollout":
    """Collects attempts in the order in which the environment's curriculum begins them.

    What attempt number i holds depends on the model, the curriculum and `seed`, not on the number of slots and not on
    `start`: a collection that was cut short continues with `start` set to the attempts that are there already.

    Args:
        policy: Policy that draws the actions.
        env: Token environment with `autoreset_mode` DISABLED.
        episodes: Number of the last attempt to collect, plus one.
        seed: Seed of the curriculum and of the attempts' random streams.
        start: Number of the first attempt to collect.
        on_step: Function that is called with the number of attempts that have just ended, after each environment step
            in which some did.
        record_kept: Fill `Attempt.kept`, what top-k, top-p or min-p sampling leaves to choose from at each token.

    Returns:
        An iterator over attempts `start` to `episodes - 1`.

    Raises:
        ValueError: The environment resets finished slots by itself, or vLLM, which does not say what it kept, samples.
    """
    env.seek(seed, start)

    def begin(mask: NDArray[np.bool_], numbers: range) -> IntArray:
        return env.reset(options={"reset_mask": mask})[1]["attempt"][mask]

    return Rollout(policy, env, range(start, episodes), seed, begin, on_step, record_kept)


def collect_into(
    folder: Path | None,
    policy: CausalLMPolicy,
    env: TokenVectorEnv,
    numbers: range,
    *,
    seed: int,
    rank: int = 0,
    on_step: Callable[[int], object] | None = None,
) -> Iterator[Attempt]:
    """Collects as `collect`, and writes to a folder as attempts end; attempts already there are not sampled again.

    Attempts are known by their numbers, so another number of processes than wrote them can continue the collection.

    Args:
        folder: Folder where each process has its `attempts-<rank>.jsonl`; `None` writes nothing.
        policy: Policy that draws the actions.
        env: Token environment with `autoreset_mode` DISABLED.
        numbers: Numbers of the attempts, without gaps; those of different processes must not overlap.
        seed: Seed of the curriculum and of the attempts' random streams.
        rank: Rank of this process.
        on_step: Function that is called with the number of attempts that have just been read or have just ended.
    """
    if folder is None:
        yield from collect(policy, env, numbers.stop, seed=seed, start=numbers.start, on_step=on_step)
        return
    recorded = RecordedAttempts(folder, numbers, env)
    for known, part in recorded.parts():
        if known:
            for attempt in recorded.read(part):
                if on_step is not None:
                    on_step(1)
                yield attempt
            continue
        with AttemptFile(folder / f"attempts-{rank}.jsonl") as file:
            for attempt in collect(policy, env, part.stop, seed=seed, start=part.start, on_step=on_step):
                file.write(attempt)
                yield attempt


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Start of an attempt that is given its first steps.

    Attributes:
        problem_id: Id of the problem.
        prefix: `[P]` tokens that the completion starts with; P may be 0.
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
        policy: Policy that draws the actions.
        env: Token environment with `autoreset_mode` DISABLED.
        starts: Problems, and the tokens that their completions start with.
        seed: Seed of the attempts' random streams; those of one problem differ by their order in `starts`.
        start: Number of the first of `starts` to collect an attempt from.
        on_step: Function that is called with the number of attempts that have just ended, after each environment step
            in which some did.

    Raises:
        ValueError: The environment resets finished slots by itself, has no such problem, or a prefix leaves no token of
            its budget.
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
        policy: Policy that draws the actions.
        env: Token environment with `autoreset_mode` DISABLED.
        numbers: Numbers of the attempts.
        seed: Seed of the attempts' random streams.
        begin: Function that resets the slots of a mask `[N]` to the attempts with some numbers, in order, and returns
            how often the problem of each had been attempted before.
        on_step: Function that is called with the number of attempts that have just ended, after each environment step
            in which some did.
        record_kept: Fill `Attempt.kept`.
    """

    def __init__(
        self,
        policy: CausalLMPolicy,
        env: TokenVectorEnv,
        numbers: range,
        seed: int,
        begin: Callable[[NDArray[np.bool_], range], IntArray],
        on_step: Callable[[int], object] | None,
        record_kept: bool = False,
    ) -> None:
        if env.metadata["autoreset_mode"] != AutoresetMode.DISABLED:
            raise ValueError("rollouts retire and refill slots themselves: make the env with autoreset_mode='Disabled'")
        self._decoder = policy.rollout_decoder(env)
        if record_kept:
            if isinstance(self._decoder, VLLMDecoder):
                raise ValueError("vLLM does not say which tokens it kept: sample by the built-in decoder")
            self._decoder.records_kept = True
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
        decoder, running = self._decoder, RunningAttempts(env)
        actions = np.zeros(env.num_envs, np.int64)
        finished: dict[int, Attempt] = {}
        begun = due = numbers.start
        waiting = np.zeros(env.num_envs, bool)  # ended, but for a verdict
        idle = np.arange(env.num_envs)

        while due < numbers.stop:
            waits = decoder.slots[waiting[decoder.slots]] if waiting.any() else decoder.slots[:0]
            if len(waits) + len(idle) >= max(1, (1 - COMPACT_BELOW) * len(decoder.slots)):
                decoder.retire(waits)
                slots, retired = np.split(np.sort(idle), [min(len(idle), numbers.stop - begun)])
                decoder.retire(retired[np.isin(retired, decoder.slots)])
                if len(slots):
                    following = range(begun, begun + len(slots))
                    mask = np.zeros(env.num_envs, bool)
                    mask[slots] = True
                    running.begin(slots, following, begin(mask, following), decoder.slots)
                    keys = [stream_key(seed, env.problem(slot).id, int(running.index[slot])) for slot in slots]
                    decoder.begin(slots, [running.prompts[slot] for slot in slots], np.array(keys))
                    begun = following.stop
                idle = np.empty(0, np.int64)
            slots = decoder.slots
            if len(slots):
                tokens, logprobs = decoder.step(sampling)
                choices = None if decoder.kept is None else decoder.kept.rows()
                if waiting.any():
                    runs = ~waiting[slots]
                    slots, tokens, logprobs = slots[runs], tokens[runs], logprobs[runs]
                    choices = None if choices is None else [*itertools.compress(choices, runs)]
                actions[slots] = tokens
                running.append(slots, tokens, logprobs)
                if choices is not None:
                    running.record_kept(slots, choices)
            _, rewards, terminations, truncations, infos = env.step_on(actions, PATIENCE)
            running.pay(rewards)
            ended = running.ended(terminations | truncations)
            for slot in ended.tolist():
                attempt = running.finish(slot, bool(terminations[slot]), infos)
                finished[attempt.number] = attempt
            if len(ended):
                decoder.finish(ended[~waiting[ended]])
                idle = np.concatenate([idle, ended])
                if on_step is not None:
                    on_step(len(ended))
            before, waiting = waiting, env.awaits_verdict
            if waiting.any():
                decoder.finish(np.flatnonzero(waiting & ~before))
            while due in finished:
                yield finished.pop(due)
                due += 1
