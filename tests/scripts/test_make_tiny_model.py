import hashlib
import importlib
import json
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokengym.envs.problems.arithmetic import Arithmetic
from tokengym.envs.problems.procedural import split_of
from tokengym.models import load, load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # processes that it starts import it, too
pt = importlib.import_module("make_tiny_model")

RIGHT = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


def is_true(step):
    return step.result == RIGHT[step.operation](step.a, step.b) and (step.operation != "/" or step.a % step.b == 0)


def test_steps_are_read_and_written_as_they_were():
    source = Arithmetic("train", steps=(1, 5), max_value=1000)
    for index in range(300):
        problem = source[index]
        steps = pt.read_steps(problem.solution)
        assert all(map(is_true, steps))
        assert str(steps[-1].result) == problem.answer
        assert pt.exact(problem.question, steps) == f"Q: {problem.question}\nA:\n{problem.solution}"


@given(st.integers(0, 2**62), st.integers(0, 2**32))
def test_an_error_is_one_and_is_followed_to_the_end(index, seed):
    steps = pt.read_steps(Arithmetic("train", steps=(1, 5))[index].solution)
    wrong = pt.with_error(steps, pt.random.Random(seed))
    assert 1 <= len(wrong) <= len(steps)
    assert wrong[-1].result != steps[-1].result
    assert sum(not is_true(step) for step in wrong) <= 1, "later steps compute rightly with the wrong number"
    if len(wrong) == len(steps):
        first = next(place for place, step in enumerate(wrong) if step != steps[place])
        assert wrong[:first] == steps[:first]
    else:
        assert wrong == steps[: len(wrong)], "stopped early"


def test_every_kind_of_error_occurs():
    source = Arithmetic("train")
    seen = Counter()
    for index in range(1000):
        steps = pt.read_steps(source[index].solution)
        wrong = pt.with_error(steps, pt.random.Random(index))
        if len(wrong) < len(steps):
            seen["stop"] += 1
            continue
        right, step = next(pair for pair in zip(steps, wrong, strict=True) if pair[0] != pair[1])
        seen["result" if not is_true(step) else "operation" if step.operation != right.operation else "number"] += 1
    for kind, share in pt.ERRORS.items():
        assert seen[kind] > 1000 * share / 3, seen


def test_the_mixture_and_the_share_of_errors():
    made = list(islice(pt.documents(0, 0), 6000))
    kinds = Counter(kind for kind, _ in made)
    for kind, share in pt.DOCUMENTS.items():
        assert kinds[kind] / len(made) == pytest.approx(share, abs=0.02)
    assert 0.05 <= pt.DOCUMENTS["exact"] <= 0.10

    solved = [text for kind, text in made if kind == "exact"]
    wrong = 0
    for text in solved:
        steps = pt.read_steps(text)
        # An error shows in an equation, or in a number that is not in the question, or not at all (another number).
        wrong += not all(map(is_true, steps))
    assert wrong / len(solved) == pytest.approx(pt.ERROR_RATE * pt.ERRORS["result"], abs=0.07)


def test_documents_are_those_that_the_committed_weights_have_read():
    """The digest is of the text that commit 8730f61 wrote, by which the weights were made."""
    text = "\0".join(text for _, text in islice(pt.documents(0, 0), 400))
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "24e7cb961a81e7aef0dcd7b7ec39914473c3ce4688337f5497713e0519ad69a4"
    )


def test_documents_depend_on_seed_and_shard_alone():
    first, again, shard, seed = (list(islice(pt.documents(*key), 200)) for key in ((0, 0), (0, 0), (0, 1), (1, 0)))
    assert first == again
    assert not set(first) & set(shard)
    assert not set(first) & set(seed)


def test_no_problem_of_validation_or_test_is_in_the_text(monkeypatch):
    drawn = []

    def draw(rng, stories, real=pt.draw_problem):
        drawn.append(real(rng, stories))
        return drawn[-1]

    monkeypatch.setattr(pt, "draw_problem", draw)
    text = "\n".join(text for _, text in islice(pt.documents(0, 0), 4000))
    contents = [" ".join(f"{s.a}{s.operation}{s.b}={s.result}" for s in steps) for _, steps in drawn]
    assert len(contents) > 2500
    assert {split_of(content) for content in contents} == {"train"}
    assert sum(question in text for question, _ in drawn) > 2500
    chains = {line.partition("=")[0] + "=" for line in text.split("\n")}
    for split in ("validation", "test"):
        for settings in ({}, {"steps": 1}):
            source = Arithmetic(split, **settings)
            assert not [index for index in range(1000) if source[index].question in text]
        source = Arithmetic(split, style="equation")
        assert not chains & {source[index].question for index in range(1000)}


def test_the_problems_are_not_those_that_environments_draw_by_default():
    text = "\n".join(text for _, text in islice(pt.documents(0, 0), 4000))
    source = Arithmetic("train")
    assert sum(source[index].question in text for index in range(1000)) <= 2


@given(st.lists(st.lists(st.integers(2, 900), min_size=1, max_size=pt.ROW + 5), max_size=40))
def test_packing_keeps_documents_whole(documents):
    encoded = [[*ids, 0] for ids in documents]
    rows = pt.pack(encoded, pad=1, open_rows=4)
    assert rows.dtype == np.uint16
    packed = []
    for row in rows.tolist():
        text = row[: row.index(1)] if 1 in row else row
        assert set(row[len(text) :]) <= {1}
        while text:
            end = text.index(0) + 1
            packed.append(tuple(text[:end]))
            text = text[end:]
    assert Counter(packed) == Counter(tuple(ids) for ids in encoded if len(ids) <= pt.ROW)


def test_the_learning_rate_rises_and_falls():
    rates = [pt.learning_rate(step, 1000) for step in range(1000)]
    peak = rates.index(max(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) == pt.LEARNING_RATE
    assert rates[-1] == pytest.approx(pt.LEARNING_RATE * pt.FINAL_RATE, rel=0.01)


def test_the_tokenizer_is_the_committed_one_for_its_text():
    texts = [text for kind, text in islice(pt.documents(0, pt.TOKENIZER_SHARD), 300) if kind != "noise"]
    trained, committed = pt.train_tokenizer(iter(texts)), load_tokenizer("tokengym/tiny")
    assert len(trained) <= len(committed) <= pt.VOCABULARY
    for text in texts[:50]:
        ids = trained(text)["input_ids"]
        assert trained.decode(ids) == text
        assert [trained.decode([token]) for token in ids].count("\n") == text.count("\n")
    assert committed.backend_tokenizer.pre_tokenizer.pre_tokenize_str(
        texts[0]
    ) == trained.backend_tokenizer.pre_tokenizer.pre_tokenize_str(texts[0])


def test_a_device_that_is_not_there_is_named_before_the_text_is_written(tmp_path):
    with pytest.raises(ValueError, match="the device 'gpu' cannot be used"):
        pt.main(["--steps", "1", "--device", "gpu", "--output", str(tmp_path)])


def test_an_output_that_cannot_be_is_named_before_the_text_is_written(tmp_path):
    (taken := tmp_path / "taken").touch()
    with pytest.raises(FileExistsError, match=str(taken)):
        pt.main(["--steps", "1", "--device", "cpu", "--output", str(taken)])


def test_a_short_run_writes_checkpoints_that_load(tmp_path, capsys):
    arguments = "--device cpu --steps 1 --batch-rows 2 --tokens 1000 --workers 1 --probes 1"
    pt.main([*arguments.split(), "--output", str(tmp_path)])
    assert "loss" in capsys.readouterr().out
    folder = tmp_path / "1-steps" / "1"
    model, tokenizer = load(folder, device="cpu")
    assert len(tokenizer) == len(model.lm_head.weight)
    report = json.loads((folder / "report.json").read_text())
    assert 2 < report["loss"] < 7
    assert set(report) == {"steps", "of", "loss", "greedy", "sampled", "marked"}
