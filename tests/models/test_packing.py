"""Rows that share prompts: every sequence has the outputs it has alone, and rows are no wider than they should be."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForTokenClassification, MambaConfig

from tokengym.models import attention
from tokengym.models.packing import attention_window, pack, plan_rows, takes_shared_prompts

VOCABULARY = 23
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "initializer_range": 0.1,
}  # fmt: skip


def model(kind: str, attention: str = "sdpa", head: Any = AutoModelForCausalLM, **config: Any) -> Any:
    torch.manual_seed(0)
    shape = SHAPE | {"pad_token_id": 0, "num_labels": 1, "head_dim": 8, "num_key_value_heads": 2} | config
    return head.from_config(CONFIG_MAPPING[kind](**shape), attn_implementation=attention).eval()


def pairs(seed: int = 0) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Rows of three, one and two sequences; the second prompt is a single token."""
    rng = np.random.default_rng(seed)
    rows = []
    for length, count in ((6, 3), (1, 1), (4, 2)):
        prompt = rng.integers(0, VOCABULARY, length)
        rows.append([(prompt, rng.integers(0, VOCABULARY, rng.integers(1, 6))) for _ in range(count)])
    return rows


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "qwen3", "opt"])
def test_every_sequence_has_the_outputs_it_has_in_a_row_of_its_own(kind: str, attention: str) -> None:
    lm, rows = model(kind, attention), pairs()
    packed = pack(rows, torch.device("cpu"))
    assert packed.shared
    found = lm(**packed.arguments(torch.float32)).logits[packed.read]
    expected = []
    for prompt, completion in (pair for row in rows for pair in row):
        ids = torch.from_numpy(np.concatenate([prompt, completion]))
        expected.append(lm(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1])
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_later_columns_are_not_computed_and_outputs_and_gradients_are_those_of_the_whole_mask(
    kind: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eager attention takes the mask for all columns."""
    monkeypatch.setattr(attention, "_CHUNK", 16)
    rng = np.random.default_rng(0)
    rows = []
    for length, count in ((40, 3), (25, 4), (32, 1)):
        prompt = rng.integers(0, VOCABULARY, length)
        rows.append([(prompt, rng.integers(0, VOCABULARY, rng.integers(1, 20))) for _ in range(count)])
    packed = pack(rows, torch.device("cpu"))
    sizes: list[tuple[int, int, bool]] = []
    usual = torch.nn.functional.scaled_dot_product_attention

    def recorded(query: Any, key: Any, value: Any, attn_mask: Any = None, **named: Any) -> Any:
        sizes.append((query.shape[2], key.shape[2], attn_mask is None))
        return usual(query, key, value, attn_mask, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    found: list[list[torch.Tensor]] = []
    for implementation in ("sdpa", "eager"):
        lm = model(kind, implementation).train()
        for module in lm.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            lm.gradient_checkpointing_enable()
        logits = lm(**packed.arguments(torch.float32), use_cache=False).logits[packed.read]
        logits.log_softmax(-1).square().sum().backward()
        found.append([logits.detach(), *(weight.grad for weight in lm.parameters() if weight.grad is not None)])
    width = packed.input_ids.shape[1]
    steps = [*range(24, width, 16), width]
    once = [(24, 24, True), *((stop - start, stop, False) for start, stop in itertools.pairwise(steps))]
    assert sizes == once * (4 if checkpointing else 2)  # the last token of a prompt begins each sequence
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)


def test_outcome_models_are_read_after_each_token_and_the_prompts_last_one_is_shared() -> None:
    scorer, rows = model("llama", head=AutoModelForTokenClassification), pairs()
    packed = pack(rows, torch.device("cpu"), read_after=True)
    assert packed.is_token.sum() == sum(len(row[0][0]) + sum(len(pair[1]) for pair in row) for row in rows)
    found = scorer(**packed.arguments(torch.float32)).logits[packed.read]
    expected = []
    for prompt, completion in (pair for row in rows for pair in row):
        ids = torch.from_numpy(np.concatenate([prompt, completion]))
        expected.append(scorer(input_ids=ids[None]).logits[0, len(prompt) :])
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_neither_another_sequence_nor_padding_changes_a_bit(attention: str) -> None:
    lm, rows = model("llama", attention), pairs()
    before = pack(rows, torch.device("cpu"))
    after = pack(rows, torch.device("cpu"))
    other = (before.segments == 2) | ~before.is_token
    assert (~before.is_token).any()
    after.input_ids[other] = (after.input_ids[other] + 7) % VOCABULARY
    logits = [lm(**packed.arguments(torch.float32)).logits for packed in (before, after)]
    assert torch.equal(logits[0][~other], logits[1][~other])
    assert not torch.isclose(logits[0][other], logits[1][other]).all()


def test_a_prompt_of_one_token_and_a_completion_of_one_token() -> None:
    packed = pack([[(np.array([3]), np.array([4])), (np.array([3]), np.array([5, 6]))]], torch.device("cpu"))
    assert packed.input_ids.tolist() == [[3, 3, 5]]
    assert packed.position_ids.tolist() == [[0, 0, 1]]
    assert packed.segments.tolist() == [[1, 2, 2]]


groups = st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(1, 40), min_size=1, max_size=9)), min_size=1)


@given(groups, st.integers(1, 300), st.booleans())
def test_rows_hold_every_sequence_once_after_its_own_prompt_within_the_budget(sizes, budget: int, share: bool) -> None:
    prompts, lengths = [], []
    for number, (prompt, completions) in enumerate(sizes):
        prompts += [np.full(prompt, number)] * len(completions)
        lengths += completions
    planned = plan_rows(prompts, lengths, budget, 64, share=share)
    assert sorted(int(i) for rows in planned for row in rows for i in row) == list(range(len(prompts)))
    for rows in planned:
        widths = []
        for row in rows:
            assert len({prompts[i][0] for i in row}) == 1
            widths.append(len(prompts[row[0]]) + sum(lengths[i] for i in row))
            assert len(row) == 1 or (share and widths[-1] <= budget)
        assert len(rows) == 1 or len(rows) * max(widths) <= budget


def test_rows_get_wider_with_the_prompt_and_the_model_and_are_about_equal() -> None:
    def widths(prompt: int, hidden: int) -> list[int]:
        prompts, lengths = [np.zeros(prompt, np.int64)] * 64, [20, 10, 30, 20] * 16
        (rows,) = plan_rows(prompts, lengths, 10**6, hidden)
        return [sum(lengths[i] for i in row) for row in rows]

    assert len(widths(1, 8)) > len(widths(50, 8)) > len(widths(50, 256)) > len(widths(400, 256)) > 1
    assert max(widths(50, 256)) - min(widths(50, 256)) <= 30


def test_sharing_is_found_out_by_trying() -> None:
    plain = model("llama")
    assert takes_shared_prompts(plain)
    assert takes_shared_prompts(
        get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    )
    assert takes_shared_prompts(model("llama").bfloat16())
    dropping = model("gpt2").train()
    dropping.transformer.h[0].eval()
    assert takes_shared_prompts(dropping)
    assert dropping.training
    assert not dropping.transformer.h[0].training  # as it was
    assert not takes_shared_prompts(model("bloom", "eager"))  # ALiBi counts columns
    recurrent = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=1)
    assert not takes_shared_prompts(AutoModelForCausalLM.from_config(recurrent))


def test_the_window_of_the_attention() -> None:
    assert attention_window(model("llama")) == np.inf
    assert attention_window(model("mistral", sliding_window=7)) == 7
    assert attention_window(model("mistral", sliding_window=None)) == np.inf
    assert attention_window(model("qwen2", sliding_window=7)) == np.inf  # not in use there
    assert attention_window(model("gemma3_text", sliding_window=7)) == 7
    both = model("mistral", sliding_window=7)
    both.config.attention_chunk_size = 5
    assert attention_window(both) == 5
