"""Runs that are killed at random moments and resumed end as if they had been left alone."""

import pytest

from tokengym.benchmarks.studies import random_kills


@pytest.mark.slow
def test_killed_runs_end_as_runs_that_were_left_alone() -> None:
    found = random_kills.run(0, ("sft", "reinforce"), seed=1)
    assert set(found) == {f"{name}, {world}" for name in ("sft", "reinforce") for world in random_kills.WORLDS}
    for record in found.values():
        assert record["differences"] == []
        assert record["equal"] == record["trials"] == 1
    assert sum(record["kills"] for record in found.values()) > 0


def test_every_agent_that_learns_in_a_folder_is_killed() -> None:
    """Those are left out whose stages are those of two others: backtranslation, MPO and ARES."""
    from tokengym.agents import AGENTS

    assert {*random_kills.SETTINGS, "rft", "backtranslation", "mpo", "ares"} == set(AGENTS.names())
