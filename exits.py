"""How a program ends: with an exit status, and with errors of the user's in one line instead of a traceback."""

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable

from .registry import PLUGINS, UnknownNameError


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), as schedulers do before they kill."""


def exit_status(program: Callable[[], object]) -> int:
    """Runs a program; returns its exit status.

    What a user gave wrong, memory that cannot be had and files that the system refuses are one line on the standard
    error. Interrupts end quietly, and so does output that nobody reads any more.

    Args:
        program: Function that runs the program.

    Raises:
        RuntimeError: Something else went wrong, in the program itself.
    """
    try:
        program()
    except (UnknownNameError, ValueError, TypeError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 128 + signal.SIGPIPE
        places = "".join(f"; {note}" for note in getattr(error, "__notes__", ())) or _place_in_plugin(error)
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


def _place_in_plugin(error: Exception) -> str:
    """Where code of another package raised an error, or called what raised it; "" if none did, or called this one."""
    frames = [
        (str(frame.f_globals.get("__name__")).partition(".")[0], frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    own = __name__.partition(".")[0]
    places = [f"; {file}, line {line}" for package, file, line in frames if package in PLUGINS - {own}]
    return places[-1] if places and frames[-1][0] != own else ""


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
