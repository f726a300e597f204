"""Finished rounds of an agent that improves in rounds, each kept whole or not at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ...files import new_folder, read_json, read_tensors, write_json

_WEIGHTS, _RECORD = "weights.safetensors", "round.json"


@dataclass(frozen=True, slots=True)
class Round:
    """A finished round.

    Attributes:
        number: Number of the round; 0 is what came before any sampling.
        accuracy: Validation maj@1 at its end.
        weights: Trainable weights at its end.
    """

    number: int
    accuracy: float
    weights: Mapping[str, Tensor]

    def save(self, folder: Path) -> None:
        """Writes the round to `finished` in its folder."""
        folder.mkdir(parents=True, exist_ok=True)
        with new_folder(folder / "finished") as finished:
            save_file({name: tensor.contiguous().cpu() for name, tensor in self.weights.items()}, finished / _WEIGHTS)
            write_json(finished / _RECORD, {"accuracy": self.accuracy})

    @classmethod
    def load(cls, folder: Path | None, number: int) -> "Round | None":
        """The round that `save` wrote; `None` if it is not finished, or there is no folder."""
        if folder is None or not cls.is_finished(folder):
            return None
        finished = folder / "finished"
        return cls(number, read_json(finished / _RECORD)["accuracy"], read_tensors(finished / _WEIGHTS))

    @staticmethod
    def is_finished(folder: Path) -> bool:
        """True if `save` has written a round to the folder."""
        return (folder / "finished").exists()
