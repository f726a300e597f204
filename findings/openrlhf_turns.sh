#!/bin/bash
# OpenRLHF 0.11.2, PPO with agents of several turns and a lambda below 1: what the environment says between two turns
# takes away the earlier turn's credit, the more of it the longer it is. No error, no warning.
#
# Tokens of the environment have no action, and GAE should go from a turn's last token to the next turn's first one (as
# verl's does since pull request 2337). `get_advantages_and_returns` sets their values to 0 and walks through them all
# the same. A turn then ends as if the episode were over without a reward: its last token is followed by a value of 0,
# and what comes after reaches it through a factor of lambda for each token of the environment. With 100 tokens of tool
# output and 0.95 that is 0.6 %. So even where a critic is right everywhere, each turn but the last is blamed by all
# that it was worth, as if calling a tool had thrown it away, and the critic is trained towards 0 there. With a lambda
# of 1, the default, the sums are right, and so is everything in one turn. (The README says that all algorithms work
# with agents of several turns. Pull request 1827 of miles mends the like there; none of OpenRLHF's about it was found.)
# What helps: --algo.advantage.lambd 1, or an estimator without a critic.
#
# Two turns of three tokens each, a reward of 1 at the end, and a critic that says 1 everywhere: the return of the first
# turn's last token and the mean advantage of the first turn (whitening leaves its mean alone), by the number of tokens
# between the turns. Only torch is real here: the libraries of GPUs that are imported along are stood in for.
#
# Seen: "lambda 1.0: 0 between 1.00 0.00, 10 between 1.00 0.00, 100 between 1.00 0.00", "lambda 0.95: 0 between 1.00
# 0.00, 10 between 0.60 -0.19, 100 between 0.01 -0.47".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install -q --no-deps openrlhf==0.11.2  # its requirements are those of GPUs
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { status=$?; tail -5 "$folder/log"; exit $status; }
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import torch

MISSING = "accelerate aiohttp datasets deepspeed flash_attn packaging peft pylatexenc ray sympy torchdata tqdm"
MISSING = (*MISSING.split(), "transformers", "vllm")


class StandIn(ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()


class StandIns:
    """Finds and loads what is imported of packages that are not installed; asked last."""

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in MISSING else None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(StandIns())
from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker  # noqa: E402

print(f"openrlhf {version('openrlhf')}, torch {torch.__version__}")
TURN = 3


def first_turn(gae_lambda, between):
    advantage = SimpleNamespace(estimator="gae", gamma=1.0, lambd=gae_lambda, no_std_norm=True)
    args = SimpleNamespace(
        algo=SimpleNamespace(advantage=advantage),
        rollout=SimpleNamespace(n_samples_per_prompt=1),
        reward=SimpleNamespace(clip_range=(-10, 10)),
    )
    no_kl = SimpleNamespace(value=0.0)
    maker = RemoteExperienceMaker(None, None, None, None, no_kl, SimpleNamespace(args=args), None)
    mask = torch.tensor([[1] * TURN + [0] * between + [1] * TURN], dtype=torch.bool)
    rows = Experience(
        index=[0], action_mask=mask, values=torch.ones(mask.shape), kl=torch.zeros(mask.shape), rewards=torch.ones(1)
    )
    maker.compute_advantages_and_returns([rows])
    return float(rows.returns[0, TURN - 1]), float(rows.advantages[0, :TURN].mean())


same = True
for gae_lambda in (1.0, 0.95):
    found = {between: first_turn(gae_lambda, between) for between in (0, 10, 100)}
    shown = ", ".join(f"{between} between {value:.2f} {mean:.2f}" for between, (value, mean) in found.items())
    print(f"lambda {gae_lambda}: {shown.replace('-0.00', '0.00')}")
    right = [abs(value - 1) < 1e-3 and abs(mean) < 1e-3 for value, mean in found.values()]
    same = same and right == ([True, True, True] if gae_lambda == 1 else [True, False, False])
    same = same and (gae_lambda == 1 or (found[100][0] < 0.05 and found[100][1] < -0.3))
raise SystemExit(0 if same else 1)
PYTHON
