"""Installs a wheel of this tree with the core alone, then with each extra alone, and uses what each is for.

    python scripts/try_extras.py                     # all of FEATURES
    python scripts/try_extras.py plots gguf --gguf model.gguf

Every environment is new and lies outside of the checkout. Without its extra a feature must end in one line with the
command that installs it; with the extra it must work. Of vLLM, which brings its own PyTorch, only the line is tried.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]

CORE = """
import sys
import gymnasium as gym
import tokengym
from tokengym.__main__ import main
from tokengym.rewards.grading import grade

env = gym.make("tokengym/Arithmetic-v0")
_, info = env.reset(seed=0)
env.step(env.action_space.sample())
assert grade("#### 1,234.0", "1234").correct
assert not grade("#### 5", "4").correct
assert main(["list"]) == 0
print(f"made Arithmetic-v0, whose first prompt has {info['prompt_length']} tokens; graded; listed")
"""

FEATURES = {
    "gguf": """
from pathlib import Path
from tokengym.models import load

path = Path(GGUF or "model.gguf")
if not GGUF:
    path.touch()  # the message is about the extra, not about the file
model, _ = load(path)
print(f"read {sum(p.numel() for p in model.parameters()):,} parameters of a GGUF file")
""",
    "hub": """
import gymnasium as gym
import tokengym
from tokengym.extras import need

need("hub", "a data set of the hub")
import datasets

datasets.Dataset.from_dict({"q": ["1 + 1?"], "a": ["2"]}).to_parquet("train.parquet")
env = gym.make("tokengym/Dataset-v0", data="train.parquet", question="q", answer="a")
print("read a Parquet file:", env.reset()[1]["problem_id"])
""",
    "lora": """
from tokengym.models import load

model, _ = load("tokengym/tiny", lora_rank=2)
print(f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} parameters of adapters")
""",
    "plots": """
from tokengym.benchmarks.after_pretraining.grid import ParityExperiment, run
from pathlib import Path

if __name__ == "__main__":
    sizes = dict(d=8, steps=2, save_steps=2, batch_size=8, width=16, iterations=1, attempts=16, group=4)
    run(ParityExperiment(Path("runs"), algorithms=("grpo",), test_problems=10, **sizes))
    print("drew", *(path.name for path in Path("runs").glob("*.png")))
""",
    "quantization": """
from pathlib import Path
import gymnasium as gym
import tokengym
from tokengym.agents import make_agent

agent = make_agent(
    "sft", gym.spec("tokengym/Arithmetic-v0"), "tokengym/tiny", run=Path("runs/sft"), device="cpu",
    optimizer="adamw_8bit", demonstrations=8, batch_size=8, epochs=1, validation_problems=4,
)
agent.learn()
print("trained with AdamW's moments in 8 bits")
""",
    "sb3": """
from tokengym.envs import SB3VecEnv
from stable_baselines3 import PPO
import gymnasium as gym

slots = gym.make_vec("tokengym/Arithmetic-v0", 4, "vector_entry_point", autoreset_mode="SameStep")
agent = PPO("MultiInputPolicy", SB3VecEnv(slots), n_steps=4, batch_size=16, n_epochs=1, device="cpu").learn(16)
print(f"Stable-Baselines3's PPO made {agent.num_timesteps} steps")
""",
    "vllm": """
import gymnasium as gym
import tokengym
from tokengym.agents import make_agent

make_agent("grpo", gym.spec("tokengym/Arithmetic-v0"), "tokengym/tiny", vllm_memory=0.1)
""",
}
"""What each extra is for, as a script that works with it alone."""


def main() -> None:
    """Installs and tries; exits with 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", default=list(FEATURES), help=f"of {', '.join(FEATURES)}; default all")
    parser.add_argument("--gguf", default="", help="GGUF checkpoint to read; without it only the message is tried")
    options = parser.parse_args()
    if unknown := [extra for extra in options.extras if extra not in FEATURES]:
        parser.error(f"no extra {', '.join(unknown)}: choose of {', '.join(FEATURES)}")
    if options.gguf and not Path(options.gguf).is_file():
        parser.error(f"there is no file {options.gguf}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = folder / "source"
        command = f"git -C {ROOT} archive HEAD | tar -x -C {sources}"  # what builds leave behind stays out
        sources.mkdir()
        subprocess.run(command, shell=True, check=True)  # noqa: S602
        subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, sources], check=True)
        (wheel,) = folder.glob("*.whl")
        core = folder / "core"
        subprocess.run([sys.executable, "-m", "venv", core], check=True)
        _install(core, str(wheel))
        fine = [_works("core", core, CORE, "")]
        for extra in options.extras:
            fine.append(_is_missing(extra, core))
            if extra == "vllm" or (extra == "gguf" and not options.gguf):
                continue
            own = folder / extra
            shutil.copytree(core, own, symlinks=True, copy_function=lambda a, b: Path(b).hardlink_to(a))
            _install(own, f"{wheel}[{extra}]")
            fine.append(_works(extra, own, FEATURES[extra], options.gguf))
            shutil.rmtree(own)
    sys.exit(not all(fine))


def _install(environment: Path, what: str) -> None:
    pip = [environment / "bin" / "python", "-m", "pip", "install", "-q", "--no-compile"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", what], check=True)


def _run(environment: Path, code: str, gguf: str) -> subprocess.CompletedProcess[str]:
    folder = environment.parent / "work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(f"GGUF = {gguf and str(Path(gguf).resolve())!r}\n{textwrap.dedent(code)}")
    command = [environment / "bin" / "python", script.name]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def _works(name: str, environment: Path, code: str, gguf: str) -> bool:
    done = _run(environment, code, gguf)
    last = (done.stdout if done.returncode == 0 else done.stderr).splitlines()[-1:]
    print(f"{name}: {'works' if done.returncode == 0 else 'FAILS'}: {''.join(last)}", flush=True)
    return done.returncode == 0


def _is_missing(extra: str, core: Path) -> bool:
    error = _run(core, FEATURES[extra], "").stderr.splitlines()[-1:]
    said = error[0].partition(": ")[2] if error else "nothing"
    right = said.endswith(f'pip install "tokengym[{extra}]"')
    print(f"without {extra}: {'says' if right else 'WRONG'}: {said}", flush=True)
    return right


if __name__ == "__main__":
    main()
