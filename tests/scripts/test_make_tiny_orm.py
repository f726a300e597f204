"""The text of the built-in outcome model, and the model itself."""

import importlib
import random
import re
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tokengym.__main__ import main
from tokengym.envs.problems.arithmetic import NAMES, Arithmetic
from tokengym.models import OutcomeModel, load_tokenizer
from tokengym.models.outcome import is_outcome_model
from tokengym.models.tokenizers import TINY_ORM
from tokengym.registry import UnknownNameError

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
script = importlib.import_module("make_tiny_orm")
tiny = importlib.import_module("make_tiny_model")
steps_of = tiny.read_steps

TOKENIZER = load_tokenizer(TINY := "tokengym/tiny")
NEWLINE = TOKENIZER("\n")["input_ids"][0]
SOURCE = Arithmetic("train")


def documents(count: int) -> list:
    """Documents at as many problems of `SOURCE`, in order."""
    rng = random.Random(0)
    return [script.judged(SOURCE[i].question, steps_of(SOURCE[i].solution), rng, TOKENIZER) for i in range(count)]


def test_labels_are_those_of_the_grader_and_of_the_reference(monkeypatch) -> None:
    monkeypatch.setattr(script, "COMMUTED", 0.0)
    monkeypatch.setattr(script, "RENAMED", 0.0)
    seen = set()
    for i, document in enumerate(documents(300)):
        assert len(document.tokens) == len(document.labels) == len(document.right)
        problem, text = SOURCE[i], TOKENIZER.decode(document.tokens, skip_special_tokens=True)
        prompt = f"Q: {problem.question}\nA:\n"
        assert text.startswith(prompt)
        completion = text[len(prompt) :]
        assert document.labels[-1] == SOURCE.grade(completion, problem).correct
        judged = [place for place, label in enumerate(document.labels) if label >= 0]
        start = len(TOKENIZER(prompt)["input_ids"])
        ends = [place for place, token in enumerate(document.tokens) if token == NEWLINE and place >= start]
        assert judged == [*ends, len(document.tokens) - 1]
        labels = [document.labels[place] for place in ends]
        written, reference = completion.split("\n"), problem.solution.split("\n")
        assert labels == [written[: k + 1] == reference[: k + 1] for k in range(len(ends))]
        if document.labels[-1]:
            assert all(labels)
        if all(document.right):
            assert document.labels[-1] == 1
        assert all(document.right[:start])
        seen.add((all(labels), document.labels[-1]))
    assert seen == {(True, 1), (True, 0), (False, 0)}, "right, wrong, and right steps that stop too early"


def test_mistakes_are_those_of_small_models() -> None:
    rng, kinds = random.Random(0), Counter[str]()
    for i in range(400):
        reference = steps_of(SOURCE[i].solution)
        wrong = script.with_mistake(reference, rng)
        assert wrong[-1].result != reference[-1].result
        good = script.first_mistake(wrong, reference)
        if len(wrong) < len(reference):
            kinds["left out"] += 1
            continue
        step, right = wrong[good], reference[good]
        holds = tiny.COMPUTE[step.operation](step.a, step.b) == step.result
        same = (step.a, step.operation, step.b) == (right.a, right.operation, right.b)
        kinds["result" if same and not holds else "term or operation"] += 1
        assert holds or same
        for later in wrong[good + 1 :]:
            assert later.result == tiny.COMPUTE[later.operation](later.a, later.b)
    assert {kind: round(count / 400, 1) for kind, count in kinds.items()} == {
        "result": 0.6, "term or operation": 0.3, "left out": 0.1
    }  # fmt: skip


def test_a_slip_changes_one_digit_or_their_number() -> None:
    rng = random.Random(0)
    found = {script.slip(84, rng) for _ in range(2000)}
    assert {4, 8, 14, 94, 80, 89} < found
    assert all(len(str(number)) != 2 or "8" in str(number) or "4" in str(number) for number in found)
    assert max(found) > 99


def test_names_of_solutions_are_drawn_anew() -> None:
    names = {name for name, *_ in NAMES}
    text = "Ada gives Bob 3 pens. Adam has 2."
    found = {script.renamed(text, random.Random(seed)) for seed in range(50)}
    assert len(found) == 50
    for other in found:
        assert re.sub("|".join(sorted(names, key=len, reverse=True)), "N", other) == "N gives N 3 pens. N has 2."


def test_terms_of_sums_and_products_change_places() -> None:
    step = steps_of(SOURCE[0].solution)[0]
    rng = random.Random(1)
    for operation, orders in (("+", 2), ("*", 2), ("-", 1), ("/", 1)):
        one = script.replace(step, a=8, operation=operation, b=2)
        assert len({(new.a, new.b) for new in (script.commuted(one, rng) for _ in range(200))}) == orders


def test_the_command_writes_an_outcome_model(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(script, "DOCUMENTS", 4)
    monkeypatch.setattr(script, "ROWS", 2)
    script.main(["--output", str(tmp_path), "--steps", "2"])
    assert capsys.readouterr().out.count("judged") == 2
    judge = OutcomeModel.load(tmp_path, TOKENIZER, "cpu")
    assert judge.kind == "orm"
    committed = OutcomeModel.load(TINY_ORM, TOKENIZER, "cpu")
    assert judge.model.config.recommended_learning_rate == committed.model.config.recommended_learning_rate == 1e-4
    assert 0 < judge.score([np.array([5, 6, 7])], [np.array([2])])[0][0] < 1


def test_no_steps_are_refused(tmp_path, capsys) -> None:
    for module, arguments in ((script, ["--steps", "0"]), (tiny, ["--steps", "4", "0"]), (tiny, ["--minutes", "-1"])):
        with pytest.raises(SystemExit):
            module.main(["--output", str(tmp_path / "none"), *arguments])
        assert f"must be above 0, got {arguments[-1]}" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_documents_depend_on_the_seed_alone() -> None:
    first, again, other = (list(islice(script.documents(seed, TOKENIZER), 3)) for seed in (0, 0, 1))
    assert first == again != other


def test_the_built_in_outcome_model_tells_right_solutions_from_wrong_ones() -> None:
    judge = OutcomeModel.load(TINY_ORM, TOKENIZER, "cpu")
    assert is_outcome_model(TINY_ORM)
    assert judge.model.dtype == torch.float32  # whatever its file is in
    source, rng = Arithmetic("test"), random.Random(0)
    sequences = []
    for i in range(40):
        problem = source[i]
        steps = steps_of(problem.solution)
        for chosen in (steps, tiny.with_error(steps, rng)):
            text = script.EXACT.format(
                q=problem.question,
                s="\n".join(f"{s.before}{script.EQUATIONS['annotated'](s)}{s.after}" for s in chosen),
                n=chosen[-1].result,
            )
            sequences.append(np.array([*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id]))
    scores = np.ravel(judge.score(sequences, [np.array([len(one) - 1]) for one in sequences]))
    assert np.mean(scores[::2] > scores[1::2]) > 0.8


def test_it_has_a_name_for_commands_and_others_have_none(capsys) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'tokengym/tiny-orm'"):
        OutcomeModel.load("tokengym/tiny-omr")
    arguments = ["eval", "--problems", "2", "--n", "2", "--num-envs", "4", "--device", "cpu"]
    assert main([*arguments, "--orm", TINY_ORM, "--reranker", "outcome_likelihood", "--scorer", TINY]) == 0
    assert "weighted_maj@2" in capsys.readouterr().out


def test_an_output_that_cannot_be_is_named_before_training(tmp_path) -> None:
    (taken := tmp_path / "taken").touch()
    with pytest.raises(FileExistsError, match=str(taken)):
        script.main(["--steps", "1", "--output", str(taken)])
