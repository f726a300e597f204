"""Scores of whole attempts, by which the best of a pool is chosen: outcome models, or a policy's own probabilities."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...arrays import FloatArray, IntArray
from ...models.forward import default_micro_batch_tokens
from ...models.outcome import OutcomeModel
from ...models.packing import attention_window, plan_rows, takes_shared_prompts
from ...models.pessimism import comparison_covariance, lower_bounds
from ...models.positions import check_length
from ...models.vocabulary import num_token_ids
from ...rewards.steps import step_ends
from ..configs.search import Aggregate
from ..rollouts.attempts import Attempt
from ..training.learner import Example, batch_logprobs, collate


class Reranker(Protocol):
    """Scores attempts."""

    def __call__(self, attempts: Sequence[Attempt]) -> FloatArray:
        """Scores `[A]` of A attempts; those of attempts at one problem are compared."""
        ...


@runtime_checkable
class VotingReranker(Reranker, Protocol):
    """Scores attempts, and weighs their votes by the scores."""

    def weights(self, scores: FloatArray) -> FloatArray:
        """Weights `[A]` of the votes of A attempts at one problem with these scores, none below 0."""
        ...


@runtime_checkable
class ModelReranker(Reranker, Protocol):
    """Scores attempts by models that read their tokens."""

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises `ValueError` unless the models have the tokenizer of the attempts."""
        ...


class OutcomeScore:
    """Score of an attempt by an outcome model; probabilities weigh votes as they are (Uesato et al. 2022).

    Scores of a preference model are no probabilities but sigmoids of rewards: the rewards' exponentials weigh, the
    strengths of the Bradley-Terry model that it was fitted as.

    Args:
        model: Outcome model.
        aggregate: Score of an attempt by those of its steps; see `score_attempts`.
    """

    def __init__(self, model: OutcomeModel, aggregate: Aggregate | None = None) -> None:
        self.model = model
        self.aggregate: Aggregate | None = aggregate

    def __call__(self, attempts: Sequence[Attempt]) -> FloatArray:
        return score_attempts(self.model, attempts, self.aggregate)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model.check_tokenizer(tokenizer)

    def weights(self, scores: FloatArray) -> FloatArray:
        return _exponentials(_log_odds(scores)) if self.model.kind == "preference" else scores


class MeanLogprob:
    """Mean log-probability of an attempt's tokens under a policy, at temperature 1 and without truncation.

    Votes weigh as much as the geometric mean of the tokens' probabilities, its exponential (Wang et al. 2023).

    Args:
        model: Policy's model, in evaluation mode.
        tokenizer: Tokenizer of the model and of the attempts.
        micro_batch_tokens: Tokens in one forward pass, padding included; by default what suits the device.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, micro_batch_tokens: int | None = None
    ) -> None:
        self.model, self.tokenizer, self.micro_batch_tokens = model, tokenizer, micro_batch_tokens

    def __call__(self, attempts: Sequence[Attempt]) -> FloatArray:
        found = attempt_logprobs(self.model, attempts, num_token_ids(self.tokenizer), self.micro_batch_tokens)
        return np.array([values.mean(dtype=np.float64) for values in found])

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        _check_tokenizer(self.tokenizer, tokenizer)

    def weights(self, scores: FloatArray) -> FloatArray:
        return np.exp(scores)


class OutcomeAndLikelihood:
    """Log-odds of an outcome model plus a multiple of the mean log-probability of an attempt's tokens.

    An outcome model of any kind judges what it has learned to see; a language model that has read many solutions adds
    how usual an attempt is. Exponentials of the sums weigh votes.

    Args:
        outcome: Score of an attempt by an outcome model.
        likelihood: Mean log-probability of an attempt's tokens under a language model.
        coef: Factor of the mean log-probability; 0 ranks by the outcome model alone.
    """

    def __init__(self, outcome: OutcomeScore, likelihood: MeanLogprob, coef: float = 15.0) -> None:
        self.outcome, self.likelihood, self.coef = outcome, likelihood, coef

    def __call__(self, attempts: Sequence[Attempt]) -> FloatArray:
        return _log_odds(self.outcome(attempts)) + self.coef * self.likelihood(attempts)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.outcome.check_tokenizer(tokenizer)
        self.likelihood.check_tokenizer(tokenizer)

    def weights(self, scores: FloatArray) -> FloatArray:
        return _exponentials(scores)


def _log_odds(scores: FloatArray) -> FloatArray:
    """Log-odds of scores between 0 and 1, finite at the ends too."""
    inside = np.clip(scores, 1e-12, 1 - 1e-12)
    return np.log(inside) - np.log1p(-inside)


def _exponentials(scores: FloatArray) -> FloatArray:
    """Exponentials up to a factor, the greatest 1."""
    return np.exp(scores - scores.max())


class ImplicitReward:
    """The reward that a policy trained by DPO is optimal for, log(pi / pi_ref) of an attempt (Rafailov et al. 2023).

    The factor beta and the constant of each prompt are left out: neither changes an order of attempts at one problem.

    Args:
        model: Model that DPO trained, in evaluation mode.
        reference: Model that was DPO's reference, the one that training began with.
        tokenizer: Tokenizer of both models and of the attempts.
        micro_batch_tokens: Tokens in one forward pass, padding included; by default what suits the device.

    Raises:
        ValueError: Both models have the same weights, so that all scores would be 0.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reference: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        micro_batch_tokens: int | None = None,
    ) -> None:
        weights, others = model.state_dict(), reference.state_dict()
        if weights.keys() == others.keys() and all(
            weight.shape == others[name].shape and torch.equal(weight, others[name].to(weight))
            for name, weight in weights.items()
        ):
            raise ValueError(
                f"the policy {model.name_or_path!r} and the reference {reference.name_or_path!r} have the same "
                "weights, so every implicit reward is 0: DPO keeps its start where no round improves on it"
            )
        self.model, self.reference = model, reference
        self.tokenizer, self.micro_batch_tokens = tokenizer, micro_batch_tokens

    def __call__(self, attempts: Sequence[Attempt]) -> FloatArray:
        ours, theirs = (
            attempt_logprobs(model, attempts, num_token_ids(self.tokenizer), self.micro_batch_tokens)
            for model in (self.model, self.reference)
        )
        return np.array([(a - b).sum(dtype=np.float64) for a, b in zip(ours, theirs, strict=True)])

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        _check_tokenizer(self.tokenizer, tokenizer)


class LowerBound:
    """The least reward that the comparisons of an outcome model's training leave possible (`models.pessimism`).

    An attempt's features are the hidden state that the head reads at its last token, less the mean of the attempts that
    it is compared with; the fitted weights are those of the head.

    Args:
        model: Outcome model of whole attempts: an ORM, a SORM or a preference model.
        learned_from: Attempts that the model was trained on, by problem.
        radius: Radius of the ellipsoid of possible weights; 0 ranks by the plain reward.

    Raises:
        ValueError: The model judges single steps, or no problem has both a right and a wrong attempt.
    """

    def __init__(self, model: OutcomeModel, learned_from: Mapping[str, Sequence[Attempt]], radius: float = 1.0) -> None:
        if model.aggregate != "last":
            raise ValueError("a lower bound is of the reward of whole attempts, and this model judges single steps")
        self.model, self.radius = model, radius
        groups = (
            (model.features([one.tokens for one in group]), np.array([one.is_success for one in group]))
            for group in learned_from.values()
        )
        self.covariance, pairs = comparison_covariance(groups)
        self.ridge = 1 / pairs

    def __call__(self, attempts: Sequence[Attempt]) -> FloatArray:
        features = self.model.features([attempt.tokens for attempt in attempts])
        weights = self.model.head.weight[0].detach().double().cpu().numpy()
        return lower_bounds(features - features.mean(0), weights, self.covariance, self.ridge, self.radius)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model.check_tokenizer(tokenizer)


def _check_tokenizer(own: PreTrainedTokenizerBase, attempts: PreTrainedTokenizerBase) -> None:
    if own is not attempts and own.get_vocab() != attempts.get_vocab():
        raise ValueError(
            f"the model that reranks has another tokenizer, {own.name_or_path!r} of {len(own)} tokens, than the "
            f"attempts, {attempts.name_or_path!r} of {len(attempts)}: give a model of the same one"
        )


AGGREGATES: dict[Aggregate, Callable[[FloatArray], float]] = {
    "last": lambda scores: float(scores[-1]),
    "min": lambda scores: float(scores.min()),
    "product": lambda scores: float(scores.prod()),
}
"""Scores of an attempt by those of its steps."""


def score_attempts(model: OutcomeModel, attempts: Sequence[Attempt], aggregate: Aggregate | None = None) -> FloatArray:
    """Scores of whole attempts by an outcome model, `[A]`.

    Args:
        model: Outcome model.
        attempts: Attempts of the model's tokens.
        aggregate: Score of an attempt: that after its last token, or the least or the product of those at
            `judged_ends`; `None` is the model's own, `OutcomeModel.aggregate`.
    """
    return score_completions(model, [a.prompt for a in attempts], [a.completion for a in attempts], aggregate)


def score_completions(
    model: OutcomeModel,
    prompts: Sequence[NDArray[np.integer]],
    completions: Sequence[NDArray[np.integer]],
    aggregate: Aggregate | None = None,
) -> FloatArray:
    """Scores of completions so far, `[C]`; see `score_attempts`.

    Args:
        model: Outcome model.
        prompts: Prompt of each completion.
        completions: Tokens `[T]` of each completion; T may be 0, and then the prompt's last token is read.
        aggregate: Score of a completion, as in `score_attempts`.
    """
    aggregate = aggregate or model.aggregate
    if aggregate == "last":
        found = [np.array([len(completion) - 1]) for completion in completions]
    else:
        found = judged_ends(model, completions)
    positions = [len(prompt) + ends for prompt, ends in zip(prompts, found, strict=True)]
    sequences = [np.concatenate(pair).astype(np.int64) for pair in zip(prompts, completions, strict=True)]
    return np.array([AGGREGATES[aggregate](scores) for scores in model.score(sequences, positions)])


def judged_ends(model: OutcomeModel, completions: Sequence[NDArray[np.integer]]) -> list[IntArray]:
    """Positions `[S]` in completions after which an outcome model judges them: the ends of steps and the last token.

    A model of single steps has learned nothing of a last token that ends none, such as an end-of-sequence on a line of
    its own; it judges that only where there is no step.
    """
    found: list[IntArray] = []
    for ends, completion in zip(
        step_ends(completions, [True] * len(completions), model.tokenizer), completions, strict=True
    ):
        found.append(ends if model.kind == "prm" and len(ends) else np.union1d(ends, [len(completion) - 1]))
    return found


@torch.inference_mode()
def attempt_logprobs(
    model: PreTrainedModel, attempts: Sequence[Attempt], vocab_size: int, micro_batch_tokens: int | None = None
) -> list[NDArray[np.float32]]:
    """Log-probabilities `[T]` of the tokens of each attempt's completion, at temperature 1.

    Args:
        model: Language model.
        attempts: Attempts, those at one problem in any order; they share a pass over its prompt.
        vocab_size: Vocabulary size of the tokenizer; logits beyond it are dropped before the softmax.
        micro_batch_tokens: Tokens in one forward pass, padding included; by default what suits the device.

    Raises:
        ValueError: An attempt is longer than the model's positions.
    """
    examples = [Example(attempt.prompt, attempt.completion) for attempt in attempts]
    if not examples:
        return []
    config, longest = model.config.get_text_config(), max(map(len, examples))
    check_length(config, longest)
    groups = plan_rows(
        [example.prompt for example in examples],
        [len(example.completion) for example in examples],
        micro_batch_tokens or default_micro_batch_tokens(model.device),
        config.hidden_size,
        share=takes_shared_prompts(model) and longest <= attention_window(model),
    )
    found = [np.empty(0, np.float32)] * len(examples)
    for rows in groups:
        batch = collate(examples, rows, model.device)
        values = batch_logprobs(model, model, batch, vocab_size)[0][batch.action_mask].float().cpu().numpy()
        numbers = batch.rows.tolist()
        ends = np.cumsum([len(examples[number].completion) for number in numbers])[:-1]
        for number, part in zip(numbers, np.split(values, ends), strict=True):
            found[number] = part
    return found
