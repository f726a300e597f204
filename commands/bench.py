"""`tokengym bench` and `tokengym demo`: measurements of this machine, and experiments."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from ..files import check_output, write_json
from ..registry import summary, unknown_name
from .options import MAIN
from .terminal import run_command, say

MEASUREMENTS = {
    "env": ("speed.env_throughput", "steps of environments per second"),
    "rollout": ("speed.rollout_throughput", "the rollout engine against `generate`"),
    "shared": ("speed.shared_prompts", "steps of sampling that read a prompt once for all attempts behind it"),
    "memory": ("speed.rollout_memory", "memory of collected attempts"),
    "grading": ("speed.grading_throughput", "grades per second, of numbers and of LaTeX"),
    "orm": ("speed.orm_cost", "what an outcome model as the reward adds to the time of a rollout"),
    "busy": ("speed.busy_cores", "fine-tuning beside other busy processes"),
    "gpu": ("speed.gpu_decoding", "decoding on a GPU: plain, by CUDA graphs and compiled, beside its memory's speed"),
}
"""Measurements of this machine: module and description by name."""


def bench(arguments: Sequence[str]) -> None:
    """Measure this machine, or reproduce a paper's experiment."""
    experiments: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
        "paper": (_paper, "tables and figures of Havrilla et al. 2024"),
        "parity": (partial(_after_pretraining, "parity"), "RL after pretraining on parities, Tsilivis et al. 2025"),
        "multiplication": (partial(_after_pretraining, "multiplication"), "the same on products of numbers"),
        "linear": (partial(_measure, "linear", "studies.linear_theory"), "its linear theory, in a minute"),
        "ppo": (_rewards_of_ppo, "PPO under sparse, dense and learned rewards"),
        "rcrl": (_return_conditioning, "labels, label ratios and returns that RCRL conditions on"),
        "models": (_models, "sampling and training of many architectures, checked against transformers"),
    }
    measurements: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
        name: (partial(_measure, name, module), text) for name, (module, text) in MEASUREMENTS.items()
    }
    measurements["speed"] = (_speed, "all of these as ratios in one table, and peers where they are installed")
    if not arguments or arguments[0] in ("-h", "--help"):
        groups = {"measure this machine": measurements, "reproduce papers and run studies": experiments}
        lists = [
            f"{title}:\n" + "\n".join(f"  {name:16} {text}" for name, (_, text) in group.items())
            for title, group in groups.items()
        ]
        say("usage: tokengym bench NAME [--help] [OPTIONS]\n\n" + "\n\n".join(lists))
        return
    known = {**measurements, **experiments}
    if arguments[0] not in known:
        raise unknown_name("benchmark", arguments[0], known)
    known[arguments[0]][0](arguments[1:])


def _measure(name: str, module: str, arguments: Sequence[str]) -> None:
    def run(output: Path | None = None) -> None:
        """Measures.

        Args:
            output: JSON file for the results.
        """
        check_output(output)
        benchmark = import_module(f"..benchmarks.{module}", __package__)
        results = benchmark.run()
        say(benchmark.table(results))
        if output is not None:
            write_json(output, results)

    run_command(run, f"tokengym bench {name}", arguments, MEASUREMENTS.get(name, ("", "The linear theory."))[1])


def _speed(arguments: Sequence[str]) -> None:
    def run(
        trl_python: str | None = None,
        trl_ppo_python: str | None = None,
        peer_runs: int = 1,
        history: Path | None = None,
        output: Path | None = None,
    ) -> None:
        """Measures.

        Args:
            trl_python: Interpreter of an environment with TRL 1.16.0, to compare GRPO with.
            trl_ppo_python: Interpreter of an environment with TRL 1.12.0, the last one with PPO, to compare PPO with.
            peer_runs: Runs of each side of the comparisons with TRL, whose medians count.
            history: File of JSON lines that the ratios are added to, with commit, date and machine.
            output: JSON file for the results.
        """
        from ..benchmarks.speed.peers import summary

        check_output(history)
        check_output(output)
        results = summary.run(trl_python, trl_ppo_python, peer_runs)
        say(summary.table(results))
        if history is not None:
            summary.append_history(results, history)
        if output is not None:
            write_json(output, results)

    run_command(run, "tokengym bench speed", arguments, "All measurements of speed in one table, as ratios.")


def _check_finished(any_is: bool) -> None:
    """Raises `ValueError` if no job of an experiment has a result: the exit status then says so, as that of studies."""
    if not any_is:
        raise ValueError("nothing was finished that a table could show; the same command tries again")


def _after_pretraining(task: str, arguments: Sequence[str]) -> None:
    from ..benchmarks.after_pretraining import grid as after_pretraining
    from ..benchmarks.after_pretraining import plots as after_pretraining_plots

    kinds = {
        "parity": after_pretraining.ParityExperiment,
        "multiplication": after_pretraining.MultiplicationExperiment,
    }

    def run(experiment: Any) -> None:
        results = after_pretraining.run(experiment, say)
        say(after_pretraining_plots.table(results))
        for name, reason in results["missing"].items():
            say(f"missing: {name}: {reason}")
        _check_finished(bool(results["pretraining"]))
        say(f"runs, results.json and plots are in {experiment.folder}")

    run.__annotations__["experiment"] = Annotated[kinds[task], MAIN]
    run_command(run, f"tokengym bench {task}", arguments, summary(after_pretraining))


def _return_conditioning(arguments: Sequence[str]) -> None:
    from ..benchmarks.studies import return_conditioning

    def run(experiment: Annotated[return_conditioning.ReturnConditioning, MAIN]) -> None:
        results = return_conditioning.run(experiment, say)
        say(return_conditioning.table(results))
        _check_finished(len(results) > len({"settings", "missing"}))
        say(f"runs and results.json are in {experiment.folder}")

    run_command(run, "tokengym bench rcrl", arguments, summary(return_conditioning))


def _paper(arguments: Sequence[str]) -> None:
    from ..benchmarks.paper import grid as paper

    def run(grid: Annotated[paper.PaperGrid, MAIN]) -> None:
        paper.show(grid, say)

    description = summary(paper).removeprefix("`tokengym bench paper`: ")
    run_command(run, "tokengym bench paper", arguments, description, {"output": "folder"})


def _models(arguments: Sequence[str]) -> None:
    from ..benchmarks.studies import model_matrix

    def run(matrix: Annotated[model_matrix.ModelMatrix, MAIN]) -> None:
        rows = model_matrix.run(matrix, say)
        say(model_matrix.summary(rows))
        say(f"models.json and models.md are in {matrix.folder}")
        if any(row.bad for row in rows.values()):
            raise SystemExit(1)

    run_command(
        run, "tokengym bench models", arguments, summary(model_matrix).removeprefix("`tokengym bench models`: ")
    )


def _rewards_of_ppo(arguments: Sequence[str]) -> None:
    from ..benchmarks.studies import ppo_rewards as ppo

    def run(experiment: Annotated[ppo.PPOExperiment, MAIN]) -> None:
        results = ppo.run(experiment, say)
        say(ppo.table(results))
        for name, reason in results["missing"].items():
            say(f"missing: {name}: {reason}")
        _check_finished(bool(results["sft"] or results["ppo"]))
        say(f"runs, results.json and a plot are in {experiment.folder}")

    run_command(run, "tokengym bench ppo", arguments, summary(ppo))


def demo(arguments: Sequence[str]) -> None:
    """Watch expert iteration teach the built-in model, in five minutes on two cores."""

    def start(run: Path | None = None, seed: int = 0) -> None:
        """Runs the demo.

        Args:
            run: Folder of the run; by default a new one, `runs/demo-DATE-TIME`.
            seed: Seed of problems, attempts and the order of training.
        """
        from ..benchmarks.studies.demo import demo as show

        say(show(run, seed, say=say))

    run_command(start, "tokengym demo", arguments, demo.__doc__, {"run_folder": "run"})
