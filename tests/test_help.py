"""Help texts of the command line: every option of every command is a sentence that can be read alone."""

import contextlib
import dataclasses
import inspect
import itertools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docstring_parser
import pytest
import tyro

from tokengym import __main__ as command_line
from tokengym.agents import AGENTS
from tokengym.agents.search import SearchConfig
from tokengym.commands.bench import MEASUREMENTS
from tokengym.commands.train import agent_settings
from tokengym.settings import Setting, settings_of

BENCHMARKS = [
    "speed",
    "paper",
    "parity",
    "multiplication",
    "linear",
    "ppo",
    "rcrl",
    "models",
    *MEASUREMENTS,
]
COMMANDS = [
    *(name for name in command_line.COMMANDS if name not in ("train", "bench")),
    *(f"train {name}" for name in AGENTS.names()),
    *(f"bench {name}" for name in BENCHMARKS),
]
CONFIGS = {kind.config_class for kind in map(AGENTS.get, AGENTS.names())} | {SearchConfig}

# Words that continue a sentence of which the option's name would have to be the beginning.
CONTINUATIONS = re.compile(
    r"(of|likewise|as|and|or|the|for|how|what|which|whose|in|to|with|that|this|these|those|whether|where|when|by|from"
    r"|also|same)[,:]?",
    re.IGNORECASE,
)
OLD_WORDS = re.compile(r"\b(lest|whereof|told|heard|goes on|behind|optimis\w+|labell\w+|neighbour\w*|learnt)\b")
TAG = re.compile(r" \[([^\[\]]+)\]$")
SOURCE = re.compile(r"choice|trlx|[A-Z].* \d{4}\b.*")


def options(command: str) -> dict[str, str]:
    """The help of each option of a command, without its default."""
    found: dict[str, str] = {}

    def read(function: Any, *, prog: str, args: Any, description: str, config: Any) -> None:
        assert prog == f"tokengym {command}"
        assert description
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            parser = tyro.extras.get_parser(function, prog=prog, description=description, config=config)
        assert not {group.title for group in parser._action_groups} & {"options options", "experiment options"}
        for action in parser._actions:
            if "-h" not in action.option_strings:
                text = str(action.help or "")
                assert "\n" not in text, "a line of it begins with a bracket, which help takes for a new paragraph"
                name = (action.option_strings or [action.dest])[0]
                found[name] = re.sub(r"\s?\((default: .*?|required)\)( \[[^\[\]]*\])?$", "", text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tyro, "cli", read)
        name, *rest = command.split()
        command_line.COMMANDS[name]([*rest, "--help"] if name == "train" else rest)
    return found


def faults(text: str) -> Iterator[str]:
    """What is wrong with a help text."""
    sentence = TAG.sub("", text)
    words = sentence.split()
    if len(words) < 3:
        yield "has fewer than three words"
    if not sentence[:1].isupper():
        yield "does not begin with a capital letter"
    if not sentence.endswith("."):
        yield "does not end with a period"
    if words and CONTINUATIONS.fullmatch(words[0]):
        yield f"begins with {words[0]!r}, as if another sentence went on"
    if old := OLD_WORDS.search(sentence):
        yield f"says {old[0]!r}"
    if re.search(r"\[(paper|choice)[^\[\]]*\]", sentence):
        yield "names a source before its end"
    if (tag := TAG.search(text)) and not SOURCE.fullmatch(tag[1]):
        yield f"names the source {tag[1]!r}, neither a choice nor a work with its year"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "fewer than three"),
        ("Of the samples.", "begins with 'Of'"),
        ("temperature of the samples.", "capital"),
        ("Seed of the samples", "period"),
        ("How many problems there are.", "begins with 'How'"),
        ("Problems drawn anew, lest they repeat.", "says 'lest'"),
        ("Passes over the data; 4 [paper].", "before its end"),
        ("Passes over the data. [paper]", "neither a choice nor a work"),
    ],
)
def test_faults_are_found(text: str, fault: str) -> None:
    assert any(fault in found for found in faults(text))


def test_good_texts_have_no_faults() -> None:
    for text in ("Passes over the training data. [Havrilla et al. 2024: 4]", "Ratio in [1 - clip, 1 + clip]. [choice]"):
        assert not [*faults(text)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_a_sentence_that_stands_alone(command: str) -> None:
    found = options(command)
    assert len(found) >= (command != "list")
    assert [f"{name} {fault}: {text}" for name, text in found.items() for fault in faults(text)] == []
    for name, text in found.items():
        assert re.findall(r"\w+", text.lower()) != re.findall(r"[^\W_]+", name), f"{name} is explained by its name"


def texts(config: type) -> set[str]:
    """Attributes that a class documents itself."""
    return {entry.arg_name for entry in docstring_parser.parse(inspect.getdoc(config) or "").params}


@pytest.mark.parametrize("config", sorted(CONFIGS, key=lambda one: one.__name__), ids=lambda one: one.__name__)
def test_every_default_that_is_a_choice_names_its_source(config: type) -> None:
    for setting in settings_of(config):
        assert not [*faults(f"{setting.text} [{setting.source}]" if setting.source else setting.text)], setting
        if setting.default not in (None, False, 0, "", ()):
            assert setting.source, f"{config.__name__}.{setting.name} does not say where {setting.default!r} is from"
    classes = [one for one in config.__mro__ if dataclasses.is_dataclass(one)]
    for one, parent in itertools.pairwise(classes):
        before = {field.name: field.default for field in dataclasses.fields(parent)}
        changed = {f.name for f in dataclasses.fields(one) if before.get(f.name, f.default) != f.default}
        assert not changed - texts(one), f"{one.__name__} changes defaults whose texts it inherits"
        assert texts(one) <= {field.name for field in dataclasses.fields(one)}


@dataclasses.dataclass
class Base:
    """Settings of all.

    Attributes:
        rate: Learning rate. [choice]
        steps: Number of steps.
    """

    rate: float = 0.1
    steps: int = 3


@dataclasses.dataclass
class Special(Base):
    """Settings of one.

    Attributes:
        clip: Clipping range to
            [0.8, 1.2]. [Schulman et al. 2017: 0.2]
        rate: Learning rate of all weights. [Ye et al. 2020]
    """

    clip: float | None = None
    rate: float = 0.2


def test_settings_are_a_classs_own_first_and_explained_by_the_nearest_docstring() -> None:
    assert settings_of(Special) == [
        Setting("clip", float | None, None, "Clipping range to [0.8, 1.2].", "Schulman et al. 2017: 0.2"),
        Setting("rate", float, 0.2, "Learning rate of all weights.", "Ye et al. 2020"),
        Setting("steps", int, 3, "Number of steps.", ""),
    ]

    @dataclasses.dataclass
    class Silent(Base):
        """Settings without words, as an agent of a third party may have them."""

        layers: list[int] = dataclasses.field(default_factory=list)
        path: str = dataclasses.field(kw_only=True)

    assert settings_of(Silent)[:2] == [
        Setting("layers", list[int], [], "", ""),
        Setting("path", str, dataclasses.MISSING, "", ""),
    ]


def test_settings_of_any_configuration_become_options() -> None:
    @dataclasses.dataclass
    class Theirs(Base):
        layers: list[int] = dataclasses.field(default_factory=list)
        path: str = dataclasses.field(kw_only=True)

    kind: Any = SimpleNamespace(name="theirs", config_class=Theirs)
    options = agent_settings(kind.config_class, kind.name, None)
    arguments = ["--path", "x", "--steps", "5", "--layers", "1", "2"]
    parsed = tyro.cli(options, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    assert Theirs(**dataclasses.asdict(parsed)) == Theirs(0.1, 5, [1, 2], path="x")
    with pytest.raises(SystemExit):
        tyro.cli(options, args=[], config=(tyro.conf.OmitArgPrefixes,))


def test_help_shows_an_agents_own_settings_first_with_the_sources_of_defaults(capsys) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["train", "ppo", "--help"])
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    names = ["--env ", "--model ", "--run ", "--resume ", "--seed ", "--gae-lambda ", "--learning-rate ", "--device "]
    assert sorted(names, key=shown.index) == names
    assert "Passes over the attempts of each iteration. (default: 4) [Havrilla et al. 2024]" in shown
    assert "ppo options" in shown


def test_help_names_the_preset_that_changes_a_default(capsys) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["train", "grpo", "--preset", "dapo", "--help"])
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert "(default: tokens) [Yu et al. 2025, arXiv 2503.14476]" in shown
    assert "(default: group) [Shao et al. 2024]" in shown


def test_the_documentation_has_a_table_of_every_agents_settings() -> None:
    pages = Path(__file__).parents[1].joinpath("docs", "algorithms").glob("*.md")
    named = [path for page in pages for path in re.findall(r"<!-- settings: (\S+) -->", page.read_text())]
    assert sorted(named) == sorted(f"{one.__module__}.{one.__name__}" for one in CONFIGS - {SearchConfig})


def test_names_of_the_version_before_lead_to_those_of_today(capsys) -> None:
    for config in CONFIGS - {SearchConfig}:
        fields = {field.name for field in dataclasses.fields(config)}
        renamed = config.renamed
        assert set(renamed.values()) <= fields
        assert not fields & renamed.keys()
    with contextlib.suppress(SystemExit):
        command_line.main(["train", "sorm", "--start-from=x", "--continuations", "0", "--help"])
    assert capsys.readouterr().err == (
        "tokengym: --start-from is called --base now, and its old name goes with the next version\n"
        "tokengym: --continuations is called --rollouts-per-step now, and its old name goes with the next version\n"
    )
    for command in (
        ["train", "rcrl", "--outcome-model", "x"],
        ["bench", "paper", "--output", "x"],
        ["extrapolate", "--output", "x"],
    ):
        with contextlib.suppress(SystemExit):
            command_line.main([*command, "--help"])
    assert [line.split()[1:5] for line in capsys.readouterr().err.splitlines()] == [
        ["--outcome-model", "is", "called", "--orm"],
        ["--output", "is", "called", "--folder"],
        ["--output", "is", "called", "--folder"],
    ]
