"""Features whose extra is not installed: one line with the command that installs it."""

import importlib
import re
import runpy
import sys
import tomllib
from pathlib import Path

import gymnasium as gym
import pytest

from tokengym import models
from tokengym.__main__ import main
from tokengym.extras import PACKAGES, need
from tokengym.models.adapters import with_saved_adapters

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def module(name: str):
    """Imports a module anew."""
    sys.modules.pop(name, None)
    return importlib.import_module(name)


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if it were not installed, though other tests have imported it."""
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


FEATURES = {
    "gguf": lambda folder: models.load(folder / "model.gguf"),
    "hub": lambda folder: gym.make("tokengym/Dataset-v0", data="nobody/nothing", question="q", answer="a").reset(),
    "lora": lambda folder: models.load("tokengym/tiny", lora_rank=2),
    "plots": lambda folder: module("tokengym.benchmarks.studies.demo").demo(folder, 0, print),
    "quantization": lambda folder: models.load("tokengym/tiny", device="cpu", load_in_4bit=True),
    "sb3": lambda folder: module("tokengym.envs.sb3"),
}


@pytest.mark.parametrize("extra", FEATURES)
def test_a_missing_extra_is_one_line_with_the_command(extra: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "model.gguf").touch()
    monkeypatch.setitem(sys.modules, "tokengym.envs.sb3", None)  # put back afterwards
    hide(monkeypatch, PACKAGES[extra])
    with pytest.raises(ImportError) as caught:
        FEATURES[extra](tmp_path)
    command = re.escape(f'pip install "tokengym[{extra}]"')
    assert re.fullmatch(rf".+ needs {PACKAGES[extra]}, an extra: {command}", str(caught.value))


def test_adapters_and_the_policy_of_sb3_need_theirs_too(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tokengym.agents.sb3", None)
    for package in ("peft", "stable_baselines3"):
        hide(monkeypatch, package)
    with pytest.raises(
        ImportError, match=r"SB3CausalLMPolicy needs stable_baselines3, an extra: pip install .*\[sb3\]"
    ):
        module("tokengym.agents.sb3")
    with pytest.raises(ImportError, match=r"reading adapters needs peft"):
        with_saved_adapters(None, tmp_path)  # pyright: ignore[reportArgumentType]


def test_on_the_command_line_it_is_one_line(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert main(["train", "sft", "--lora-rank", "2", "--run", str(tmp_path / "run"), "--demonstrations", "2"]) == 1
    assert capsys.readouterr().err == 'tokengym: training adapters needs peft, an extra: pip install "tokengym[lora]"\n'


@pytest.mark.parametrize(("example", "extra"), [("sb3_ppo", "sb3"), ("gsm8k_lora", "lora")])
def test_examples_say_which_extra_they_need(example: str, extra: str, tmp_path: Path, monkeypatch) -> None:
    path = ROOT / "examples" / f"{example}.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), "--quick"])
    monkeypatch.delitem(sys.modules, "tokengym.agents.sb3", raising=False)
    hide(monkeypatch, PACKAGES[extra])
    with pytest.raises(ImportError, match=rf"needs {PACKAGES[extra]}, an extra: pip install .*\[{extra}\]"):
        runpy.run_path(str(path), run_name="__main__")


def test_each_extra_of_the_distribution_brings_its_package() -> None:
    assert EXTRAS.keys() - {"all", "dev", "docs"} == PACKAGES.keys()
    for extra, package in PACKAGES.items():
        requirement = EXTRAS[extra][0]
        assert re.match(r"[\w-]+", requirement)[0].replace("-", "_") == package  # pyright: ignore[reportOptionalSubscript]
    assert EXTRAS["all"] == [f"tokengym[{','.join(sorted(PACKAGES.keys() - {'vllm'}))}]"]


def test_what_is_installed_is_not_imported_for_the_check(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", sys)  # whatever it is
    need("lora", "this")
