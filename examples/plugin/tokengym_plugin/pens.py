"""Problems of a third party: purchases in words, drawn without end."""

from collections.abc import Mapping
from typing import Any

from tokengym.envs.problems import Draws, ProceduralSource


class Pens(ProceduralSource):
    """Prices of pens, one multiplication in words.

    Args:
        split: Split of the problems: "train", "validation" or "test".
        seed: Seed of the endless stream of problems.
        most: Largest count and largest price.
    """

    name = "pens"
    remedy = "raise most"

    def __init__(self, split: str = "train", seed: int = 0, most: int = 20) -> None:
        super().__init__(split, seed)
        if most < 3:
            raise ValueError(f"most must be at least 3, got {most}")
        self.most = most

    def draw(self, draws: Draws) -> tuple[str, Any]:
        """The content that decides on the split, and what `tell` makes the problem of."""
        count, price = draws.between(2, self.most), draws.between(2, self.most)
        return f"{count}*{price}", (count, price)

    def tell(self, draws: Draws, drawn: Any) -> tuple[str, str, str]:
        """Question, answer and solution."""
        count, price = drawn
        cost = count * price
        question = f"A pen costs {price} dollars. What do {count} pens cost?"
        return question, str(cost), f"{count}*{price} = <<{count}*{price}={cost}>>{cost} dollars.\n#### {cost}"

    @property
    def env_settings(self) -> Mapping[str, Any]:
        """Settings of `tokengym/pens-v0` where none are given."""
        return {"max_prompt_tokens": 64, "max_new_tokens": 48}
