"""Reset options, curricula, long prompts and worked examples."""

import copy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from tokenizers.processors import TemplateProcessing

from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.models import load_tokenizer

TOKENIZER = load_tokenizer("chars:0123456789+=#\n")
EOS = TOKENIZER.eos_token_id
VOCABULARY = len(TOKENIZER)


def test_reset_with_prefixes(make, tokens_of):
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


def test_attempts_without_a_given_start_are_tokenized_once(make, monkeypatch):
    env = make(3)
    monkeypatch.setattr(env.encoder, "encode", None)  # prompts are encoded by `encode_prompt`
    env.reset(seed=0)
    assert all(len(env.completion(slot)) == 0 for slot in range(3))


def test_one_prefix_serves_all_slots(make, tokens_of):
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
        ({"problem_id": 100}, r"index 100 is outside \[0, 100\)"),
        ({"problem_id": ["sum-11"]}, "1 values for 2 slots"),
        ({"problem_id": [3.5, 4]}, "3.5 is no problem_id"),
        ({"problem": "sum-11"}, "unknown reset option 'problem'"),
        ({"reset_mask": np.array([True])}, "reset_mask"),
        ({"reset_mask": np.array([1, 0])}, "reset_mask"),
        ({"reset_mask": np.array([False, False])}, "reset_mask"),
    ],
)
def test_bad_reset_options_name_themselves(make, options, message):
    env = make(2)
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)


def test_options_are_not_changed(make):
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
def test_the_sequence_of_attempts_does_not_depend_on_the_number_of_slots(make, mode, curriculum):
    expected = sequence_of_attempts(make(1, curriculum=curriculum, autoreset_mode=mode), 40)
    assert len(set(expected)) == 40
    for num_envs in (2, 3, 7):
        env = make(num_envs, curriculum=curriculum, autoreset_mode=mode)
        assert sequence_of_attempts(env, 40) == expected


def test_sequential_curriculum_tries_each_problem_exactly_k_times(make, sums):
    env = make(2, curriculum={"name": "sequential", "repeats": 3}, num_problems=4)
    attempts = sequence_of_attempts(env, 12)
    ids = [problem.id for problem in sums().problems[:4]]
    assert attempts == [(name, attempt) for name in ids for attempt in range(3)]


def test_num_problems_over_the_split_is_an_error(make):
    with pytest.raises(ValueError, match=r"num_problems=101, but .* has 100"):
        make(num_problems=101).reset()


LENGTHS = ProblemList([Problem(f"p{n}", "1" * n, "1") for n in (3, 6, 4, 7, 5)])


def test_long_prompts_are_errors_that_say_which(make):
    env = make(5, LENGTHS, curriculum="sequential")
    with pytest.raises(ValueError, match="'p6' has 6 tokens, over max_prompt_tokens=5"):
        env.reset()
    with pytest.raises(ValueError, match="'p7' has 7 tokens"):
        env.reset(options={"problem_id": "p7"})


def test_all_long_prompts_are_found_before_an_attempt_meets_one(make):
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


def test_long_prompts_are_skipped_and_counted_and_nothing_is_cut(make):
    env = make(5, LENGTHS, curriculum="sequential", on_long_prompt="skip")
    _, infos = env.reset(seed=0)
    assert infos["problem_id"].tolist() == ["p3", "p4", "p5", "p3", "p4"]
    assert env.num_skipped == 3
    with pytest.raises(ValueError, match="'p6' has 6 tokens"):
        env.reset(options={"problem_id": "p6"})
    with pytest.raises(ValueError, match="in a row"):
        make(1, LENGTHS, max_prompt_tokens=2, on_long_prompt="skip").reset()


@pytest.mark.parametrize(("pattern", "expected"), [("$A {}", "12"), ("{} $A", "{}12"), ("{} $A {}", "{}12")])
def test_a_prompt_is_not_ended_by_a_tokenizer_that_ends_texts(make, tokens_of, pattern, expected):
    name = TOKENIZER.eos_token
    tokenizer = load_tokenizer("chars:0123456789+=#\n")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=pattern.format(*[name] * 2), special_tokens=[(name, EOS)]
    )
    env = make(tokenizer=tokenizer, problems=ProblemList([Problem("a", "12", "3")]))
    env.reset()
    assert env.prompt(0).tolist() == [EOS] * expected.count("{}") + tokens_of("12")


def test_worked_examples_come_before_the_question(make, sums):
    env = make(1, shots=2, examples=sums(), prompt="{question}", max_prompt_tokens=40)
    env.reset(options={"problem_id": "sum-34"})
    assert TOKENIZER.decode(env.prompt(0)) == "0+0=0\n\n0+1=1\n\n3+4="
    with pytest.raises(ValueError, match="examples"):
        make(1, shots=2)


def test_encoded_solutions_end_with_end_of_sequence(make, tokens_of):
    env = make()
    assert env.encode_solution(Problem("p", "1+1=", "2", "2")).tolist() == [*tokens_of("2"), EOS]
    with pytest.raises(ValueError, match="'p' has no solution"):
        env.encode_solution(Problem("p", "1+1=", "2"))


@pytest.mark.parametrize("look", [TokenVectorEnv.state_dict, lambda env: env.np_random, lambda env: env.np_random_seed])
def test_looking_at_the_random_stream_does_not_lose_the_seed(make, look):
    env = make(2, seed=3)
    look(env)
    assert data_equivalence(env.reset(), make(2, seed=3).reset())
    assert env.np_random_seed == 3
