"""The public names are those that the documentation lists, and an agent's signature shows its settings."""

import dataclasses
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

from tokengym.agents import AGENTS, GRPO, PPO, SORM, Agent

ROWS = dict(re.findall(r"^\| `(tokengym[\w.]*)` \| (.*) \|$", Path("docs/api.md").read_text(), re.MULTILINE))


def test_the_list_has_the_packages_that_people_import() -> None:
    assert {"tokengym", "tokengym.agents", "tokengym.envs", "tokengym.rewards", "tokengym.models"} <= ROWS.keys()


@pytest.mark.parametrize(
    ("module", "name", "new_module", "new_name"),
    [
        *(("tokengym.agents.learner", name, "tokengym.agents.training", name)
          for name in ("Example", "Learner", "OptimizerConfig")),
        ("tokengym.agents.losses", "masked_aggregate", "tokengym.agents.training", "masked_aggregate"),
        ("tokengym.agents.sb3", "CausalLMPolicy", "tokengym.agents.sb3", "SB3CausalLMPolicy"),
        ("tokengym.rewards", "Attempt", "tokengym.rewards", "FinishedAttempt"),
    ],
)  # fmt: skip
def test_names_of_the_last_version_say_where_they_are_now(
    module: str, name: str, new_module: str, new_name: str
) -> None:
    with pytest.warns(DeprecationWarning, match=f"{module}.{name} is now {new_module}.{new_name}; "):
        old = getattr(import_module(module), name)
    assert old is getattr(import_module(new_module), new_name)


@pytest.mark.parametrize("package", ROWS)
def test_a_package_exports_what_the_documentation_lists(package: str) -> None:
    module = import_module(package)
    listed = re.findall(r"`(\w+)`", ROWS[package])
    assert listed == sorted(set(listed), key=str.lower)
    assert set(listed) == set(module.__all__)
    for name in listed:
        assert getattr(module, name) is not None
    # Nothing that a module merely imports shows, such as `Any`.
    assert {name for name in dir(module) if not name.startswith("_")} == set(listed)


@pytest.mark.parametrize("name", AGENTS.names())
def test_an_agents_signature_has_all_of_its_settings_by_name(name: str) -> None:
    agent = AGENTS.get(name)
    parameters = inspect.signature(agent).parameters
    assert list(parameters)[:2] == ["env", "model"]
    assert not any(item.kind in (item.VAR_KEYWORD, item.VAR_POSITIONAL) for item in parameters.values())
    defaults = {field.name: field.default for field in dataclasses.fields(agent.config_class)}
    assert {key: parameters[key].default for key in defaults} == defaults
    assert {"seed", "run", "resume", "lora_rank"} <= parameters.keys()


def test_arguments_of_ones_own_stay_and_those_passed_on_are_shown() -> None:
    @dataclasses.dataclass(frozen=True)
    class Config:
        strength: float = 2.0

    class Mine(Agent[Config]):
        config_class = Config

        def __init__(self, env: str, *, mood: str = "good", **settings: float) -> None: ...

        def learn(self, total_episodes=None, callback=None, progress_bar=False): ...

    assert str(inspect.signature(Mine)) == "(env: str, *, mood: str = 'good', strength: float = 2.0)"
    assert "epochs" in inspect.signature(PPO).parameters
    assert "group_size" not in inspect.signature(GRPO).parameters
    assert inspect.signature(SORM).parameters["samples_per_problem"].default == 4
