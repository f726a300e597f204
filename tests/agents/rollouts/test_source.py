"""How runs notice that the problems have changed."""

import pytest

from tokengym.agents.rollouts.source import fingerprint
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
