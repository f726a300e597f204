"""Models in shards over processes learn what whole ones learn."""

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig

from tokengym.__main__ import main
from tokengym.agents import AGENTS, GRPO, SFT, make_agent
from tokengym.agents.planning import Planned, describe, propose
from tokengym.agents.training.masters import join, split
from tokengym.agents.training.memory import GIB, Limits
from tokengym.agents.training.sharding import Sharding, gathered_units
from tokengym.models.critics import make_critic
from tokengym.models.loading import with_lora

CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=300, max_position_embeddings=128,
)  # fmt: skip
TWO = SimpleNamespace(num_processes=2, state=SimpleNamespace(), mixed_precision="no", device=torch.device("cpu"))
"""What a launcher tells of two processes, of which there is one here."""


def launched(**settings: Any) -> Accelerator:
    return cast(Accelerator, SimpleNamespace(**{**vars(TWO), **settings}))


@pytest.fixture
def fsdp(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment that `accelerate launch --use_fsdp --fsdp_version 2` leaves."""
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    return monkeypatch


# ------------------------------------------------------------------------------------------------------------- settings


def test_sharding_is_what_a_run_was_launched_with(fsdp: pytest.MonkeyPatch) -> None:
    assert Sharding.of(launched(num_processes=1)) is None
    found = Sharding.of(launched())
    assert found is not None
    assert found.reshard_after_forward
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"  # else all processes but one load no weights
    fsdp.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    assert not cast(Sharding, Sharding.of(launched())).reshard_after_forward
    fsdp.delenv("ACCELERATE_USE_FSDP")
    assert Sharding.of(launched()) is None


@pytest.mark.parametrize(
    ("variables", "settings", "told"),
    [
        ({"FSDP_VERSION": "1"}, {}, "launch with --fsdp_version 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, "launch without --fsdp_offload_params"),
        ({}, {"mixed_precision": "bf16"}, "launch sharded runs without --mixed_precision, and set dtype"),
    ],
)
def test_settings_that_are_not_supported_are_named(
    fsdp: pytest.MonkeyPatch, variables: dict[str, str], settings: dict[str, Any], told: str
) -> None:
    for name, value in variables.items():
        fsdp.setenv(name, value)
    with pytest.raises(ValueError, match=told):
        Sharding.of(launched(**settings))


def test_agents_that_cannot_be_sharded_say_so_before_they_load_a_model(sums: Any, monkeypatch: Any) -> None:
    shardable = {name for name in AGENTS.names() if AGENTS.get(name).shardable}
    assert shardable >= {"sft", "ei", "rft", "star", "reinforce", "grpo", "ppo", "dpo"}
    monkeypatch.setattr(Sharding, "of", lambda accelerator: Sharding(accelerator))
    for name in ("rcrl", "pretrain"):
        assert name not in shardable
        with pytest.raises(ValueError, match=f"the agent '{name}' cannot be sharded: launch it without --use_fsdp"):
            make_agent(name, sums, "no/such/model")


def test_shards_and_autocast_are_not_mixed(sums: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(Sharding, "of", lambda accelerator: Sharding(accelerator))
    with pytest.raises(ValueError, match='train in bfloat16 by dtype="bfloat16": leave out bf16'):
        make_agent("sft", sums, "no/such/model", bf16=True)


def test_weights_that_cannot_be_sharded_are_named(make_model: Any) -> None:
    sharding = Sharding(launched())
    model = make_model()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    with pytest.raises(ValueError, match=r"LlamaForCausalLM cannot be sharded: layers share the weight mlp\.gate_proj"):
        sharding.shard(model)
    model = make_model()
    model.lm_head.weight = nn.Parameter(torch.zeros(17, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"its weight lm_head\.weight is torch\.int8"):
        sharding.shard(model)
    model.lm_head.weight = nn.Parameter(torch.zeros(()))
    with pytest.raises(ValueError, match=r"its weight lm_head\.weight is a single number"):
        sharding.shard(model)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_layers_are_gathered_one_by_one(make_model: Any, architecture: str) -> None:
    model = make_model(architecture)
    layers = list(model.model.layers if architecture == "llama" else model.transformer.h)
    assert gathered_units(model) == layers
    assert gathered_units(model.requires_grad_(False)) == layers
    assert gathered_units(with_lora(make_model(architecture), 2).bfloat16()) != layers
    critic = make_critic("branch", make_model(architecture).bfloat16(), 1)
    assert gathered_units(critic) == [*cast(Any, critic).layers, *cast(Any, critic).path_to_head]  # its head is float32
    assert gathered_units(make_critic("head", model, 1)) == []


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(1, 5), max_size=2), st.integers(0, 99))
def test_masters_of_some_rows_are_rows_of_the_masters(count: int, width: list[int], seed: int) -> None:
    """So a checkpoint of shards is that of the whole, on any number of processes."""
    master = torch.randn(count, *width, generator=torch.Generator().manual_seed(seed))
    high, low = split(master)
    for processes in (2, 3):
        size = -(-count // processes)
        for first in range(0, count, size):
            rows = slice(first, first + size)
            own_high, own_low = split(master[rows], first)
            assert torch.equal(own_high, high[rows])
            assert torch.equal(own_low, low[rows])
            assert torch.equal(join(own_high, own_low, first), master[rows])


# ----------------------------------------------------------------------------------------------------------------- plan


def sizes(limits: Limits, **model: Any) -> dict[str, int]:
    planned = Planned(GRPO, GRPO.config_class(kl_coef=0.1, micro_batch_tokens=100), CONFIG, limits, GIB, **model)
    plan = planned.plan
    return {item.name: item.size for item in (*plan.kept, *plan.phases["sampling"], *plan.phases["learning"])}


def test_a_plan_of_shards_has_a_part_of_what_is_kept_and_all_of_what_is_gathered() -> None:
    whole, part = (sizes(Limits(4, 16, 16, 4, None, sharded), dtype="bfloat16") for sharded in (False, True))
    for name in ("weights", "reference", "optimizer", "gradients"):
        assert whole[name] / 4 == pytest.approx(part[name], rel=0.02), name
    assert part["gathered policy"] == pytest.approx(whole["weights"], rel=1e-3)
    assert 0 < part["gathered layers"] < 2 * whole["weights"]
    for name in ("activations", "logits and backward pass", "key-value cache"):
        assert whole[name] == part[name]
    assert "buckets of data parallelism" not in part


@pytest.mark.slow
def test_shards_are_proposed_before_anything_that_changes_a_result() -> None:
    def too_large(processes: int) -> Planned:
        config = SFT.config_class(micro_batch_tokens=32, gradient_checkpointing=True)
        planned = Planned(SFT, config, CONFIG, Limits(1, 16, 16, processes), GIB)
        return replace(planned, memory=int(planned.plan.peak * 0.99 / 0.95))

    planned = too_large(8)
    proposal = cast(Planned, propose(planned))
    assert proposal.limits.sharded
    assert (proposal.dtype, proposal.lora_rank) == ("float32", None)
    assert "accelerate launch --use_fsdp --fsdp_version 2 --num_processes 8 -m tokengym train" in describe(planned)
    assert "each of 8 GPUs by FSDP" in describe(proposal)
    alone = cast(Planned, propose(too_large(1)))
    assert (alone.dtype, alone.limits.sharded) == ("bfloat16", False)


def test_the_command_refuses_shards_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    common = ["plan", "--agent", "sft", "--memory", "80"]
    for arguments, told in (
        ([*common, "--fsdp"], "give --gpus"),
        (["plan", "--agent", "rcrl", "--gpus", "4", "--memory", "80", "--fsdp"], "'rcrl' cannot be sharded"),
    ):
        assert main(arguments) == 1
        assert told in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- two processes

# One process learns with whole models, two with shards. The arguments are a model, a folder for results, and a part.
AGENTS_LEARN = """
    import json, sys
    from pathlib import Path
    import torch
    from safetensors.torch import save_file
    from tokengym.agents import AGENTS
    from tokengym.agents.training.learner import Learner
    from tokengym.agents.training.sharding import gathered, local, named_parameters
    from tokengym.envs import Problem, ProblemList, TokenVectorEnv
    from tokengym.models import load_tokenizer
    from tokengym.rewards import Verdict

    torch.set_num_threads(1)

    class Letters(ProblemList):
        def grade(self, completion, problem):
            return Verdict(completion[:1] != "" and completion[:1] in "01234", "", completion[:1])

    class Killed(Exception):
        pass

    tokenizer = load_tokenizer("chars:0123456789+=-* ")
    letters = Letters([Problem(q, q + "=", q[-1], q[-1]) for q in ("1", "2", "12", "21", "11")])
    slots = lambda: TokenVectorEnv(letters, 4, tokenizer=tokenizer, prompt="{question}", max_prompt_tokens=4,
                                   max_new_tokens=3, autoreset_mode="Disabled")
    model, results, part = sys.argv[1], Path(sys.argv[2]), sys.argv[3]

    def make(kind, run, **settings):
        return AGENTS.get(kind)(slots(), model, validation_env=slots(), device="cpu", run=run, micro_batch_tokens=20,
                                validation_problems=5, **settings)

    updates, update = [], Learner.update

    def counted(self, *arguments, **named):
        learner = self

        def count(*_):
            held = [tensor for p in learner.parameters for tensor in (p, p.grad) if tensor is not None]
            held += [value for state in learner.optimizer.state.values() for value in state.values()]
            updates[-1].append(sum(local(tensor).nbytes for tensor in held))

        updates.append([])
        hook = learner.optimizer.register_step_post_hook(count)
        metrics = update(self, *arguments, **named)
        hook.remove()
        # Momentum would let Adam hide the scale of a gradient: the norm is compared as well.
        updates[-1] += [metrics["loss"], metrics["grad_norm"], metrics.get("value_loss", 0.0)]
        return metrics

    Learner.update = counted

    def result(name, agent):
        trained = {n: p.detach() for n, p in named_parameters(agent.model) if p.requires_grad}
        tensors = gathered(trained, agent.ranks.is_main)
        if hasattr(agent, "critic"):
            critic = gathered(dict(named_parameters(agent.critic)), agent.ranks.is_main)
            tensors |= {f"critic.{n}": p for n, p in critic.items()}
        found = torch.tensor([row for row in updates if len(row) == 4], dtype=torch.float64)
        sizes = agent.ranks.gather(int(found[:, 0].max()))
        if agent.ranks.is_main:
            tensors |= {"updates": found[:, 1:], "bytes": torch.tensor(sizes)}
            save_file({n: t.detach().contiguous() for n, t in tensors.items()}, results / f"{name}.safetensors")
        updates.clear()

    def learn(name, kind, **settings):
        agent = make(kind, results / name, learning_rate=1e-3, **settings)
        agent.learn()
        agent.predict(agent.env.reset()[0])
        result(name, agent)

    policy_gradient = {"iterations": 3, "problems_per_iteration": 4, "samples_per_problem": 4}
    ppo = policy_gradient | {"epochs": 2, "minibatch_size": 8, "kl_coef": 0.1, "critic_layers": 1, "keep_best": False}
    kinds = {
        "sft": ("sft", {"epochs": 2, "batch_size": 2}),
        "ei": ("ei", {"rounds": 2, "epochs": 2, "samples_per_problem": 11, "batch_size": 8, "demonstrations": 2,
                      "patience": 2}),
        "grpo": ("grpo", policy_gradient | {"kl_coef": 0.1, "epochs": 2, "reference_refresh": 2}),
        "reinforce": ("reinforce", policy_gradient | {"problems_per_iteration": 16}),
        "dpo": ("dpo", {"rounds": 1, "samples_per_problem": 60, "batch_size": 2, "epochs": 1, "temperature": 1.5}),
        "ppo-branch": ("ppo", ppo | {"critic": "branch"}),
        "ppo-head": ("ppo", ppo | {"critic": "head", "kl_coef": 0.0}),
        "ppo-model": ("ppo", ppo | {"critic": "model", "kl_coef": 0.0}),
    }
    for name, (kind, settings) in kinds.items():
        if part == "agents":
            learn(name, kind, **settings)
            if name in ("sft", "ei", "grpo", "ppo-branch"):
                learn(f"{name}-lora", kind, **settings, lora_rank=2)
            if name in ("sft", "ppo-branch"):
                learn(f"{name}-bfloat16", kind, **settings, dtype="bfloat16", gradient_checkpointing=name == "sft")
        elif part == "stop" and name in ("sft", "grpo", "ppo-branch"):
            extra = {"save_steps": 2} if name == "sft" else {"save_iterations": 1, "keep_best": name == "grpo"}
            bfloat16 = {"dtype": "bfloat16"} if name == "ppo-branch" else {}
            whole = make(kind, results / f"{name}-whole", **settings | extra, **bfloat16)
            whole.learn()
            result(f"{name}-whole", whole)
            logged = []

            def stop(agent, metrics):
                logged.append(metrics)
                if len(logged) == 3:
                    raise Killed

            real = Learner.update
            if name == "sft":
                def real_update(self, *arguments, **named):
                    stop(None, None)
                    return counted(self, *arguments, **named)
                Learner.update = real_update
            try:
                make(kind, results / f"{name}-stopped", **settings | extra, **bfloat16).learn(callback=stop)
            except Killed:
                updates.clear()
            else:
                raise SystemExit("it was not stopped")
            Learner.update = real
        elif part == "resume" and name in ("sft", "grpo", "ppo-branch"):
            extra = {"save_steps": 2} if name == "sft" else {"save_iterations": 1, "keep_best": name == "grpo"}
            bfloat16 = {"dtype": "bfloat16"} if name == "ppo-branch" else {}
            agent = make(kind, results / f"{name}-stopped", resume=True, **settings | extra, **bfloat16)
            agent.learn()
            result(f"{name}-resumed", agent)
"""


def launch(processes: int, tmp_path: Path, *arguments: Any) -> None:
    """Runs the script in some processes, sharded where there are several."""
    script = tmp_path / "agents.py"
    script.write_text(textwrap.dedent(AGENTS_LEARN))
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    # What `accelerate launch --use_fsdp --fsdp_version 2` comes down to on GPUs.
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(fsdp if processes > 1 else {})}
    command = [sys.executable, *(launcher if processes > 1 else []), script, *arguments]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, re.sub(r"(?s).*?(Traceback)", r"\1", done.stderr, count=1)


@pytest.mark.slow
def test_two_processes_with_shards_learn_what_one_learns_and_hold_half_of_it(folder: Path, tmp_path: Path) -> None:
    """Losses, norms of gradients, weights, critics and saved models, for whole weights and adapters; shown by `-s`."""
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        launch(processes, tmp_path, folder, tmp_path / str(processes), "agents")
    names = [path.stem for path in sorted((tmp_path / "1").glob("*.safetensors"))]
    assert len(names) == 14
    sys.stdout.write("\n| agent | updates | loss | gradient norm | weights | bytes of each process |\n")
    for name in names:
        one, two = (load_file(tmp_path / part / f"{name}.safetensors") for part in ("1", "2"))
        half = name.endswith("bfloat16")
        tolerances = {"atol": 1e-2, "rtol": 2e-2} if half else {"atol": 1e-4, "rtol": 1e-4}
        assert one.keys() == two.keys()
        assert len(one["updates"]) > 1
        for key, tensor in one.items():
            if key != "bytes":
                where = f"{name}, {key}"
                torch.testing.assert_close(two[key], tensor, **tolerances, msg=lambda m, where=where: f"{where}: {m}")
        whole = int(one["bytes"])
        far = {key: (two[key] - tensor).abs() for key, tensor in one.items() if key != "bytes"}
        loss, norm, _ = far.pop("updates").amax(0).tolist()
        weights, shares = max(float(tensor.max()) for tensor in far.values()), (two["bytes"] / whole).tolist()
        held = " and ".join(f"{share:.1%}" for share in shares)
        sys.stdout.write(f"| {name} | {len(one['updates'])} | {loss:.0e} | {norm:.0e} | {weights:.0e} | {held} |\n")
        assert 0.5 * whole <= max(two["bytes"].tolist()) <= 0.6 * whole, name
        models = [tmp_path / part / name / "model" for part in ("1", "2")]
        saved, again = (sorted(path.relative_to(model) for path in model.rglob("*")) for model in models)
        assert saved == again
        for path in (path for path in saved if path.suffix == ".safetensors"):
            theirs, ours = (load_file(model / path) for model in models)
            for key, tensor in theirs.items():
                torch.testing.assert_close(ours[key], tensor, **tolerances)


@pytest.mark.slow
@pytest.mark.parametrize("resumed_on", [1, 2])
def test_a_stopped_run_of_shards_resumes_bit_for_bit_and_on_another_number_of_processes(
    folder: Path, tmp_path: Path, resumed_on: int
) -> None:
    launch(2, tmp_path, folder, tmp_path, "stop")
    launch(resumed_on, tmp_path, folder, tmp_path, "resume")
    for name in ("sft", "grpo", "ppo-branch"):
        whole, resumed = (load_file(tmp_path / f"{name}-{part}.safetensors") for part in ("whole", "resumed"))
        rounds = len(resumed["updates"])
        assert 0 < rounds < len(whole["updates"]), name
        half = name == "ppo-branch"  # in bfloat16
        for key in whole.keys() - {"bytes"}:
            expected = whole[key][-rounds:] if key == "updates" else whole[key]
            if resumed_on == 2:
                assert torch.equal(resumed[key], expected), (name, key)
            else:
                torch.testing.assert_close(resumed[key], expected, atol=1e-2 if half else 1e-4, rtol=2e-2)
