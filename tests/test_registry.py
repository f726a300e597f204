"""Registries: what entry points of other packages may do wrong, and what is said about it."""

import re
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from tokengym import registry
from tokengym.__main__ import main
from tokengym.agents import AGENTS, PPO, Agent
from tokengym.agents.configs.search import SEARCH_SUMMARIES
from tokengym.envs import PROBLEMS
from tokengym.envs.curriculum import make_curriculum
from tokengym.envs.registration import make_token_env
from tokengym.exits import exit_status
from tokengym.registry import EntryPointError, Registry, UnknownNameError, summary
from tokengym.rewards import grade, make_reward
from tokengym.rewards.grading.formats import make_format

MODULES = {
    "plugin_good": 'def make():\n    """Makes nothing.\n\n    More.\n    """\n\n\nclass Thing:\n    pass\n',
    "plugin_broken": "raise RuntimeError('two\\nlines')\n",
    "plugin_lacking": "import a_package_that_nobody_has\n",
    "plugin_exits": "raise SystemExit(3)\n",
    "plugin_number": "value = 3\n",
}


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Declares entry points, each (group, name, value, distribution), as if packages with them were installed."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    points: list[EntryPoint] = []

    def entry_points(group, name=None):
        return [point for point in points if point.group == group and name in (None, point.name)]

    def add(group: str, name: str, value: str, owner: str = "acme") -> None:
        point = EntryPoint(name, value, group)
        vars(point).update(dist=SimpleNamespace(name=owner))
        points.append(point)

    monkeypatch.setattr(registry, "entry_points", entry_points)
    return add


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("plugin_broken:make", "cannot be imported: RuntimeError: two lines; repair or uninstall it"),
        ("plugin_lacking:make", "cannot be imported: ModuleNotFoundError: No module named 'a_package_that_nobody_has'"),
        ("plugin_exits:make", "cannot be imported: SystemExit: 3"),
        ("plugin_good:absent", "cannot be imported: AttributeError: module 'plugin_good' has no attribute 'absent'"),
        ("no_such_plugin:make", "cannot be imported: ModuleNotFoundError: No module named 'no_such_plugin'"),
        (
            "plugin_good:make",
            "names <function make at .*, which is no agent: name one that is a subclass of ",
        ),
        (
            "plugin_number:value",
            "names 3, which is no agent: name one that is a subclass of tokengym.agents",
        ),
        ("tokengym.agents.base:Agent", "names .*, which is no agent: .* with all its methods"),
    ],
)
def test_a_faulty_entry_point_is_one_line_that_names_its_package(install, capsys, value: str, fault: str) -> None:
    install("tokengym.agents", "theirs", value)
    with pytest.raises(EntryPointError, match=rf"^agent 'theirs' of acme \(entry point {value}\) {fault}") as caught:
        AGENTS.get("theirs")
    assert "\n" not in str(caught.value)
    assert main(["train", "theirs", "--help"]) == 1
    assert capsys.readouterr().err == f"tokengym: {caught.value}\n"


@pytest.mark.parametrize(
    ("group", "make"),
    [
        ("rewards", make_reward),
        ("curriculums", make_curriculum),
        ("problems", make_token_env),
        ("answer_formats", make_format),
    ],
)
def test_what_is_of_another_class_is_refused_before_it_is_used(install, group: str, make) -> None:
    install(f"tokengym.{group}", "theirs", "plugin_good:Thing")
    install(f"tokengym.{group}", "made", "plugin_good:make")
    with pytest.raises(EntryPointError, match=r"'theirs' of acme .* names <class 'plugin_good.Thing'>, which is no "):
        make("theirs")
    with pytest.raises(EntryPointError, match=r"'made' of acme makes a NoneType, and no tokengym\."):
        make("made")


def test_one_faulty_package_takes_nothing_from_the_others(install, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    install("tokengym.agents", "broken", "plugin_broken:make")
    install("tokengym.agents", "twice", "plugin_good:make", "one")
    install("tokengym.agents", "twice", "plugin_good:make", "another")
    install("tokengym.agents", "ppo", "plugin_broken:make", "usurper")
    install("tokengym.problems", "sums", "plugin_good:make")
    install("tokengym.rewards", "odd", "plugin_number:value")
    assert AGENTS.get("ppo") is PPO
    found = AGENTS.summaries()
    assert found["broken"].startswith("cannot be used: agent 'broken' of acme (entry point plugin_broken:make)")
    assert found["twice"] == "cannot be used: agent 'twice' is claimed by another and one: uninstall one of them"
    assert found["ppo"] == f"{summary(PPO)} (hides the agent of that name of usurper)"
    assert found["sft"]
    assert PROBLEMS.summaries()["sums"] == "Makes nothing."
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "reward 'odd' of acme (entry point plugin_number:value) names 3, which is no reward" in shown
    assert summary(PPO) in shown
    assert all(name in shown and text in shown for name, text in SEARCH_SUMMARIES.items())
    assert main(["train"]) == 0
    assert "agent 'twice' is claimed by another and one" in capsys.readouterr().out


@pytest.mark.parametrize("of", [AGENTS, PROBLEMS], ids=lambda of: of.kind)
def test_summaries_read_from_source_are_those_of_the_classes(of: Registry) -> None:
    found = of.summaries()
    assert found == {name: summary(of.get(name)) for name in of.names()}
    assert all(found.values())


def test_built_in_agents_are_named_as_they_are_registered() -> None:
    for name in AGENTS.names():
        agent = AGENTS.get(name)
        assert issubclass(agent, Agent)
        assert agent.name == name


def test_an_error_in_another_packages_code_says_where_it_arose(monkeypatch, capsys) -> None:
    def fails() -> None:
        int("seven")

    monkeypatch.setattr("tokengym.exits.PLUGINS", set())
    assert exit_status(fails) == 1
    assert capsys.readouterr().err == "tokengym: invalid literal for int() with base 10: 'seven'\n"
    monkeypatch.setattr("tokengym.exits.PLUGINS", {__name__.partition(".")[0]})
    assert exit_status(fails) == 1
    assert re.search(r"'seven'; \S+test_registry.py, line \d+\n$", capsys.readouterr().err)
    assert exit_status(lambda: grade("#### 5", "five")) == 1  # an error of this package says what is wrong itself
    assert "test_registry.py" not in capsys.readouterr().err


def test_what_a_process_registers_itself_is_found() -> None:
    things: Registry[type] = Registry("thing", base="builtins:object")
    things.register("mine")(dict)
    assert things.names() == ["mine"]
    assert things.get("mine") is dict
    with pytest.raises(UnknownNameError, match="unknown thing 'main': did you mean 'mine'"):
        things.get("main")
