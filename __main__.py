"""The command line: `tokengym list | train | plan | eval | extrapolate | runs | render | doctor | bench | demo`."""

import copy
import dataclasses
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from . import __version__
from .registry import UnknownNameError, summary, unknown_name

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec
    from rich.table import Table

    from .agents import Agent

DESCRIPTION = "Gymnasium environments and agents for teaching language models to reason with reinforcement learning."
EnvSettings = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")]
MAIN = tyro.conf.arg(name="")
"""Annotation of the parameter whose options need no heading of their own in a command's help."""


@dataclasses.dataclass(frozen=True)
class EnvChoice:
    """Choice of an environment.

    Attributes:
        env: Environment id; `tokengym list` shows all.
        data: Folder or file of the data set, for environments that read one; by default it is downloaded from the hub.
        env_args: Other settings of the environment, each with a value in JSON or as plain text, such as `steps=[2,3]
            max_new_tokens=128`.
    """

    env: str = "tokengym/Arithmetic-v0"
    data: str | None = None
    env_args: EnvSettings = ()

    def spec(self, **settings: Any) -> "EnvSpec":
        """The environment's spec with these settings and others."""
        import gymnasium as gym

        from .envs import IDS

        try:
            spec = gym.spec(self.env)
        except gym.error.Error as error:
            raise unknown_name("environment", self.env, IDS) from error
        return self.with_settings(spec, **settings)

    def with_settings(self, spec: "EnvSpec", **settings: Any) -> "EnvSpec":
        """The spec with the chosen data and settings, and others."""
        spec = copy.deepcopy(spec)  # the registry's own
        for item in self.env_args:
            name, equals, value = item.partition("=")
            if not equals:
                raise ValueError(f"--env-args takes NAME=VALUE, got {item!r}")
            spec.kwargs[name] = _value(value)
        if self.data is not None:
            spec.kwargs["data"] = self.data
        spec.kwargs.update(settings)
        return spec


@dataclasses.dataclass(frozen=True)
class TrainOptions(EnvChoice):
    """Environment, model and folder of a training run.

    Attributes:
        model: Model to train: "tokengym/tiny", a name on the Hugging Face hub, a folder or a *.gguf file. By default
            agents train tokengym/tiny, and pretraining makes a new model.
        run: Folder of the run: configuration, metrics, attempts, checkpoints and the trained model. By default a new
            one, `runs/AGENT-DATE-TIME`.
        resume: Continue the run in the folder of `--run`; `--resume auto` starts it if there is none.
        seed: Seed of problems, attempts and the order of training.
        preset: Published recipe whose settings become the defaults, such as "dapo" or "dr-grpo" for grpo.
        total_episodes: Number of attempts to sample at most; by default the agent's settings alone decide.
        max_hours: Hours of wall time after which training stops, with everything saved that `--resume` needs.
    """

    model: str | None = None
    run: Path | None = None
    resume: Literal["no", "yes", "auto"] = "no"
    seed: int = 0
    preset: str | None = None
    total_episodes: int | None = None
    max_hours: float | None = None


@dataclasses.dataclass(frozen=True)
class ComputeOptions:
    """Settings for loading and running models.

    Attributes:
        num_envs: Number of environment slots, which are the rows of the decoder's batch.
        device: Device of the model, such as "cpu" or "cuda:1"; by default a GPU if there is one.
        dtype: Data type of the weights: "float32" or "bfloat16".
        attn: Attention implementation, such as "sdpa", "eager" or "flash_attention_2"; by default the choice of
            transformers.
        vllm_memory: Share of the GPU's memory for vLLM, between 0 and 1, which then samples; needs the extra "vllm".
        threads: Number of CPU threads; by default the choice of PyTorch.
    """

    num_envs: int = 64
    device: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attn: str | None = None
    vllm_memory: float | None = None
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class AdapterOptions:
    """Low-rank adapters (LoRA) to train instead of the weights.

    Attributes:
        lora_rank: Rank of the adapters; by default all weights are trained instead.
        lora_alpha: Scale of the adapters times their rank; by default the rank itself, a scale of 1.
        lora_targets: Names of the layers that get adapters; "all-linear" is all linear ones but the output head.
        lora_rank_stabilized: Divide the scale by the square root of the rank instead of the rank (rsLoRA).
    """

    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] = ("all-linear",)
    lora_rank_stabilized: bool = False


@dataclasses.dataclass(frozen=True)
class EvalOptions(EnvChoice):
    """Model to evaluate, and the protocol.

    Attributes:
        model: Model to evaluate: the `model` folder of a run, or anything that `tokengym train --model` takes.
        split: Split of the data that problems are from.
        problems: Number of problems, the first of the split.
        n: Samples of each problem for maj@n and pass@k; 0 measures only greedy maj@1.
        orm: Outcome model that reranks the samples, for rerank@n: the `model` folder of a `tokengym train orm` run.
        search: Search over steps, guided by the outcome model, instead of sampling n
            attempts: "beam", "dvts", "rebase", "resample" or "best_of_n".
        search_keep: Candidates of "beam" that survive a step, or groups of "dvts"; it must divide n.
        condition: Label that a model trained with labels acts under; by default the best one, and "own" lets the model
            write its labels itself.
        temperature: Sampling temperature of the n samples.
        top_k: Number of most likely tokens that samples are drawn from; `None` takes all.
        top_p: Probability that the most likely tokens which samples are drawn from must reach; `None` takes all.
        min_p: Least probability of a token that is drawn, as a share of the most likely token's; `None` takes all.
        shots: Number of worked examples in the prompt.
        seed: Seed of the samples.
        output: JSON file for the results.
    """

    model: str = "tokengym/tiny"
    split: Literal["train", "validation", "test"] = "test"
    problems: int = 200
    n: int = 16
    orm: Path | None = None
    search: str | None = None
    search_keep: int = 4
    condition: str | None = None
    temperature: float = 0.7
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    shots: int = 0
    seed: int = 0
    output: Path | None = None


def train(arguments: Sequence[str]) -> None:
    """Train an agent."""
    from .agents import AGENTS

    if not arguments or arguments[0].startswith("-"):
        names = "\n".join(f"  {name:16} {text}" for name, text in AGENTS.summaries().items())
        _print(f"usage: tokengym train AGENT [--help] [OPTIONS]\n\nagents:\n{names}")
        return
    kind = AGENTS.get(arguments[0])

    def run(
        options: Annotated[TrainOptions, MAIN], config: Any, adapter: AdapterOptions, compute: ComputeOptions
    ) -> None:
        from .agents.evaluation.tables import outcome_table
        from .agents.outcome_models import ORM
        from .agents.training.progress import key_numbers

        _set_threads(compute.threads)
        folder = options.run or Path("runs") / time.strftime(f"{arguments[0]}-%Y%m%d-%H%M%S")
        if options.run is None and options.resume == "yes":
            raise ValueError("--resume continues the run in a folder: say which by --run")
        loading = dataclasses.asdict(compute) | dataclasses.asdict(adapter)
        del loading["threads"]
        agent = kind(
            options.spec(),
            options.model,
            run=folder,
            resume={"no": False, "yes": True}.get(options.resume, "auto"),
            seed=options.seed,
            preset=options.preset,
            **loading,
            **dataclasses.asdict(config),
        )
        say = _print if agent.ranks.is_main else lambda thing: None  # of several processes one speaks

        def on_log(agent: Any, metrics: dict[str, float]) -> None:
            say(f"{agent.num_attempts} attempts  {key_numbers(metrics)}")

        # An agent's own default stands where no budget is given.
        budget = {} if options.total_episodes is None else {"total_episodes": options.total_episodes}
        try:
            with stoppable(options.max_hours):
                agent.learn(**budget, callback=on_log, progress_bar=True)
        except KeyboardInterrupt as stop:
            cause = str(stop) or "interrupted"
            say(f"{cause}: what was finished is in {folder}; the same command with --run {folder} --resume continues")
            if isinstance(stop, TimeIsUp):
                return
            raise
        if isinstance(agent, ORM):
            say(outcome_table(agent.reports))
        what = "run, logs and model are" if (folder / "model").exists() else "run and logs are"
        say(f"{what} in {folder} (tensorboard --logdir {folder})")

    run.__annotations__["config"] = _settings(kind, _flag(arguments, "--preset"))
    renamed = getattr(kind.config_class, "renamed", {})
    _cli(run, f"tokengym train {arguments[0]}", _resume_said(arguments[1:]), summary(kind), renamed)


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), as schedulers do before they kill."""


class TimeIsUp(KeyboardInterrupt):
    """The wall time that was given is over."""


@contextmanager
def stoppable(max_hours: float | None) -> Iterator[None]:
    """Within the block, SIGTERM and the end of some hours interrupt as Ctrl-C does.

    Args:
        max_hours: Wall time from now; `None` for no limit.

    Raises:
        Terminated: The process was asked to end.
        TimeIsUp: The time is over.
        ValueError: A time that is not above 0.
    """

    def stop(number: int, _: object) -> None:
        raise Terminated("terminated") if number == signal.SIGTERM else TimeIsUp(f"{max_hours:g} hours are over")

    if max_hours is not None and not 0 < max_hours < 1e6:
        raise ValueError(f"--max-hours must be above 0, got {max_hours}")
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_REAL, 0 if max_hours is None else 3600 * max_hours)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def runs(arguments: Sequence[str]) -> None:
    """List the runs in a folder: agent, environment, attempts, best validation, state."""
    from .agents.training.run_folder import find_runs

    def run(folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")] = Path("runs")) -> None:
        """List the runs in a folder, and in the folders inside it.

        Args:
            folder: Folder to look for runs in.
        """
        found = list(find_runs(folder))
        if not found:
            raise ValueError(f"{folder} holds no run")
        for one in found:
            best = f", best maj@1 {one.best}" if one.best else ""
            written = f", written {one.written}" if one.written else ""
            sys.stdout.write(f"{one.path}  {one.state}  {one.agent} on {one.environment}\n")
            sys.stdout.write(f"    {one.attempts} attempts{best}{written}, {one.versions}\n")

    _cli(run, "tokengym runs", arguments, runs.__doc__)


@dataclasses.dataclass(frozen=True)
class PlanOptions(EnvChoice):
    """Training to plan, and the memory there is.

    Attributes:
        agent: Agent to plan; `tokengym list` shows them.
        model: Model whose configuration is read, without its weights: a name, a folder with a `config.json`, a file.
        gpus: GPUs that train together, each with a whole model.
        memory: Memory of each GPU in GiB; the default is that of this machine's device.
        num_envs: Environment slots of each GPU.
        dtype: Data type of the weights.
        attn: Attention implementation; the default is transformers' own choice.
        lora_rank: Rank of adapters that are trained instead of all weights.
        lora_targets: Names of the layers that get adapters; the default is all linear ones but the output head.
        vllm_memory: Share of each GPU's memory for vLLM, which then samples.
        preset: Published recipe whose settings become the defaults.
    """

    agent: str = "ppo"
    model: str = "tokengym/tiny"
    gpus: int = 1
    memory: float | None = None
    num_envs: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    attn: str | None = None
    lora_rank: int | None = None
    lora_targets: tuple[str, ...] = ("all-linear",)
    vllm_memory: float | None = None
    preset: str | None = None


def plan(arguments: Sequence[str]) -> None:
    """Plan the memory of a training, from the model's configuration alone."""
    from .agents import AGENTS
    from .agents.planning import check_agent

    name = _flag(arguments, "--agent") or PlanOptions.agent
    kind = AGENTS.get(name)
    check_agent(kind)

    def run(options: Annotated[PlanOptions, MAIN], config: Any) -> None:
        import torch

        from .agents.base import LoRA
        from .agents.planning import Planned, describe
        from .agents.training.memory import GIB, Limits, free_memory
        from .envs.registration import token_limits
        from .models.dry_run import read_config

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        memory = None if options.memory is None else round(options.memory * GIB)
        if memory is None and (memory := free_memory(device)) is None:
            raise ValueError("the memory of this machine is not known: give --memory, in GiB")
        if memory <= 0 or options.gpus < 1 or options.num_envs < 1:
            raise ValueError("--memory must be above 0, and --gpus and --num-envs at least 1")
        if options.vllm_memory is not None and not 0 < options.vllm_memory < 1:
            raise ValueError(f"--vllm-memory must be between 0 and 1, got {options.vllm_memory}")
        vllm = None if options.vllm_memory is None else round(options.vllm_memory * memory)
        lora = LoRA(options.lora_rank, targets=options.lora_targets)
        planned = Planned(
            kind,
            kind.config_class(**dataclasses.asdict(config)),
            read_config(options.model),
            Limits(options.num_envs, *token_limits(options.spec()), options.gpus, vllm),
            memory,
            options.dtype,
            options.attn,
            lora.rank,
            lora.targets,
        )
        _print(describe(planned))

    run.__annotations__["config"] = _settings(kind, _flag(arguments, "--preset"))
    _cli(run, "tokengym plan", arguments, plan.__doc__, getattr(kind.config_class, "renamed", {}))


def evaluate(arguments: Sequence[str]) -> None:
    """Evaluate a model: maj@1, maj@n, pass@k and diversity, with intervals."""

    def run(options: Annotated[EvalOptions, MAIN], compute: ComputeOptions) -> None:
        from .agents import evaluate as measure
        from .agents import load_policy
        from .agents.evaluation.tables import evaluation_table
        from .agents.rollouts.slots import make_rollout_env, make_vllm
        from .agents.training.progress import progress
        from .benchmarks.paper.tables import paper_figures
        from .models.outcome import OutcomeModel

        _set_threads(compute.threads)
        policy = load_policy(
            options.model, options.condition, device=compute.device, dtype=compute.dtype, attn=compute.attn
        )
        policy = policy.with_sampling(top_k=options.top_k, top_p=options.top_p, min_p=options.min_p)
        reranker = None
        if options.orm is not None:
            reranker = OutcomeModel.load(options.orm, policy.tokenizer, str(policy.model.device))
        env = make_rollout_env(options.spec(split=options.split, shots=options.shots), policy, compute.num_envs)
        if compute.vllm_memory is not None:
            policy = policy.with_vllm(make_vllm(policy, env, compute.vllm_memory))
        problems = min(options.problems, env.size or options.problems)
        search = None
        if options.search is not None:
            from .agents.search import Search, SearchConfig

            if reranker is None:
                raise ValueError("--search is guided by an outcome model: give one by --orm")
            chosen = SearchConfig(options.search, options.n, options.search_keep, options.temperature)
            search = Search(policy, env, reranker, chosen)
        with progress(problems * (options.n + 1), "sampling") as bar:
            result = measure(
                policy,
                env,
                problems=problems,
                n=options.n,
                temperature=options.temperature,
                seed=options.seed,
                reranker=reranker,
                search=search,
                on_step=bar.update,
            )
        _print(evaluation_table({options.model: result}, f"{options.env}, {options.split} split"))
        figures = paper_figures(result, options.env, options.split)
        if figures is not None:
            _print(figures)
        if search is not None:
            cost = search.cost
            _print(f"the search drew {cost.policy_tokens:,} tokens, and the outcome model read {cost.judged_tokens:,}")
        if options.output is not None:
            protocol = {
                "model": options.model,
                "condition": options.condition,
                "env": options.env,
                "env_args": options.env_args,
                "split": options.split,
                "orm": None if options.orm is None else str(options.orm),
                "search": options.search,
            }
            options.output.write_text(json.dumps({**protocol, **result.to_dict()}, indent=2) + "\n")

    _cli(run, "tokengym eval", arguments, evaluate.__doc__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtrapolateOptions(EnvChoice):
    """Models to extrapolate, how far, and where the result is written.

    Attributes:
        weaker: Model that training began from, such as the fine-tuned one; anything that `train --model` takes.
        stronger: Model that was trained from it. A folder `adapter` whose base is the weaker model stays an adapter.
        alpha: Distances beyond the stronger model, in multiples of its distance from the weaker. Several are compared
            on the validation split, and the best is saved; 0 stands for the stronger model itself.
        problems: Number of validation problems to compare on.
        output: Folder for the model; the default is a new one, `runs/extrapolate-DATE-TIME`.
        num_envs: Environment slots, which are rows of the decoder's batch.
        device: Device such as "cpu" or "cuda"; the default is a GPU if there is one.
        attn: Attention implementation such as sdpa or eager; the default is transformers' choice.
        threads: Number of CPU threads; the default is PyTorch's choice.
    """

    weaker: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="WEAKER")]]
    stronger: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="STRONGER")]]
    alpha: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 2.5)
    problems: int = 200
    output: Path | None = None
    num_envs: int = 64
    device: str | None = None
    attn: str | None = None
    threads: int | None = None


def extrapolate(arguments: Sequence[str]) -> None:
    """Extrapolate a trained model's weights away from where its training began (ExPO)."""

    def run(options: Annotated[ExtrapolateOptions, MAIN]) -> None:
        from .agents.expo import best_alpha, compare_alphas, extrapolated, save_policy
        from .agents.rollouts.conditioned_policy import load_policy
        from .agents.rollouts.slots import make_rollout_env
        from .agents.training.progress import progress
        from .models import load

        _set_threads(options.threads)
        folder = options.output or Path("runs") / time.strftime("extrapolate-%Y%m%d-%H%M%S")
        if folder.exists():
            raise ValueError(f"{folder} is there already: give another folder by --output")
        if not options.alpha:
            raise ValueError("--alpha takes at least one number")
        stronger = load_policy(options.stronger, device=options.device, attn=options.attn)
        weaker, tokenizer = load(options.weaker, device=str(stronger.model.device), attn=options.attn)
        if tokenizer.get_vocab() != stronger.tokenizer.get_vocab():
            raise ValueError(f"the tokenizers of {options.weaker!r} and {options.stronger!r} differ")
        record: dict[str, Any] = {"weaker": options.weaker, "stronger": options.stronger}
        alpha = options.alpha[0]
        if len(options.alpha) > 1:
            env = make_rollout_env(options.spec(split="validation", reward="sparse"), stronger, options.num_envs)
            problems = min(options.problems, env.size or options.problems)
            with progress(problems * len(options.alpha), "comparing") as bar:
                results = compare_alphas(weaker, stronger, env, options.alpha, problems=problems, on_step=bar.update)
            alpha = best_alpha(results)
            rows = [
                (f"{value:g}", str(result.metrics["maj@1"]), f"{result.median_response_length:g}")
                for value, result in results.items()
            ]
            _print(_table(("alpha", f"maj@1 of {problems} validation problems", "median response length"), rows))
            record["validation"] = {f"{value:g}": result.to_dict() for value, result in results.items()}
        save_policy(extrapolated(weaker, stronger, alpha), folder, {**record, "alpha": alpha})
        _print(f"the model at alpha {alpha:g} is in {folder}")

    _cli(run, "tokengym extrapolate", arguments, extrapolate.__doc__)


@dataclasses.dataclass(frozen=True)
class RenderOptions(EnvChoice):
    """Attempts to show, and where.

    Attributes:
        source: Folder of a run, one of its `attempts-*.jsonl` files, or a model, which then makes new attempts.
        env: Environment id; by default the one that the run or the model was trained on.
        count: Number of attempts to show; by default 3, and all for a page.
        verdict: Verdict of the attempts to show, such as `correct`, `wrong` or `no_answer`.
        problem: Id of the problem whose recorded attempts to show.
        orm: Outcome model that scores each step: the `model` folder of a `tokengym train orm` run.
        split: Split of the data for new attempts; by default the environment's own.
        temperature: Sampling temperature of new attempts; 0 is greedy decoding.
        seed: Seed of new attempts.
        output: File to write instead of the terminal: a page to browse (`.html`) or a picture of the terminal (`.svg`).
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")] = "tokengym/tiny"
    env: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    count: int | None = None
    verdict: str | None = None
    problem: str | None = None
    orm: Path | None = None
    split: Literal["train", "validation", "test"] | None = None
    temperature: float = 0.7
    seed: int = 0
    output: Path | None = None


def render(arguments: Sequence[str]) -> None:
    """Show attempts step by step, with rewards and scores: in the terminal, as a page or as a picture."""

    def run(options: Annotated[RenderOptions, MAIN]) -> None:
        from rich.console import Console

        from .benchmarks.reports.gather import Wanted, gather
        from .benchmarks.reports.html import attempts_page
        from .benchmarks.reports.terminal import attempt_panel, picture
        from .files import write_text

        kind = None if options.output is None else options.output.suffix
        if kind not in (None, ".html", ".svg"):
            raise ValueError(f"--output takes a .html or a .svg file, got {options.output}")

        count = 3 if options.count is None and kind != ".html" else options.count

        def make_spec(own: "EnvSpec | None") -> "EnvSpec":
            split = {} if options.split is None else {"split": options.split}
            if options.env is None and own is not None:
                return options.with_settings(own, **split)
            return dataclasses.replace(options, env=options.env or EnvChoice.env).spec(**split)

        attempts = gather(
            options.source,
            Wanted(count, options.verdict, options.problem),
            make_spec,
            outcome_model=options.orm,
            temperature=options.temperature,
            seed=options.seed,
        )
        title = f"Attempts of {options.source}"
        if options.output is None:
            for attempt in attempts:
                Console(highlight=False, markup=False).print(attempt_panel(attempt))
            return
        if kind == ".svg":
            page = picture(attempts, f"tokengym render {options.source}")
        else:
            facts = {"Attempts": f"{len(attempts)}", "Correct": f"{sum(a.verdict == 'correct' for a in attempts)}"}
            page = attempts_page(title, facts, attempts)
        write_text(options.output, page)
        _print(f"{len(attempts)} attempts are in {options.output}")

    _cli(run, "tokengym render", arguments, render.__doc__)


def doctor(arguments: Sequence[str]) -> None:
    """Check a data set: gold answers, duplicates, overlap between splits, prompts over the limit."""

    @dataclasses.dataclass(frozen=True)
    class DoctorOptions(EnvChoice):
        """Data set to check.

        Attributes:
            env: Environment id; `tokengym list` shows all.
            model: Model whose tokenizer counts the tokens.
            limit: Number of problems to check in each split of an endless source.
            show: Findings of one kind to print for each split; 0 prints all.
        """

        env: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ENV")] = "tokengym/Arithmetic-v0"
        model: str = "tokengym/tiny"
        limit: int = 2000
        show: int = 20

    def run(options: Annotated[DoctorOptions, MAIN]) -> None:
        from .envs.doctor import diagnose_env

        findings = diagnose_env(options.spec(tokenizer=options.model), limit=options.limit)
        printed: Counter[tuple[str, ...]] = Counter()
        for finding in findings.findings:
            kind = (finding.severity, finding.check, finding.split)
            printed[kind] += 1
            if not options.show or printed[kind] <= options.show:
                _print(str(finding))
        for (severity, check, split), count in printed.items():
            if options.show and count > options.show:
                _print(f"{severity}: {count - options.show} more of {check} in {split}: --show 0 prints all")
        for split, reason in findings.absent.items():
            _print(f"no {split} split: {reason}")
        checked = ", ".join(f"{count} of {source}" for source, count in findings.checked.items())
        _print(f"checked {checked}: {len(findings.errors)} errors, {len(findings.warnings)} warnings")
        if findings.errors:
            raise SystemExit(1)

    _cli(run, "tokengym doctor", arguments, doctor.__doc__)


MEASUREMENTS = {
    "env": ("speed.env_throughput", "steps of environments per second"),
    "rollout": ("speed.rollout_throughput", "the rollout engine against `generate`"),
    "memory": ("speed.rollout_memory", "memory of collected attempts"),
    "grading": ("speed.grading_throughput", "grades per second, of numbers and of LaTeX"),
    "orm": ("speed.orm_cost", "what an outcome model as the reward adds to the time of a rollout"),
}
"""Measurements of this machine: module and description by name."""


def bench(arguments: Sequence[str]) -> None:
    """Measure this machine, or reproduce a paper's experiment."""
    experiments: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
        "paper": (_paper, "tables and figures of Havrilla et al. 2024"),
        "parity": (partial(_after_pretraining, "parity"), "RL after pretraining on parities, Tsilivis et al. 2025"),
        "multiplication": (partial(_after_pretraining, "multiplication"), "the same on products of numbers"),
        "linear": (partial(_measure, "linear", "studies.linear_theory"), "its linear theory, in a minute"),
        "ppo": (_rewards_of_ppo, "PPO under sparse, dense and learned rewards"),
        "rcrl": (_return_conditioning, "labels, label ratios and returns that RCRL conditions on"),
        "models": (_models, "sampling and training of many architectures, checked against transformers"),
    }
    measurements: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
        name: (partial(_measure, name, module), text) for name, (module, text) in MEASUREMENTS.items()
    }
    measurements["speed"] = (_speed, "all of these as ratios in one table, and peers where they are installed")
    if not arguments or arguments[0] in ("-h", "--help"):
        groups = {"measure this machine": measurements, "reproduce papers and run studies": experiments}
        lists = [
            f"{title}:\n" + "\n".join(f"  {name:16} {text}" for name, (_, text) in group.items())
            for title, group in groups.items()
        ]
        _print("usage: tokengym bench NAME [--help] [OPTIONS]\n\n" + "\n\n".join(lists))
        return
    known = {**measurements, **experiments}
    if arguments[0] not in known:
        raise unknown_name("benchmark", arguments[0], known)
    known[arguments[0]][0](arguments[1:])


def _measure(name: str, module: str, arguments: Sequence[str]) -> None:
    def run(output: Path | None = None) -> None:
        """Measures.

        Args:
            output: JSON file for the results.
        """
        benchmark = import_module(f".benchmarks.{module}", __package__)
        results = benchmark.run()
        _print(benchmark.table(results))
        if output is not None:
            output.write_text(json.dumps(results, indent=2) + "\n")

    _cli(run, f"tokengym bench {name}", arguments, MEASUREMENTS.get(name, ("", "The linear theory."))[1])


def _speed(arguments: Sequence[str]) -> None:
    def run(
        trl_python: str | None = None,
        trl_ppo_python: str | None = None,
        history: Path | None = None,
        output: Path | None = None,
    ) -> None:
        """Measures.

        Args:
            trl_python: Interpreter of an environment with TRL 1.16.0, to compare GRPO with.
            trl_ppo_python: Interpreter of an environment with TRL 1.12.0, the last one with PPO, to compare PPO with.
            history: File of JSON lines that the ratios are added to, with commit, date and machine.
            output: JSON file for the results.
        """
        from .benchmarks.speed.peers import summary

        results = summary.run(trl_python, trl_ppo_python)
        _print(summary.table(results))
        if history is not None:
            summary.append_history(results, history)
        if output is not None:
            output.write_text(json.dumps(results, indent=2) + "\n")

    _cli(run, "tokengym bench speed", arguments, "All measurements of speed in one table, as ratios.")


def _after_pretraining(task: str, arguments: Sequence[str]) -> None:
    from .benchmarks.after_pretraining import grid as after_pretraining
    from .benchmarks.after_pretraining import plots as after_pretraining_plots

    kinds = {
        "parity": after_pretraining.ParityExperiment,
        "multiplication": after_pretraining.MultiplicationExperiment,
    }

    def run(experiment: Any) -> None:
        _print(after_pretraining_plots.table(after_pretraining.run(experiment)))
        _print(f"runs, results.json and plots are in {experiment.folder}")

    run.__annotations__["experiment"] = Annotated[kinds[task], MAIN]
    _cli(run, f"tokengym bench {task}", arguments, summary(after_pretraining))


def _return_conditioning(arguments: Sequence[str]) -> None:
    from .benchmarks.studies import return_conditioning

    def run(experiment: Annotated[return_conditioning.ReturnConditioning, MAIN]) -> None:
        _print(return_conditioning.table(return_conditioning.run(experiment, _print)))
        _print(f"runs and results.json are in {experiment.folder}")

    _cli(run, "tokengym bench rcrl", arguments, summary(return_conditioning))


def _paper(arguments: Sequence[str]) -> None:
    from .benchmarks.paper import grid as paper

    def run(grid: Annotated[paper.PaperGrid, MAIN]) -> None:
        paper.show(grid, _print)

    _cli(run, "tokengym bench paper", arguments, summary(paper).removeprefix("`tokengym bench paper`: "))


def _models(arguments: Sequence[str]) -> None:
    from .benchmarks.studies import model_matrix

    def run(matrix: Annotated[model_matrix.ModelMatrix, MAIN]) -> None:
        rows = model_matrix.run(matrix, _print)
        _print(model_matrix.summary(rows))
        _print(f"models.json and models.md are in {matrix.folder}")
        if any(row.bad for row in rows.values()):
            raise SystemExit(1)

    _cli(run, "tokengym bench models", arguments, summary(model_matrix).removeprefix("`tokengym bench models`: "))


def _rewards_of_ppo(arguments: Sequence[str]) -> None:
    from .benchmarks.studies import ppo_rewards as ppo

    def run(experiment: Annotated[ppo.PPOExperiment, MAIN]) -> None:
        _print(ppo.table(ppo.run(experiment, _print)))
        _print(f"runs, results.json and a plot are in {experiment.folder}")

    _cli(run, "tokengym bench ppo", arguments, summary(ppo))


def demo(arguments: Sequence[str]) -> None:
    """Watch expert iteration teach the built-in model, in five minutes on two cores."""
    from .benchmarks.studies.demo import demo as show

    def start(run: Path | None = None, seed: int = 0) -> None:
        """Runs the demo.

        Args:
            run: Folder of the run; by default a new one, `runs/demo-DATE-TIME`.
            seed: Seed of problems, attempts and the order of training.
        """
        _print(show(run, seed, say=_print))

    _cli(start, "tokengym demo", arguments, demo.__doc__, {"run_folder": "run"})


def list_names(arguments: Sequence[str]) -> None:
    """List environments, problem sources, agents, rewards, curricula and answer formats."""

    def run() -> None:
        from .agents import AGENTS
        from .envs import CURRICULA, IDS, PROBLEMS
        from .rewards import REWARDS
        from .rewards.grading.formats import ANSWER_FORMATS

        problems = PROBLEMS.summaries()
        rows = [("environment", env_id, problems[source]) for env_id, source in IDS.items()]
        rows += [(PROBLEMS.kind, name, text) for name, text in problems.items() if name not in IDS.values()]
        for registry in (AGENTS, REWARDS, CURRICULA, ANSWER_FORMATS):
            rows += [(registry.kind, name, text) for name, text in registry.summaries().items()]
        _print(_table(("kind", "name", "what it is"), rows))

    _cli(run, "tokengym list", arguments, list_names.__doc__)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "list": list_names,
    "train": train,
    "plan": plan,
    "eval": evaluate,
    "extrapolate": extrapolate,
    "runs": runs,
    "render": render,
    "doctor": doctor,
    "bench": bench,
    "demo": demo,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status. Errors of the user's are one line, without a traceback."""
    command, *rest = (list(sys.argv[1:]) if arguments is None else list(arguments)) or ["--help"]
    if command in ("-h", "--help"):
        lines = "\n".join(f"  {name:12} {summary(function)}" for name, function in COMMANDS.items())
        usage = "usage: tokengym COMMAND [--help] [OPTIONS]\n       tokengym --version"
        _print(f"{usage}\n\n{DESCRIPTION}\n\ncommands:\n{lines}")
        return 0
    if command == "--version":
        _print(f"tokengym {__version__}")
        return 0
    try:
        if command not in COMMANDS:
            raise unknown_name("command", command, COMMANDS)
        COMMANDS[command](rest)
    except (UnknownNameError, ValueError, TypeError, OSError, ImportError) as error:
        sys.stderr.write(f"tokengym: {error}\n")
        return 1
    except KeyboardInterrupt as stop:
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    return 0


def _cli(
    run: Callable[..., None],
    program: str,
    arguments: Sequence[str],
    description: str | None,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> None:
    arguments = [_renamed(argument, renamed) for argument in arguments]
    tyro.cli(run, prog=program, args=arguments, description=description, config=(tyro.conf.OmitArgPrefixes,))


def _settings(kind: "type[Agent]", preset: str | None) -> Any:
    """An agent's settings as options of a command: its own first, each with the source of its default."""
    from .agents.presets import PRESETS, with_preset
    from .settings import settings_of

    config_class = with_preset(kind.config_class, preset, kind.name)
    recipe = PRESETS.get(preset or "")
    fields: list[Any] = []
    for setting in settings_of(config_class):
        cited = recipe.source if recipe is not None and setting.name in recipe.settings else setting.source
        source = f" [{cited}]" if cited else ""
        option = tyro.conf.arg(
            help=setting.text or None, help_behavior_hint=lambda default, source=source: f"(default: {default}){source}"
        )
        default = dataclasses.field()
        if setting.default is not dataclasses.MISSING:
            default = dataclasses.field(default_factory=lambda value=setting.default: value)
        fields.append((setting.name, Annotated[setting.type, option], default))
    options = dataclasses.make_dataclass(config_class.__name__, fields, kw_only=True)
    options.__doc__ = summary(config_class)
    return Annotated[options, tyro.conf.arg(name=kind.name)]


def _renamed(argument: str, renamed: Mapping[str, str]) -> str:
    """An option by its name of today, if it is one that had another name in the version before."""
    option, equals, value = argument.partition("=")
    name = option.removeprefix("--").replace("-", "_")
    if not option.startswith("--") or name not in renamed:
        return argument
    new = f"--{renamed[name].replace('_', '-')}"
    sys.stderr.write(f"tokengym: {option} is called {new} now, and its old name goes with the next version\n")
    return f"{new}{equals}{value}"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _resume_said(arguments: Sequence[str]) -> list[str]:
    """The arguments with a value for `--resume`, which may stand alone."""
    said: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        said.append(argument)
        if argument == "--resume" and following not in ("no", "yes", "auto"):
            said.append("yes")
    return said


def _flag(arguments: Sequence[str], name: str) -> str | None:
    """The value of a flag, if it is given."""
    for argument, following in pairwise((*arguments, None)):
        if argument == name:
            return following
        if argument is not None and argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    from rich.table import Table

    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    return table


def _print(thing: Any) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=isinstance(thing, str), markup=False).print(thing)


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
