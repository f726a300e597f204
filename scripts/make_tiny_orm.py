"""Makes the built-in outcome model `tokengym/tiny-orm`: the built-in model, trained to judge generated solutions.

    OMP_NUM_THREADS=1 python scripts/make_tiny_orm.py --output FOLDER

A document is a word problem as the environments prompt for it and a solution, half of them with mistakes: of the kinds
that `make_tiny_model.py` draws, and of those that small models make, above all a wrong digit. Such models also write
other names than the question's, in right solutions as in wrong ones, so these documents do, too. The end of each step
is labeled with whether all steps so far are right, and the end of the solution with whether its answer is. Losses are
the labels' cross-entropy and, at everything that is right, that of the next token. Problems come from the train split,
from streams that no environment uses by default. The folder is one for `OutcomeModel.load`; the committed weights are
what the command above wrote, an hour and a half on one CPU core.
"""

import argparse
import copy
import json
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from make_tiny_model import (
    BETAS,
    CLIP,
    EQUATIONS,
    EXACT,
    LEARNING_RATE,
    PROBLEM_SEED,
    PROBLEMS,
    WEIGHT_DECAY,
    EquationLine,
    draw_problem,
    follow,
    learning_rate,
    positive,
    recomputed,
    token_ids,
    with_error,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from tokengym.envs.problems.arithmetic import NAMES, Arithmetic
from tokengym.envs.problems.base import ProblemSource
from tokengym.exits import exit_status
from tokengym.models import OutcomeModel, load

WRONG = 0.5
"""Share of solutions with a mistake."""
MORE_MISTAKES = 0.3
"""Share of these that get another one."""
DIGITS = 0.7
"""Share of mistakes that are a wrong digit, more often of a result than of a term, as in attempts of small models."""
RESULTS = 0.65
"""Share of wrong digits that are a result's."""
SKIPPED = 0.1
"""Share of mistakes that are a step left out."""
RENAMED = 0.9
"""Share of solutions with other names than the question's, each time another."""
COMMUTED = 0.1
"""Share of sums and products whose terms change places, which is no mistake."""
STREAM = 7
"""Number of the streams of problems, which are not those of the built-in model's text."""
DOCUMENTS = 64
"""Documents in a step of training."""
ROWS = 16
"""Documents of like length that pass through the model together."""
PEAK = 2e-3
"""Highest learning rate."""
RECOMMENDED = 1e-4
"""Rate at which outcome models that begin as this one are trained; at ten times as much they forget what it knows."""
NAME = re.compile("|".join(rf"\b{name}\b" for name, *_ in NAMES))


@dataclass(frozen=True, slots=True)
class JudgedSolution:
    """A document.

    Attributes:
        tokens: Its T tokens, prompt, solution and end-of-sequence.
        labels: After each token 1 if all is right so far, 0 if it is not, and -1 where nothing is judged.
        right: Whether the text up to and with each token is right, so that it can be learned from.
    """

    tokens: list[int]
    labels: list[int]
    right: list[bool]


def commuted(step: EquationLine, rng: random.Random) -> EquationLine:
    """The step, now and then with the terms of its sum or product in the other order."""
    if step.operation in "+*" and rng.random() < COMMUTED:
        return replace(step, a=step.b, b=step.a)
    return step


def first_mistake(steps: Sequence[EquationLine], reference: Sequence[EquationLine]) -> int:
    """Number of steps before the first that is not the reference's; a solution without mistakes has all of them."""
    for place, (step, right) in enumerate(zip(steps, reference, strict=False)):
        if (step.a, step.operation, step.b, step.result) != (right.a, right.operation, right.b, right.result):
            return place
    return min(len(steps), len(reference))


def slip(number: int, rng: random.Random) -> int:
    """The number with one digit changed, now and then with one left out or one too many."""
    digits = list(str(number))
    place, kind = rng.randrange(len(digits)), rng.random()
    digits[place : place + 1] = [
        *(digits[place] if kind < 0.1 else ""), *("" if 0.1 <= kind < 0.2 else str(rng.randrange(10)))
    ]  # fmt: skip
    return int("".join(digits) or "0")


def with_mistake(steps: Sequence[EquationLine], rng: random.Random) -> list[EquationLine]:
    """The steps with one mistake, which the steps after it follow; the last result differs from the right one."""
    for _ in range(8):
        kind, place = rng.random(), rng.randrange(len(steps))
        step = steps[place]
        if kind < DIGITS:
            if rng.random() < RESULTS:
                mistaken = replace(step, result=slip(step.result, rng))
            else:
                term = rng.choice(("a", "b"))
                mistaken = recomputed(replace(step, **{term: slip(getattr(step, term), rng)}))
            wrong = mistaken and follow(list(steps), place, mistaken)
        elif kind < DIGITS + SKIPPED and len(steps) > 1:
            # What comes after goes on from the number that the step would have begun with.
            wrong = follow(list(steps), place, replace(step, result=step.a))
            wrong = wrong and [*wrong[:place], *wrong[place + 1 :]]
        else:
            wrong = with_error(list(steps), rng)
        if wrong and wrong[-1].result != steps[-1].result:
            return wrong
    return with_error(list(steps), rng)


def renamed(text: str, rng: random.Random) -> str:
    """The text with each name replaced by one drawn anew."""
    return NAME.sub(lambda _: rng.choice(NAMES)[0], text)


def judged(question: str, reference: list[EquationLine], rng: random.Random, tokenizer: Any) -> JudgedSolution:
    """A document of a solution of a problem, or of one with mistakes."""
    reference = [commuted(step, rng) for step in reference]
    steps = reference
    if rng.random() < WRONG:
        steps = with_mistake(steps, rng)
        if rng.random() < MORE_MISTAKES:
            steps = with_mistake(steps, rng)
    good = first_mistake(steps, reference)
    if rng.random() < RENAMED:
        steps = [replace(step, before=renamed(step.before, rng), after=renamed(step.after, rng)) for step in steps]
    encode = lambda text: tokenizer(text)["input_ids"]  # noqa: E731
    tokens = encode(EXACT.partition("{s}")[0].format(q=question))
    labels, right = [-1] * len(tokens), [True] * len(tokens)
    for place, step in enumerate(steps):
        line = encode(f"{step.before}{EQUATIONS['annotated'](step)}{step.after}\n")
        tokens += line
        labels += [*[-1] * (len(line) - 1), int(place < good)]
        right += [place < good] * len(line)
    end = [*encode(f"#### {steps[-1].result}"), token_ids(tokenizer)[0]]
    is_success = steps[-1].result == reference[-1].result
    tokens += end
    labels += [*[-1] * (len(end) - 1), int(is_success)]
    right += [good == len(steps) == len(reference)] * len(end)
    return JudgedSolution(tokens, labels, right)


def documents(seed: int, tokenizer: Any) -> Iterator[JudgedSolution]:
    """Endless documents."""
    rng = random.Random(f"judged-{seed}")
    stories: list[ProblemSource] = [
        Arithmetic("train", seed=PROBLEM_SEED + 100 * STREAM + number, steps=steps, max_value=max_value)
        for number, (_, steps, max_value) in enumerate(PROBLEMS)
    ]
    while True:
        yield judged(*draw_problem(rng, stories), rng, tokenizer)


def collate(group: Sequence[JudgedSolution], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens `[B, T]`, labels `[B, T]` and what is right `[B, T]` of documents, padded."""
    width = max(len(document.tokens) for document in group)
    tokens, labels = torch.full((len(group), width), pad), torch.full((len(group), width), -1)
    right = torch.zeros(len(group), width, dtype=torch.bool)
    for row, document in enumerate(group):
        length = len(document.tokens)
        tokens[row, :length] = torch.tensor(document.tokens)
        labels[row, :length] = torch.tensor(document.labels)
        right[row, :length] = torch.tensor(document.right)
    return tokens, labels, right


def train(judge: OutcomeModel, output: nn.Module, steps: int, seed: int) -> Iterator[dict[str, float]]:
    """Trains an outcome model and the language model on its trunk; yields the mean losses of each step.

    Args:
        judge: Outcome model.
        output: Layer from its hidden states to logits of the next token.
        steps: Number of steps.
        seed: Seed of the documents.
    """
    model, pad = judge.model.train(), token_ids(cast(Any, judge.tokenizer))[1]
    parameters = list({id(p): p for part in (model, output) for p in part.parameters()}.values())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=BETAS,
        fused=True,
    )
    source = documents(seed, judge.tokenizer)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps) * PEAK / LEARNING_RATE
        chosen = sorted((next(source) for _ in range(DOCUMENTS)), key=lambda document: len(document.tokens))
        batches = [collate(chosen[first : first + ROWS], pad) for first in range(0, DOCUMENTS, ROWS)]
        judgments = sum(int((labels >= 0).sum()) for _, labels, _ in batches)
        learned = sum(int(right[:, 1:].sum()) for *_, right in batches)
        losses = {"judged": 0.0, "next_token": 0.0}
        for tokens, labels, right in batches:
            hidden = model.base_model(input_ids=tokens, attention_mask=(tokens != pad).long()).last_hidden_state
            known = labels >= 0
            own = functional.binary_cross_entropy_with_logits(
                judge.head(hidden[known])[:, 0], labels[known].float(), reduction="sum"
            )
            text = functional.cross_entropy(
                output(hidden[:, :-1][right[:, 1:]]), tokens[:, 1:][right[:, 1:]], reduction="sum"
            )
            (own / judgments + text / learned).backward()
            losses["judged"] += own.item() / judgments
            losses["next_token"] += text.item() / learned
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        yield losses


def untrained(seed: int) -> tuple[OutcomeModel, nn.Module]:
    """The built-in model with a new head, and the layer that it predicts tokens by."""
    model, tokenizer = load("tokengym/tiny", device="cpu")
    judge = OutcomeModel.from_causal_lm(model, cast(PreTrainedTokenizerBase, tokenizer), "orm", seed)
    judge.model.config.recommended_learning_rate = RECOMMENDED
    output = nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)
    output.weight = judge.model.get_input_embeddings().weight  # tied, as in the language model
    return judge, output


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the outcome model")
    parser.add_argument(
        "--steps", type=positive(int), default=4000, help=f"training steps, of {DOCUMENTS} documents each"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)  # before the work whose results it is for
    judge, output = untrained(options.seed)
    started, seen = time.perf_counter(), list[dict[str, float]]()
    for losses in train(judge, output, options.steps, options.seed):
        seen.append(losses)
        if len(seen) % max(1, options.steps // 25) == 0 or len(seen) == options.steps:
            last = seen[-max(1, options.steps // 25) :]
            means = {name: round(sum(one[name] for one in last) / len(last), 4) for name in losses}
            print(json.dumps({"step": len(seen), **means, "s": round(time.perf_counter() - started)}), flush=True)
            half = copy.deepcopy(judge.model).to(torch.bfloat16).eval()
            OutcomeModel(half, judge.tokenizer, judge.kind).save(options.output)


if __name__ == "__main__":
    sys.exit(exit_status(main))
