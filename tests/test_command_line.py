"""The command line's own words: the version, the groups of benchmarks, names that are none."""

import errno
import json
import os
import re
import signal
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import tokengym
from tokengym.__main__ import COMMANDS, main
from tokengym.benchmarks.after_pretraining import grid, plots
from tokengym.benchmarks.after_pretraining.grid import MultiplicationExperiment, ParityExperiment
from tokengym.commands.bench import MEASUREMENTS
from tokengym.commands.terminal import flag
from tokengym.files import check_new_folder


def test_the_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tokengym {tokengym.__version__}\n"


@pytest.mark.parametrize("arguments", [["bench"], ["bench", "--help"], ["bench", "-h"]])
def test_benchmarks_of_the_machine_and_experiments_are_two_groups(arguments: list[str], capsys) -> None:
    assert main(arguments) == 0
    machine, papers = capsys.readouterr().out.split("reproduce papers and run studies:\n")
    names = [re.findall(r"^  (\w+) +\S", group, re.MULTILINE) for group in (machine, papers)]
    assert names == [
        [*MEASUREMENTS, "speed"],
        ["paper", "parity", "multiplication", "linear", "ppo", "rcrl", "models"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "grade"], "unknown benchmark 'grade': did you mean 'grading'?"),
        (["trian"], "unknown command 'trian': did you mean 'train'?"),
    ],
)
def test_a_name_that_is_none_suggests_the_nearest(arguments: list[str], message: str, capsys) -> None:
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith(f"tokengym: {message}")


def test_an_error_shows_its_notes(monkeypatch, capsys) -> None:
    def fail(_: object) -> None:
        error = ValueError("no number")
        error.add_note("raised by Mine.attempt_reward (mine.py, line 3)")
        raise error

    monkeypatch.setitem(COMMANDS, "list", fail)
    assert main(["list"]) == 1
    assert capsys.readouterr().err == "tokengym: no number; raised by Mine.attempt_reward (mine.py, line 3)\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 2 TiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes\nmore"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_memory_that_cannot_be_had_is_one_line_with_what_to_lower(error: Exception, monkeypatch, capsys) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setitem(COMMANDS, "list", fail)
    assert main(["list"]) == 1
    first = (str(error) or "none is left").splitlines()[0]
    assert capsys.readouterr().err.startswith(f"tokengym: not enough memory: {first}; lower --num-envs, ")
    error = RuntimeError("a fault of ours")
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main(["list"])


def test_a_reader_that_leaves_ends_a_command_without_a_word(monkeypatch, capsys) -> None:
    """As in `tokengym eval --help | head -1`; a pipe to anything else that breaks is an error."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setitem(COMMANDS, "list", lambda _: print("many lines", file=sys.stdout, flush=True))  # noqa: T201

        def other(_: object) -> None:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        monkeypatch.setitem(COMMANDS, "runs", other)
        assert main(["runs"]) == 1
        assert "Broken pipe" in capsys.readouterr().err
        os.close(read)
        assert main(["list"]) == 128 + signal.SIGPIPE
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", [*MEASUREMENTS, "linear"])
def test_every_measurement_has_help_and_its_module(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", name, "--help"])
    assert ended.value.code == 0
    assert "--output" in capsys.readouterr().out
    if name in MEASUREMENTS:
        path = MEASUREMENTS[name][0].replace(".", "/")
        assert Path(tokengym.__file__).with_name("benchmarks").joinpath(f"{path}.py").is_file()


def test_of_a_flag_given_twice_the_last_counts() -> None:
    assert flag(["--preset", "dapo", "--preset=gspo"], "--preset") == "gspo"
    assert flag(["--preset=dapo", "--preset", "gspo"], "--preset") == "gspo"
    assert flag(["--run", "a"], "--preset") is None


@pytest.mark.parametrize("memory", ["nan", "inf", "0"])
def test_memory_to_plan_for_is_a_number_above_0(memory: str, capsys) -> None:
    assert main(["plan", "--memory", memory]) == 1
    assert "--memory must be above 0 and finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    "setting", ["split=train", "shots=4", "reward=dense", "curriculum=backtracking", "num_envs=3", "copy=true"]
)
def test_a_setting_that_a_command_sets_itself_is_refused_among_the_environments(setting: str, capsys) -> None:
    assert main(["eval", "--problems", "1", "--n", "0", "--env-args", setting]) == 1
    assert f"--env-args {setting} is of no effect" in capsys.readouterr().err


def test_the_doctor_checks_all_splits(capsys) -> None:
    assert main(["doctor", "--limit", "1", "--env-args", "split=train"]) == 1
    assert "--env-args split is of no effect: all splits are checked" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env-args", "steps=[2,3]", "--env-args", "max_value=50"], "--env-args is given 2 times: give it once"),
        (["--env-args=steps=2", "--env_args", "max_value=50"], "--env-args is given 2 times: give it once"),
        (["--env-args", "steps=2", "steps=3"], "--env-args has steps more than once"),
        (["--env-args", 'reward={"name": "dense", "name": "sparse"}'], "\"sparse\"}: the key 'name' is given twice"),
        (["--n", "0", "--temperature", "0.3"], "temperature is 0.3, but it counts only with samples"),
        (["--n", "0", "--top-k", "5"], "top_k is 5, but it counts only with samples"),
        (["--search", "beam", "--n", "6"], "--search-keep must divide the n of 6, got 4"),
        (["--search", "beam", "--n", "1"], "a search needs several candidates of a problem: raise --n to at least 2"),
        (["--search", "evolution", "--n", "6"], "--search-generations must divide the n of 6, got 4"),
        (["--output", "."], ". is a folder, and results are written to a file"),
    ],
)
def test_an_option_of_an_evaluation_that_would_be_dropped_is_refused(
    arguments: list[str], message: str, capsys
) -> None:
    """Of a list of values that is given twice only the second would count."""
    assert main(["eval", "--problems", "1", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alpha", "0", "1", "nan"], "alpha[2] must be finite"),
        (["--alpha", "1", "0.5", "1"], "--alpha has a number more than once"),
        (["--alpha", "1", "--problems", "3"], "problems is 3, but it counts only with a comparison"),
        (["--alpha", "1", "--env-args", "steps=2"], "env_args is ('steps=2',), but it counts only with a comparison"),
        (["--folder", "file/inside"], "file is a file, and file/inside is to be a folder"),
    ],
)
def test_what_an_extrapolation_cannot_use_is_told_before_anything_is_measured(
    arguments: list[str], message: str, capsys, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert main(["extrapolate", "weaker", "stronger", *arguments]) == 1  # neither of which is there
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path, monkeypatch) -> None:
    check_new_folder(tmp_path / "new" / "folder")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(PermissionError, match=f"folder cannot be made: {tmp_path} is not writable"):
        check_new_folder(tmp_path / "new" / "folder")


def test_the_demo_begins_anew_in_a_new_folder(tmp_path, capsys) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["demo", "--run", str(tmp_path)]) == 1
    assert "is not empty, and the demo begins anew: give another folder by --run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "-1"], "seeds[0] must be at least 0"),
        (["--temperatures", "1", "0"], "temperatures[1] must be above 0"),
        (["--p-cot", "1.5"], "p_cot is the share of long solutions, in [0, 1]"),
        (["--seeds", "1", "1"], "give each value of a setting, such as a seed, once"),
    ],
)
def test_a_grid_after_pretraining_is_checked_before_it_is_begun(
    arguments: list[str], message: str, capsys, tmp_path
) -> None:
    assert main(["bench", "parity", "--folder", str(tmp_path / "runs"), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_an_experiment_with_nothing_finished_fails(monkeypatch, capsys, tmp_path) -> None:
    missing = {"settings": {}, "pretraining": [], "runs": [], "missing": {"seed-0/pretraining": "OSError: gone"}}
    monkeypatch.setattr(grid, "run", lambda experiment, say: missing)
    monkeypatch.setattr(plots, "table", lambda results: "")
    assert main(["bench", "parity", "--folder", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert "missing: seed-0/pretraining: OSError: gone" in output.out
    assert "nothing was finished that a table could show" in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env-args", "max_new_tokens=ten"], "max_new_tokens must be a whole number, got 'ten'"),
        (["--env", "CartPole-v1"], "CartPole-v1 is no environment of tokens"),
    ],
)
def test_what_an_environment_does_not_take_is_told_from_what_is_none(
    arguments: list[str], message: str, capsys
) -> None:
    assert main(["eval", "--problems", "1", "--n", "0", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_the_grids_after_pretraining_have_folders() -> None:
    assert ParityExperiment().folder == Path("runs/parity")
    assert MultiplicationExperiment().folder == Path("runs/multiplication")


def test_a_disk_that_gets_full_leaves_the_earlier_results_and_names_the_file(tmp_path, monkeypatch, capsys) -> None:
    benchmark = import_module("tokengym.benchmarks.speed.grading_throughput")
    monkeypatch.setattr(benchmark, "run", lambda: {"grades": 1})
    monkeypatch.setattr(benchmark, "table", str)
    file = tmp_path / "results.json"
    arguments = ["bench", "grading", "--output", str(file)]
    assert main(arguments) == 0
    earlier = file.read_text()
    assert json.loads(earlier) == {"grades": 1}

    def full(path: Path, text: str) -> int:
        path.write_bytes(text[:3].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert main(arguments) == 1
    assert capsys.readouterr().err == f"tokengym: {file}: no space left on device\n"
    assert [path.read_text() for path in tmp_path.iterdir()] == [earlier]
