"""The scales that the paper's grid is run at: all settings of every system, as plain values.

What a scale leaves out is the agent's own default, which is the paper's where the paper says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...registry import unknown_name

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Scale:
    """One scale.

    Attributes:
        name: Name of the scale.
        about: Models, data and machine, in words.
        env: Id of the environment.
        env_settings: Arguments of the environment in all jobs.
        model: Pretrained checkpoint.
        tables: Tables whose systems are run: the paper's "table_1" to "table_4", "rounds" and "ablations".
        agent: Arguments of every agent, the same in all jobs: slots, device, precision, adapters.
        threads: CPU threads of each job.
        batching: Fields of every agent's configuration.
        fine_tuning: Fields of every configuration that fine-tunes, the same for all as in the paper.
        demonstrations: Number of reference solutions to fine-tune on; `None` uses all.
        problems: Number of problems that attempts are sampled at for learning.
        rft, ei, orm, sorm, rcrl, ppo: Further fields of these agents' configurations.
        orm_filter: Further fields of expert iteration that is guided by the ORM.
        ei_from_pretrained, ppo_from_pretrained: Other values if the start is the pretrained checkpoint.
        shots: Number of worked examples in the prompt of a pretrained model.
        test_problems: Number of test problems.
        n: Samples at each test problem, for maj@n, rerank@n and pass@n.
        temperature: Sampling temperature of these samples. [Havrilla et al. 2024]
        browsed: Number of test problems whose attempts go into the report.
        launcher: Launcher of the commands that are written instead of running anything here; `None` runs the plan.
    """

    name: str
    about: str
    env: str
    model: str
    test_problems: int
    n: int
    demonstrations: int | None
    problems: int
    tables: tuple[str, ...] = ("table_1", "table_3", "table_4", "rounds")
    env_settings: Settings = field(default_factory=dict)
    agent: Settings = field(default_factory=dict)
    threads: int = 1
    batching: Settings = field(default_factory=dict)
    fine_tuning: Settings = field(default_factory=dict)
    rft: Settings = field(default_factory=dict)
    ei: Settings = field(default_factory=dict)
    ei_from_pretrained: Settings = field(default_factory=dict)
    orm: Settings = field(default_factory=dict)
    sorm: Settings = field(default_factory=dict)
    orm_filter: Settings = field(default_factory=dict)
    rcrl: Settings = field(default_factory=dict)
    ppo: Settings = field(default_factory=dict)
    ppo_from_pretrained: Settings = field(default_factory=dict)
    shots: int = 2
    temperature: float = 0.7
    browsed: int = 8
    launcher: str | None = None

    @property
    def epochs(self) -> int:
        """Of fine-tuning: the paper's four, unless set."""
        return self.fine_tuning.get("epochs", 4)


def paper_scale(name: str) -> Scale:
    """The scale of that name.

    Raises:
        UnknownNameError: There is none; the nearest is suggested.
    """
    if name not in SCALES:
        raise unknown_name("scale", name, SCALES)
    return SCALES[name]


# On a core an attempt costs three times as much to learn from as to sample, so each is learnt from once. lambda = 1,
# for a new critic learns little in so few updates: with less, an attempt's end would teach its last tokens only.
TINY_PPO: Settings = {
    "problems_per_iteration": 64,
    "samples_per_problem": 4,
    "minibatch_size": 64,
    "epochs": 1,
    "gae_lambda": 1.0,
    "learning_rate": 2e-4,
    "critic_layers": 2,
    "patience": None,
}

# About two hours of one core for each seed. Fine-tuning is the demonstration's: light, so that a policy's own
# solutions, at problems enough, outnumber the demonstrations by far.
_TINY = Scale(
    name="tiny",
    about="The built-in model of 1.3 million parameters on generated word problems; processes of one CPU thread.",
    env="tokengym/Arithmetic-v0",
    model="tokengym/tiny",
    agent={"num_envs": 256, "device": "cpu"},
    batching={"micro_batch_tokens": 1024, "validation_problems": 100},  # so that a batch fits a core's cache
    fine_tuning={"epochs": 4, "batch_size": 16},
    demonstrations=64,
    problems=600,
    rft={"samples_per_problem": 6},
    ei={"samples_per_problem": 2, "rounds": 3, "patience": 3},
    ei_from_pretrained={"rounds": 4, "patience": 4},
    # A head on the built-in model cannot verify what the model cannot solve; the built-in outcome model can.
    orm={
        "base": "tokengym/tiny-orm",
        "balance": False,
        "samples_per_problem": 6,
        "epochs": 2,
        "batch_size": 32,
        "validation_problems": 50,
    },
    sorm={
        "base": "tokengym/tiny-orm",
        "problems": 150,
        "samples_per_problem": 4,
        "epochs": 2,
        "batch_size": 32,
        "validation_problems": 20,
    },
    rcrl={"problems": 300, "samples_per_problem": 2, "rollouts_per_step": 4},
    # As many attempts as expert iteration samples in all its rounds, from either start.
    ppo={
        **TINY_PPO,
        "problems_per_iteration": 60,
        "minibatch_size": 60,
        "iterations": 15,
        "validation_iterations": 3,
        "save_iterations": 3,
    },
    ppo_from_pretrained={"temperature": 0.2, "iterations": 20},
    # The built-in model takes worked examples for the end of a text: with two of them it solves none of 60 test
    # problems, and without any 38 %.
    shots=0,
    test_problems=500,
    n=8,
)

_SMOLLM2 = Scale(
    name="smollm2",
    about="SmolLM2-135M on GSM8K; one GPU.",
    env="tokengym/GSM8K-v0",
    env_settings={"max_prompt_tokens": 640, "max_new_tokens": 320, "on_long_prompt": "skip"},
    model="HuggingFaceTB/SmolLM2-135M",
    agent={"num_envs": 512},
    threads=4,
    batching={"bf16": True, "validation_problems": 473},
    fine_tuning={"epochs": 4, "learning_rate": 1e-4},
    demonstrations=None,
    problems=7000,
    rft={"samples_per_problem": 24},
    ei={"samples_per_problem": 8, "rounds": 3, "patience": 3},
    ei_from_pretrained={"rounds": 5, "patience": 5},
    orm={"samples_per_problem": 8, "validation_problems": 200},
    sorm={"problems": 2000, "samples_per_problem": 4, "validation_problems": 100},
    rcrl={"problems": 2000, "samples_per_problem": 2, "rollouts_per_step": 4},
    # Three times the paper's rate, as ReFT takes for models of this size, and as many attempts as expert iteration's.
    ppo={"learning_rate": 3e-6, "iterations": 164, "validation_iterations": 10, "patience": 10},
    ppo_from_pretrained={"temperature": 0.2, "iterations": 273},
    test_problems=1319,
    n=32,
)

_SVAMP = replace(
    _SMOLLM2,
    name="smollm2-svamp",
    about="SmolLM2-135M on SVAMP, from the pretrained checkpoint; one GPU.",
    env="tokengym/SVAMP-v0",
    tables=("table_2",),
    batching={"bf16": True, "validation_problems": 100},
    problems=600,
    ppo_from_pretrained={"temperature": 0.2, "iterations": 24, "validation_iterations": 2},
    test_problems=300,
)

# The paper's own settings. A job takes all GPUs of a machine, under a launcher that starts one process for each, so
# the jobs are commands to be given in turn, by a person or a cluster's queue, and no plan of processes on one machine.
_LLAMA = Scale(
    name="llama2-7b",
    about="Llama-2 7B on GSM8K with adapters, sampled by vLLM; commands for eight GPUs, each job on all of them.",
    env="tokengym/GSM8K-v0",
    env_settings={"max_prompt_tokens": 640, "max_new_tokens": 320, "on_long_prompt": "skip"},
    model="meta-llama/Llama-2-7b-hf",
    tables=("table_1", "table_3", "table_4"),  # rounds keep adapters alone, which `tokengym eval` doesn't take
    # On each GPU vLLM holds the merged weights and a cache, in 0.4 of 80 GB; the model that is trained has the rest.
    agent={"num_envs": 256, "dtype": "bfloat16", "lora_rank": 128, "vllm_memory": 0.4},
    threads=4,
    # By `tokengym plan`, which lets all but the outcome model (230 GiB as a whole) and RCRL's 256 slots fit into 80 GB.
    batching={"micro_batch_tokens": 1024, "validation_problems": 473},
    demonstrations=None,
    problems=7000,
    ei={"samples_per_problem": 96, "rounds": 3, "patience": 3},
    ei_from_pretrained={"rounds": 5, "patience": 5},
    orm={"samples_per_problem": 16},
    sorm={"samples_per_problem": 4},
    rcrl={"samples_per_problem": 4},
    ppo_from_pretrained={"temperature": 0.2},
    test_problems=1319,
    n=96,
    launcher="accelerate launch --num_processes 8 --mixed_precision bf16 -m",
)


SCALES: Mapping[str, Scale] = {scale.name: scale for scale in (_TINY, _SMOLLM2, _SVAMP, _LLAMA)}
"""Scales by name."""
