"""`tokengym extrapolate`: which alpha is chosen, and what is saved loads and evaluates."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tokengym.__main__ import main
from tokengym.agents import load_policy
from tokengym.agents.evaluation.evaluate import Evaluation, Interval
from tokengym.agents.expo import best_alpha
from tokengym.models import extrapolate, load

EASY = [
    "--env-args", "style=equation", "steps=1", "max_value=20", "prompt={question}", "max_prompt_tokens=16",
    "max_new_tokens=4",
]  # fmt: skip


def evaluation(accuracy: float) -> Evaluation:
    known: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(Evaluation)}
    return Evaluation(**{**known, "metrics": {"maj@1": Interval(accuracy, 0.0, 1.0)}})


@pytest.mark.parametrize(
    ("results", "best"),
    [
        ({0.0: 0.3, 0.5: 0.5, 2.5: 0.4}, 0.5),
        ({2.5: 0.5, 0.5: 0.5, 0.0: 0.3}, 0.5),
        ({1.0: 0.5, 0.0: 0.5, -0.5: 0.5}, 0.0),
    ],
)
def test_the_best_on_validation_is_chosen_and_of_equal_ones_the_nearest(results: dict, best: float) -> None:
    assert best_alpha({alpha: evaluation(accuracy) for alpha, accuracy in results.items()}) == best


@pytest.fixture(scope="module")
def stronger(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = load(folder, device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    path = tmp_path_factory.mktemp("stronger") / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


def test_what_is_saved_is_the_best_model_and_loads_and_evaluates(
    folder: Path, stronger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "expo"
    arguments = ["extrapolate", str(folder), str(stronger), "--device", "cpu"]
    compared = ["--alpha", "0.5", "1", "--num-envs", "4", "--problems", "3", *EASY]
    assert main([*arguments, *compared, "--folder", str(out)]) == 0
    shown = capsys.readouterr().out
    record = json.loads((out / "extrapolation.json").read_text())
    assert set(record["validation"]) == {"0.5", "1"}
    assert all(result["problems"] == 3 for result in record["validation"].values())
    assert f"the model at alpha {record['alpha']:g} is in" in shown
    expected = weights(extrapolate(load(folder)[0], load(stronger)[0], record["alpha"]))
    assert all(torch.equal(p, expected[name]) for name, p in weights(load_policy(out).model).items())
    assert main(["eval", "--model", str(out), "--n", "0", "--problems", "2", "--device", "cpu", *EASY]) == 0

    assert main([*arguments, "--alpha", "2", "--folder", str(out)]) == 1
    assert "is there already: give another by --folder" in capsys.readouterr().err
    assert main([*arguments, "--alpha", "2", "--folder", str(tmp_path / "single")]) == 0
    assert "validation" not in json.loads((tmp_path / "single" / "extrapolation.json").read_text())
    assert main(["extrapolate", "tokengym/tiny", str(stronger), "--folder", str(tmp_path / "x")]) == 1
    assert "the tokenizers of 'tokengym/tiny' and" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
