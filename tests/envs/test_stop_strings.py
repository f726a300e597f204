"""Stop strings, against a decoder of everything: where the text first holds one, the attempt ends, and not before."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tokengym.agents import CausalLMPolicy
from tokengym.agents.rollouts.collect import collect
from tokengym.envs import Problem, ProblemList, TokenEnv, TokenVectorEnv
from tokengym.envs.doctor import diagnose
from tokengym.envs.stop_strings import StopStrings
from tokengym.models import load, load_tokenizer


def sentence_pieces() -> PreTrainedTokenizerFast:
    """A tokenizer like Llama's and Gemma's: a space begins a word, and unknown characters are bytes."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abQ:é", "▁", "▁a", "▁Q", "ab", ":b", "▁▁"]
    backend = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", clean_up_tokenization_spaces=False)


TINY = load_tokenizer("tokengym/tiny")
TOKENIZERS = {"bytes": TINY, "sentences": sentence_pieces(), "characters": load_tokenizer("chars:abQ: \n")}
STOPS = ["\nQ:", "\n\n", "\n", ":", " a", "a ", "b a", "é", "éa", "ab", "</s>"]


def text_of(tokenizer, tokens) -> str:
    return tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data(), stops=st.lists(st.sampled_from(STOPS), min_size=1, max_size=3))
def test_the_first_token_with_which_the_text_holds_one(name, data, stops):
    tokenizer = TOKENIZERS[name]
    if name == "characters":
        tokens = st.integers(0, len(tokenizer) - 1)
    else:  # of all tokens hardly any would be near a stop string
        texts = ["\n", "\n\n", "Q", ":", " a", "a", " ", "b", "é", "ab", "Q:", "\nQ", "😀"]
        near = sorted({t for text in texts for t in tokenizer(text, add_special_tokens=False)["input_ids"]})
        tokens = st.one_of(st.sampled_from(near), st.integers(0, len(tokenizer) - 1))
    completion = np.array(data.draw(st.lists(tokens, max_size=24)), np.int64)
    ends = [
        end for end in range(1, len(completion) + 1) if any(s in text_of(tokenizer, completion[:end]) for s in stops)
    ]
    found = StopStrings(stops, tokenizer)
    assert found.first_end(completion) == (ends[0] if ends else None)
    if ends:
        completion = completion[: ends[0]]
        cut = found.cut(text_of(tokenizer, completion))
        assert not any(stop in cut for stop in stops)
        whole = found.whole_tokens(completion)
        # Half a character at the end counts as one; the text before it does not go beyond the cut.
        assert cut.startswith(text_of(tokenizer, completion[:whole]).rstrip("\ufffd"))
        assert whole < len(completion)


SHOT = Problem("v-0", "1+2?", "3", "1+2=3\n#### 3")
PROBLEMS = [Problem(f"p-{i}", f"{i}+1?", f"{i + 1}", f"{i}+1={i + 1}\n#### {i + 1}") for i in range(4)]


def make(num_envs=1, **settings) -> TokenVectorEnv:
    settings = {"shots": 1, "curriculum": "sequential", "max_new_tokens": 64} | settings
    return TokenVectorEnv(ProblemList(PROBLEMS), num_envs, examples=ProblemList([SHOT]), **settings)


def tokens_of(text: str) -> list[int]:
    return TINY(text, add_special_tokens=False)["input_ids"]


RUNS_ON = tokens_of("0+1=1\n#### 1\n\nQ: 5+5?\nA:\n5+5=10\n#### 10\n\nQ:")


def run(env: TokenEnv, tokens) -> tuple[float, bool, bool, dict]:
    env.reset(seed=0)
    for count, token in enumerate(tokens, 1):
        _, reward, terminated, truncated, info = env.step(token)
        if terminated or truncated:
            return reward, terminated, truncated, info | {"tokens": count}
    raise AssertionError("the attempt goes on")


def single(**settings) -> TokenEnv:
    settings = {"shots": 1, "curriculum": "sequential", "max_new_tokens": 64} | settings
    return TokenEnv(ProblemList(PROBLEMS), examples=ProblemList([SHOT]), **settings)


def test_worked_examples_stop_at_the_next_question():
    env = single()
    assert env.slots.stop == ("\nQ:",)
    reward, terminated, truncated, info = run(env, RUNS_ON)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert (info["verdict"], info["answer"]) == ("correct", "1")
    assert text_of(TINY, env.slots.completion(0)).endswith("\n\nQ:")
    assert env.slots.decode(env.slots.completion(0)) == "0+1=1\n#### 1\n"
    # Without a stop the last answer counts, and that is of another question.
    wrong = run(single(stop=[]), [*RUNS_ON, TINY.eos_token_id])[3]
    assert wrong["verdict"] != "correct"


@pytest.mark.parametrize(
    ("settings", "stop"),
    [
        ({"shots": 0}, ()),
        ({"prompt": "Solve.\nQuestion: {question}\nAnswer:"}, ("\nSolve.",)),
        ({"prompt": "{question} ="}, ()),
        ({"stop": "\n\n"}, ("\n\n",)),
        ({"stop": ["a", "b"], "shots": 0}, ("a", "b")),
        ({"stop": []}, ()),
    ],
)
def test_what_attempts_stop_at(settings, stop):
    assert make(**settings).stop == stop


def test_a_registered_environment_takes_them_and_its_spec_is_plain():
    env = gym.make("tokengym/Arithmetic-v0", shots=2)
    assert env.unwrapped.slots.stop == ("\nQ:",)  # type: ignore
    env = gym.make("tokengym/Arithmetic-v0", stop=["\n\n"])
    assert env.spec is not None
    assert env.spec.kwargs["stop"] == ["\n\n"]
    assert '"stop"' in env.spec.to_json()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_many_tokens_at_once_are_those_one_by_one(mode):
    end = StopStrings("\nQ:", TINY).first_end(np.array(RUNS_ON))
    assert end is not None
    other = tokens_of("1+1=2 and so on")
    one, many = make(2, autoreset_mode=mode), make(2, autoreset_mode=mode)
    for env in (one, many):
        env.reset(seed=0)
    tokens = np.zeros((2, end), np.int64)
    tokens[0], tokens[1, : len(other)] = RUNS_ON[:end], other
    result = many.step_tokens(tokens, [end, len(other)])
    rewards = np.zeros((2, end))
    for column in range(end):
        lengths = [1, int(column < len(other))]
        stepped = one.step_tokens(tokens[:, column : column + 1], lengths)
        rewards[:, column] = stepped[1][:, 0]
    np.testing.assert_array_equal(result[1], rewards)
    np.testing.assert_array_equal(result[2], [True, False])
    np.testing.assert_array_equal(result[0]["input_ids"], stepped[0]["input_ids"])
    ending = result[4]["final_info"] if mode is AutoresetMode.SAME_STEP else result[4]
    assert (ending["verdict"][0], ending["episode_length"][0]) == ("correct", end)


def test_no_token_follows_a_stop_string():
    env = make(2)
    before = env.reset(seed=0)[0]
    tokens = np.tile(RUNS_ON, (2, 1))
    with pytest.raises(ValueError, match=r"slot 0: token \d+ of \d+ ends one of stop=\('\\nQ:',\): none may follow"):
        env.step_tokens(tokens, [len(RUNS_ON)] * 2)
    np.testing.assert_array_equal(env._observation()["input_ids"], before["input_ids"])
    assert not env.completion(0).size


def test_a_stop_string_may_end_inside_a_token():
    inside = next(t for t in range(len(TINY)) if len(TINY.decode([t])) > 2 and TINY.decode([t])[1:].isalpha())
    text = TINY.decode([inside])
    env = single(stop=text[:-1])
    reward, terminated, _, info = run(env, [*tokens_of("#### 1\n"), inside])
    assert (reward, terminated, info["verdict"]) == (1.0, True, "correct")
    assert env.slots.completion(0)[-1] == inside
    assert env.slots.decode(env.slots.completion(0)) == "#### 1\n"


def test_a_tag_that_ends_answers_stays():
    problems = ProblemList([PROBLEMS[0]], answer_format="tag")
    env = TokenEnv(problems, stop="</answer>")
    _, terminated, _, info = run(env, [*tokens_of("so <answer>1</answer>"), TINY.eos_token_id])
    assert (terminated, info["verdict"]) == (True, "correct")
    assert env.slots.decode(env.slots.completion(0)) == "so <answer>1</answer>"
    ended = env.slots.encoder.end_by_token(env.slots.completion(0))
    assert text_of(TINY, ended) == "so <answer>1</answer><|endoftext|>"
    with pytest.raises(ValueError, match=r"stop='<answer>' would cut off every answer, which is shown as '<answer>0"):
        TokenEnv(problems, stop="<answer>")


@pytest.mark.parametrize("stop", ["", ["a", ""]])
def test_what_can_end_no_attempt(stop):
    with pytest.raises(ValueError, match="can end no attempt"):
        make(stop=stop)


@pytest.mark.parametrize(
    ("stop", "message"), [([3], r"stop\[0\] must be text, got 3"), (3, "stop must be text or a list")]
)
def test_what_is_no_text(stop, message):
    with pytest.raises(TypeError, match=message):
        make(stop=stop)


def test_prefixes_hold_none():
    env = make(stop="\n\n")
    with pytest.raises(ValueError, match=r"a prefix must not hold one of stop=\('\\n\\n',\)"):
        env.reset(options={"prefix": "a\n\nb"})
    env.reset(options={"prefix": "0+1=1\n#### 1\n"})
    newline = tokens_of("\n")
    assert env.step(np.array(newline))[2][0]  # the stop string begins in the prefix


def test_training_without_examples_ends_where_the_stop_string_begins():
    env = make()
    end = StopStrings("\nQ:", TINY).first_end(np.array(RUNS_ON))
    ended = env.encoder.end_by_token(np.array(RUNS_ON[:end]))
    assert ended[-1] == TINY.eos_token_id
    assert text_of(TINY, ended[:-1]).rstrip() == "0+1=1\n#### 1"
    by_itself = np.array([*RUNS_ON[:3], TINY.eos_token_id])
    np.testing.assert_array_equal(env.encoder.end_by_token(by_itself), by_itself)


def test_the_doctor_names_solutions_that_would_be_cut():
    problems = [PROBLEMS[0], Problem("cut", "2+3?", "5", "2+3\n\n=5\n#### 5")]
    (finding,) = diagnose(ProblemList(problems), stop=["\n\n", "#### 5"]).findings
    assert (finding.check, finding.problem_id) == ("stop", "cut")


def test_rollouts_end_where_stepping_would():
    model, tokenizer = load("tokengym/tiny")
    env = make(3, stop=[" the", "\n"], autoreset_mode="Disabled", max_new_tokens=32, tokenizer=tokenizer)
    attempts = list(collect(CausalLMPolicy(model, tokenizer), env, 8, seed=0))
    assert any(attempt.terminated for attempt in attempts)
    stops = StopStrings([" the", "\n"], tokenizer)
    for attempt in attempts:
        end = stops.first_end(attempt.completion)
        by_token = attempt.completion[-1] == tokenizer.eos_token_id
        assert attempt.terminated == (end is not None or by_token)
        assert end in (None, len(attempt.completion))
        assert len(attempt.logprobs) == len(attempt.rewards) == len(attempt.completion)
        assert attempt.verdict == (
            env.problems.grade(env.decode(attempt.completion), attempt.problem).reason
            if attempt.terminated
            else "truncated"
        )
