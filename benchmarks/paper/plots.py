"""The paper's figures from the results of its grid: points are means over seeds, bars their ranges."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from ..reports.content import Figure
from ..reports.svg import to_svg
from .findings import novelty_shares
from .results import Results
from .systems import systems

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Plot

Curve = Sequence[Mapping[str, float]]
_STARTS = {"": "from the SFT checkpoint", "pretrained/": "from the pretrained checkpoint"}
_ALGORITHMS = ("rft", "ei", "orm_ei", "rcrl", "orm_rcrl", "sparse_ppo", "dense_ppo", "sparse_orm_ppo", "dense_orm_ppo")
_REWARDS = ("sparse_ppo", "dense_ppo", "sparse_orm_ppo", "dense_orm_ppo")
_ABLATIONS = {
    "Critic": ("sparse_ppo", "ablations/head_critic", "ablations/model_critic"),
    "Best K of N": ("sparse_ppo", "ablations/best_half"),
    "Penalty and temperature": ("sparse_ppo", "ablations/no_kl", "ablations/hot"),
    "Curriculum": ("sparse_ppo", "ablations/backtracking", "ablations/replay"),
}
_MARKERS = "osD^vP*XhpH<>"
_LEGEND_POINTS = 10
"""Size of legends, which stays above 8 points where a page shows a figure a little smaller than it is."""
_VALIDATION = "Accuracy is greedy, on problems of the validation split."


def figures(results: Results) -> Iterator[Figure]:
    """Those that there are results for."""
    for draw in (_sample_complexity, _rewards, _ablations, _rounds, _plane, _exploration):
        figure = draw(results)
        if figure is not None:
            yield figure


def mean_curve(curves: Sequence[Curve], at: str) -> list[tuple[float, float, float, float]]:
    """Over seeds: mean place, mean, lowest and highest validation maj@1, as often as all of them validated.

    Points are matched by their order: places in attempts differ between seeds where steps are labelled by
    continuations, of which each seed samples other numbers.
    """
    by_seed = [[point for point in curve if at in point] for curve in curves]
    found: list[tuple[float, float, float, float]] = []
    for points in zip(*by_seed, strict=False):
        values = [point["eval/maj@1"] for point in points]
        place = float(np.mean([point[at] for point in points]))
        found.append((place, float(np.mean(values)), min(values), max(values)))
    return found


def _sample_complexity(results: Results) -> Figure | None:
    plot, panels = _panels(results, _ALGORITHMS)
    if plot is None:
        return None
    titles = _titles(results)
    for start, axes in panels.items():
        for name in _ALGORITHMS:
            points = mean_curve(list(results.cumulative_curves(start + name).values()), "step")
            # The axis is logarithmic: a start that nothing was sampled for has no place there.
            _line(axes, [point for point in points if point[0] > 0], _label(titles, start, name), **_style(name))
        reference = "sft" if not start else "pretrained/prompted"
        _level(axes, results, reference)
        axes.set(xscale="log", xlabel="attempts sampled for learning", title=_STARTS[start])
    return Figure(
        "sample-complexity",
        "Sample complexity",
        "maj@1 against cumulative attempts, those sampled for what a system builds on included. "
        f"{_VALIDATION} Dotted: the start, on the test split.",
        _finished(plot, "maj@1"),
    )


def _rounds(results: Results) -> Figure | None:
    curves = {start: mean_curve(list(results.curves(start + "ei").values()), "round") for start in _STARTS}
    if not any(curves.values()):
        return None
    from matplotlib.ticker import MaxNLocator

    plot = _plot(5.5)
    axes = plot.add_subplot()
    for marker, (start, points) in zip("os", curves.items(), strict=True):
        _line(axes, points, _STARTS[start], color=_style("ei")["color"], marker=marker)
    axes.set(xlabel="round; 0 is the start")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return Figure(
        "rounds", "Expert iteration by round", f"maj@1 after each round. {_VALIDATION}", _finished(plot, "maj@1")
    )


def _rewards(results: Results) -> Figure | None:
    plot, panels = _panels(results, _REWARDS)
    if plot is None:
        return None
    titles = _titles(results)
    for start, axes in panels.items():
        for name in _REWARDS:
            points = mean_curve(list(results.curves(start + name).values()), "step")
            _line(axes, points, _label(titles, start, name), **_style(name))
        axes.set(xlabel="attempts sampled for learning", title=_STARTS[start])
    return Figure("rewards", "PPO by reward", f"maj@1 against attempts. {_VALIDATION}", _finished(plot, "maj@1"))


def _ablations(results: Results) -> Figure | None:
    titles = _titles(results)
    if not any(results.curves(name) for names in _ABLATIONS.values() for name in names if name != "sparse_ppo"):
        return None
    plot = _plot(9, 7.5)
    panels = plot.subplots(2, -(-len(_ABLATIONS) // 2), sharey=True).ravel()
    for axes, (title, names) in zip(panels, _ABLATIONS.items(), strict=True):
        for name in names:
            _line(axes, mean_curve(list(results.curves(name).values()), "step"), titles[name], **_style(name))
        axes.set(xlabel="attempts sampled for learning", title=title)
    caption = f"Sparse PPO with one thing changed: maj@1 against attempts. {_VALIDATION}"
    return Figure("ablations", "PPO, one thing changed at a time", caption, _finished(plot, "maj@1"))


def _plane(results: Results) -> Figure | None:
    titles = _titles(results)
    place = {
        name: tuple(_mean(results.values(name, metric)) for metric in ("maj@1", "pass@n"))
        for name in titles
        if not name.startswith("pretrained/") and results.values(name, "pass@n")
    }
    supervised = [place[name] for name in ("sft_2", "sft", "sft_8") if name in place]
    if not supervised:
        return None
    plot = _plot(6, 4 + 0.14 * len(place))  # the legend has a line for two systems
    axes = plot.add_subplot()
    axes.plot(*zip(*supervised, strict=True), color="0.4", marker="o", label="SFT, longer and longer")
    for name, (x, y) in place.items():
        if name not in ("sft_2", "sft", "sft_8"):
            fill = "none" if name.startswith("sft_2/") else "full"
            axes.plot(x, y, fillstyle=fill, linestyle="", label=titles[name], **_style(name))
    n = results.scale.n
    axes.set(xlabel="maj@1")
    caption = f"maj@1 and pass@{n} on the test split, means over seeds: continued SFT against RL."
    return Figure("plane", f"maj@1 and pass@{n}", caption, _finished(plot, f"pass@{n}"))


def _exploration(results: Results) -> Figure | None:
    titles = _titles(results)
    names = ["sft", "sft_2", "sft_8", *_ALGORITHMS]
    names = [name for name in names if results.values(name, "diversity") and novelty_shares(results, name)]
    if not names:
        return None
    plot = _plot(8)
    left, right = plot.subplots(1, 2, sharey=True)
    for axes, values in (
        (left, [results.values(name, "diversity") for name in names]),
        (right, [novelty_shares(results, name) for name in names]),
    ):
        means = np.array([_mean(item) for item in values])
        reach = [means - [min(item.values()) for item in values], [max(item.values()) for item in values] - means]
        axes.barh([titles[name] for name in names], means, xerr=np.clip(reach, 0, None), color="0.7")
    left.invert_yaxis()
    left.set(xlabel=f"distinct correct solutions of {results.scale.n} samples")
    right.set(xlabel="share that SFT's samples lack", xlim=(0, 1))
    caption = (
        "Distinct correct solutions, by their equations, per test problem; and the share of those in the second half "
        "of the samples that are not in the first half of SFT's, at problems that this half solves. SFT's own share is "
        "what chance leaves."
    )
    return Figure("exploration", "Diversity, and overlap with the SFT pool", caption, to_svg(plot))


def _panels(results: Results, names: Sequence[str]) -> "tuple[Plot | None, dict[str, Axes]]":
    """A plot with a panel for each start that has a curve."""
    starts = [start for start in _STARTS if any(results.curves(start + name) for name in names)]
    if not starts:
        return None, {}
    plot = _plot(4.5 * len(starts))
    panels = plot.subplots(1, len(starts), sharey=True, squeeze=False)[0]
    return plot, dict(zip(starts, panels, strict=True))


def _plot(width: float, height: float = 4.8) -> "Plot":
    from matplotlib.figure import Figure as Plot

    return Plot(figsize=(width, height), layout="constrained")


def _label(titles: Mapping[str, str], start: str, name: str) -> str:
    """A system's title, without its start where the same is planned from SFT: panels name that."""
    return titles.get(name) or titles.get(start + name, "")


def _style(system: str) -> dict[str, Any]:
    """Color and marker of a system, which it has in every panel and figure, from whatever it starts."""
    names = [*_ALGORITHMS, *(name for group in _ABLATIONS.values() for name in group if name not in _ALGORITHMS)]
    name = system if system in names else system.rpartition("/")[2]
    number = names.index(name) if name in names else len(names) + crc32(name.encode()) % 97
    # Ten colors, and others' markers where they begin again.
    return {"color": f"C{number % 10}", "marker": _MARKERS[number % len(_MARKERS)]}


def _line(axes: "Axes", points: Sequence[tuple[float, float, float, float]], label: str, **style: Any) -> None:
    if points:
        at, mean, low, high = map(np.array, zip(*points, strict=True))
        bars = [mean - low, high - mean]
        axes.errorbar(at, mean, bars, markersize=4, capsize=2, label=label, **style)


def _level(axes: "Axes", results: Results, system: str) -> None:
    values = results.values(system, "maj@1")
    if values:
        axes.axhline(_mean(values), color="0.4", linestyle=":", label=results.title(system))


def _finished(plot: "Plot", ylabel: str) -> str:
    """Labels and one legend for all panels, below them, as SVG."""
    plot.axes[0].set(ylabel=ylabel)
    lines = {
        label: handle for axes in plot.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if lines:
        columns = max(1, min(len(lines), int(plot.get_figwidth() / 2.4)))
        place = "outside lower center"
        plot.legend([*lines.values()], [*lines], loc=place, ncols=columns, fontsize=_LEGEND_POINTS, frameon=False)
    return to_svg(plot)


def _titles(results: Results) -> dict[str, str]:
    return {system.name: system.title for system in systems(results.scale)}


def _mean(values: Mapping[int, float]) -> float:
    return float(np.mean(list(values.values())))
