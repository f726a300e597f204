"""GSM8K: 8,792 grade school math word problems (Cobbe et al., 2021)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .base import Problem, PublishedSource
from .tables import Row, convert, read_file, read_hub, split_solution

HUB_NAME, HUB_CONFIG = "openai/gsm8k", "main"
VALIDATION_ROWS = 473


class GSM8K(PublishedSource):
    """GSM8K with its own solutions, calculator annotations included.

    The published test split has 1,319 problems. The published train split has 7,473 and no validation split beside it:
    its last 473 rows are "validation" here and its first 7,000 rows "train". Ids name the row in the published split,
    from 0: "gsm8k-train-7000" is the first validation problem.

    Args:
        split: Split of the problems: "train", "validation" or "test".
        data: Folder with the original `train.jsonl` and `test.jsonl`, or one of the two files; read on construction,
            without any network. By default `openai/gsm8k` on the hub, when the first problem is asked for.
        answer_format: Format of the answers of attempts, and of the end of each solution: "marker" by default, which is
            "#### 72"; or "boxed", "tag", "last_number", ...

    Raises:
        UnknownNameError: There is no such split or format.
        FileNotFoundError: `data` or its file for this split does not exist.
        ValueError: A row is malformed, which the message names, or the file is that of another split.
        OSError: The data must be downloaded and the hub cannot be reached (at first use).
    """

    @property
    def env_settings(self) -> Mapping[str, Any]:
        # In the tokens of SmolLM2 no prompt is longer than 229 and no solution longer than 455.
        return {"max_prompt_tokens": 512, "max_new_tokens": 512}

    def load(self) -> Sequence[Problem]:
        published = "test" if self.split == "test" else "train"
        rows = self._rows(published)
        if published == "train":
            if len(rows) <= VALIDATION_ROWS:
                raise ValueError(
                    f"{self.data or HUB_NAME} has {len(rows)} rows, of which the last {VALIDATION_ROWS} are "
                    "the validation split; for other files than GSM8K's own use the Dataset source"
                )
            rows = rows[:-VALIDATION_ROWS] if self.split == "train" else rows[-VALIDATION_ROWS:]
        return convert(rows, lambda row: self._problem(row, published))

    def _rows(self, published: str) -> list[Row]:
        if self.data is None:
            return read_hub(HUB_NAME, HUB_CONFIG, published)
        path = Path(self.data)
        if path.is_dir():
            path = path / f"{published}.jsonl"
        self._check_file(path, published)
        return read_file(path)

    def _problem(self, row: Row, published: str) -> Problem:
        solution, answer = split_solution(row, "answer")
        return self.make_problem(f"gsm8k-{published}-{row.index}", row.place, row.text("question"), answer, solution)
