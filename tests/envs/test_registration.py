"""The registered environments, as users make them."""

import inspect
import json
import pickle
import string
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.env_checker
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence

import tokengym
from tokengym.envs import IDS, Problem, ProblemList, TokenEnv, TokenVectorEnv, make_vec_env, registration
from tokengym.envs.registration import make_token_env, make_token_vector_env
from tokengym.registry import UnknownNameError

ALL_IDS = sorted(IDS)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict[str, dict]:
    """Settings of each environment that need no network: the data sets' own formats, a few short rows."""
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {"question": f"What is {i}+1?", "answer": f"{i}+1=<<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"} for i in range(480)
    ]
    for name in ("train.jsonl", "test.jsonl"):
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    svamp = [
        {"ID": f"chal-{i}", "Body": f"Ann has {i} pens.", "Question": "And one more?", "Equation": f"( {i} + 1 )",
         "Answer": i + 1, "Type": "Addition"}
        for i in range(420)
    ]  # fmt: skip
    (folder / "SVAMP.json").write_text(json.dumps(svamp))
    competition = [
        {"problem": f"What is ${i}/7$?", "level": "Level 1", "type": "Algebra",
         "solution": rf"It is $\boxed{{\frac{{{i}}}{{7}}}}$."}
        for i in range(30)
    ]  # fmt: skip
    (folder / "math").mkdir()
    (folder / "math" / "train.jsonl").write_text("\n".join(map(json.dumps, competition)))
    table = "\n".join(["frage,wert", *(f"{i}+1?,{i + 1}" for i in range(20))])
    (folder / "table.csv").write_text(table)
    of_source = {
        "tokengym/Arithmetic-v0": {"steps": [1, 2]},
        "tokengym/Dataset-v0": {"data": str(folder / "table.csv"), "question": "frage", "answer": "wert"},
        "tokengym/GSM8K-v0": {"data": str(folder)},
        "tokengym/MATH-v0": {"data": str(folder / "math")},
        "tokengym/Multiplication-v0": {"digits": 2},
        "tokengym/Parity-v0": {"d": 12, "leap": 2, "p_cot": 0.5},
        "tokengym/SVAMP-v0": {"data": str(folder / "SVAMP.json")},
    }
    common = {"tokenizer": "chars:" + string.printable, "max_prompt_tokens": 300, "max_new_tokens": 20}
    return {env_id: common | own for env_id, own in of_source.items()}


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_gymnasium_and_sb3_have_nothing_to_say(env_id, settings):
    env = gym.make(env_id, **settings[env_id])
    check_env(env.unwrapped)
    stable_baselines3.common.env_checker.check_env(env.unwrapped)
    rendered = gym.make(env_id, render_mode="ansi", **settings[env_id])
    rendered.reset(seed=0)
    assert "problem " in rendered.render()


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_two_environments_and_a_pickled_one_are_equal(env_id, settings):
    one, other = (gym.make(env_id, **settings[env_id]) for _ in range(2))
    assert data_equivalence(one.reset(seed=4), other.reset(seed=4), exact=True)
    one.action_space.seed(4)
    pickled = pickle.loads(pickle.dumps(other))  # noqa: S301
    for _ in range(60):
        action = one.action_space.sample()
        step = one.step(action)
        assert data_equivalence(step, other.step(action), exact=True)
        assert data_equivalence(step, pickled.step(action), exact=True)
        if step[2] or step[3]:
            start = one.reset()
            assert data_equivalence(start, other.reset(), exact=True)
            assert data_equivalence(start, pickled.reset(), exact=True)


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_specs_survive_json_and_pickling(env_id, settings):
    env = gym.make(env_id, reward="sparse", **settings[env_id])
    spec = EnvSpec.from_json(env.spec.to_json())
    assert spec == env.spec == pickle.loads(pickle.dumps(env.spec))  # noqa: S301
    assert data_equivalence(gym.make(spec).reset(seed=1), env.reset(seed=1), exact=True)


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_make_vec_makes_the_native_vector_environment(env_id, settings):
    for arguments in ({"vectorization_mode": "vector_entry_point"}, {}):
        env = gym.make_vec(env_id, num_envs=3, **arguments, **settings[env_id])
        assert isinstance(env, TokenVectorEnv)
        assert env.num_envs == 3
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    sync = gym.make_vec(env_id, num_envs=2, vectorization_mode="sync", **settings[env_id])
    assert sync.reset(seed=0)[0] in sync.observation_space
    assert sync.single_observation_space == env.single_observation_space


def test_gym_make_imports_the_package_and_importing_it_is_light():
    code = (
        "import sys, tokengym; "
        "heavy = {'torch', 'transformers', 'stable_baselines3', 'datasets'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        "import gymnasium; "
        "env = gymnasium.make('tokengym:tokengym/Arithmetic-v0', style='equation', prompt='{question}', "
        "tokenizer='chars:0123456789+-*/='); env.reset()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_splits_seeds_and_curricula_are_plain_values():
    arguments = {"style": "equation", "tokenizer": "chars:0123456789+-*/=", "prompt": "{question}"}
    env = gym.make(
        "tokengym/Arithmetic-v0",
        split="test",
        seed=7,
        curriculum={"name": "sequential", "repeats": 2},
        num_problems=3,
        **arguments,
    )
    seen = [env.reset()[1] for _ in range(8)]
    assert [info["problem_id"] for info in seen] == [f"arithmetic-test-7-{i}" for i in (0, 0, 1, 1, 2, 2, 0, 0)]
    assert [info["attempt"] for info in seen] == [0, 1, 0, 1, 0, 1, 2, 3]
    one, other = (gym.make("tokengym/Arithmetic-v0", seed=7, **arguments) for _ in range(2))
    assert one.reset()[1] == other.reset()[1]
    assert gym.make("tokengym/Arithmetic-v0", seed=None, **arguments).reset()


def test_sources_say_what_settings_suit_them_and_the_user_has_the_last_word():
    parity = make_vec_env("tokengym/Parity-v0", 2, d=20)
    assert (parity.max_prompt_tokens, parity.max_new_tokens, len(parity.tokenizer)) == (20, 21, 4)
    assert parity.tokenizer.decode(parity.encode_prompt(parity.problems[0])) == parity.problems[0].question
    product = make_vec_env("tokengym/Multiplication-v0", 2, digits=3, max_new_tokens=7)
    assert product.max_new_tokens == 7
    assert product.tokenizer.decode(product.encode_prompt(product.problems[0])).endswith("||")


def test_worked_examples_come_from_the_validation_split(settings):
    env = gym.make("tokengym/GSM8K-v0", shots=1, **settings["tokengym/GSM8K-v0"])
    env.reset(options={"problem_id": "gsm8k-train-3"})
    slots = env.unwrapped.slots
    assert slots.tokenizer.decode(slots.prompt(0)) == (
        "Q: What is 7+1?\nA:\n7+1=<<7+1=8>>8\n#### 8\n\nQ: What is 3+1?\nA:\n"
    )
    mine = ProblemList([Problem("mine", "1+1?", "2", "#### 2")])
    env = gym.make("tokengym/GSM8K-v0", shots=1, examples=mine, **settings["tokengym/GSM8K-v0"])
    slots = env.unwrapped.slots
    assert slots.tokenizer.decode(slots.encode_prompt(slots.problems[3])).startswith("Q: 1+1?\nA:\n#### 2\n")


CHARS = {"tokenizer": "chars:0123456789", "prompt": "{question}"}


@pytest.mark.parametrize(
    ("env_id", "arguments", "error", "message"),
    [
        (
            "tokengym/Arithmetic-v0",
            {"rewards": "sparse"},
            TypeError,
            "unknown argument 'rewards': did you mean 'reward'",
        ),
        ("tokengym/Arithmetic-v0", {"num_envs": 3}, TypeError, "num_envs"),
        ("tokengym/Arithmetic-v0", {"reward": "sprase"}, UnknownNameError, "did you mean 'sparse'"),
        ("tokengym/Arithmetic-v0", {"tokenizer": "tokengym/tny"}, UnknownNameError, "did you mean 'tokengym/tiny'"),
        ("tokengym/Arithmetic-v0", {"split": "tset"}, UnknownNameError, "did you mean 'test'"),
        ("tokengym/Arithmetic-v0", {"problems": "arithmetics"}, UnknownNameError, "did you mean 'arithmetic'"),
        ("tokengym/GSM8K-v0", {"data": "no/such/folder"}, FileNotFoundError, "no/such/folder"),
        ("tokengym/Dataset-v0", {}, ValueError, "data"),
        ("tokengym/Parity-v0", {"grading": "cott"}, UnknownNameError, "unknown grading 'cott': did you mean 'cot'"),
        ("tokengym/Parity-v0", {"reward": "cot"}, UnknownNameError, "unknown reward 'cot'"),
        ("tokengym/Parity-v0", {"p_cot": 1.2}, ValueError, "p_cot is the share of long solutions, in .0, 1., not 1.2"),
        ("tokengym/Multiplication-v0", {"digit": 3}, TypeError, "did you mean 'digits'"),
        (
            "tokengym/Arithmetic-v0",
            {"max_new_tokens": "x"},
            TypeError,
            "max_new_tokens must be a whole number, got 'x'",
        ),
        ("tokengym/Arithmetic-v0", {"prompt": 5}, TypeError, "prompt must be text or a mapping, got 5"),
        ("tokengym/Arithmetic-v0", {"tokenizer": 5}, TypeError, "tokenizer must be the name of one, .*, got 5"),
        (
            "tokengym/Arithmetic-v0",
            {"problems": [1]},
            TypeError,
            "must be a ProblemSource, such as ProblemList.*got .1.",
        ),
        ("tokengym/Dataset-v0", {"data": "a", "question": 3}, TypeError, "question must be text or a list, got 3"),
        ("tokengym/Dataset-v0", {"data": "a", "validation": "x"}, TypeError, "validation must be a number, got 'x'"),
        ("tokengym/Dataset-v0", {"data": "a", "split_files": "b"}, TypeError, "split_files must be a mapping or None"),
        ("tokengym/Dataset-v0", {"data": 3}, TypeError, "data must be text or a path or None, got 3"),
        ("tokengym/GSM9K-v0", {}, gym.error.NameNotFound, "GSM8K"),
    ],
)
def test_bad_arguments_name_themselves(env_id, arguments, error, message):
    with pytest.raises(error, match=message):
        gym.make(env_id, **{**CHARS, **arguments})


@pytest.mark.parametrize(
    ("name", "message"), [("max_new_token", "'max_new_token': did you mean 'max_new_tokens'"), ("copy", "'copy'")]
)
def test_a_single_environment_made_by_hand_names_a_setting_that_it_does_not_take(name: str, message: str) -> None:
    with pytest.raises(TypeError, match=f"unknown argument {message}"):
        TokenEnv(ProblemList([Problem("p", "1", "1")]), **{**CHARS, name: 4})


def test_agents_are_given_an_id_a_spec_a_single_environment_or_a_vector_one():
    arguments = {"style": "equation", "tokenizer": "chars:0123456789+-*/=", "prompt": "{question}", "max_new_tokens": 9}
    by_id = make_vec_env("tokengym/Arithmetic-v0", 2, **arguments)
    single = gym.make("tokengym/Arithmetic-v0", **arguments)
    from_single = make_vec_env(single, 2, autoreset_mode="Disabled")
    from_spec = make_vec_env(single.spec, 2)
    assert by_id.num_envs == from_single.num_envs == from_spec.num_envs == 2
    assert by_id.max_new_tokens == from_single.max_new_tokens == from_spec.max_new_tokens == 9
    assert make_vec_env(by_id, 5) is by_id
    with pytest.raises(ValueError, match="made already"):
        make_vec_env(by_id, 5, split="test")
    with pytest.raises(UnknownNameError, match="did you mean 'tokengym/Arithmetic-v0'"):
        make_vec_env("tokengym/Arithmetik-v0", 2)
    with pytest.raises(TypeError, match="no environment of tokens"):
        make_vec_env(gym.make("CartPole-v1"), 2)
    with pytest.raises(TypeError, match="CartPole-v1 is no environment of tokens"):
        make_vec_env("CartPole-v1", 2, autoreset_mode="Disabled", tokenizer=None)
    with pytest.raises(TypeError, match="has no spec"):
        make_vec_env(make_token_env("arithmetic", **arguments), 2)
    with pytest.raises(TypeError, match=r"cannot have its wrappers \(TransformReward\)"):
        make_vec_env(gym.wrappers.TransformReward(single, abs), 2)
    with pytest.raises(TypeError, match="set max_new_tokens instead"):
        make_vec_env(gym.make("tokengym/Arithmetic-v0", max_episode_steps=5, **arguments), 2)


def test_problem_sources_are_accepted_as_objects():
    problems = ProblemList([Problem("only", "12", "3")])
    env = make_token_vector_env(problems, 2, **CHARS)
    assert env.reset()[1]["problem_id"].tolist() == ["only", "only"]
    assert gym.make("tokengym/Dataset-v0", problems=problems, **CHARS).reset()[1]["problem_id"] == "only"


def test_everything_exported_exists():
    for name in tokengym.envs.__all__:
        assert getattr(tokengym.envs, name) is not None
    assert set(tokengym.envs.PROBLEMS.names()) >= set(IDS.values())
    with pytest.raises(AttributeError, match="no attribute 'TokenEnvs'"):
        tokengym.envs.TokenEnvs  # noqa: B018


def test_no_argument_of_a_source_hides_one_of_the_environment():
    # `seed` is meant for both; any other name in common would be taken from one of them.
    of_env = set(inspect.signature(TokenVectorEnv).parameters)
    for name in IDS.values():
        of_source = set(inspect.signature(tokengym.envs.PROBLEMS.get(name)).parameters)
        assert of_source & of_env <= {"seed"}


def test_single_environment_speaks_plain_values():
    env = gym.make("tokengym/Arithmetic-v0", style="equation", tokenizer="chars:0123456789+-*/=", prompt="{question}")
    assert isinstance(env.unwrapped, TokenEnv)
    problem = env.unwrapped.slots.problems[3]
    _, info = env.reset(options={"problem_id": problem.id})
    assert info == {"problem_id": problem.id, "prompt_length": len(problem.question), "attempt": 0}
    tokens = [*map(int, problem.answer), env.unwrapped.slots.tokenizer.eos_token_id]
    for token in tokens:
        observation, reward, terminated, truncated, info = env.step(token)
        assert observation in env.observation_space
        assert type(reward) is float
        assert type(terminated) is type(truncated) is bool
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info == {
        "is_success": True,
        "verdict": "correct",
        "answer": problem.answer,
        "problem_id": problem.id,
        "attempt": 0,
        "episode_return": 1.0,
        "episode_length": len(tokens),
    }
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset(options={"prefix": "1"})
    assert env.unwrapped.slots.completion(0).tolist() == [1]


def test_single_environment_shares_its_random_stream():
    env = make_token_env("arithmetic", style="equation", tokenizer="chars:0123456789+-*/=", prompt="{question}")
    env.np_random = np.random.default_rng(3)
    expected = int(np.random.default_rng(3).integers(2**63))
    assert env.reset()[1]["problem_id"].endswith(f"-{expected}")
    env.reset(seed=11)
    assert env.np_random_seed == 11


def test_a_source_that_is_made_already_has_other_splits_and_shots():
    from tokengym.envs import Problem, ProblemList

    splits = {
        name: [Problem(f"{name}-{i}", f"{name} {i}?", str(i), f"#### {i}") for i in range(2)]
        for name in ("train", "validation")
    }
    env = gym.make("tokengym/Arithmetic-v0", problems=ProblemList(splits), split="validation", shots=1)
    slots = env.unwrapped.slots  # type: ignore
    assert slots.problems[0].id == "validation-0"
    shown = [slots.tokenizer.decode(slots.encode_prompt(problem)) for problem in slots.problems.problems]
    assert "Q: validation 1?\nA:\n#### 1\n\nQ: validation 0?" in shown[0]  # and not its own solution
    assert "Q: validation 0?\nA:\n#### 0\n\nQ: validation 1?" in shown[1]
    few = gym.make("tokengym/Arithmetic-v0", problems=ProblemList(splits), split="validation", shots=2)
    with pytest.raises(ValueError, match="shots=2, and only 1 of 2 examples ask something else than problem"):
        few.reset()
    with pytest.raises(ValueError, match="has no test split"):
        gym.make("tokengym/Arithmetic-v0", problems=ProblemList(splits), split="test")


def test_problem_sources_of_other_packages_have_ids_and_built_in_ones_keep_theirs(monkeypatch):
    declared = ["pens", "Chess-v3", "no id", "GSM8K"]
    monkeypatch.setattr(registration, "entry_point_names", lambda group: {"tokengym.problems": declared}[group])
    found = registration._installed()
    assert found == {"tokengym/pens-v0": "pens", "tokengym/Chess-v3": "Chess-v3", "tokengym/GSM8K-v0": "GSM8K"}
    assert {**found, **registration._BUILT_IN}["tokengym/GSM8K-v0"] == "gsm8k"


@pytest.mark.parametrize("num_envs", ["4", 2.5, None])
def test_the_number_of_slots_is_a_whole_number(num_envs):
    with pytest.raises(TypeError, match=f"num_envs must be a whole number, got {num_envs!r}"):
        make_vec_env("tokengym/Arithmetic-v0", num_envs, **CHARS)
