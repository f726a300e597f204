"""Runs as the process of a `Worker` whose reader does what the answer says, for tests of the guards around it.

Nothing here depends on how fast the machine is: an answer that is slow waits for a signal that never comes, and every
other one is read at once.
"""

import importlib.util
import os
import signal
import sys
from pathlib import Path

WORKER = Path(__file__).parents[3] / "rewards" / "grading" / "latex_worker.py"
spec = importlib.util.spec_from_file_location("latex_worker", WORKER)
assert spec is not None
assert spec.loader is not None
latex_worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(latex_worker)

CAP = int(sys.argv[1])
CHUNK = 1 << 20


def compare(gold: str, answers: list[str]) -> tuple[str, str | None]:
    """The command is the last answer; one that is none is correct if it is the gold answer."""
    command, _, path = answers[0].partition(" ")
    first = not path or not os.path.exists(path)
    if command in ("killed", "orphaned") and path and first:  # these die once alone
        os.mkdir(path)
    match command:
        case "slow":
            signal.pause()
        case "greedy":  # twice what is allowed, at most
            kept = [bytes(CHUNK) for _ in range(2 * CAP // CHUNK)]
            return "correct", str(len(kept))
        case "half":
            return "correct", str(len(b"x" * (CAP // 2)))
        case "dying":
            os._exit(3)
        case "killed":
            if first:
                os.kill(os.getpid(), signal.SIGKILL)
        case "orphaned":
            if first:
                os.kill(os.getppid(), signal.SIGKILL)
                os._exit(0)
        case "unreadable":
            return "unparsed", None
        case "undecided":
            return "ambiguous", None
        case "printing":
            print('["correct", "printed"]', flush=True)  # noqa: T201
        case "writing":
            try:
                Path(gold).write_text("x")
            except OSError:
                return "wrong", None
            return "correct", None
    return ("correct" if gold in answers[0] else "wrong"), answers[0]


if __name__ == "__main__":
    latex_worker.main(CAP, compare, lambda: None)
