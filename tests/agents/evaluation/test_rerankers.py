"""Rerankers by a policy's probabilities: against log-softmax over whole sequences, one at a time."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from tokengym.__main__ import main
from tokengym.agents.evaluation.evaluate import evaluate
from tokengym.agents.evaluation.rerankers import (
    ImplicitReward,
    LowerBound,
    MeanLogprob,
    OutcomeAndLikelihood,
    OutcomeScore,
    score_attempts,
)
from tokengym.agents.rollouts.attempts import Attempt
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.agents.search import OutcomeJudge, SearchConfig
from tokengym.envs import Problem
from tokengym.models import OutcomeModel, load_tokenizer


def attempts(count: int, vocabulary: int) -> list[Attempt]:
    """Attempts of unequal lengths at three problems in turns."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, vocabulary, length) for length in (3, 6, 4)]
    empty = np.empty(0)
    return [
        Attempt(
            Problem(f"p{i % 3}", "", ""), i, prompts[i % 3], rng.integers(0, vocabulary, 1 + i % 5), empty, empty,
            False, "wrong", None, True,
        )
        for i in range(count)
    ]  # fmt: skip


def by_hand(model: Any, attempt: Attempt, vocabulary: int) -> torch.Tensor:
    ids = torch.tensor([[*attempt.prompt.tolist(), *attempt.completion.tolist()]])
    with torch.no_grad():
        scores = model(ids).logits[0, :-1, :vocabulary].double().log_softmax(-1)
    return scores.gather(-1, ids[0, 1:, None])[len(attempt.prompt) - 1 :, 0]


@pytest.fixture(scope="module")
def models(make_model) -> list[Any]:
    return [make_model(seed=seed).eval() for seed in (1, 2)]


@pytest.mark.parametrize("budget", [8, 40, 10_000])
def test_scores_are_log_probabilities_of_completions_alone(models, tokenizer, budget: int) -> None:
    pool, (model, reference) = attempts(11, len(tokenizer)), models
    expected = [by_hand(model, one, len(tokenizer)) for one in pool]
    found = MeanLogprob(model, tokenizer, budget)(pool)
    np.testing.assert_allclose(found, [float(values.mean()) for values in expected], atol=1e-4)
    others = [by_hand(reference, one, len(tokenizer)) for one in pool]
    ratios = [float(ours.sum() - theirs.sum()) for ours, theirs in zip(expected, others, strict=True)]
    np.testing.assert_allclose(ImplicitReward(model, reference, tokenizer, budget)(pool), ratios, atol=1e-4)
    assert np.ptp(ratios) > 0.1
    assert MeanLogprob(model, tokenizer)([]).shape == (0,)


def test_step_scores_are_combined_as_their_names_say(make_model) -> None:
    """Against the model's scores at the ends of lines found by hand; a blank line is no step."""
    lines = load_tokenizer("chars:ab\n?")
    ids = {"eos_token_id": lines.eos_token_id, "pad_token_id": lines.pad_token_id}
    model = OutcomeModel.from_causal_lm(make_model(seed=3, vocab_size=len(lines), **ids), lines, "sorm", seed=3)
    empty = np.empty(0)
    texts = {"ab\nb\na": [2, 4, 6], "b\n\na": [1, 4], "a": [1], "": [0]}  # the end of sequence follows
    prompt = np.array(lines.encode("a?", add_special_tokens=False))
    for text, ends in texts.items():
        completion = np.array([*lines.encode(text, add_special_tokens=False), lines.eos_token_id])
        one = Attempt(Problem("p", "", ""), 0, prompt, completion, empty, empty, False, "", None, True)
        sequence = np.concatenate([prompt, completion])
        (scores,) = model.score([sequence], [np.array(ends) + len(prompt)])
        for name, value in {"last": scores[-1], "min": scores.min(), "product": scores.prod()}.items():
            assert score_attempts(model, [one], name).tolist() == pytest.approx([value], abs=1e-6)
            assert OutcomeJudge(model, name)([one.problem], [completion], [prompt]) == pytest.approx([value], abs=1e-6)
    prm = OutcomeModel(model.model, lines, "prm")  # of an end of sequence on its own line it has learned nothing
    for text, ends in {"ab\nb\n": [2, 4], "ab\nb": [2, 4], "\n": [1]}.items():
        completion = np.array([*lines.encode(text, add_special_tokens=False), lines.eos_token_id])
        (scores,) = model.score([np.concatenate([prompt, completion])], [np.array(ends) + len(prompt)])
        assert OutcomeJudge(prm)([one.problem], [completion], [prompt]) == pytest.approx([scores.prod()], abs=1e-6)
    bare = OutcomeJudge(model, "product")([one.problem], [np.empty(0, np.int64)], [prompt])
    assert bare == pytest.approx(model.score([prompt], [np.array([1])])[0], abs=1e-6)
    with pytest.raises(ValueError, match="needs p\\(correct\\), which 'min' of step scores is not"):
        SearchConfig("resample", aggregate="min")


def test_a_lower_bound_is_the_reward_less_what_comparisons_leave_open(make_model) -> None:
    """Radius 0 is the order of the outcome model itself; a wide one prefers what was compared."""
    lines = load_tokenizer("chars:ab\n?")
    ids = {"eos_token_id": lines.eos_token_id, "pad_token_id": lines.pad_token_id}
    model = OutcomeModel.from_causal_lm(make_model(seed=3, vocab_size=len(lines), **ids), lines, "orm", seed=3)
    prompt, empty = np.array(lines.encode("a?", add_special_tokens=False)), np.empty(0)

    def made(text: str, is_success: bool) -> Attempt:
        tokens = np.array([*lines.encode(text, add_special_tokens=False), lines.eos_token_id])
        return Attempt(Problem("p", "", ""), 0, prompt, tokens, empty, empty, is_success, "", None, True)

    attempts = [made(text, text.startswith("a")) for text in ("ab", "b", "abb", "bab", "a", "bbb")]
    features = model.features([one.tokens for one in attempts], micro_batch_tokens=12)
    with torch.no_grad():
        for one, found in zip(attempts, features, strict=True):
            hidden = model.model.base_model(torch.from_numpy(one.tokens)[None]).last_hidden_state[0, -1]
            np.testing.assert_allclose(found, hidden.numpy(), atol=1e-6)
    scores = score_attempts(model, attempts)
    plain = LowerBound(model, {"p": attempts}, radius=0.0)(attempts)
    logits = np.log(scores / (1 - scores))
    np.testing.assert_allclose(plain, logits - logits.mean(), atol=1e-5)
    bound = LowerBound(model, {"p": attempts[:4], "q": attempts[4:]}, radius=2.0)
    assert bound.ridge == 1 / 5
    x = features - features.mean(0)
    inverse = np.linalg.inv(bound.covariance + np.eye(len(x[0])) / 5)
    np.testing.assert_allclose(bound(attempts), plain - 2 * np.sqrt(np.einsum("ai,ij,aj->a", x, inverse, x)), atol=1e-5)
    with pytest.raises(ValueError, match=r"no problem with both a right and a wrong attempt.* give the attempts that"):
        LowerBound(model, {"p": attempts[:1]})
    model.kind = "prm"
    with pytest.raises(ValueError, match="judges single steps"):
        LowerBound(model, {"p": attempts})


def test_votes_weigh_as_probabilities_do(models, tokenizer) -> None:
    likely = MeanLogprob(models[0], tokenizer)
    np.testing.assert_allclose(likely.weights(np.log([0.5, 0.25])), [0.5, 0.25])
    preferred = OutcomeScore(OutcomeModel.from_causal_lm(models[0], tokenizer, "preference"))
    rewards = np.array([1.0, 3.0, -2.0])
    weights = preferred.weights(1 / (1 + np.exp(-rewards)))  # scores are sigmoids of rewards
    np.testing.assert_allclose(weights, np.exp(rewards - 3.0))
    np.testing.assert_allclose(preferred.weights(np.array([1.0, 0.5])), [1.0, 0.0], atol=1e-9)
    probable = OutcomeScore(OutcomeModel.from_causal_lm(models[0], tokenizer, "orm"))
    np.testing.assert_array_equal(probable.weights(np.array([0.9, 0.1])), [0.9, 0.1])


@pytest.mark.parametrize("kind", ["orm", "preference", "prm"])
def test_log_odds_and_likelihood_add_up(models, tokenizer, kind) -> None:
    model, pool = OutcomeModel.from_causal_lm(models[0], tokenizer, kind, seed=2), attempts(9, len(tokenizer))
    likely = MeanLogprob(models[1], tokenizer)
    scores = score_attempts(model, pool)
    both = OutcomeAndLikelihood(OutcomeScore(model), likely, 3.0)
    np.testing.assert_allclose(both(pool), np.log(scores / (1 - scores)) + 3 * likely(pool), rtol=1e-6)
    np.testing.assert_allclose(both.weights(np.array([800.0, 799.0])), [1.0, np.exp(-1.0)])


def test_a_policy_that_is_its_reference_scores_nothing(models, make_model, tokenizer) -> None:
    with pytest.raises(ValueError, match="have the same weights, so every implicit reward is 0"):
        ImplicitReward(models[0], make_model(seed=1), tokenizer)


def test_the_pool_is_reranked_by_any_function(models, make_sums, tokenizer) -> None:
    policy, seen = CausalLMPolicy(models[0], tokenizer), []

    def longest(group):
        seen.append(group)
        return np.array([len(one.completion) for one in group])

    result = evaluate(policy, make_sums(4, num_problems=3), problems=3, n=4, temperature=1.0, reranker=longest)
    assert [len(group) for group in seen] == [4, 4, 4]
    right = []
    for group in seen:
        answered = [one for one in group if one.answer is not None]
        right.append(bool(answered) and max(answered, key=lambda one: len(one.completion)).is_success)
    assert result.metrics["rerank@4"].value == np.mean(right)
    assert "weighted_maj@4" not in result.metrics  # lengths are no weights of votes
    graph = lambda group: torch.zeros(4, requires_grad=True)  # noqa: E731
    for wrong in (lambda group: np.zeros(3), lambda group: np.full(4, np.nan), lambda group: ["a"] * 4, graph):
        with pytest.raises(ValueError, match=r"lambda> must give one finite score for each of 4 attempts .*, and gave"):
            evaluate(policy, make_sums(4, num_problems=3), problems=3, n=4, reranker=wrong)


def test_models_of_another_tokenizer_are_named_before_anything_is_sampled(
    models, make_model, make_sums, tokenizer, monkeypatch
) -> None:
    lines = load_tokenizer("chars:ab\n?")
    ids = {"eos_token_id": lines.eos_token_id, "pad_token_id": lines.pad_token_id}
    foreign, reference = (make_model(seed=seed, vocab_size=len(lines), **ids) for seed in (3, 4))
    outcome = OutcomeModel.from_causal_lm(foreign, lines, "orm")
    own = OutcomeScore(OutcomeModel.from_causal_lm(models[0], tokenizer, "orm"))
    likely = MeanLogprob(foreign, lines)
    bound = object.__new__(LowerBound)
    bound.model = outcome
    env = make_sums(4, num_problems=3)
    monkeypatch.setattr(env, "reset", lambda **_: pytest.fail("sampled"))
    for reranker in (outcome, OutcomeScore(outcome), bound, likely, ImplicitReward(foreign, reference, lines),
                     OutcomeAndLikelihood(own, likely)):  # fmt: skip
        with pytest.raises(ValueError, match=r"another tokenizer, .* of "):
            evaluate(CausalLMPolicy(models[0], tokenizer), env, problems=3, n=4, reranker=reranker)


def test_the_command_reranks_and_names_options_that_do_not_go_together(folder, tmp_path, capsys) -> None:
    arguments = ["eval", "--model", str(folder), "--device", "cpu", "--problems", "2", "--n", "2", "--env-args",
                 "prompt={question}", "style=equation", "max_new_tokens=6", "max_prompt_tokens=32",
                 "steps=1"]  # fmt: skip
    output = tmp_path / "result.json"
    assert main([*arguments, "--reranker", "mean_logprob", "--output", str(output)]) == 0
    saved = json.loads(output.read_text())
    assert saved["reranker"] == "mean_logprob"
    assert saved["metrics"].keys() >= {"rerank@2", "weighted_maj@2"}
    for more, words in {
        ("--reranker", "implicit_reward"): "give the model that DPO began with by --reference",
        ("--reranker", "mean_logprob", "--reference", "x"): "--reference is for --reranker implicit_reward",
        ("--aggregate", "min"): "--aggregate combines the step scores of an outcome model",
        ("--scorer", "x"): "--scorer is for a reranker",
        ("--reranker", "lower_bound", "--orm", "x"): "give the folder of its run by --pool",
        ("--orm", "x", "--pool", "y"): "--pool is for --reranker lower_bound",
        ("--reranker", "lower_bound", "--pool", "y"): "needs --orm",
        (
            "--reranker",
            "lower_bound",
            "--orm",
            "x",
            "--pool",
            "y",
            "--aggregate",
            "min",
        ): "neither --aggregate nor",
        ("--reranker", "outcome_likelihood"): "outcome_likelihood needs --orm",
        ("--reranker", "outcome_likelihood", "--orm", "x", "--search", "beam"): "and no --search",
        ("--likelihood", "3"): "likelihood is 3.0, but it counts only with --reranker outcome_likelihood",
        ("--reranker", "mean_logprob", "--orm", "x"): "--orm and --reranker both score the samples",
        ("--reranker", "implicit_reward", "--reference", str(folder)): "have the same weights",
        ("--reranker", "mean_logprob", "--scorer", "tokengym/tiny"): "the tokenizers of 'tokengym/tiny'",
        (
            "--reranker",
            "mean_logprob",
            "--search",
            "beam",
            "--search-keep",
            "1",
        ): "--search is guided by an outcome model",
    }.items():
        assert main([*arguments, *more]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
