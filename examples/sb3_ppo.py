"""Stable-Baselines3's PPO on a token environment, twice.

    python examples/sb3_ppo.py            # a quarter of a minute, then some minutes
    python examples/sb3_ppo.py --quick

First its ordinary multilayer perceptron learns one-digit addition from token ids. Then `SB3CausalLMPolicy` lets it
train a language model: the slow and independent way, since SB3 knows no sequences and each token costs a
pass over all before it. Install it with `pip install "tokengym[sb3]"`.
"""

import argparse

import gymnasium as gym
import numpy as np
import torch

from tokengym.agents.sb3 import SB3CausalLMPolicy  # first, since it names the extra where that is missing
from tokengym.envs import SB3VecEnv

# isort: split
from stable_baselines3 import PPO


def make(num_envs: int, **settings: object) -> SB3VecEnv:
    """The environment's slots as Stable-Baselines3 wants them."""
    return SB3VecEnv(
        gym.make_vec("tokengym/Arithmetic-v0", num_envs, "vector_entry_point", autoreset_mode="SameStep", **settings)
    )


def success(agent: PPO, env: SB3VecEnv, steps: int) -> float:
    """Share of the attempts ending within some steps that are right."""
    observation, ended = env.reset(), []
    for _ in range(steps):
        action, _ = agent.predict(observation, deterministic=True)
        observation, _, dones, infos = env.step(action)
        ended += [info["is_success"] for info, done in zip(infos, dones, strict=True) if done]
    return float(np.mean(ended))


def main() -> None:
    """Trains both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick

    digits = make(
        256, style="equation", steps=1, operations="+", max_value=9, tokenizer="chars:0123456789+=",
        prompt="{question}", max_prompt_tokens=4, max_new_tokens=3,
    )  # fmt: skip
    agent = PPO(
        "MultiInputPolicy", digits, n_steps=8, batch_size=512, n_epochs=8, learning_rate=1e-3, ent_coef=0.05, seed=0,
        policy_kwargs={"net_arch": [128, 128], "activation_fn": torch.nn.ReLU}, device="cpu",
    )  # fmt: skip
    print(f"addition before: {success(agent, digits, 12):.3f} solved")
    agent.learn(2048 if quick else 65_536)
    print(f"addition after:  {success(agent, digits, 12):.3f} solved")

    words = make(8, max_prompt_tokens=128, max_new_tokens=16 if quick else 96)
    agent = PPO(
        SB3CausalLMPolicy, words, n_steps=4 if quick else 96, batch_size=32 if quick else 64, n_epochs=1,
        learning_rate=1e-5, policy_kwargs={"model": "tokengym/tiny"}, seed=0,
    )  # fmt: skip
    agent.learn(32 if quick else 1536)
    print(f"a language model made {agent.num_timesteps} steps")


if __name__ == "__main__":
    main()
