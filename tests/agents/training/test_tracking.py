"""Experiment trackers and TensorBoard: what they receive, and that a resumed run continues theirs."""

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import Accelerator, tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tokengym.agents import make_agent
from tokengym.agents.training.run_folder import RunFolder, has_progress, hyperparameters
from tokengym.agents.training.tracking import ALIASES, Shown, check_trackers, with_aliases
from tokengym.registry import UnknownNameError


class Notebook(GeneralTracker):
    """A tracker that only remembers."""

    name = "notebook"
    requires_logging_directory = False
    made: ClassVar[list["Notebook"]] = []

    def __init__(self, project: str, **settings: Any) -> None:
        super().__init__()
        self.project, self.settings, self.lines, self.config, self.tables = project, settings, [], {}, []
        self.events: list[str] = []
        self.made.append(self)

    @property
    def tracker(self) -> "Notebook":
        return self

    def start(self) -> None:
        self.events.append("start")

    def store_init_configuration(self, values: dict) -> None:
        self.config |= values

    def log(self, values: dict, step: int | None = None, **settings: Any) -> None:
        self.lines.append((step, values))

    def log_table(self, table_name: str, columns: list[str], data: list[list[Any]], step: int) -> None:
        self.tables.append((table_name, columns, data, step))

    def finish(self) -> None:
        self.events.append("finish")


@pytest.fixture
def notebooks(monkeypatch) -> list[Notebook]:
    """Stand-ins for two trackers; those that were begun, in order."""
    monkeypatch.setattr(Notebook, "made", [])
    for name in ("wandb", "trackio"):
        kind = type(name, (Notebook,), {"name": name})
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, kind)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.WANDB, LoggerType.TRACKIO])
    return Notebook.made


SMALL = {
    "device": "cpu", "num_envs": 4, "problems_per_iteration": 2, "samples_per_problem": 2, "validation_problems": 0,
    "save_iterations": 1,
}  # fmt: skip


def test_trackers_receive_what_the_folder_has_and_continue_their_run(notebooks, folder, sums, tmp_path) -> None:
    run = tmp_path / "run"
    for iterations, resume in ((1, False), (3, True)):
        agent = make_agent(
            "grpo", sums, folder, run=run, resume=resume, iterations=iterations, log_with=["wandb", "trackio"],
            log_project="sums", **SMALL,
        )  # fmt: skip
        agent.learn()
    assert [book.name for book in notebooks] == ["wandb", "trackio"] * 2
    assert all(book.project == "sums" and book.events == ["start", "finish"] for book in notebooks)
    assert notebooks[0].settings == notebooks[2].settings
    assert notebooks[1].settings == notebooks[3].settings
    key = json.loads((run / "tracking.json").read_text())["id"]
    assert notebooks[0].settings == {"id": key, "name": "run", "resume": "allow", "dir": str(run)}
    assert notebooks[1].settings == {"name": f"run-{key}", "resume": "allow"}
    assert notebooks[0].config["iterations"] == 1
    assert notebooks[0].config["agent"] == "grpo"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    sent = [line for book in notebooks[::2] for line in book.lines]
    assert [step for step, _ in sent] == [line["step"] for line in lines] == [4, 8, 12]
    for (_, values), line in zip(sent, lines, strict=True):
        kept = {name: value for name, value in line.items() if name != "step" and value is not None}
        assert values == with_aliases(kept)
        assert values["train/reward"] == line["rollout/mean_reward"]
    name, columns, rows, step = notebooks[0].tables[0]
    assert (name, columns, step) == ("attempts", ["question", "attempt", "answer", "verdict", "total_reward"], 4)
    assert len(rows) == 2  # one at each problem
    board = EventAccumulator(str(run))
    board.Reload()
    assert [event.step for event in board.Tensors("attempts/1/text_summary")] == [4, 8, 12]
    shown = board.Tensors("attempts/1/text_summary")[0].tensor_proto.string_val[0].decode()
    assert rows[0][0] in shown
    assert rows[0][3] in shown
    assert [event.value for event in board.Scalars("train/reward")] == pytest.approx(
        [line["rollout/mean_reward"] for line in lines]
    )


def test_learning_on_begins_the_trackers_again(notebooks, folder, sums) -> None:
    agent = make_agent("grpo", sums, folder, iterations=1, log_with="wandb", **SMALL)
    agent.learn()
    agent.learn()
    assert notebooks[0].settings == notebooks[1].settings
    assert notebooks[0].settings["name"] == "grpo"
    assert len(notebooks[0].settings["id"]) == 8
    assert [book.events for book in notebooks] == [["start", "finish"]] * 2
    assert [[step for step, _ in book.lines] for book in notebooks] == [[4], [8]]


def test_a_tracker_is_refused_before_anything_is_written(folder, sums, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tracking, "_available_trackers", [])
    run = tmp_path / "run"
    for names, kind, message in (
        ("comet_ml", ImportError, "log_with 'comet_ml' needs a package: pip install comet-ml"),
        ("trackoi", UnknownNameError, "unknown tracker 'trackoi': did you mean 'trackio'"),
        ("tensorboard", ValueError, "TensorBoard events are in the folder of every run"),
    ):
        with pytest.raises(kind, match=message):
            make_agent("grpo", sums, folder, run=run, log_with=names, **SMALL)
    assert not run.exists()
    check_trackers([])


def test_hyperparameters_are_on_the_board(tmp_path) -> None:
    spec = {"id": "E-v0", "kwargs": {"steps": [2, 3]}}
    config = {"agent": "ppo", "env": json.dumps(spec), "config": {"clip": 0.2, "best": None}}
    flat = {"agent": "ppo", "env.id": "E-v0", "env.kwargs.steps": "[2, 3]", "clip": 0.2}
    assert hyperparameters(config) == flat
    RunFolder(tmp_path / "run", config).log(0, {"a": math.nan})
    board = EventAccumulator(str(tmp_path / "run"))
    board.Reload()
    content = board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    started = HParamsPluginData.FromString(content).session_start_info.hparams
    assert {name: value.string_value or value.number_value for name, value in started.items()} == flat


def test_a_run_that_failed_at_its_start_leaves_nothing_in_the_way(tmp_path) -> None:
    run = RunFolder(tmp_path / "run", {"a": 1})
    assert run.key() == run.key()
    (tmp_path / "run" / "wandb").mkdir()
    assert not has_progress(tmp_path / "run")
    assert len(RunFolder(tmp_path / "run", {"a": 2}).key()) == 8


def test_aliases_never_replace_a_metric() -> None:
    metrics = {"rollout/entropy": 1.0, "train/entropy": 2.0, "rollout/mean_reward": 0.5}
    assert with_aliases(metrics) == {**metrics, "train/reward": 0.5, "rollout/ep_rew_mean": 0.5}
    names = [alias for aliases in ALIASES.values() for alias in aliases]
    assert len({*names, *ALIASES}) == len(names) + len(ALIASES)


def test_an_attempt_is_shown_as_code() -> None:
    text = Shown("What is *1* + 2?", "1+2=3\n#### 3", "3", "correct", 1.0).text()
    assert text == "    What is *1* + 2?\n    \n    1+2=3\n    #### 3\n\ncorrect, answer 3, return 1"


def test_documentation_lists_the_names() -> None:
    page = (Path(__file__).parents[3] / "docs" / "runs.md").read_text()
    for name, aliases in ALIASES.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        assert all(f"`{alias}`" in row for alias in aliases), name


def test_trackers_of_accelerate_are_as_this_module_takes_them() -> None:
    assert {"wandb", "trackio", "tensorboard"} <= set(tracking.LOGGER_TYPE_TO_CLASS)
    assert Accelerator(cpu=True).trackers == []
