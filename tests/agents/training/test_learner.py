"""The training loop: what may not change a gradient does not, and the loss falls on actions alone."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from tokengym.agents.configs.optimizer import FineTuneConfig, OptimizerConfig
from tokengym.agents.rollouts.collect import collect
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.agents.training import learner as learner_module
from tokengym.agents.training.learner import (
    PAPER_LEARNING_RATE,
    Example,
    Learner,
    NonFiniteError,
    batch_logprobs,
    collate,
    cosine,
)
from tokengym.agents.training.losses import masked_aggregate
from tokengym.models import load_tokenizer, packing
from tokengym.models.forward import micro_batches
from tokengym.models.packing import plan_rows

CPU = torch.device("cpu")
ACCELERATOR = Accelerator(cpu=True)
VOCABULARY = 17


def examples(count: int, eos: int = 15, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [
        Example(rng.integers(0, 15, rng.integers(1, 8)), np.append(rng.integers(0, 15, rng.integers(1, 9)), eos))
        for _ in range(count)
    ]


def groups(sizes: Sequence[int], seed: int = 0, longest: int = 8) -> list[Example]:
    """Several sequences after each prompt, in mixed order."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, 15, rng.integers(1, longest)) for _ in sizes]
    completions = [
        Example(prompt, np.append(rng.integers(0, 15, rng.integers(0, longest)), 15))
        for prompt, size in zip(prompts, sizes, strict=True)
        for _ in range(size)
    ]
    return [completions[i] for i in rng.permutation(len(completions))]


def alone(count: int) -> list[np.ndarray]:
    """Every sequence in a row of its own."""
    return list(np.arange(count)[:, None])


def nll(batch, logprobs, denominator):
    return masked_aggregate(-logprobs, batch.action_mask, denominator)


def actions_in(batch: Sequence[Example]) -> int:
    return sum(len(example.completion) for example in batch)


def gradient(model: PreTrainedModel, batch: Sequence[Example], micro_batch_tokens: int) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one update, caught where the learner clips it."""
    config = OptimizerConfig(learning_rate=0.0, max_grad_norm=math.inf, micro_batch_tokens=micro_batch_tokens)
    learner = Learner(model, config, 10, ACCELERATOR, VOCABULARY)
    caught = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: caught.append(torch.cat([p.grad.flatten() for p in learner.parameters]))
    )
    metrics = learner.update(batch, lambda micro, logprobs: nll(micro, logprobs, actions_in(batch)), seed=0)
    assert metrics["grad_norm"] == pytest.approx(caught[0].norm().item(), rel=1e-5)
    return metrics["loss"], caught[0]


def plain_loss(model: PreTrainedModel, batch: Sequence[Example]) -> torch.Tensor:
    """The same loss the long way: every sequence alone, no padding, all logits."""
    total = torch.zeros(())
    for example in batch:
        ids = torch.from_numpy(np.concatenate([example.prompt, example.completion]))
        logprobs = model(ids[None]).logits[0, :, :VOCABULARY].log_softmax(-1)
        at = torch.arange(len(example.prompt) - 1, len(ids) - 1)
        total = total - logprobs[at, ids[at + 1]].sum()
    return total / actions_in(batch)


# -------------------------------------------------------------------------------------------------- what is padded over


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 200))
def test_micro_batches_hold_every_sequence_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = micro_batches(lengths, budget)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[row] for row in group) <= budget
    # Sorted, so that no sequence is padded past the shortest of the group before.
    assert all(min(lengths[i] for i in a) >= max(lengths[i] for i in b) for a, b in pairwise(groups))


def test_collate_reads_before_each_token_of_the_completion_its_end_of_sequence_included() -> None:
    pair = [Example(np.array([3, 4, 5]), np.array([6, 15])), Example(np.array([7]), np.array([15]))]
    batch = collate(pair, [np.array([1]), np.array([0])], CPU)
    assert batch.rows.tolist() == [1, 0]
    assert batch.action_mask.tolist() == [[True, False], [True, True]]
    assert batch.actions[batch.action_mask].tolist() == [15, 6, 15]
    inputs = batch.inputs
    assert inputs.input_ids[inputs.is_token].tolist() == [7, 3, 4, 5, 6]  # nothing follows the last token
    assert inputs.arguments(torch.float32)["attention_mask"].tolist() == [[1, 0, 0, 0], [1, 1, 1, 1]]
    assert [index.tolist() for index in inputs.read] == [[0, 1, 1], [0, 2, 3]]
    after = collate(pair, [np.array([1]), np.array([0])], CPU, read_after=True)
    assert after.inputs.input_ids[after.inputs.is_token].tolist() == [7, 15, 3, 4, 5, 6, 15]
    assert after.inputs.input_ids[after.inputs.read].tolist() == [15, 6, 15]
    assert torch.equal(after.action_mask, batch.action_mask)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_loss_and_gradient_equal_those_of_every_sequence_alone(make_model, architecture: str) -> None:
    model, batch = make_model(architecture), examples(9)
    loss, grad = gradient(model, batch, 10_000)
    expected = plain_loss(model, batch)
    model.zero_grad()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    theirs = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.linalg.norm(grad - theirs) <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_cutting_a_batch_into_micro_batches_changes_nothing(make_model, architecture: str) -> None:
    model, batch = make_model(architecture), examples(8)
    prompts, lengths = [example.prompt for example in batch], [len(example.completion) for example in batch]
    loss, grad = gradient(model, batch, 10_000)
    seen = {1}
    for budget in (64, 40, 20, 1):
        count = len(plan_rows(prompts, lengths, budget, 32))
        seen.add(count)
        cut_loss, cut = gradient(model, batch, budget)
        assert cut_loss == pytest.approx(loss, rel=1e-6)
        assert torch.linalg.norm(cut - grad) <= 1e-6 * grad.norm(), count
    assert {1, 2, 8} <= seen, seen


def test_further_scalars_are_added_up_over_micro_batches_but_for_extremes(make_model) -> None:
    def loss(micro, logprobs):
        lengths = micro.action_mask.sum(1).float()
        further = {"tokens": lengths.sum(), "length_max": lengths.max(), "length_min": lengths.min()}
        return nll(micro, logprobs, 10), further

    batch = examples(8)
    lengths = [len(example.completion) for example in batch]
    for budget in (10_000, 20):
        learner = Learner(make_model(), OptimizerConfig(micro_batch_tokens=budget), 1, ACCELERATOR, VOCABULARY)
        metrics = learner.update(batch, loss, 0)
        found = [metrics[name] for name in ("tokens", "length_max", "length_min")]
        assert found == [sum(lengths), max(lengths), min(lengths)]


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_nan_wherever_there_is_no_action_leaves_loss_and_gradient_bit_equal(make_model, monkeypatch, shared) -> None:
    """NaN in the model's hidden states and in the log-probabilities, noise in the tokens: all masked, all harmless."""
    model, batch = make_model(), groups([3, 2], longest=20) if shared else examples(7)
    clean_loss, clean = gradient(model, batch, 10_000)

    mask = None

    def poisoned_collate(*args):
        nonlocal mask
        micro = collate(*args)
        mask = torch.zeros(micro.inputs.input_ids.shape, dtype=torch.bool)
        mask[micro.inputs.read] = True
        padding = ~micro.inputs.is_token
        assert padding.any()
        assert micro.inputs.shared == shared
        micro.inputs.input_ids[padding] = torch.randint(0, VOCABULARY, (int(padding.sum()),))
        return micro

    def poisoned_loss(micro, logprobs):
        logprobs = torch.where(micro.action_mask, logprobs, torch.nan)
        return nll(micro, logprobs, actions_in(batch))

    monkeypatch.setattr("tokengym.agents.training.learner.collate", poisoned_collate)
    # Before the first micro-batch, the model is tried with masks.
    hook = model.model.norm.register_forward_hook(
        lambda _m, _i, out: out if mask is None else torch.where(mask[..., None], out, torch.nan)
    )
    config = OptimizerConfig(learning_rate=0.0, max_grad_norm=math.inf)
    learner = Learner(model, config, 10, ACCELERATOR, VOCABULARY)
    caught = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: caught.append(torch.cat([p.grad.flatten() for p in learner.parameters]))
    )
    metrics = learner.update(batch, poisoned_loss, seed=0)
    hook.remove()
    assert metrics["loss"] == clean_loss
    assert torch.equal(caught[0], clean)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    longest=st.sampled_from([2, 8, 20]),
    budget=st.sampled_from([1, 30, 10_000]),
)
def test_sequences_that_share_a_prompt_give_the_loss_and_gradient_of_each_alone(
    make_model, architecture: str, attention: str, sizes: list[int], seed: int, longest: int, budget: int
) -> None:
    model, batch = make_model(architecture, attn_implementation=attention), groups(sizes, seed, longest)
    loss, grad = gradient(model, batch, budget)
    expected = plain_loss(model, batch)
    model.zero_grad()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    theirs = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.linalg.norm(grad - theirs) <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_is_evaluated_at_shared_prompts_is_what_each_sequence_has_alone(make_model, attention: str) -> None:
    model, batch = make_model(attn_implementation=attention), groups([5, 1, 3, 4])
    learner = Learner(model, OptimizerConfig(micro_batch_tokens=60), 1, ACCELERATOR, VOCABULARY)
    together = learner.logprobs(batch, 0.7)
    for example, values in zip(batch, together, strict=True):
        np.testing.assert_allclose(values, learner.logprobs([example], 0.7)[0], atol=1e-5)


def test_prompts_are_shared_where_that_saves_time_and_where_the_model_can(make_model, monkeypatch) -> None:
    seen = []
    real = packing.pack
    monkeypatch.setattr(
        learner_module, "pack", lambda rows, *args, **named: seen.append(rows) or real(rows, *args, **named)
    )
    prompt = np.arange(15)
    batch = [Example(prompt, np.array([i, 15])) for i in range(4)]

    def rows_of(model: PreTrainedModel) -> list[int]:
        seen.clear()
        Learner(model, OptimizerConfig(), 1, ACCELERATOR, VOCABULARY).logprobs(batch)
        return sorted(len(row) for rows in seen for row in rows)

    assert rows_of(make_model()) == [4]
    mistral = MistralConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                            num_attention_heads=4, num_key_value_heads=2, sliding_window=17)  # fmt: skip
    assert rows_of(MistralForCausalLM(mistral).eval()) == [4]
    mistral.sliding_window = 16  # a sequence of 17 tokens does not see all of itself
    assert rows_of(MistralForCausalLM(mistral).eval()) == [1, 1, 1, 1]


def test_masked_aggregate_selects_masked_values_away() -> None:
    values = torch.tensor([[1.0, math.nan, 3.0], [math.inf, 5.0, math.nan]], requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    loss = masked_aggregate(values, mask, 18)
    loss.backward()
    assert loss.item() == 0.5
    assert torch.equal(values.grad, mask / 18)


# ------------------------------------------------------------------------------------------------- log-probabilities


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_action_logprobs_equal_a_full_forward_pass_over_the_tokenizers_vocabulary(
    make_model, architecture: str, temperature: float
) -> None:
    model = make_model(architecture, vocab_size=24)  # padded, as many vocabularies are
    sequences = examples(6)
    batch = collate(sequences, alone(6), CPU)
    ours, _ = batch_logprobs(model, model, batch, VOCABULARY, temperature)
    for mine, mask, example in zip(ours, batch.action_mask, sequences, strict=True):
        ids = torch.from_numpy(np.concatenate([example.prompt, example.completion]))
        logits = model(input_ids=ids[None]).logits[0, :-1, :VOCABULARY]
        theirs = (logits / temperature).log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        torch.testing.assert_close(mine[mask], theirs[-len(example.completion) :], atol=1e-5, rtol=1e-5)
    assert (ours[~batch.action_mask] == 0).all()


def test_the_head_runs_on_action_positions_only_and_is_left_as_it_was(make_model) -> None:
    model, sizes = make_model(), []
    batch = collate(examples(5), alone(5), CPU)
    hook = model.lm_head.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape)))
    batch_logprobs(model, model, batch, VOCABULARY)
    batch_logprobs(model, model, batch, VOCABULARY)
    model(input_ids=batch.inputs.input_ids)
    hook.remove()
    once, a_row, actions = (1, 2, VOCABULARY), (1, VOCABULARY), (int(batch.action_mask.sum()), VOCABULARY)
    assert sizes == [once, a_row, actions, a_row, actions, (*batch.inputs.input_ids.shape, VOCABULARY)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("pad_is_eos", [False, True], ids=["pad", "pad=eos"])
def test_recorded_log_probabilities_equal_the_training_forward_pass(
    make_model, make_sums, architecture: str, temperature: float, pad_is_eos: bool
) -> None:
    """So the importance ratio is 1 on the first minibatch; GPT-2 has dropout, which the rollout switches off."""
    tokenizer = load_tokenizer("chars:0123456789+=-* ")
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    model = make_model(architecture).train()
    env = make_sums(5, tokenizer=tokenizer)
    policy = CausalLMPolicy(model, tokenizer).with_sampling(temperature=temperature)
    attempts = list(collect(policy, env, 23, seed=0))
    rows = [Example(attempt.prompt, attempt.completion) for attempt in attempts]
    assert any(row.completion[-1] == tokenizer.eos_token_id for row in rows)
    assert len({len(row) for row in rows}) > 1
    batch = collate(rows, alone(len(rows)), CPU)
    with torch.no_grad():
        training, _ = batch_logprobs(model, model, batch, VOCABULARY, temperature)
    for i, attempt in enumerate(attempts):
        np.testing.assert_allclose(training[i][batch.action_mask[i]].numpy(), attempt.logprobs, atol=1e-4)


# ---------------------------------------------------------------------------------------------- optimizer and schedule


@pytest.mark.parametrize("total", [1, 2, 10, 100])
def test_the_learning_rate_warms_up_and_falls_by_cosine_and_no_step_is_wasted(make_model, total: int) -> None:
    model, batch = make_model(), examples(2)
    config = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.05, min_learning_rate_ratio=0.01, max_grad_norm=1e-6)
    learner = Learner(model, config, total, ACCELERATOR, VOCABULARY)
    applied = []
    learner.optimizer.register_step_pre_hook(lambda optimizer, *_: applied.append(optimizer.param_groups[0]["lr"]))
    told = [learner.update(batch, lambda m, v: nll(m, v, 1e9), step)["learning_rate"] for step in range(total)]
    assert told == applied
    warmup = math.ceil(0.05 * total)
    for step, rate in enumerate(applied):
        if step < warmup:
            assert rate == pytest.approx((step + 1) / warmup)
        else:
            progress = (step - warmup) / (total - warmup)
            assert rate == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
    assert min(applied) >= 0.01


def test_a_schedule_begins_anew_with_a_length_of_its_own(make_model) -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.25, max_grad_norm=1e-6)
    learner = Learner(make_model(), config, 2, ACCELERATOR, VOCABULARY)

    def rates(count: int) -> list[float]:
        return [learner.update(examples(2), lambda m, v: nll(m, v, 1e9), i)["learning_rate"] for i in range(count)]

    first = rates(2)
    learner.begin_schedule(8)
    expected = Learner(make_model(), config, 8, ACCELERATOR, VOCABULARY)
    longer = rates(8)
    assert longer == [expected.learning_rate * cosine(i, 8, 0.25, config.min_learning_rate_ratio) for i in range(8)]
    assert longer[:2] != first
    assert learner.steps == 10


def test_the_rate_is_the_configured_one_even_zero_then_the_models_then_the_papers(make_model) -> None:
    def first_rate(model: PreTrainedModel, **config) -> float:
        learner = Learner(model, OptimizerConfig(**config), 1, ACCELERATOR, VOCABULARY)
        return learner.update(examples(1), lambda m, v: nll(m, v, 1), 0)["learning_rate"]

    assert first_rate(make_model()) == PAPER_LEARNING_RATE
    assert first_rate(make_model(recommended_learning_rate=1e-3)) == 1e-3
    assert first_rate(make_model(recommended_learning_rate=1e-3), learning_rate=1e-4) == 1e-4
    model = make_model(recommended_learning_rate=1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    assert first_rate(model, learning_rate=0.0) == 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_gradients_are_clipped_to_the_configured_norm(make_model) -> None:
    model, batch = make_model(), examples(3)
    learner = Learner(model, OptimizerConfig(learning_rate=0.0, max_grad_norm=0.5), 5, ACCELERATOR, VOCABULARY)
    norms = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.cat([p.grad.flatten() for p in learner.parameters]).norm().item())
    )
    told = learner.update(batch, lambda m, v: nll(m, v, 1), 0)["grad_norm"]
    assert told > 0.5
    assert norms == [pytest.approx(0.5, rel=1e-4)]


@pytest.mark.parametrize(
    ("loss", "broken"),
    [
        (lambda m, v: nll(m, v, 1) * torch.nan, "loss nan and grad_norm nan"),
        (lambda m, v: nll(m, v, 1) * torch.inf, "loss inf and grad_norm nan"),
        (lambda m, v: (0 * nll(m, v, 1)).sqrt(), "grad_norm nan"),  # whose slope at 0 is infinite
    ],
    ids=["nan", "inf", "gradient"],
)
def test_an_update_that_is_not_finite_is_named_and_not_made(make_model, loss, broken: str) -> None:
    model, batch = make_model(), examples(3)
    learner = Learner(model, OptimizerConfig(learning_rate=1e-2), 5, ACCELERATOR, VOCABULARY)
    learner.update(batch, lambda m, v: nll(m, v, 10), 0)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NonFiniteError, match=f"update 2 has {broken} and was not made"):
        learner.update(batch, loss, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert learner.steps == 1
    learner.update(batch, lambda m, v: nll(m, v, 10), 2)  # nothing of it is left
    assert all(p.isfinite().all() for p in model.parameters())


def test_an_update_that_is_not_accepted_is_not_made(make_model) -> None:
    model, seen = make_model(), []
    learner = Learner(model, OptimizerConfig(learning_rate=1e-2), 5, ACCELERATOR, VOCABULARY)
    before = [p.detach().clone() for p in model.parameters()]
    for accepted in (False, True):
        accept = lambda metrics, answer=accepted: seen.append(metrics) or answer  # noqa: E731
        metrics = learner.update(examples(3), lambda m, v: nll(m, v, 10), 0, 1.0, accept)
        assert seen.pop() == metrics
        same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert same != accepted
        assert learner.steps == int(accepted)


def test_padding_is_told_as_the_share_of_positions_without_a_token(make_model) -> None:
    batch = [Example(np.array([1]), np.array([2])), Example(np.array([1, 2, 3]), np.array([4, 5]))]
    learner = Learner(make_model(), OptimizerConfig(), 1, ACCELERATOR, VOCABULARY)
    assert learner.update(batch, lambda m, v: nll(m, v, 3), 0)["padding"] == pytest.approx(
        3 / 8
    )  # no last token is read


def test_lora_trains_the_adapters_and_nothing_else(make_model) -> None:
    model = get_peft_model(make_model(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learner = Learner(model, OptimizerConfig(learning_rate=1e-2), 4, ACCELERATOR, VOCABULARY)
    for step in range(3):
        learner.update(examples(4), lambda m, v: nll(m, v, 10), step)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name}


def test_bfloat16_autocast_gives_nearly_the_same_loss_in_float32_weights(make_model) -> None:
    model, batch = make_model(), examples(6)
    exact, _ = gradient(model, batch, 10_000)
    learner = Learner(model, OptimizerConfig(learning_rate=1e-3, bf16=True), 3, ACCELERATOR, VOCABULARY)
    metrics = learner.update(batch, lambda m, v: nll(m, v, actions_in(batch)), 0)
    assert metrics["loss"] == pytest.approx(exact, rel=0.02)
    assert metrics["loss"] != exact
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("checkpointing", "runs"), [(False, 1), (True, 2)])
def test_layers_run_again_in_the_backward_pass_if_memory_is_to_be_saved(make_model, checkpointing, runs) -> None:
    model, seen = make_model(), []
    learner = Learner(model, OptimizerConfig(gradient_checkpointing=checkpointing), 1, ACCELERATOR, VOCABULARY)
    learner.logprobs(examples(3))  # tries the model
    hook = model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: seen.append(1))
    learner.update(examples(3), lambda m, v: nll(m, v, 10), 0)
    hook.remove()
    assert len(seen) == runs


@pytest.mark.parametrize(("bf16", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_masks_of_shared_prompts_have_the_precision_of_attention(make_model, bf16: bool, dtype: torch.dtype) -> None:
    model, seen = make_model(), []
    learner = Learner(model, OptimizerConfig(bf16=bf16), 3, ACCELERATOR, VOCABULARY)
    batch = groups([3, 2], longest=20)
    learner.logprobs(batch)  # tries the model with masks
    hook = model.register_forward_pre_hook(lambda _m, _a, named: seen.append(named["attention_mask"]), with_kwargs=True)
    learner.update(batch, lambda m, v: nll(m, v, 10), 0)
    learner.logprobs(batch)
    hook.remove()
    assert {(mask.dim(), mask.dtype) for mask in seen} == {(4, dtype)}


def test_an_update_leaves_the_global_random_state_alone(make_model) -> None:
    learner = Learner(make_model("gpt2").train(), OptimizerConfig(), 2, ACCELERATOR, VOCABULARY)
    state = torch.get_rng_state()
    learner.update(examples(3), lambda m, v: nll(m, v, 10), 0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["epochs", "batch_size", "save_steps", "micro_batch_tokens"])
def test_a_bad_setting_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be at least 1, got 0"):
        FineTuneConfig(**{name: 0})


# ------------------------------------------------------------------------------------------------------- save and load


@pytest.mark.parametrize(
    ("before", "dtype", "rounding"),
    [
        (0, "float32", "exact"),
        (1, "float32", "exact"),
        (2, "float32", "exact"),
        (2, "bfloat16", "exact"),
        (2, "bfloat16", "stochastic"),
    ],
)
def test_saved_after_any_number_of_updates_a_learner_continues_bit_for_bit(
    make_model, tmp_path, before: int, dtype: str, rounding: str
) -> None:
    """Also with a parameter that never gets a gradient, which has no optimizer state to save."""

    def learner(seed: int) -> Learner:
        model = make_model(seed=seed)
        model.unused = torch.nn.Parameter(torch.full((3,), float(seed)))
        config = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, rounding=rounding)  # pyright: ignore
        return Learner(model.to(getattr(torch, dtype)), config, 4, ACCELERATOR, VOCABULARY)

    def train(it: Learner, steps: range) -> None:
        for step in steps:
            it.update(examples(4, seed=step), lambda m, v: nll(m, v, 10), step)

    straight, first, second = learner(0), learner(0), learner(1)
    train(second, range(1))  # its own state must not survive
    train(straight, range(4))
    train(first, range(before))
    first.save(tmp_path)
    second.load(tmp_path, before)
    train(second, range(before, 4))
    expected, found = straight.base.state_dict(), second.base.state_dict()
    assert found["unused"].tolist() == [0.0] * 3
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert len(second.optimizer.state) == len(straight.parameters) - 1


def test_a_learner_of_other_parameters_is_not_loaded(make_model, tmp_path) -> None:
    make = lambda **shape: Learner(make_model(**shape), OptimizerConfig(), 1, ACCELERATOR, VOCABULARY)  # noqa: E731
    make().save(tmp_path)
    for shape, told in (({"vocab_size": 18}, r"\(17, 32\) there and \(18, 32\)"), ({"num_hidden_layers": 3}, "none")):
        with pytest.raises(ValueError, match=rf"learner.safetensors was saved by a learner of other .* shape {told}"):
            make(**shape).load(tmp_path, 0)


# ---------------------------------------------------------------------------------------------------------- two ranks

TWO_RANKS = """
    import sys
    import numpy as np
    import torch
    from accelerate import Accelerator
    from safetensors.torch import save_file
    from tokengym.agents import ExpertIteration
    from tokengym.agents.configs.optimizer import OptimizerConfig
    from tokengym.agents.training.learner import Example, Learner
    from tokengym.agents.training.losses import masked_aggregate
    from tokengym.agents.training.masters import join
    from tokengym.envs import Problem, ProblemList, TokenVectorEnv
    from tokengym.models import load_tokenizer
    from tokengym.models.packing import plan_rows
    from tokengym.rewards import Verdict
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=17, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1)
    model = LlamaForCausalLM(shape)
    rng = np.random.default_rng(0)
    accelerator = Accelerator(cpu=True)
    config = OptimizerConfig(learning_rate=1e-2, micro_batch_tokens=24, max_grad_norm=1e9)
    learner = Learner(model, config, 10, accelerator, 17)
    counts, losses = [], []
    shared = 0
    for step, sizes in enumerate([[1] * 6, [1] * 5, [1], [1] * 7, [3, 2, 1], [4, 4]]):
        prompts = [rng.integers(0, 15, rng.integers(1, 8)) for _ in sizes]
        batch = [Example(prompt, rng.integers(0, 15, rng.integers(1, 9)))
                 for prompt, size in zip(prompts, sizes) for _ in range(size)]
        rows = plan_rows([e.prompt for e in batch], [len(e.completion) for e in batch], 24, 32)
        counts.append(len(rows))
        shared += sum(len(row) > 1 for part in rows for row in part)
        total = sum(len(e.completion) for e in batch)
        # Momentum would let Adam hide the scale of a gradient: the norm is compared as well.
        m = learner.update(batch, lambda b, v: masked_aggregate(-v, b.action_mask, total), step)
        losses.append([m["loss"], m["grad_norm"]])
    assert any(c % 2 for c in counts) and 1 in counts and shared > 2, (counts, shared)
    tensors = {n: p.detach().clone() for n, p in model.named_parameters()} | {"metrics": torch.tensor(losses)}

    # Weights in bfloat16, whose gradients are float32: their masters.
    model = LlamaForCausalLM(shape).bfloat16()
    low = Learner(model, config, 10, accelerator, 17)
    for step in range(3):
        total = sum(len(e.completion) for e in batch)
        low.update(batch, lambda b, v: masked_aggregate(-v, b.action_mask, total), step)
    for n, p in model.named_parameters():
        tensors["master." + n] = join(p, low.optimizer.state[p]["low"])

    # A whole agent: each rank samples a part of the attempts, one of them writes.
    class Letters(ProblemList):
        def grade(self, completion, problem):
            return Verdict(completion.startswith(problem.answer), "", completion[:1])

    tokenizer = load_tokenizer("chars:0123456789+=-* ")
    letters = Letters([Problem(q, q + "=", q[-1], q[-1]) for q in ("1", "2", "12", "21", "11")])
    slots = lambda: TokenVectorEnv(letters, 4, tokenizer=tokenizer, prompt="{question}", max_prompt_tokens=4,
                                   max_new_tokens=3, autoreset_mode="Disabled")
    agent = ExpertIteration(slots(), sys.argv[2], validation_env=slots(), device="cpu", rounds=2, epochs=3,
                            samples_per_problem=31, batch_size=8, micro_batch_tokens=20, learning_rate=3e-3,
                            demonstrations=2, patience=2, validation_problems=5, run=sys.argv[3])
    told = []
    agent.learn(callback=lambda _, metrics: told.append(
        [metrics.get(f"rollout/{n}", 0) for n in ("success_rate", "mean_length", "kept", "distinct")]
        + [metrics["train/examples"], metrics["train/loss"], metrics["train/grad_norm"]]))
    if accelerator.is_main_process:
        tensors |= {"agent." + n: p.detach().clone() for n, p in agent.model.named_parameters()}
        save_file(tensors | {"told": torch.tensor(told)}, sys.argv[1])
    accelerator.end_training()
"""


def test_two_ranks_give_the_parameters_of_one_also_with_unequal_numbers_of_micro_batches(
    folder, run_script, tmp_path
) -> None:
    for ranks in (1, 2):
        run_script(TWO_RANKS, tmp_path / f"{ranks}", folder, tmp_path / f"run-{ranks}", processes=ranks)
    assert (tmp_path / "run-2" / "round-1" / "attempts-1.jsonl").exists()  # there were two indeed
    one, two = load_file(tmp_path / "1"), load_file(tmp_path / "2")
    for name, tensor in one.items():
        # Adam turns the rounding of a vanishing gradient into a step of its own: over whole rounds less can be asked.
        atol = 2e-3 if name.startswith("agent.") else 1e-4 if name == "told" else 1e-5
        torch.testing.assert_close(two[name], tensor, atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert (one["told"][1:, 3] > 3).all()
