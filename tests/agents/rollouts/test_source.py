"""How runs record their environment, and notice that the problems have changed."""

import copy
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from tokengym.agents import GRPO
from tokengym.agents.rollouts.source import env_record, fingerprint
from tokengym.envs import Problem, ProblemList
from tokengym.envs.curriculum import Sequential
from tokengym.envs.problems.arithmetic import Arithmetic
from tokengym.envs.problems.procedural import Draws, ProceduralSource


class Doubling(ProceduralSource):
    """A source of a third party, which has no text of its own."""

    name = "doubling"

    def __init__(self, split: str = "train", seed: int = 0, most: int = 500) -> None:
        super().__init__(split, seed)
        self.most = most

    def draw(self, draws: Draws) -> tuple[str, int]:
        number = draws.between(2, self.most)
        return str(number), number

    def tell(self, draws: Draws, drawn: int) -> tuple[str, str, str]:
        return f"{drawn}+{drawn}?", str(2 * drawn), f"#### {2 * drawn}"


def test_an_endless_source_is_known_by_its_problems_and_not_by_its_place_in_memory() -> None:
    sources = [Doubling(), Doubling()]  # both alive, so at two places
    assert fingerprint(sources[0]) == fingerprint(sources[1])
    assert repr(sources[0]) == "Doubling(split='train')"
    others = [Doubling("test"), Doubling(seed=1), Doubling(most=400)]
    assert len({fingerprint(source) for source in (*sources, *others)}) == 4


@pytest.mark.parametrize("settings", [{}, {"steps": 2}, {"seed": 3}])
def test_an_endless_source_with_a_text_of_its_own_is_known_by_it(settings) -> None:
    assert fingerprint(Arithmetic(**settings)) == repr(Arithmetic(**settings))


def judge(steps):
    return [0.5] * len(steps)


ROWS = [Problem(f"sum-{i}", f"What is {i}+1?", str(i + 1)) for i in range(4)]


def test_paths_and_numbers_of_numpy_are_recorded_as_json_has_them() -> None:
    spec = copy.deepcopy(gym.spec("tokengym/GSM8K-v0"))  # what is registered stays as it is
    plain = {"data": "data/gsm8k", "max_new_tokens": 8, "reward": {"name": "dense", "weight": 0.5}, "stop": ["a"]}
    unlike = {"data": Path("data/gsm8k"), "max_new_tokens": np.int64(8), "stop": ("a",)}
    spec.kwargs = spec.kwargs | unlike | {"reward": {"name": "dense", "weight": np.float32(0.5)}}
    assert EnvSpec.from_json(env_record(spec)).kwargs == gym.spec("tokengym/GSM8K-v0").kwargs | plain


@pytest.mark.parametrize(
    ("settings", "record"),
    [
        ({"curriculum": Sequential()}, "curriculum=<tokengym.envs.curriculum.Sequential object>"),
        ({"reward": {"name": "judged", "judge": judge}}, "reward={'name': 'judged', 'judge': <function judge>}"),
        ({"problems": ProblemList(ROWS)}, "problems=ProblemList(4 problems, split='train'), max_new_tokens=4"),
    ],
)
def test_runs_on_objects_are_saved_and_resumed(settings, record: str, tmp_path) -> None:
    sizes = {"iterations": 1, "problems_per_iteration": 1, "samples_per_problem": 2, "validation_problems": 0}
    for resume in (False, True):
        env = gym.make("tokengym/Arithmetic-v0", max_new_tokens=4, **settings)
        agent = GRPO(env, "tokengym/tiny", run=tmp_path / "run", resume=resume, device="cpu", **sizes)
        agent.learn()
    agent.save(tmp_path / "saved")
    for file in ("run/config.json", "saved/agent.json"):
        assert record in (tmp_path / file).read_text()
