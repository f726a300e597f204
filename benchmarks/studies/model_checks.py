"""Checks that must hold for a model of any type, against passes over one row alone, without cache, mask or padding.

The rows are longer than those of `models.engine.self_check`, whose verdicts are on trial here, and every path is the
one that agents take: `load`, the decoders, `Learner`, critics, outcome models, adapters, what is saved.
"""

import copy
import itertools
import math
import string
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ...agents.configs.optimizer import OptimizerConfig
from ...agents.training.fine_tuning import nll
from ...agents.training.learner import Example, Learner
from ...arrays import IntArray
from ...models.adapters import save_model, with_saved_adapters
from ...models.critics import ActorCritic, make_critic
from ...models.engine.decoder import SlotDecoder
from ...models.engine.row_decoder import RowDecoder
from ...models.engine.sampling import SamplingConfig
from ...models.engine.self_check import decoding
from ...models.layers import trunk, without_adapters
from ...models.loading import load
from ...models.outcome import OutcomeModel, WholeScorer
from ...models.tokenizers import char_tokenizer
from .tiny_architectures import tiny_model

Verdict = Literal["right", "alone", "refused", "WRONG", "CRASH"]
"""Right; right, but computed one row at a time; refused by one clear line; silently wrong; anything else."""

CHECKS = ("decoding", "training", "branch critic", "head critic", "model critic", "outcome model", "LoRA")

VOCABULARY = 60
# Largest difference of log-probabilities, values or logits, in nats, that passes for rounding; wrong ones are off by
# 0.1 and more. Norms of gradients, relative.
_TOLERANCE, _GRADIENT_TOLERANCE = 1e-3, 1e-2
_PACKAGE = Path(__file__).parents[2]


@dataclass(frozen=True)
class CheckResult:
    """Result of one check.

    Attributes:
        verdict: Verdict of the check, see `Verdict`.
        error: Largest difference from the reference; absent if it was not measured.
        why: Message of the refusal, or the fault.
    """

    verdict: Verdict
    error: float | None = None
    why: str = ""


def check(config: PreTrainedConfig) -> dict[str, CheckResult]:
    """Every check of a tiny random model, by the names in `CHECKS`.

    Raises:
        Exception: The type cannot be made, saved or loaded by transformers.
    """
    tokenizer = char_tokenizer((string.ascii_letters + string.digits)[: VOCABULARY - 2])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tiny_model(config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        type(model).from_pretrained(folder)
        checks: Sequence[Callable[[Path], CheckResult]] = (
            _decodes,
            _trains,
            *(partial(_criticizes, kind) for kind in ("branch", "head", "model")),
            _judges,
            _adapts,
        )
        return {name: _verdict(one, folder) for name, one in zip(CHECKS, checks, strict=True)}


def _verdict(one: Callable[[Path], CheckResult], folder: Path) -> CheckResult:
    try:
        return one(folder)
    except Exception as error:
        text = str(error)
        origin = traceback.extract_tb(error.__traceback__)[-1]
        ours = Path(origin.filename).is_relative_to(_PACKAGE) and "site-packages" not in origin.filename
        raised = ours and (origin.line or "").startswith("raise ")  # numpy and torch leave no lines of their own
        if isinstance(error, ValueError) and raised and text and "\n" not in text:
            return CheckResult("refused", why=text.replace(str(folder), "MODEL"))
        return CheckResult("CRASH", why=" ".join(f"{type(error).__name__}: {text}".split())[:300])


def _measured(errors: Iterator[tuple[str, float]], right: Verdict = "right") -> CheckResult:
    """The verdict on differences by what differs; one that is not a number is wrong."""
    largest = 0.0
    for what, error in errors:
        tolerance = _GRADIENT_TOLERANCE if what == "gradients" else _TOLERANCE
        if not error <= tolerance:
            return CheckResult("WRONG", error, f"{what} off by {error:.2g}")
        largest = max(largest, error)
    return CheckResult(right, largest)


def _decodes(folder: Path) -> CheckResult:
    model, _ = load(folder, device="cpu")
    return _measured(_decoding_errors(model, model), "right" if decoding(model) == "slots" else "alone")


def _trains(folder: Path) -> CheckResult:
    model, _ = load(folder, device="cpu")
    return _measured(_training_errors(model, folder / "trained"))


def _criticizes(kind: str, folder: Path) -> CheckResult:
    model, _ = load(folder, device="cpu")
    return _measured(_critic_errors(model, kind))


def _judges(folder: Path) -> CheckResult:
    model, tokenizer = load(folder, device="cpu")
    judge = OutcomeModel.from_causal_lm(model, tokenizer, "orm")
    whole = isinstance(judge.scorer(3), WholeScorer)
    return _measured(_outcome_errors(model, judge, folder / "judge"), "alone" if whole else "right")


def _adapts(folder: Path) -> CheckResult:
    adapted, _ = load(folder, device="cpu", lora_rank=4)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) / math.sqrt(weight.shape[-1]) / 4)
    return _measured(_adapter_errors(adapted, folder))


def _decoding_errors(model: PreTrainedModel, reference: PreTrainedModel) -> Iterator[tuple[str, float]]:
    """Attempts of several lengths after a common beginning, one of which begins anew and one of which leaves."""
    kind = SlotDecoder if decoding(model) == "slots" else RowDecoder
    decoder = kind(model, 3, VOCABULARY)
    if isinstance(decoder, SlotDecoder):
        decoder.shared.worth = 1
    beginning, *rests = _rows(5, 4, 13, 9, 10)
    prompts = [np.append(beginning, rest) for rest in rests]
    rows = dict(enumerate(prompts[:3]))
    decoder.begin(np.arange(3), list(rows.values()), np.arange(3))
    for step in range(12):
        if step == 4:
            rows[1] = prompts[3]
            decoder.finish(np.array([1]))
            decoder.begin(np.array([1]), [rows[1]], np.array([7]))
        if step == 8:
            decoder.finish(np.array([0]))
            decoder.retire(np.array([0]))
        tokens, logprobs = decoder.step(SamplingConfig())
        for slot, token, logprob in zip(decoder.slots.tolist(), tokens.tolist(), logprobs.tolist(), strict=True):
            with torch.no_grad():
                expected = _logprobs(reference, rows[slot])[-1, token].item()
            yield "log-probabilities of sampled tokens", _difference(logprob, expected)
            rows[slot] = np.append(rows[slot], token)


def _examples() -> list[Example]:
    """Two prompts, one of them with three completions."""
    one, other, *ends = _rows(9, 13, 7, 11, 5, 8)
    return [Example(one, end) for end in ends[:3]] + [Example(other, ends[3])]


def _learner(model: PreTrainedModel) -> Learner:
    return Learner(model, OptimizerConfig(learning_rate=1e-3), 1, Accelerator(cpu=True), VOCABULARY)


def _training_errors(model: PreTrainedModel, folder: Path) -> Iterator[tuple[str, float]]:
    """Errors in the learner's outputs, in its gradient, and in what is saved after an update."""
    examples = _examples()
    learner = _learner(model)
    yield from _likelihood_errors(learner, examples, model)
    count = sum(len(example.completion) for example in examples)
    loss = -sum((_completion(model, example).sum() for example in examples), torch.zeros(())) / count
    loss.backward()
    expected = _norm(learner.parameters)
    model.zero_grad()
    before = [parameter.detach().clone() for parameter in learner.parameters]
    metrics = learner.update(examples, partial(nll, denominator=count), 0)
    yield "the loss", _difference(metrics["loss"], loss.item())
    yield "gradients", _difference(metrics["grad_norm"] / expected, 1)
    moved = any(bool((old != new).any()) for old, new in zip(before, learner.parameters, strict=True))
    yield "weights, which did not move,", 0.0 if moved else math.inf
    save_model(model, folder)
    yield "the saved model", _distance(_saved(folder, model), model)


def _critic_errors(policy: PreTrainedModel, kind: str) -> Iterator[tuple[str, float]]:
    actor_critic = ActorCritic(policy, make_critic(kind, policy, 2))
    head = actor_critic.critic.head
    torch.nn.init.normal_(head.weight, std=head.weight.shape[1] ** -0.5, generator=torch.Generator().manual_seed(0))
    rows = _rows(13, 20, 9)
    ids, mask = np.zeros((2, len(rows), 20), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    select = torch.from_numpy(mask).bool()
    _, values = actor_critic(torch.from_numpy(ids), torch.from_numpy(mask), select)
    for row, found in zip(rows, values.split([len(row) for row in rows]), strict=True):
        with torch.no_grad():
            hidden = _last_hidden(policy, row) if kind == "model" else _head_input(policy, row)
            expected = hidden.float() @ head.weight[0] + head.bias
        yield "values", _difference(found, expected)
    values.square().mean().backward()
    trained = [weight.grad for weight in actor_critic.critic.parameters() if weight.grad is not None]
    finite = any(bool(grad.any()) for grad in trained) and all(bool(grad.isfinite().all()) for grad in trained)
    yield "gradients, none of which is finite and other than 0,", 0.0 if finite else math.inf


def _outcome_errors(model: PreTrainedModel, judge: OutcomeModel, folder: Path) -> Iterator[tuple[str, float]]:
    """Scores of whole attempts, of attempts while they grow, and of the model that was saved."""
    rows = _rows(13, 20, 9)
    with torch.no_grad():
        weight = judge.head.weight[0] * 20  # chances far from 1/2 and from one another
        judge.head.weight.copy_(weight[None])
        expected = [(_last_hidden(model, row) @ weight + judge.head.bias).sigmoid() for row in rows]
    found = judge.score(rows, [np.arange(len(row)) for row in rows])
    for one, other in zip(found, expected, strict=True):
        yield "scores of whole attempts", _difference(torch.from_numpy(one), other)
    scorer, slots = judge.scorer(3), np.arange(3)
    scorer.begin(slots, [row[:4] for row in rows])
    for length in (6, 7, 9):
        scores = scorer.score(slots, [row[:length] for row in rows], [np.arange(4, length)] * 3)
        for one, other in zip(scores, expected, strict=True):
            yield "scores of growing attempts", _difference(torch.from_numpy(one), other[4:length])
    judge.save(folder)
    again = OutcomeModel.load(folder, judge.tokenizer, "cpu").score(rows, [np.arange(len(row)) for row in rows])
    for one, other in zip(again, expected, strict=True):
        yield "scores of the saved outcome model", _difference(torch.from_numpy(one), other)


def _adapter_errors(adapted: PreTrainedModel, folder: Path) -> Iterator[tuple[str, float]]:
    """Adapters in training and decoding against the weights that they are merged into, and both as saved."""
    merged = cast(Any, copy.deepcopy(adapted)).merge_and_unload()
    base = _loaded(folder)
    yield "the adapted model, which is that without adapters,", 0.0 if _distance(adapted, base) > 0.05 else math.inf
    learner, examples = _learner(adapted), _examples()
    yield from _likelihood_errors(learner, examples, merged)
    if _can_be_decoded(adapted):
        yield from _decoding_errors(adapted, merged)
    frozen = {name: weight.clone() for name, weight in adapted.named_parameters() if not weight.requires_grad}
    learner.update(examples, partial(nll, denominator=31), 0)
    moved = any(not torch.equal(frozen[name], now) for name, now in adapted.named_parameters() if name in frozen)
    yield "frozen weights", math.inf if moved else 0.0
    save_model(adapted, folder / "adapted")
    yield "the saved merged model", _distance(_saved(folder / "adapted", merged), adapted)
    yield "the saved adapters", _distance(with_saved_adapters(base, folder / "adapted" / "adapter").eval(), adapted)


def _likelihood_errors(
    learner: Learner, examples: Sequence[Example], reference: PreTrainedModel
) -> Iterator[tuple[str, float]]:
    for example, found in zip(examples, learner.logprobs(examples), strict=True):
        with torch.no_grad():
            yield "log-probabilities in training", _difference(torch.from_numpy(found), _completion(reference, example))


def _can_be_decoded(model: PreTrainedModel) -> bool:
    try:
        decoding(model)
    except ValueError:
        return False
    return True


def _loaded(folder: Path) -> PreTrainedModel:
    return load(folder, device="cpu")[0]


def _saved(folder: Path, model: PreTrainedModel) -> PreTrainedModel:
    """A saved model by transformers' own means."""
    return cast(Any, type(without_adapters(model))).from_pretrained(folder).eval()


@torch.no_grad()
def _distance(one: PreTrainedModel, other: PreTrainedModel) -> float:
    (row,) = _rows(17)
    return _difference(_logprobs(one, row), _logprobs(other, row))


def _logprobs(model: PreTrainedModel, row: IntArray) -> Tensor:
    """`[T, V]`, of each next token, by one pass."""
    logits = model(input_ids=torch.from_numpy(row)[None], use_cache=False).logits[0, :, :VOCABULARY]
    return logits.float().log_softmax(-1)


def _completion(model: PreTrainedModel, example: Example) -> Tensor:
    """Log-probabilities `[T]` of a completion's tokens."""
    row, start = np.concatenate([example.prompt, example.completion]).astype(np.int64), len(example.prompt)
    logprobs = _logprobs(model, row)[start - 1 : -1]
    return logprobs.gather(1, torch.from_numpy(row[start:, None]))[:, 0]


def _head_input(model: PreTrainedModel, row: IntArray) -> Tensor:
    """Hidden states `[T, H]` that the output layer reads."""
    heard: list[Tensor] = []
    head = cast(torch.nn.Module, model.get_output_embeddings())
    hook = head.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0][0]))
    try:
        _logprobs(model, row)
    finally:
        hook.remove()
    return heard[0]


def _last_hidden(model: PreTrainedModel, row: IntArray) -> Tensor:
    """Hidden states `[T, H]` that the base model returns."""
    return trunk(model)(input_ids=torch.from_numpy(row)[None], use_cache=False).last_hidden_state[0]


def _norm(parameters: Sequence[torch.nn.Parameter]) -> float:
    return math.sqrt(sum(float(weight.grad.square().sum()) for weight in parameters if weight.grad is not None))


def _difference(found: Tensor | float, expected: Tensor | float) -> float:
    difference = torch.as_tensor(found, dtype=torch.float64) - torch.as_tensor(expected, dtype=torch.float64)
    return difference.detach().abs().max().item()


def _rows(*lengths: int) -> list[IntArray]:
    """Rows of random tokens, without those that configurations know as special."""
    return [np.random.default_rng(i).integers(3, VOCABULARY - 2, n) for i, n in zip(itertools.count(), lengths)]
