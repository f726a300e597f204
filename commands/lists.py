"""`tokengym list` and `tokengym runs`: what there is, and what was run."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from .terminal import run_command, say, table


def list_names(arguments: Sequence[str]) -> None:
    """List environments, problem sources, agents, rewards, curricula, answer formats and searches."""

    def run() -> None:
        from ..agents import AGENTS
        from ..agents.configs.search import SEARCH_SUMMARIES
        from ..envs import CURRICULA, IDS, PROBLEMS
        from ..rewards import REWARDS
        from ..rewards.grading.formats import ANSWER_FORMATS

        problems = PROBLEMS.summaries()
        rows = [("environment", env_id, problems[source]) for env_id, source in sorted(IDS.items())]
        rows += [(PROBLEMS.kind, name, text) for name, text in problems.items() if name not in IDS.values()]
        for registry in (AGENTS, REWARDS, CURRICULA, ANSWER_FORMATS):
            rows += [(registry.kind, name, text) for name, text in registry.summaries().items()]
        rows += [("search", name, text) for name, text in SEARCH_SUMMARIES.items()]
        say(table(("kind", "name", "what it is"), rows))

    run_command(run, "tokengym list", arguments, list_names.__doc__)


def runs(arguments: Sequence[str]) -> None:
    """List the runs in a folder: agent, environment, attempts, best validation, state."""
    from ..agents.training.run_folder import find_runs

    def run(folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")] = Path("runs")) -> None:
        """List the runs in a folder, and in the folders inside it.

        Args:
            folder: Folder to look for runs in.
        """
        found = list(find_runs(folder))
        if not found:
            raise ValueError(f"{folder} holds no run")
        for one in found:
            if one.damage:
                sys.stdout.write(f"{one.path}  {one.state}\n    {one.damage}\n")
                continue
            best = f", best maj@1 {one.best}" if one.best else ""
            written = f", written {one.written}" if one.written else ""
            sys.stdout.write(f"{one.path}  {one.state}  {one.agent} on {one.environment}\n")
            sys.stdout.write(f"    {one.attempts} attempts{best}{written}, {one.versions}\n")

    run_command(run, "tokengym runs", arguments, runs.__doc__)
