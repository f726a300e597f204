"""Settings and models that do not fit."""

import pytest

from tokengym.__main__ import main
from tokengym.agents import SORM
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.envs import Problem
from tokengym.models import load
from tokengym.models.outcome import OutcomeModel
from tokengym.registry import UnknownNameError
from tokengym.rewards import Verdict


def test_settings_by_their_names_of_the_version_before(make_agent, caplog) -> None:
    agent = make_agent(SORM, continuations=3)
    assert agent.config.rollouts_per_step == 3
    assert "SORMConfig.continuations is called rollouts_per_step now" in caplog.text
    with pytest.raises(TypeError, match="rollouts_per_step and continuations, its old name: leave out continuations"):
        make_agent(SORM, continuations=3, rollouts_per_step=3)
    with pytest.raises(TypeError, match="unknown setting of ORMConfig 'continuations'"):
        make_agent(continuations=3)


def test_settings_that_cannot_be(make_agent) -> None:
    for name, wrong in {"problems": 0, "samples_per_problem": 0, "temperature": 0, "validation_problems": 0}.items():
        with pytest.raises(ValueError, match=f"{name} must be"):
            make_agent(**{name: wrong})
    with pytest.raises(ValueError, match="rollouts_per_step must be at least 1"):
        make_agent(SORM, rollouts_per_step=0)
    with pytest.raises(ValueError, match="set these"):
        make_agent().learn(total_episodes=100)
    with pytest.raises(ValueError, match="leave out lora_rank"):
        make_agent(lora_rank=2)


def test_labels_that_are_all_equal_teach_nothing(even, slots, make_agent) -> None:
    class Hopeless(even):
        def grade(self, completion: str, problem: Problem) -> Verdict:
            return Verdict(False, "wrong", None)

    for balance in (True, False):
        with pytest.raises(ValueError, match=r"nothing can be learned from \d+ labels, 0% of them positive"):
            make_agent(env=slots(Hopeless()), balance=balance).learn()


def test_models_that_do_not_fit_are_named_before_anything_is_written(
    make_agent, folder, policy_folder, tmp_path
) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'tokengym/tiny-orm'"):
        make_agent(base="tokengym/tiny-omr")
    with pytest.raises(ValueError, match=r"the tokenizers of base=.* differ"):
        make_agent(base=str(folder), run=tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="there is no outcome model 'nowhere'"):
        make_agent(SORM, compare="nowhere", run=tmp_path / "run")
    with pytest.raises(ValueError, match="is not an outcome model"):
        make_agent(SORM, compare=str(policy_folder), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_names_an_outcome_model_that_does_not_fit_in_one_line(
    folder, policy_folder, tmp_path, capsys
) -> None:
    model = CausalLMPolicy(*load(policy_folder, device="cpu"))
    OutcomeModel.from_causal_lm(model.model, model.tokenizer, "orm").save(tmp_path / "other")
    evaluate = ["eval", "--env-args", "prompt={question}", "style=equation", "--model", str(folder), "--device", "cpu"]
    for path, message in {
        tmp_path / "nowhere": "there is no outcome model",
        folder: "is not an outcome model",
        tmp_path / "other": "trained with another tokenizer",
    }.items():
        assert main([*evaluate, "--orm", str(path)]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
