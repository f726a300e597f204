"""GSM8K with a LoRA adapter: supervised fine-tuning, then GRPO from there, then an evaluation by both.

    python examples/gsm8k_lora.py --model HuggingFaceTB/SmolLM2-135M-Instruct
    python examples/gsm8k_lora.py --model model.gguf --data folder/with/gsm8k
    python examples/gsm8k_lora.py --quick    # the built-in model on a few generated rows in GSM8K's format

The model comes from the Hugging Face hub or a file, the data from the hub or from `--data`, a folder that holds the
original `train.jsonl` and `test.jsonl`. Each stage has a run folder under `--runs`; the same command continues what was
stopped. Install adapters with `pip install "tokengym[lora]"`.
"""

import argparse
import json
from pathlib import Path

import gymnasium as gym

from tokengym.agents import GRPO, SFT, evaluate


def write_rows(folder: Path) -> Path:
    """A few problems in GSM8K's format, so that the example runs without network."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"question": f"Tom has {n} pens and buys 3 more. How many has he?", "answer": f"{n}+3={n + 3}\n#### {n + 3}"}
        for n in range(480)
    ]
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def main() -> None:
    """Trains and evaluates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--data", default=None)
    parser.add_argument("--runs", type=Path, default=Path("runs/gsm8k-lora"))
    arguments = parser.parse_args()
    quick = arguments.quick
    model = "tokengym/tiny" if quick else arguments.model
    data = write_rows(arguments.runs / "data") if quick else arguments.data
    env = gym.make("tokengym/GSM8K-v0", data=data and str(data), max_new_tokens=24 if quick else 300)
    common = {"lora_rank": 4 if quick else 32, "resume": "auto"}

    start = SFT(
        env, model, run=arguments.runs / "sft", epochs=1 if quick else 2, demonstrations=16 if quick else None,
        batch_size=16, validation_problems=4 if quick else 100, learning_rate=2e-4, **common,
    )  # fmt: skip
    start.learn(progress_bar=True)
    agent = GRPO(
        env, str(arguments.runs / "sft" / "model"), run=arguments.runs / "grpo", iterations=1 if quick else 100,
        problems_per_iteration=2 if quick else 32, samples_per_problem=2 if quick else 8,
        validation_problems=4 if quick else 100, learning_rate=1e-5, **common,
    )  # fmt: skip
    agent.learn(progress_bar=True)
    for name, trained in (("SFT", start), ("GRPO", agent)):
        result = evaluate(trained, trained.make_env(split="test"), problems=4 if quick else 1319, n=4)
        print(f"{name}: maj@1 {result.metrics['maj@1']}, maj@4 {result.metrics['maj@4']}")


if __name__ == "__main__":
    main()
