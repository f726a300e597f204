"""Any table of problems, from a file, a folder or the hub."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ...registry import unknown_name
from ...rewards.grading.formats import GSM8K_MARKER, AnswerFormat, make_format
from ...rewards.grading.latex import boxed
from ...settings import kinds_checked
from .base import SPLITS, FiniteSource, Message, MissingSplitError, Problem, check_split
from .tables import (
    SUFFIXES,
    ColumnError,
    Row,
    carve,
    convert,
    file_of,
    hub_splits,
    malformed_rows,
    read_file,
    read_hub,
    split_solution,
)

_logger = logging.getLogger(__name__)

_COLUMNS_HELP = (
    "name the columns by question=, answer= and solution= (--env-args question=... answer=... on the command line)"
)
# Names of files that nobody wants to train on by mistake.
_OTHER_SPLIT = re.compile(r"(?<![a-z])(?:test|validation|valid|val|dev)(?![a-z])")
# ASDiv: "9 (apples)".
_COUNTED = re.compile(r"([+-]?[0-9][0-9.,/]*)\s+\([A-Za-z][A-Za-z ./-]*\)")


class Dataset(FiniteSource):
    r"""Problems in columns of your own.

    A folder's splits are its files named train, validation and test (.jsonl, .json, .csv or .parquet); a hub data set's
    splits are its own; a single file is all train. `split_files` says so where names differ. A split that the data does
    not have is carved out of train: the fractions `validation` and `test` of its rows, chosen by a hash of their
    questions, so that carved splits never overlap and do not depend on the order of the rows. With `validation=0,
    test=0` a file is train to the last row.

    A column is given by its name or by a path into it, such as "reward_model.ground_truth", "messages[0].content" or
    "messages[-1].content".

    A question is text, or a list of messages with `role` and `content`, of which a chat prompt repeats those up to the
    last of the user's, as they are; other prompts take that one's text. Several columns, and the items of a list, are
    put below one another: `question=["question", "options"]`.

    An answer is a number or text: what follows the last "####" or is in the last `\boxed{}` where the column holds
    whole solutions, and else its value, without a unit in parentheses, "9 (apples)". The items of a list, or of a text
    that is a JSON list, are one answer, separated by commas: an attempt has to give all of them. Every answer is
    checked by the `answer_format`.

    Ids are the name of the file or of the hub's data set and split, and the row in it from 0: "problems-17",
    "owner/name-train-17".

    Args:
        data: Data file, .jsonl, .json (list of objects, or one object per line), .csv (with header) or .parquet, or a
            folder of them, read on construction and without any network; or "owner/name" on the hub, read when the
            first problem is asked for.
        question: Column of the questions, or a list of columns.
        answer: Column of the answers, or of solutions that end with "#### answer" or a box.
        solution: Column of the solutions, if they are apart; an answer's line is added where it is missing. Empty
            values are problems without a solution.
        split: Split of the problems: "train", "validation" or "test".
        validation: Share of the train rows to hold out for a validation split that the data does not have.
        test: Share of the train rows to hold out for a test split that the data does not have.
        config: Configuration (subset) of a data set on the hub.
        split_files: File of each split, in the folder `data` if there is one, or name of the hub's split: `{"test":
            "math500.jsonl"}`. Other files or splits are not read.
        on_bad_row: Treatment of rows that are malformed, or whose answer cannot be read: "error" raises, and "skip"
            leaves them out, keeps them in `bad_rows` and counts them in a warning.
        answer_format: Format of the answers of attempts: "marker" for "#### 72" and golds that are numbers, "boxed" for
            LaTeX, "choice" for the letters of options, "tag", "last_number", a mapping with "name" and the format's
            arguments, or an `AnswerFormat`.

    Attributes:
        bad_rows: Faults of the rows that were left out, once the problems have been read.

    Raises:
        UnknownNameError: There is no such split or format.
        FileNotFoundError: `data` or a file of `split_files` does not exist.
        MissingSplitError: The data have no such split, and no row to hold out for it.
        ValueError: No data is given, a row is malformed (the message names it), a column does not exist, or the
            split's file has no rows.
        OSError: The data must be downloaded and the hub cannot be reached (at first use).
    """

    @kinds_checked
    def __init__(
        self,
        data: str | Path | None = None,
        question: str | Sequence[str] = "question",
        answer: str = "answer",
        solution: str | None = None,
        split: str = "train",
        validation: float = 0.1,
        test: float = 0.1,
        config: str | None = None,
        split_files: Mapping[str, str | Path] | None = None,
        on_bad_row: str = "error",
        answer_format: str | Mapping[str, Any] | AnswerFormat = "marker",
    ) -> None:
        self.split = check_split(split)
        self.questions = [question] if isinstance(question, str) else list(question)
        self.answer, self.solution = answer, solution
        if not self.questions:
            raise ValueError("question=[]: name at least one column")
        if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
            raise ValueError(f"the fractions validation={validation} and test={test} must leave some rows for train")
        self.fractions = {"validation": validation, "test": test}
        if on_bad_row not in ("error", "skip"):
            raise unknown_name("on_bad_row", str(on_bad_row), ("error", "skip"))
        self.on_bad_row = on_bad_row
        self.bad_rows: list[str] = []
        self.answer_format = make_format(answer_format)
        self.config = config
        self.split_files = (
            None if split_files is None else {check_split(name): split_files[name] for name in split_files}
        )
        if data is None and not split_files:
            raise ValueError(
                'Dataset needs its data: data="problems.jsonl", a folder, or "owner/name" on the hub (--data on the '
                "command line), or split_files"
            )
        self.data = data
        self._on_hub = data is not None and _is_on_hub(data)
        if not self._on_hub:
            if config is not None:
                raise ValueError(f"config={config!r} is for data sets on the hub; {data} is here")
            self.problems  # noqa: B018 - local files fail on construction

    def load(self) -> Sequence[Problem]:
        self.bad_rows = []
        tables = self._tables()
        split = self.split if self.split in tables else "train"
        if split not in tables:
            raise MissingSplitError(
                f"{self._name} has no {self.split} split and none to carve it from, only {', '.join(tables)}; "
                "split_files says what is which"
            )
        problems = self._read(split, tables[split])
        if split != "train":
            return problems
        held_out = {
            split: 0 if split in tables else round(fraction * len(problems))
            for split, fraction in self.fractions.items()
        }
        splits = carve([problem.question for problem in problems], **held_out)
        carved = [problem for problem, split in zip(problems, splits, strict=True) if split == self.split]
        if not carved and self.split == "train":
            raise ValueError(f"{self._name}: no row of {len(problems)} is left for train: lower validation and test")
        if not carved:
            raise MissingSplitError(
                f"{self._name} has no {self.split} split, and {self.split}={self.fractions[self.split]} of its "
                f"{len(problems)} rows are none: raise that fraction"
            )
        return carved

    def with_split(self, split: str) -> Self:
        """The same data's other split."""
        return type(self)(
            self.data,
            self.questions,
            self.answer,
            self.solution,
            split,
            **self.fractions,
            config=self.config,
            split_files=self.split_files,
            on_bad_row=self.on_bad_row,
            answer_format=self.answer_format,
        )

    @property
    def _name(self) -> str:
        return str(self.data if self.split_files is None or self.data is not None else dict(self.split_files))

    def _tables(self) -> dict[str, str | Path]:
        """The splits that the data has itself: for each, its file, or its name on the hub."""
        if self._on_hub:
            return self.split_files or {split: split for split in hub_splits(str(self.data), self.config)}
        folder = Path("" if self.data is None else self.data)
        if self.split_files is not None:
            if folder.is_file():
                raise ValueError(f"split_files={self.split_files!r} are files in a folder, and {folder} is a file")
            files = {split: folder / file for split, file in self.split_files.items()}
            for split, file in files.items():
                if not file.is_file():  # that of another split, too: its name is a slip, and no missing split
                    raise FileNotFoundError(f"split_files: no such file for the {split} split: {file}")
            return dict(files)
        if folder.exists() and not (folder.is_dir() or folder.is_file()):
            raise ValueError(f"{folder} is no file and no folder: save its rows in a file, which each split reads")
        if folder.is_file():
            if _OTHER_SPLIT.search(folder.stem.lower()):
                _logger.warning(
                    "%s is read as train rows, of which %s are held out for validation and %s for test: give "
                    'split_files={"test": "%s"} if these rows are a split of their own',
                    folder,
                    *(f"{fraction:.0%}" for fraction in self.fractions.values()),
                    folder,
                )
            return {"train": folder}
        tables = {split: file for split in SPLITS if (file := file_of(folder, split))}
        if not tables and any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
            raise ValueError(
                f"{folder} was written by save_to_disk of datasets, which is not read: write each split with "
                "to_json, as train.jsonl, or with to_parquet, as train.parquet"
            )
        if not tables:
            raise FileNotFoundError(
                f"{folder} has no file train, validation or test with one of {', '.join(SUFFIXES)}; split_files says "
                "which file is which split"
            )
        return dict(tables)

    def _read(self, split: str, table: str | Path) -> list[Problem]:
        skip = self.on_bad_row == "skip"
        bad = self.bad_rows if skip else None
        if self._on_hub:
            rows, label = read_hub(str(self.data), self.config, str(table)), f"{self.data}-{table}"
        else:
            rows, label = read_file(table, bad), Path(table).stem
        if not rows:
            raise ValueError(f"{self._name}, split {split!r}, has no rows")
        self._check_columns(rows if skip else rows[:1])

        def make(row: Row) -> Problem:
            return self._problem(f"{label}-{row.index}", row)

        if skip:
            with malformed_rows() as bad_rows:
                problems = convert(rows, make)
            self.bad_rows += bad_rows
        else:
            problems = convert(rows, make)
        if not problems:
            raise ValueError(
                f"{self._name}: none of {len(rows)} rows can be read" + "".join(f": {row}" for row in self.bad_rows[:1])
            )
        if self.bad_rows:
            _logger.warning(
                "%s: %d of %d rows are left out, the first because of: %s",
                self._name,
                len(self.bad_rows),
                len(self.bad_rows) + len(problems),
                self.bad_rows[0],
            )
        return problems

    def _check_columns(self, rows: Sequence[Row]) -> None:
        """Raises `ValueError` for a column that none of the rows has."""
        for column in (*self.questions, self.answer, *([] if self.solution is None else [self.solution])):
            missing: ColumnError | None = None
            for row in rows:
                try:
                    row.value(column)
                    break
                except ColumnError as error:
                    missing = error
            else:
                message = str(missing).replace("there is no field", "there is no column")
                raise ValueError(f"{message}: {_COLUMNS_HELP}")

    def _problem(self, problem_id: str, row: Row) -> Problem:
        question, messages = self._question(row)
        value = row.text(self.answer, ", ")
        if value.startswith('["') and value.endswith('"]'):
            value = _listed(value)
        solution = None if self.solution is None else row.optional_text(self.solution, "\n")
        if GSM8K_MARKER in value:
            whole, value = split_solution(row, self.answer)
            solution = solution or whole
        elif boxes := [box for box in boxed(value) if box]:
            solution = solution or value
            value = boxes[-1]
        elif counted := _COUNTED.fullmatch(value):
            value = counted[1]
        return self.make_problem(problem_id, row.place, question, value, solution, messages)

    def _question(self, row: Row) -> tuple[str, tuple[Message, ...] | None]:
        if len(self.questions) == 1 and (turns := _turns(row.value(self.questions[0]))):
            asked = [at for at, turn in enumerate(turns) if turn.role == "user"]
            if not asked or not turns[asked[-1]].content.strip():
                raise ValueError(f"{row.place}: field {self.questions[0]!r} has no message of the user's")
            return turns[asked[-1]].content.strip(), turns[: asked[-1] + 1]
        if len(self.questions) == 1:
            return row.text(self.questions[0], "\n"), None
        texts = [text for column in self.questions if (text := row.optional_text(column, "\n"))]
        if not texts:
            raise ValueError(f"{row.place}: fields {', '.join(map(repr, self.questions))} are empty")
        return "\n".join(texts), None

    def __repr__(self) -> str:
        return f"Dataset({self._name!r}, split={self.split!r})"


def _turns(value: Any) -> tuple[Message, ...]:
    """A list of messages as turns; empty where it is none."""
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        return ()
    turns = [(item.get("role"), item.get("content")) for item in value]
    if not all(isinstance(role, str) and isinstance(content, str) for role, content in turns):
        return ()
    return tuple(Message(str(role), str(content)) for role, content in turns)


def _listed(value: str) -> str:
    """The items of a JSON list of texts as one answer; text that is no such list as it is."""
    try:
        items = json.loads(value)
    except ValueError:
        return value
    return ", ".join(items) if all(isinstance(item, str) for item in items) else value


def _is_on_hub(data: str | Path) -> bool:
    """True if `data` is the name of a hub data set; raises `FileNotFoundError` when it is neither that nor here."""
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
