"""The study of sampling in another precision than training, at its smallest."""

import errno
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from tokengym.agents import Pretrain
from tokengym.benchmarks.jobs import Done
from tokengym.benchmarks.studies import mismatch
from tokengym.models import load


def test_matrices_are_rounded_to_eight_bits_and_follow_the_model() -> None:
    model, _ = load("tokengym/tiny", device="cpu")
    copied = mismatch.EightBitCopy(model)
    for _ in range(2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        for own, rounded in zip(model.parameters(), copied.newest().parameters(), strict=True):
            error = (own - rounded).abs()
            if own.dim() == 1:
                assert not error.any()
            else:  # three bits of a fraction, down to the least number of e4m3 in proportion to the largest of all
                assert (error <= own.abs() * 2**-4 + own.abs().max() * 2**-10 / 448).all()
                assert error.any()


def test_the_figure_shows_a_success_of_nothing_but_no_logarithm_of_it(tmp_path, monkeypatch) -> None:
    figures: list[Figure] = []

    def savefig(figure: Figure, file: Path, **_: object) -> None:
        figures.append(figure)
        file.touch()

    monkeypatch.setattr(Figure, "savefig", savefig)
    names = ("train/mismatch", "train/mismatch_max", "rollout/success_rate")
    curve = [dict.fromkeys(names, value) | {"step": step} for step, value in enumerate((0.0, 0.5))]
    mismatch.plot({"runs": [{"variant": "float32", "curve": curve}]}, tmp_path / "mismatch.png")
    shown = [axes.lines[0].get_ydata().tolist() for axes in figures[0].axes]
    assert shown == [[0.5], [0.5], [0.0, 0.5]]


def test_a_disk_that_gets_full_leaves_the_earlier_figure(tmp_path, monkeypatch) -> None:
    curve = [{"step": 0, "train/mismatch": 0.5}]
    results = {"runs": [{"variant": "float32", "curve": curve}]}
    mismatch.plot(results, tmp_path / "mismatch.png")
    earlier = (tmp_path / "mismatch.png").read_bytes()
    assert earlier.startswith(b"\x89PNG")

    def full(figure: Figure, file: Path, **_: object) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/mismatch\.png'"):
        mismatch.plot(results, tmp_path / "mismatch.png")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [earlier]


@pytest.mark.slow
def test_mismatch_is_logged_for_every_precision(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(mismatch, "NUM_ENVS", 16)
    small = {"problems_per_iteration": 8, "samples_per_problem": 4}
    monkeypatch.setattr(mismatch, "GROUPS", {**mismatch.GROUPS, **small})
    start = Pretrain(
        mismatch.parity(6), model="new", device="cpu", num_envs=8, width=32, depth=2, steps=100, save_steps=100,
        batch_size=64, learning_rate=3e-3, validation_problems=0, run=tmp_path / "start",
    )  # fmt: skip
    start.learn()
    experiment = mismatch.MismatchStudy(
        tmp_path / "start" / "model", tmp_path / "study", ("float32", "bfloat16, weights", "8 bits"), d=6, iterations=1,
        test_problems=8,
    )  # fmt: skip
    threads = torch.get_num_threads()

    def run_plan(jobs, folder, workers):
        """In this process, in the given order."""
        done = {}
        for job in jobs:
            own = folder / job.name
            own.mkdir(parents=True)
            done[job.name] = Done(own, job.work(own, job.settings, {}), 1.0)
        return done

    monkeypatch.setattr(mismatch, "run_plan", run_plan)
    results = mismatch.run(experiment)
    torch.set_num_threads(threads)
    assert [one["variant"] for one in results["runs"]] == list(experiment.variants)
    found = {}
    for one in results["runs"]:
        (line,) = [line for line in one["curve"] if "train/mismatch" in line]
        found[one["variant"]] = line["train/mismatch"]
        assert ("train/importance" in line) == ("weights" in one["variant"])
    assert found["float32"] < 1e-5 < found["bfloat16, weights"] < found["8 bits"]
    assert mismatch.table(results).row_count == 3
    assert (tmp_path / "study" / "mismatch.png").exists()
