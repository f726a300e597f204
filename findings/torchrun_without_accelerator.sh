#!/bin/bash
# accelerate 1.15.0 under torchrun on a machine without an accelerator: every process believes that it is alone.
#
# torchrun sets RANK and WORLD_SIZE for two processes. `Accelerator()` finds no device, and each process gets
# num_processes 1, the type NO and is_main_process True, without a warning: both train on all of the data, and both write
# every file. `Accelerator(cpu=True)`, or ACCELERATE_USE_CPU=true, gives MULTI_CPU and two processes. With a GPU the
# same script needs neither.
#
# Seen: twice "default: 1 NO main=True", then "cpu=True: 2 MULTI_CPU" with main=True once.
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 accelerate==1.15.0 numpy
cat > "$folder/who.py" <<'PYTHON'
import sys

import accelerate
import torch
from accelerate import Accelerator

given = {"cpu": True} if "cpu" in sys.argv else {}
accelerator = Accelerator(**given)
print(
    f"accelerate {accelerate.__version__}, torch {torch.__version__}; {'cpu=True' if given else 'default'}: "
    f"{accelerator.num_processes} {accelerator.distributed_type.name} main={accelerator.is_main_process}\n",
    end="", flush=True,
)
PYTHON
for given in default cpu; do
  CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 "$folder/venv/bin/python" -m torch.distributed.run --standalone \
    --nproc_per_node 2 "$folder/who.py" "$given" | tee -a "$folder/out"
done
[ "$(grep -c 'default: 1 NO main=True' "$folder/out")" = 2 ]
[ "$(grep -c 'cpu=True: 2 MULTI_CPU' "$folder/out")" = 2 ]
[ "$(grep -c 'cpu=True: 2 MULTI_CPU main=True' "$folder/out")" = 1 ]
