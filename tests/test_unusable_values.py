"""Values that a command cannot use: one line that names the setting and what it may be, before any work."""

import pytest
import torch

from tokengym.__main__ import main
from tokengym.agents import SFT
from tokengym.models import load
from tokengym.models.outcome import OutcomeModel

TOO_MANY = "at a time take more than 9313.23 GiB, and there are "


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train sft --device nope", "the device 'nope' cannot be used: Expected one of cpu"),
        ("eval --device nope", "the device 'nope' cannot be used: Expected one of cpu"),
        ("train sft --seed -1", "seed must be at least 0, got -1"),
        ("eval --seed -1", "seed must be at least 0, got -1"),
        ("render --seed -1", "seed must be at least 0, got -1"),
        ("eval --problems 0", "problems must be at least 1, got 0"),
        ("eval --temperature nan", "temperature must be at least 0 and finite, got nan"),
        ("train sft --weight-decay inf", "weight_decay must be at least 0 and finite, got inf"),
        ("train dpo --temperature nan", "temperature must be above 0 and finite, got nan"),
        ("train ei --threshold nan", "threshold must be a number, got nan"),
        ("train ei --num-envs 0", "num_envs must be at least 1, got 0"),
        ("extrapolate a b --threads 0", "threads must be between 1 and 256, got 0"),
        ("eval --output nowhere/results.json", "nowhere/results.json cannot be written: there is no folder nowhere"),
        ("render --output nowhere/page.html", "nowhere/page.html cannot be written: there is no folder nowhere"),
        ("render --count 0", "count must be at least 1, got 0"),
        ("train sft --demonstrations 100000000000", f"100,000,000,000 reference solutions {TOO_MANY}"),
        ("train pretrain --batch-size 100000000000", f"100,000,000,000 demonstrations {TOO_MANY}"),
        ("train backtranslation --proposals 100000000000", f"100,000,000,000 proposals {TOO_MANY}"),
        ("train grpo --samples-per-problem 1562500000", f"100,000,000,000 attempts {TOO_MANY}"),
        ("train orm --problems 1 --samples-per-problem 100000000000", f"100,000,000,000 attempts {TOO_MANY}"),
        ("eval --problems 1 --n 99999999999", f"100,000,000,000 attempts {TOO_MANY}"),
    ],
)
def test_commands_refuse_in_one_line(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"tokengym: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("threads", ["0", "100000"])
def test_threads_are_bounded(threads: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "sft", "--threads", threads]) == 1
    assert f"threads must be between 1 and 256, got {threads}" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path) -> None:
    message = r"the device 'cuda:1' cannot be used: \w+"
    with pytest.raises(ValueError, match=message):
        load("tokengym/tiny", device="cuda:1")
    with pytest.raises(ValueError, match=message):
        SFT("tokengym/Arithmetic-v0", device="cuda:1")
    model, tokenizer = load("tokengym/tiny", device="cpu")
    OutcomeModel.from_causal_lm(model, tokenizer, "orm").save(tmp_path)
    with pytest.raises(ValueError, match=message):
        OutcomeModel.load(tmp_path, device="cuda:1")
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        SFT("tokengym/Arithmetic-v0", seed=-1)
