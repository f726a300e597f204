#!/bin/bash
# GEM 0.1.0 (gem-llm) and TextArena 0.7.4: an evaluation with fixed seeds sends training back to the same problems.
#
# `reset(seed=...)` looks like Gymnasium's, where each environment has a random generator of its own. Here it calls
# `random.seed(seed)` (GEM: NumPy's as well), the one generator of the process, from which all environments draw. A
# policy that is evaluated every so often on seeds 0, 1, 2, as one does, therefore meets the same training problems
# after each evaluation, again and again, however many there are; so does whatever else draws from `random` or NumPy,
# such as the shuffling of batches. Training rewards go up by heart. In GEM's vector environments the seed of the last
# one decides on all later episodes of all of them. Nothing is said, and each seed by itself gives what it should. (No
# public issue about it was found.) What helps: `state = random.getstate()` before an evaluation and
# `random.setstate(state)` after it (and `numpy.random`'s for GEM), or an evaluation in another process.
#
# Mastermind with 1,680 codes in both: 5 times 20 episodes of training without seeds, and before each 20 of them three
# resets of another environment, without seeds, with seeds 0, 1, 2, and with these and the state put back.
#
# Seen: "GEM: 95 codes of 100 episodes, with seeds 20, state put back 97", "TextArena: 97 codes of 100 episodes, with
# seeds 19, state put back 97", "GEM, two environments: seeds 3 1 and 5 1 have the same later episodes".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gem-llm==0.1.0 textarena==0.7.4
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python - 2> log <<'PYTHON' || { status=$?; tail -5 log; exit $status; }
import random
from importlib.metadata import version

import gem
import textarena
from gem.vector.sync_vector_env import SyncVectorEnv

NAME = "Mastermind-v0-hard"


class Gem:
    def __init__(self):
        self.env = gem.make(f"game:{NAME}")

    def code(self, seed=None):
        self.env.reset(seed=seed)
        return tuple(self.env.game_code)


class TextArena:
    def __init__(self):
        self.env = textarena.make(NAME)

    def code(self, seed=None):
        self.env.reset(num_players=1, seed=seed)
        return tuple(self.env.state.game_state["secret_code"])


def codes(kind, seeds, put_back=False):
    """How many different codes 100 episodes of training have, between evaluations."""
    training, evaluation = kind(), kind()
    random.seed(2026)
    seen = set()
    for _ in range(5):
        state = random.getstate()
        for seed in seeds:
            evaluation.code(seed)
        if put_back:
            random.setstate(state)
        seen |= {training.code() for _ in range(20)}
    return len(seen)


def later(seeds):
    """The later episodes of two environments that were given these seeds."""
    pair = SyncVectorEnv([NAME] * 2, [lambda: gem.make(f"game:{NAME}")] * 2)
    pair.reset(seed=seeds)
    first = [tuple(env.game_code) for env in pair.envs]
    pair.reset()
    return first, [tuple(env.game_code) for env in pair.envs]


print(f"gem-llm {version('gem-llm')}, textarena {version('textarena')}")
ok = True
for name, kind in (("GEM", Gem), ("TextArena", TextArena)):
    free, fixed, back = codes(kind, [None] * 3), codes(kind, [0, 1, 2]), codes(kind, [0, 1, 2], put_back=True)
    print(f"{name}: {free} codes of 100 episodes, with seeds {fixed}, state put back {back}")
    ok = ok and free > 90 and fixed <= 20 and back > 90 and kind().code(7) == kind().code(7)
(first, then), (other_first, other_then) = later([3, 1]), later([5, 1])
same = first[0] != other_first[0] and then == other_then
print(f"GEM, two environments: seeds 3 1 and 5 1 have {'the same' if same else 'other'} later episodes")
raise SystemExit(not (ok and same))
PYTHON
