#!/bin/bash
# google-tunix 0.1.7, PPO: rewards lose their fractions. A reward of 0.9 counts as 0, and one of -0.7 too.
#
# `PPOLearner` puts each answer's reward at its last token, in an array that it makes by
# `jnp.zeros_like(jax_completion_ids)`: like the tokens, in integers. JAX cuts what is added towards 0, and says by a
# FutureWarning that "scatter inputs have incompatible types", which names neither rewards nor PPO. Rewards of 0 and 1
# pass, so that trials look right. Partial credit between 0 and 1 is gone, and so is what sets the scores of a reward
# model apart within each unit: returns are 0 or whole numbers, the critic learns these, and where all advantages come
# from fractions there is nothing to learn but the KL. The metrics show both numbers side by side, the mean of "score"
# as the reward function gave it and that of "reward", said to be score and KL penalty, as PPO uses it. GRPO's rewards
# are not touched. (No public issue was found.)
#
# Four answers with rewards 0.9, 0.4, -0.7 and 0.1, a critic that says 0 everywhere, and no KL penalty, by a random
# Qwen3 of one layer: the metrics of one step. Advantages would be below and above 0 by turns; they are 0 at every
# token.
#
# Seen: "score: -0.70 to 0.90, mean 0.175", "reward: 0.00 to 0.00, mean 0.000", "advantages: 0.00 to 0.00".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile jax==0.10.2 flax==0.12.7 optax==0.2.8 jaxtyping==0.3.11 perfetto==0.59.1 \
    sentencepiece==0.2.3 pandas==2.3.3 tensorboardX==2.6.5 pillow==12.0.0 wrapt==2.0.0 tqdm==4.70.1 safetensors==0.7.0
# What they ask for besides (TensorFlow's datasets, for one) is not needed here.
"$folder/venv/bin/pip" install -q --no-deps google-tunix==0.1.7 google-metrax==0.2.4 clu==0.0.12 huggingface-hub==1.33.0
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python - 2> log <<'PYTHON' || { status=$?; tail -5 log; exit $status; }
from importlib.metadata import version

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from tunix.models.qwen3.model import ModelConfig, Qwen3
from tunix.rl.ppo.ppo_learner import PPOConfig, PPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.rl.utils import create_critic_model

print(f"google-tunix {version('google-tunix')}, jax {jax.__version__}")
REWARDS = [0.9, 0.4, -0.7, 0.1]


class Letters:
    """Tokens are letters; 0 is padding, 1 ends an answer, 2 begins a prompt."""

    def encode(self, text, **_):
        return [ord(letter) - ord("a") + 3 for letter in text]

    def decode(self, tokens, **_):
        return "".join(chr(int(token) - 3 + ord("a")) for token in tokens if token > 2)

    def pad_id(self):
        return 0

    def eos_id(self):
        return 1

    def bos_id(self):
        return 2


def model():
    sizes = {"num_layers": 1, "vocab_size": 29, "embed_dim": 16, "hidden_dim": 32}
    heads = {"num_heads": 2, "head_dim": 8, "num_kv_heads": 1}
    return Qwen3(ModelConfig(**sizes, **heads, rope_theta=10_000, norm_eps=1e-6), rngs=nnx.Rngs(0))


mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
critic = create_critic_model(model())
critic.lm_head.kernel[...] = 0.0 * critic.lm_head.kernel[...]
still = {"actor_optimizer": optax.sgd(0.0), "critic_optimizer": optax.sgd(0.0)}
cluster = RLCluster(
    actor=model(),
    critic=critic,
    tokenizer=Letters(),
    cluster_config=ClusterConfig(
        role_to_mesh=dict.fromkeys((Role.ACTOR, Role.CRITIC, Role.REFERENCE, Role.ROLLOUT), mesh),
        training_config=RLTrainingConfig(**still, eval_every_n_steps=1000, max_steps=1),
        rollout_config=RolloutConfig(
            max_tokens_to_generate=6, max_prompt_length=8, kv_cache_size=32, temperature=1.0, seed=jax.random.key(0)
        ),
    ),
)
metrics = {}
buffer_metrics = cluster.buffer_metrics


def watched(new, *arguments, **settings):
    kept = [name for name in new if name.endswith(("min", "max", "mean"))]
    metrics.update({name: float(np.mean(new[name][0])) for name in kept})
    return buffer_metrics(new, *arguments, **settings)


cluster.buffer_metrics = watched
learner = PPOLearner(cluster, PPOConfig(beta=0.0), reward_fns=lambda prompts, completions, **_: REWARDS)
learner.train([{"prompts": np.array(["one", "two", "three", "four"])}])
found = {kind: [metrics[f"rewards/{kind}/{name}"] for name in ("min", "max", "mean")] for kind in ("score", "reward")}
for kind, (low, high, mean) in found.items():
    print(f"{kind}: {low:.2f} to {high:.2f}, mean {mean:.3f}")
print(f"advantages: {metrics['advantages/min'] + 0.0:.2f} to {metrics['advantages/max'] + 0.0:.2f}")
same = np.allclose(found["score"], [min(REWARDS), max(REWARDS), np.mean(REWARDS)]) and not np.any(found["reward"])
same = same and metrics["advantages/min"] == metrics["advantages/max"] == 0
raise SystemExit(0 if same else 1)
PYTHON
