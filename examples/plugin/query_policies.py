"""Four policies of asking a proposer, compared: what LaGR-SEQ's learned one is worth.

    pip install ./examples/plugin
    tokengym demo --run runs/demo
    python examples/plugin/query_policies.py --proposer runs/demo/model --folder runs/query-policies

Each run is one round of expert iteration from 64 demonstrations. Beginnings of its failed attempts may go to the
proposer, of which a share is asked: all, none, a random half, or those that a bandit learns to expect something of.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from tokengym_plugin.lagr_seq import LaGRSEQ

from tokengym.agents import evaluate
from tokengym.benchmarks.jobs import Done, Job, run_plan
from tokengym.benchmarks.statistics import crossed_mean
from tokengym.files import read_jsonl, write_json

ENV = "tokengym/Arithmetic-v0"
QUERIES = ("never", "always", "random", "learned")


@dataclass(frozen=True)
class Comparison:
    """Policies of asking, measured.

    Attributes:
        proposer: Model that is asked, for instance that of `tokengym demo`.
        folder: Folder of all runs; finished runs in it are not repeated.
        seeds: Seeds of the experiment.
        problems: Training problems, with 4 attempts each.
        test_problems: Test problems that policies are measured on.
        cost: Cost of a question, in solutions.
    """

    proposer: str
    folder: Path = Path("runs/query-policies")
    seeds: tuple[int, ...] = (0, 1, 2)
    problems: int = 300
    test_problems: int = 300
    cost: float = 0.2


def asked(folder: Path, settings: Any, needs: Any) -> dict[str, Any]:
    """A round of expert iteration with one policy of asking."""
    agent = LaGRSEQ(
        ENV, "tokengym/tiny", num_envs=64, seed=settings["seed"], run=folder / "run", resume="auto", device="cpu",
        demonstrations=64, epochs=4, batch_size=16, rounds=1, problems=settings["problems"], samples_per_problem=4,
        validation_problems=100, proposer=settings["proposer"], query=settings["query"], query_cost=settings["cost"],
    )  # fmt: skip
    agent.learn()
    (line,) = (one for one in read_jsonl(folder / "run" / "metrics.jsonl") if one.get("round") == 1)
    result = evaluate(agent, agent.make_env(split="test"), problems=settings["test_problems"])
    return {
        "query": settings["query"],
        "seed": settings["seed"],
        "maj@1": result.by_problem["maj@1"],
        "solved": line["rollout/problems_solved"],
        **{name: line[f"query/{name}"] for name in ("asked", "accepted", "return")},
    }


def main(comparison: Comparison) -> None:
    """Runs what is not done yet; writes `results.json` and shows a table."""
    shared = {name: getattr(comparison, name) for name in ("proposer", "problems", "test_problems", "cost")}
    plan = [
        Job(f"seed-{seed}/{query}", asked, {**shared, "seed": seed, "query": query})
        for seed in comparison.seeds
        for query in QUERIES
    ]
    states = run_plan(plan, comparison.folder)
    runs = [state.result for state in states.values() if isinstance(state, Done)]
    write_json(comparison.folder / "results.json", {**shared, "runs": [dict(one) for one in runs]})
    table = Table("query", "seeds", "asked", "right", "return", "problems solved", "maj@1", box=SIMPLE)
    for query in QUERIES:
        if own := [one for one in runs if one["query"] == query]:
            means = [f"{np.mean([one[name] for one in own]):.0f}" for name in ("asked", "accepted", "return", "solved")]
            table.add_row(query, str(len(own)), *means, str(crossed_mean(np.array([one["maj@1"] for one in own]))))
    Console(width=120).print(table)


if __name__ == "__main__":
    main(tyro.cli(Comparison))
