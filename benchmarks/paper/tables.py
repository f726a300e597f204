"""The paper's figures beside an evaluation in the terminal, where its data and protocol are the paper's own."""

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ...agents.evaluation.evaluate import Evaluation
from ..reports.published import PaperTable
from .published import paper_table

_N, _TEMPERATURE = 96, 0.7
_TABLES = {"tokengym/GSM8K-v0": ("table_1", 1319)}
"""By environment: the table whose systems start from a fine-tuned checkpoint, and the test split's problems."""


def paper_figures(result: Evaluation, env: str, split: str) -> RenderableType | None:
    """The paper's own figures to print below an evaluation; `None` where it has none for the data.

    An evaluation of fewer problems, or of another pool of samples, has a line in their place that names the protocol.

    Args:
        result: Evaluation.
        env: Id of the environment.
        split: Split of its data.
    """
    if env not in _TABLES or split != "test":
        return None
    name, problems = _TABLES[env]
    table = paper_table(name)
    if result.problems != problems or (result.n and (result.n, result.temperature) != (_N, _TEMPERATURE)):
        return Text(
            f"{table.source} reports {table.data} under another protocol: --problems {problems} --n {_N} "
            f"--temperature {_TEMPERATURE}"
        )
    return _figures(table, [name for name in ("maj@1", f"maj@{_N}", f"pass@{_N}") if name in result.metrics])


def _figures(paper: PaperTable, metrics: list[str]) -> Table:
    """The paper's supervised fine-tuning and expert iteration at two sizes."""
    caption = f"{paper.source}, {paper.title}"
    table = Table("", *metrics, title=f"another scale: {paper.data} in the paper", caption=caption)
    for size in paper.sizes:
        for row in (paper.rows["sft"], paper.rows["ei"]):
            values = [paper.values(row, metric)[size] for metric in metrics]
            table.add_row(f"{paper.models} {size}, {row.name}", *("–" if v is None else f"{v:.2f}" for v in values))
    return table
