"""Makes the built-in model `tokengym/tiny`: a tokenizer, and weights pretrained on generated arithmetic text.

    python scripts/make_tiny_model.py --output FOLDER --device cuda --minutes 5

The text is what the constants below say: equations, word problems with worked solutions in many formats, a part of them
wrong, and some prose. Everything is drawn from `--seed` and the number of tokens; problems come from the train split,
from streams of problems that no environment uses by default. Each checkpoint is a folder for
`tokengym.models.load`.

The committed weights are a checkpoint of the following command, half an hour on one CPU core: the one half-way, after
1,247 steps or 10 million tokens. It leaves more for reinforcement learning to teach than the last.

    OMP_NUM_THREADS=1 python scripts/make_tiny_model.py --output FOLDER --device cpu --steps 2494 \
        --batch-rows 32 --tokens 24000000 --workers 1 --probes 128
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tokengym.envs.problems.arithmetic import Arithmetic
from tokengym.envs.problems.base import ProblemSource
from tokengym.exits import exit_status
from tokengym.models.loading import find_device
from tokengym.models.tokenizers import EOS, PAD, TINY_FOLDER, wrap

# The text. Weights are shares of documents.
DOCUMENTS = {"equations": 0.16, "worked": 0.70, "exact": 0.06, "worksheet": 0.04, "prose": 0.03, "noise": 0.01}
"""worked: a problem and its solution in a format drawn at random; exact: in the format of the environments' prompt and
reference solutions; worksheet: a few of either in a row, all in one format."""
ERROR_RATE = 0.3
"""Share of solutions with one error, which the rest of the solution follows."""
ERRORS = {"result": 0.4, "number": 0.25, "operation": 0.2, "stop": 0.15}
PROBLEMS = (  # weight, steps, max_value
    (0.25, (1, 2), 30),
    (0.35, (1, 3), 100),
    (0.35, (2, 4), 100),
    (0.05, (2, 5), 100),
)
PROBLEM_SEED = 7_000_000
"""First of the seeds of the problem streams, far from those that environments are given."""

# The model: about 1.3 million parameters.
VOCABULARY = 1024
MODEL = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    # What agents take if they are given no learning rate: a rate for billions of parameters would teach so few nothing.
    "recommended_learning_rate": 1e-3,
}

# The training.
ROW = 256
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.95)
CLIP = 1.0
WARMUP = 0.02
FINAL_RATE = 0.05

SHARD_DOCUMENTS = 2048
TOKENIZER_DOCUMENTS = 40_000
SPEED_STEPS = 20
SAVES = (0.5, 1.0)
"""Points in its training at which a model is saved."""
HELD_OUT_SHARD, TOKENIZER_SHARD = -1, -2
HELD_OUT_ROWS = 64
PROBE_ROWS = 512
PROBE_TOKENS = 128

WORD = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
COMPUTE: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
}
STEP = re.compile(r"(?P<before>[^\n]*?)(\d+)([-+*/])(\d+) = <<\d+[-+*/]\d+=(\d+)>>\d+(?P<after>[^\n]*)")


@dataclass(frozen=True, slots=True)
class EquationLine:
    """A line of a solution: the words around an equation, and the equation."""

    before: str
    a: int
    operation: str
    b: int
    result: int
    after: str


def read_steps(solution: str) -> list[EquationLine]:
    """The steps of a reference solution of `Arithmetic(style="word")`."""
    return [
        EquationLine(match["before"], int(match[2]), match[3], int(match[4]), int(match[5]), match["after"])
        for match in STEP.finditer(solution)
    ]


def with_error(steps: list[EquationLine], rng: random.Random) -> list[EquationLine]:
    """The steps with one mistake, which the steps after it follow; the last result differs from the right one."""
    for _ in range(8):
        kind = pick(ERRORS, rng)
        place = rng.randrange(len(steps))
        if kind == "stop":
            wrong = steps[:place] if place else None
        else:
            mistaken = mistake(steps, place, kind, rng)
            wrong = mistaken and follow(steps, place, mistaken)
        if wrong and wrong[-1].result != steps[-1].result:
            return wrong
    return [*steps[:-1], replace(steps[-1], result=steps[-1].result + 1)]


def mistake(steps: list[EquationLine], place: int, kind: str, rng: random.Random) -> EquationLine | None:
    """One step made wrong; `None` where this kind of mistake has no place."""
    step = steps[place]
    if kind == "result":
        slips = [step.result + rng.choice((-10, -2, -1, 1, 2, 10)), step.result + rng.choice((-1, 1))]
        if step.operation == "*":
            slips += [step.result + step.a, step.result - step.b]
        if step.operation in "+-" and step.b >= 10:
            slips.append(COMPUTE[step.operation](step.a, step.b // 10 * 10))
        if 10 <= step.result < 100:
            slips.append(step.result % 10 * 10 + step.result // 10)
        slip = rng.choice(slips)
        return replace(step, result=slip) if slip >= 0 and slip != step.result else None
    if kind == "number":
        others = [number for other in steps for number in (other.a, other.b)]
        number = rng.choice([*others, step.b + 1, max(step.b - 1, 1), max(step.b // 10, 1)])
        changed = replace(step, b=number) if rng.random() < 0.7 else replace(step, a=number)
    else:
        changed = replace(step, operation=rng.choice("+-*/"))
    return recomputed(changed) if changed != step else None


def recomputed(step: EquationLine) -> EquationLine | None:
    """The step with the result of its equation; `None` unless that is a natural number."""
    if step.operation == "-" and step.b > step.a:
        return None
    if step.operation == "/" and (step.b == 0 or step.a % step.b):
        return None
    return replace(step, result=COMPUTE[step.operation](step.a, step.b))


def follow(steps: list[EquationLine], place: int, mistaken: EquationLine) -> list[EquationLine] | None:
    """The steps with the one at `place` replaced and all later ones computed on from it."""
    wrong = [*steps[:place], mistaken]
    changes = {steps[place].result: mistaken.result}
    for step in steps[place + 1 :]:
        new = recomputed(replace(step, a=changes.get(step.a, step.a), b=changes.get(step.b, step.b)))
        if new is None or new.result > 9999:
            return None
        changes[step.result] = new.result
        wrong.append(new)
    return wrong


def pick(weights: dict[str, float], rng: random.Random) -> str:
    """A key, with probability proportional to its weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


# How a problem is written down: {q} question, {s} solution lines, {n} the final answer.
HEADS = (
    "Question: {q}\nSolution: {s}",
    "Question: {q}\nAnswer: {s}",
    "Problem: {q}\nSolution:\n{s}",
    "{q}\n{s}",
    "{q}\n\n{s}",
    "Q: {q}\nA: {s}",
    "Q: {q}\nA:\n{s}",
    "Q: {q}\nA:\n{s}",
    "Exercise. {q} Solution. {s}",
    "Student: {q}\nTeacher: {s}",
)
ENDS = (
    "\nAnswer: {n}",
    "\nThe answer is {n}.",
    " The answer is {n}.",
    " So the answer is {n}.",
    "\n#### {n}",
    "\n= {n}",
    "",
)
SHORT = (
    "Q: {q}\nA: {n}",
    "Q: {q}\nA:\n{n}",
    "{q} {n}",
    "Question: {q}\nAnswer: {n}",
    "{q}\nThe answer is {n}.",
    "{q} The answer is {n}.",
)
EXACT = "Q: {q}\nA:\n{s}\n#### {n}"
EQUATIONS: dict[str, Callable[[EquationLine], str]] = {
    "annotated": lambda s: f"{s.a}{s.operation}{s.b} = <<{s.a}{s.operation}{s.b}={s.result}>>{s.result}",
    "tight": lambda s: f"{s.a}{s.operation}{s.b}={s.result}",
    "half": lambda s: f"{s.a}{s.operation}{s.b} = {s.result}",
    "wide": lambda s: f"{s.a} {s.operation} {s.b} = {s.result}",
    "words": lambda s: f"{s.a} {WORD[s.operation]} {s.b} is {s.result}",
}


def worked(rng: random.Random) -> Callable[[str, list[EquationLine]], str]:
    """A format for problems with solutions, drawn at random: a function of question and steps."""
    if rng.random() < 0.12:
        short = rng.choice(SHORT)
        return lambda question, steps: short.format(q=question, n=steps[-1].result)
    head, end = rng.choice(HEADS), rng.choice(ENDS)
    write = EQUATIONS[rng.choice(list(EQUATIONS))]
    style = rng.choice(("lines", "lines", "lines", "text", "numbered", "bare", "chain"))

    def written(question: str, steps: list[EquationLine]) -> str:
        if style in ("bare", "chain"):
            lines = [write(step) for step in steps]
        elif style == "numbered":
            lines = [f"Step {number}: {write(step)}" for number, step in enumerate(steps, 1)]
        else:
            lines = [step.before + write(step) + step.after for step in steps]
        text = {"text": " ", "chain": ", "}.get(style, "\n").join(lines)
        return head.format(q=question, s=text) + end.format(n=steps[-1].result)

    return written


def exact(question: str, steps: list[EquationLine]) -> str:
    """A problem as environments prompt for it, with its solution as `Arithmetic` writes it."""
    lines = "\n".join(step.before + EQUATIONS["annotated"](step) + step.after for step in steps)
    return EXACT.format(q=question, s=lines, n=steps[-1].result)


def equation_line(rng: random.Random) -> EquationLine:
    """A true equation, of small numbers more often than of large ones."""
    high = rng.choice((10, 20, 100, 100, 100, 1000))
    operation = rng.choice("+-*/")
    a, b = rng.randint(0, high), rng.randint(0, high)
    if operation == "-":
        a, b = max(a, b), min(a, b)
    elif operation in "*/":
        a, b = rng.randint(0, high // 2), rng.randint(1, 12)
        if operation == "/":
            a *= b
    return EquationLine("", a, operation, b, COMPUTE[operation](a, b), "")


WHICH, QUALITIES, NOUNS, VERBS, LINKS = map(
    str.split,
    (
        "the a one two some many all every this that his her",
        "small big old new red blue green good long short first last next warm cold happy",
        "day week month year morning house school shop garden street city river table chair door window road train bus "
        "bike bread milk water tea fruit flower tree dog cat bird fish horse man woman boy girl friend mother father "
        "brother sister teacher student child children people money time number part total rest half price cost hour",
        "sees finds takes likes wants brings makes opens closes needs counts reads keeps shows gives uses",
        "and then but because so when before after while if",
    ),
)


def prose(rng: random.Random, stories: Sequence[ProblemSource]) -> str:
    """A story without its question, or sentences of common words: grammar without arithmetic."""
    if rng.random() < 0.5:
        question = draw_problem(rng, stories)[0]
        return question[: question.rfind(".") + 1] or question
    sentences = []
    for _ in range(rng.randint(2, 6)):
        clauses = [
            f"{rng.choice(WHICH)} {rng.choice(NOUNS)} {rng.choice(VERBS)} "
            f"{rng.choice(WHICH)} {rng.choice(QUALITIES)} {rng.choice(NOUNS)}"
            for _ in range(rng.randint(1, 2))
        ]
        sentence = f" {rng.choice(LINKS)} ".join(clauses)
        sentences.append(sentence[0].upper() + sentence[1:] + rng.choice("...!?"))
    return " ".join(sentences)


def noise(rng: random.Random) -> str:
    """Characters without meaning, of all scripts, so that no byte's embedding stays untrained."""
    length = rng.randint(4, 40)
    kind = rng.random()
    if kind < 0.4:
        return "".join(chr(rng.randint(32, 126)) for _ in range(length))
    if kind < 0.6:
        return " ".join(
            "".join(chr(rng.randint(97, 122)) for _ in range(rng.randint(1, 9))) for _ in range(length // 4)
        )
    ranges = ((0x01, 0x7FF), (0x800, 0xD7FF), (0xE000, 0x10FFFF))
    return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(length))


def draw_problem(rng: random.Random, stories: Sequence[ProblemSource]) -> tuple[str, list[EquationLine]]:
    """A question of the train split and the steps of its right solution."""
    story = rng.choices(stories, [weight for weight, *_ in PROBLEMS])[0]
    problem = story[rng.getrandbits(62)]
    return problem.question, read_steps(problem.solution or "")


def documents(seed: int, shard: int) -> Iterator[tuple[str, str]]:
    """Endless documents of one shard, each with its kind."""
    rng = random.Random(f"{seed}-{shard}")
    stories = [
        Arithmetic("train", seed=PROBLEM_SEED + 100 * seed + number, steps=steps, max_value=max_value)
        for number, (_, steps, max_value) in enumerate(PROBLEMS)
    ]
    chains = Arithmetic("train", seed=PROBLEM_SEED + 100 * seed, style="equation", steps=(1, 4))

    def solved(write: Callable[[str, list[EquationLine]], str]) -> str:
        question, steps = draw_problem(rng, stories)
        return write(question, with_error(steps, rng) if rng.random() < ERROR_RATE else steps)

    def equations() -> str:
        if rng.random() < 0.25:
            chain = [chains[rng.getrandbits(62)] for _ in range(rng.randint(2, 8))]
            return "\n".join(problem.question + problem.answer for problem in chain)
        write = EQUATIONS[rng.choice(list(EQUATIONS))]
        return rng.choice(("\n", "\n", ", ", ". ", " ")).join(
            write(equation_line(rng)) for _ in range(rng.randint(4, 16))
        )

    def worksheet() -> str:
        write = exact if rng.random() < DOCUMENTS["exact"] / DOCUMENTS["worked"] else worked(rng)
        return "\n\n".join(solved(write) for _ in range(rng.randint(2, 3)))

    makers: dict[str, Callable[[], str]] = {
        "equations": equations,
        "worked": lambda: solved(worked(rng)),
        "exact": lambda: solved(exact),
        "worksheet": worksheet,
        "prose": lambda: prose(rng, stories),
        "noise": lambda: noise(rng),
    }
    while True:
        kind = pick(DOCUMENTS, rng)
        yield kind, makers[kind]()


# A newline stands alone and so does every digit; a word or a sign takes the space before it along.
PIECES = r"\n|\p{N}| ?\p{L}+| ?(?:<<|>>|####|[^\s\p{L}\p{N}])|[^\S\n]+(?!\S)|[^\S\n]+"


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `VOCABULARY` tokens trained on `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wrap(tokenizer)


def token_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """Ids of end-of-sequence and pad."""
    vocabulary = tokenizer.get_vocab()
    return vocabulary[EOS], vocabulary[PAD]


def encode_shard(
    seed: int, tokenizer: PreTrainedTokenizerFast, shard: int
) -> tuple[NDArray[np.uint16], dict[str, int]]:
    """The documents of a shard packed into rows `[R, ROW]`, and the number of tokens of each kind of document."""
    kinds, texts = zip(*islice(documents(seed, shard), SHARD_DOCUMENTS), strict=True)
    eos, pad = token_ids(tokenizer)
    encoded = [[*ids, eos] for ids in tokenizer(list(texts))["input_ids"]]
    counts = dict.fromkeys(DOCUMENTS, 0)
    for kind, ids in zip(kinds, encoded, strict=True):
        counts[kind] += len(ids)
    return pack(encoded, pad), counts


def pack(encoded: Sequence[Sequence[int]], pad: int, open_rows: int = 16) -> NDArray[np.uint16]:
    """Whole documents side by side in rows `[R, ROW]`, each row padded at its end; longer documents are left out."""
    full: list[list[int]] = []
    rows: list[list[int]] = [[] for _ in range(open_rows)]
    for ids in encoded:
        if len(ids) > ROW:
            continue
        place = next((place for place, row in enumerate(rows) if len(row) + len(ids) <= ROW), None)
        if place is None:
            place = max(range(open_rows), key=lambda place: len(rows[place]))
            full.append(rows[place])
            rows[place] = []
        rows[place].extend(ids)
    full += [row for row in rows if row]
    packed = np.full((len(full), ROW), pad, dtype=np.uint16)
    for row, ids in zip(packed, full, strict=True):
        row[: len(ids)] = ids
    return packed


def make_corpus(
    seed: int, tokenizer: PreTrainedTokenizerFast, tokens: int, workers: int
) -> tuple[NDArray[np.uint16], dict[str, int]]:
    """Rows `[R, ROW]` of at least `tokens` tokens, and how many tokens come from each kind of document.

    What it returns does not depend on the number of workers.
    """
    shards, total, counts = [], 0, dict.fromkeys(DOCUMENTS, 0)
    # Threads of the parent do not survive a fork, so the workers start afresh.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        first = 0
        while total < tokens:
            # As many shards as are surely needed, then the few that are missing.
            wanted = 1 if not first else math.ceil((tokens - total) / (total / first))
            for rows, counted in pool.map(partial(encode_shard, seed, tokenizer), range(first, first + wanted)):
                shards.append(rows)
                total += sum(counted.values())
                counts = {kind: counts[kind] + number for kind, number in counted.items()}
            first += wanted
    return np.concatenate(shards), counts


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int, device: torch.device) -> Any:
    """A `LlamaForCausalLM` with random weights, which depend on `seed` alone."""
    eos, pad = token_ids(tokenizer)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
        **MODEL,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=None, eos_token_id=eos, pad_token_id=pad)
    return model.to(device)


def batches(rows: int, batch_rows: int, seed: int) -> Iterator[torch.Tensor]:
    """Indices `[batch_rows]` of rows, epoch after epoch in a new order."""
    generator = torch.Generator().manual_seed(seed)
    rest = torch.empty(0, dtype=torch.long)
    while True:
        while len(rest) < batch_rows:
            rest = torch.cat([rest, torch.randperm(rows, generator=generator)])
        yield rest[:batch_rows]
        rest = rest[batch_rows:]


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a fraction of the peak."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return LEARNING_RATE * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return LEARNING_RATE * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress)))


def loss_of(model: Callable[..., Any], rows: torch.Tensor, pad: int) -> torch.Tensor:
    """Mean negative log-likelihood of the next token over the tokens of rows `[B, T]` that are not padding."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten(), ignore_index=pad)


@dataclass(frozen=True, slots=True)
class Run:
    """State that the pretraining runs of one command share."""

    output: Path
    device: torch.device
    batch_rows: int
    compile: bool
    probes: int
    seed: int


def train(run: Run, model: Any, rows: torch.Tensor, pad: int, steps: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Trains `model` on `rows` `[R, ROW]`; yields the number of steps done and the loss after each."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
        ],
        betas=BETAS,
        fused=True,
    )
    forward = torch.compile(model) if run.compile else model
    model.train()
    for step, indices in enumerate(islice(batches(len(rows), run.batch_rows, run.seed), steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        batch = rows[indices.to(rows.device)].to(torch.long)
        with torch.autocast(run.device.type, torch.bfloat16):
            loss = loss_of(forward, batch, pad)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        yield step + 1, loss.detach()


def steps_in(minutes: float, run: Run, rows: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> int:
    """Number of training steps that fit into `minutes`, by timing a few of a model that is thrown away."""
    times = []
    for _, loss in train(run, new_model(tokenizer, run.seed, run.device), rows, token_ids(tokenizer)[1], SPEED_STEPS):
        loss.item()  # waits for the device
        times.append(time.perf_counter())
    seconds = float(np.median(np.diff(times)))
    return max(1, int(minutes * 60 / seconds))


def pretrain(
    run: Run, rows: torch.Tensor, held_out: torch.Tensor, tokenizer: PreTrainedTokenizerFast, steps: int
) -> Any:
    """Trains a new model for `steps` and saves it on the way, in folders named after the number of steps."""
    model = new_model(tokenizer, run.seed, run.device)
    saves = {max(1, round(fraction * steps)) for fraction in SAVES}
    started, losses = time.perf_counter(), []
    for done, loss in train(run, model, rows, token_ids(tokenizer)[1], steps):
        losses.append(loss)
        if done % max(1, steps // 40) == 0 or done == steps:
            mean = torch.stack(losses).mean().item()
            losses.clear()
            passed = time.perf_counter() - started
            speed = done * run.batch_rows * ROW / passed
            print(f"step {done}/{steps}  loss {mean:.4f}  {passed:.0f} s  {speed:,.0f} tokens/s", flush=True)
        if done in saves:
            report = {"steps": done, "of": steps, **probe(run, model, held_out, tokenizer)}
            folder = run.output / f"{steps}-steps" / f"{done}"
            save(model, tokenizer, folder)
            (folder / "report.json").write_text(json.dumps(report, indent=1))
            print(f"{folder}: {report}", flush=True)
            model.train()
    return model


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes a folder that `tokengym.models.load` takes, the weights in bfloat16."""
    half: Any = LlamaForCausalLM(model.config)
    half.to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.generation_config = model.generation_config
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def probe(run: Run, model: Any, held_out: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Results of the model before any fine-tuning.

    Returns:
        loss: on held-out documents; greedy, sampled: share of validation problems of `tokengym/Arithmetic-v0` solved in
        one greedy attempt, or in one at temperature 1; marked: share of the greedy attempts that write "####".
    """
    model.eval()
    with torch.autocast(run.device.type, torch.bfloat16):
        loss = loss_of(model, held_out.to(torch.long), token_ids(tokenizer)[1]).item()
    source = Arithmetic("validation")
    problems = [source[index] for index in range(run.probes)]
    solved = {"greedy": 0, "sampled": 0}
    marked = 0
    for first in range(0, len(problems), PROBE_ROWS):
        chunk = problems[first : first + PROBE_ROWS]
        prompts = [EXACT.partition("{s}")[0].format(q=problem.question) for problem in chunk]
        inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt").to(run.device)
        length = inputs["input_ids"].shape[1]
        for name in solved:
            with torch.random.fork_rng():
                torch.manual_seed(run.seed)
                output = model.generate(**inputs, do_sample=name == "sampled", top_k=0, max_new_tokens=PROBE_TOKENS)
            texts = tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
            solved[name] += sum(source.grade(text, problem).correct for text, problem in zip(texts, chunk, strict=True))
            if name == "greedy":
                marked += sum("####" in text for text in texts)
    shares = {name: number / max(1, len(problems)) for name, number in {**solved, "marked": marked}.items()}
    return {"loss": loss, **shares}


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """A reader of numbers above 0, for options."""

    def number(text: str) -> float:
        if not (value := kind(text)) > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return value

    return number


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoints")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument(
        "--steps", type=positive(int), nargs="+", help="training steps; several numbers make several models"
    )
    length.add_argument(
        "--minutes", type=positive(float), help="as many steps as fit into this time, which are printed"
    )
    parser.add_argument("--device", help="by default a GPU if there is one")
    parser.add_argument("--batch-rows", type=positive(int), default=256, help=f"rows of {ROW} tokens in a step")
    parser.add_argument(
        "--tokens", type=positive(int), default=150_000_000, help="size of the text; it is read again at its end"
    )
    parser.add_argument("--workers", type=positive(int), default=os.cpu_count(), help="processes that write the text")
    parser.add_argument("--probes", type=int, default=512, help="validation problems that each checkpoint is tried on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the model: a minute, then faster on a GPU")
    options = parser.parse_args(arguments)

    device = torch.device(find_device(options.device))  # before the text is written
    options.output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    if (TINY_FOLDER / "tokenizer.json").is_file():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY_FOLDER)
    else:
        texts = documents(options.seed, TOKENIZER_SHARD)
        tokenizer = train_tokenizer(text for kind, text in islice(texts, TOKENIZER_DOCUMENTS) if kind != "noise")
    held_out, _ = encode_shard(options.seed, tokenizer, HELD_OUT_SHARD)
    corpus, counts = make_corpus(options.seed, tokenizer, options.tokens, options.workers)
    total = sum(counts.values())
    shares = ", ".join(f"{kind} {number / total:.1%}" for kind, number in counts.items())
    print(f"{total:,} tokens in {len(corpus):,} rows, {total / corpus.size:.1%} full ({shares})")
    print(f"text written in {time.perf_counter() - started:.0f} s", flush=True)

    run = Run(options.output, device, options.batch_rows, options.compile, options.probes, options.seed)
    rows = torch.from_numpy(corpus.astype(np.int16)).to(device)
    held_out = torch.from_numpy(held_out[:HELD_OUT_ROWS].astype(np.int16)).to(device)
    parameters = new_model(tokenizer, run.seed, device).num_parameters()
    print(f"{parameters:,} parameters, {len(tokenizer)} tokens in the vocabulary")
    for steps in options.steps or [steps_in(options.minutes, run, rows, tokenizer)]:
        print(f"{steps} steps of {run.batch_rows * ROW:,} tokens, {steps * run.batch_rows / len(rows):.1f} epochs")
        pretrain(run, rows, held_out, tokenizer, steps)


if __name__ == "__main__":
    sys.exit(exit_status(main))
