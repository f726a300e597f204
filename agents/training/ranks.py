"""The processes that learn together: what each of them does, and what they say to each other."""

import atexit
import functools
import logging
import os
import socket
import time
from typing import TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

T = TypeVar("T")

_logger = logging.getLogger(__name__)

_LETTING_GO = 0.2  # seconds


def find_main_process(patience: float = 300.0) -> None:
    """Makes sure that this process, if it is one of several, can reach the first one, before PyTorch waits in silence.

    Launchers give its address in the environment variables MASTER_ADDR and MASTER_PORT.

    Args:
        patience: Seconds to wait for it.

    Raises:
        TimeoutError: It cannot be reached.
        ValueError: MASTER_PORT is no number.
    """
    rank = os.environ.get("RANK", "0")
    if rank == "0" or torch.distributed.is_initialized() or "MASTER_ADDR" not in os.environ:
        return
    port = os.environ.get("MASTER_PORT", "29500")
    if not port.isdecimal():
        raise ValueError(f"MASTER_PORT is {port!r}: give the number of the port that the first process listens at")
    address = os.environ["MASTER_ADDR"], int(port)
    started, warned = time.monotonic(), False
    while True:
        try:
            socket.create_connection(address, timeout=5).close()
        except OSError as error:
            waited = time.monotonic() - started
            if waited >= patience:
                raise TimeoutError(
                    f"process {rank} cannot reach the first process at {address[0]}:{address[1]} ({error}): start it, "
                    "and let MASTER_ADDR and MASTER_PORT be its address, with a port that is open to this node"
                ) from error
            if waited >= 10 and not warned:
                _logger.warning("process %s waits for the first process at %s:%d (%s)", rank, *address, error)
                warned = True
            time.sleep(1.0)
        else:
            return


class Ranks:
    """The processes of a run, numbered from 0; often there is only one.

    Args:
        accelerator: Accelerator that knows the number of processes and the rank of this one.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.count: int = accelerator.num_processes
        self.index: int = accelerator.process_index
        if self.count > 1:
            _wait_at_exit()

    @property
    def is_main(self) -> bool:
        """True if this process writes what all of them made."""
        return self.index == 0

    def share(self, total: int) -> range:
        """The part of `total` things in a row that is this process's; parts differ by one at most, in order of rank."""
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)

    def gather(self, value: T) -> list[T]:
        """The value of each process, in the order of the ranks, on all of them; it waits for the last."""
        return gather_object([value]) if self.count > 1 else [value]

    def broadcast(self, value: T) -> T:
        """The main process's value, on all of them: for decisions, which are taken once."""
        if self.count == 1:
            return value
        return cast(T, broadcast_object_list([value])[0])

    def wait(self) -> None:
        """Waits until every process is here."""
        self._accelerator.wait_for_everyone()


@functools.cache
def _wait_at_exit() -> None:
    """Lets threads of Gloo free the last tensors that were sent before the interpreter ends.

    They free them some time after those who waited for them go on, and take Python's lock for that, at which a thread
    of an interpreter that ends is ended, and the process with it (pytorch/pytorch#190489): on busy cores a finished run
    would fail.
    """
    atexit.register(time.sleep, _LETTING_GO)
