"""`tokengym eval`: a model measured on problems."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ..agents.configs.search import KEEPING, RULES
from ..files import check_output, write_json
from ..registry import unknown_name
from ..settings import Count, CountOrZero, NonNegative, check_settings, check_unused
from .options import MAIN, ComputeOptions, EnvChoice
from .terminal import run_command, say

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..agents import CausalLMPolicy
    from ..agents.evaluation.rerankers import MeanLogprob, Reranker
    from ..agents.rollouts.searches import ProblemSearch
    from ..envs.token_vector_env import TokenVectorEnv
    from ..models.outcome import OutcomeModel


@dataclasses.dataclass(frozen=True)
class EvalOptions(EnvChoice):
    """Model to evaluate, and the protocol.

    Attributes:
        model: Model to evaluate: the `model` folder of a run, or anything that `tokengym train --model` takes.
        split: Split of the data that problems are from.
        problems: Number of problems, the first of the split.
        n: Samples of each problem for maj@n and pass@k; 0 measures only greedy maj@1.
        orm: Outcome model that reranks the samples, for rerank@n and weighted_maj@n: "tokengym/tiny-orm", or the
            folder `model` of a run that trained one, by `tokengym train orm`, `sorm`, `preference` or `prm`.
        aggregate: Score of an attempt by the outcome model: that after its last step, or the least ("min") or
            the "product" of those after all its steps; by default the product for models that judge single steps, else
            the last.
        reranker: Score that reranks the samples instead of an outcome model's: "mean_logprob", the mean log-probability
            of an attempt's tokens, "outcome_likelihood", the log-odds of the outcome model plus `--likelihood` times
            that, "implicit_reward", log(pi / pi_ref) of a model that DPO trained, or "lower_bound",
            the least reward of the outcome model that its training data leave possible (Zhu et al. 2023).
        pool: Attempts that the outcome model learned from, for "lower_bound": a file, or the folder of its run.
        radius: Radius of the weights that "lower_bound" takes for possible; 0 is the outcome model's own reward.
        likelihood: Factor of the mean log-probability in "outcome_likelihood".
        scorer: Model whose probabilities the reranker takes; by default the model that is evaluated.
        reference: Reference of "implicit_reward", the model that DPO began with.
        search: Search over steps instead of sampling n attempts: guided by the outcome
            model "beam", "tot", "dvts", "rebase", "resample" or "best_of_n"; guided by nothing "evolution".
        judge: Judge that guides the search instead of an outcome model: "votes" asks the evaluated model itself, sure,
            likely or impossible, three times of each candidate (tree of thoughts, Yao et al. 2023).
        search_keep: Candidates of "beam" and "tot" that survive a step, or groups of "dvts"; it must divide n.
        search_generations: Generations of "evolution", each of which continues solutions of those before; it must
            divide n.
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
    problems: Count = 200
    n: CountOrZero = 16
    orm: Path | None = None
    aggregate: Literal["last", "min", "product"] | None = None
    reranker: Literal["implicit_reward", "lower_bound", "mean_logprob", "outcome_likelihood"] | None = None
    pool: str | None = None
    radius: NonNegative = 1.0
    likelihood: NonNegative = 15.0
    scorer: str | None = None
    reference: str | None = None
    search: str | None = None
    judge: Literal["votes"] | None = None
    search_keep: Count = 4
    search_generations: Count = 4
    condition: str | None = None
    temperature: NonNegative = 0.7
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    shots: CountOrZero = 0
    seed: CountOrZero = 0
    output: Path | None = None

    def __post_init__(self) -> None:
        check_settings(self)


def evaluate(arguments: Sequence[str]) -> None:
    """Evaluate a model: maj@1, maj@n, pass@k and diversity, with intervals."""
    run_command(_run, "tokengym eval", arguments, evaluate.__doc__)


def _run(options: Annotated[EvalOptions, MAIN], compute: ComputeOptions) -> None:
    from ..agents import evaluate as measure
    from ..agents.evaluation.tables import evaluation_table
    from ..agents.rollouts.slots import check_vllm, make_rollout_env, make_vllm, make_vllm_servers
    from ..agents.rollouts.source import fingerprint
    from ..agents.training.progress import progress
    from ..agents.training.run_folder import versions
    from ..benchmarks.paper.tables import paper_figures

    compute.begin()
    check_output(options.output)
    check_vllm(compute.vllm_memory, compute.vllm_servers, compute.vllm_folder)
    _check_reranker(options)
    _check_parts(options)
    policy = _load_policy(options, compute)
    judge, reranker = _make_reranker(options, compute, policy)
    # What attempts earn and which problem comes next changes nothing that is measured.
    chosen = {"split": options.split, "shots": options.shots, "reward": "sparse", "curriculum": "sequential"}
    env = make_rollout_env(options.spec(**chosen), policy, compute.num_envs)
    policy = policy.with_compiled(compute.compile_decoder).with_graphs(compute.cuda_graphs)
    if compute.vllm_servers:
        policy = policy.with_vllm(make_vllm_servers(policy, env, compute.vllm_servers, compute.vllm_folder))
    if compute.vllm_memory is not None:
        policy = policy.with_vllm(make_vllm(policy, env, compute.vllm_memory))
    policy.check()
    search = _make_search(options, policy, env, judge)
    problems = min(options.problems, env.size or options.problems)
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
    say(evaluation_table({options.model: result}, f"{options.env}, {options.split} split"))
    figures = paper_figures(result, options.env, options.split)
    if figures is not None:
        say(figures)
    if search is not None:
        cost = search.cost
        read = f", and its judge read {cost.judged_tokens:,}" if cost.judged_tokens else ""
        say(f"the search drew {cost.policy_tokens:,} tokens{read}")
    if options.output is not None:
        origin = {"date": time.strftime("%Y-%m-%d"), "versions": versions(), "data": fingerprint(env.problems)}
        write_json(options.output, {**_protocol(options, judge), **result.to_dict(), **origin})


def _load_policy(options: EvalOptions, compute: ComputeOptions) -> "CausalLMPolicy":
    """The policy to evaluate, with what truncates its samples' distributions."""
    from ..agents import load_policy

    policy = load_policy(
        options.model,
        options.condition,
        device=compute.device,
        dtype=compute.dtype,
        load_in_4bit=compute.load_in_4bit,
        attn=compute.attn,
    )
    return policy.with_sampling(top_k=options.top_k, top_p=options.top_p, min_p=options.min_p)


def _make_reranker(
    options: EvalOptions, compute: ComputeOptions, policy: "CausalLMPolicy"
) -> "tuple[OutcomeModel | None, Reranker | None]":
    """The outcome model and the reranker that the options name."""
    from ..agents.evaluation.rerankers import LowerBound, OutcomeAndLikelihood, OutcomeScore
    from ..agents.rollouts.pools import read_pool
    from ..agents.rollouts.slots import make_rollout_env
    from ..models.outcome import OutcomeModel

    if options.orm is None:
        return None, None if options.reranker is None else _policy_reranker(options, compute, policy)
    judge = OutcomeModel.load(options.orm, policy.tokenizer, str(policy.model.device))
    if options.reranker == "outcome_likelihood":
        likely = _likelihood(options, compute, policy)
        return judge, OutcomeAndLikelihood(OutcomeScore(judge, options.aggregate), likely, options.likelihood)
    if options.pool is None:
        return judge, OutcomeScore(judge, options.aggregate)
    learned_from = make_rollout_env(options.spec(split="train"), policy, 1)
    return judge, LowerBound(judge, read_pool(options.pool, learned_from, None, None), options.radius)


def _make_search(
    options: EvalOptions, policy: "CausalLMPolicy", env: "TokenVectorEnv", judge: "OutcomeModel | None"
) -> "ProblemSearch | None":
    """The search that the options name, if any."""
    if options.search is None:
        return None
    from ..agents.configs.search import SEARCHES, EvolutionConfig, SearchConfig
    from ..agents.evolution import Evolution
    from ..agents.search import Search
    from ..agents.votes import VoteJudge

    if options.search not in SEARCHES:
        raise unknown_name("search rule", options.search, SEARCHES)
    if options.search == "evolution":
        if options.judge is not None:
            raise ValueError("no judge guides an evolution: leave out --judge, or choose another search")
        return Evolution(policy, env, EvolutionConfig(options.n, options.search_generations, options.temperature))
    guide = VoteJudge(policy, env, seed=options.seed) if options.judge == "votes" else judge
    if guide is None:
        raise ValueError("--search is guided by an outcome model: give one by --orm, or ask for votes by --judge votes")
    config = SearchConfig(
        options.search, options.n, options.search_keep, options.temperature, aggregate=options.aggregate
    )
    return Search(policy, env, guide, config)


def _protocol(options: EvalOptions, judge: "OutcomeModel | None") -> dict[str, Any]:
    """How results came about, for the file that holds them."""
    return {
        "model": options.model,
        "condition": options.condition,
        "env": options.env,
        "env_args": options.env_args,
        "data_files": options.data,
        "split": options.split,
        "shots": options.shots,
        "orm": None if options.orm is None else str(options.orm),
        "aggregate": None if judge is None else options.aggregate or judge.aggregate,
        "reranker": options.reranker,
        "pool": options.pool,
        "radius": options.radius if options.reranker == "lower_bound" else None,
        "likelihood": options.likelihood if options.reranker == "outcome_likelihood" else None,
        "scorer": options.scorer,
        "reference": options.reference,
        "search": options.search,
        "judge": options.judge,
    }


def _check_reranker(options: EvalOptions) -> None:
    """Raises `ValueError` unless the options of reranking go together."""
    if options.search not in KEEPING:
        check_unused(options, ("search_keep",), "--search beam, tot or dvts")
    if options.search != "evolution":
        check_unused(options, ("search_generations",), "--search evolution")
    if options.n == 0:
        drawn = ("search", "orm", "reranker", "temperature", "top_k", "top_p", "min_p")
        check_unused(options, drawn, "samples, an n above 0")
    if options.reranker != "lower_bound":
        check_unused(options, ("radius",), "--reranker lower_bound")
    if options.reranker != "outcome_likelihood":
        check_unused(options, ("likelihood",), "--reranker outcome_likelihood")
    if options.judge is not None and (options.search is None or options.orm is not None):
        raise ValueError(
            "--judge guides a search: choose one by --search"
            if options.search is None
            else "--judge and --orm would both guide the search: leave out one"
        )
    if options.aggregate is not None and options.orm is None:
        raise ValueError("--aggregate combines the step scores of an outcome model: give one by --orm")
    if (options.reranker == "lower_bound") != (options.pool is not None):
        raise ValueError(
            "--reranker lower_bound asks what an outcome model learned from: give the folder of its run by --pool"
            if options.pool is None
            else "--pool is for --reranker lower_bound: choose it, or leave --pool out"
        )
    if options.reranker == "outcome_likelihood":
        check_unused(options, ("reference",), "--reranker implicit_reward")
        if options.orm is None or options.search:
            raise ValueError("--reranker outcome_likelihood needs --orm, and no --search")
        return
    own = ("scorer", "reference")
    if options.reranker in (None, "lower_bound"):
        for name in own:
            if getattr(options, name) is not None:
                raise ValueError(f"--{name} is for a reranker by a policy: choose one by --reranker, or leave it out")
        if options.reranker is not None and (options.orm is None or options.aggregate is not None or options.search):
            raise ValueError("--reranker lower_bound needs --orm, and neither --aggregate nor --search")
        return
    if options.orm is not None:
        raise ValueError("--orm and --reranker both score the samples: leave out one")
    if options.judge is not None:
        raise ValueError(f"--reranker {options.reranker} and the judge of --search both score attempts: leave out one")
    if (options.reranker == "implicit_reward") != (options.reference is not None):
        raise ValueError(
            "--reranker implicit_reward compares a model that DPO trained with its reference: give the model that DPO "
            "began with by --reference"
            if options.reference is None
            else f"--reference is for --reranker implicit_reward, not {options.reranker}: leave it out"
        )


def _check_parts(options: EvalOptions) -> None:
    """Raises `ValueError` unless a search has several samples of a problem, which its parts divide."""
    if options.search in RULES and options.n < 2:
        raise ValueError(f"a search needs several candidates of a problem: raise --n to at least 2, got {options.n}")
    parts = {"search_keep": options.search in KEEPING, "search_generations": options.search == "evolution"}
    for name, counts in parts.items():
        if counts and options.n % (part := getattr(options, name)):
            raise ValueError(f"`{name}` must divide the n of {options.n}, got {part}")


def _policy_reranker(options: EvalOptions, compute: ComputeOptions, policy: "CausalLMPolicy") -> "Reranker":
    """The reranker by a policy's probabilities that the options name."""
    from ..agents.evaluation.rerankers import ImplicitReward

    likely = _likelihood(options, compute, policy)
    if options.reference is None:
        return likely
    return ImplicitReward(likely.model, _load_scorer(options.reference, options, compute, policy), policy.tokenizer)


def _likelihood(options: EvalOptions, compute: ComputeOptions, policy: "CausalLMPolicy") -> "MeanLogprob":
    """The mean log-probability under the model that the options name."""
    from ..agents import ConditionedPolicy
    from ..agents.evaluation.rerankers import MeanLogprob

    if options.scorer is not None:
        return MeanLogprob(_load_scorer(options.scorer, options, compute, policy), policy.tokenizer)
    if isinstance(policy, ConditionedPolicy):
        raise ValueError(f"{options.model!r} acts under labels: name a model without labels by --scorer")
    return MeanLogprob(policy.model.eval(), policy.tokenizer)


def _load_scorer(
    name: str, options: EvalOptions, compute: ComputeOptions, policy: "CausalLMPolicy"
) -> "PreTrainedModel":
    """A language model that scores the policy's attempts."""
    from ..models.loading import load

    model, tokenizer = load(
        name, device=compute.device, dtype=compute.dtype, load_in_4bit=compute.load_in_4bit, attn=compute.attn
    )
    if tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ValueError(
            f"the tokenizers of {name!r}, which scores, and of {options.model!r} differ: give a model of the same one"
        )
    return model.eval()
