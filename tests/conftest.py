"""Settings for all tests."""

import os

# Tiny models are slower on several threads than on one; the subprocesses of tests inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing in the tests reaches for the hub; without this each unknown name waits for its time-out.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
