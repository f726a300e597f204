"""Run folders: configuration, versions, metrics, attempts and checkpoints of one training run."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import read_jsonl, write_json, write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_PACKAGES = ("tokengym", "gymnasium", "torch", "transformers", "accelerate", "numpy")


class RunFolder:
    """A folder of its own for each run.

    It holds `config.json` (configuration, seed and versions), `metrics.jsonl` and TensorBoard events with the same
    numbers, and what the agent adds. Scalars are logged against cumulative sampled attempts, the cost that all
    algorithms share; agents that sample none log against optimiser steps.

    Args:
        path: the folder.
        config: the run's full configuration, JSON values.
        resume: go on with the run in `path`, if there is one.

    Raises:
        FileExistsError: a run is there already and `resume` is false.
        ValueError: the run to go on with has another configuration; names what differs.
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any], resume: bool = False) -> None:
        self.path = Path(path)
        self._metrics = self.path / "metrics.jsonl"
        self._writer: SummaryWriter | None = None
        config = json.loads(json.dumps(config))
        record = self.path / "config.json"
        if record.exists():
            if not resume:
                raise FileExistsError(
                    f"{self.path} holds a run already: go on with it (resume), or choose another folder or delete it"
                )
            if changes := differences(json.loads(record.read_text()), config):
                raise ValueError(f"{self.path} was begun with another configuration ({changes})")
            if self._metrics.exists():
                self._keep(read_jsonl(self._metrics))  # lest a half-written line run into the next
        elif self.path.exists() and any(self.path.iterdir()):
            raise FileExistsError(f"{self.path} is not empty and holds no run: choose another folder")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            versions = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
            write_json(record, {**config, "versions": versions})

    def rewind(self, step: int) -> None:
        """Forgets metrics logged after `step`: work that is about to be done again."""
        if self._metrics.exists():
            self._keep([line for line in read_jsonl(self._metrics) if line["step"] <= step])
        if self._writer is None:
            self._writer = self._events(purge_step=step + 1)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one line of metrics at `step`."""
        if self._writer is None:
            self._writer = self._events()
        with self._metrics.open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def _events(self, purge_step: int | None = None) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter  # here and not above: it imports PyTorch

        return SummaryWriter(str(self.path), purge_step=purge_step)

    def _keep(self, lines: Sequence[Mapping[str, Any]]) -> None:
        write_text(self._metrics, "".join(json.dumps(line) + "\n" for line in lines))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The JSON values of `now` that are others than `before`, as "name: old -> new"; empty if there are none."""
    old, new = _flat(before), _flat(now)
    return ", ".join(f"{name}: {old.get(name)!r} -> {new[name]!r}" for name in new if old.get(name) != new[name])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by name, those of nested mappings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
