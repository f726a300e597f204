"""Run folders: configuration, versions, metrics, attempts and checkpoints of one training run."""

import errno
import fcntl
import json
import logging
import os
import platform
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakValueDictionary

from ...files import (
    DamagedFileError,
    check_folder,
    finite,
    naming,
    read_json,
    read_jsonl,
    read_object,
    write_json,
    write_text,
)
from .tracking import Shown, with_aliases

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_logger = logging.getLogger(__name__)

CONFIG, METRICS, FINISHED, LOCK = "config.json", "metrics.jsonl", "finished.json", ".lock"
TRACKING = "tracking.json"
_AT_START = (CONFIG, LOCK, TRACKING, "wandb")
_OUTCOMES = ("eval/maj@1", "rollout/mean_reward", "train/loss")
"""Metrics that TensorBoard shows beside hyperparameters."""
_PACKAGES = ("tokengym", "gymnasium", "torch", "transformers", "accelerate", "numpy")


# Settings that change no result, up to rounding, and so may differ when a run is resumed.
FREE = ("num_envs", "config.micro_batch_tokens", "config.gradient_checkpointing", "config.save_steps",
        "config.save_iterations")  # fmt: skip
# Settings that say how long a run is. Learning-rate schedules are those of the new length from there on.
LENGTHS = ("config.iterations", "config.rounds", "config.patience")

# What a configuration has a digest of, in words.
_CONTENTS = {
    "data": "its data were others",
    "validation": "its validation data were others",
    "weights": "its model had other weights",
}

# Settings that say where contents are, which may be moved, each with the digest by which they are known.
_PLACES = {"env.kwargs.data": "data"}

Resume = bool | Literal["auto"]
"""Choice to continue the run in a folder: `True` needs one there, "auto" starts it if there is none."""


class RunFolder:
    """A folder of its own for each run.

    It holds `config.json` (configuration, seed and versions), `metrics.jsonl` and TensorBoard events with the same
    numbers, also under the names of `tracking.ALIASES`, with hyperparameters and sample attempts, and what the agent
    adds. Scalars are logged against cumulative sampled attempts, the cost that all
    algorithms share; agents that sample none log against optimizer steps. The folder is locked against other processes
    for as long as this object lives.

    Args:
        path: Folder of the run.
        config: Full configuration of the run in JSON values.
        resume: Continue a run, see `Resume`. Settings in `FREE` and `LENGTHS` may then differ from those that the run
            started with, and so may the place of its data.

    Raises:
        FileExistsError: The folder holds a run and `resume` is false, or it holds other files.
        FileNotFoundError: `resume` is true and no run is there.
        NotADirectoryError: There is a file in the folder's place.
        BlockingIOError: Another process writes to the folder.
        DamagedFileError: The configuration or the metrics of the run to continue cannot be read.
        ValueError: The run to continue has another configuration; the message names the differences.
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any], resume: Resume = False) -> None:
        self.path = Path(path)
        check_folder(self.path)
        if resume not in (True, False, "auto"):
            raise ValueError(f'resume must be True, False or "auto", got {resume!r}')
        self._metrics = self.path / METRICS
        self._writer: SummaryWriter | None = None
        self._newest: int | None = None  # step of the last line that an earlier process has logged
        self._names: list[set[str]] = []  # names of the metrics in each line of that step
        self._config = config = json.loads(json.dumps(config))
        record = self.path / CONFIG
        begun = record.exists()
        if not begun and self.path.exists() and any(self.path.iterdir()):
            raise FileExistsError(f"{self.path} is not empty and holds no run: choose another folder")
        if resume is True and not begun:
            raise FileNotFoundError(f'{self.path} holds no run to continue: leave out `resume`, or let it be "auto"')
        if begun and not resume and has_progress(self.path):
            raise FileExistsError(
                f"{self.path} holds a run already: continue it by `resume`, or choose another folder or delete it"
            )
        with naming(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.path)
        if begun and resume:
            # A run that failed at its start may be begun with other settings, such as those its error advises.
            before = read_object(record) if has_progress(self.path) else config
            changed = {name for name, *_ in differing(before, config)}
            unknown = _CONTENTS.keys() - before.keys()  # a version that took no such digest began the run
            moved = {place for place, name in _PLACES.items() if name in config and before.get(name) == config[name]}
            if refused := changed.difference(FREE, LENGTHS, unknown, moved):
                named = [(name, text) for name, text in _changes(before, config) if name in refused]
                changes = ", ".join(_CONTENTS.get(name, text) for name, text in named)
                raise ValueError(
                    f"{self.path} was begun with another configuration ({changes}): give the settings of then, or "
                    "choose another folder"
                )
            if self._metrics.exists():
                logged = read_jsonl(self._metrics, "step")
                self._keep(logged)  # a half-written line would run into the next
                self._newest = logged[-1]["step"] if logged else None
                self._names = [line.keys() - {"step"} for line in logged if line["step"] == self._newest]
        write_json(record, {**config, "versions": versions()})

    def rewind(self, step: int) -> None:
        """Forgets metrics logged after `step`: work that is about to be done again."""
        self._newest = None
        if self._metrics.exists():
            self._keep([line for line in read_jsonl(self._metrics, "step") if line["step"] <= step])
        if self._writer is None:
            self._writer = self._events(purge_step=step + 1)

    def log(self, step: int, scalars: Mapping[str, float], attempts: Sequence[Shown] = ()) -> None:
        """Adds one line of metrics at `step`, and attempts to TensorBoard's texts.

        If the first line of a resumed run is earlier than the last one that is there, or is one of the same step with
        the same metrics, the agent does again what no checkpoint of its own holds: the metrics from there on are
        forgotten, with a warning.
        """
        if self._newest is not None and (
            step < self._newest or (step == self._newest and self._names.count(set(scalars)) == 1)
        ):
            _logger.warning(
                "%s begins anew at step %d: metrics up to step %d are dropped", self.path, step, self._newest
            )
            self.rewind(step - 1)
        self._newest = None
        if self._writer is None:
            self._writer = self._events()
        (self.path / FINISHED).unlink(missing_ok=True)
        with self._metrics.open("a") as file:
            file.write(json.dumps({"step": step, **finite(scalars)}) + "\n")
        for name, value in with_aliases(scalars).items():
            self._writer.add_scalar(name, value, step)
        for number, attempt in enumerate(attempts, 1):
            self._writer.add_text(f"attempts/{number}", attempt.text(), step)
        self._writer.flush()

    def finish(self) -> None:
        """Marks the run as finished, until something is logged again."""
        write_json(self.path / FINISHED, {"finished": time.strftime("%Y-%m-%d %H:%M:%S")})

    @property
    def is_finished(self) -> bool:
        """True if the run is marked as finished, and nothing has been logged since."""
        return (self.path / FINISHED).exists()

    def key(self) -> str:
        """An id of the run for experiment trackers, eight hexadecimal digits that stay when it is resumed."""
        record = self.path / TRACKING
        if not record.exists():
            write_json(record, {"id": secrets.token_hex(4)})
        return read_json(record)["id"]

    def _events(self, purge_step: int | None = None) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter  # here and not above: it imports PyTorch
        from torch.utils.tensorboard.summary import hparams

        writer = SummaryWriter(str(self.path), purge_step=purge_step)
        assert writer.file_writer is not None  # noqa: S101 - it is made with the writer
        for summary in hparams(hyperparameters(self._config), dict.fromkeys(_OUTCOMES, 0.0)):
            writer.file_writer.add_summary(summary)  # `add_hparams` would begin a folder of its own
        return writer

    def _keep(self, lines: Sequence[Mapping[str, Any]]) -> None:
        write_text(self._metrics, "".join(json.dumps(line) + "\n" for line in lines))


def has_progress(path: Path) -> bool:
    """True if a run's folder holds more than its configuration: a run that failed at its start leaves nothing else."""
    return any(file.name not in _AT_START and "tfevents" not in file.name for file in path.iterdir())


def hyperparameters(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """A run's configuration as dashboards take it: flat, lists as text, without what is `None`."""
    flat = {name.removeprefix("config."): value for name, value in _flat(config).items()}
    return {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in flat.items()
        if value is not None
    }


def lock(path: Path) -> object:
    """Keeps other processes from writing to a folder for as long as the returned object lives.

    Raises:
        BlockingIOError: Another process has locked the folder; the message names it.
    """
    key = str(path.resolve())
    if (held := _LOCKS.get(key)) is not None:
        return held
    file = (path / LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            return _Lock(file)  # a file system without locks
        file.seek(0)
        writer = file.read().strip() or "another process"
        file.close()
        raise BlockingIOError(
            f"{path} is in use by {writer}: wait until it is done, or choose another folder"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    _LOCKS[key] = found = _Lock(file)
    return found


def is_locked(path: Path) -> bool:
    """True if a process writes to a run's folder now."""
    if str(path.resolve()) in _LOCKS:
        return True
    try:
        with (path / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class _Lock:
    """An open file with a lock, which ends with it."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def __del__(self) -> None:
        self.file.close()


_LOCKS: "WeakValueDictionary[str, _Lock]" = WeakValueDictionary()
"""The locks of this process by folder: it may open a run's folder again."""


class RunSummary(NamedTuple):
    """A run in a line.

    Attributes:
        path: Folder of the run.
        agent: Name of the agent.
        environment: Id of the environment.
        attempts: Attempts at the last log line.
        best: Best validation maj@1.
        state: State of the run: "running" (a process writes to it), "finished", "failed" (it has attempts whose loss
            was not finite), "interrupted", "not begun", or "damaged" (a file that says what it is cannot be read).
        versions: Versions of tokengym and torch.
        written: Time when its metrics were last written.
        damage: Error of a damaged run, which has nothing else.
    """

    path: str
    agent: str = ""
    environment: str = ""
    attempts: str = "0"
    best: str = ""
    state: str = ""
    versions: str = ""
    written: str = ""
    damage: str = ""


def find_runs(folder: Path) -> Iterator[RunSummary]:
    """The runs in a folder, and in the folders inside it, by path; stages inside of runs are left out."""
    records = sorted(folder.rglob(CONFIG))
    inside: set[Path] = set()
    for record in records:
        path = record.parent
        if inside.isdisjoint(path.parents) and (summary := _summary(path)) is not None:
            inside.add(path)
            yield summary


def _summary(path: Path) -> RunSummary | None:
    """A run's line; `None` for a folder with another kind of configuration, a model's for instance."""
    try:
        config = read_json(path / CONFIG)
        if not isinstance(config, Mapping) or not {"agent", "env", "versions"} <= config.keys():
            return None
        metrics = read_jsonl(path / METRICS, "step") if (path / METRICS).exists() else []
    except DamagedFileError as error:
        return RunSummary(str(path), state="damaged", damage=str(error))
    accuracies = [line["eval/maj@1"] for line in metrics if line.get("eval/maj@1") is not None]
    if is_locked(path):
        state = "running"
    elif (path / FINISHED).exists():
        state = "finished"
    elif any(path.glob("not-finite-*.jsonl")):
        state = "failed"
    else:
        state = "interrupted" if has_progress(path) else "not begun"
    return RunSummary(
        path=str(path),
        agent=config["agent"],
        environment=_flat({"env": config["env"]}).get("env.id", config["env"]),
        attempts=str(_attempts(metrics)),
        best=f"{max(accuracies):.3f}" if accuracies else "",
        state=state,
        versions=f"tokengym {config['versions'].get('tokengym')}, torch {config['versions'].get('torch')}",
        written=time.strftime("%Y-%m-%d %H:%M", time.localtime((path / METRICS).stat().st_mtime)) if metrics else "",
    )


def _attempts(metrics: Sequence[Mapping[str, Any]]) -> int:
    """Attempts that a run has logged: its last step, or what an agent says that logs by optimizer steps."""
    said = [line["rollout/attempts"] for line in metrics if "rollout/attempts" in line]
    if said:
        return said[-1]
    return metrics[-1]["step"] if any("rollout/mean_reward" in line for line in metrics) else 0


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The JSON values of `now` that are others than `before`, as "name: old -> new"; empty if there are none."""
    return ", ".join(change for _, change in _changes(before, now))


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, old and new value of each JSON value of `now` that is another than `before`."""
    old, new = _flat(before), _flat(now)
    return [(name, old.get(name), new[name]) for name in new if old.get(name) != new[name]]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, f"{name}: {old!r} -> {new!r}") for name, old, new in differing(before, now)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by name, those of nested mappings, and of mappings written as JSON, by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, str) and value.startswith("{"):
            with suppress(json.JSONDecodeError):
                value = json.loads(value)
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on, and of Python."""
    return {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
