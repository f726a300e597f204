"""The demonstration: expert iteration on the built-in model, before and after, in five minutes on two cores."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...agents.base import Agent
from ...agents.evaluation.evaluate import Evaluation, evaluate
from ...agents.evaluation.tables import evaluation_table
from ...agents.expert_iteration import ExpertIteration
from ...extras import need
from ...files import new_file, write_json

ENV = "tokengym/Arithmetic-v0"
# Light fine-tuning, then problems enough that the policy's own solutions outnumber the demonstrations by far.
SETTINGS: dict[str, Any] = {
    "demonstrations": 64,
    "problems": 1600,
    "samples_per_problem": 2,
    "rounds": 2,
    "epochs": 4,
    "batch_size": 16,
    "validation_problems": 100,
    "patience": 2,
}
TEST_PROBLEMS, SAMPLES = 200, 8


def demo(folder: Path | None, seed: int, say: Callable[[Any], None]) -> str:
    """Trains, evaluates, plots and shows the table; returns where everything is, in lines to copy.

    Args:
        folder: Folder of the run; `None` makes a new one under `runs`.
        seed: Seed of problems, attempts and the order of training.
        say: Function that shows a line of progress, or the table.

    Raises:
        FileExistsError: The folder holds something already.
    """
    need("plots", "the plot of the demo")
    started = time.perf_counter()
    folder = folder or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty, and the demo begins anew: give another folder by `run`")
    results: dict[str, Evaluation] = {}
    agent = ExpertIteration(ENV, "tokengym/tiny", num_envs=256, seed=seed, run=folder, **SETTINGS)
    test = agent.make_env(split="test")

    def measure(name: str, training: str) -> None:
        results[name] = evaluate(agent, test, problems=TEST_PROBLEMS, n=SAMPLES, seed=seed)
        say(
            f"{time.perf_counter() - started:4.0f} s  {name}: maj@1 {results[name].metrics['maj@1']}, "
            f"pass@{SAMPLES} {results[name].metrics[f'pass@{SAMPLES}']}, {training}"
        )

    def on_round(agent: Agent, metrics: dict[str, float]) -> None:
        name = "SFT" if len(results) == 1 else f"EI round {len(results) - 1}"
        measure(name, f"trained on {metrics['train/examples']:.0f} solutions")

    say(f"fine-tuning on {SETTINGS['demonstrations']} solutions of {ENV}, then {SETTINGS['rounds']} rounds of EI")
    measure("built-in model", "before any training")
    agent.learn(callback=on_round, progress_bar=True)
    write_json(folder / "evaluation.json", {name: result.to_dict() for name, result in results.items()})
    plot(results, folder / "demo.png")
    say(evaluation_table(results, f"{ENV}, test split"))
    return (
        f"\nin {time.perf_counter() - started:.0f} s\nplot: {folder / 'demo.png'}\nmodel: {folder / 'model'}\n"
        f"logs: tensorboard --logdir {folder}\nattempts: tokengym render {folder}"
    )


def plot(results: dict[str, Evaluation], path: Path) -> None:
    """pass@k against k for each policy, with intervals, and its maj@1 as a dotted line."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(7, 4.5), layout="constrained")).add_subplot()
    for name, result in results.items():
        curve = {
            int(key.removeprefix("pass@")): value for key, value in result.metrics.items() if key.startswith("pass@")
        }
        (line,) = axes.plot(list(curve), [value.value for value in curve.values()], marker="o", label=f"{name}: pass@k")
        low, high = [value.low for value in curve.values()], [value.high for value in curve.values()]
        axes.fill_between(list(curve), low, high, color=line.get_color(), alpha=0.15)
        axes.axhline(
            result.metrics["maj@1"].value, color=line.get_color(), linestyle=":", label=f"{name}: maj@1 (greedy)"
        )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("k (samples per problem)")
    axes.set_ylabel("share of test problems solved")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8)
    with new_file(path) as file:
        figure.savefig(file, format="png", dpi=150)
