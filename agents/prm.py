"""Process reward models (PRM): how good each step of an attempt is, by labels of steps.

Labels come from one of four places. Math-Shepherd (Wang et al. 2024) continues every prefix K times: "any" says whether
one continuation succeeds (its hard estimation), "mean" how many of them do (soft estimation). Generated problems know
themselves which steps are right, "exact". And a "file" holds labels that somebody else made, such as people
(Lightman et al. 2023).

What such a model estimates follows from its labels, and is saved as its kind. The mean over continuations is the chance
that the policy succeeds, as an ORM's; any of them that of the best policy, as a SORM's, whose labels are these, made
monotone. Only exact labels and those of files are about single steps, and their scores are multiplied over an attempt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..envs.problems.base import Problem
from ..envs.problems.tables import Row, convert, read_file
from ..envs.token_vector_env import TokenVectorEnv
from .configs.lora import LoRA
from .configs.prm import PRMConfig
from .outcome_models import SORM
from .rollouts.attempts import Attempt
from .training.outcome_labels import Labelled, check_exact, exact_labels, outcome_labels

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PRM(SORM[PRMConfig]):
    """Process reward model (PRM): learns how good each step is, from continuations, exact checks or labeled data."""

    name = "prm"
    config_class = PRMConfig

    @property
    def kind(self) -> str:
        return {"mean": "orm", "any": "sorm"}.get(self.config.labels, "prm")

    def _load_model(
        self, model: str | Path, device: str, dtype: str, lora: LoRA
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        loaded = super()._load_model(model, device, dtype, lora)
        self._rows = [] if self.config.labels_file is None else read_file(self.config.labels_file)
        return loaded

    def _labels(self, progress_bar: bool, metrics: dict[str, float]) -> tuple[list[Labelled], list[Labelled]]:
        """Those of the file, its last questions held out, or those of attempts."""
        if self.config.labels == "exact":  # before anything is sampled
            check_exact(self.env, "labels", '"mean" or "any"')
        if self.config.labels != "file":
            return super()._labels(progress_bar, metrics)
        labelled = read_labelled(self._rows, self.env)
        metrics["labels/too_long"] = len(self._rows) - len(labelled)
        questions = list(dict.fromkeys(item.attempt.problem.id for item in labelled))
        split = len(questions) - self.config.validation_problems
        if split < 1:
            raise ValueError(
                f"{self.config.labels_file!r} has solutions of {len(questions)} questions that fit the environment's "
                f"limits, and validation_problems={self.config.validation_problems} of them are held out: lower it"
            )
        train = set(questions[:split])
        parts: tuple[list[Labelled], list[Labelled]] = [], []
        for item in labelled:
            parts[item.attempt.problem.id not in train].append(item)
        return parts

    def _label(self, name: str, env: TokenVectorEnv, attempts: Sequence[Attempt], progress_bar: bool) -> list[Labelled]:
        if self.config.labels == "exact":
            return exact_labels(attempts, env, self.config.after_errors)
        labelled = outcome_labels(attempts, self.tokenizer)
        for item, found in zip(labelled, self._successes(name, env, attempts, progress_bar), strict=True):
            item.labels[: len(found)] = (
                found > 0 if self.config.labels == "any" else found / self.config.rollouts_per_step
            )
        return labelled


def read_labelled(rows: Sequence[Row], env: TokenVectorEnv) -> list[Labelled]:
    """Labeled solutions of a file; those that exceed the environment's limits are left out.

    Each step is encoded by itself and ends with a newline, the last with an end-of-sequence token; its label stands
    there. A solution counts as a correct attempt if all its labels are positive.

    Args:
        rows: Rows with a `prompt`, which is the question, a list of `completions` and one of `labels`: true or false, a
            number between 0 and 1, or null for a step that is not trained on.
        env: Token environment, whose template and tokenizer make prompts of the questions.

    Raises:
        ValueError: A row has other fields; the message names its place.
    """
    newline, end = env.encoder.encode("\n"), [env.encoder.eos_token_id]

    def read(row: Row) -> Labelled | None:
        question, steps = row.text("prompt"), row.value("completions")
        labels = _numbers(row)
        if not isinstance(steps, list) or not all(isinstance(step, str) and step.strip() for step in steps):
            raise ValueError(f"{row.place}: `completions` must be a list of steps that are not blank")
        if not steps or len(labels) != len(steps):
            raise ValueError(f"{row.place}: {len(steps)} completions and {len(labels)} labels; each step needs one")
        problem = Problem(question, question, "")
        pieces = [env.encoder.encode(step.strip()) for step in steps]
        parts = [np.append(piece, newline) for piece in pieces[:-1]] + [np.append(pieces[-1], end)]
        completion, prompt = np.concatenate(parts).astype(np.int32), env.encode_prompt(problem)
        if len(prompt) > env.max_prompt_tokens or len(completion) > env.max_new_tokens:
            return None
        nothing = np.zeros(len(completion), np.float32)
        is_success = bool((labels[~np.isnan(labels)] > 0.5).all())
        verdict = "correct" if is_success else "wrong"
        attempt = Attempt(problem, 0, prompt, completion, nothing, nothing, is_success, verdict, None, True)
        return Labelled(attempt, np.cumsum([len(part) for part in parts]) - 1, labels)

    return [item for item in convert(rows, read) if item is not None]


def _numbers(row: Row) -> NDArray[np.float32]:
    """Labels of a row's steps, NaN for those that are null."""
    labels = row.value("labels")
    try:
        numbers = np.array([np.nan if label is None else float(label) for label in labels], np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{row.place}: `labels` must be a list of true, false, null and numbers") from error
    if ((numbers < 0) | (numbers > 1)).any():
        raise ValueError(
            f"{row.place}: `labels` lie between 0 and 1, got {numbers.tolist()}: map -1, 0 and 1 of PRM800K to 0, 1 "
            "and 1"
        )
    return numbers
