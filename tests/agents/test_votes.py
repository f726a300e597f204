"""Value votes: worked out by hand, asked once of equal solutions, and a tree of thoughts that follows them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tokengym.__main__ import main
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.agents.search import Search, SearchConfig
from tokengym.agents.votes import TEMPLATE, VoteJudge
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.envs.problems.prompts import Chat
from tokengym.models import load, load_tokenizer
from tokengym.rewards import Verdict

STEPS = load_tokenizer("chars:gb\n?")
WORDS = load_tokenizer("chars:" + "".join(chr(code) for code in range(32, 127)) + "\n")
DEPTH = 3


class Steps(ProblemList):
    """Right is what consists of good steps alone."""

    def __init__(self) -> None:
        super().__init__([Problem("p", "?", "g"), Problem("q", "?", "g")])

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = completion.split() == ["g"] * DEPTH
        return Verdict(correct, "correct" if correct else "wrong", completion)


def slots(width: int = 4) -> TokenVectorEnv:
    return TokenVectorEnv(
        Steps(), width, tokenizer=STEPS, prompt="{question}", max_prompt_tokens=2, max_new_tokens=2 * DEPTH + 1,
        autoreset_mode="Disabled",
    )  # fmt: skip


ENV = slots()


class Writer:
    """Continues each sequence by a text of its own, and an end, as a function of text and key says."""

    def __init__(self, tokenizer: Any, write: Any, asked: list[str]) -> None:
        self.tokenizer, self.write, self.asked = tokenizer, write, asked
        self.slots, self.rows = np.empty(0, np.int64), {}

    def begin(self, slots, sequences, keys) -> None:
        for slot, sequence, key in zip(slots.tolist(), sequences, keys.tolist(), strict=True):
            text = self.tokenizer.decode(sequence.tolist())
            self.asked.append(text)
            answer = self.tokenizer.encode(self.write(text, key), add_special_tokens=False)
            self.rows[slot] = iter([*answer, self.tokenizer.eos_token_id])
        self.slots = np.array(sorted(self.rows))

    def retire(self, slots) -> None:
        for slot in slots.tolist():
            del self.rows[slot]
        self.slots = np.array(sorted(self.rows), np.int64)

    def finish(self, slots) -> None:
        pass

    def step(self, sampling):
        tokens = [next(self.rows[slot], self.tokenizer.eos_token_id) for slot in self.slots.tolist()]
        return np.array(tokens), np.zeros(len(tokens), np.float32)


def acting(tokenizer: Any, write: Any) -> Any:
    asked: list[str] = []
    make = lambda *_: Writer(tokenizer, write, asked)  # noqa: E731
    model = SimpleNamespace(generation_config=None)
    policy = SimpleNamespace(
        tokenizer=tokenizer, sampling=None, model=model, decoder=make, rollout_decoder=make, asked=asked
    )
    policy.with_sampling = lambda **changes: policy
    return policy


def solution(question: str) -> str:
    """The solution that `TEMPLATE` asks about."""
    return question.partition("A solution so far:\n")[2].partition("\n\nHow likely")[0]


def asked(judge: VoteJudge, problem: int, completions: list[np.ndarray]) -> np.ndarray:
    """Scores of completions of one problem."""
    return judge([ENV.problems[problem]] * len(completions), completions, [np.array([0])] * len(completions))


def tokens(*texts: str) -> list[np.ndarray]:
    return [np.array(STEPS.encode(text, add_special_tokens=False), np.int64) for text in texts]


def test_scores_are_the_mean_worth_of_votes_and_equal_solutions_are_asked_about_once() -> None:
    answers = {
        "g": ["sure", "Likely.", "it is impossible"],
        "b": ["impossible", "not likely: impossible", "?"],
        "g\ng": ["Sure", "sure\n", "unlikely, but sure"],
    }
    given = {text: iter(own) for text, own in answers.items()}
    policy = acting(WORDS, lambda question, key: next(given[solution(question)]))
    judge = VoteJudge(policy, ENV, max_new_tokens=30)
    scores = asked(judge, 0, tokens("g", "b", "g", "g\ng"))
    by_hand = [(20 + 1 + 0.001) / 60, (0.001 + 0.001) / 60, (20 + 1 + 0.001) / 60, 1.0]
    np.testing.assert_allclose(scores, by_hand)
    assert len(policy.asked) == 9
    assert policy.asked[0] == TEMPLATE.replace("{question}", "?").replace("{solution}", "g") + "Answer:"
    drawn = sum(len(answer) + 1 for own in answers.values() for answer in own)
    assert judge.num_tokens == sum(map(len, policy.asked[::3])) + drawn
    assert (judge.num_votes, judge.num_unread) == (9, 1)


def test_votes_depend_on_seed_problem_and_solution_alone() -> None:
    words = ["sure", "likely", "impossible"]
    policy = acting(WORDS, lambda question, key: words[key % 3])
    judge = VoteJudge(policy, ENV, "{question}{solution}", votes=8, max_new_tokens=12)
    together = asked(judge, 0, tokens("g", "b", "g\n", "b\n"))
    alone = [asked(judge, 0, [one])[0] for one in tokens("b\n", "g\n", "b", "g")]
    assert together.tolist() == alone[::-1]
    other = VoteJudge(policy, ENV, "{question}{solution}", votes=8, max_new_tokens=12, seed=1)
    assert len({*together.tolist()}) > 1
    assert asked(other, 0, tokens("g", "b", "g\n", "b\n")).tolist() != together.tolist()
    assert asked(judge, 1, tokens("g", "b", "g\n", "b\n")).tolist() != together.tolist()


def test_a_tree_of_thoughts_by_votes_is_that_by_their_values() -> None:
    vote = lambda question, key: "impossible" if "b" in solution(question) else "sure"  # noqa: E731

    def write(text: str, key: int) -> str:
        rng = np.random.default_rng(abs(key))
        return "".join(f"{rng.choice(['g', 'b'])}\n" for _ in range(DEPTH - text.count("\n")))

    voting = VoteJudge(acting(WORDS, vote), ENV, max_new_tokens=12)
    values = lambda problems, completions, prompts: np.array(  # noqa: E731
        [0.001 / 20 if "b" in STEPS.decode(one) else 1.0 for one in completions]
    )
    config = SearchConfig("tot", width=4, keep=1)
    policy = acting(STEPS, write)
    ours, theirs = Search(policy, slots(), voting, config), Search(policy, slots(), values, config)
    solved = []
    for seed in range(60):
        (found,), (same,) = ours([0], seed), theirs([0], seed)
        attempts, others = found.attempts, same.attempts
        assert [one.completion.tolist() for one in attempts] == [one.completion.tolist() for one in others]
        np.testing.assert_allclose(found.scores, same.scores)
        solved.append(any(attempt.is_success for attempt in attempts))
    assert np.mean(solved) > 1 - (1 - 0.5**DEPTH) ** 4 + 0.2
    assert ours.cost.judged_tokens == voting.num_tokens > theirs.cost.judged_tokens
    assert ours.cost.policy_tokens == theirs.cost.policy_tokens


def test_chats_are_asked_in_their_template_and_by_the_models_own_tokenizer() -> None:
    tokenizer = load_tokenizer("chars:" + "".join(chr(code) for code in range(32, 127)) + "\n")
    tokenizer.chat_template = "{% for turn in messages %}[{{ turn.content }}]{% endfor %}>"
    policy = acting(tokenizer, lambda question, key: "sure")
    asked(VoteJudge(policy, ENV), 0, tokens("g"))
    assert policy.asked[0] == "[" + TEMPLATE.replace("{question}", "?").replace("{solution}", "g").strip() + "]>"
    own = VoteJudge(policy, ENV, Chat(user="{solution} of {question}"))
    asked(own, 0, tokens("b"))
    assert policy.asked[-1] == "[b of ?]>"


def test_what_cannot_vote_is_refused() -> None:
    policy = acting(WORDS, lambda question, key: "hm")
    for template, words in {
        "{question}": "has no {solution}",
        "?": "has no {question} and no {solution}",
        Chat(user="{solution}"): "has no {question}: votes need both",
    }.items():
        with pytest.raises(ValueError, match=words):
            VoteJudge(policy, ENV, template)
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 8"):
        VoteJudge(policy, ENV, votes=0)
    judge = VoteJudge(policy, ENV)
    assert asked(judge, 0, tokens("g", "b")).tolist() == [0, 0]
    with pytest.raises(ValueError, match="none of 21 votes names sure, likely or impossible, the last one is 'hm'"):
        asked(judge, 0, tokens("g", "b", "gg", "bb", "bg"))
    with pytest.raises(ValueError, match='"resample" needs p\\(correct\\), which votes are not'):
        Search(policy, slots(), judge, SearchConfig("resample", width=4))


def test_a_real_model_is_asked_and_one_that_does_not_answer_is_named() -> None:
    model, tokenizer = load("tokengym/tiny")
    judge = VoteJudge(CausalLMPolicy(model, tokenizer), ENV, votes=24, max_new_tokens=4)
    with pytest.raises(ValueError, match="none of 24 votes names sure, likely or impossible"):
        asked(judge, 0, tokens("g"))
    assert judge.num_tokens > 24


def test_on_the_command_line_one_judge_guides_one_search(capsys) -> None:
    for arguments, words in {
        ("--judge", "votes"): "--judge guides a search: choose one by --search",
        ("--judge", "votes", "--search", "tot", "--orm", "x"): "--judge and --orm would both guide the search",
        ("--judge", "votes", "--search", "evolution"): "no judge guides an evolution",
        ("--judge", "votes", "--search", "tot", "--reranker", "mean_logprob"): (
            "--reranker mean_logprob and the judge of --search both score attempts: leave out one"
        ),
        ("--judge", "votes", "--search", "tot", "--n", "8"): "votes names sure, likely or impossible",
    }.items():
        common = ["--problems", "1", "--device", "cpu", "--num-envs", "16", "--env-args", "steps=1"]
        assert main(["eval", *arguments, *common]) == 1
        assert words in capsys.readouterr().err
