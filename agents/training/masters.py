"""AdamW for weights of any precision.

A step of 1e-6 is far smaller than the distance between neighboring bfloat16 numbers, which is 0.4 to 0.8 % of a number:
weights that are rounded to nearest after every step would stay where they are. Two ways around that are built here.

- Float32 master weights, exact: a weight in bfloat16 is the upper half of its master, rounded, and the optimizer keeps
  the lower half. That costs 2 bytes per weight, as much as a Kahan sum, and equals training a float32 copy. Rounding
  is dithered: each weight has a point of its own, between its two neighbors, from which on it goes up. So small steps
  move their share of the weights at once, and the policy that acts keeps up with its masters. Rounded to nearest, all
  weights of a size would stay behind together, until their masters have gone half of the distance.
- Stochastic rounding: up or down at random, such that the mean is right (arXiv 2010.06192). It keeps nothing.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from ...extras import need
from ...models.quantized import EXTRA
from .sharding import as_shard, keep_gradients, local, rows

ROUNDINGS = ("exact", "stochastic")
LEAST_IN_8BIT = 4096
"""Least numbers of a weight whose moments are kept in 8 bits where that is asked for, as in bitsandbytes."""

_MOMENTS, _BLOCK = ("exp_avg", "exp_avg_sq"), 256


class MasterAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) whose moments and steps are float32 for weights in bfloat16, too.

    Weights in shards are stepped in the shards that a process has; their state is sharded as they are.

    Bytes per weight in bfloat16, with its gradient and both moments: 16 ("exact"), the gradient in float32, or 12
    ("stochastic"), the gradient in bfloat16. Float32 weights take 16 and are stepped as `torch.optim.AdamW` does.

    Args:
        parameters: Weights in float32 or bfloat16, or groups of them as `torch.optim` takes them.
        lr: Learning rate.
        betas: Decay rates of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        rounding: Rounding of weights in bfloat16 after each step: "exact" or "stochastic", see above.
        in_8bit: Keep the moments of weights with 4096 numbers or more in 8 bits, in blocks of 256 with a scale each
            (Dettmers et al. 2022, arXiv 2110.02861), as bitsandbytes does; that saves 6 bytes per weight.

    Raises:
        ImportError: The package bitsandbytes, which `in_8bit` needs, is not installed.
        ValueError: There is no such rounding, weights have another precision, or moments in 8 bits would be sharded.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        rounding: Literal["exact", "stochastic"] = "exact",
        in_8bit: bool = False,
    ) -> None:
        if in_8bit:
            need(EXTRA, "an optimizer with moments in 8 bits")
        if rounding not in ROUNDINGS:
            raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
        self.rounding, self.in_8bit = rounding, in_8bit
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        for parameter in self._parameters():
            if parameter.dtype not in (torch.float32, torch.bfloat16):
                raise ValueError(
                    f"weights in {parameter.dtype} cannot be trained, their gradients would underflow: load the model "
                    'with dtype="bfloat16" or "float32", or train adapters of it (lora_rank)'
                )
            # Shares of micro-batches are added up in this precision.
            dtype = torch.float32 if rounding == "exact" else parameter.dtype
            if in_8bit and isinstance(parameter, DTensor):
                raise ValueError('moments in 8 bits are not sharded: leave out optimizer="adamw_8bit"')
            if isinstance(parameter, DTensor):
                keep_gradients(parameter, dtype)
            else:
                parameter.grad_dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Moves all weights that have a gradient; returns what `closure`, which may compute it anew, returns."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        generators: dict[torch.device, torch.Generator] = {}
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in moved:
                if not self.state[parameter]:
                    self.state[parameter] = self._new_state(parameter)
            whole = [parameter for parameter in moved if parameter.dtype == torch.float32]
            self._adamw(whole, [parameter.grad for parameter in whole], whole, group)
            for parameter in moved:
                if parameter.dtype == torch.float32:
                    continue
                state = self.state[parameter]
                weight, first = local(parameter), rows(parameter).start or 0
                master = join(weight, local(state["low"]), first) if self.rounding == "exact" else weight.float()
                self._adamw([master], [parameter.grad.float()], [parameter], group)
                if self.rounding == "exact":
                    high, low = split(master, first)
                    local(state["low"]).copy_(low)
                else:
                    generator = generators.setdefault(parameter.device, torch.Generator(parameter.device))
                    if generator.initial_seed() != (seed := int(state["step"])):  # so that a resumed run draws the same
                        generator.manual_seed(seed)
                    high = stochastically_rounded(master, generator)
                weight.copy_(high)
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores `state_dict`; unlike its base class it leaves every tensor in its own precision."""
        super().load_state_dict(dict(state_dict))
        for number, parameter in enumerate(self._parameters()):
            for name, value in state_dict["state"].get(number, {}).items():
                self.state[parameter][name] = value.to(parameter.device).clone()

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = {"step": torch.zeros((), device=parameter.device)}
        small = self.in_8bit and parameter.numel() >= LEAST_IN_8BIT
        dtype = torch.uint8 if small else torch.float32
        state |= {name: torch.zeros_like(parameter, dtype=dtype) for name in _MOMENTS}
        if small:
            blocks = -(-parameter.numel() // _BLOCK)
            state |= {f"{name}_scale": torch.zeros(blocks, device=parameter.device) for name in _MOMENTS}
        if self.rounding == "exact" and parameter.dtype == torch.bfloat16:
            own, first = local(parameter), rows(parameter).start or 0
            state["low"] = as_shard(-_dither(own.shape, own.device, first), parameter)
        return state

    def _adamw(
        self, weights: Sequence[Tensor], gradients: Sequence[Any], owners: Sequence[Tensor], group: Mapping[str, Any]
    ) -> None:
        """Moves float32 `weights`, whose moments are kept for `owners`."""
        if self.in_8bit:
            weights, gradients, owners = self._adamw_8bit(weights, gradients, owners, group)
        if not weights:
            return
        states = [self.state[owner] for owner in owners]
        beta1, beta2 = group["betas"]
        adamw(
            [local(weight) for weight in weights],
            [local(gradient) for gradient in gradients],
            [local(state["exp_avg"]) for state in states],
            [local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _adamw_8bit(
        self, weights: Sequence[Tensor], gradients: Sequence[Any], owners: Sequence[Tensor], group: Mapping[str, Any]
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Moves the weights whose moments are in 8 bits; returns the others, with their gradients and owners."""
        from bitsandbytes.functional import optimizer_update_8bit_blockwise  # pyright: ignore[reportMissingImports]

        others: list[tuple[Any, Any, Any]] = []
        for weight, gradient, owner in zip(weights, gradients, owners, strict=True):
            state = self.state[owner]
            if state["exp_avg"].dtype != torch.uint8:
                others.append((weight, gradient, owner))
                continue
            signed, unsigned = _dynamic_maps(weight.device)
            beta1, beta2 = group["betas"]
            state["step"] += 1
            optimizer_update_8bit_blockwise(
                "adam",
                g=gradient.contiguous(),
                p=weight,
                state1=state["exp_avg"],
                state2=state["exp_avg_sq"],
                beta1=beta1,
                beta2=beta2,
                beta3=0.0,
                alpha=0.0,
                eps=group["eps"],
                step=int(state["step"]),
                lr=group["lr"],
                qmap1=signed,
                qmap2=unsigned,
                absmax1=state["exp_avg_scale"],
                absmax2=state["exp_avg_sq_scale"],
                weight_decay=group["weight_decay"],
            )
        return ([], [], []) if not others else tuple(map(list, zip(*others, strict=True)))  # pyright: ignore


@functools.cache
def _dynamic_maps(device: torch.device) -> tuple[Tensor, Tensor]:
    """The 256 numbers that 8 bits stand for, in moments with a sign and without."""
    from bitsandbytes.functional import create_dynamic_map  # pyright: ignore[reportMissingImports]  # an extra

    return create_dynamic_map(True).to(device), create_dynamic_map(False).to(device)


def split(master: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """A bfloat16 neighbor of each float32 number, the nearer for more of them, and what `join` needs besides, int16.

    Numbers that bfloat16 has are left as they are, and the mean over many numbers is kept.

    Args:
        master: Numbers to take apart.
        first: Number of the first row where they are some rows of a larger tensor.
    """
    bits = master.view(torch.int32) - _dither(master.shape, master.device, first)
    low = bits.to(torch.int16)  # the lower half, read as a signed number: its sign says which way was nearer
    return ((bits - low) >> 16).to(torch.int16).view(torch.bfloat16), low


def join(high: Tensor, low: Tensor, first: int = 0) -> Tensor:
    """The float32 numbers that `split` took apart, bit for bit."""
    bits = (high.detach().view(torch.int16).int() << 16) + low
    return (bits + _dither(high.shape, high.device, first)).view(torch.float32)


def _dither(shape: torch.Size, device: torch.device, first: int = 0) -> Tensor:
    """Numbers from -32767 to 32767, int16, spread evenly over the rows, columns and blocks of a tensor.

    They are the R2 sequence of M. Roberts (2018), "The unreasonable effectiveness of quasirandom sequences": multiples
    of the plastic number's powers, here of 2^-16, modulo 1.
    """
    before = (first * math.prod(shape[1:-1]), 0) if len(shape) > 1 else (0, first)
    sizes, steps = (math.prod(shape[:-1]), shape[-1] if shape else 1), (49_471, 37_345)
    rows, columns = (
        torch.arange(start, start + size, dtype=torch.int32, device=device) * step
        for start, size, step in zip(before, sizes, steps, strict=True)
    )
    spread = (rows[:, None] + columns).to(torch.int16)
    return spread.clamp_(min=-32_767).view(shape)


def stochastically_rounded(master: Tensor, generator: torch.Generator) -> Tensor:
    """A bfloat16 neighbor of each float32 number, the nearer the likelier: the mean is the number itself."""
    noise = torch.randint(1 << 16, master.shape, generator=generator, dtype=torch.int32, device=master.device)
    return ((master.view(torch.int32) + noise) >> 16).to(torch.int16).view(torch.bfloat16)
