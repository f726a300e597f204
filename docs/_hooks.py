"""Pages that the build makes: help of commands, results with links into the repository, tables of settings."""

import os
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

from tokengym.__main__ import COMMANDS
from tokengym.settings import settings_of

ROOT = Path(__file__).parents[1]
_TEMPORARY: list[Path] = []
AGENTS_SHOWN = ("ei", "ppo", "grpo")


@event_priority(100)  # before mkdocstrings reads its paths
def on_config(config: Any) -> None:
    """Lets the API's pages find the package under its name: its folder, the repository's root, may have any."""
    folder = Path(tempfile.mkdtemp(prefix="tokengym-docs-"))
    (folder / "tokengym").symlink_to(ROOT, target_is_directory=True)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(folder)]
    _TEMPORARY.append(folder)


def on_post_build(config: Any) -> None:
    """Removes what `on_config` made."""
    for folder in _TEMPORARY:
        (folder / "tokengym").unlink()
        folder.rmdir()
    _TEMPORARY.clear()


def on_files(files: Files, config: Any) -> Files:
    """Adds `cli.md`, `results.md` and `tutorial.md`."""
    pages = {"cli.md": command_line(), "results.md": results(), "tutorial.md": tutorial()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the table of a configuration class's settings where a page has `<!-- settings: MODULE.CLASS -->`."""
    return re.sub(r"<!-- settings: (\S+) -->", lambda found: settings_table(found[1]), markdown)


def settings_table(path: str) -> str:
    """All settings of a configuration class, its own first: default, meaning, source."""
    module, _, name = path.rpartition(".")
    rows = [
        f"| `{one.name}` | `{one.default}` | {one.text} | {one.source} |"
        for one in settings_of(getattr(import_module(module), name))
    ]
    return "\n".join(["| Setting | Default | Meaning | Source |", "|---|---|---|---|", *rows])


def command_line() -> str:
    """The help of each command, as a terminal of 100 columns shows it."""
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    parts = [
        "# Command line\n\nEvery text below is what the command prints with `--help`. Tables of settings are "
        "on the pages about [algorithms](algorithms/index.md).\n"
    ]
    agents = [f"train {agent}" for agent in AGENTS_SHOWN]
    for command in ("", *COMMANDS, *agents):
        arguments = [*command.split(), "--help"]
        shown = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "tokengym", *arguments], capture_output=True, text=True, env=environment, check=True
        )
        name = f"tokengym {command}".strip()
        parts.append(f"## {name}\n\n```text\n{shown.stdout.strip()}\n```\n")
    return "\n".join(parts)


def tutorial() -> str:
    """The cells of `examples/tutorial.py`: text, and code in blocks."""
    _, *cells = re.split(r"^# %%", (ROOT / "examples" / "tutorial.py").read_text(), flags=re.MULTILINE)
    parts = []
    for cell in cells:
        kind, _, body = cell.partition("\n")
        if "markdown" in kind:
            parts.append(re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip())
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def results() -> str:
    """The page of measured results; links to files beside it become names."""
    text = (ROOT / "benchmarks" / "results" / "README.md").read_text()
    return re.sub(r"\[([^\]]+)\]\((?!http|#)[^)]*\)", r"\1", text)
