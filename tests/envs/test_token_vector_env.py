"""The rules of the token environments, against Gymnasium's own vector environment and against stepping."""

import copy
import itertools
import json
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from tokengym.envs import Problem, ProblemList, TokenEnv, TokenVectorEnv, slot_info
from tokengym.models import load_tokenizer
from tokengym.registry import UnknownNameError
from tokengym.rewards import Reward, Verdict

MODES = list(AutoresetMode)
TOKENIZER = load_tokenizer("chars:0123456789+=#\n")
EOS = TOKENIZER.eos_token_id
VOCABULARY = len(TOKENIZER)


class Sums(ProblemList):
    """0+0= to 9+9=, graded by equality."""

    def __init__(self) -> None:
        pairs = itertools.product(range(10), repeat=2)
        super().__init__([Problem(f"sum-{a}{b}", f"{a}+{b}=", str(a + b), f"{a + b}") for a, b in pairs])

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = completion == problem.answer
        return Verdict(correct, "correct" if correct else "wrong", completion)


class EveryToken(Reward):
    """Pays each token a number of its own, so that a payment in the wrong place or a lost one shows."""

    def score(self, lengths, ended, verdicts):
        rewards = np.zeros((len(lengths), max(1, lengths.max())))
        for slot, length in enumerate(lengths):
            completion = self.view.completion(slot)
            for i in range(length):
                position = len(completion) - length + i
                rewards[slot, i] = 0.1 * completion[position] + 0.01 * position
            if ended[slot]:
                rewards[slot, length - 1] += 0.3 * ended[slot] + verdicts[slot].correct
        return rewards


def make(num_envs=1, problems=None, **settings) -> TokenVectorEnv:
    settings = {"tokenizer": TOKENIZER, "prompt": "{question}", "max_prompt_tokens": 5, "max_new_tokens": 4} | settings
    return TokenVectorEnv(problems or Sums(), num_envs, **settings)


def tokens_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def play(env: TokenVectorEnv, actions) -> list[tuple]:
    return [env.step(row) for row in actions]


def random_actions(seed: int, steps: int, num_envs: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    actions = rng.integers(VOCABULARY, size=(steps, num_envs))
    return np.where(rng.random(actions.shape) < 0.25, EOS, actions)


# ------------------------------------------------------------------------------------------------- one attempt


def test_an_attempt_from_prompt_to_reward_on_the_end_of_sequence_token():
    env = make()
    observation, infos = env.reset(options={"problem_id": "sum-37"})
    assert observation["input_ids"].tolist() == [tokens_of("3+7=") + [TOKENIZER.pad_token_id] * 5]
    assert observation["attention_mask"].tolist() == [[1] * 4 + [0] * 5]
    assert slot_info(infos, 0) == {"problem_id": "sum-37", "prompt_length": 4, "attempt": 0}
    for token in tokens_of("10"):
        _, rewards, terminations, truncations, infos = env.step([token])
        assert (rewards[0], terminations[0], truncations[0], infos) == (0, False, False, {})
    observation, rewards, terminations, truncations, infos = env.step([EOS])
    assert (rewards[0], terminations[0], truncations[0]) == (1, True, False)
    assert observation["input_ids"][0, :7].tolist() == [*tokens_of("3+7=10"), EOS]
    assert observation["attention_mask"][0].tolist() == [1] * 7 + [0] * 2
    assert slot_info(infos, 0) == {
        "is_success": True,
        "verdict": "correct",
        "answer": "10",
        "problem_id": "sum-37",
        "attempt": 0,
        "episode_return": 1.0,
        "episode_length": 3,
    }
    assert env.problem(0).answer == "10"
    assert env.prompt(0).tolist() == tokens_of("3+7=")
    assert env.completion(0).tolist() == [*tokens_of("10"), EOS]


def test_a_spent_budget_truncates_and_the_last_token_may_still_end_the_sequence():
    env = make(2, max_new_tokens=2)
    env.reset(options={"problem_id": "sum-12"})
    env.step(tokens_of("33"))
    _, rewards, terminations, truncations, infos = env.step([EOS, tokens_of("3")[0]])
    assert terminations.tolist() == [True, False]
    assert truncations.tolist() == [False, True]
    assert rewards.tolist() == [1, 0]
    assert infos["verdict"].tolist() == ["correct", "truncated"]
    assert infos["answer"].tolist() == ["3", None]


def test_several_end_of_sequence_ids():
    newline = tokens_of("\n")[0]
    env = make(2, eos_token_ids=[newline])
    assert env.eos_token_ids == {EOS, newline}
    env.reset(options={"problem_id": "sum-12"})
    env.step(tokens_of("33"))
    _, rewards, terminations, _, _ = env.step([newline, EOS])
    assert terminations.all()
    assert rewards.tolist() == [1, 1]


def test_special_tokens_inside_a_completion_do_not_vanish_before_grading():
    env = make()
    env.reset(options={"problem_id": "sum-66"})
    play(env, [tokens_of("1"), [TOKENIZER.pad_token_id], tokens_of("2")])
    *_, infos = env.step([EOS])
    assert infos["verdict"][0] == "wrong"


def test_the_gold_answer_is_in_neither_observation_nor_reset_info():
    problems = ProblemList([Problem("p", "1+1=", "777", "1+1=2\n#### 777")])
    env = make(1, problems)
    observation, infos = env.reset()
    assert "777" not in TOKENIZER.decode(observation["input_ids"][0])
    assert "777" not in str(infos)
    *_, infos = env.step(tokens_of("1"))
    assert "777" not in str(infos)


# ---------------------------------------------------------------------------------- reset options and curricula


def test_reset_with_prefixes():
    env = make(3)
    one_token = tokens_of("1")
    _, infos = env.reset(options={"problem_id": ["sum-55", "sum-82", None], "prefix": ["1", one_token, None]})
    assert infos["prompt_length"].tolist() == [4, 4, 4]
    assert [env.completion(slot).tolist() for slot in range(3)] == [one_token, one_token, []]
    env.step(tokens_of("000"))
    _, rewards, *_, infos = env.step([EOS] * 3)
    assert rewards[:2].tolist() == [1, 1]
    assert infos["episode_length"].tolist() == [2, 2, 2]
    for slot, left in enumerate([3, 3, 4]):
        env.reset(options={"prefix": ["1", one_token, None]})
        for step in range(left):
            _, _, _, truncations, _ = env.step(tokens_of("000"))
            assert truncations[slot] == (step == left - 1)


def test_one_prefix_serves_all_slots():
    env = make(2)
    for prefix in ("12", tokens_of("12"), np.array(tokens_of("12"))):
        env.reset(options={"prefix": prefix})
        assert env.completion(0).tolist() == env.completion(1).tolist() == tokens_of("12")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix": "1234"}, "leaves nothing"),
        ({"prefix": [EOS]}, "end-of-sequence"),
        ({"prefix": [VOCABULARY]}, "outside the vocabulary"),
        ({"prefix": ["1", "2", "3"]}, "3 values for 2 slots"),
        ({"prefix": ["1", 2.5]}, "2.5 is no prefix"),
        ({"problem_id": "sum-99x"}, "sum-99x"),
        ({"problem_id": ["sum-11"]}, "1 values for 2 slots"),
        ({"problem_id": [3.5, 4]}, "3.5 is no problem_id"),
        ({"problem": "sum-11"}, "unknown reset option 'problem'"),
        ({"reset_mask": np.array([True])}, "reset_mask"),
        ({"reset_mask": np.array([1, 0])}, "reset_mask"),
        ({"reset_mask": np.array([False, False])}, "reset_mask"),
    ],
)
def test_bad_reset_options_name_themselves(options, message):
    env = make(2)
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)


def test_options_are_not_changed():
    options = {"problem_id": "sum-11", "reset_mask": np.array([True, False])}
    kept = copy.deepcopy(options)
    make(2).reset(options=options)
    assert data_equivalence(options, kept)


def sequence_of_attempts(env: TokenVectorEnv, count: int) -> list[tuple[str, int]]:
    """What begins, in the order in which it begins; slots end one after the other."""
    begun = []
    _, infos = env.reset(seed=5)
    while True:
        slots = np.flatnonzero(infos.get("_prompt_length", []))
        begun += [(infos["problem_id"][slot], int(infos["attempt"][slot])) for slot in slots]
        if len(begun) >= count:
            return begun[:count]
        *_, infos = env.step(np.full(env.num_envs, EOS))


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("curriculum", ["uniform", {"name": "sequential", "repeats": 3}])
def test_the_sequence_of_attempts_does_not_depend_on_the_number_of_slots(mode, curriculum):
    expected = sequence_of_attempts(make(1, curriculum=curriculum, autoreset_mode=mode), 40)
    assert len(set(expected)) == 40
    for num_envs in (2, 3, 7):
        env = make(num_envs, curriculum=curriculum, autoreset_mode=mode)
        assert sequence_of_attempts(env, 40) == expected


def test_sequential_curriculum_tries_each_problem_exactly_k_times():
    env = make(2, curriculum={"name": "sequential", "repeats": 3}, num_problems=4)
    attempts = sequence_of_attempts(env, 12)
    ids = [problem.id for problem in Sums().problems[:4]]
    assert attempts == [(name, attempt) for name in ids for attempt in range(3)]


def test_num_problems_over_the_split_is_an_error():
    with pytest.raises(ValueError, match=r"num_problems=101, but .* has 100"):
        make(num_problems=101).reset()


LENGTHS = ProblemList([Problem(f"p{n}", "1" * n, "1") for n in (3, 6, 4, 7, 5)])


def test_long_prompts_are_errors_that_say_which():
    env = make(5, LENGTHS, curriculum="sequential")
    with pytest.raises(ValueError, match="'p6' has 6 tokens, over max_prompt_tokens=5"):
        env.reset()
    with pytest.raises(ValueError, match="'p7' has 7 tokens"):
        env.reset(options={"problem_id": "p7"})


def test_all_long_prompts_are_found_before_an_attempt_meets_one():
    env = make(5, LENGTHS)
    env.check_prompts(1)
    with pytest.raises(ValueError, match="1 of 3 prompts are over max_prompt_tokens=5, the longest, of problem 'p6'"):
        env.check_prompts(3)
    message = "2 of 5 prompts are over max_prompt_tokens=5, the longest, of problem 'p7', with 7 tokens"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            env.check_prompts()
    make(5, LENGTHS, num_problems=1).check_prompts()
    make(5, LENGTHS, on_long_prompt="skip").check_prompts()
    make(5, LENGTHS, max_prompt_tokens=7).check_prompts()
    gym.make_vec("tokengym/Arithmetic-v0", 1, vectorization_mode="vector_entry_point").unwrapped.check_prompts()  # type: ignore


def test_long_prompts_are_skipped_and_counted_and_nothing_is_cut():
    env = make(5, LENGTHS, curriculum="sequential", on_long_prompt="skip")
    _, infos = env.reset(seed=0)
    assert infos["problem_id"].tolist() == ["p3", "p4", "p5", "p3", "p4"]
    assert env.num_skipped == 3
    with pytest.raises(ValueError, match="'p6' has 6 tokens"):
        env.reset(options={"problem_id": "p6"})
    with pytest.raises(ValueError, match="in a row"):
        make(1, LENGTHS, max_prompt_tokens=2, on_long_prompt="skip").reset()


def test_worked_examples_come_before_the_question():
    env = make(1, shots=2, examples=Sums(), prompt="{question}", max_prompt_tokens=40)
    env.reset(options={"problem_id": "sum-34"})
    assert TOKENIZER.decode(env.prompt(0)) == "0+0=0\n\n0+1=1\n\n3+4="
    with pytest.raises(ValueError, match="examples"):
        make(1, shots=2)


def test_encoded_solutions_end_with_end_of_sequence():
    env = make()
    assert env.encode_solution(Problem("p", "1+1=", "2", "2")).tolist() == [*tokens_of("2"), EOS]
    with pytest.raises(ValueError, match="'p' has no solution"):
        env.encode_solution(Problem("p", "1+1=", "2"))


# -------------------------------------------------------------------------------------------- Gymnasium's contract


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_envs", [1, 3])
def test_equals_gymnasiums_vector_env_over_single_envs(mode, num_envs):
    # Single environments draw from streams of their own and count their own attempts: with one slot everything is
    # comparable, with several the problem is held fixed and the counts are left out.
    settings = {"tokenizer": TOKENIZER, "prompt": "{question}", "max_prompt_tokens": 5, "max_new_tokens": 4}
    settings["num_problems"] = None if num_envs == 1 else 1
    sync = SyncVectorEnv([lambda: TokenEnv(Sums(), **settings)] * num_envs, autoreset_mode=mode)
    env = make(num_envs, autoreset_mode=mode, num_problems=settings["num_problems"])
    assert env.metadata["autoreset_mode"] == sync.metadata["autoreset_mode"] == mode
    assert env.observation_space == sync.observation_space
    assert env.action_space == sync.action_space

    def comparable(result):
        if num_envs > 1:
            for infos in (result[-1], result[-1].get("final_info", {})):
                infos.pop("attempt", None)
                infos.pop("_attempt", None)
        return result

    assert data_equivalence(comparable(env.reset(seed=3)), comparable(sync.reset(seed=3)), exact=True)
    ends = 0
    for actions in random_actions(0, 60, num_envs):
        result = env.step(actions)
        assert data_equivalence(comparable(result), comparable(sync.step(actions)), exact=True)
        finished = result[2] | result[3]
        ends += finished.sum()
        if mode is AutoresetMode.DISABLED and finished.any():
            again = env.reset(options={"reset_mask": finished.copy()})
            expected = sync.reset(options={"reset_mask": finished.copy()})
            assert data_equivalence(comparable(again), comparable(expected), exact=True)
    assert ends > 10


def test_same_step_gives_the_final_observation_and_info_of_what_ended():
    env = make(2, autoreset_mode="SameStep")
    env.reset(seed=0, options={"problem_id": "sum-12"})
    env.step(tokens_of("33"))
    observation, rewards, terminations, _, infos = env.step([EOS, tokens_of("3")[0]])
    assert terminations.tolist() == [True, False]
    assert rewards.tolist() == [1, 0]
    final = infos["final_obs"][0]
    assert final["input_ids"][:6].tolist() == [*tokens_of("1+2=3"), EOS]
    assert final["attention_mask"].sum() == 6
    assert observation["attention_mask"].sum(axis=1).tolist() == [4, 6]
    assert infos["final_obs"][1] is None
    assert slot_info(infos["final_info"], 0)["verdict"] == "correct"
    assert infos["problem_id"][0] == env.problem(0).id
    assert infos["_problem_id"].tolist() == [True, False]


def test_next_step_ignores_the_action_after_the_end():
    env = make(1, autoreset_mode="NextStep")
    env.reset(options={"problem_id": "sum-12"})
    env.step([EOS])
    observation, rewards, terminations, truncations, infos = env.step([10**6])
    assert (rewards[0], terminations[0], truncations[0]) == (0, False, False)
    assert observation["attention_mask"].sum() == infos["prompt_length"][0] == 4
    assert len(env.completion(0)) == 0


def test_disabled_keeps_finished_slots_until_they_are_reset():
    env = make(2, autoreset_mode="Disabled")
    env.reset(seed=0)
    env.step([EOS, 1])
    before = env.completion(0).tolist()
    for _ in range(2):
        _, rewards, terminations, truncations, infos = env.step([-1, 1])
        assert (rewards[0], terminations.tolist(), truncations[0]) == (0, [True, False], False)
        assert infos == {}
        assert env.completion(0).tolist() == before
    _, infos = env.reset(options={"reset_mask": np.array([True, False])})
    assert infos["_problem_id"].tolist() == [True, False]
    assert len(env.completion(1)) == 3
    _, _, terminations, truncations, _ = env.step([1, 1])
    assert terminations.tolist() == [False, False]
    assert truncations.tolist() == [False, True]


def test_a_first_reset_may_leave_slots_out():
    env = make(3, autoreset_mode="Disabled")
    env.reset(seed=0, options={"reset_mask": np.array([False, True, False])})
    with pytest.raises(ResetNeeded):
        env.problem(0)
    observation, _, terminations, truncations, infos = env.step([1, EOS, 1])
    assert (terminations | truncations).all()
    assert infos["_verdict"].tolist() == [False, True, False]
    assert observation["attention_mask"].sum(axis=1).tolist() == [0, 5, 0]


def test_stepping_before_the_first_reset_is_an_error():
    with pytest.raises(ResetNeeded):
        make().step([1])


@pytest.mark.parametrize("action", [VOCABULARY, -1])
def test_actions_outside_the_vocabulary_name_the_slot_and_change_nothing(action):
    env = make(2)
    env.reset(seed=0)
    before = env.step([1, 2])[0]
    with pytest.raises(ValueError, match=rf"slot 1: token id {action} is outside the vocabulary \[0, {VOCABULARY}\)"):
        env.step([1, action])
    assert data_equivalence(env._observation(), before)


@pytest.mark.parametrize("actions", [[1], [[1, 2]], [0.5, 1.0], 1])
def test_actions_of_another_shape_or_type(actions):
    env = make(2)
    env.reset()
    with pytest.raises(ValueError, match="actions must be 2 integers"):
        env.step(actions)


@pytest.mark.parametrize("mode", MODES)
def test_returned_data_share_no_memory(mode):
    env = make(2, autoreset_mode=mode)
    results = [env.reset(seed=0), *play(env, random_actions(1, 12, 2))]
    arrays = [arrays_in(result) for result in results]
    for one, other in itertools.combinations(arrays, 2):
        assert not any(np.shares_memory(a, b) for a, b in itertools.product(one, other))
    assert not any(np.shares_memory(a, env._tokens) or np.shares_memory(a, env._mask) for a in itertools.chain(*arrays))


def arrays_in(data) -> list[np.ndarray]:
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list | tuple):
        return [array for item in data for array in arrays_in(item)]
    if not isinstance(data, np.ndarray):
        return []
    return arrays_in(data.tolist()) if data.dtype == object else [data]


def test_without_copies_the_observations_are_live_views():
    env = make(2, copy=False)
    observation, _ = env.reset(seed=0)
    after, *_ = env.step([1, 2])
    assert np.shares_memory(observation["input_ids"], after["input_ids"])
    assert observation["attention_mask"].sum(axis=1).tolist() == [5, 5]


@pytest.mark.parametrize("mode", MODES)
def test_two_environments_of_one_seed_are_equal(mode):
    one, other = make(3, autoreset_mode=mode), make(3, autoreset_mode=mode, seed=8)
    assert data_equivalence(one.reset(seed=8), other.reset(), exact=True)
    actions = random_actions(2, 40, 3)
    assert data_equivalence(play(one, actions), play(other, actions), exact=True)
    again = one.reset(seed=8)
    assert data_equivalence(again, make(3, autoreset_mode=mode).reset(seed=8), exact=True)
    assert not data_equivalence(again[1], one.reset(seed=9)[1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])  # noqa: S301
def test_a_copy_goes_on_as_the_original(mode, duplicate):
    env = make(3, autoreset_mode=mode)
    env.reset(seed=1)
    play(env, random_actions(3, 5, 3))
    twin = duplicate(env)
    actions = random_actions(4, 30, 3)
    assert data_equivalence(play(env, actions), play(twin, actions), exact=True)


@pytest.mark.parametrize("curriculum", ["uniform", {"name": "sequential", "repeats": 3}])
def test_saved_state_goes_on_as_the_original(curriculum):
    env = make(3, curriculum=curriculum)
    env.reset(seed=1)
    play(env, random_actions(3, 20, 3))
    other = make(3, curriculum=curriculum, seed=77)
    other.load_state_dict(json.loads(json.dumps(env.state_dict())))
    with pytest.raises(ResetNeeded):
        other.step([1, 1, 1])
    assert data_equivalence(env.reset(), other.reset(), exact=True)
    actions = random_actions(4, 30, 3)
    assert data_equivalence(play(env, actions), play(other, actions), exact=True)
    assert env.state_dict() == other.state_dict()


# -------------------------------------------------------------------------------------------------- many tokens at once


@st.composite
def appended(draw, mode: AutoresetMode, num_envs: int = 3, limit: int = 6):
    """Calls of step_tokens that are allowed: no token follows an end of sequence or a spent budget."""
    calls = []
    left, finished = [limit] * num_envs, [False] * num_envs
    for _ in range(draw(st.integers(1, 5))):
        width = draw(st.integers(1, limit + 1))
        tokens = draw(
            st.lists(
                st.lists(st.integers(0, VOCABULARY - 1), min_size=width, max_size=width),
                min_size=num_envs,
                max_size=num_envs,
            )
        )
        lengths = []
        for slot in range(num_envs):
            if finished[slot]:
                lengths.append(draw(st.integers(0, width if mode is AutoresetMode.DISABLED else 1)))
                if mode is AutoresetMode.NEXT_STEP and lengths[slot]:
                    left[slot], finished[slot] = limit, False
                continue
            length = draw(st.integers(0, min(width, left[slot])))
            row = tokens[slot][:length]
            if EOS in row:
                length = row.index(EOS) + 1
            left[slot] -= length
            if EOS in row or left[slot] == 0:
                left[slot], finished[slot] = limit, mode is not AutoresetMode.SAME_STEP
            lengths.append(length)
        calls.append((np.array(tokens), np.array(lengths)))
    return calls


@pytest.mark.parametrize("reward", ["sparse", "every token"])
@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_many_tokens_at_once_equal_one_after_the_other(mode, reward, data):
    at_once, stepped = (
        make(3, max_new_tokens=6, autoreset_mode=mode, reward=EveryToken() if reward == "every token" else reward)
        for _ in range(2)
    )
    at_once.reset(seed=0)
    stepped.reset(seed=0)
    for tokens, lengths in data.draw(appended(mode)):
        width = tokens.shape[1]
        result = at_once.step_tokens(tokens, lengths)
        columns = [stepped.step_tokens(tokens[:, k : k + 1], (lengths > k).astype(int)) for k in range(width)]
        rewards = np.column_stack([column[1] for column in columns])
        # A slot that goes on within the call is told nothing, so what each slot is told comes from one column.
        told = [[info for c in columns if (info := slot_info(c[-1], slot))] for slot in range(3)]
        flags = [np.any([c[i] & (lengths > k) for k, c in enumerate(columns)], axis=0) | columns[-1][i] for i in (2, 3)]
        assert data_equivalence(result[0], columns[-1][0], exact=True)
        assert data_equivalence(result[1], rewards, exact=True)
        assert data_equivalence(list(result[2:4]), flags, exact=True)
        expected = [infos[0] if infos else {} for infos in told]
        assert data_equivalence([slot_info(result[-1], slot) for slot in range(3)], expected, exact=True)
        assert all(len(infos) <= 1 for infos in told)
        assert at_once.state_dict() == stepped.state_dict()


@pytest.mark.parametrize("mode", MODES)
def test_one_column_of_tokens_is_a_step(mode):
    one, other = make(3, autoreset_mode=mode, reward=EveryToken()), make(3, autoreset_mode=mode, reward=EveryToken())
    assert data_equivalence(one.reset(seed=0), other.reset(seed=0), exact=True)
    for actions in random_actions(5, 40, 3):
        observation, rewards, *rest = other.step_tokens(actions[:, None], np.ones(3, dtype=int))
        assert data_equivalence(one.step(actions), (observation, rewards[:, 0], *rest), exact=True)


@pytest.mark.parametrize(
    ("tokens", "lengths", "message"),
    [
        ([[1, EOS, 1], [1, 1, 1]], [3, 3], "slot 0: token 2 of 3 is end-of-sequence"),
        ([[1] * 5, [1] * 5], [0, 5], "slot 1: 5 tokens, but max_new_tokens=4 leaves 4"),
        ([[1, VOCABULARY], [1, 1]], [2, 2], f"slot 0: token id {VOCABULARY}"),
        ([[1, 1], [1, 1]], [3, 1], "lengths must be between 0 and 2, got 1 to 3"),
        ([[1, 1], [1, 1]], [-1, 1], "lengths must be between 0 and 2"),
        ([[1, 1]], [1], r"tokens must be \[2, K\] integers"),
        ([[1.5], [1.5]], [1, 1], r"tokens must be \[2, K\] integers"),
        ([[1, 1], [1, 1]], [1.0, 1.0], "lengths must be 2 integers"),
    ],
)
def test_bad_tokens_name_the_slot_and_change_nothing(tokens, lengths, message):
    env = make(2)
    before = env.reset(seed=0)[0]
    with pytest.raises(ValueError, match=message):
        env.step_tokens(tokens, lengths)
    assert data_equivalence(env._observation(), before)


def test_what_lies_beyond_the_lengths_is_not_read():
    env = make(2)
    env.reset(seed=0)
    _, rewards, *_ = env.step_tokens([[1, EOS, 10**9], [-5, -5, -5]], [1, 0])
    assert rewards.shape == (2, 3)
    assert [len(env.completion(slot)) for slot in range(2)] == [1, 0]


# ---------------------------------------------------------------------------------------------------- everything else


def test_rendering_shows_problem_tokens_and_the_reward_of_each_line():
    env = make(2, render_mode="ansi", max_new_tokens=6)
    env.reset(options={"problem_id": ["sum-34", "sum-11"]})
    play(env, [tokens_of("72"), tokens_of("\n=")])
    first, second = env.render()
    assert first.splitlines() == ["problem sum-34", "3+4=", "  +0.000 | 7"]
    assert second.splitlines() == ["problem sum-11", "1+1=", "  +0.000 | 2="]
    play(env, [[tokens_of("7")[0], EOS]])
    assert env.render()[0].splitlines() == ["problem sum-34", "3+4=", "  +0.000 | 7", "  +0.000 | 7"]


def test_rendering_shows_the_reward_where_it_was_paid():
    env = make(render_mode="ansi")
    env.reset(options={"problem_id": "sum-34"})
    play(env, [tokens_of("7"), [EOS]])
    assert env.render() == (f"problem sum-34\n3+4=\n  +1.000 | 7{TOKENIZER.eos_token}",)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_envs": 0}, ValueError, "num_envs must be at least 1"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1"),
        ({"num_problems": 0}, ValueError, "num_problems must be at least 1"),
        ({"on_long_prompt": "cut"}, ValueError, "'error' or 'skip'"),
        ({"render_mode": "human"}, TypeError, "render_mode"),
        ({"reward": "spars"}, UnknownNameError, "did you mean 'sparse'"),
        ({"curriculum": "sequentail"}, UnknownNameError, "did you mean 'sequential'"),
        ({"curriculum": {"repeats": 3}}, ValueError, 'needs a "name"'),
        ({"curriculum": {"name": "sequential", "repeats": 0}}, ValueError, "repeats must be at least 1"),
        ({"prompt": "qaa"}, UnknownNameError, "did you mean 'qa'"),
        ({"prompt": "Question: "}, ValueError, "{question}"),
        ({"eos_token_ids": [VOCABULARY]}, ValueError, "outside the vocabulary"),
        ({"autoreset_mode": "Never"}, ValueError, "Never"),
    ],
)
def test_bad_arguments_name_themselves(settings, error, message):
    with pytest.raises(error, match=message):
        make(**settings)


def test_a_tokenizer_needs_an_end_of_sequence_token():
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        make(tokenizer=tokenizer)


def test_a_tokenizer_without_pad_token_pads_with_end_of_sequence():
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.pad_token = None
    env = make(tokenizer=tokenizer)
    observation, _ = env.reset()
    assert set(observation["input_ids"][0, 4:].tolist()) == {EOS}
    _, _, terminations, _, _ = env.step([1])
    assert not terminations[0]


def test_a_reward_of_the_wrong_shape_is_named():
    class Short(Reward):
        def score(self, lengths, ended, verdicts):
            return np.zeros(1)

    env = make(2, reward=Short())
    env.reset()
    with pytest.raises(ValueError, match=r"Short.score must return shape \(2, 1\), got \(1,\)"):
        env.step([1, 1])


def test_a_reward_instance_belongs_to_one_environment():
    reward = EveryToken()
    make(reward=reward)
    with pytest.raises(ValueError, match="belongs to an environment"):
        make(reward=reward)
