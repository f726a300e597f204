"""The design's claims about the house, as tests."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A room may import the rooms before it and itself. The files beside them, such as `arrays` and `files`, are for all.
# The engine stands between the files of models, with which it is one room here; a test of its own finds circles.
ROOMS = (
    "rewards/grading",
    "models",
    "rewards",
    "envs/problems",
    "envs",
    "agents/configs",
    "agents/rollouts",
    "agents/training",
    "agents/evaluation",
    "agents",
    "benchmarks",
    "benchmarks/reports",
    "benchmarks/paper",
    "benchmarks/after_pretraining",
    "benchmarks/studies",
    "benchmarks/speed",
    "benchmarks/speed/peers",
    "commands",
)
# Rooms of `benchmarks` that know nothing of each other, whatever their order.
APART = {
    "benchmarks/reports": set(),
    "benchmarks/paper": {"benchmarks", "benchmarks/reports"},
    "benchmarks/after_pretraining": {"benchmarks", "benchmarks/reports"},
    "benchmarks/studies": {"benchmarks", "benchmarks/reports"},
    "benchmarks/speed": {"benchmarks"},
    "benchmarks/speed/peers": {"benchmarks", "benchmarks/speed"},
}
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for top in ("models", "rewards", "envs", "agents", "benchmarks", "commands")
    for path in sorted((ROOT / top).rglob("*.py"))
}


def imports(path: Path) -> set[str]:
    """The modules of the package that a source file imports, however it spells the import; "" is the root."""
    package = ["tokengym", *path.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            names = [[*module, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        found |= {module_of(".".join(name[1:])) for name in names if name[0] == "tokengym"}
    return found


def module_of(name: str) -> str:
    """The module that a dotted name is or is in."""
    while name and name not in SOURCES:
        name = name.rpartition(".")[0]
    return name


def room(path: Path) -> str:
    folder = str(path.relative_to(ROOT).parent)
    return "models" if folder == "models/engine" else folder


def forbidden(path: Path) -> Iterator[str]:
    """The modules that a file imports although its room may not."""
    own = room(path)
    allowed = set(ROOMS[: ROOMS.index(own) + 1])
    if own in APART:
        allowed = {name for name in allowed if not name.startswith("benchmarks")} | APART[own] | {own}
    for name in sorted(imports(path)):
        if name and room(SOURCES[name]) not in allowed:
            yield name


def test_every_folder_is_a_room() -> None:
    assert {room(path) for path in SOURCES.values()} == set(ROOMS)


@pytest.mark.parametrize("path", SOURCES.values(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_the_list_only(path: Path) -> None:
    assert list(forbidden(path)) == []


def test_no_circle_of_files() -> None:
    """Names of packages stand for nothing here: they are looked up at their first use."""
    packages = {name for name, path in SOURCES.items() if path.name == "__init__.py"}
    graph = {name: imports(path) - packages - {"", name} for name, path in SOURCES.items() if name not in packages}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"files import each other: {' <- '.join(error.args[1])}")


def test_a_name_is_of_one_class() -> None:
    """Names that begin with an underscore are their modules' own; studies are scripts with words of their own."""
    places: dict[str, set[str]] = {}
    library = [path for path in SOURCES.values() if room(path) != "benchmarks/studies"]
    for path in [*library, *(ROOT / "scripts").glob("*.py"), *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, set()).add(str(path.relative_to(ROOT)))
    assert len(places) > 100
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


@pytest.mark.parametrize(
    ("place", "spelling"),
    [
        ("models", "from ..envs import TokenEnv"),
        ("models", "from tokengym.agents import base"),
        ("models/engine", "import tokengym.benchmarks.studies.demo"),
        ("rewards/grading", "from ...models import load_tokenizer"),
        ("rewards/grading", "from ..steps import step_ends"),
        ("envs/problems", "from ..token_env import TokenEnv"),
        ("agents/rollouts", "from ..training.learner import Example"),
        ("agents/training", "from ..base import Agent"),
        ("agents/evaluation", "from .. import ppo"),
        ("benchmarks/reports", "from ..paper.published import paper_row"),
        ("benchmarks/studies", "from ..paper import scales"),
    ],
)
def test_the_check_sees_an_import_against_the_direction(place: str, spelling: str) -> None:
    class Fake(type(ROOT)):
        def read_text(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
            return spelling

    assert list(forbidden(Fake(ROOT / place / "never_written.py")))


HEAVY = ["torch", "transformers", "datasets", "peft", "stable_baselines3", "matplotlib", "sympy"]
HELP = "import contextlib, tokengym.__main__ as cli\nwith contextlib.suppress(SystemExit): cli.main({})"


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import tokengym", [*HEAVY, "numpy", "gymnasium"]),
        ("import tokengym.rewards.grading; tokengym.rewards.grading.grade('#### 4', '4')", [*HEAVY, "numpy"]),
        ("import tokengym.envs; tokengym.envs.TokenVectorEnv, tokengym.envs.Arithmetic", HEAVY),
        ("from tokengym.rewards import make_reward; make_reward('dense')", HEAVY),
        ("from tokengym.__main__ import main; assert main(['--help']) == 0", [*HEAVY, "numpy", "gymnasium"]),
        ("from tokengym.__main__ import main; assert main(['list']) == 0", HEAVY),
        ("from tokengym.__main__ import main; assert main(['train']) == 0", [*HEAVY, "gymnasium"]),
        (HELP.format(["train", "ppo", "--help"]), [*HEAVY, "gymnasium"]),
        (HELP.format(["train", "grpo", "--preset", "dapo", "--help"]), [*HEAVY, "gymnasium"]),
        (HELP.format(["train", "sft", "--lerning-rate", "1"]), [*HEAVY, "gymnasium"]),
        (HELP.format(["plan", "--agent", "rcrl", "--help"]), HEAVY),
        ("from tokengym.agents.registry import AGENTS, config_class; [*map(config_class, AGENTS.names())]", HEAVY),
    ],
)
def test_imports_are_light(code: str, absent: list[str]) -> None:
    script = f"{code}\nimport sys\nprint()\nprint(*sys.modules.keys() & {set(absent)!r})"
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == ""


def test_importing_the_package_registers_the_environments() -> None:
    code = "import tokengym, gymnasium; assert 'tokengym/GSM8K-v0' in gymnasium.registry"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_gymnasium_imports_the_package_from_the_id_alone() -> None:
    code = (
        "import gymnasium; env = gymnasium.make('tokengym:tokengym/Arithmetic-v0', style='equation', steps=1, "
        "tokenizer='chars:0123456789+-*/=', prompt='{question}'); print(env.spec.id)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "tokengym/Arithmetic-v0"


def test_only_files_writes_files_which_a_full_disk_leaves_whole() -> None:
    """The files of models are in a `new_folder`, and so whole as well; pictures are saved in a `new_file`."""
    in_place = re.compile(r"""\.write_text\(|\.write_bytes\(|\.savefig\(path|\.open\("w""")
    found = {name for name, path in SOURCES.items() if in_place.search(path.read_text())}
    assert {name for name in found if not name.startswith("models.")} == set()
