"""The command of a study, `python -m tokengym.benchmarks.studies.NAME`: settings are options, and a table comes out."""

import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NoReturn, TypeVar

import tyro
from rich.console import Console

from ..exits import exit_status
from ..registry import summary

S = TypeVar("S")
R = TypeVar("R")


def study_command(
    study: type[S],
    run: Callable[[S], R],
    table: Callable[[R], Any],
    *,
    width: int = 160,
    is_empty: Callable[[R], bool] = lambda results: False,
) -> NoReturn:
    """Runs a study by the options of the command line, prints its table and what is missing, and ends the process.

    Settings that cannot be are one line. Where jobs failed, each has a line with the reason; if none is left to be
    shown, the exit status is 1.

    Args:
        study: Class of the study's settings.
        run: Function that runs the study; JSON values with `missing`, why by job, where it has jobs.
        table: Function that makes the table of the results.
        width: Columns of the output.
        is_empty: Function that tells whether results have nothing for the table.
    """

    def program(settings: Any) -> None:
        results = run(settings)
        missing = results.get("missing", {}) if isinstance(results, Mapping) else {}
        for name, reason in missing.items():
            sys.stderr.write(f"missing: {name}: {reason}\n")
        if is_empty(results):
            raise ValueError("nothing was finished that a table could show; the same command tries again")
        Console(width=width).print(table(results))

    # Of a function's argument: errors in settings of its own would be shown in a box, with a pointer to the help.
    program.__annotations__["settings"] = Annotated[study, tyro.conf.arg(name="")]
    config = (tyro.conf.OmitArgPrefixes,)
    sys.exit(exit_status(lambda: tyro.cli(program, description=summary(study), config=config)))
