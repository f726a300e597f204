"""`tokengym render`: attempts to look at."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ..files import check_output, write_text
from ..settings import Count, CountOrZero, NonNegative, check_settings, check_unused
from .options import MAIN, EnvChoice
from .terminal import run_command, say

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec


@dataclasses.dataclass(frozen=True)
class RenderOptions(EnvChoice):
    """Attempts to show, and where.

    Attributes:
        source: Folder of a run, one of its `attempts-*.jsonl` files, or a model, which then makes new attempts.
        env: Environment id; by default the one that the run or the model was trained on.
        count: Number of attempts to show; by default 3, and all for a page.
        verdict: Verdict of the attempts to show, such as `correct`, `wrong` or `no_answer`.
        problem: Id of the problem whose recorded attempts to show.
        orm: Outcome model that scores each step: "tokengym/tiny-orm", or the `model` folder of a `tokengym train orm`
            run.
        split: Split of the data for new attempts; by default the environment's own.
        temperature: Sampling temperature of new attempts; 0 is greedy decoding.
        seed: Seed of new attempts.
        output: File to write instead of the terminal: a page to browse (`.html`) or a picture of the terminal (`.svg`).
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")] = "tokengym/tiny"
    env: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    count: Count | None = None
    verdict: str | None = None
    problem: str | None = None
    orm: Path | None = None
    split: Literal["train", "validation", "test"] | None = None
    temperature: NonNegative = 0.7
    seed: CountOrZero = 0
    output: Path | None = None

    def __post_init__(self) -> None:
        check_settings(self)


def render(arguments: Sequence[str]) -> None:
    """Show attempts step by step, with rewards and scores: in the terminal, as a page or as a picture."""

    def run(options: Annotated[RenderOptions, MAIN]) -> None:
        from rich.console import Console

        from ..benchmarks.reports.gather import Wanted, gather, recorded_files
        from ..benchmarks.reports.html import attempts_page
        from ..benchmarks.reports.terminal import attempt_panel, picture

        kind = None if options.output is None else options.output.suffix.lower()
        if kind not in (None, ".html", ".svg"):
            raise ValueError(f"--output takes a .html or a .svg file, got {options.output}")
        check_output(options.output)
        if recorded_files(options.source):
            check_unused(options, ("split", "temperature", "seed"), "a model for new attempts, a run's folder `model`")
        count = 3 if options.count is None and kind != ".html" else options.count

        def make_spec(own: "EnvSpec | None") -> "EnvSpec":
            split = {} if options.split is None else {"split": options.split}
            if options.env is None and own is not None:
                return options.with_settings(own, **split)
            return dataclasses.replace(options, env=options.env or EnvChoice.env).spec(**split)

        attempts = gather(
            options.source,
            Wanted(count, options.verdict, options.problem),
            make_spec,
            orm=options.orm,
            temperature=options.temperature,
            seed=options.seed,
        )
        title = f"Attempts of {options.source}"
        if options.output is None:
            for attempt in attempts:
                Console(highlight=False, markup=False).print(attempt_panel(attempt))
            return
        if kind == ".svg":
            page = picture(attempts, f"tokengym render {options.source}")
        else:
            facts = {"Attempts": f"{len(attempts)}", "Correct": f"{sum(a.verdict == 'correct' for a in attempts)}"}
            page = attempts_page(title, facts, attempts)
        write_text(options.output, page)
        say(f"{len(attempts)} attempts are in {options.output}")

    run_command(run, "tokengym render", arguments, render.__doc__)
