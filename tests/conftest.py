"""Settings for all tests, and a grading worker that does what it is asked to."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Tiny models are slower on several threads than on one; the subprocesses of tests inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing in the tests reaches for the hub; without this each unknown name waits for its time-out.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# No verdict of a test depends on how fast the machine is, or on luck: examples are drawn from a fixed seed. To look
# for new ones: `pytest --hypothesis-profile search`.
settings.register_profile("fixed", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("search", settings.get_profile("fixed"), derandomize=False, max_examples=3000)
settings.load_profile("fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the longest test, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: item.name != "test_commands_train_and_evaluate")


@pytest.fixture(scope="session")
def make_stand_in() -> Iterator[Callable[..., object]]:
    """Workers whose reader obeys the answer: "slow", "greedy", "dying" and so on, see `stand_in_worker.py`.

    The deadline is one that "slow" is sure to miss, and nothing else.
    """
    from tokengym.rewards.grading.latex import Worker

    made: list[Worker] = []

    class StandIn(Worker):
        def compare(self, gold, answers):
            self.deadline = 0.05 if "slow" in answers else 600.0
            return super().compare(gold, answers)

    def make(memory: int = 1 << 30) -> Worker:
        script = Path(__file__).parent / "rewards" / "grading" / "stand_in_worker.py"
        made.append(StandIn(memory=memory, script=script))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


@pytest.fixture(scope="session")
def shorten_problems() -> Callable[[pytest.MonkeyPatch], None]:
    """Generated word problems have one step, and answers at most 64 tokens, where nothing else is asked for."""
    import gymnasium as gym

    import tokengym  # noqa: F401 - registers the environments

    def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"steps": 1, "max_new_tokens": 64}.items():
            monkeypatch.setitem(gym.registry["tokengym/Arithmetic-v0"].kwargs, name, value)

    return shorten


@pytest.fixture
def short_problems(monkeypatch: pytest.MonkeyPatch, shorten_problems: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Applies `shorten_problems` to one test."""
    shorten_problems(monkeypatch)


@pytest.fixture(scope="session", autouse=True)
def _patience() -> None:
    """The worker that all tests share waits for the slowest machine."""
    from tokengym.rewards.grading.latex import WORKERS

    WORKERS.deadline = 600.0
