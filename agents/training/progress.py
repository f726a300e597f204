"""Progress as people read it: bars in a terminal, plain lines in a log file, and the key numbers of a round."""

import sys
import threading
from collections.abc import Mapping
from typing import Any, ClassVar

from tqdm import tqdm

KEYS = (
    "eval/maj@1", "rollout/success_rate", "rollout/mean_reward", "eval/auc", "train/loss",
    "train/reference_kl", "rollout/entropy", "rollout/mean_length", "train/examples",
)  # fmt: skip
"""The metrics that a round's line shows, the most telling first, as far as there are any."""


_OF_TOTAL = "{desc}: {n_fmt} of {total_fmt} in {elapsed}, {rate_fmt}, {remaining} left"
_WITHOUT_TOTAL = "{desc}: {n_fmt} in {elapsed}, {rate_fmt}"


class LineProgress(tqdm):
    """Progress as a line of text every few seconds, for log files: no carriage returns, nothing is drawn over.

    The first line comes when it is due, whether anything was done by then or not, so that a stage whose updates are
    hours apart says how long it is; others come with updates. A stage that ends before its first line writes none.
    """

    monitor_interval = 0  # no thread of tqdm's
    seconds: ClassVar[float] = 10.0
    """Seconds from one line to the next."""

    def __init__(self, **settings: Any) -> None:
        self._writing, self._silent = threading.Lock(), True
        self._timer = threading.Timer(self.seconds, self._begin)
        self._timer.daemon = True
        super().__init__(**settings, mininterval=self.seconds, delay=self.seconds, miniters=1)
        if not self.disable:
            self._timer.start()

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Writes a line."""
        with self._writing:
            self._write(str(self) if msg is None else msg)

    def _begin(self) -> None:
        """Writes the first line if nothing has been written yet."""
        with self._writing:
            if self._silent and not self.disable:
                # Updates write no line at the same moment.
                self.last_print_t = self._time()  # pyright: ignore[reportAttributeAccessIssue]
                self._write(str(self))

    def _write(self, line: str) -> None:
        self._silent = False
        self.fp.write(f"{line}\n")
        self.fp.flush()

    def __str__(self) -> str:
        known = self.total is not None and 0 < self.total >= self.n  # resampling goes beyond what was planned
        self.bar_format = _OF_TOTAL if known else _WITHOUT_TOTAL
        return super().__str__()

    def close(self) -> None:
        """Ends without a trace."""
        if not self.disable:
            self._timer.cancel()
            with self._writing:
                self.disable = True
            self._decr_instances(self)  # pyright: ignore[reportAttributeAccessIssue]


def progress(total: int | None, description: str, shown: bool = True) -> "tqdm[Any]":
    """A bar on standard error if that is a terminal, and lines otherwise.

    Args:
        total: Number of updates that make the whole; `None` where nobody knows yet.
        description: Name of the stage.
        shown: Show the progress at all.
    """
    if sys.stderr.isatty():
        return tqdm(total=total, desc=description, disable=not shown, leave=False)
    return LineProgress(total=total, desc=description, disable=not shown)


def key_numbers(metrics: Mapping[str, float], most: int = 5) -> str:
    """The most telling metrics of a round as one line; all of them are in the run's `metrics.jsonl`.

    Args:
        metrics: Everything that was logged.
        most: Number of metrics in the line.
    """
    found = [name for name in KEYS if name in metrics] or list(metrics)
    round_number = ["round"] if "round" in metrics else []
    return "  ".join(f"{name.rpartition('/')[2]} {metrics[name]:.4g}" for name in (round_number + found[:most]))
