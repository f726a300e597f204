"""Value votes: a language model is asked how likely a solution so far is to lead to the right answer.

This is the judge of the tree of thoughts (Yao et al. 2023, arXiv 2305.10601), with the values of its game of 24: every
candidate gets some votes, sure, likely or impossible, worth 20, 1 and 0.001.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from ..arrays import FloatArray, IntArray
from ..envs.problems.base import Problem
from ..envs.problems.prompts import Chat, encode_rendered, render_prompt
from ..envs.token_vector_env import TokenVectorEnv
from ..models.engine.sampling import stream_key
from .rollouts.policy import CausalLMPolicy
from .rollouts.slots import end_ids

VALUES: Mapping[str, float] = {"sure": 20.0, "likely": 1.0, "impossible": 0.001}
"""Worth of a vote (Yao et al. 2023)."""

TEMPLATE = (
    "Question: {question}\n\nA solution so far:\n{solution}\n\nHow likely is it that this solution is on the way to "
    "the right answer? Answer with one word: sure, likely or impossible.\n"
)
"""Question that votes answer, unless another is given."""

_FIELDS = ("{question}", "{solution}")
_WORD = re.compile(rf"\b({'|'.join(VALUES)})\b", re.IGNORECASE)
_ENOUGH = 20
"""Votes after which a model none of whose answers could be read is not asked any more."""


class VoteJudge:
    """Scores solutions by a language model's votes on them: the mean worth of the votes, divided by the largest.

    A vote is the last of the words sure, likely and impossible in an answer; an answer without any is worth 0, and
    counted. Equal solutions are asked about once, and the votes on a solution depend on the seed, the problem and the
    solution's text alone.

    Args:
        policy: Language model that is asked: the one that searches, or another, with a tokenizer of its own.
        env: Token environment of the search, which decodes solutions.
        template: Text of the question with `{question}` and `{solution}` in it, or the settings of a chat whose user's
            turn has them; `None` asks `TEMPLATE`, in a chat if the tokenizer has a chat template.
        votes: Votes on each solution. [Yao et al. 2023]
        temperature: Sampling temperature of the votes. [Yao et al. 2023]
        max_new_tokens: Length limit of an answer in tokens; raise it for a template that asks for reasons first.
        seed: Seed of the votes' random streams.

    Attributes:
        num_tokens: Tokens of questions read and of answers drawn so far.
        newest_tokens: Tokens of the newest call, for each of its completions; 0 where an equal one came before.
        num_votes: Votes so far.
        num_unread: Votes so far that named none of the words.

    Raises:
        ValueError: The template lacks a field, or a number is below 1.
    """

    def __init__(
        self,
        policy: CausalLMPolicy,
        env: TokenVectorEnv,
        template: str | Chat | None = None,
        *,
        votes: int = 3,
        temperature: float = 0.7,
        max_new_tokens: int = 8,
        seed: int = 0,
    ) -> None:
        if template is None:
            template = Chat(user=TEMPLATE) if policy.tokenizer.chat_template else f"{TEMPLATE}Answer:"
        text = template.user if isinstance(template, Chat) else template
        if missing := [name for name in _FIELDS if name not in text]:
            raise ValueError(
                f"the template of votes {text!r} has no {' and no '.join(missing)}: votes need both fields"
            )
        if votes < 1 or max_new_tokens < 1:
            raise ValueError(f"votes and max_new_tokens must be at least 1, got {votes} and {max_new_tokens}")
        self.policy = policy.with_sampling(temperature=temperature)
        self.env, self.template = env, template
        self.votes, self.max_new_tokens, self.seed = votes, max_new_tokens, seed
        self.num_tokens = self.num_votes = self.num_unread = 0
        self.newest_tokens: list[int] = []
        self._ends = {*end_ids(policy), cast(int, policy.tokenizer.eos_token_id)}

    def __call__(
        self, problems: Sequence[Problem], completions: Sequence[IntArray], prompts: Sequence[IntArray]
    ) -> FloatArray:
        """Scores `[C]` in [0, 1] of C completions `[T]` so far, each of a problem.

        Raises:
            ValueError: None of many votes could be read.
        """
        solutions = [(one.id, self.env.decode(tokens)) for one, tokens in zip(problems, completions, strict=True)]
        named = {one.id: one for one in problems}
        distinct = list(dict.fromkeys(solutions))
        answers: list[list[str]] = []
        costs: dict[tuple[str, str], int] = {}
        together = max(1, self.env.num_envs // self.votes)
        for first in range(0, len(distinct), together):
            part = distinct[first : first + together]
            own, tokens = self._answers([(named[name], text) for name, text in part])
            answers += own
            costs |= zip(part, tokens, strict=True)
        self.newest_tokens = [costs.pop(one, 0) for one in solutions]
        self.num_tokens += sum(self.newest_tokens)
        found = [[_WORD.findall(answer) for answer in own] for own in answers]
        self.num_votes += sum(map(len, found))
        self.num_unread += sum(not words for own in found for words in own)
        if self.num_votes == self.num_unread >= _ENOUGH:
            raise ValueError(
                f"none of {self.num_votes} votes names sure, likely or impossible, the last one is "
                f"{answers[-1][-1]!r}: ask a model that follows instructions, or give another template or a larger "
                "max_new_tokens"
            )
        worth = [np.mean([VALUES[words[-1].lower()] if words else 0.0 for words in own]) for own in found]
        scores = dict(zip(distinct, np.array(worth) / max(VALUES.values()), strict=True))
        return np.array([scores[one] for one in solutions])

    def _question(self, problem: Problem, solution: str) -> IntArray:
        """The tokens that ask about a solution."""
        chat, tokenizer = isinstance(self.template, Chat), self.policy.tokenizer
        if isinstance(self.template, Chat):
            template = replace(self.template, user=self.template.user.replace("{solution}", solution))
        else:
            template = self.template.replace("{solution}", solution)
        asked = Problem(problem.id, problem.question, problem.answer)  # without messages of its own
        text = render_prompt(template, asked, (), tokenizer)
        return encode_rendered(text, tokenizer, is_chat=chat)

    def _answers(self, solutions: Sequence[tuple[Problem, str]]) -> tuple[list[list[str]], list[int]]:
        """The answers about each solution of a problem, `votes` of them, and the tokens read and drawn for it."""
        questions = [self._question(problem, text) for problem, text in solutions]
        rows = [(number, vote) for number in range(len(solutions)) for vote in range(self.votes)]
        names = [f"{problem.id}\n{text}" for problem, text in solutions]
        keys = [stream_key(self.seed, names[number], vote) for number, vote in rows]
        decoder = self.policy.decoder(len(rows))
        decoder.begin(np.arange(len(rows)), [questions[number] for number, _ in rows], np.array(keys))
        drawn: list[list[int]] = [[] for _ in rows]
        for length in range(1, self.max_new_tokens + 1):
            tokens, _ = decoder.step(self.policy.sampling)
            ended: list[int] = []
            for slot, token in zip(decoder.slots.tolist(), tokens.tolist(), strict=True):
                drawn[slot].append(token)
                if token in self._ends or length == self.max_new_tokens:
                    ended.append(slot)
            decoder.retire(np.array(ended, np.int64))
            if not len(decoder.slots):
                break
        costs = [len(question) for question in questions]
        for (number, _), tokens in zip(rows, drawn, strict=True):
            costs[number] += len(tokens)
        answers = self.policy.tokenizer.batch_decode(drawn, skip_special_tokens=True)
        return [answers[first : first + self.votes] for first in range(0, len(rows), self.votes)], costs
