#!/bin/bash
# accelerate 1.15.0 ignores its FSDP settings for processes on CPUs: no error, no warning, and plain data parallelism.
#
# ACCELERATE_USE_FSDP=true and FSDP_VERSION=2 are what `accelerate launch --use_fsdp --fsdp_version 2` sets. With two
# gloo processes `Accelerator(cpu=True)` has the type MULTI_CPU and no FSDP plugin, and `prepare` returns a model in
# DistributedDataParallel with whole weights. An `Accelerator` that is given the plugin in code does the same. torch's
# own `fully_shard` works on the same two processes. A test on CPUs that goes through `prepare` tests DDP.
#
# Seen: "MULTI_CPU DistributedDataParallel plugin=False shards=False", and "fully_shard: shards=True".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 accelerate==1.15.0 numpy
cat > "$folder/two.py" <<'PYTHON'
import accelerate
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

accelerator = Accelerator(cpu=True, fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2))
model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
prepared, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
plugin = hasattr(accelerator.state, "fsdp_plugin")
shards = any(isinstance(parameter, DTensor) for parameter in prepared.parameters())
own = nn.Linear(8, 8)
fully_shard(own, mesh=init_device_mesh("cpu", (2,)))
own(torch.ones(1, 8)).sum().backward()
if accelerator.is_main_process:
    print(f"accelerate {accelerate.__version__}, torch {torch.__version__}")
    print(f"{accelerator.distributed_type.name} {type(prepared).__name__} plugin={plugin} shards={shards}")
    print(f"fully_shard: shards={isinstance(own.weight, DTensor)}")
accelerator.end_training()
PYTHON
ACCELERATE_USE_FSDP=true FSDP_VERSION=2 FSDP_CPU_RAM_EFFICIENT_LOADING=false OMP_NUM_THREADS=1 \
  "$folder/venv/bin/python" -m torch.distributed.run --standalone --nproc_per_node 2 "$folder/two.py" | tee "$folder/out"
grep -q "MULTI_CPU DistributedDataParallel plugin=False shards=False" "$folder/out"
grep -q "fully_shard: shards=True" "$folder/out"
