"""Many tokens at once equal one after the other."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from tokengym.envs import Uniform, slot_info
from tokengym.models import load_tokenizer

MODES = list(AutoresetMode)
TOKENIZER = load_tokenizer("chars:0123456789+=#\n")
EOS = TOKENIZER.eos_token_id
VOCABULARY = len(TOKENIZER)


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
def test_many_tokens_at_once_equal_one_after_the_other(every_token, make, mode, reward, data):
    at_once, stepped = (
        make(3, max_new_tokens=6, autoreset_mode=mode, reward=every_token() if reward == "every token" else reward)
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
def test_one_column_of_tokens_is_a_step(every_token, make, random_actions, mode):
    one, other = make(3, autoreset_mode=mode, reward=every_token()), make(3, autoreset_mode=mode, reward=every_token())
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
def test_bad_tokens_name_the_slot_and_change_nothing(make, tokens, lengths, message):
    env = make(2)
    before = env.reset(seed=0)[0]
    with pytest.raises(ValueError, match=message):
        env.step_tokens(tokens, lengths)
    assert data_equivalence(env._observation(), before)


def test_what_lies_beyond_the_lengths_is_not_read(make):
    env = make(2)
    env.reset(seed=0)
    _, rewards, *_ = env.step_tokens([[1, EOS, 10**9], [-5, -5, -5]], [1, 0])
    assert rewards.shape == (2, 3)
    assert [len(env.completion(slot)) for slot in range(2)] == [1, 0]


def test_curricula_are_told_of_ends_in_the_order_of_stepping(make):
    class Noting(Uniform):
        ended_ids = ()

        def ended(self, problem, is_success, stage):
            self.ended_ids += (problem.id,)

    env = make(3, curriculum=(curriculum := Noting()), autoreset_mode="Disabled")
    env.reset(options={"problem_id": [0, 1, 2]})
    env.step_tokens([[1, 1, EOS], [1, EOS, 0], [EOS, 0, 0]], [3, 2, 1])
    assert curriculum.ended_ids == ("sum-02", "sum-01", "sum-00")
