"""The slot scorer against one forward pass over each whole sequence."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokengym.models import load_tokenizer
from tokengym.models.engine.scorer import SlotScorer, _batches
from tokengym.models.new_model import ARCHITECTURES, new_model
from tokengym.models.outcome import OutcomeModel

TOKENIZER = load_tokenizer("chars:0123456789+=\n")
POSITIONS = 96


def outcome_model(architecture: str) -> OutcomeModel:
    language = new_model(TOKENIZER, architecture, depth=2, width=32, heads=4, positions=POSITIONS, seed=0)
    model = OutcomeModel.from_causal_lm(language, TOKENIZER, "orm")
    with torch.no_grad():
        model.head.weight.mul_(20)
    return model


MODELS = {architecture: outcome_model(architecture) for architecture in ARCHITECTURES}


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> OutcomeModel:
    return MODELS[request.param]


def tokens(rng: np.random.Generator, length: int) -> np.ndarray:
    return rng.integers(0, len(TOKENIZER), length)


class CountingScorer(SlotScorer):
    """Counts the tokens that are run for scores, padding included."""

    run = 0
    passes = 0

    def forward(self, rows, row_index, tokens, positions):
        self.run += tokens.size
        self.passes += 1
        return super().forward(rows, row_index, tokens, positions)


def counting(model: OutcomeModel, num_slots: int) -> CountingScorer:
    return CountingScorer(model.model, model.head, num_slots)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(ARCHITECTURES), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_scores_are_those_of_one_pass_over_the_whole_sequence(architecture: str, num_slots: int, seed: int) -> None:
    model = MODELS[architecture]
    scorer = model.scorer(num_slots)
    rng = np.random.default_rng(seed)
    prompts = [tokens(rng, rng.integers(0, 30)) for _ in range(3)]
    prompts.append(np.concatenate([prompts[0], tokens(rng, 5)]))  # its head is another's prompt
    sequences: list[np.ndarray] = [np.empty(0, np.int64)] * num_slots
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for _ in range(8):
        fresh = np.flatnonzero((rng.random(num_slots) < 0.4) | [len(s) == 0 or len(s) > 60 for s in sequences])
        for slot in fresh:
            sequences[slot] = prompts[rng.integers(len(prompts))].copy()
        if len(fresh):
            scorer.begin(fresh, [sequences[slot] for slot in fresh])
        sequences = [np.append(sequence, tokens(rng, rng.integers(1, 12))) for sequence in sequences]
        slots = np.flatnonzero(rng.random(num_slots) < 0.6)
        if not len(slots):
            continue
        # Positions in no order, of tokens that are new and of some that are not, each perhaps more than once.
        positions = [rng.integers(0, len(sequences[slot]), rng.integers(1, 4)) for slot in slots]
        scores = scorer.score(slots, [sequences[slot] for slot in slots], positions)
        found += zip([sequences[slot] for slot in slots], positions, scores, strict=True)
    right = model.score([sequence for sequence, _, _ in found], [wanted for _, wanted, _ in found])
    for (_, _, scores), expected in zip(found, right, strict=True):
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_every_token_is_run_once(model: OutcomeModel) -> None:
    rng = np.random.default_rng(0)
    prompts = [tokens(rng, 20), tokens(rng, 20)]
    scorer = counting(model, 8)
    scorer.begin(np.arange(8), [prompts[slot // 4] for slot in range(8)])
    assert scorer.run == 0, "nothing is run before a score is asked for"
    sequences = [np.append(prompts[slot // 4], tokens(rng, 10)) for slot in range(8)]
    slots = np.array([0, 1, 6])
    scorer.score(slots, [sequences[slot] for slot in slots], [np.array([29])] * 3)
    assert (scorer.prefill_tokens, scorer.run) == (40, 40 + 30)
    # A slot that begins later with a prompt that is there takes it over, however long ago its own slot was scored.
    scorer.begin(np.array([1]), [prompts[1]])
    sequences[1] = np.append(prompts[1], tokens(rng, 10))
    sequences[6] = np.append(sequences[6], tokens(rng, 10))
    scorer.score(np.array([6, 1]), [sequences[6], sequences[1]], [np.array([34, 39]), np.array([29])])
    assert (scorer.prefill_tokens, scorer.run) == (40, 70 + 20)


def test_slots_with_few_new_tokens_are_not_padded_to_those_with_many(model: OutcomeModel) -> None:
    rng = np.random.default_rng(0)
    lengths = [64, 60] + [4] * 100
    slots = np.arange(len(lengths))
    sequences = [tokens(rng, 1 + length) for length in lengths]
    scorer = counting(model, len(lengths))
    scorer.begin(slots, [sequence[:1] for sequence in sequences])
    positions = [np.array([length]) for length in lengths]
    scores = scorer.score(slots, sequences, positions)
    assert scorer.run <= 102 + 2 * 64 + 100 * 4
    assert scorer.passes == 3
    for found, expected in zip(scores, model.score(sequences, positions), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=7), st.integers(1, 20))
def test_batches_are_the_cheapest_of_all_cuts(counts: list[int], pass_tokens: int) -> None:
    def cost(batches: Sequence[Sequence[int]]) -> int:
        return sum(len(batch) * max(batch) + pass_tokens for batch in batches)

    longest_first = sorted(counts, reverse=True)
    cuts = itertools.chain.from_iterable(itertools.combinations(range(1, len(counts)), k) for k in range(len(counts)))
    cheapest = min(cost([longest_first[a:b] for a, b in itertools.pairwise([0, *cut, len(counts)])]) for cut in cuts)
    batches = [batch.tolist() for batch in _batches(np.array(counts), pass_tokens)]
    assert sorted(itertools.chain.from_iterable(batches)) == list(range(len(counts)))
    assert cost([[counts[i] for i in batch] for batch in batches]) == cheapest


def test_prompts_are_remembered_as_they_were(model: OutcomeModel) -> None:
    """An environment hands out views of a buffer that the slot's next prompt overwrites."""
    rng = np.random.default_rng(0)
    buffer, other = tokens(rng, 20), tokens(rng, 20)
    sequence = np.append(buffer, tokens(rng, 5))
    scorer = model.scorer(1)
    scorer.begin(np.zeros(1, np.int64), [buffer])
    buffer[:] = other
    (found,) = scorer.score(np.zeros(1, np.int64), [sequence], [np.array([24])])
    np.testing.assert_allclose(found, model.score([sequence], [np.array([24])])[0], atol=1e-5)


def test_the_models_last_position_is_scored_and_what_is_beyond_is_an_error(model: OutcomeModel) -> None:
    rng = np.random.default_rng(0)
    sequences: Sequence[np.ndarray] = [tokens(rng, POSITIONS), tokens(rng, 40)]
    scorer = model.scorer(2)
    slots = np.arange(2)
    scorer.begin(slots, [sequences[0][:90], sequences[1][:1]])
    # The first row has 6 new tokens from position 90 on, and padding beyond the model's positions.
    positions = [np.array([POSITIONS - 1]), np.array([39])]
    scores = scorer.score(slots, sequences, positions)
    for found, expected in zip(scores, model.score(sequences, positions), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ValueError, match="a sequence of 97 tokens is longer than the model's 96 positions"):
        scorer.score(slots[:1], [np.append(sequences[0], 0)], [np.array([POSITIONS])])
    with pytest.raises(ValueError, match="a sequence of 100 tokens is longer than the model's 96 positions"):
        scorer.begin(slots[:1], [np.zeros(100, np.int64)])
