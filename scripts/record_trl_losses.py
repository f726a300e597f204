"""Records what TRL's trainers compute on small batches, losses and gradients, for the tests of our losses.

    python -m venv trl && trl/bin/pip install torch==2.13.0 trl==1.16.0 transformers==5.23.0 accelerate==1.15.0
    trl/bin/python scripts/record_trl_losses.py tests/agents/training/trl_losses.json

TRL's own losses, those of its trainers for GRPO, DPO and reward models, run on stand-ins for the trainers whose model
is a table of log-probabilities and entropies, or of rewards.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

try:
    import trl
    import torch  # isort: skip - TRL, which may be missing, is faster
    from accelerate import Accelerator
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.reward_trainer import RewardTrainer
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: run this in an environment with TRL, made as {__file__} says at its top") from None

LIMIT = 5
LENGTHS = (5, 3, 4, 1, 5, 2)
SAMPLED_CAP = 1.2

# Settings of ours, and what TRL calls them; ours leave out what is by default.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({}, {}),
    "clip_higher": ({"clip_high": 0.28}, {"epsilon_high": 0.28}),
    "dual_clip": ({"dual_clip": 1.4}, {"delta": 1.4}),
    "dapo": ({"aggregation": "tokens", "clip_high": 0.28}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dr_grpo": ({"aggregation": "constant"}, {"loss_type": "dr_grpo"}),
    "gspo": (
        {"ratio": "sequence", "clip": 0.1, "clip_high": 0.15},
        {"importance_sampling_level": "sequence", "epsilon": 0.1, "epsilon_high": 0.15},
    ),
    "cispo": (
        {"surrogate": "cispo", "aggregation": "tokens", "clip": 1.0, "clip_high": 1.0},
        {"loss_type": "cispo", "epsilon_high": 2.0},
    ),
    "kl": ({"kl_coef": 0.1}, {"beta": 0.1}),
    "entropy": ({"entropy_coef": 0.05}, {"entropy_coef": 0.05}),
    "importance": (
        {"importance": "token_truncate", "importance_cap": SAMPLED_CAP},
        {"vllm_importance_sampling_correction": True},
    ),
    "masked": ({"truncated": "mask"}, {}),
    "masked_tokens": ({"truncated": "mask", "aggregation": "tokens"}, {"loss_type": "dapo"}),
    "all": (
        {"clip_high": 0.28, "dual_clip": 1.4, "kl_coef": 0.1, "entropy_coef": 0.05, "aggregation": "tokens"},
        {"epsilon_high": 0.28, "delta": 1.4, "beta": 0.1, "entropy_coef": 0.05, "loss_type": "dapo"},
    ),
}

# The same of DPO, with the attempts of each pair: first all chosen ones, then the rejected ones. TRL averages the
# likelihood over the tokens of all pairs and ours over pairs, which is the same of one pair alone.
PAIRS = ((0, 1, 2), (3, 4, 5))
PREFERENCES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "dpo": ({"nll_coef": 0.0}, {"loss_types": ["sigmoid"], "loss_weights": [1.0]}, PAIRS),
    "ipo": ({"loss": "ipo", "nll_coef": 0.0}, {"loss_types": ["ipo"], "loss_weights": [1.0]}, PAIRS),
    "likelihood": ({"nll_coef": 0.7}, {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}, ((0,), (4,))),
}
BETA = 0.3
CENTER_COEFS = (0.0, 0.01)


def batch() -> dict[str, torch.Tensor]:
    """Log-probabilities by four policies, entropies and advantages; some attempts end with the limit."""
    generator = torch.Generator().manual_seed(0)
    shape = len(LENGTHS), LIMIT
    new = -torch.rand(shape, generator=generator, dtype=torch.float64) * 3
    near = lambda scale: new + scale * torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return {
        "new": new,
        "old": near(0.6),
        "sampled": near(0.5),
        "reference": near(0.6),
        "entropies": torch.rand(shape, generator=generator, dtype=torch.float64),
        "advantages": torch.randn(len(LENGTHS), generator=generator, dtype=torch.float64),
    }


def loss(values: dict[str, torch.Tensor], theirs: dict[str, Any], masked: bool) -> tuple[float, dict[str, Any]]:
    """TRL's loss, and its gradients to log-probabilities and entropies."""
    settings = {"epsilon": 0.2, "loss_type": "grpo", "importance_sampling_level": "token", "delta": None, "beta": 0.0}
    settings |= {"entropy_coef": 0.0, "vllm_importance_sampling_correction": False, **theirs}
    new, entropies = (values[name].clone().requires_grad_() for name in ("new", "entropies"))
    lengths = torch.tensor(LENGTHS)
    mask = (
        torch.arange(LIMIT) < torch.where(lengths == LIMIT, 0, lengths)[:, None]
        if masked
        else (torch.arange(LIMIT) < lengths[:, None])
    )
    correction = settings["vllm_importance_sampling_correction"]
    trainer = SimpleNamespace(
        args=SimpleNamespace(delta=settings["delta"], use_bias_correction_kl=False, steps_per_generation=1),
        accelerator=Accelerator(cpu=True), model=SimpleNamespace(training=True), max_completion_length=LIMIT,
        loss_type=settings["loss_type"], importance_sampling_level=settings["importance_sampling_level"],
        epsilon_low=settings["epsilon"], epsilon_high=settings.get("epsilon_high", settings["epsilon"]),
        beta=settings["beta"], entropy_coef=settings["entropy_coef"], use_adaptive_entropy=False,
        _entropy_bonus_enabled=settings["entropy_coef"] > 0, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        use_vllm=correction, vllm_importance_sampling_correction=correction, current_gradient_accumulation_steps=1,
        aux_loss_enabled=False, _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, entropies, None),
    )  # fmt: skip
    tokens = torch.zeros(mask.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": tokens[:, :1], "prompt_mask": torch.ones_like(tokens[:, :1]), "completion_ids": tokens,
        "completion_mask": mask.long(), "advantages": values["advantages"], "old_per_token_logps": values["old"],
        "ref_per_token_logps": values["reference"], "num_items_in_batch": mask.sum(),
        # What `_generate_and_score_completions` makes in the mode "token_truncate".
        "importance_sampling_ratio": ((values["old"] - values["sampled"]) * mask).exp().clamp(max=SAMPLED_CAP),
    }  # fmt: skip
    result = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    result.backward()
    gradients = {"new": new.grad, "entropies": entropies.grad}
    return result.item(), {name: None if grad is None else grad.tolist() for name, grad in gradients.items()}


def preference(
    values: dict[str, torch.Tensor], theirs: dict[str, Any], pairs: tuple[tuple[int, ...], tuple[int, ...]]
) -> tuple[float, list[list[float]]]:
    """TRL's loss of DPO, and its gradient to log-probabilities."""
    rows = [*pairs[0], *pairs[1]]
    mask = torch.arange(LIMIT) < torch.tensor(LENGTHS)[rows, None]
    new = values["new"][rows].clone().requires_grad_()

    def model(table: torch.Tensor) -> Any:
        nothing = torch.zeros(mask.shape)
        outputs = {"log_probs": table * mask, "entropy": nothing, "mean_logits": nothing, "is_top1": nothing.bool()}
        return lambda **_: SimpleNamespace(**outputs)

    trainer = SimpleNamespace(
        accelerator=Accelerator(cpu=True), model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        ref_model=model(values["reference"][rows]), args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=False, f_divergence_type="reverse_kl", beta=BETA,
        use_weighting=False, label_smoothing=0.0, _total_train_tokens=0, _tp_size=1,
        _metrics=defaultdict(lambda: defaultdict(list)), **theirs,
    )  # fmt: skip
    tokens = torch.zeros((len(rows), 1 + LIMIT), dtype=torch.long)
    completion_mask = torch.cat([torch.zeros((len(rows), 1), dtype=torch.long), mask.long()], 1)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "completion_mask": completion_mask}
    result = DPOTrainer._compute_loss(trainer, model(new), inputs, False)
    result.backward()
    assert new.grad is not None  # noqa: S101
    return result.item(), new.grad.tolist()


def reward(values: dict[str, torch.Tensor], center_coef: float) -> tuple[float, list[float]]:
    """TRL's loss of a reward model, and its gradient to rewards, those of the better ones first."""
    rewards = values["advantages"].clone().requires_grad_()
    trainer = SimpleNamespace(
        accelerator=Accelerator(cpu=True), model=SimpleNamespace(training=True), _total_train_tokens=0, _tp_size=1,
        args=SimpleNamespace(center_rewards_coefficient=center_coef), _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip
    inputs = {"attention_mask": torch.ones((len(LENGTHS), 1), dtype=torch.long)}
    result = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=rewards[:, None]), inputs)
    result.backward()
    assert rewards.grad is not None  # noqa: S101
    return result.item(), rewards.grad.tolist()


def main() -> None:
    """Writes the batch and each case's settings, loss and gradients."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path, help="JSON file to write")
    output = parser.parse_args().output
    if output.is_dir() or not output.parent.is_dir():
        parser.error(f"{output} cannot be written: give a file in a folder that is there")
    values = batch()
    cases = {}
    for name, (ours, theirs) in CASES.items():
        found, gradients = loss(values, theirs, ours.get("truncated") == "mask")
        cases[name] = {"settings": ours, "loss": found, "gradients": gradients}
    preferences = {}
    for name, (ours, theirs, pairs) in PREFERENCES.items():
        found, slopes = preference(values, theirs, pairs)
        preferences[name] = {"settings": {"beta": BETA, **ours}, "pairs": pairs, "loss": found, "gradient": slopes}
    rewards = []
    for center_coef in CENTER_COEFS:
        found, slopes = reward(values, center_coef)
        rewards.append({"center_coef": center_coef, "loss": found, "gradient": slopes})
    record = {
        "trl": trl.__version__,
        "lengths": LENGTHS,
        "limit": LIMIT,
        "batch": {name: tensor.tolist() for name, tensor in values.items()},
        "cases": cases,
        "preferences": preferences,
        "rewards": rewards,
    }
    output.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
