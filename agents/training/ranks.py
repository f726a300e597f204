"""The processes that learn together: what each of them does, and what they say to each other."""

from typing import TypeVar, cast

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

T = TypeVar("T")


class Ranks:
    """The processes of a run, numbered from 0; often there is only one.

    Args:
        accelerator: Accelerator that knows the number of processes and the rank of this one.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.count: int = accelerator.num_processes
        self.index: int = accelerator.process_index

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
