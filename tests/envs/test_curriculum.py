"""Which problem comes next."""

import json

import numpy as np
import pytest

from tokengym.envs import (
    CURRICULA,
    Backtracking,
    Batch,
    Curriculum,
    PrioritizedReplay,
    Problem,
    ProblemList,
    Sequential,
    Subset,
    TokenVectorEnv,
    Uniform,
    make_curriculum,
)
from tokengym.envs.curriculum import NO_STAGE
from tokengym.registry import UnknownNameError


def test_uniform_reaches_every_problem_equally_often_and_endless_sources_all_over():
    rng = np.random.default_rng(0)
    counts = np.bincount([Uniform().next(rng, 10) for _ in range(5000)], minlength=10)
    chi_squared = ((counts - 500) ** 2 / 500).sum()
    assert chi_squared < 27.9  # exceeded once in 1000 for 9 degrees of freedom
    indices = [Uniform().next(rng, 2**63) for _ in range(1000)]
    assert max(indices) > 2**62
    assert len(set(indices)) == 1000


@pytest.mark.parametrize("saved_after", [0, 1, 4, 17])
def test_uniform_draws_anew_for_every_k_attempts_and_continues_where_it_was_saved(saved_after):
    rng = np.random.default_rng(5)
    whole = Uniform(repeats=3)
    expected = [whole.next(np.random.default_rng(5), 9) for _ in range(27)]
    curriculum, other = Uniform(repeats=3), Uniform(repeats=3)
    got = [curriculum.next(rng, 9) for _ in range(saved_after)]
    other.load_state_dict(json.loads(json.dumps(curriculum.state_dict())))
    assert got + [other.next(rng, 9) for _ in range(27 - saved_after)] == expected
    assert expected == [index for index in expected[::3] for _ in range(3)]
    assert sorted(expected[::3]) == list(range(9)) != expected[::3]
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        Uniform(repeats=0)


def test_uniform_leaves_an_index_that_another_source_has_no_problem_for():
    curriculum, rng = Uniform(repeats=3), np.random.default_rng(0)
    assert curriculum.next(rng, 100) >= 4
    assert len({curriculum.next(rng, 4) for _ in range(3)}) == 1


@pytest.mark.parametrize("saved_after", [0, 1, 4, 17])
def test_sequential_goes_round_and_continues_where_it_was_saved(saved_after):
    expected = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3] * 2
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    curriculum = Sequential(repeats=3)
    got = [curriculum.next(rng, 4) for _ in range(saved_after)]
    other = Sequential(repeats=3)
    other.load_state_dict(json.loads(json.dumps(curriculum.state_dict())))
    got += [other.next(rng, 4) for _ in range(len(expected) - saved_after)]
    assert got == expected
    assert rng.bit_generator.state == before
    other.load_state_dict({})
    assert other.next(rng, 4) == 0


def test_curricula_by_name_by_mapping_and_ready_made():
    assert isinstance(make_curriculum("uniform"), Uniform)
    made = make_curriculum({"name": "sequential", "repeats": 8})
    assert isinstance(made, Sequential)
    assert made.repeats == 8
    assert make_curriculum(made) is made
    assert {"uniform", "sequential"} <= set(CURRICULA.names())
    with pytest.raises(UnknownNameError, match="did you mean 'uniform'"):
        make_curriculum("unifrom")
    with pytest.raises(ValueError, match="curriculum 'sequential' has no argument 'repeat': did you mean 'repeats'"):
        make_curriculum({"name": "sequential", "repeat": 8})
    for wrong in (5, ["sequential"], {"repeats": 8}):
        with pytest.raises(ValueError, match=r"a curriculum is a name, a mapping .* or a Curriculum, not"):
            make_curriculum(wrong)


def test_a_curriculum_of_your_own_needs_one_method():
    class Last(Curriculum):
        def next(self, rng, size):
            return size - 1

    assert make_curriculum(Last()).next(np.random.default_rng(0), 7) == 6
    assert Last().state_dict() == {}


# ------------------------------------------------------------------------------------------------------- backtracking

WORKED = Problem("worked", "?", "6", "1 + 1 = 2\n2 * 2 = 4\n\n4 + 2 = 6\n#### 6")


def test_backtracking_gives_ever_less_of_the_solution_as_attempts_succeed() -> None:
    curriculum = Backtracking(start=0.9, decrement=0.4, threshold=0.75, window=4)
    lines = ["1 + 1 = 2\n", "2 * 2 = 4\n", "4 + 2 = 6\n"]
    given = []
    for successes in (4, 2, 3, 4, 4):
        given.append((curriculum.tau, curriculum.prefix(WORKED)))
        for number in range(4):
            curriculum.ended(WORKED, number < successes, curriculum.stage)
    assert (
        given
        == [
            (0.9, "".join(lines)),  # ceil(0.9 * 3): all but the answer
            (0.5, "".join(lines[:2])),
            (0.5, "".join(lines[:2])),  # two of four were too few
            (0.1, lines[0]),
            (0.0, ""),
        ]
    )
    assert curriculum.tau == 0.0
    assert curriculum.metrics() == {"tau": 0.0}
    for problem in (Problem("short", "?", "6", "#### 6"), Problem("unsolved", "?", "6")):
        assert Backtracking(start=1).prefix(problem) == ""


def test_backtracking_goes_on_where_it_was_saved_and_begins_anew_without_a_state() -> None:
    curriculum, other = Backtracking(window=2, decrement=0.3), Backtracking(window=2, decrement=0.3)
    for _ in range(5):
        curriculum.ended(WORKED, True, curriculum.stage)
    other.load_state_dict(json.loads(json.dumps(curriculum.state_dict())))
    for one in (curriculum, other):
        one.ended(WORKED, True, one.stage)
        assert one.tau == 0.0
    other.load_state_dict({})
    assert other.tau == 0.9


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_attempts_begin_behind_what_is_given_and_tell_how_they_end(mode: str) -> None:
    problems = ProblemList([WORKED])
    env = TokenVectorEnv(
        problems, 2, tokenizer="chars:0123456789+*=? #\n", prompt="{question}", max_prompt_tokens=4,
        max_new_tokens=40, autoreset_mode=mode, curriculum={"name": "backtracking", "start": 0.6, "window": 2},
    )  # fmt: skip
    env.reset(seed=0)
    assert [env.decode(env.completion(slot)) for slot in (0, 1)] == ["1 + 1 = 2\n2 * 2 = 4\n"] * 2
    rest = [*env.encode_solution(WORKED)[len(env.completion(0)) + 1 :]]  # without the empty line
    paid = [env.step([token] * 2)[1] for token in rest]
    assert sum(paid).tolist() == [1, 1]
    assert env.curriculum.metrics() == {"tau": 0.5}
    if mode == "NextStep":
        env.step([0, 0])
    elif mode == "Disabled":
        env.reset(options={"reset_mask": np.array([True, True])})
    assert env.decode(env.completion(0)) == "1 + 1 = 2\n2 * 2 = 4\n"
    env.reset(options={"prefix": "1"})  # a caller's own goes first
    assert env.decode(env.completion(0)) == "1"
    env.reset(seed=0)
    assert env.curriculum.metrics() == {"tau": 0.6}


def test_a_solution_that_would_fill_the_budget_is_not_given() -> None:
    settings = {"tokenizer": "chars:0123456789+*=? #\n", "prompt": "{question}", "max_prompt_tokens": 4}
    given = len("1 + 1 = 2\n2 * 2 = 4\n")
    answer = len("#### 4\n")
    for budget, expected, tau in ((given + answer, given, 0.5), (given, 0, 0.6)):
        curriculum = {"name": "backtracking", "start": 0.6, "window": 1}
        env = TokenVectorEnv(ProblemList([WORKED]), 1, max_new_tokens=budget, curriculum=curriculum, **settings)
        env.reset(seed=0)
        assert len(env.completion(0)) == expected
        paid = [env.step([token])[1][0] for token in env.encode_solution(WORKED)[-answer:]]
        assert sum(paid) == 1
        assert env.curriculum.metrics() == {"tau": tau}  # without what is given it counts for no level


def test_attempts_count_for_the_level_they_began_at_and_no_level_is_passed_over() -> None:
    """A whole batch that began at one level ends at once, as in policy-gradient agents."""
    curriculum, taus = Backtracking(start=0.9, decrement=0.1, window=4), []
    for _ in range(3):
        stage = curriculum.stage
        for _ in range(40):
            curriculum.ended(WORKED, True, stage)
        taus.append(curriculum.tau)
    assert taus == [0.8, 0.7, 0.6]


@pytest.mark.parametrize("options", [{"problem_id": "worked"}, {"prefix": "1 + 1"}])
def test_attempts_that_callers_begin_elsewhere_count_for_no_level(options: dict[str, str]) -> None:
    curriculum = Backtracking(window=1)
    env = TokenVectorEnv(ProblemList([WORKED]), 1, curriculum=curriculum, autoreset_mode="Disabled")
    solution = env.encode_solution(WORKED)
    env.reset(options=options)
    env.step_tokens([solution], [len(solution)])
    assert curriculum.tau == 0.9


@pytest.mark.parametrize("size", [1, 2, 7])
def test_no_problem_comes_again_before_all_have_come(size: int) -> None:
    rng = np.random.default_rng(0)
    for curriculum in (Uniform(), Backtracking()):
        drawn = [curriculum.next(rng, size) for _ in range(5 * size)]
        for begin in range(0, 5 * size, size):
            assert sorted(drawn[begin : begin + size]) == list(range(size))


# ------------------------------------------------------------------------------------------- prioritized level replay


def test_replay_counts_no_attempts_whose_problem_or_beginning_the_caller_chose() -> None:
    curriculum = PrioritizedReplay()
    curriculum.ended(WORKED, True, NO_STAGE)
    assert curriculum.metrics() == {"remembered": 0.0}
    curriculum.ended(WORKED, True, curriculum.stage)
    assert curriculum.metrics() == {"remembered": 1.0}


def told(curriculum: Curriculum, successes: dict[str, tuple[int, int]]) -> None:
    for name, (right, attempts) in successes.items():
        for number in range(attempts):
            curriculum.ended(Problem(name, "?", "1"), number < right, curriculum.stage)


def test_problems_that_are_neither_solved_nor_hopeless_come_again() -> None:
    curriculum = PrioritizedReplay(new=0.25, staleness=0.0, temperature=0.5)
    told(curriculum, {"solved": (4, 4), "even": (2, 4), "hopeless": (0, 4), "half": (1, 4)})
    # Scores 5/36, 9/36, 5/36, 8/36: ranks 3.5, 1, 3.5, 2, and weights are their squares' inverses.
    weights = np.array([3.5, 1, 3.5, 2]) ** -2.0
    np.testing.assert_allclose(curriculum.probabilities(), weights / weights.sum())
    rng = np.random.default_rng(0)
    drawn = [curriculum.next(rng, 10**9) for _ in range(4000)]
    new = [key for key in drawn if isinstance(key, int)]
    assert abs(len(new) / 4000 - 0.25) < 0.03
    assert len(set(new)) == len(new)
    assert abs(drawn.count("even") / 3000 - weights[1] / weights.sum()) < 0.03


def test_probabilities_add_up_at_any_temperature() -> None:
    curriculum = PrioritizedReplay(temperature=0.0005, staleness=0)
    for i in range(3):
        curriculum.ended(Problem(f"p{i}", "?", "1"), False, 0)
    assert curriculum.probabilities() == pytest.approx([1 / 3] * 3)


def test_new_problems_are_new_and_end() -> None:
    curriculum, rng, seen = PrioritizedReplay(new=0.5), np.random.default_rng(0), []
    for _ in range(200):
        drawn = curriculum.next(rng, 20)
        if isinstance(drawn, int):
            seen.append(drawn)
        told(curriculum, {str(drawn): (1, 2)})
    assert sorted(seen) == list(range(20))


def test_old_scores_fade_and_every_visit_is_stamped() -> None:
    curriculum, rng = PrioritizedReplay(new=1e-9, staleness=0.0, memory=0.0), np.random.default_rng(0)
    told(curriculum, {"once solved": (4, 4), "other": (4, 4)})
    curriculum.next(rng, 9)
    told(curriculum, {"once solved": (2, 4)})
    levels = curriculum.state_dict()["levels"]
    assert levels["once solved"][:3] == [4, 2, 1]
    assert levels["other"][:3] == [4, 4, 0]
    faded = PrioritizedReplay(memory=0.5)
    told(faded, {"a": (4, 4)})
    faded.next(rng, 9)
    told(faded, {"a": (0, 2)})
    assert faded.state_dict()["levels"]["a"][:2] == [4, 2]


def test_what_has_not_come_for_long_comes_again() -> None:
    curriculum = PrioritizedReplay(new=1e-9, staleness=1.0)
    rng = np.random.default_rng(0)
    assert curriculum.next(rng, 3) in range(3)  # nothing has begun yet
    told(curriculum, {"a": (0, 1), "b": (0, 1)})
    assert curriculum.probabilities().tolist() == [0.5, 0.5]
    last = curriculum.next(rng, 3)
    probabilities = dict(zip("ab", curriculum.probabilities().tolist(), strict=True))
    assert probabilities.pop(str(last)) < 0.5 < next(iter(probabilities.values()))


def test_of_equal_scores_the_stalest_is_forgotten_and_what_was_forgotten_is_new_again() -> None:
    curriculum, rng = PrioritizedReplay(new=1.0, capacity=2, memory=0.0), np.random.default_rng(0)
    problems = [Problem(f"p{i}", "q", "1") for i in range(3)]
    drawn: list[str] = []
    for _ in range(9):
        key = curriculum.next(rng, len(problems))
        assert isinstance(key, int)  # fewer are remembered than there are
        curriculum.ended(problems[key], False, 0)
        drawn = [*(name for name in drawn if name != f"p{key}"), f"p{key}"]
        assert set(curriculum.state_dict()["levels"]) == set(drawn[-2:])


def test_no_more_than_its_capacity_is_remembered_and_a_saved_state_goes_on() -> None:
    curriculum, other = PrioritizedReplay(capacity=2), PrioritizedReplay(capacity=2)
    told(curriculum, {"even": (2, 4), "solved": (4, 4), "half": (1, 4)})
    assert list(curriculum.state_dict()["levels"]) == ["even", "half"]
    other.load_state_dict(json.loads(json.dumps(curriculum.state_dict())))
    draws = [[one.next(np.random.default_rng(3), 100) for _ in range(9)] for one in (curriculum, other)]
    assert draws[0] == draws[1]
    other.load_state_dict({})
    assert other.metrics() == {"remembered": 0.0}


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "backtracking", "start": 1.1},
        {"name": "backtracking", "decrement": 0},
        {"name": "backtracking", "threshold": 0},
        {"name": "backtracking", "window": 0},
        {"name": "prioritized_replay", "new": 0},
        {"name": "prioritized_replay", "staleness": 2},
        {"name": "prioritized_replay", "temperature": 0},
        {"name": "prioritized_replay", "capacity": 0},
        {"name": "prioritized_replay", "memory": 1.5},
    ],
)
def test_bad_arguments_of_curricula_that_learn(spec: dict) -> None:
    with pytest.raises(ValueError, match=f"{spec['name']} needs"):
        make_curriculum(spec)


# -------------------------------------------------------------------------------------------------------------- batch


@pytest.mark.parametrize("of", ["uniform", "sequential", "backtracking", "prioritized_replay"])
def test_a_batch_is_the_same_from_its_beginning_and_learns_nothing(of: str) -> None:
    curriculum = make_curriculum(of)
    told(curriculum, {"even": (2, 4), "half": (1, 4)})
    batch = Batch(curriculum, 3)

    def draw() -> list[int | str]:
        batch.load_state_dict({})
        rng = np.random.default_rng(1)
        keys = [batch.next(rng, 50) for _ in range(12)]
        told(batch, {"even": (4, 4)})
        return keys

    first = draw()
    assert first == draw() == [key for key in first[::3] for _ in range(3)]
    told(curriculum, {"even": (4, 4)})
    assert batch.prefix(WORKED) == curriculum.prefix(WORKED)
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        Batch(curriculum, 0)


def test_a_subset_is_its_curriculum_over_fewer_problems() -> None:
    rng, plain = np.random.default_rng(0), np.random.default_rng(0)
    indices = [3, 8, 20]
    for name in ("uniform", "sequential", "backtracking"):
        subset, alone = Subset(make_curriculum(name), indices), make_curriculum(name)
        found = [subset.next(rng, 100) for _ in range(7)]
        assert found == [indices[int(alone.next(plain, 3))] for _ in range(7)]
        again = Subset(make_curriculum(name), indices)
        again.load_state_dict(subset.state_dict())
        assert (again.next(np.random.default_rng(1), 100), again.stage) == (
            subset.next(np.random.default_rng(1), 100), subset.stage,
        )  # fmt: skip
        plain.bit_generator.state = rng.bit_generator.state
    with pytest.raises(ValueError, match="at least one problem"):
        Subset(make_curriculum("uniform"), [])
