"""Warnings name what goes wrong and the knob, once while it lasts."""

import json
import logging
import re

import pytest

from tokengym.agents.training.alarms import Alarms

QUIET = {
    "rollout/uniform_groups": 0.5, "rollout/success_rate": 0.4, "rollout/truncation_rate": 0.1, "rollout/entropy": 1.0,
    "rollout/unreplaced_groups": 0.0, "train/trained_attempts": 8.0, "train/approx_kl": 0.001,
    "train/reference_kl_per_attempt": 3.0, "train/mismatch_kl": 1e-5,
}  # fmt: skip
LOUD = {
    "uniform_groups": ({"rollout/uniform_groups": 1.0}, "samples_per_problem"),
    "nothing_trained": ({"train/trained_attempts": 0.0}, "problems_per_iteration"),
    "dynamic_sampling": ({"rollout/unreplaced_groups": 2.0}, "2 groups .* raise dynamic_sampling"),
    "truncation": ({"rollout/truncation_rate": 0.75}, "75% .* max_new_tokens"),
    "entropy": ({"rollout/entropy": 0.05}, "from 1 to 0.05 .* learning_rate"),
    "kl": ({"train/approx_kl": 0.5}, "0.5 nats per token"),
    "kl of the reference": ({"train/reference_kl_per_attempt": 500.0}, "500 nats per attempt .* kl_coef"),
    "mismatch": ({"train/mismatch_kl": 0.05}, "0.05 nats per token .* importance"),
}


@pytest.mark.parametrize("name", LOUD)
def test_each_cause_is_named_once_while_it_lasts_and_logged_all_along(name: str, caplog) -> None:
    caplog.set_level(logging.WARNING)
    alarms, (metrics, words) = Alarms(), LOUD[name]
    key = f"alarm/{name.split()[0]}"
    assert alarms.watch(QUIET, 0) == {}
    patience = 2 if name == "uniform_groups" else 0
    for i in range(patience):
        assert alarms.watch(QUIET | metrics, 1 + i) == {}
    assert alarms.watch(QUIET | metrics, 3) == {key: 1.0}
    assert alarms.watch(QUIET | metrics, 4) == {key: 1.0}
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("iteration 3: ")
    assert re.search(words, caplog.messages[0])
    assert alarms.watch(QUIET, 5) == {}
    for i in range(patience):
        alarms.watch(QUIET | metrics, 11 + i)
    assert alarms.watch(QUIET | metrics, 13) == {key: 1.0}
    assert len(caplog.messages) == 2


def test_what_comes_and_goes_is_warned_of_ever_more_rarely(caplog) -> None:
    alarms = Alarms()
    for iteration in range(1000):
        alarms.watch(QUIET | ({"rollout/entropy": 0.05} if iteration % 2 else {}), iteration)
    assert [int(message.split()[1][:-1]) for message in caplog.messages] == [1, 11, 31, 71, 151, 311, 631]


def test_what_is_not_measured_raises_no_alarm(caplog) -> None:
    assert Alarms().watch({}, 0) == {}
    assert Alarms().watch(dict.fromkeys(QUIET, float("nan")), 0) == {}
    assert caplog.messages == []


def test_what_was_seen_survives_a_checkpoint(caplog) -> None:
    """Told of the same metrics, alarms that were restored in between warn of what the others warn of."""
    caplog.set_level(logging.WARNING)
    story = [QUIET | change for change in (
        {}, {"rollout/uniform_groups": 1.0}, {"rollout/uniform_groups": 1.0},
        {"rollout/uniform_groups": 1.0, "rollout/entropy": 0.05}, {"rollout/entropy": 0.05},
        {"train/mismatch_kl": 0.05},
    )]  # fmt: skip
    whole = Alarms()
    expected = [whole.watch(metrics, i) for i, metrics in enumerate(story)]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    caplog.clear()
    found, alarms = [], Alarms()
    for i, metrics in enumerate(story):
        found.append(alarms.watch(metrics, i))
        state = json.loads(json.dumps(alarms.state_dict(), allow_nan=False))
        alarms = Alarms()
        alarms.load_state_dict(state)
    assert found == expected
    assert [record.getMessage() for record in caplog.records] == messages
