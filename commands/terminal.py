"""How commands are called from a terminal, and how they speak to it."""

import dataclasses
import re
import sys
from collections import ChainMap, Counter
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

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
    _check_lists(run, arguments)
    config = (tyro.conf.OmitArgPrefixes,)
    try:
        tyro.cli(run, prog=program, args=arguments, description=description, config=config)
    except (ValueError, OSError) as error:
        if error.args and isinstance(message := error.args[0], str) and "`" in message:
            error.args = (_as_flags(message, _settings(run)), *error.args[1:])
        raise


def _as_flags(message: str, settings: Container[str]) -> str:
    """A message of the library's, whose names of settings stand in backticks, with the options that set them."""
    flag_of = lambda found: f"--{found[1].replace('_', '-')}" if found[1] in settings else found[0]  # noqa: E731
    return re.sub(r"`(\w+)`", flag_of, message)


def _settings(run: Callable[..., None]) -> dict[str, Any]:
    """Type hints of all settings that a command takes, by name."""
    hints = get_type_hints(run)
    groups = [get_type_hints(hint) for hint in hints.values() if dataclasses.is_dataclass(hint)]
    return dict(ChainMap(hints, *groups))


def _check_lists(run: Callable[..., None], arguments: Sequence[str]) -> None:
    """Checks that no option with a list of values is given twice: the values of the first would be dropped.

    Raises:
        ValueError: One is; the message names it.
    """
    flags = Counter(argument.partition("=")[0].replace("_", "-") for argument in arguments)
    for name, hint in _settings(run).items():
        option = f"--{name.replace('_', '-')}"
        if flags[option] > 1 and any(get_origin(kind) is tuple for kind in (hint, *get_args(hint))):
            raise ValueError(f"{option} is given {flags[option]} times: give it once, with all of its values")


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
    """The value of a flag, if it is given; the last one, which is the one that counts."""
    value: str | None = None
    for argument, following in pairwise((*arguments, None)):
        if argument == name:
            value = following
        elif argument is not None and argument.startswith(f"{name}="):
            value = argument.partition("=")[2]
    return value


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    from rich.table import Table

    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    return table


def say(thing: Any) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=isinstance(thing, str), markup=False).print(thing)


def set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
