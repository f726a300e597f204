r"""Grading answers in LaTeX and free form, as in MATH (Hendrycks et al. 2021): `\boxed{\frac{1}{2}}`.

Which text is the answer is decided by `boxes`, and whether it equals the gold answer by `comparison`: nearly always
here, in well under a millisecond and with bounded work; what is outside the grammar of `reader` goes to math-verify, in
a process apart (`worker`).

Verdicts reach users as those of all graders do: in the terminal `info` of an environment, in an agent's logs as
`rollout/verdict/timeout` and so on, and in what `tokengym eval` prints.
"""

from .boxes import boxed, boxed_answers
from .comparison import compare, is_copied
from .numbers import Verdict
from .worker import WORKERS, Worker, Workers

__all__ = ["WORKERS", "Worker", "boxed", "grade_free_form"]


def grade_free_form(
    completion: str, answer: str, *, question: str | None = None, worker: Worker | Workers = WORKERS
) -> Verdict:
    r"""Grade the boxed answer of `completion` against the gold `answer`, by the rules of `boxes` and `comparison`.

    Never raises because of the completion.

    Args:
        completion: Text of an attempt.
        answer: Gold answer alone, in LaTeX, without its box.
        question: Question, if it is known: an expression copied from it is not an answer.
        worker: Worker, or several, to compare answers outside the grammar.

    Returns:
        A verdict. Its `answer` is the gold answer where that was given, else the one spelling of all answers that are
        equal, so that they can be counted.

    Raises:
        ValueError: The gold answer is empty or longer than 256 characters.
        RuntimeError: The worker does not start.
    """
    answers = boxed_answers(completion, question)
    verdict = compare(answers, answer, worker=worker)
    if verdict.correct and question is not None and is_copied(answers[0], answer, question):
        return Verdict(False, "unparsed", None)
    return verdict
