"""Any table of problems, from a file, a folder or the hub."""

from collections.abc import Sequence
from pathlib import Path

from .base import PROBLEMS, SPLITS, FiniteSource, Problem, check_split
from .tables import SUFFIXES, Row, carve, file_of, hub_splits, make_problem, read_file, read_hub, split_solution


@PROBLEMS.register("dataset")
class Dataset(FiniteSource):
    """Problems in columns of your own.

    A folder's splits are its files named train, validation and test (.jsonl, .json, .csv or .parquet); a hub data set's
    splits are its own; a file is all train. A split that the data does not have is carved out of train: the fractions
    `validation` and `test` of its rows, chosen by a hash of their questions, so that carved splits never overlap and do
    not depend on the order of the rows. With `validation=0, test=0` a file is train to the last row.

    The answer is what follows the last "####" where the `answer` column holds whole solutions in GSM8K's style, and
    else the column's value. Ids are the name of the file or of the hub's data set and split, and the row in it from 0:
    "problems-17", "owner/name-train-17".

    Args:
        data: a .jsonl, .json (list of objects), .csv (with header) or .parquet file, or a folder of them, read on
            construction and without any network; or "owner/name" on the hub, read when the first problem is asked for.
        question: column of the questions.
        answer: column of the answers, or of solutions that end with "#### answer".
        solution: column of the solutions, if they are apart; the answer's line is added where it is missing.
        split: "train", "validation" or "test".
        validation: fraction of the train rows to hold out for a validation split that the data does not have.
        test: likewise for a test split.
        config: configuration (subset) of a data set on the hub.

    Raises:
        UnknownNameError: no such split.
        FileNotFoundError: `data` does not exist.
        ValueError: a row is malformed, which the message names, a column does not exist, or the split has no rows.
        OSError: the hub has to be asked and cannot be reached (at first use).
    """

    def __init__(
        self,
        data: str | Path,
        question: str = "question",
        answer: str = "answer",
        solution: str | None = None,
        split: str = "train",
        validation: float = 0.1,
        test: float = 0.1,
        config: str | None = None,
    ) -> None:
        self.split = check_split(split)
        self.data = data
        self.columns = (question, answer, solution)
        if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
            raise ValueError(f"the fractions validation={validation} and test={test} must leave some rows for train")
        self.fractions = {"validation": validation, "test": test}
        self.config = config
        self._on_hub = _is_on_hub(data)
        if not self._on_hub:
            if config is not None:
                raise ValueError(f"config={config!r} is for data sets on the hub; {data} is here")
            self.problems  # noqa: B018 - local files fail on construction

    def load(self) -> Sequence[Problem]:
        tables = self._tables()
        if self.split in tables and self.split != "train":
            return self._read(tables, self.split)
        if "train" not in tables:
            raise ValueError(
                f"{self.data} has no {self.split} split and none to carve it from, only {', '.join(tables)}"
            )
        problems = self._read(tables, "train")
        held_out = {
            split: 0 if split in tables else round(fraction * len(problems))
            for split, fraction in self.fractions.items()
        }
        splits = carve([problem.question for problem in problems], **held_out)
        carved = [problem for problem, split in zip(problems, splits, strict=True) if split == self.split]
        if not carved:
            raise ValueError(
                f"{self.data} has no {self.split} split, and {self.split}={self.fractions.get(self.split)} of its "
                f"{len(problems)} rows are none: raise that fraction"
                if self.split != "train"
                else f"{self.data}: no row of {len(problems)} is left for train: lower validation and test"
            )
        return carved

    def _tables(self) -> list[str]:
        """The splits that the data has itself."""
        if self._on_hub:
            return hub_splits(str(self.data), self.config)
        path = Path(self.data)
        if path.is_file():
            return ["train"]
        tables = [split for split in SPLITS if file_of(path, split)]
        if not tables:
            raise FileNotFoundError(f"{path} has no file train, validation or test with one of {', '.join(SUFFIXES)}")
        return tables

    def _read(self, tables: list[str], split: str) -> list[Problem]:
        if self._on_hub:
            rows, label = read_hub(str(self.data), self.config, split), f"{self.data}-{split}"
        else:
            path = Path(self.data)
            path = path if path.is_file() else file_of(path, split) or path
            rows, label = read_file(path), path.stem
        if not rows:
            raise ValueError(f"{self.data}, split {split!r}, has no rows")
        for column in self.columns:
            if column is not None and column not in rows[0].fields:
                raise ValueError(
                    f"{rows[0].place}: there is no column {column!r}, only {', '.join(map(repr, rows[0].fields))}"
                )
        return [self._problem(f"{label}-{row.index}", row) for row in rows]

    def _problem(self, problem_id: str, row: Row) -> Problem:
        question, answer, solution = self.columns
        value, worked = row.text(answer), None if solution is None else row.text(solution)
        if "####" in value:
            whole, value = split_solution(row, answer)
            worked = worked or whole
        if worked is not None and "####" not in worked:
            worked = f"{worked}\n#### {value}"
        return make_problem(problem_id, row, row.text(question), value, worked)

    def __repr__(self) -> str:
        return f"Dataset({self.data!r}, split={self.split!r})"


def _is_on_hub(data: str | Path) -> bool:
    """Whether `data` is the name of a hub data set; raises `FileNotFoundError` when it is neither that nor here."""
    if Path(data).exists():
        return False
    parts = str(data).split("/")
    if (
        isinstance(data, Path)
        or len(parts) != 2
        or not all(parts)
        or parts[0] in (".", "..", "~")
        or parts[1].endswith(SUFFIXES)
    ):
        raise FileNotFoundError(
            f"no such file or folder: {data} (and no name of a hub data set: those are 'owner/name')"
        )
    return True
