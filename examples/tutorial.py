# %% [markdown]
# # Tutorial: from an environment to an agent of your own
#
# A quarter of an hour on a laptop's CPU, offline, with the model of 1.3 million parameters that comes with the
# library. Every cell below is a part of `examples/tutorial.py`, which CI runs: copy it, or open it as a notebook in
# an editor that knows `# %%` cells.

# %%
import sys

import gymnasium as gym

import tokengym
from tokengym.agents import Agent, CausalLMPolicy, collect, evaluate
from tokengym.agents.training import Example, FineTuneConfig, fine_tune
from tokengym.models import num_token_ids

QUICK = "--quick" in sys.argv  # a few seconds, for CI

# %% [markdown]
# ## 1. A math problem is an environment
#
# The observation is the tokens so far, an action is the next token, and the reward comes when the answer is graded.
# `reset` chooses a problem; `info` names it.

# %%
env = gym.make("tokengym/Arithmetic-v0", steps=1, render_mode="ansi")
observation, info = env.reset(seed=0)
print(env.action_space, observation["input_ids"].shape, info["problem_id"])
print(env.render())

# %% [markdown]
# ## 2. A language model is a policy
#
# `load` takes a name on the hub, a folder, a GGUF file or the built-in model. `predict` draws the next token for a
# batch of observations and keeps the model's key-value cache between calls, as `state`. Many slots at once are a
# vector environment, which needs the model's tokenizer.

# %%
model, tokenizer = tokengym.load("tokengym/tiny")
policy = CausalLMPolicy(model, tokenizer)
slots = gym.make_vec(
    "tokengym/Arithmetic-v0", 16, "vector_entry_point", split="test", tokenizer=tokenizer, autoreset_mode="Disabled"
)
for attempt in collect(policy, slots.unwrapped, 3, seed=0):
    print(attempt.problem.question)
    print(tokenizer.decode(attempt.completion, skip_special_tokens=True).strip())
    print(f"-> answer {attempt.answer}, {attempt.verdict}, reward {attempt.total_reward}\n")

# %% [markdown]
# ## 3. How good is it?
#
# `evaluate` measures the greedy answer (maj@1), the vote of n samples (maj@n) and whether any of them is right
# (pass@n), on problems of the test split, with 95 % intervals over problems.

# %%
PROBLEMS, N = (4, 2) if QUICK else (200, 4)
print(evaluate(policy, slots.unwrapped, problems=PROBLEMS, n=N).metrics)

# %% [markdown]
# ## 4. An agent of your own
#
# An agent is a subclass of `Agent` with a name, a configuration and `learn`. The base class loads the model, makes
# the slots and keeps folders, logs and the trained model. This one learns from its own right answers, and from the
# shortest one at each problem alone: filtered behavior cloning in fifteen lines.


# %%
class ShortestRight(Agent[FineTuneConfig]):
    """Fine-tunes on the shortest right attempt at each problem."""

    name = "shortest-right"
    config_class = FineTuneConfig

    def learn(self, total_episodes=None, callback=None, progress_bar=False):
        """Samples four attempts at each problem, keeps the best and fine-tunes on them."""
        problems = max((total_episodes or 4000) // 4, 1)
        attempts = self.collect_attempts(self.policy, self.env, problems, 4, seed=self.seed, folder=None)
        self.num_attempts += len(attempts)
        best = {}
        for attempt in sorted(attempts, key=lambda attempt: -len(attempt.completion)):
            if attempt.is_success:
                best[attempt.problem.id] = Example(attempt.prompt, attempt.completion)
        print(f"{len(attempts)} attempts, right ones at {len(best)} problems")
        fine_tune(
            self.model, list(best.values()), self.config, accelerator=self.accelerator, seed=self.seed,
            vocab_size=num_token_ids(self.tokenizer),
        )  # fmt: skip
        self.log({"rollout/success_rate": sum(a.is_success for a in attempts) / len(attempts)}, callback)
        self.keep_model()
        return self


# %% [markdown]
# ## 5. Train it, and measure again
#
# The agent makes slots of its own from the environment's id. Its settings are those of `FineTuneConfig`; a wrong name
# or value is one line that says what is right.

# %%
agent = ShortestRight("tokengym/Arithmetic-v0", "tokengym/tiny", epochs=1, batch_size=16, learning_rate=3e-4)
test = agent.make_env(split="test")
for attempts in (0, 64 if QUICK else 4000):
    if attempts:
        agent.learn(attempts)
    result = evaluate(agent, test, problems=PROBLEMS, n=N)
    print(f"after {attempts} attempts: " + ", ".join(f"{name} {value}" for name, value in result.metrics.items()))

# %% [markdown]
# ## Where to go from here
#
# - `tokengym train shortest-right` finds the agent once your package names it, see [Extending](extending.md).
# - `GRPO("tokengym/Arithmetic-v0")` and the other [algorithms](algorithms/index.md) are used in the same way.
# - A folder (`run="runs/mine"`) keeps configuration, metrics and the model, see [Long runs](runs.md).
