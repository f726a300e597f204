"""The linear theory of next-token prediction and STaR on parity, measured beside its closed forms.

Tsilivis et al. 2025 (arXiv 2510.11495) prove for autoregressive linear models what they see in transformers. Inputs x
are d random signs; with probability p a response is the chain y_l = x_1...x_l, l = 1..d, else the parity alone, y_1 =
x_1...x_d. A linear model predicts each y_l, and after y_1 whether to stop, by logistic regression on the features

    position 1:        x_1..x_d
    stop, positions l: z_1..z_{d+l-1}, z_{d+l-1} x_1, ..., z_{d+l-1} x_d     with z = (x, y_1..y_{l-1})

(the stop decision with the features of position 2, and a bias). It is trained by SGD, one sample a step, on the
logistic loss plus lambda/2 |w|^2, at the rate 1/(lambda t), and averaged over its iterates; positions 2..d learn from
long responses only. Greedy decoding takes signs, sampling the sigmoid.

Closed forms: P(y_1 = 1 | x) = (1 + p x_1) / 2, P(stop | y_1 = x_1) = (1 - p) / (1 + p), so greedy decoding stops at
once, right half the time, if p < 1/3, and else writes the chain; STaR, which trains on correct samples only, leads from
p to 2p / (1 + p).

All models are trained side by side: one axis for the models (values of p, seeds), one for their decisions.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ...arrays import FloatArray

# Samples whose features are made at a time, in training and in sampling.
_BLOCK, _CHUNK = 200, 20_000


def next_p(p: float) -> float:
    """The share of long responses among correct ones, when a share p of all is long: 2p / (1 + p)."""
    return 2 * p / (1 + p)


def stop_probability(p: float) -> float:
    """P(stop | y_1 = x_1): how likely the model is to end there, (1 - p) / (1 + p)."""
    return (1 - p) / (1 + p)


@dataclass(frozen=True)
class Responses:
    """Responses of S models to N inputs each.

    Attributes:
        x: `[S, N, d]` signs.
        y: `[S, N, d]` signs; only the first counts if the response is short.
        long: `[S, N]` bool, true if the response continues after its first sign, to the end.
    """

    x: FloatArray
    y: FloatArray
    long: NDArray[np.bool_]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """`[S, N]`: r_cot, the whole chain or the short answer."""
        chain = np.cumprod(self.x, axis=-1)
        return np.where(self.long, (self.y == chain).all(-1), self.y[..., 0] == chain[..., -1])


def demonstrations(p: FloatArray, count: int, d: int, rng: np.random.Generator) -> Responses:
    """Inputs with solutions, long with probability `p` `[S]`."""
    x = rng.choice([-1.0, 1.0], (len(p), count, d))
    y: FloatArray = np.cumprod(x, axis=-1).astype(np.float64)
    long = rng.random((len(p), count)) < p[:, None]
    y[..., 0] = np.where(long, y[..., 0], y[..., -1])
    return Responses(x, y, long)


def features(x: FloatArray, y: FloatArray, position: int) -> FloatArray:
    """phi_l of inputs `[..., d]` and responses, filled with zeros to `[..., 3d - 1]`."""
    d = x.shape[-1]
    phi = np.zeros((*x.shape[:-1], 3 * d - 1))
    phi[..., :d] = x
    if position > 1:
        end = d + position - 1
        phi[..., d:end] = y[..., : position - 1]
        phi[..., end : end + d] = y[..., position - 2, None] * x
    return phi


def decisions(data: Responses) -> tuple[FloatArray, FloatArray]:
    """Features of each decision, `[N, S, d + 1, 3d - 1]`, and signs `[N, S, d + 1]`, 0 where nothing is.

    Decision 0 is position 1, decision 1 whether to stop, decision l position l.
    """
    d = data.x.shape[-1]
    stop = features(data.x, data.y, 2)
    stop[..., -1] = 1
    rest = [features(data.x, data.y, position) for position in range(2, d + 1)]
    phi = np.stack([features(data.x, data.y, 1), stop, *rest], axis=2)
    signs = np.concatenate([data.y[..., :1], np.where(data.long, -1.0, 1.0)[..., None], data.y[..., 1:]], axis=-1)
    signs[..., 2:] *= data.long[..., None]
    return np.ascontiguousarray(phi.swapaxes(0, 1)), np.ascontiguousarray(signs.swapaxes(0, 1))


def train(draw: Callable[[int], Responses], steps: int, regularization: float) -> FloatArray:
    """SGD with the rate 1/(lambda t) from 0; the average of its iterates, weights `[S, d + 1, 3d - 1]`.

    A decision's t counts the samples that it was made in. With this rate its iterate t + 1 is G_t / t, where G_t adds
    up the -gradient/lambda of t samples; and in the sum of T iterates sample s counts 1/s + ... + 1/T times. So sums
    over samples are all that is carried along.

    Args:
        draw: Function that draws a number of fresh samples.
        steps: Number of samples in total.
        regularization: Weight lambda of the regularization.
    """
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, steps + 1))])
    total: Any = 0.0
    late: Any = 0.0  # of each sample, as many times as it is missing in 1 + 1/2 + ... + 1/T
    done: Any = 0
    for start in range(0, steps, _BLOCK):
        phi, signs = decisions(draw(min(_BLOCK, steps - start)))
        if start == 0:
            total = np.zeros(phi.shape[1:])
        made = signs != 0
        before = done + np.cumsum(made, axis=0) - made
        done = before[-1] + made[-1]
        scale = 1 / np.maximum(before, 1)
        pulls = np.empty_like(signs)
        for i in range(len(phi)):
            margins = np.einsum("sdf,sdf->sd", total, phi[i]) * scale[i]
            # Early weights are huge; e^700 is near the largest number there is.
            pulls[i] = signs[i] / (regularization * (1 + np.exp(np.minimum(signs[i] * margins, 700))))
            total += pulls[i][..., None] * phi[i]
        late = late + np.einsum("nsd,nsdf->sdf", pulls * harmonic[before], phi)
    return (harmonic[done][..., None] * total - late) / np.maximum(done, 1)[..., None]


def respond(weights: FloatArray, x: FloatArray, rng: np.random.Generator | None = None) -> Responses:
    """The models' responses to inputs `[S, N, d]`: sampled, or greedy without `rng`."""
    d = x.shape[-1]
    y = np.zeros_like(x)

    def decide(decision: int, phi: FloatArray) -> NDArray[np.bool_]:
        margins = np.einsum("snf,sf->sn", phi, weights[:, decision])
        return margins > 0 if rng is None else rng.logistic(size=margins.shape) < margins

    y[..., 0] = np.where(decide(0, features(x, y, 1)), 1, -1)
    phi = features(x, y, 2)
    phi[..., -1] = 1
    long = ~decide(1, phi)
    for position in range(2, d + 1):
        y[..., position - 1] = np.where(decide(position, features(x, y, position)), 1, -1)
    return Responses(x, y, long)


class CorrectSamples:
    """Draws what STaR trains on: the models' own samples that are correct.

    Args:
        weights: Weights of the models, as from `train`.
        rng: Generator of inputs and responses.
    """

    def __init__(self, weights: FloatArray, rng: np.random.Generator) -> None:
        self.weights, self.rng = weights, rng
        self._left: list[Responses] = []  # of each model

    def __call__(self, count: int) -> Responses:
        """Draws a number of samples from each model.

        Raises:
            ValueError: Fewer than one sample in a hundred is correct.
        """
        while not self._left or min(left.x.shape[0] for left in self._left) < count:
            d = self.weights.shape[1] - 1
            sampled = respond(self.weights, self.rng.choice([-1.0, 1.0], (len(self.weights), _CHUNK, d)), self.rng)
            if sampled.correct.mean(1).min() < 0.01:
                raise ValueError("a model's samples are hardly ever correct: train it for longer")
            fresh = [
                Responses(x[right], y[right], long[right])
                for x, y, long, right in zip(sampled.x, sampled.y, sampled.long, sampled.correct, strict=True)
            ]
            self._left = [_join(*pair) for pair in zip(self._left, fresh, strict=True)] if self._left else fresh
        taken = [Responses(r.x[:count], r.y[:count], r.long[:count]) for r in self._left]
        self._left = [Responses(r.x[count:], r.y[count:], r.long[count:]) for r in self._left]
        return Responses(*(np.stack([getattr(r, name) for r in taken]) for name in ("x", "y", "long")))


def _join(first: Responses, second: Responses) -> Responses:
    return Responses(
        np.concatenate([first.x, second.x]),
        np.concatenate([first.y, second.y]),
        np.concatenate([first.long, second.long]),
    )


def measure(weights: FloatArray, rng: np.random.Generator, count: int = 20_000) -> dict[str, list[float]]:
    """Measures the models on fresh inputs; one number of each kind per model.

    `long`, `long_correct`, `short_correct`: shares of sampled responses. `stop`: sampled P(stop | y_1 = x_1).
    `greedy_accuracy` and `greedy_long`: shares of greedy responses.
    """
    x = rng.choice([-1.0, 1.0], (len(weights), count, weights.shape[1] - 1))
    sampled, greedy = respond(weights, x, rng), respond(weights, x)
    agrees = sampled.y[..., 0] == x[..., 0]
    shares = {
        "long": sampled.long.mean(1),
        "long_correct": (sampled.long & sampled.correct).mean(1),
        "short_correct": (~sampled.long & sampled.correct).mean(1),
        "stop": (~sampled.long & agrees).sum(1) / agrees.sum(1),
        "greedy_accuracy": greedy.correct.mean(1),
        "greedy_long": greedy.long.mean(1),
    }
    return {name: values.tolist() for name, values in shares.items()}


def run(
    d: int = 10,
    p: float = 0.25,
    rounds: int = 3,
    seeds: int = 3,
    sweep: Sequence[float] = (0.1, 0.2, 0.25, 0.3, 0.36, 0.4, 0.5, 0.6),
    steps: int = 200_000,
    regularization: float = 0.003,
    seed: int = 0,
) -> dict[str, Any]:
    """Next-token prediction at `p` (`seeds` times) and over `sweep`, then STaR rounds from the former.

    Args:
        d: Number of signs, at least 3.
        p: Share of long responses in pretraining.
        rounds: Number of rounds of STaR.
        seeds: Number of models that go through the rounds.
        sweep: Further shares to pretrain at, for the threshold at 1/3.
        steps: Number of SGD steps, in pretraining and in each round.
        regularization: Weight lambda of the regularization; a large one slows STaR down, and a small one needs more
            steps.
        seed: Seed of data and models.
    """
    if d < 3:
        raise ValueError(f"d must be at least 3, got {d}")
    started = time.perf_counter()
    rng = np.random.default_rng(seed)
    mixture = np.array([p] * seeds + list(sweep))
    weights = train(lambda count: demonstrations(mixture, count, d, rng), steps, regularization)
    threshold = [
        {"p": share, **{name: values[seeds + i] for name, values in measured.items()}}
        for measured in [measure(weights, rng)]
        for i, share in enumerate(sweep)
    ]
    weights = weights[:seeds]
    stages = [{"p": p, "predicted": p, **measure(weights, rng)}]
    for _ in range(rounds):
        weights = train(CorrectSamples(weights, rng), steps, regularization)
        stages.append({"predicted": next_p(stages[-1]["predicted"]), **measure(weights, rng)})
    return {
        "d": d,
        "p": p,
        "steps": steps,
        "regularization": regularization,
        "seed": seed,
        "rounds": stages,
        "threshold": threshold,
        "seconds": time.perf_counter() - started,
    }


def table(results: dict[str, Any]) -> Group:
    """Measured values beside the closed forms, each over the seeds as mean and range."""
    stages = Table(
        "", "long: theory", "long: measured", "long and correct", "greedy accuracy: theory", "greedy accuracy",
        title=f"STaR on linear models, d = {results['d']}, p = {results['p']}",
    )  # fmt: skip
    for number, stage in enumerate(results["rounds"]):
        predicted = stage["predicted"]
        stages.add_row(
            "next-token prediction" if number == 0 else f"STaR round {number}",
            f"{predicted:.3f}",
            _mean_and_range(stage["long"]),
            _mean_and_range(stage["long_correct"]),
            _greedy_theory(predicted),
            _mean_and_range(stage["greedy_accuracy"]),
        )
    threshold = Table(
        "p", "P(stop | y_1 = x_1): theory", "measured", "greedy accuracy: theory", "measured", "greedy: share long",
        title="next-token prediction around the threshold 1/3",
    )  # fmt: skip
    for row in results["threshold"]:
        measured = (f"{row[name]:.3f}" for name in ("greedy_accuracy", "greedy_long"))
        threshold.add_row(
            f"{row['p']:g}",
            f"{stop_probability(row['p']):.3f}",
            f"{row['stop']:.3f}",
            _greedy_theory(row["p"]),
            *measured,
        )
    protocol = f"{results['steps']:,} steps of SGD each, lambda = {results['regularization']}, seed {results['seed']}"
    return Group(stages, threshold, Text(f"{protocol}, {results['seconds']:.0f} s"))


def _greedy_theory(p: float) -> str:
    return "1/2" if p < 1 / 3 else "1"


def _mean_and_range(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"
