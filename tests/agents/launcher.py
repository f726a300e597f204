"""Runs scripts in one process or in several that learn together, and imports PyTorch and the agents once for all.

Each line of standard input is a request, the arguments of `launch`; each line of standard output is its answer, the
exit codes by rank. Processes meet at a store that has its port from the moment the system chooses it: no other program
can take that port in between.
"""

import contextlib
import functools
import json
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable

from torch.distributed import TCPStore

import tokengym.agents.expert_iteration
import tokengym.agents.outcome_models
import tokengym.agents.ppo
import tokengym.agents.rcrl  # noqa: F401 - forked processes have what is imported here


def fork(function: Callable[[], object]) -> int:
    """The id of a process that calls a function and ends."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        function()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(script: str, arguments: list[str], environment: dict[str, str], output: str) -> None:
    """Runs a script as the main module of this process."""
    os.environ.update(environment)
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def open_store() -> tuple[int, int, str]:
    """A process with a store, the pipe whose closing ends it, and the store's port."""
    (read_port, write_port), (read_end, write_end) = os.pipe(), os.pipe()

    def keep() -> None:
        os.close(write_end)
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(write_port, f"{store.port}\n".encode())
        os.read(read_end, 1)

    process = fork(keep)
    os.close(write_port)
    os.close(read_end)
    with os.fdopen(read_port) as told:
        return process, write_end, told.readline().strip()


def launch(script: str, arguments: list[str], outputs: list[str]) -> list[int]:
    """Exit codes of a script's processes, one for each file of outputs; the first that fails ends the others."""
    count = len(outputs)
    environments: list[dict[str, str]] = [{}]
    if count > 1:
        store, end, port = open_store()
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
        shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        environments = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    ranks = {
        fork(functools.partial(run, script, arguments, environment, output)): rank
        for rank, (environment, output) in enumerate(zip(environments, outputs, strict=True))
    }
    codes = [0] * count
    while ranks:
        child, status = os.wait()
        rank = ranks.pop(child, None)
        if rank is not None:
            codes[rank] = os.waitstatus_to_exitcode(status)
        if status or rank is None:  # without a store the others would wait for ever
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    if count > 1:
        os.close(end)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(store, 0)
    return codes


def main() -> None:
    for line in sys.stdin:
        sys.stdout.write(json.dumps(launch(**json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
