"""Which release of a peer an interpreter has."""

import subprocess


def check_trl(python: str, wanted: str) -> None:
    """Checks that an interpreter has the release of TRL that a comparison is written for.

    Args:
        python: Interpreter.
        wanted: Version of TRL.

    Raises:
        ValueError: There is no such interpreter, or it has another release of TRL or none.
    """
    code = "import importlib.metadata; print(importlib.metadata.version('trl'))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    except OSError as error:
        raise ValueError(f"{python!r} is no interpreter: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise ValueError(f"{python!r} has no TRL: make an environment with trl=={wanted}, as `make bench`") from error
    if done.stdout.strip() != wanted:
        raise ValueError(f"{python!r} has TRL {done.stdout.strip()}, and the comparison is with {wanted}")
