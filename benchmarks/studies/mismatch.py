"""GRPO whose attempts are sampled in another precision than it trains in, with importance weights and without.

    tokengym bench parity --folder runs/parity-25 --algorithms
    python -m tokengym.benchmarks.studies.mismatch --model MODEL

MODEL is `seed-0/p_cot-0.25/pretraining/run/checkpoints/step-300` in the first command's folder.

It has learned parities by next-token prediction, and learns more by GRPO in float32, while attempts come from a copy of
the policy in bfloat16, or with matrices rounded to eight bits (e4m3), as engines with quantized weights sample. Log and
figure show how far the policy that samples is from the one that learns, and what becomes of the latter. A folder holds
all of it; what is done is not done again.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import gymnasium as gym
import torch
from gymnasium.envs.registration import EnvSpec
from rich.box import SIMPLE
from rich.table import Table
from transformers import PreTrainedModel

from ...agents.evaluation.evaluate import evaluate
from ...agents.grpo import GRPO
from ...agents.rollouts.policy import CausalLMPolicy
from ...agents.rollouts.slots import make_rollout_env
from ...extras import need
from ...files import new_file, read_jsonl, write_json
from ...models.engine.half_copy import HalfCopy
from ...registry import check_known
from ...settings import Count, CountOrZero, check_settings
from ..jobs import Done, Job, Missing, run_plan
from ..study import study_command

NUM_ENVS = 256
GROUPS: dict[str, Any] = {
    "problems_per_iteration": 32, "samples_per_problem": 16, "aggregation": "constant", "length_constant": 1,
    "learning_rate": 1e-4,
}  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("float32", {}),
    "bfloat16": ("bfloat16", {}),
    "bfloat16, weights": ("bfloat16", {"importance": "token_truncate"}),
    "8 bits": ("8 bits", {}),
    "8 bits, weights": ("8 bits", {"importance": "token_truncate"}),
    "8 bits, masks": ("8 bits", {"importance": "sequence_mask", "importance_floor": 0.5}),
}
"""Precision of sampling and settings of GRPO."""
PANELS = {
    "train/mismatch": "mean |log pi_train - log pi_sampled|",
    "train/mismatch_max": "largest |log pi_train - log pi_sampled|",
    "rollout/success_rate": "success of sampled attempts",
}


class EightBitCopy(HalfCopy):
    """A model whose matrices are rounded to eight bits (e4m3), each in proportion to its largest number."""

    def newest(self) -> PreTrainedModel:
        """The copy, with the weights that the model has now."""
        if self._copy is None:
            self._copy = copy.deepcopy(self.model).requires_grad_(False)
        with torch.no_grad():
            for own, rounded in zip(self.model.parameters(), self._copy.parameters(), strict=True):
                scale = own.abs().max().clamp(min=1e-12) / torch.finfo(torch.float8_e4m3fn).max if own.dim() > 1 else 1
                rounded.copy_((own / scale).to(torch.float8_e4m3fn).float() * scale if own.dim() > 1 else own)
        return self._copy.eval()


class HalfGRPO(GRPO):
    """GRPO that samples with a copy of the policy in bfloat16, and trains in float32."""

    name = "half-grpo"
    copied: ClassVar[type[HalfCopy]] = HalfCopy

    def _half_copy(self) -> HalfCopy:
        if self._half is None or self._half[0] is not self.model:
            self._half = self.model, self.copied(self.model)
        return cast(HalfCopy, self._half[1])


class EightBitGRPO(HalfGRPO):
    """GRPO that samples with matrices of eight bits, and trains in float32."""

    name = "eight-bit-grpo"
    copied = EightBitCopy


SAMPLED_IN: dict[str, type[GRPO]] = {"float32": GRPO, "bfloat16": HalfGRPO, "8 bits": EightBitGRPO}


@dataclass(frozen=True)
class MismatchStudy:
    """GRPO that samples in other precisions, measured.

    Attributes:
        model: Model to start from, which `tokengym bench parity` pretrained.
        folder: Folder of all runs; finished runs in it are not repeated.
        variants: Names of the variants to compare, keys of `VARIANTS`.
        seeds: Seeds of the experiment, with one run of each variant for each.
        d: Number of bits of the parities.
        iterations: Iterations of GRPO, with 512 attempts each.
        test_problems: Test problems that policies are measured on, in float32.
        workers: Number of processes, of one thread each, that run at the same time.
    """

    model: Path
    folder: Path = Path("runs/mismatch")
    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: tuple[CountOrZero, ...] = (0,)
    d: Count = 25
    iterations: Count = 20
    test_problems: Count = 500
    workers: Count = 2

    def __post_init__(self) -> None:
        check_settings(self)
        check_known("variant", self.variants, VARIANTS)


def jobs(experiment: MismatchStudy) -> list[Job]:
    """The plan, all variants of a seed before the next seed."""
    common = {name: getattr(experiment, name) for name in ("d", "test_problems", "iterations")}
    return [
        Job(
            f"seed-{seed}/variant-{number}",
            learned,
            {**common, "model": str(experiment.model), "variant": name, "precision": precision, "seed": seed}
            | {"settings": {**GROUPS, **settings}},
        )
        for seed in experiment.seeds
        for number, (name, (precision, settings)) in enumerate(VARIANTS.items())
        if name in experiment.variants
    ]


def learned(folder: Path, settings: Mapping[str, Any], needs: Mapping[str, Done]) -> dict[str, Any]:
    """A variant."""
    torch.set_num_threads(1)
    agent = SAMPLED_IN[settings["precision"]](
        parity(settings["d"]), settings["model"], run=folder / "run", resume="auto", device="cpu",
        num_envs=NUM_ENVS, seed=settings["seed"], iterations=settings["iterations"], micro_batch_tokens=1024,
        validation_problems=0, keep_best=False, **settings["settings"],
    )  # fmt: skip
    agent.learn()
    names = ("step", *PANELS, "train/mismatch_kl", "train/importance")
    curve = [{name: line[name] for name in names if name in line} for line in read_jsonl(folder / "run/metrics.jsonl")]
    policy = agent.policy.with_half(None)
    return {key: settings[key] for key in ("variant", "seed")} | {
        "curve": curve,
        "evaluation": _measured(policy, settings),
    }


def parity(d: int) -> EnvSpec:
    """The environment of parities of d bits."""
    spec = copy.deepcopy(gym.spec("tokengym/Parity-v0"))
    spec.kwargs |= {"d": d, "p_cot": 0.25, "grading": "cot"}
    return spec


def _measured(policy: CausalLMPolicy, settings: Mapping[str, Any]) -> dict[str, Any]:
    env = make_rollout_env(parity(settings["d"]), policy, NUM_ENVS, split="test")
    return evaluate(policy, env, problems=settings["test_problems"], n=0, seed=0).to_dict()["metrics"]


def run(experiment: MismatchStudy) -> dict[str, Any]:
    """Does what is not done yet, and writes `results.json` and `mismatch.png` into the folder."""
    need("plots", "the figure of this study")
    states = run_plan(jobs(experiment), experiment.folder, workers=experiment.workers)
    results: dict[str, Any] = {
        "d": experiment.d,
        "test_problems": experiment.test_problems,
        "runs": [dict(state.result) for state in states.values() if not isinstance(state, Missing)],
        "missing": {name: state.reason for name, state in states.items() if isinstance(state, Missing)},
    }
    write_json(experiment.folder / "results.json", results)
    if results["runs"]:
        plot(results, experiment.folder / "mismatch.png")
    return results


def table(results: Mapping[str, Any]) -> Table:
    """One row for each run: the mismatch of the first and the last iteration, and the final policy in float32."""
    grid = Table(
        "sampled in", "seed", "mismatch", "largest", "KL", "weight", "success", "greedy", box=SIMPLE, show_edge=False,
        title=f"parity of {results['d']} bits, {results['test_problems']} test problems",
        caption="mismatch: |log pi_train - log pi_sampled| per token, first and last iteration; KL: nats per token\n"
        "success: of sampled attempts in the last iteration; greedy: maj@1 of the policy in float32",
    )  # fmt: skip
    for one in results["runs"]:
        learnt = [line for line in one["curve"] if "train/mismatch" in line]
        if learnt:
            first, last = learnt[0], learnt[-1]
            cells = [f"{first[name]:.2g}, {last[name]:.2g}" for name in ("train/mismatch", "train/mismatch_max")]
            cells += [f"{last['train/mismatch_kl']:.2g}", f"{last.get('train/importance', 1.0):.4f}"]
        else:
            cells = [""] * 4
        success, greedy = one["curve"][-1]["rollout/success_rate"], one["evaluation"]["maj@1"][0]
        grid.add_row(one["variant"], str(one["seed"]), *cells, f"{success:.3f}", f"{greedy:.3f}")
    return grid


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Mismatch and success against attempts; solid lines without importance weights, others dashed or dotted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    precisions = list(dict.fromkeys(precision for precision, _ in VARIANTS.values()))
    styles = {"token_truncate": "--", "sequence_mask": ":"}
    for axes, (name, label) in zip(cast(Any, figure.subplots(1, len(PANELS))), PANELS.items(), strict=True):
        log = name.startswith("train/")
        for i, one in enumerate(results["runs"]):
            precision, settings = VARIANTS[one["variant"]]
            # A mismatch of exactly 0 has no place on a logarithmic axis; a success of 0 has one.
            points = [(line["step"], line[name]) for line in one["curve"] if name in line and (line[name] or not log)]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    color=f"C{precisions.index(precision)}",
                    linestyle=styles.get(settings.get("importance", ""), "-"),
                    label=one["variant"] if one["variant"] not in [r["variant"] for r in results["runs"][:i]] else None,
                )
        if log:
            axes.set_yscale("log")
        axes.set_xlabel("attempts")
        axes.set_ylabel(label)
    figure.axes[0].legend(fontsize=8)
    with new_file(path) as file:
        figure.savefig(file, format="png", dpi=130)


if __name__ == "__main__":
    study_command(MismatchStudy, run, table, width=80, is_empty=lambda results: not results["runs"])
