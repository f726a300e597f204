"""An attempt for the terminal: its steps with their rewards and scores in color, and the verdict; also as a picture."""

import io
import re
from collections.abc import Sequence

from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .content import AttemptRecord
from .text import visible


def attempt_panel(attempt: AttemptRecord) -> Panel:
    """The attempt as a box: question, steps with reward and p(correct), answer beside the right one, verdict.

    Colors follow the console: none where `NO_COLOR` is set or the output is not a terminal. Signs say the same as the
    colors do.
    """
    scored = any(step.score is not None for step in attempt.steps)
    correct = attempt.verdict == "correct"
    color = "green" if correct else "red"
    steps = Table(box=None, expand=True, pad_edge=False, header_style="dim")
    steps.add_column("#", justify="right", style="dim")
    steps.add_column("step", ratio=1, overflow="fold")
    steps.add_column("reward", justify="right", no_wrap=True)
    if scored:
        steps.add_column("p(correct)", justify="right", no_wrap=True)
    for number, step in enumerate(attempt.steps, 1):
        row = [Text(str(number)), Text(visible(step.text.strip("\n")) or "(ends here)"), _reward(step.reward)]
        steps.add_row(*row, *([_score(step.score)] if scored else []))
    total = sum(step.reward for step in attempt.steps)
    ending = Text.assemble(
        ("✓ " if correct else "✗ ", f"bold {color}"),
        (visible(attempt.verdict), f"bold {color}"),
        ("   answer ", "dim"),
        "none" if attempt.answer is None else visible(attempt.answer),
        ("   right answer ", "dim"),
        visible(attempt.reference),
        ("   total reward ", "dim"),
        _reward(total),
    )
    question = Padding(Text(visible(attempt.question.strip())), (0, 0, 1, 0))
    who = Text(f" {visible(attempt.problem_id)}, {visible(attempt.system)} ")
    return Panel(Group(question, steps, Text(), ending), title=who, title_align="left", border_style=color)


def picture(attempts: Sequence[AttemptRecord], title: str, width: int = 100) -> str:
    """The attempts as they look in a terminal, as SVG that loads nothing and reads well on light and dark pages.

    Args:
        attempts: Attempts to show.
        title: Title of the terminal's window.
        width: Columns of the terminal.
    """
    console = Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor", no_color=False
    )
    for attempt in attempts:
        console.print(attempt_panel(attempt))
    return re.sub(r"@font-face \{.*?\}", "", console.export_svg(title=title), flags=re.DOTALL)


def _reward(reward: float) -> Text:
    return Text(
        f"{reward:+.2f}" if abs(reward) >= 0.005 else f"{reward:+.1g}" if reward else "0",
        "green" if reward > 0 else "red" if reward < 0 else "dim",
    )


def _score(score: float | None) -> Text:
    if score is None:
        return Text("–", "dim")
    bar = "▁▂▃▄▅▆▇█"[min(int(8 * score), 7)]
    return Text(f"{score:.2f} {bar}", "green" if score > 2 / 3 else "red" if score < 1 / 3 else "yellow")
