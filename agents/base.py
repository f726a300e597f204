"""Base class of all agents: an environment, a language model, a frozen configuration, and `learn`."""

import dataclasses
import inspect
import json
import logging
import secrets
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast

import numpy as np
import torch
from accelerate import Accelerator
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from ..arrays import IntArray
from ..envs.curriculum import Sequential, Uniform
from ..envs.token_vector_env import TokenVectorEnv
from ..extras import need
from ..files import new_folder, read_object, write_json
from ..models.adapters import is_adapter, save_model, weights_fingerprint
from ..models.engine.half_copy import HalfCopy, half_copy
from ..models.engine.vllm_decoder import BaseVLLM
from ..models.loading import find_device, load, no_progress_bars
from ..models.quantized import EXTRA
from ..settings import check_kind
from .configs.arguments import configure, full_signature
from .configs.lora import ALL_LINEAR, LoRA
from .configs.optimizer import OptimizerConfig
from .presets import apply_preset
from .rollouts.attempts import Attempt, RolloutStatistics
from .rollouts.collect import collect_into
from .rollouts.continuations import label_prefixes
from .rollouts.policy import CausalLMPolicy, PolicyState
from .rollouts.slots import check_vllm, make_rollout_env, make_vllm, make_vllm_servers
from .rollouts.source import Environment, env_record, find_source, fingerprint
from .training.learner import Example, Learner
from .training.memory import Limits, Work, check_held, check_memory, free_memory
from .training.progress import progress
from .training.ranks import Ranks, find_main_process
from .training.run_folder import Resume, RunFolder, hyperparameters
from .training.sharding import Sharding, is_sharded, whole
from .training.tracking import Shown, Tracking, check_trackers, with_aliases

if TYPE_CHECKING:
    from torch import nn
    from tqdm import tqdm
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..envs.problems.base import ProblemSource

_logger = logging.getLogger(__name__)

DEFAULT_PROBLEMS = 256
"""Problems of an endless source that an agent learns from where its settings leave that open. [choice]"""

ConfigT = TypeVar("ConfigT")
"""Type of an agent's configuration."""
Callback = Callable[["Agent[Any]", dict[str, float]], bool | None]


class Agent(ABC, Generic[ConfigT]):
    """Learns a policy over a token environment.

    `Agent[PPOConfig]` is an agent whose settings are fields of `PPOConfig`; `inspect.signature` of an agent lists them.

    Args:
        env: Environment id, its spec, or a `gym.make` product: the agent makes its own slots from it, with the model's
            tokenizer. A `TokenVectorEnv` that was made without Gymnasium is used as it is; it needs `autoreset_mode`
            DISABLED and the model's tokenizer.
        model: Model to train, anything that `models.load` takes: "tokengym/tiny", a hub name, a folder or a GGUF file;
            by default the agent's `default_model`.
        validation_env: Environment to validate on; by default `env` with `split="validation"`.
        num_envs: Number of environment slots, which are the rows of the decoder's batch.
        seed: Seed of problems, attempts, the order of training and adapters.
        run: Folder for configuration, metrics, attempts, checkpoints and the trained model; `None` writes nothing.
        resume: Continue the run in that folder: `True` needs one there, "auto" starts it if there is none. Settings
            that change no result, and the run's length, may differ from before.
        device: Device such as "cpu" or "cuda:1"; by default what `accelerate` finds.
        dtype: Data type of the weights: "float32" or "bfloat16".
        attn: Attention implementation, such as "sdpa" or "eager"; by default the choice of transformers for the model.
        lora_rank: Rank of the low-rank adapters to train instead of the weights; `None` trains the weights.
        lora_alpha: Scale of the adapters times their rank; by default the rank itself, a scale of 1.
        lora_targets: Names of the layers that get adapters; "all-linear" is all linear ones but the output head.
        lora_rank_stabilized: Divide the scale by the square root of the rank instead of the rank (rsLoRA).
        load_in_4bit: Keep the weights under the adapters in 4 bits (QLoRA, Dettmers et al. 2023); products run in
            `dtype`. Needs the extra "quantization".
        compile_decoder: Sample by a step that `torch.compile` has compiled, except for policies that act under labels;
            it takes some minutes at first, and pays in long runs.
        cuda_graphs: Sample by steps that are recorded as CUDA graphs and replayed, except for policies that act under
            labels. Needs a GPU, and has not been run on one.
        vllm_memory: Share of the GPU's memory for vLLM, between 0 and 1, which then samples instead of the built-in
            decoder, except for policies that act under labels. Needs the extra "vllm".
        vllm_servers: Addresses of running vLLM servers, such as "http://10.0.0.2:8000", which then sample instead.
        vllm_folder: Folder in which weights are handed to vLLM servers, which see it by the same path; by default a
            temporary one, for servers on this machine.
        preset: Name of a published recipe whose settings become the defaults, see `presets`; fields in `config` win.
        log_with: Names of accelerate's experiment trackers, such as "wandb" and "trackio", that receive metrics and
            sample attempts; a run that is resumed continues in the same run of the tracker, if it allows that.
        log_project: Project of these trackers.
        config: Fields of `config_class`.

    Raises:
        TypeError: A configuration field is unknown, and the nearest is suggested; `env` is no environment; or the class
            has no `name` or `config_class`.
        ValueError: The tokenizers of environment and model differ, an attempt may be longer than the model's positions,
            the model's architecture would be sampled or trained wrong, or the run was launched with sharding that the
            agent cannot do.
        ConnectionError: A vLLM server cannot be reached.
        FileExistsError: The folder holds a run already and `resume` is false.
        FileNotFoundError: `resume` is true and the folder holds none.
        BlockingIOError: Another process writes to the folder.
        ImportError: The package of an extra, vLLM or bitsandbytes, or of a tracker is not installed.
    """

    name: ClassVar[str]
    config_class: ClassVar[type]
    default_model: ClassVar[str] = "tokengym/tiny"
    shardable: ClassVar[bool] = False
    """True if the agent's models can be sharded over processes (`accelerate launch --use_fsdp`)."""
    takes_4bit: ClassVar[bool] = False
    """True if the agent can train adapters on weights in 4 bits."""
    takes_lora: ClassVar[bool] = True
    """False if the agent trains weights as a whole, never adapters."""
    takes_vllm: ClassVar[bool] = True
    """False if the agent samples with the built-in decoder alone."""
    follows_curriculum: ClassVar[bool] = True
    """False if the agent takes problems in an order of its own, whatever the environment's curriculum is."""
    config: ConfigT

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "config_class" in vars(cls):
            cls.__signature__ = full_signature(cls.__init__, Agent.__init__, cls.config_class)

    def __init__(
        self,
        env: Environment,
        model: str | Path | None = None,
        *,
        validation_env: TokenVectorEnv | None = None,
        num_envs: int = 64,
        seed: int = 0,
        run: str | Path | None = None,
        resume: Resume = False,
        device: str | None = None,
        dtype: str = "float32",
        attn: str | None = None,
        lora_rank: int | None = None,
        lora_alpha: float | None = None,
        lora_targets: str | Sequence[str] = ALL_LINEAR,
        lora_rank_stabilized: bool = False,
        load_in_4bit: bool = False,
        compile_decoder: bool = False,
        cuda_graphs: bool = False,
        vllm_memory: float | None = None,
        vllm_servers: Sequence[str] = (),
        vllm_folder: str | Path | None = None,
        preset: str | None = None,
        log_with: str | Sequence[str] = (),
        log_project: str = "tokengym",
        **config: Any,
    ) -> None:
        _check_class(type(self))
        check_kind("seed", seed, int)
        check_kind("run", run, str | Path | None)
        check_kind("log_with", log_with, str | Sequence[str])
        config = apply_preset(preset, self.name, config) if preset else config
        self.config = configure(self.config_class, config, inspect.signature(type(self)).parameters)
        self.seed, self.num_envs = seed, num_envs
        self._source = find_source(env)
        self._validation_env = validation_env
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        if device is not None:
            find_device(device)
        check_vllm(vllm_memory, vllm_servers, vllm_folder)
        trackers: list[Any] = [log_with] if isinstance(log_with, str) else list(log_with)
        check_trackers(trackers)
        # Without `cpu` accelerate sees one process, whatever torchrun has started, where there is no accelerator.
        cpu = device == "cpu" or not torch.accelerator.is_available()
        find_main_process()
        self.accelerator = Accelerator(cpu=cpu, log_with=trackers or None, project_dir=run)
        self.ranks = Ranks(self.accelerator)
        self.sharding = Sharding.of(self.accelerator)
        """Sharding that the run was launched with, if any."""
        self._attn, self._in_4bit = attn, load_in_4bit
        self._compiled, self._graphs = compile_decoder, cuda_graphs
        if self.sharding is not None:
            self._check_sharding()
        if getattr(self.config, "optimizer", "") == "adamw_8bit":
            need(EXTRA, "an optimizer with moments in 8 bits")  # before anything is sampled
        model = self.default_model if model is None else model
        _check_model(model)
        if isinstance(self._source, EnvSpec) and self._source.kwargs.get("split") == "test":
            _logger.warning("this agent learns on the test split: its evaluation there says nothing about new problems")
        self.model_name = str(model)
        lora = LoRA(lora_rank, lora_alpha, lora_targets, lora_rank_stabilized)
        if load_in_4bit:
            self._check_4bit(lora)
        self.device = device or str(self.accelerator.device)
        # A model that is sharded comes to its devices in parts, when learning begins.
        self.model, self.tokenizer = self._load_model(model, "cpu" if self.sharding else self.device, dtype, lora)
        self._vllm: BaseVLLM | None = None
        self._half: tuple[PreTrainedModel, HalfCopy | None] | None = None
        self.env = self.make_env()
        if self.ranks.is_main and not (
            self.follows_curriculum or isinstance(self.env.curriculum, Uniform | Sequential)
        ):
            _logger.warning(
                "the agent %r takes problems in an order of its own, so the environment's curriculum, %s, does not "
                "count: leave it out, or choose an agent that samples in iterations, such as ppo or grpo",
                self.name, type(self.env.curriculum).__name__,
            )  # fmt: skip
        half: dict[str, Any] = {"dtype": "bfloat16"} if getattr(self.config, "bf16", False) else {}
        if vllm_memory is not None:
            self._vllm = make_vllm(self.policy, self.env, vllm_memory, **half)
        elif vllm_servers:
            self._vllm = make_vllm_servers(self.policy, self.env, vllm_servers, vllm_folder, **half)
        self.policy.check()
        self._check_memory()
        self._learned = False  # of agents that learn once
        self._defaulted: set[str] = set()  # settings whose default for endless sources was named
        self.num_attempts = 0
        """Attempts sampled for learning so far: the cost that all algorithms count."""
        self.num_tokens = 0
        """Tokens sampled for learning so far."""
        self.run_path = None if run is None else Path(run)
        self.run: RunFolder | None = None
        """The run's folder, on the main process."""
        loading = {"dtype": dtype, **lora.to_dict(), "load_in_4bit": load_in_4bit}
        if run is not None and self.ranks.is_main:
            contents = {"data": fingerprint(self.env.problems), "weights": weights_fingerprint(self.model)}
            if (validation := self._validation_problems()) is not None:
                contents["validation"] = fingerprint(validation)
            description = self._description() | contents
            self.run = RunFolder(run, description | loading, resume)
        self._samples: Sequence[Attempt] = ()
        self._tracking = self._track(log_project, self._description() | loading) if trackers else None
        self.ranks.wait()  # no other rank writes to the folder before it is a run's

    def _track(self, project: str, description: Mapping[str, Any]) -> Tracking:
        """The trackers' run, which is that of the run's folder, if there is one."""
        name = self.name if self.run_path is None else self.run_path.resolve().name
        key = secrets.token_hex(4) if self.run is None else self.run.key()
        return Tracking(self.accelerator, project, name, key, self.run_path, hyperparameters(description))

    def _load_model(
        self, model: str | Path, device: str, dtype: str, lora: "LoRA"
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """The model to train and its tokenizer; for agents that make models of their own."""
        return load(
            model, device=device, dtype=dtype, attn=self._attn, lora_seed=self.seed, load_in_4bit=self._in_4bit,
            **lora.to_dict(),
        )  # fmt: skip

    def _validation_problems(self) -> "ProblemSource | None":
        """The source that learning is validated on, if it is."""
        if self._validation_env is not None:
            return self._validation_env.problems
        if getattr(self.config, "validation_problems", 0) and isinstance(self._source, EnvSpec):
            return make_rollout_env(self._source, self.policy, 1, split="validation", reward="sparse").problems
        return None

    def _check_sharding(self) -> None:
        """Raises `ValueError` unless the agent's models can be sharded with its settings."""
        if not self.shardable:
            raise ValueError(f"the agent {self.name!r} cannot be sharded: launch it without --use_fsdp")
        if getattr(self.config, "bf16", False):
            raise ValueError('models in shards train in bfloat16 by dtype="bfloat16": leave out bf16')
        if getattr(self.config, "optimizer", "") == "adamw_8bit":
            raise ValueError('moments in 8 bits are not sharded: leave out optimizer="adamw_8bit"')
        if self._compiled:
            raise ValueError("models in shards are not sampled by compiled steps: leave out compile_decoder")
        if self._graphs:
            raise ValueError("models in shards are not sampled by CUDA graphs: leave out cuda_graphs")

    def _check_4bit(self, lora: LoRA) -> None:
        """Raises `ValueError` unless the agent can train on weights in 4 bits with its settings."""
        if not self.takes_4bit:
            raise ValueError(f"the agent {self.name!r} trains weights as a whole: leave out load_in_4bit")
        if lora.rank is None and not is_adapter(Path(self.model_name).expanduser()):
            raise ValueError("weights in 4 bits are frozen, and adapters on them are trained: give lora_rank, too")
        if self.sharding is not None:
            raise ValueError("weights in 4 bits are not sharded: leave out load_in_4bit, or launch without --use_fsdp")
        if getattr(self.config, "bf16", False):
            raise ValueError('weights in 4 bits compute in bfloat16 by dtype="bfloat16": leave out bf16')

    @classmethod
    def work(cls, config: Any, policy: "PreTrainedModel") -> Work:
        """Modules that an agent with a configuration holds in memory and runs, for a plan of it.

        Args:
            config: Configuration of the class `config_class`.
            policy: A model without weights.
        """
        return Work(policy, policy, lambda accelerator, vocab_size: Learner(policy, config, 1, accelerator, vocab_size))

    def _check_memory(self) -> None:
        """Chooses the size of micro-batches if that is left open.

        Raises:
            NotEnoughMemoryError: Learning from one sequence does not fit on the device.
        """
        if not isinstance(self.config, OptimizerConfig):
            return
        device, processes = self.accelerator.device if self.sharding else self.model.device, self.ranks.count
        limits = Limits(self.num_envs, self.env.max_prompt_tokens, self.env.max_new_tokens, processes)
        limits = limits._replace(sharded=self.sharding is not None)
        if self._vllm is not None:
            limits = limits._replace(vllm=0)  # it has taken its share already, or is elsewhere
        work = lambda policy: self.work(self.config, policy)  # noqa: E731
        fitting = check_memory(work, self.model, self.config, limits, device, free_memory(device, processes))
        self.config = dataclasses.replace(self.config, micro_batch_tokens=min(self.ranks.gather(fitting)))

    @property
    def policy(self) -> CausalLMPolicy:
        """The policy as it is now.

        Of a sharded model it is a whole copy, good until learning continues; all processes must ask for it together.
        """
        policy = CausalLMPolicy(whole(self.model), self.tokenizer, seed=self.seed)
        policy = policy.with_compiled(self._compiled).with_graphs(self._graphs)
        return policy.with_vllm(self._vllm).with_half(self._half_copy())

    def _half_copy(self) -> HalfCopy | None:
        """The copy that the policy decodes with, if training is in bfloat16 and the weights are not."""
        if self._half is None or self._half[0] is not self.model:
            wanted = getattr(self.config, "bf16", False)
            self._half = self.model, half_copy(self.model) if wanted else None
        return self._half[1]

    def modules(self) -> "list[nn.Module]":
        """Modules with weights that learning runs: the policy, and what an agent has besides."""
        return [self.model]

    def shard(self) -> None:
        """Shards the agent's modules if the run was launched with sharding; they stay as they are from then on."""
        if self.sharding is not None:
            for module in self.modules():
                self.sharding.shard(module)

    @abstractmethod
    def learn(
        self, total_episodes: int | None = None, callback: Callback | None = None, progress_bar: bool = False
    ) -> Self:
        """Trains the policy.

        Args:
            total_episodes: Number of attempts to sample at most; `None` leaves it to the configuration.
            callback: Function that is called with the agent and its newest metrics; returning False ends learning.
            progress_bar: Show a progress bar.
        """

    def check_learns_once(self) -> None:
        """Raises `ValueError` if this agent, which trains on one set of data from one model, has learned already."""
        if self._learned:
            raise ValueError(
                f"this {self.name} agent has learned already, and a second call of learn would train on the same data "
                "again: set epochs, or save the agent and make another one of that model"
            )

    def predict(
        self,
        observation: dict[str, NDArray[Any]],
        state: PolicyState | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[Any, PolicyState]:
        """Actions for observations, see `CausalLMPolicy.predict`."""
        return self.policy.predict(observation, state, episode_start, deterministic)

    def save(self, path: str | Path) -> None:
        """Writes the model, its tokenizer and the agent's configuration to a folder, all at once.

        Adapters are merged into float32 weights, and are in the folder `adapter` inside as well; `models.load` takes
        either. All processes must save a sharded model together; the main one writes.
        """
        with self._new_folder(Path(path)) as folder:
            if folder is not None:
                self._write(folder)

    @contextmanager
    def _new_folder(self, path: Path) -> Iterator[Path | None]:
        """A folder to save to; `None` on processes that only help to gather the weights of a sharded model."""
        self._gather()
        if is_sharded(self.model) and not self.ranks.is_main:
            yield None
            return
        with new_folder(path) as folder, no_progress_bars():
            yield folder

    def _gather(self) -> None:
        """Gathers what `_write` writes, where it is sharded."""
        whole(self.model)

    def keep_model(self) -> None:
        """Saves to `model` in the run's folder, if there is one; on every rank the model is there afterwards."""
        if self.run is not None or (self.run_path is not None and is_sharded(self.model)):
            self.save(cast(Path, self.run_path) / "model")
        if self.run is not None:
            self.run.finish()
        if self._tracking is not None:
            self._tracking.finish()
        self.ranks.wait()

    def _write(self, folder: Path) -> None:
        """Writes the files of `save`; agents with more to save extend it."""
        save_model(whole(self.model), folder)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / "agent.json", self._description())

    @classmethod
    def load(cls, path: str | Path, env: Environment | None = None, **settings: Any) -> Self:
        """The agent that `save` wrote, ready to predict or to learn on.

        Args:
            path: Folder that `save` wrote.
            env: Environment to use instead of the one that the agent was trained on.
            settings: Arguments that differ from the saved ones.

        Raises:
            FileNotFoundError: The folder holds no agent.
            DamagedFileError: Its `agent.json` cannot be read.
            ValueError: The folder holds an agent of another class.
        """
        record = Path(path) / "agent.json"
        if not record.exists():
            raise FileNotFoundError(f"{path} holds no saved agent: there is no agent.json in it")
        saved = read_object(record, "agent", "env", "num_envs", "seed", "config")
        if saved["agent"] != cls.name:
            raise ValueError(f"{path} holds the agent {saved['agent']!r}, not {cls.name!r}")
        if env is None:
            try:
                env = EnvSpec.from_json(saved["env"])
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} was trained on {saved['env']}, made by hand: give it as `env`") from error
        arguments = {"num_envs": saved["num_envs"], "seed": saved["seed"], **saved["config"], **settings}
        return cls(env, path, **arguments)

    def make_env(self, **settings: Any) -> TokenVectorEnv:
        """The agent's environment with `num_envs` slots, for instance with `split="validation"`.

        Raises:
            ValueError: Settings are given for an environment that was passed in ready made.
        """
        return make_rollout_env(self._source, self.policy, self.num_envs, **settings)

    def make_validation_env(self) -> TokenVectorEnv:
        """The environment that learning is validated on: by the grader alone, whatever rewards are paid in training."""
        return self._validation_env or self.make_env(split="validation", reward="sparse")

    def count_problems(self, limit: int | None, setting: str = "problems") -> int:
        """Number of problems to learn from: as many as there are, but no more than `limit`.

        Of an endless source without a limit they are `DEFAULT_PROBLEMS`, which is said once.

        Args:
            limit: Value of the setting that limits them.
            setting: Name of that setting.

        Raises:
            ValueError: Prompts exceed the environment's limit.
        """
        counts = [count for count in (limit, self.env.size) if count is not None]
        if not counts:
            counts = [DEFAULT_PROBLEMS]
            if self.ranks.is_main and setting not in self._defaulted:
                _logger.warning(
                    "this environment's problems never end: %s is %d, unless another number is given",
                    setting, DEFAULT_PROBLEMS,
                )  # fmt: skip
            self._defaulted.add(setting)
        self.env.check_prompts(min(counts))
        return min(counts)

    def collect_attempts(
        self,
        policy: CausalLMPolicy,
        env: TokenVectorEnv,
        problems: int,
        samples: int,
        *,
        seed: int,
        folder: Path | None,
        description: str = "sampling",
        progress_bar: bool = False,
    ) -> list[Attempt]:
        """Samples this rank's share of attempts at the first problems of an environment, all at a problem on one rank.

        Args:
            policy: Policy that draws the actions.
            env: Token environment with `autoreset_mode` DISABLED; its curriculum is restored afterwards.
            problems: Number of problems, the first of the environment.
            samples: K, attempts at each.
            seed: Seed of the attempts' random streams.
            folder: Folder that stores them in `attempts-<rank>.jsonl`; attempts that any process wrote there are not
                sampled again.
            description: Text of the progress bar.
            progress_bar: Show a progress bar.

        Raises:
            NotEnoughMemoryError: So many attempts can never be in memory together.
        """
        share = self.ranks.share(problems)
        check_held((share.stop - share.start) * samples, "attempts", "the number of problems, or of attempts at each")
        numbers = range(share.start * samples, share.stop * samples)
        curriculum, env.curriculum = env.curriculum, Sequential(repeats=samples)
        try:
            with self.progress(len(numbers), description, progress_bar) as bar:
                rank = self.ranks.index
                return list(collect_into(folder, policy, env, numbers, seed=seed, rank=rank, on_step=bar.update))
        finally:
            env.curriculum = curriculum

    def count_successes(
        self,
        policy: CausalLMPolicy,
        env: TokenVectorEnv,
        attempts: Sequence[Attempt],
        samples: int,
        *,
        seed: int,
        stem: Path | None,
        ends: Sequence[IntArray] | None = None,
        consistent: bool = False,
        description: str = "continuing prefixes",
        progress_bar: bool = False,
    ) -> tuple[list[IntArray], Counter[str]]:
        """Counts the successful ones among continuations of this rank's attempts, see `label_prefixes`.

        Args:
            policy: Policy that draws the continuations.
            env: Token environment of the attempts' problems, with `autoreset_mode` DISABLED.
            attempts: Attempts that have ended, all at a problem on one rank.
            samples: K, continuations of each prefix.
            seed: Seed of the continuations' random streams, which must differ from the seed of the attempts.
            stem: Path of the files `<stem>-<rank>.jsonl` with the counts; those written there are not sampled again.
            ends: Positions `[S]` of the last tokens of the steps of each attempt that are counted; `None` takes all.
            consistent: Count a continuation only if it builds on the results of the prefix.
            description: Text of the progress bar.
            progress_bar: Show a progress bar.

        Returns:
            Counts `[S]` for S steps of each attempt, and the "attempts" and "tokens" that continuations took on all
            ranks.
        """
        sampled = Counter(attempts=0, tokens=0)
        with self.progress(None, description, progress_bar) as bar:

            def on_step(count: int, tokens: int) -> None:
                sampled.update(attempts=samples * count, tokens=tokens)
                bar.update(count)

            counts = label_prefixes(
                policy,
                env,
                attempts,
                samples,
                seed=seed,
                ends=ends,
                consistent=consistent,
                stem=stem,
                rank=self.ranks.index,
                on_step=on_step,
            )
        return counts, sum(self.ranks.gather(sampled), Counter[str]())

    def demonstrations(self, count: int | None, progress_bar: bool = False) -> dict[str, Example]:
        """Reference solutions of the environment's first problems, by problem id.

        With `on_long_prompt="skip"` problems over the token limits are passed over for later ones, as far as there are.

        Args:
            count: Number of problems; `None` takes all that the environment's curriculum chooses from, see
                `count_problems`.
            progress_bar: Show a progress bar.

        Raises:
            NotEnoughMemoryError: So many solutions can never be in memory together.
            ValueError: A problem has no solution, or is over the environment's limits.
        """
        wanted = self.count_problems(count, "demonstrations")
        check_held(wanted, "reference solutions", "`demonstrations`")
        examples: dict[str, Example] = {}
        left_out = 0
        with self.progress(wanted, "reading solutions", progress_bar) as bar:
            for index in range(wanted if self.env.num_indices is None else self.env.num_indices):
                if len(examples) == wanted:
                    break
                problem = self.env.problems[index]
                prompt, solution = self.env.encode_prompt(problem), self.env.encode_solution(problem)
                if len(prompt) <= self.env.max_prompt_tokens and len(solution) <= self.env.max_new_tokens:
                    examples[problem.id] = Example(prompt, solution)
                    bar.update()
                elif self.env.on_long_prompt == "error":
                    raise ValueError(
                        f"problem {problem.id!r} has {len(prompt)} prompt and {len(solution)} solution tokens, over "
                        f"the limits of {self.env.max_prompt_tokens} and {self.env.max_new_tokens}: raise "
                        'max_prompt_tokens or max_new_tokens, or leave such problems out with on_long_prompt="skip"'
                    )
                else:
                    left_out += 1
        if left_out:
            _logger.warning("%d problems are over the token limits: their solutions are left out", left_out)
        return examples

    def count(self, statistics: RolloutStatistics, seconds: float) -> dict[str, float]:
        """Adds sampled attempts to the agent's totals, and keeps a few to show with what is logged next.

        Args:
            statistics: Statistics of the attempts of all ranks.
            seconds: Wall time of sampling in seconds.

        Returns:
            The metrics of the attempts.
        """
        self.num_attempts += statistics.attempts
        self.num_tokens += statistics.tokens
        self._samples = statistics.samples
        return statistics.metrics(seconds)

    def log(self, metrics: Mapping[str, float], callback: Callback | None, step: int | None = None) -> bool:
        """Records metrics, by default at the attempts sampled so far; returns whether learning continues.

        The callback is called on every process, and the main process's answer counts for all.
        """
        step = self.num_attempts if step is None else step
        attempts = [Shown.of(attempt, self.env.decode(attempt.completion)) for attempt in self._samples]
        self._samples = ()
        if self.run is not None:
            self.run.log(step, metrics, attempts)
        if self._tracking is not None:
            self._tracking.log(step, with_aliases(metrics), attempts)
        going_on = callback is None or callback(self, dict(metrics)) is not False
        return self.ranks.broadcast(going_on)

    def progress(self, total: int | None, description: str, shown: bool) -> "tqdm[Any]":
        """A progress bar on the main process, if one is wanted; lines where there is no terminal."""
        return progress(total, description, shown and self.ranks.is_main)

    def _description(self) -> dict[str, Any]:
        return {
            "agent": self.name,
            "model": self.model_name,
            "env": env_record(self._source),
            "num_envs": self.num_envs,
            "seed": self.seed,
            "config": dataclasses.asdict(cast(Any, self.config)),
        }


def _check_class(agent: type[Agent[Any]]) -> None:
    """Raises `TypeError` unless a class of agents says what all of them must."""
    needed = {
        "name": "the name that it is saved under",
        "config_class": "the dataclass of its settings, OptimizerConfig or a subclass",
    }
    for attribute, meaning in needed.items():
        if not hasattr(agent, attribute):
            raise TypeError(f"the agent class {agent.__name__} has no {attribute}: set it to {meaning}")


def _check_model(model: object) -> None:
    """Raises `TypeError` if a model was passed in instead of its name or folder."""
    if not isinstance(model, str | Path):
        raise TypeError(
            f"model is a name, a folder or a *.gguf file, not a {type(model).__name__}: save it and its "
            "tokenizer by save_pretrained(folder), and give the folder"
        )
