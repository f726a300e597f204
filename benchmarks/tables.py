"""Tables of results: ours with intervals and cost, the paper's beside them and marked as another scale."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..agents.evaluation import Evaluation


def evaluation_table(results: Mapping[str, Evaluation], data: str) -> Group:
    """One column per evaluated policy, one row per metric, then the protocol, then the paper's figures.

    Args:
        results: evaluations by the policy's name, all under the same protocol.
        data: what they were evaluated on.
    """
    table = Table("", *results, title=f"{data}, with 95 % bootstrap intervals over problems")
    first = next(iter(results.values()))
    for metric in first.metrics:
        table.add_row(metric, *(str(result.metrics[metric]) for result in results.values()))
    table.add_section()
    table.add_row("attempts (tokens)", *(f"{result.episodes:,} ({result.tokens:,})" for result in results.values()))
    table.add_row("verdicts", *(_shares(result.verdicts) for result in results.values()))
    protocol = f"{first.problems} problems, maj@1 greedy, pool of n={first.n} at temperature {first.temperature}"
    return Group(table, Text(f"{protocol}, seed {first.seed}\n"), paper_table())


def paper_table() -> Table:
    """The paper's own figures for supervised fine-tuning and expert iteration."""
    paper = json.loads(Path(__file__).with_name("paper.json").read_text())
    table = Table("", *paper["columns"], title=f"another scale: {paper['data']} in the paper", caption=paper["source"])
    for name, values in paper["rows"].items():
        table.add_row(name, *(f"{value:.2f}" for value in values))
    return table


def _shares(verdicts: Mapping[str, Any]) -> str:
    total = sum(verdicts.values())
    return ", ".join(f"{name} {count / total:.0%}" for name, count in verdicts.items())
