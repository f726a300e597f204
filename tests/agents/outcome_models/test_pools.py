"""Pools of attempts that were sampled before."""

import json

import pytest

from tokengym.agents.rollouts.pools import pool_files, read_pool


@pytest.mark.parametrize("place", ["", "train/attempts-0.jsonl"])
def test_a_pool_gives_what_sampling_would_have(same, weights, make_agent, tmp_path, place: str) -> None:
    first = make_agent(run=tmp_path / "run").learn()
    pool = tmp_path / "run" / place
    text = (tmp_path / "run" / "train" / "attempts-0.jsonl").read_text()
    (tmp_path / "run" / "train" / "attempts-0.jsonl").write_text(text + '{"problem_id": "tr')  # being written still
    second = make_agent(pool=str(pool))
    second.learn()
    assert same(weights(first.outcome_model), weights(second.outcome_model))
    assert second.num_attempts == 0
    assert (tmp_path / "run" / "train" / "attempts-0.jsonl").read_text() == text + '{"problem_id": "tr'


def test_of_a_pool_the_first_attempts_at_the_first_problems_are_taken(records, make_agent, tmp_path) -> None:
    make_agent(run=tmp_path / "run").learn()
    pool = read_pool(str(tmp_path / "run"), make_agent().env, 3, 5)
    assert {name: len(group) for name, group in pool.items()} == {"train-y": 5, "train-z": 5, "train-yz": 5}
    expected = [
        r["completion"]
        for r in records(tmp_path / "run" / "train" / "attempts-0.jsonl")
        if r["problem_id"] == "train-z"
    ]
    assert [a.completion.tolist() for a in pool["train-z"]] == expected[:5]


def test_the_rounds_of_a_run_are_read_in_order(tmp_path) -> None:
    names = ["round-1/attempts-2.jsonl", "round-1/attempts-10.jsonl", "round-2/attempts-0.jsonl",
             "round-10/attempts-0.jsonl", "round-10/validation/attempts-0.jsonl"]  # fmt: skip
    for name in reversed(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(file.relative_to(tmp_path)) for file in pool_files(str(tmp_path))] == names[:-1]


def test_a_pool_that_is_not_there_or_not_of_this_policy_is_an_error(even, records, slots, make_agent, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no pool 'nowhere'"):
        make_agent(pool="nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty' holds no attempts-\*\.jsonl"):
        make_agent(pool=str(tmp_path / "empty"))
    (tmp_path / "attempts-0.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no attempts"):
        make_agent(pool=str(tmp_path / "attempts-0.jsonl")).learn()
    (tmp_path / "attempts-0.jsonl").write_text('{"question": "what else?"}\n')
    with pytest.raises(ValueError, match=r"attempts-0\.jsonl is no pool of this policy's attempts at these problems"):
        make_agent(pool=str(tmp_path)).learn()

    make_agent(run=tmp_path / "run").learn()
    pool = tmp_path / "run" / "train" / "attempts-0.jsonl"
    with pytest.raises(ValueError, match=r"no pool of this policy's attempts.*train-y"):
        make_agent(env=slots(even("test")), pool=str(pool)).learn()
    lines = records(pool)
    # Letters that mean others to the writer's tokenizer; and such as there are not here.
    for change, complaint in (
        (1, "reads otherwise by the policy's tokenizer"),
        (100, "not of this tokenizer's tokens"),
    ):
        foreign = [line | {"completion": [0 + change, *line["completion"][1:]], "is_success": True} for line in lines]
        (tmp_path / "foreign.jsonl").write_text("".join(json.dumps(line) + "\n" for line in foreign))
        with pytest.raises(ValueError, match=complaint):
            make_agent(pool=str(tmp_path / "foreign.jsonl")).learn()


def test_right_attempts_recorded_as_wrong_are_no_pool(records, make_agent, tmp_path) -> None:
    """They would make pairs of two right attempts; a verdict that a machine's speed has decided may be another."""
    make_agent(run=tmp_path / "run").learn()
    lines = records(tmp_path / "run" / "train" / "attempts-0.jsonl")
    flipped = next(line for line in lines if line["is_success"])
    for verdict, complaint in (("wrong", f"attempt {flipped['number']} at .* is right, and recorded as wrong"),
                               ("timeout", None)):  # fmt: skip
        pool = tmp_path / f"{verdict}.jsonl"
        changed = [line | ({"is_success": False, "verdict": verdict} if line is flipped else {}) for line in lines]
        pool.write_text("".join(json.dumps(line) + "\n" for line in changed))
        agent = make_agent(pool=str(pool))
        if complaint is None:
            assert len(read_pool(str(pool), agent.env, None, None)) == 4
            continue
        with pytest.raises(ValueError, match=complaint):
            agent.learn()
