"""`tokengym train`: an agent with its own settings as options, on an environment."""

import dataclasses
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ..exits import Terminated
from ..registry import summary
from ..settings import CountOrZero, check_settings
from .options import MAIN, AdapterOptions, ComputeOptions, EnvChoice
from .terminal import flag, run_command, say

if TYPE_CHECKING:
    from ..agents import Agent


@dataclasses.dataclass(frozen=True)
class TrainOptions(EnvChoice):
    """Environment, model and folder of a training run.

    Attributes:
        model: Model to train: "tokengym/tiny", a name on the Hugging Face hub, a folder or a *.gguf file. By default
            agents train tokengym/tiny, and pretraining makes a new model.
        run: Folder of the run: configuration, metrics, attempts, checkpoints and the trained model. By default a new
            one, `runs/AGENT-DATE-TIME`.
        resume: Continue the run in the folder of `--run`; `--resume auto` starts it if there is none.
        seed: Seed of problems, attempts and the order of training.
        preset: Published recipe whose settings become the defaults, such as "dapo" or "dr-grpo" for grpo.
        total_episodes: Number of attempts to sample at most; by default the agent's settings alone decide.
        max_hours: Hours of wall time after which training stops, with everything saved that `--resume` needs.
        log_with: Experiment trackers to send metrics and sample attempts to, beside TensorBoard: "wandb", "trackio" or
            others that accelerate knows.
        log_project: Project of the experiment trackers.
    """

    model: str | None = None
    run: Path | None = None
    resume: Literal["no", "yes", "auto"] = "no"
    seed: CountOrZero = 0
    preset: str | None = None
    total_episodes: int | None = None
    max_hours: float | None = None
    log_with: tuple[str, ...] = ()
    log_project: str = "tokengym"

    def __post_init__(self) -> None:
        check_settings(self)


def train(arguments: Sequence[str]) -> None:
    """Train an agent."""
    from ..agents.registry import AGENTS, config_class

    if not arguments or arguments[0].startswith("-"):
        names = "\n".join(f"  {name:16} {text}" for name, text in AGENTS.summaries().items())
        say(f"usage: tokengym train AGENT [--help] [OPTIONS]\n\nagents:\n{names}")
        return
    name, *others = arguments
    config_type = config_class(name)

    def run(
        options: Annotated[TrainOptions, MAIN], config: Any, adapter: AdapterOptions, compute: ComputeOptions
    ) -> None:
        compute.begin()
        folder = options.run or Path("runs") / time.strftime(f"{name}-%Y%m%d-%H%M%S")
        if options.run is None and options.resume == "yes":
            raise ValueError("--resume continues the run in a folder: say which by --run")
        loading = dataclasses.asdict(compute) | dataclasses.asdict(adapter)
        del loading["threads"]
        agent = AGENTS.get(name)(
            options.spec(),
            options.model,
            run=folder,
            resume={"no": False, "yes": True}.get(options.resume, "auto"),
            seed=options.seed,
            preset=options.preset,
            log_with=options.log_with,
            log_project=options.log_project,
            **loading,
            **dataclasses.asdict(config),
        )
        _learn(agent, options, folder)

    run.__annotations__["config"] = agent_settings(config_type, name, flag(arguments, "--preset"))
    renamed = getattr(config_type, "renamed", {})
    run_command(run, f"tokengym train {name}", _resume_said(others), AGENTS.summary(name), renamed)


def _learn(agent: "Agent[Any]", options: TrainOptions, folder: Path) -> None:
    """Trains an agent, and says what there is in its folder afterwards, also where it was interrupted."""
    from ..agents.evaluation.tables import outcome_table
    from ..agents.outcome_models import OutcomeModelAgent
    from ..agents.training.progress import key_numbers

    report = say if agent.ranks.is_main else lambda thing: None  # of several processes one speaks
    if agent.ranks.count > 1:
        report(f"{agent.ranks.count} processes")
    elif "ACCELERATE_DYNAMO_BACKEND" in os.environ:  # which `accelerate launch` sets
        report(
            "1 process: without a GPU `accelerate launch` starts no more, and "
            "`torchrun --nproc-per-node 2 -m -- tokengym train ...` does"
        )

    def on_log(agent: "Agent[Any]", metrics: dict[str, float]) -> None:
        report(f"{agent.num_attempts} attempts  {key_numbers(metrics)}")

    # An agent's own default stands where no budget is given.
    budget = {} if options.total_episodes is None else {"total_episodes": options.total_episodes}
    try:
        with stoppable(options.max_hours):
            agent.learn(**budget, callback=on_log, progress_bar=True)
    except KeyboardInterrupt as stop:
        cause = str(stop) or "interrupted"
        report(f"{cause}: what was finished is in {folder}; the same command with --run {folder} --resume continues")
        if isinstance(stop, TimeIsUp):
            return
        raise
    if agent.ranks.broadcast(agent.run is not None and not agent.run.is_finished):
        agent.keep_model()  # of an agent of the user's own that leaves this out
    if isinstance(agent, OutcomeModelAgent):
        report(outcome_table(agent.reports))
    what = "run, logs and model are" if (folder / "model").exists() else "run and logs are"
    report(f"{what} in {folder} (tensorboard --logdir {folder})")


def _resume_said(arguments: Sequence[str]) -> list[str]:
    """The arguments with a value for `--resume`, which may stand alone."""
    said: list[str] = []
    for argument, following in pairwise((*arguments, "")):
        said.append(argument)
        if argument == "--resume" and following not in ("no", "yes", "auto"):
            said.append("yes")
    return said


def agent_settings(config_class: type, agent: str, preset: str | None) -> Any:
    """An agent's settings as options of a command: its own first, each with the source of its default."""
    from ..agents.presets import PRESETS, with_preset
    from ..settings import settings_of

    config_class = with_preset(config_class, preset, agent)
    recipe = PRESETS.get(preset or "")
    fields: list[Any] = []
    for setting in settings_of(config_class):
        cited = recipe.source if recipe is not None and setting.name in recipe.settings else setting.source
        source = f" [{cited}]" if cited else ""
        option = tyro.conf.arg(
            help=setting.text or None, help_behavior_hint=lambda default, source=source: f"(default: {default}){source}"
        )
        default = dataclasses.field()
        if setting.default is not dataclasses.MISSING:
            default = dataclasses.field(default_factory=lambda value=setting.default: value)
        fields.append((setting.name, Annotated[setting.type, option], default))
    options = dataclasses.make_dataclass(config_class.__name__, fields, kw_only=True)
    options.__doc__ = summary(config_class)
    return Annotated[options, tyro.conf.arg(name=agent)]


class TimeIsUp(KeyboardInterrupt):
    """The wall time that was given is over."""


@contextmanager
def stoppable(max_hours: float | None) -> Iterator[None]:
    """Within the block, SIGTERM and the end of some hours interrupt as Ctrl-C does.

    Args:
        max_hours: Wall time from now; `None` for no limit.

    Raises:
        Terminated: The process was asked to end.
        TimeIsUp: The time is over.
        ValueError: A time that is not above 0.
    """

    def stop(number: int, _: object) -> None:
        raise Terminated("terminated") if number == signal.SIGTERM else TimeIsUp(f"{max_hours:g} hours are over")

    if max_hours is not None and not 0 < max_hours < 1e6:
        raise ValueError(f"--max-hours must be above 0, got {max_hours}")
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_REAL, 0 if max_hours is None else 3600 * max_hours)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
