"""Small random language models, the sums and the letters that they are tried on, and what runs leave behind."""

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging

import tokengym  # noqa: F401 - registers the environments
from tokengym.agents.on_policy import PolicyGradientAgent
from tokengym.agents.rollouts.attempts import Attempt, AttemptFile
from tokengym.agents.rollouts.collect import collect
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.envs.curriculum import Uniform
from tokengym.models import load_tokenizer
from tokengym.rewards import Verdict

logging.disable_progress_bar()

ARITHMETIC = "tokengym/Arithmetic-v0"
SUMS = {
    "style": "equation", "steps": 1, "max_value": 20, "operations": "+", "prompt": "{question}",
    "max_prompt_tokens": 16, "max_new_tokens": 4,
}  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return load_tokenizer("chars:0123456789+=-* ")


@pytest.fixture(scope="session")
def make_model(tokenizer: Any) -> Callable[..., PreTrainedModel]:
    """Small random models; GPT-2 comes with dropout 0.1, as it does from its authors."""

    def make(architecture: str = "llama", seed: int = 0, vocab_size: int = len(tokenizer), **config: Any):
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
        ids |= {"vocab_size": vocab_size, "initializer_range": 0.1}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if architecture == "gpt2":
                drop = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
                shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
                return GPT2LMHeadModel(GPT2Config(**(shape | drop | ids | config))).eval()
            shape = {
                "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "max_position_embeddings": 64,
            }  # fmt: skip
            return LlamaForCausalLM(LlamaConfig(**(shape | ids | config))).eval()

    return make


@pytest.fixture(scope="session", params=["llama"])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_model: Any, tokenizer: Any
) -> Path:
    """A model and its tokenizer, saved; ask for another architecture by indirect parametrisation."""
    path = tmp_path_factory.mktemp(request.param)
    make_model(request.param).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def make_sums(tokenizer: Any) -> Callable[..., TokenVectorEnv]:
    """One-digit and two-digit sums, as many slots as wanted."""

    def make(num_envs: int = 4, **settings: Any) -> TokenVectorEnv:
        settings = {"tokenizer": tokenizer, "autoreset_mode": "Disabled"} | SUMS | settings
        env = gym.make_vec(ARITHMETIC, num_envs, vectorization_mode="vector_entry_point", **settings)
        assert isinstance(env, TokenVectorEnv)
        return env

    return make


@pytest.fixture
def sums(folder: Path) -> gym.Env[Any, Any]:
    """The same sums as an agent takes them."""
    return gym.make(ARITHMETIC, tokenizer=str(folder), disable_env_checker=True, **SUMS)


class Letters(ProblemList):
    """Correct is whatever begins with the question's last letter, or with a question."""

    def __init__(self, split: str = "train") -> None:
        super().__init__([Problem(f"{split}-{q}", q + "?", q[-1]) for q in ("a", "b", "ab", "ba", "aab")], split)

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = completion.startswith((problem.answer, "?"))
        return Verdict(correct, "correct" if correct else "wrong", completion[:1] or None)


@pytest.fixture(scope="session")
def letters() -> type[ProblemList]:
    """Correct is whatever begins with the question's last letter, or with a question."""
    return Letters


@pytest.fixture(scope="session")
def letters_folders(make_model: Callable[..., PreTrainedModel], tmp_path_factory: Any) -> dict[str, Path]:
    """Models of letters by architecture; GPT-2 has dropout 0.1, and the pad token is an end of sequence too."""
    tokenizer = load_tokenizer("chars:ab?")
    folders = {}
    for architecture in ("gpt2", "llama"):
        folders[architecture] = path = tmp_path_factory.mktemp(f"letters-{architecture}")
        ids = {"eos_token_id": [tokenizer.eos_token_id, tokenizer.pad_token_id], "pad_token_id": tokenizer.pad_token_id}
        make_model(architecture, vocab_size=len(tokenizer), **ids).save_pretrained(path)
        tokenizer.save_pretrained(path)
    return folders


@pytest.fixture(scope="session")
def make_bandit() -> Callable[[str], type[ProblemList]]:
    """Makes a class of problems: one question, one right completion among all."""

    def make(right: str) -> type[ProblemList]:
        class Bandit(ProblemList):
            def __init__(self, split: str = "train") -> None:
                super().__init__([Problem("bandit", "?", right, right)], split)

            def grade(self, completion: str, problem: Problem) -> Verdict:
                return Verdict(completion == right, "correct" if completion == right else "wrong", completion)

        return Bandit

    return make


@pytest.fixture(scope="session")
def slots() -> Callable[..., TokenVectorEnv]:
    """Makes a token environment of problems in letters."""
    letters = load_tokenizer("chars:ab?")

    def slots(problems: ProblemList, num_envs: int = 16, **settings: Any) -> TokenVectorEnv:
        settings = {"autoreset_mode": "Disabled", "max_new_tokens": 4, "copy": False} | settings
        return TokenVectorEnv(
            problems, num_envs, tokenizer=letters, prompt="{question}", max_prompt_tokens=8,
            eos_token_ids=[letters.pad_token_id], **settings,
        )  # fmt: skip

    return slots


@pytest.fixture(scope="session")
def attempts_of():
    """Samples the attempts of one iteration."""

    def attempts_of(agent: PolicyGradientAgent[Any], seed: int = 0) -> list[Attempt]:
        config = agent.config
        agent.env.curriculum = Uniform(repeats=config.samples_per_problem)
        policy = agent.policy.with_sampling(**asdict(agent.sampling))
        count, kept = config.problems_per_iteration * config.samples_per_problem, agent.sampling.truncates
        return list(collect(policy, agent.env, count, seed=seed, record_kept=kept))

    return attempts_of


@pytest.fixture(scope="session")
def weights() -> Callable[..., dict[str, torch.Tensor]]:
    """Copies the weights of a model, or of that of an agent or an outcome model."""

    def weights(learned: Any) -> dict[str, torch.Tensor]:
        module = learned if isinstance(learned, torch.nn.Module) else learned.model
        return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    return weights


@pytest.fixture
def kill_at_attempt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Runs something, which is killed when it writes an attempt of a given number, from 1."""

    class Killed(BaseException):
        pass

    def kill(number: int, run: Callable[[], object]) -> None:
        write, calls = AttemptFile.write, []

        def dying(self: AttemptFile, attempt: Attempt) -> None:
            calls.append(1)
            if len(calls) == number:
                raise Killed
            write(self, attempt)

        with monkeypatch.context() as patch:
            patch.setattr(AttemptFile, "write", dying)
            with pytest.raises(Killed):
                run()

    return kill


@pytest.fixture(scope="session")
def launcher() -> Iterator[Callable[..., list[int]]]:
    """Sends requests to `launcher.py`, which is started at the first one."""
    started: list[subprocess.Popen[str]] = []

    def launch(**request: Any) -> list[int]:
        if not started:
            command = [sys.executable, Path(__file__).with_name("launcher.py")]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            started.append(
                subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
        sent, answers = started[0].stdin, started[0].stdout
        assert sent is not None
        assert answers is not None
        print(json.dumps(request), file=sent, flush=True)
        return json.loads(answers.readline())

    yield launch
    for process in started:
        process.communicate()


@pytest.fixture
def run_script(launcher: Callable[..., list[int]], tmp_path: Path) -> Callable[..., None]:
    """Runs a script with arguments, in one process or in several that learn together; it ends with the given code."""

    def run_script(script: str, *arguments: object, processes: int = 1, code: int = 0) -> None:
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(script))
        outputs = [tmp_path / f"output-{rank}.txt" for rank in range(processes)]
        codes = launcher(script=str(path), arguments=[*map(str, arguments)], outputs=[*map(str, outputs)])
        said = [re.sub(r"(?s).*(Traceback)", r"\1", output.read_text()) for output in outputs]
        assert codes == [code] * processes, "\n".join(said)

    return run_script


@pytest.fixture(scope="session")
def same() -> Callable[..., bool]:
    """Compares tensors by name, bit for bit; the second mapping may hold more."""

    def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(tensor, b[name]) for name, tensor in a.items())

    return same


@pytest.fixture(scope="session")
def metrics_of() -> Callable[..., list[dict[str, float]]]:
    """Reads the metrics that a run logged, without times unless they are wanted."""

    def metrics_of(run: Path, times: bool = False) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [
            {name: value for name, value in line.items() if times or not name.startswith("time/")} for line in lines
        ]

    return metrics_of
