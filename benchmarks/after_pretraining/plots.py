"""Tables and plots of the results of `after_pretraining.run`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from ...files import new_file

# What tells the runs of a grid apart; only what differs between them is named.
_VARIED = ("algorithm", "grading", "temperature", "p_cot", "start", "seed")
_INSIDE = 4
"""Names of more runs than this stand beside the panels."""
_NAMES = {
    "star": "STaR", "reinforce": "REINFORCE", "rloo": "RLOO", "grpo": "GRPO", "dr-grpo": "Dr. GRPO", "dapo": "DAPO",
    "gspo": "GSPO", "cispo": "CISPO", "lite-ppo": "Lite PPO",
}  # fmt: skip


def table(results: Mapping[str, Any]) -> Table:
    """Table of each pretrained model, before and after each run of reinforcement learning on it."""
    settings = results["settings"]
    size = f"d = {settings['d']}" if "d" in settings else f"{settings['digits']} digits"
    rows = Table(
        "", "greedy", "chain", "length", "sampled", "chain", "long", "CPU",
        box=SIMPLE, show_edge=False, collapse_padding=True,
        title=f"{settings['env']}, {size}, {settings['test_problems']} test problems",
        caption="greedy, sampled: answer right; chain: and the way to it\n"
        "length: median, greedy; long: share, sampled; CPU: seconds",
    )  # fmt: skip
    for column in rows.columns:
        column.no_wrap = True
    for pretrained in results["pretraining"]:
        which = pretrained["p_cot"], pretrained["seed"]
        for start, before in pretrained["before"].items():
            cost = f"{pretrained['cpu_seconds']:.0f}" if int(start) == settings["steps"] else ""
            place = f"p_cot {which[0]:g}, {start} steps" + f", seed {which[1]}" * (len(settings["seeds"]) > 1)
            rows.add_row(place, *_cells(before), cost)
            for run in results["runs"]:
                if (run["p_cot"], run["seed"], str(run["start"])) == (*which, start):
                    name = f"  {_NAMES[run['algorithm']]}, r_{run['grading']}, T={run['temperature']:g}"
                    rows.add_row(name, *_cells(run["after"]), f"{run['cpu_seconds']:.0f}")
    return rows


def _cells(found: Mapping[str, float]) -> list[str]:
    shares = ("greedy_accuracy", "greedy_correct", "sampled_accuracy", "sampled_correct", "sampled_long")
    cells = [f"{found[name]:.3f}" for name in shares]
    return [*cells[:2], f"{found['greedy_median_length']:g}", *cells[2:]]


def plot(results: Mapping[str, Any], folder: Path) -> None:
    """Writes `curves.png`, and with three or more values of p_cot `sweep.png`, into the folder."""
    curves(results, folder / "curves.png")
    if len({pretrained["p_cot"] for pretrained in results["pretraining"]}) >= 3:
        sweep(results, folder / "sweep.png")


def curves(results: Mapping[str, Any], path: Path) -> None:
    """Accuracy (greedy lines, sampled dashes) and median length of greedy responses, against pretraining, then RL."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    many = len(results["runs"]) > _INSIDE
    figure = Figure(figsize=(12 if many else 9, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for panel in axes[:, 1]:
        panel.set_prop_cycle(color=colormaps["tab20" if many else "tab10"](range(20 if many else 10)))
    for pretrained in results["pretraining"]:
        label = _label(pretrained, results["pretraining"])
        _draw(axes[:, 0], pretrained["curve"], label)
    for run in results["runs"]:
        (before,) = (
            pretrained["before"][str(run["start"])]
            for pretrained in results["pretraining"]
            if (pretrained["p_cot"], pretrained["seed"]) == (run["p_cot"], run["seed"])
        )
        # Before the first iteration the model is as pretraining left it.
        way = "correct" if run["grading"] == "cot" else "accuracy"
        start = {"at": 0, "greedy": before[f"greedy_{way}"], "sampled_at_1": before[f"sampled_{way}"]}
        start["median_length"] = before["greedy_median_length"]
        _draw(axes[:, 1], [start, *(point for point in run["curve"] if point["at"])], _label(run, results["runs"]))
    for column, title in enumerate(("steps of next-token prediction", "iterations of reinforcement learning")):
        axes[1, column].set_xlabel(title)
    axes[0, 0].set_ylabel("share of problems solved\n(solid: greedy, dashed: temperature 1)")
    axes[1, 0].set_ylabel("median length of greedy responses")
    axes[0, 0].set_ylim(0, 1.02)
    axes[0, 0].legend(fontsize=8, loc="lower right")
    if many:
        figure.legend(*axes[0, 1].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    elif results["runs"]:
        axes[0, 1].legend(fontsize=8, loc="lower right")
    with new_file(path) as file:
        figure.savefig(file, format="png", dpi=130)


def _draw(axes: Any, curve: Sequence[Mapping[str, float]], label: str) -> None:
    measured = [point for point in curve if "greedy" in point]
    at = [point["at"] for point in measured]
    (line,) = axes[0].plot(at, [point["greedy"] for point in measured], label=label, marker=".")
    axes[0].plot(at, [point["sampled_at_1"] for point in measured], color=line.get_color(), linestyle="--")
    axes[1].plot(at, [point["median_length"] for point in measured], color=line.get_color(), marker=".")


def _label(run: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    parts = {
        name: _NAMES.get(run[name], f"r_{run[name]}") if name in ("algorithm", "grading") else f"{name} {run[name]:g}"
        for name in _VARIED
        if name in run and (name == "algorithm" or len({other[name] for other in runs}) > 1)
    }
    return ", ".join(parts.values()) or "pretraining"


def sweep(results: Mapping[str, Any], path: Path) -> None:
    """Share of long responses and accuracy against p_cot, before and after reinforcement learning."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    last = results["settings"]["steps"]
    pretraining = sorted(results["pretraining"], key=lambda pretrained: pretrained["p_cot"])
    stages = {
        "next-token prediction": [
            (pretrained["p_cot"], pretrained["before"][str(last)])
            for pretrained in pretraining
            if str(last) in pretrained["before"]
        ]
    }
    same = {"p_cot": 0, "start": 0}  # one line for all of them
    for run in sorted(results["runs"], key=lambda run: run["p_cot"]):
        if run["start"] == last:
            label = _label({**run, **same}, [{**other, **same} for other in results["runs"]])
            stages.setdefault(label, []).append((run["p_cot"], run["after"]))
    for panel, name, title in zip(
        panels, ("long", "accuracy"), ("share of long responses", "share of right answers"), strict=True
    ):
        for stage, found in stages.items():
            shares = [p for p, _ in found]
            (line,) = panel.plot(shares, [values[f"greedy_{name}"] for _, values in found], marker="o", label=stage)
            sampled = [values[f"sampled_{name}"] for _, values in found]
            panel.plot(shares, sampled, marker=".", linestyle="--", color=line.get_color())
        panel.axvline(1 / 3, color="grey", linestyle=":")
        panel.set_xlabel("p_cot: share of long solutions in pretraining")
        panel.set_ylabel(f"{title}\n(solid: greedy, dashed: temperature 1)")
        panel.set_ylim(-0.02, 1.04)
    panels[1].legend(fontsize=8, loc="lower right")
    with new_file(path) as file:
        figure.savefig(file, format="png", dpi=130)
