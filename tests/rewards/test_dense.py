"""The dense reward: what is paid where, and that it cannot be farmed."""

import itertools
import math
import random
from collections.abc import Hashable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.models import load_tokenizer
from tokengym.registry import UnknownNameError
from tokengym.rewards import DenseReward

TOKENIZER = load_tokenizer("chars:0123456789+-*/=<>#., abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ$\n")
EOS = TOKENIZER.eos_token_id
STEPS = [
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.",
    "In all 48+24 = <<48+24=72>>72 clips.",
    "Each costs $2, so 72*2=144.",
]
REFERENCE = "\n".join([*STEPS, "#### 144"])


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def play(
    attempt: str, reference: str | None = REFERENCE, *, prefix: str = "", end: bool = True, **reward
) -> np.ndarray:
    """The rewards of an attempt, token by token, its end-of-sequence included; without `end` the budget cuts it off."""
    tokens = [*encode(attempt), *([EOS] if end else [])]
    env = TokenVectorEnv(
        ProblemList([Problem("only", "q", "144", reference)]),
        1,
        tokenizer=TOKENIZER,
        prompt="{question}",
        max_new_tokens=len(encode(prefix)) + len(tokens),
        reward={"name": "dense", **reward},
    )
    env.reset(options={"prefix": prefix})
    _, rewards, terminations, truncations, infos = env.step_tokens([tokens], [len(tokens)])
    assert (terminations[0], truncations[0]) == (end, not end)
    assert infos["episode_return"][0] == pytest.approx(rewards.sum())
    return rewards[0]


def paid(attempt: str, reference: str = REFERENCE, **arguments) -> float:
    """What the steps of an attempt earn in all, its last answer's +1 left out."""
    rewards = play(attempt, reference, **arguments)
    return float(rewards[:-1].sum() + rewards[-1] % 1)


@pytest.mark.parametrize(
    "answer_format", ["marker", "boxed", "tag", "last_number", {"name": "marker", "marker": "Answer:"}]
)
@pytest.mark.parametrize("match", ["result", "equation", "exact_text"])
def test_the_answers_line_is_no_step_in_any_format(answer_format, match):
    source = ProblemList([Problem("only", "q", "144")], answer_format=answer_format)
    shown = source.answer_format.show("144")
    solution = "\n".join([*STEPS[:2], shown])
    problems = ProblemList([Problem("only", "q", "144", solution)], answer_format=answer_format)
    env = TokenVectorEnv(problems, 1, reward={"name": "dense", "match": match}, prompt="{question}")
    env.reset()
    tokens = [*env.encoder.encode(solution).tolist(), env.encoder.eos_token_id]
    _, rewards, _, _, infos = env.step_tokens([tokens], [len(tokens)])
    assert infos["is_success"][0]
    paid = rewards[0][rewards[0] > 0].tolist()
    assert paid == pytest.approx([0.25, 0.25, 1.0])  # two steps, and the answer alone


# ---------------------------------------------------------------------------------------- by hand, token by token


def test_steps_are_paid_at_their_newlines_and_the_answer_at_the_end():
    first, second = "24 in May\n", "no idea\n"
    attempt = f"{first}{second}so 48+24=72\n144 in all\n#### 144"
    expected = np.zeros(len(attempt) + 1)
    expected[len(first) - 1] = 0.5 / 3
    expected[attempt.index("72\n") + 2] = 0.5 / 3
    expected[attempt.index("all\n") + 3] = 0.5 / 3
    expected[-1] = 1
    np.testing.assert_allclose(play(attempt), expected, atol=1e-12)


def test_an_unfinished_line_is_a_step_at_end_of_sequence_and_none_at_the_end_of_the_budget():
    assert play("it is 24")[-1] == pytest.approx(0.5 / 3)
    assert not play("it is 24", end=False).any()
    assert play("it is 24\n1", end=False).tolist() == pytest.approx([0] * 8 + [0.5 / 3, 0])


def test_the_reference_itself_earns_the_whole_weight_by_any_match():
    for match, weight in itertools.product(("result", "equation", "exact_text"), (0, 0.5, 2)):
        rewards = play(REFERENCE, match=match, weight=weight)
        assert rewards.sum() == pytest.approx(1 + weight)
        newlines = np.cumsum([len(step) + 1 for step in STEPS]) - 1
        assert np.flatnonzero(rewards).tolist() == [*(newlines.tolist() if weight else []), len(REFERENCE)]


@pytest.mark.parametrize(
    ("step", "by_result", "by_equation", "by_text"),
    [
        (STEPS[0], 1, 1, 1),
        ("Natalia  sold 48/2 =   <<48/2=24>>24 clips in May. ", 1, 1, 1),
        ("48 / 2 = 24", 1, 1, 0),
        ("12+12=24", 1, 0, 0),
        ("half of 48 is 24", 1, 0, 0),
        ("24.0", 1, 0, 0),
        ("48/2=24, no, 48/2=25", 0, 0, 0),  # one thing a step, the last
        ("24 25 26", 0, 0, 0),
        ("72*2=144 48+24=72 48/2=24", 1, 1, 0),
        ("twenty-four", 0, 0, 0),
        ("#### 24", 0, 0, 0),
        ("<<48/2=24", 1, 1, 0),
    ],
)
def test_what_matches(step, by_result, by_equation, by_text):
    for match, steps in (("result", by_result), ("equation", by_equation), ("exact_text", by_text)):
        assert paid(step, match=match) == pytest.approx(steps * 0.5 / 3), match


def test_what_a_prefix_stated_is_neither_paid_nor_to_be_stated_again():
    prefix = f"{STEPS[0]}\n48+24"
    assert paid("=72\n144", prefix=prefix) == pytest.approx(2 * 0.5 / 3)
    assert paid("=73\n24\n144", prefix=prefix) == pytest.approx(0.5 / 3)
    # Its guesses are spent too: three wrong ones leave none.
    assert paid("24\n72\n144", prefix="1\n2\n3\n") == 0


def test_a_reference_without_steps_pays_for_the_answer_alone():
    for reference in ("#### 144", "", "144", "no numbers here\n#### 144"):
        assert play("144\n#### 144", reference).tolist() == [0] * 12 + [1]
    assert paid("no numbers here", "no numbers here\n#### 144", match="exact_text") == 0.5


def test_an_attempt_of_nothing_or_of_one_token_over_and_over():
    assert play("").tolist() == [0]
    for token in ("\n", "2", "=", "#"):
        assert not play(token * 50).any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"match": "results"}, UnknownNameError, "unknown match 'results': did you mean 'result'"),
        ({"shaping": "potentials"}, UnknownNameError, "did you mean 'potential'"),
        ({"weight": math.nan}, ValueError, "weight must be finite and not negative, got nan"),
        ({"weight": math.inf}, ValueError, "weight must be finite"),
        ({"weight": -1}, ValueError, "weight must be finite and not negative, got -1"),
    ],
)
def test_bad_arguments_name_themselves(arguments, error, message):
    with pytest.raises(error, match=message):
        DenseReward(**arguments)


def test_a_problem_without_a_solution_is_an_error():
    with pytest.raises(ValueError, match="needs a solution, and the problem 'q' has none"):
        play("1", None)


# ---------------------------------------------------------------------------------------- no farming

RESULTS = st.lists(st.integers(0, 40), min_size=1, max_size=6)


def lines(results: list[int]) -> str:
    return "".join(f"so we get {n}\n" for n in results)


def longest_match(stated: Sequence[Hashable], reference: Sequence[Hashable]) -> int:
    """By trying all parts of the reference: how many of its things an attempt states in the reference's order."""
    distinct = list(dict.fromkeys(reference))
    guesses = list(dict.fromkeys(stated))[: len(distinct)]
    for size in range(len(distinct), 0, -1):
        for part in itertools.combinations(distinct, size):
            left = iter(guesses)
            if all(n in left for n in part):
                return size
    return 0


@given(RESULTS, st.lists(st.integers(0, 40), max_size=20))
def test_payments_are_the_longest_match_in_order(reference, attempt):
    size = len(set(reference))
    assert paid(lines(attempt), lines(reference)) == pytest.approx(0.5 * longest_match(attempt, reference) / size)


@given(RESULTS, st.data())
def test_repeating_steps_earns_nothing_more(reference, data):
    honest = data.draw(st.lists(st.sampled_from(reference), min_size=1, max_size=6))
    repeated = [n for n in honest for _ in range(data.draw(st.integers(1, 4)))]
    again = repeated + data.draw(st.lists(st.sampled_from(honest), max_size=12))
    words = data.draw(
        st.sampled_from(["so we get {}\n", "it is {} then\n", "{}\n", "0+{0}={0}\n", "see <<0+{0}={0}>>\n"])
    )
    assert paid("".join(map(words.format, again)), lines(reference)) == pytest.approx(
        paid(lines(honest), lines(reference))
    )


@given(st.permutations(range(7)), st.integers(1, 3))
def test_the_wrong_order_earns_no_more_than_its_longest_part_in_order(order, rounds):
    reference = [13, 50, 8, 29, 31, 7, 99]
    listed = [reference[i] for i in order]
    in_order = next(
        size for size in range(7, 0, -1) if any(list(c) == sorted(c) for c in itertools.combinations(order, size))
    )
    assert paid(lines(listed * rounds), lines(reference)) == pytest.approx(0.5 * in_order / 7)


MATCHES = ("result", "equation", "exact_text")
Line = tuple[str, dict[str, Hashable]]


def ways_to_state(n: int) -> list[Line]:
    """Lines that come to n, and what each states by each match; the first is how the reference has it."""
    reference, sum_, other, bare = f"{n - 2}+2={n}", f"{n - 2}+2={n}", f"{n - 1}+1={n}", f"it is {n}"
    return [
        (reference, {"result": n, "equation": sum_, "exact_text": reference}),
        (f"so {sum_}", {"result": n, "equation": sum_, "exact_text": f"so {sum_}"}),
        (f"<<{sum_}>>{n} in all", {"result": n, "equation": sum_, "exact_text": f"<<{sum_}>>{n} in all"}),
        (other, {"result": n, "equation": other, "exact_text": other}),
        (bare, {"result": n, "equation": None, "exact_text": bare}),
    ]


@settings(max_examples=60)
@given(st.lists(st.integers(10, 60), min_size=1, max_size=6, unique=True), st.data(), st.sampled_from(MATCHES))
def test_repeats_shuffles_rewordings_and_listings_earn_the_longest_match_by_any_match(results, data, match):
    reference = [ways_to_state(n)[0] for n in results]
    steps = st.sampled_from([line for n in [*results, 7, 8] for line in ways_to_state(n)])
    honest: list[Line] = data.draw(st.lists(steps, max_size=8))
    again = data.draw(st.permutations(honest * data.draw(st.integers(0, 2))))
    numbers: list[Line] = [(str(n), {"result": n, "equation": None, "exact_text": str(n)}) for n in range(100)]
    listing = data.draw(st.sampled_from([[], numbers, numbers[::-1]]))
    attempt = data.draw(st.sampled_from([[*honest, *again, *listing], [*listing, *honest, *again]]))
    stated = [keys[match] for _, keys in attempt if keys[match] is not None]
    size = longest_match(stated, [keys[match] for _, keys in reference])
    text = "".join(f"{line}\n" for line, _ in attempt)
    solution = "\n".join(line for line, _ in reference)
    assert paid(text, solution, match=match) == pytest.approx(0.5 * size / len(results))
    if not listing:  # repeats in whatever order come after the honest steps
        alone = "".join(f"{line}\n" for line, _ in honest)
        assert paid(alone, solution, match=match) == pytest.approx(0.5 * size / len(results))


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 999), min_size=1, max_size=8, unique=True), st.sampled_from(["\n", " ", ", ", "=\n"]))
def test_printing_all_numbers_earns_what_the_first_few_are_worth(reference, separator):
    for listing in (range(1000), range(999, -1, -1)):
        attempt = separator.join(map(str, listing)) + "\n"
        first = list(listing)[: len(reference)] if "\n" in separator else [listing[-1]]
        assert paid(attempt, lines(reference)) == pytest.approx(0.5 * longest_match(first, reference) / len(reference))


@given(st.text(alphabet="0123456789+=<># \nab", max_size=120), st.sampled_from(["result", "equation", "exact_text"]))
def test_nothing_earns_more_than_the_weight_or_less_than_nothing(attempt, match):
    rewards = play(attempt, match=match)
    assert (rewards >= 0).all()
    assert rewards.sum() <= 1 + 0.5 + 1e-12


# ---------------------------------------------------------------------------------------- potential shaping


@given(
    st.lists(st.sampled_from([*STEPS, "24", "72", "144", "5", "", "#### 3"]), max_size=8),
    st.sampled_from(["#### 144", "#### 7", "none"]),
    st.booleans(),
    st.sampled_from(["", "24\n", f"{STEPS[0]}\n48+"]),
    st.sampled_from(["result", "equation", "exact_text"]),
)
def test_potential_shaping_pays_early_and_sums_to_the_sparse_return(steps, answer, end, prefix, match):
    attempt = "\n".join([*steps, answer])
    shaped = play(attempt, prefix=prefix, end=end, match=match, shaping="potential")
    sparse = play(attempt, prefix=prefix, end=end, weight=0)
    assert set(sparse) <= {0, 1}
    assert shaped.sum() == pytest.approx(sparse.sum(), abs=1e-12)
    # Until the last token it pays as the unshaped reward does.
    np.testing.assert_array_equal(shaped[:-1], play(attempt, prefix=prefix, end=end, match=match)[:-1])


# ---------------------------------------------------------------------------------------- however it is stepped


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize(
    "reward",
    [
        "dense",
        {"name": "dense", "match": "equation", "shaping": "potential"},
        {"name": "sum", "terms": [[0.3, "sparse"], [0.7, "dense"], [0.1, {"name": "dense", "match": "exact_text"}]]},
        {
            "name": "sum",
            "terms": [[0.3, {"name": "judged", "form": "centered"}], [0.7, {"name": "judged", "shaping": "potential"}]],
        },
    ],
)
def test_many_tokens_at_once_equal_one_after_the_other(mode, reward):
    problems = ProblemList([Problem(f"p{i}", "q", "144", "\n".join(STEPS[: i + 1])) for i in range(3)])
    arguments = {"tokenizer": TOKENIZER, "prompt": "{question}", "max_new_tokens": 120, "reward": reward}
    at_once, stepped = (TokenVectorEnv(problems, 3, autoreset_mode=mode, **arguments) for _ in range(2))
    rng = random.Random(0)
    seen = set()
    for seed in range(15):
        attempts = [
            [*encode("\n".join(rng.choices([*STEPS, "24", "it is 72", "#### 144"], k=rng.randint(1, 4)))[:119]), EOS]
            for _ in range(3)
        ]
        width = max(map(len, attempts))
        tokens = np.array([row + [0] * (width - len(row)) for row in attempts])
        lengths = np.array([len(row) for row in attempts])
        at_once.reset(seed=seed)
        stepped.reset(seed=seed)
        _, rewards, _, _, infos = at_once.step_tokens(tokens, lengths)
        columns = [stepped.step_tokens(tokens[:, k : k + 1], (lengths > k).astype(int)) for k in range(width)]
        np.testing.assert_array_equal(rewards, np.column_stack([column[1] for column in columns]))
        infos = infos.get("final_info", infos)
        for slot in range(3):
            told = columns[lengths[slot] - 1][4]
            told = told.get("final_info", told)
            assert told["episode_return"][slot] == infos["episode_return"][slot]
            for name, values in infos.get("reward_components", {}).items():
                assert name.startswith("_") or told["reward_components"][name][slot] == values[slot]
        seen |= set(rewards.ravel())
    assert len(seen) > 4
