"""How commands are called from a terminal, and how they speak to it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from rich.table import Table


def run_command(
    run: Callable[..., None],
    program: str,
    arguments: Sequence[str],
    description: str | None,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> None:
    arguments = [_renamed(argument, renamed) for argument in arguments]
    tyro.cli(run, prog=program, args=arguments, description=description, config=(tyro.conf.OmitArgPrefixes,))


def _renamed(argument: str, renamed: Mapping[str, str]) -> str:
    """An option by its name of today, if it is one that had another name in the version before."""
    option, equals, value = argument.partition("=")
    name = option.removeprefix("--").replace("-", "_")
    if not option.startswith("--") or name not in renamed:
        return argument
    new = f"--{renamed[name].replace('_', '-')}"
    sys.stderr.write(f"tokengym: {option} is called {new} now, and its old name goes with the next version\n")
    return f"{new}{equals}{value}"


def flag(arguments: Sequence[str], name: str) -> str | None:
    """The value of a flag, if it is given."""
    for argument, following in pairwise((*arguments, None)):
        if argument == name:
            return following
        if argument is not None and argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    from rich.table import Table

    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    return table


def say(thing: Any) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=isinstance(thing, str), markup=False).print(thing)


def check_output(path: Path | None) -> None:
    """Checks that a file can be written, before the work whose results it is for.

    Raises:
        OSError: It cannot; the message names the file.
    """
    if path is not None:
        existed = path.exists()
        path.open("a").close()
        if not existed:
            path.unlink()


def set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
