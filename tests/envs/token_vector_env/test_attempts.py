"""An attempt from its prompt to its verdict."""

from tokengym.envs import Problem, ProblemList, slot_info
from tokengym.models import load_tokenizer

TOKENIZER = load_tokenizer("chars:0123456789+=#\n")
EOS = TOKENIZER.eos_token_id


def test_an_attempt_from_prompt_to_reward_on_the_end_of_sequence_token(make, tokens_of):
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


def test_a_spent_budget_truncates_and_the_last_token_may_still_end_the_sequence(make, tokens_of):
    env = make(2, max_new_tokens=2)
    env.reset(options={"problem_id": "sum-12"})
    env.step(tokens_of("33"))
    _, rewards, terminations, truncations, infos = env.step([EOS, tokens_of("3")[0]])
    assert terminations.tolist() == [True, False]
    assert truncations.tolist() == [False, True]
    assert rewards.tolist() == [1, 0]
    assert infos["verdict"].tolist() == ["correct", "truncated"]
    assert infos["answer"].tolist() == ["3", None]


def test_several_end_of_sequence_ids(make, tokens_of):
    newline = tokens_of("\n")[0]
    env = make(2, eos_token_ids=[newline])
    assert env.eos_token_ids == {EOS, newline}
    env.reset(options={"problem_id": "sum-12"})
    env.step(tokens_of("33"))
    _, rewards, terminations, _, _ = env.step([newline, EOS])
    assert terminations.all()
    assert rewards.tolist() == [1, 1]


def test_special_tokens_inside_a_completion_do_not_vanish_before_grading(make, play, tokens_of):
    env = make()
    env.reset(options={"problem_id": "sum-66"})
    play(env, [tokens_of("1"), [TOKENIZER.pad_token_id], tokens_of("2")])
    *_, infos = env.step([EOS])
    assert infos["verdict"][0] == "wrong"


def test_the_gold_answer_is_in_neither_observation_nor_reset_info(make, tokens_of):
    problems = ProblemList([Problem("p", "1+1=", "777", "1+1=2\n#### 777")])
    env = make(1, problems)
    observation, infos = env.reset()
    assert "777" not in TOKENIZER.decode(observation["input_ids"][0])
    assert "777" not in str(infos)
    *_, infos = env.step(tokens_of("1"))
    assert "777" not in str(infos)
