"""Corrections of attempts: repeated steps go, right ones stay, and the rest is the reference's or a proposer's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...arrays import IntArray
from ...envs.problems.base import Problem
from ...envs.token_vector_env import TokenVectorEnv
from ...rewards.grading import solutions
from ...rewards.steps import newline_tokens, step_ends, step_texts
from ..rollouts.attempts import Attempt
from ..rollouts.collect import Start, continue_from
from ..rollouts.policy import CausalLMPolicy
from .outcome_labels import check_steps


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """The right beginning of an attempt, without repetitions.

    Attributes:
        attempt: Attempt that is corrected.
        steps: Texts of the steps that stay.
        tokens: `[P]` tokens of these steps; those of the attempt, of whole lines.
        is_whole: True if the attempt is right, and so needs no other end.
    """

    attempt: Attempt
    steps: list[str]
    tokens: IntArray
    is_whole: bool


def make_drafts(attempts: Sequence[Attempt], env: TokenVectorEnv, exact: bool) -> list[Draft]:
    """Removes repeated steps from attempts, and all from the first wrong step of each on.

    Args:
        attempts: Attempts at problems of `env`.
        env: Token environment whose reward is a centered `JudgedReward`.
        exact: Find wrong steps by `ProblemSource.check_steps`; else they are those that the judge scored below 0.5.
    """
    ends = step_ends([a.completion for a in attempts], [a.terminated for a in attempts], env.tokenizer)
    continues = bool(newline_tokens(env.tokenizer).any())  # else an attempt is a single line
    return [_draft(attempt, own.tolist(), env, exact, continues) for attempt, own in zip(attempts, ends, strict=True)]


def _draft(attempt: Attempt, ends: Sequence[int], env: TokenVectorEnv, exact: bool, continues: bool) -> Draft:
    tokens, encoder = attempt.completion.astype(np.int64), env.encoder
    texts = step_texts(tokens, ends, env.tokenizer)
    keys = list(map(solutions.exact_text, texts))
    fresh = [i for i, key in enumerate(keys) if key not in keys[:i]]
    if exact:
        right = check_steps([texts[i] for i in fresh], attempt.problem, env)
    else:
        right = [float(attempt.rewards[ends[i]]) >= 0 for i in fresh]
    kept = fresh[: right.index(False)] if False in right else fresh
    is_whole = attempt.is_success and kept == fresh
    if not is_whole:  # the answer comes last
        answer = next((i for i, step in enumerate(kept) if env.is_answer(texts[step])), len(kept))
        kept = kept[:answer] if continues else []
    starts = [0, *(end + 1 for end in ends)]
    parts = [tokens[starts[i] : ends[i] + 1] for i in kept]
    steps = [texts[i] for i in kept]
    if kept and not is_whole and attempt.terminated and ends[kept[-1]] == len(tokens) - 1:
        parts[-1] = encoder.encode(steps[-1] + "\n")  # no end-of-sequence in the middle
    found = np.concatenate([np.empty(0, np.int64), *parts])
    if _lines(env.decode(found)) != _lines("\n".join(steps)):
        # A token that spans lines was cut off with a step that goes.
        found = encoder.encode("\n".join(steps) + "\n" * (not is_whole))
    return Draft(attempt, steps, _ended(found, env) if is_whole else found, is_whole)


def _lines(text: str) -> list[str]:
    """The lines of a text that are not blank, stripped."""
    return list(filter(None, map(str.strip, text.split("\n"))))


def _ended(tokens: IntArray, env: TokenVectorEnv) -> IntArray:
    """The tokens with an end-of-sequence at their end."""
    done = len(tokens) > 0 and env.encoder.is_eos[tokens[-1]]
    return tokens if done else np.append(tokens, env.encoder.eos_token_id)


def rest_of_reference(problem: Problem, steps: Sequence[str], env: TokenVectorEnv) -> str:
    """The lines of the problem's solution after the last one that the steps have reached, in order.

    A step reaches a line of the same text, or else of the same equation, or else of the same result.

    Raises:
        ValueError: The problem has no solution.
    """
    if problem.solution is None:
        raise ValueError(
            f"ares corrects attempts by reference solutions, and problem {problem.id!r} has none: give a proposer"
        )
    lines, place = problem.solution.split("\n"), 0
    for step in steps:
        for read in (solutions.exact_text, solutions.equation, solutions.result):
            wanted = read(step)
            same = (
                i
                for i in range(place, len(lines))
                if wanted is not None
                and read(lines[i]) == wanted
                and not (env.is_answer(lines[i]) or lines[i].strip() == problem.answer)
            )
            if (found := next(same, None)) is not None:
                place = found + 1
                break
    return "\n".join(lines[place:])


def by_reference(begun: Draft, env: TokenVectorEnv) -> list[IntArray]:
    """A draft completed by the reference solution, and that solution alone: `[T]` tokens, end-of-sequence last."""
    problem, kept, encoder = begun.attempt.problem, begun.tokens, env.encoder
    rest = rest_of_reference(problem, begun.steps, env)
    whole = encoder.encode(env.decode(kept) + rest)  # words are split as in solutions, where that keeps the draft
    if len(whole) < len(kept) or (whole[: len(kept)] != kept).any():
        whole = np.concatenate([kept, encoder.encode(rest)])
    return [np.append(whole, encoder.eos_token_id), env.encode_solution(problem)]


def by_proposer(
    drafts: Sequence[Draft], env: TokenVectorEnv, proposer: CausalLMPolicy, samples: int, seed: int
) -> list[list[IntArray]]:
    """Drafts completed by a proposer: `samples` completions of each, or none where it leaves no room for any.

    Args:
        drafts: Drafts to complete.
        env: Token environment with `autoreset_mode` DISABLED.
        proposer: Policy that draws the continuations.
        samples: Continuations of each draft.
        seed: Seed of the continuations' random streams.
    """
    fit = [one for one in drafts if _fits(one.tokens, env)]
    starts = [Start(one.attempt.problem.id, one.tokens) for one in fit for _ in range(samples)]
    found = iter(continue_from(proposer, env, starts, seed=seed)) if starts else iter(())
    completed: list[list[IntArray]] = []
    for one in drafts:
        own = [next(found) for _ in range(samples if _fits(one.tokens, env) else 0)]
        completed.append(
            [
                _ended(np.concatenate([one.tokens, proposal.completion], dtype=np.int64), env)
                for proposal in own
                if proposal.terminated
            ]
        )
    return completed


def _fits(prefix: IntArray, env: TokenVectorEnv) -> bool:
    try:
        env.encoder.encode_prefix(prefix, env.max_new_tokens)
    except ValueError:
        return False
    return True


def is_right(problem: Problem, completion: IntArray, env: TokenVectorEnv, exact: bool) -> bool:
    """True for a completion within the token limit that the grader accepts and, if `exact`, without a wrong step."""
    if len(completion) > env.max_new_tokens:
        return False
    text = env.decode(completion)
    if not env.problems.grade(text, problem).correct:
        return False
    return not exact or all(check_steps(_lines(text), problem, env))
