"""An outcome model that guides search: trained on a policy's own attempts, then beside plain sampling.

    python examples/search_with_outcome_model.py            # some minutes
    python examples/search_with_outcome_model.py --quick    # a few seconds

The problem is parity after next-token prediction, where a model of this size can see whether a solution is right.
Compare accuracy with the tokens that each way takes. A parity's solution is one line, which is one step here, so most
rules of search would do what reranking does; `resample` draws among ended solutions, too. On problems with several
steps, such as Arithmetic's, they differ.
"""

import argparse

import gymnasium as gym

from tokengym.agents import ORM, Pretrain, evaluate, load_policy
from tokengym.agents.rollouts.slots import make_rollout_env
from tokengym.agents.search import Search, SearchConfig
from tokengym.models import OutcomeModel


def main() -> None:
    """Pretrains a policy, trains an outcome model on its attempts, and searches with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--run", default="runs/search")
    arguments = parser.parse_args()
    quick, run = arguments.quick, arguments.run
    env = gym.make("tokengym/Parity-v0", d=8, p_cot=0.5)
    sizes = {"steps": 2, "batch_size": 8, "validation_problems": 2} if quick else {"steps": 150}
    Pretrain(env, run=f"{run}/policy", architecture="llama", **sizes).learn(progress_bar=True)

    sizes = {"problems": 4, "samples_per_problem": 4, "validation_problems": 2} if quick else {"problems": 500}
    orm = ORM(env, f"{run}/policy/model", run=f"{run}/orm", balance=False, **sizes)
    orm.learn(progress_bar=True)

    policy = load_policy(f"{run}/policy/model")
    judge = OutcomeModel.load(f"{run}/orm/model", policy.tokenizer, str(policy.model.device))
    slots, problems = make_rollout_env(env.spec, policy, 16, split="test"), 2 if quick else 100
    result = evaluate(policy, slots, problems=problems, n=16, reranker=judge)
    print(f"sampling     maj@16 {result.metrics['maj@16']}, rerank@16 {result.metrics['rerank@16']}")
    for rule in ("best_of_n", "resample"):
        search = Search(policy, slots, judge, SearchConfig(rule, width=16, temperature=0.7))
        result = evaluate(policy, slots, problems=problems, n=16, search=search)
        print(
            f"{rule:12} maj@16 {result.metrics['maj@16']}, rerank@16 {result.metrics['rerank@16']}, "
            f"{search.cost.policy_tokens:,} tokens drawn"
        )


if __name__ == "__main__":
    main()
