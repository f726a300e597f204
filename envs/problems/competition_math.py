r"""MATH: 12,500 competition problems (Hendrycks et al., 2021), with answers in LaTeX."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...rewards.grading.boxes import boxed, boxed_answers, unbox_earlier
from ...rewards.grading.formats import AnswerFormat, Boxed
from ...rewards.grading.numbers import MAX_LENGTH
from .base import MissingSplitError, Problem, PublishedSource
from .tables import Row, carve, convert, file_of, read_file, read_folder, read_hub

HUB_NAME = "EleutherAI/hendrycks_math"
SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
VALIDATION_FRACTION = 1 / 15
"""500 of the 7,500 published train problems. [choice]"""


class MATH(PublishedSource):
    r"""MATH with its own solutions; the answer is what the last `\boxed{}` of a solution holds.

    Where a question asks for several values, "separated by commas", the answer is what all its boxes hold. Of other
    solutions with several boxes the earlier ones are taken off: an intermediate result, or another acceptable answer.
    Attempts show their answer in `\boxed{}` too, graded as in `rewards.grading.latex`.

    The published splits have 7,500 train and 5,000 test problems and no validation split: a fixed hash of the train
    questions makes one in fifteen of them "validation". Ids name the published split and the row in it, from 0, on the
    hub after the subject: "math-test-17", "math-train-algebra-17". In the published folders the number is the file's.

    Prompt and completion share the 1,024 positions of the embedded model, and prompts that do not fit are passed over
    [choice]. A published train row has 600 characters of solution and 200 of problem on average, in the embedded
    tokenizer at about 1.5 a token, and problems with drawings have thousands. Give models with more positions more.

    Args:
        split: Split of the problems: "train", "validation" or "test".
        data: Folder with the published folders train and test (`train/algebra/1.json`), or with files of these names
            (.jsonl, .json, .csv or .parquet), or one such file, with fields `problem` and `solution`; others are not
            read. Read on construction, without any network. By default `EleutherAI/hendrycks_math` on the hub, when the
            first problem is asked for.
        answer_format: Format of the answers of attempts; "boxed" by default.

    Raises:
        UnknownNameError: There is no such split or format.
        FileNotFoundError: `data` or its file for this split does not exist.
        ValueError: A row is malformed or its solution has no boxed answer, which the message names, or the file is that
            of another split.
        OSError: The data must be downloaded and the hub cannot be reached (at first use).
    """

    answer_format: AnswerFormat = Boxed()

    @property
    def env_settings(self) -> Mapping[str, Any]:
        return {"max_prompt_tokens": 384, "max_new_tokens": 640, "on_long_prompt": "skip"}

    def load(self) -> Sequence[Problem]:
        published = "test" if self.split == "test" else "train"
        problems = [
            problem
            for prefix, rows in self._tables(published)
            for problem in convert(rows, partial(self._problem, prefix))
        ]
        if self.split == "test":
            return problems
        held_out = round(VALIDATION_FRACTION * len(problems))
        splits = carve([problem.question for problem in problems], held_out, 0)
        kept = [problem for problem, split in zip(problems, splits, strict=True) if split == self.split]
        if not kept:
            raise MissingSplitError(
                f"{self.data} has {len(problems)} train rows: too few to hold some out for validation"
            )
        return kept

    def _tables(self, published: str) -> list[tuple[str, list[Row]]]:
        """The rows of a published split, with what their ids begin with."""
        if self.data is None:
            return [(f"math-{published}-{name}", read_hub(HUB_NAME, name, published)) for name in SUBJECTS]
        path = Path(self.data)
        if path.is_dir():
            subjects = [folder for name in SUBJECTS if (folder := path / published / name).is_dir()]
            if subjects:
                return [(f"math-{published}-{folder.name}", read_folder(folder)) for folder in subjects]
            file = file_of(path, published)
            if file is None:
                raise FileNotFoundError(
                    f"{path} has neither folders {published}/algebra and so on nor a file {published}.jsonl (or .json, "
                    ".csv, .parquet)"
                )
            path = file
        self._check_file(path, published)
        return [(f"math-{published}", read_file(path))]

    def _problem(self, prefix: str, row: Row) -> Problem:
        question, solution = row.text("problem"), row.text("solution")
        answers = boxed(solution)
        if not answers or not answers[-1]:
            raise ValueError(rf"{row.place}: field 'solution' has no answer in a \boxed{{}} with balanced braces")
        if len(answers[-1]) > MAX_LENGTH:
            raise ValueError(
                f"{row.place}: the boxed answer has {len(answers[-1])} characters, over the grader's {MAX_LENGTH}"
            )
        answer = answers[-1]
        rivals = list(dict.fromkeys(reversed(boxed_answers(solution, question))))
        if len(rivals) > 1 and "comma" in question:
            answer = ", ".join(rivals)
        elif len(rivals) > 1:
            solution = unbox_earlier(solution)
        return self.make_problem(f"{prefix}-{row.index}", row.place, question, answer, solution)
