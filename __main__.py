"""The command line: `tokengym list | train | plan | eval | extrapolate | runs | render | doctor | bench | demo`."""

import os
import select
import signal
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
from .commands.train import Terminated, train
from .registry import UnknownNameError, summary, unknown_name

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
    try:
        if command not in COMMANDS:
            raise unknown_name("command", command, COMMANDS)
        COMMANDS[command](rest)
    except (UnknownNameError, ValueError, TypeError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 128 + signal.SIGPIPE
        places = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        sys.stderr.write(f"tokengym: {_message(error)}{places}\n")
        return 1
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        what = (str(error) or "none is left").splitlines()[0]
        advice = "lower --num-envs, --micro-batch-tokens or the token limits; `tokengym plan` shows what fits"
        sys.stderr.write(f"tokengym: not enough memory: {what}; {advice}\n")
        return 1
    except KeyboardInterrupt as stop:
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    return 0


def _nobody_reads() -> bool:
    """Whether the reader of the output has left, as `head` does; the rest of the output is dropped then."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory could not be had, of the machine or of a device; PyTorch is not loaded to ask."""
    of_device = type(error).__name__ == "OutOfMemoryError"
    return of_device or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _message(error: Exception) -> str:
    """What an error says, with the file first if the system refused one."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
