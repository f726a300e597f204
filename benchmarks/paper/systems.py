"""The systems of Havrilla et al. 2024: what trains each, from what, and where it stands in which table."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...agents.configs.expert_iteration import ExpertIterationConfig
from ...agents.configs.ppo import PPOConfig
from .scales import Scale

MODEL = "run/model"
"""Where a training's folder has what it trained."""


def output(name: str, path: str) -> dict[str, str]:
    """Stands in settings for a path inside the folder of a job that must be done before."""
    return {"output_of": name, "path": path}


def outputs(settings: Any) -> Iterator[dict[str, str]]:
    """All that `output` made in settings, however deep."""
    if isinstance(settings, Mapping):
        if "output_of" in settings:
            yield dict(settings)
        else:
            for value in settings.values():
                yield from outputs(value)


@dataclass(frozen=True)
class System:
    """A policy to be evaluated, or an outcome model.

    Attributes:
        name: Name of the system.
        title: Title in figures and among the attempts.
        agent: Agent that trains it; `None` takes the pretrained checkpoint as it is.
        model: Model that the agent starts from; by default the pretrained checkpoint.
        config: Configuration of the agent.
        reward: Reward of the environment that it learns in.
        curriculum: Curriculum of that environment.
        shots: Number of worked examples before each question, in learning by reinforcement and in evaluation.
        after_round: Number of the round of expert iteration whose policy is evaluated in place of the best one's.
    """

    name: str
    title: str
    agent: str | None = None
    model: dict[str, str] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    reward: Any = "sparse"
    curriculum: Any = "uniform"
    shots: int = 0
    after_round: int | None = None

    @property
    def judges(self) -> bool:
        """Whether it is an outcome model."""
        return self.agent in ("orm", "sorm")

    @property
    def start(self) -> str:
        """The system that it would be, had it learned nothing."""
        if self.name.startswith("pretrained/"):
            return "pretrained/prompted"
        return "sft_2" if self.name.startswith("sft_2/") else "sft"

    @property
    def needs(self) -> list[str]:
        """Systems that must be trained before."""
        found = outputs({"model": self.model or {}, "config": self.config, "reward": self.reward})
        return list(dict.fromkeys(item["output_of"] for item in found))


@dataclass(frozen=True)
class TableRow:
    """A row of a table: its name, the system, and the row of the paper's table that it stands beside."""

    title: str
    system: str
    paper: str | None = None


def _rows(start: str, *systems: tuple[str, str]) -> tuple[TableRow, ...]:
    return tuple(TableRow(title, start + name, name) for title, name in systems)


_PPO = (("Sparse PPO", "sparse_ppo"), ("Sparse ORM PPO", "sparse_orm_ppo"), ("Dense ORM PPO", "dense_orm_ppo"))

TABLES: Mapping[str, tuple[TableRow, ...]] = {
    "table_1": (
        *_rows("", ("SFT", "sft"), ("EI", "ei"), ("ORM EI", "orm_ei")),
        TableRow("RCRL, Monte-Carlo labels", "rcrl"),
        TableRow("ORM RCRL", "orm_rcrl", "orm_rcrl"),
        *_rows("", _PPO[0], ("Dense PPO", "dense_ppo"), *_PPO[1:], ("RFT", "rft")),
    ),
    "table_2": _rows("pretrained/", ("Prompted", "prompted"), ("EI", "ei"), *_PPO),
    "table_3": _rows("pretrained/", ("Prompted", "prompted"), ("EI", "ei"), ("ORM EI", "orm_ei"), *_PPO),
    "table_4": (
        TableRow("SFT, half the epochs", "sft_2", "sft_2"),
        TableRow("SFT", "sft", "sft_4"),
        TableRow("SFT, twice the epochs", "sft_8"),
        TableRow("PPO from half the epochs", "sft_2/sparse_ppo", "ppo_from_sft_2"),
        TableRow("PPO from SFT", "sparse_ppo", "ppo_from_sft_4"),
        TableRow("EI from half the epochs", "sft_2/ei"),
        TableRow("EI from SFT", "ei"),
    ),
    "rounds": (
        TableRow("EI from SFT, after round 2", "ei/round_2"),
        TableRow("EI from SFT, after the last round", "ei/last_round"),
        TableRow("EI from pretrained, after round 2", "pretrained/ei/round_2"),
        TableRow("EI from pretrained, after the last round", "pretrained/ei/last_round"),
    ),
    "ablations": (
        TableRow("Sparse PPO", "sparse_ppo"),
        TableRow("no KL penalty", "ablations/no_kl"),
        TableRow("critic: a linear head", "ablations/head_critic"),
        TableRow("critic: a model of its own", "ablations/model_critic"),
        TableRow("the better half of the attempts", "ablations/best_half"),
        TableRow("exploration at temperature 1", "ablations/hot"),
        TableRow("backtracking", "ablations/backtracking"),
        TableRow("prioritized level replay", "ablations/replay"),
        TableRow("EI", "ei"),
        TableRow("EI, four times the attempts", "ablations/ei_many"),
        TableRow("RCRL, half of the attempts correct", "rcrl"),
        TableRow("RCRL, nine in ten correct", "ablations/rcrl_positive"),
        TableRow("ORM RCRL", "orm_rcrl"),
        TableRow("SORM RCRL", "ablations/sorm_rcrl"),
    ),
}
"""The tables' rows. Those of table 4 are the paper's SFT_2 and SFT_4 where fine-tuning takes its four epochs."""

ABLATIONS = "ablations"
OWN_TABLES = ("rounds", ABLATIONS)
"""Tables that the paper has not."""

JUDGE = "orm"
"""The one outcome model: it reranks, rewards, filters and labels everywhere. It learns from samples of EI's final
policy [paper]."""


def systems(scale: Scale) -> list[System]:
    """All that a scale's tables need, each after what it needs itself."""
    known = {system.name: system for system in _all(scale)}
    wanted: dict[str, System] = {}

    def want(name: str) -> None:
        for before in known[name].needs:
            want(before)
        wanted.setdefault(name, known[name])

    # What others wait for comes first, lest half of the machine wait with them.
    want(JUDGE)
    for table in scale.tables:
        for line in TABLES[table]:
            want(line.system)
    return list(wanted.values())


def _all(scale: Scale) -> Iterator[System]:
    fine_tuning = {**scale.batching, **scale.fine_tuning}
    supervised = {**fine_tuning, "demonstrations": scale.demonstrations}
    exploring = {**supervised, "problems": scale.problems}
    half, twice = max(1, scale.epochs // 2), 2 * scale.epochs
    guided = {"orm": output(JUDGE, MODEL), **scale.orm_filter}
    ei = {**exploring, **scale.ei}
    # From the pretrained checkpoint expert iteration has no demonstrations; its prompt has examples in round one alone.
    alone = {**ei, **scale.ei_from_pretrained, "demonstrations": 0, "shots": scale.shots}

    yield System("sft", "SFT", "sft", config=supervised)
    yield System("sft_2", f"SFT, {half} epochs", "sft", config={**supervised, "epochs": half})
    yield System("sft_8", f"SFT, {twice} epochs", "sft", config={**supervised, "epochs": twice})
    yield System("rft", "RFT", "rft", config={**exploring, **scale.rft})
    yield System("ei", "EI", "ei", config=ei)
    yield System("orm_ei", "ORM EI", "ei", config={**ei, **guided})
    yield System("sft_2/ei", f"EI, {half} epochs", "ei", config={**ei, "epochs": half})
    yield System("pretrained/prompted", "Pretrained", shots=scale.shots)
    yield System("pretrained/ei", "EI from pretrained", "ei", config=alone)
    yield System("pretrained/orm_ei", "ORM EI from pretrained", "ei", config={**alone, **guided})
    for start, title, config in (("", "EI", ei), ("pretrained/", "EI from pretrained", alone)):
        last = config.get("rounds", ExpertIterationConfig.rounds)
        for name, which, number in (("round_2", "round 2", 2), ("last_round", "the last round", last)):
            policy = output(f"{start}ei", MODEL)
            yield System(f"{start}ei/{name}", f"{title}, after {which}", model=policy, after_round=number)

    expert = "ei" if "table_1" in scale.tables else "pretrained/ei"
    yield System(JUDGE, "ORM", "orm", output(expert, MODEL), {**fine_tuning, "problems": scale.problems, **scale.orm})

    labels = {**fine_tuning, "problems": scale.problems, "base": scale.model, **scale.rcrl}
    yield System("rcrl", "RCRL", "rcrl", output("ei", MODEL), labels)
    judged = {"label_source": "orm", "orm": output(JUDGE, MODEL), "pool": output("rcrl", "run/pool")}
    yield System("orm_rcrl", "ORM RCRL", "rcrl", output("ei", MODEL), {**labels, **judged})

    rewards: dict[str, tuple[str, Any]] = {
        "sparse_ppo": ("Sparse PPO", "sparse"),
        "dense_ppo": ("Dense PPO", "dense"),
        "sparse_orm_ppo": ("Sparse ORM PPO", {"name": "sparse_orm", "orm": output(JUDGE, MODEL)}),
        "dense_orm_ppo": ("Dense ORM PPO", {"name": "dense_orm", "orm": output(JUDGE, MODEL)}),
    }
    ppo = {**scale.batching, **scale.ppo}
    for name, (title, reward) in rewards.items():
        yield System(name, title, "ppo", output("sft", MODEL), ppo, reward)
        cold = {**ppo, **scale.ppo_from_pretrained}
        cold_title = f"{title} from pretrained"
        yield System(f"pretrained/{name}", cold_title, "ppo", config=cold, reward=reward, shots=scale.shots)
    yield System("sft_2/sparse_ppo", f"Sparse PPO, {half} epochs", "ppo", output("sft_2", MODEL), ppo)

    yield from _ablations(ppo, ei, labels)
    stepwise = {**fine_tuning, "problems": scale.problems, "compare": output(JUDGE, MODEL), **scale.sorm}
    yield System("ablations/sorm", "SORM", "sorm", output("ei", MODEL), stepwise)


def _ablations(ppo: Mapping[str, Any], ei: Mapping[str, Any], rcrl: Mapping[str, Any]) -> Iterator[System]:
    """One thing changed in the configuration of sparse PPO, of expert iteration or of RCRL."""
    start, expert = output("sft", MODEL), output("ei", MODEL)
    attempts = ppo.get("samples_per_problem", PPOConfig.samples_per_problem)
    minibatch = ppo.get("minibatch_size", PPOConfig.minibatch_size)
    # Half of the attempts in as many updates.
    half = {"best_of": max(1, attempts // 2), "minibatch_size": max(1, minibatch // 2)}
    changes: dict[str, tuple[str, dict[str, Any]]] = {
        "no_kl": ("no KL penalty", {"kl_coef": 0.0}),
        "head_critic": ("linear critic", {"critic": "head"}),
        "model_critic": ("critic model", {"critic": "model"}),
        "best_half": ("better half", half),
        "hot": ("temperature 1", {"temperature": 1.0}),
    }
    for name, (title, change) in changes.items():
        yield System(f"ablations/{name}", f"Sparse PPO, {title}", "ppo", start, {**ppo, **change})
    for name, title, curriculum in (
        ("backtracking", "backtracking", "backtracking"),
        ("replay", "level replay", "prioritized_replay"),
    ):
        yield System(f"ablations/{name}", f"Sparse PPO, {title}", "ppo", start, ppo, curriculum=curriculum)

    attempts = 4 * ei.get("samples_per_problem", ExpertIterationConfig.samples_per_problem)
    yield System(
        "ablations/ei_many", "EI, four times the attempts", "ei", config={**ei, "samples_per_problem": attempts}
    )

    pooled = {**rcrl, "pool": output("rcrl", "run/pool")}
    yield System(
        "ablations/rcrl_positive", "RCRL, nine in ten correct", "rcrl", expert, {**pooled, "positive_ratio": 0.9}
    )
    judged = {"label_source": "sorm", "orm": output("ablations/sorm", MODEL)}
    yield System("ablations/sorm_rcrl", "SORM RCRL", "rcrl", expert, {**pooled, **judged})
