"""The jobs of the paper's grid: training of a system, evaluation, reranking. Each returns JSON and can be killed."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...agents import AGENTS, Agent, make_agent
from ...agents.configs.outcome_models import SORMConfig
from ...agents.configs.ppo import PPOConfig
from ...agents.configs.rcrl import RCRLConfig
from ...agents.configs.sft import SFTConfig
from ...agents.evaluation.evaluate import best_is_correct, bootstrap, evaluate
from ...agents.evaluation.rerankers import score_attempts
from ...agents.rollouts.attempts import Attempt, AttemptFile
from ...agents.rollouts.collect import collect
from ...agents.rollouts.conditioned_policy import load_policy
from ...agents.rollouts.policy import CausalLMPolicy
from ...agents.rollouts.slots import make_rollout_env, make_vllm
from ...agents.training.fine_tuning import restore
from ...agents.training.rounds import Round
from ...envs.curriculum import Sequential
from ...envs.registration import make_spec, make_vec_env
from ...envs.token_vector_env import TokenVectorEnv
from ...files import read_jsonl, write_json
from ...models.outcome import OutcomeModel
from ...rewards.grading.solutions import equation_sequence
from ...rewards.steps import step_ends
from ..jobs import Done, Job, Stopwatch
from ..reports.attempts import attempt_records
from .systems import MODEL, outputs

POOL, SHOWN, RECORDS = "pool.jsonl", "shown.jsonl", "attempts.json"
SOLUTIONS, OUTCOMES = "solutions.json", "outcomes.json"
SHOWN_SAMPLES = 2
"""Of each problem that the report shows, beside the greedy attempt [choice]."""


def train_system(folder: Path, settings: Mapping[str, Any], needed: Mapping[str, Done]) -> dict[str, Any]:
    """Trains an agent in `run` inside the folder, from where a killed process left it.

    Returns:
        `attempts`, `tokens`, `seconds`, `cpu_seconds`; `curve`, what validation found and at which `step`, as logged;
        `metrics`, the newest of all; and `model`, where that is in the folder.
    """
    settings = resolved(settings, needed)
    torch.set_num_threads(settings["threads"])
    run = folder / "run"
    with Stopwatch(folder) as clock:
        agent = make_agent(
            settings["agent"],
            make_spec(settings["env"]),
            settings["model"],
            run=run,
            resume="auto",
            seed=settings["seed"],
            **settings["arguments"],
            **settings["config"],
        )

        def tick(agent: Agent, metrics: dict[str, float]) -> None:
            clock.save()

        agent.learn(callback=tick)
    lines = read_jsonl(run / "metrics.jsonl")
    curve = [{key: line[key] for key in _CURVE if key in line} for line in lines if "eval/maj@1" in line]
    cost = {"attempts": agent.num_attempts, "tokens": agent.num_tokens, **clock.spent}
    return {**cost, "curve": curve, "metrics": lines[-1], "model": MODEL}


_CURVE = ("step", "round", "eval/maj@1", "eval/pass@1")


def evaluate_system(folder: Path, settings: Mapping[str, Any], needed: Mapping[str, Done]) -> dict[str, Any]:
    """Evaluates a policy on the test split: all but reranking, which needs an outcome model.

    Returns:
        What `Evaluation.to_dict` gives but for the values of each problem, and `cpu_seconds`. In the folder are these
        values, the pool of samples, the correct solutions in it by problem, and the attempts that the report shows,
        with the rewards of training.
    """
    settings = resolved(settings, needed)
    torch.set_num_threads(settings["threads"])
    problems, n, seed = settings["problems"], settings["n"], settings["seed"]
    solutions: dict[str, list[str | None]] = {}
    (folder / POOL).unlink(missing_ok=True)
    with Stopwatch(folder) as clock:
        policy = load_policy(settings["model"], device=settings["device"], dtype=settings["dtype"])
        if "round" in settings:  # the policy after that round in place of the best one's
            after = Round.load(Path(settings["round"]["folder"]), settings["round"]["number"])
            if after is None:
                raise FileNotFoundError(f"expert iteration ended before round {settings['round']['number']}")
            restore(policy.model, after.weights)
        env = make_rollout_env(make_spec(settings["env"]), policy, settings["num_envs"], split="test")
        if "vllm_memory" in settings:
            policy = policy.with_vllm(make_vllm(policy, env, settings["vllm_memory"]))
        with AttemptFile(folder / POOL) as pool:

            def keep(group: list[Attempt]) -> None:
                for attempt in group:
                    pool.write(attempt)
                solutions[group[0].problem.id] = [
                    equation_sequence(env.decode(attempt.completion)) if attempt.is_success else None
                    for attempt in group
                ]

            temperature = settings["temperature"]
            result = evaluate(policy, env, problems=problems, n=n, temperature=temperature, seed=seed, on_problem=keep)
        shown = _shown(policy, settings, min(settings["browsed"], result.problems))
    write_json(folder / SOLUTIONS, solutions)
    (folder / SHOWN).unlink(missing_ok=True)
    with AttemptFile(folder / SHOWN) as file:
        for attempt in shown:
            file.write(attempt)
    records = attempt_records(settings["title"], shown, policy.tokenizer)
    write_json(folder / RECORDS, [asdict(record) for record in records])
    values = result.to_dict()
    write_json(folder / OUTCOMES, {name: values.pop(name) for name in ("problem_ids", "by_problem")})
    return {**values, "cpu_seconds": clock.spent["cpu_seconds"]}


def rerank_system(folder: Path, settings: Mapping[str, Any], needed: Mapping[str, Done]) -> dict[str, Any]:
    """Lets an outcome model choose among the samples of an evaluation.

    Returns:
        `metrics` with `rerank@n`, `seconds` and `cpu_seconds`. In the folder are the values of each problem, and the
        attempts that the report shows, with the model's score of each step.
    """
    settings = resolved(settings, needed)
    torch.set_num_threads(settings["threads"])
    n, evaluation = settings["n"], Path(settings["evaluation"])
    with Stopwatch(folder) as clock:
        judge = OutcomeModel.load(settings["orm"], device=settings["device"])
        # The model learned from prompts without worked examples, and reads the attempts behind such.
        arguments = {name: value for name, value in settings["env"].items() if name != "shots"}
        env = make_vec_env(make_spec(arguments), 1, tokenizer=judge.tokenizer, split="test")
        pool = list(AttemptFile(evaluation / POOL).read(env))
        groups = [pool[i : i + n] for i in range(0, len(pool), n)]
        right = [float(best_is_correct(group, score_attempts(judge, group))) for group in groups]
        shown = list(AttemptFile(evaluation / SHOWN).read(env))
        ends = step_ends([a.completion for a in shown], [a.terminated for a in shown], judge.tokenizer)
        positions = [len(attempt.prompt) + steps for attempt, steps in zip(shown, ends, strict=True)]
        scores = judge.score([attempt.tokens for attempt in shown], positions)
    records = attempt_records(settings["title"], shown, judge.tokenizer, scores)
    write_json(folder / RECORDS, [asdict(record) for record in records])
    name = f"rerank@{n}"
    ids = [group[0].problem.id for group in groups]
    write_json(folder / OUTCOMES, {"problem_ids": ids, "by_problem": {name: right}})
    return {"metrics": {name: list(bootstrap(right))}, **clock.spent}


def _shown(policy: CausalLMPolicy, settings: Mapping[str, Any], problems: int) -> list[Attempt]:
    """Attempts at the first test problems as training would reward them: the greedy one, then others at random."""
    if not problems:
        return []
    spec = make_spec({**settings["env"], "reward": settings["reward"]})
    env = make_rollout_env(spec, policy, min(settings["num_envs"], problems * SHOWN_SAMPLES), split="test")
    parts = [_groups(policy, env, problems, 1, 0.0, settings["seed"])]
    parts.append(_groups(policy, env, problems, SHOWN_SAMPLES, settings["temperature"], settings["seed"]))
    return [attempt for groups in zip(*parts, strict=True) for group in groups for attempt in group]


def _groups(
    policy: CausalLMPolicy, env: TokenVectorEnv, problems: int, n: int, temperature: float, seed: int
) -> list[list[Attempt]]:
    env.curriculum = Sequential(repeats=n)
    attempts = list(collect(policy.with_sampling(temperature=temperature), env, problems * n, seed=seed))
    return [attempts[i : i + n] for i in range(0, len(attempts), n)]


def resolved(settings: Any, needed: Mapping[str, Done]) -> Any:
    """Settings with the paths that the values made by `systems.output` stand for."""
    if isinstance(settings, Mapping):
        if "output_of" in settings:
            return str(needed[settings["output_of"]].folder / settings["path"])
        return {name: resolved(value, needed) for name, value in settings.items()}
    return settings


def expected_attempts(job: Job) -> int:
    """Attempts that a job samples, about: without validation, and with continuations of three steps of each attempt.

    Steps are continued where labels come from that: in RCRL by Monte Carlo and in SORMs.
    """
    settings = job.settings
    if job.work is evaluate_system:
        return settings["problems"] * (settings["n"] + 1)
    if job.work is not train_system:
        return 0
    # No job is done yet: a path in another's folder stands for itself.
    paths = {name: value["path"] if any(outputs(value)) else value for name, value in settings["config"].items()}
    config = AGENTS.get(settings["agent"]).config_class(**paths)
    if isinstance(config, PPOConfig):
        return config.iterations * config.problems_per_iteration * config.samples_per_problem
    if isinstance(config, SFTConfig) or getattr(config, "pool", None) is not None:
        return 0
    attempts = config.problems * config.samples_per_problem
    if isinstance(config, RCRLConfig | SORMConfig):
        return attempts * (1 + _STEPS * config.rollouts_per_step)
    return attempts * getattr(config, "rounds", 1)


_STEPS = 3
"""Steps of an attempt, about."""
