"""GRPO in one file, on the environment alone: no agent, rollout engine or learner of the library.

    python examples/grpo_single_file.py            # ten minutes on one core: greedy accuracy 0.490 to 0.575
    python examples/grpo_single_file.py --quick    # a few seconds

Read it to see what `tokengym.agents.GRPO` does; a test compares one update of both. What is left out here and is there:
rows that are refilled when an attempt ends, packed batches that hold a group's prompt once, other losses, a KL penalty,
micro-batches by tokens, several processes, checkpoints, statistics.
"""

import argparse
import math
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import tokengym  # noqa: F401  # registers the environments
from tokengym.models import load, num_token_ids


@dataclass
class Attempts:
    """A attempts of at most L tokens each, prompt and completion, padded on the right.

    Attributes:
        tokens: `[A, L]` ids.
        is_token: `[A, L]` bool, false at padding.
        is_action: `[A, L]` bool, true at tokens of the completion.
        logprobs: `[A, L]` log-probabilities of the actions when they were sampled; 0 elsewhere.
        returns: `[A]` sum of an attempt's rewards.
        solved: `[A]` bool, true for correct attempts.
    """

    tokens: Tensor
    is_token: Tensor
    is_action: Tensor
    logprobs: Tensor
    returns: Tensor
    solved: Tensor


@torch.no_grad()
def sample(
    model: PreTrainedModel, vocab_size: int, env: gym.vector.VectorEnv, group: int, temperature: float
) -> Attempts:
    """Attempts in all slots of an environment, `group` neighbors at the same problem; temperature 0 is greedy."""
    slots = env.num_envs
    first = np.arange(slots) % group == 0
    _, info = env.reset(options={"reset_mask": first})  # the curriculum picks a problem for each group
    observation, info = env.reset(options={"problem_id": list(np.repeat(info["problem_id"][first], group))})

    # Prompts go to the left of a rectangle, so that the next token of every row is its last column's.
    prompts, width = info["prompt_length"], int(info["prompt_length"].max())
    column = np.arange(width) - (width - prompts)[:, None]
    inputs = torch.from_numpy(np.take_along_axis(observation["input_ids"], column.clip(0), axis=1))
    mask = torch.from_numpy(column >= 0).long()
    positions = torch.from_numpy(column.clip(0))

    logprobs = np.zeros(observation["input_ids"].shape, np.float32)
    returns, solved, running = np.zeros(slots), np.zeros(slots, bool), np.ones(slots, bool)
    lengths, cache = prompts.copy(), DynamicCache(config=model.config)
    while running.any():
        output = model(inputs, attention_mask=mask, position_ids=positions, past_key_values=cache)
        scores = (output.logits[:, -1, :vocab_size].float() / (temperature or 1)).log_softmax(-1)
        drawn = torch.multinomial(scores.exp(), 1) if temperature else scores.argmax(-1, keepdim=True)
        chosen = scores.gather(1, drawn)[:, 0].numpy()
        logprobs[running, lengths[running]] = chosen[running]
        observation, rewards, terminations, truncations, info = env.step(drawn[:, 0].numpy())
        returns += np.where(running, rewards, 0)
        lengths += running
        ended = running & (terminations | truncations)
        if ended.any():
            solved |= ended & info["is_success"]
        running &= ~ended
        inputs, mask = drawn, torch.cat((mask, torch.ones_like(drawn)), dim=1)
        positions = positions[:, -1:] + 1

    longest = int(lengths.max())
    places = torch.arange(longest)
    is_token = places < torch.from_numpy(lengths)[:, None]
    return Attempts(
        tokens=torch.from_numpy(observation["input_ids"][:, :longest].copy()),
        is_token=is_token,
        is_action=is_token & (places >= torch.from_numpy(prompts)[:, None]),
        logprobs=torch.from_numpy(logprobs[:, :longest]),
        returns=torch.from_numpy(returns),
        solved=torch.from_numpy(solved),
    )


def group_advantages(returns: Tensor, group: int) -> Tensor:
    """Returns `[A]` less their group's mean, over its standard deviation (Shao et al. 2024); 0 where all are equal."""
    grouped = returns.view(-1, group)
    centered = grouped - grouped.mean(1, keepdim=True)
    advantages = centered / (grouped.std(1, keepdim=True) + 1e-4)
    return torch.where(grouped.amax(1, keepdim=True) == grouped.amin(1, keepdim=True), 0.0, advantages).ravel()


def update(
    model: PreTrainedModel,
    vocab_size: int,
    optimizer: torch.optim.Optimizer,
    attempts: Attempts,
    group: int,
    *,
    temperature: float = 1.0,
    clip: float = 0.2,
    rows: int = 32,
) -> dict[str, float]:
    """One optimizer step on PPO's clipped loss, averaged over each attempt's tokens and then over attempts.

    Args:
        model: Policy to update in place.
        vocab_size: Vocabulary size of the tokenizer; logits beyond it are dropped.
        optimizer: Optimizer of the model's parameters.
        attempts: Attempts that `sample` returned.
        group: Number of attempts at each problem.
        temperature: Sampling temperature of the attempts.
        clip: PPO clipping range: the probability ratio is clipped to [1 - clip, 1 + clip].
        rows: Attempts in one forward pass; does not change the result.
    """
    advantages = group_advantages(attempts.returns, group).float()
    total = 0.0
    for part in advantages.nonzero()[:, 0].split(rows):  # the others have no gradient; the mean still counts them
        tokens, mask, actions = attempts.tokens[part], attempts.is_token[part], attempts.is_action[part, 1:]
        logits = model(tokens, attention_mask=mask.long()).logits[:, :-1, :vocab_size].float() / temperature
        logprobs = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        ratio = torch.where(actions, logprobs - attempts.logprobs[part, 1:], 0).exp()
        advantage = advantages[part, None]
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        loss = -(torch.where(actions, gain, 0).sum(1) / actions.sum(1)).sum() / len(advantages)
        loss.backward()
        total += loss.item()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": total, "grad_norm": norm}


def main() -> None:
    """Trains the built-in model on generated word problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--env", default="tokengym/Arithmetic-v0")
    parser.add_argument("--model", default="tokengym/tiny")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    arguments = parser.parse_args()
    iterations, problems, group, tested = (2, 4, 4, 16) if arguments.quick else (60, 16, 8, 200)

    torch.manual_seed(0)
    model, tokenizer = load(arguments.model)
    model.eval()  # dropout would make the updated policy another than the one that acted
    vocab_size = num_token_ids(tokenizer)

    def make(slots: int, split: str) -> gym.vector.VectorEnv:
        return gym.make_vec(
            arguments.env, slots, "vector_entry_point", tokenizer=tokenizer, split=split, autoreset_mode="Disabled"
        )

    env, test = make(problems * group, "train"), make(tested, "test")
    env.reset(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), arguments.learning_rate, weight_decay=0.0)

    def accuracy() -> float:
        test.reset(seed=1)
        return sample(model, vocab_size, test, 1, 0.0).solved.float().mean().item()

    print(f"before: greedy accuracy {accuracy():.3f} on {tested} test problems")
    for iteration in range(iterations):
        attempts = sample(model, vocab_size, env, group, 1.0)
        metrics = update(model, vocab_size, optimizer, attempts, group)
        if not math.isfinite(metrics["grad_norm"]):
            raise FloatingPointError(f"iteration {iteration}: {metrics}")
        solved, length = attempts.solved.float().mean(), attempts.is_action.sum(1).float().mean()
        print(f"{iteration + 1:3d}: solved {solved:.3f}, length {length:.1f}, grad norm {metrics['grad_norm']:.2f}")
    print(f"after:  greedy accuracy {accuracy():.3f}")


if __name__ == "__main__":
    main()
