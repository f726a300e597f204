#!/bin/bash
# Gymnasium 1.4.0, `NormalizeReward`: the same episodes have rewards of another size by the vector environment's
# autoreset mode, and with NEXT_STEP, the default, discounted returns run on from one episode into the next.
#
# Rewards are divided by the standard deviation of a running discounted return. Under SAME_STEP it begins at 0 with each
# episode. Under NEXT_STEP, and in the wrapper for single environments, it does not: `(1 - terminated)` takes what was
# before out of the last step's value, where it belongs, and the last reward is carried into the next episode; after a
# truncation everything is. Where the reward comes at the end, as in tasks that are solved or not, that is most of the
# statistic; with truncated episodes it grows towards that of one endless episode. So learning rates and value
# coefficients that were found under one mode are false under the other, and agents compared across the modes have
# rewards of different sizes. Stable-Baselines3's `VecNormalize` begins each episode at 0. (Issue 760, about truncation
# in the single wrapper, was closed as intended. Pull request 1668 changed SAME_STEP alone.) What helps:
# autoreset_mode=AutoresetMode.SAME_STEP, which here agrees with Stable-Baselines3 but for a terminated episode's last
# value.
#
# Episodes of ten steps, 8 environments, 16,000 steps: the number that rewards are divided by. "at the end": reward 1 at
# the last step of half of the episodes; "each step": reward 1 at each.
#
# Seen: "at the end, terminated: next step 0.48, same step 0.22, single 0.48, SB3 0.22", "at the end, truncated: next
# step 1.26, same step 0.22, single 1.12, SB3 0.22", "each step, terminated: next step 2.73, same step 2.61, single
# 2.73, SB3 2.73", "each step, truncated: next step 15.53, same step 2.73, single 5.51, SB3 2.73".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 gymnasium==1.4.0 stable-baselines3==2.9.2
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { status=$?; tail -5 "$folder/log"; exit $status; }
from importlib.metadata import version

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import NormalizeReward as NormalizeOne
from gymnasium.wrappers.vector import NormalizeReward
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

print(f"gymnasium {gymnasium.__version__}, stable-baselines3 {version('stable-baselines3')}")
ENVS, STEPS, LENGTH = 8, 2000, 10


class Task(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, each_step, truncated):
        self.each_step, self.truncated = each_step, truncated

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_count, self.solved = 0, self.np_random.random() < 0.5
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.step_count += 1
        end = self.step_count == LENGTH
        reward = float(self.each_step or (end and self.solved))
        return np.zeros(1, np.float32), reward, end and not self.truncated, end and self.truncated, {}


def divisors(*task):
    makers = [lambda: Task(*task)] * ENVS
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        envs = NormalizeReward(SyncVectorEnv(makers, autoreset_mode=mode), gamma=0.99)
        envs.reset(seed=1)
        for _ in range(STEPS):
            envs.step(np.zeros(ENVS, int))
        yield float(np.sqrt(envs.return_rms.var))
    env = NormalizeOne(Task(*task), gamma=0.99)
    env.reset(seed=1)
    for _ in range(STEPS * ENVS):
        if any(env.step(0)[2:4]):
            env.reset()
    yield float(np.sqrt(env.return_rms.var))
    sb3 = VecNormalize(DummyVecEnv(makers), norm_obs=False, gamma=0.99)
    sb3.seed(1)
    sb3.reset()
    for _ in range(STEPS):
        sb3.step(np.zeros(ENVS, int))
    yield float(np.sqrt(sb3.ret_rms.var))


same = True
for each_step in (False, True):
    for truncated in (False, True):
        next_step, same_step, single, sb3 = divisors(each_step, truncated)
        name = f"{'each step' if each_step else 'at the end'}, {'truncated' if truncated else 'terminated'}"
        print(f"{name}: next step {next_step:.2f}, same step {same_step:.2f}, single {single:.2f}, SB3 {sb3:.2f}")
        if not each_step or truncated:
            same = same and next_step > 2 * same_step and abs(same_step / sb3 - 1) < 0.02
raise SystemExit(0 if same else 1)
PYTHON
