"""The command line: `tokengym list | train | plan | eval | extrapolate | runs | render | doctor | bench | demo`."""

import os
import sys
from collections.abc import Callable, Sequence

from . import __version__
from .commands.bench import bench, demo
from .commands.doctor import doctor
from .commands.evaluate import evaluate
from .commands.extrapolate import extrapolate
from .commands.lists import list_names, runs
from .commands.plan import plan
from .commands.render import render
from .commands.terminal import say
from .commands.train import train
from .exits import exit_status
from .registry import summary, unknown_name

DESCRIPTION = "Gymnasium environments and agents for teaching language models to reason with reinforcement learning."

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "list": list_names,
    "train": train,
    "plan": plan,
    "eval": evaluate,
    "extrapolate": extrapolate,
    "runs": runs,
    "render": render,
    "doctor": doctor,
    "bench": bench,
    "demo": demo,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status. Errors of the user's are one line, without a traceback."""
    # Before PyTorch is loaded: threads that wait spin for some microseconds and sleep then. By default they spin on,
    # and on a machine with other work take the cores from those that they wait for, see `tokengym bench busy`.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    command, *rest = (list(sys.argv[1:]) if arguments is None else list(arguments)) or ["--help"]
    if command in ("-h", "--help"):
        lines = "\n".join(f"  {name:12} {summary(function)}" for name, function in COMMANDS.items())
        usage = "usage: tokengym COMMAND [--help] [OPTIONS]\n       tokengym --version"
        say(f"{usage}\n\n{DESCRIPTION}\n\ncommands:\n{lines}")
        return 0
    if command == "--version":
        say(f"tokengym {__version__}")
        return 0

    def run() -> None:
        if command not in COMMANDS:
            raise unknown_name("command", command, COMMANDS)
        COMMANDS[command](rest)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
