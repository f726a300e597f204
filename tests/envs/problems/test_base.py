import pickle
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from tokengym import registry
from tokengym.envs.problems.arithmetic import Arithmetic
from tokengym.envs.problems.base import PROBLEMS, Problem, ProblemList, make_problems
from tokengym.envs.problems.procedural import Draws, ProceduralSource
from tokengym.registry import UnknownNameError

ONE, TWO = Problem("a-0", "1+1?", "2", "1+1 = <<1+1=2>>2\n#### 2"), Problem("a-1", "2+2?", "4")


def test_a_list_is_a_source():
    source = ProblemList([ONE, TWO], split="validation")
    assert (source.size, len(source), source.split) == (2, 2, "validation")
    assert list(source) == [ONE, TWO]
    assert source[np.int64(1)] == TWO
    assert source.find("a-1") is TWO
    assert source.grade("so\n#### 4", TWO).correct
    assert not source.grade("so\n#### 5", TWO).correct
    assert list(pickle.loads(pickle.dumps(source))) == [ONE, TWO]  # noqa: S301 - our own pickle


@pytest.mark.parametrize("index", [-1, 2])
def test_index_out_of_range(index):
    with pytest.raises(IndexError, match="outside"):
        ProblemList([ONE, TWO])[index]


def test_bad_lists():
    with pytest.raises(ValueError, match="no problems"):
        len(ProblemList([]))
    with pytest.raises(ValueError, match="'a-0' names two problems, numbers 0 and 2"):
        len(ProblemList([ONE, TWO, ONE]))
    with pytest.raises(TypeError, match=r"train problem 1 is \('2\+2=', '4'\): give Problem\(id, question"):
        ProblemList([ONE, ("2+2=", "4")])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"'b-0'.*look like 'a-0'"):
        ProblemList([ONE]).find("b-0")
    with pytest.raises(UnknownNameError, match="'test'"):
        ProblemList([ONE], split="tests")


def test_make_problems():
    source = make_problems("arithmetic", split="test", steps=1)
    assert isinstance(source, Arithmetic)
    assert source.steps == (1, 1)
    assert make_problems(source) is source
    with pytest.raises(ValueError, match="already made: give it seed, steps"):
        make_problems(source, steps=2, seed=1)
    with pytest.raises(UnknownNameError, match="did you mean 'arithmetic'"):
        make_problems("arithmetik")
    assert {"arithmetic", "dataset", "gsm8k", "svamp"} <= set(PROBLEMS.names())


def test_third_party_sources_come_through_entry_points(tmp_path, monkeypatch):
    (tmp_path / "their_problems.py").write_text(
        "from tokengym.envs.problems.base import Problem, ProblemList\n"
        "def make(split='train', n=1):\n"
        "    return ProblemList([Problem(f'x-{i}', f'{i}?', str(i)) for i in range(n)], split)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("theirs", "their_problems:make", PROBLEMS.group)

    def entry_points(group, name="theirs"):
        return [point] if (group, name) == ("tokengym.problems", "theirs") else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert "theirs" in PROBLEMS.names()
    assert "their_problems" not in sys.modules
    assert make_problems("theirs", n=3, split="test").size == 3


def test_a_procedural_source_needs_no_more_than_its_draws() -> None:
    class Doubling(ProceduralSource):
        name = "doubling"

        def draw(self, draws: Draws) -> tuple[str, int]:
            number = draws.between(2, 500)
            return str(number), number

        def tell(self, draws: Draws, drawn: int) -> tuple[str, str, str]:
            return f"{drawn}+{drawn}?", str(2 * drawn), f"#### {2 * drawn}"

    source = Doubling()
    assert source[3] == source.find("doubling-train-0-3")
    assert source[3].id == "doubling-train-0-3"
    assert Doubling("test")[0].question != source[0].question
