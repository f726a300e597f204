"""Weights in bfloat16 are trained as a float32 copy of them would be, or so on average."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tokengym.agents.training.masters import MasterAdamW, join, split, stochastically_rounded

FLOATS = st.floats(
    width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**126), max_value=2.0**126, allow_subnormal=False
)
SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.01}


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((8, 5), (7,), ())]


def gradients(step: int, low: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1 + step)
    found = [torch.randn(shape, generator=generator) for shape in ((8, 5), (7,), ())]
    return [gradient.bfloat16() for gradient in found] if low else found


@given(st.lists(FLOATS, min_size=1, max_size=20))
def test_halves_make_the_number_again_and_the_upper_one_is_a_neighbor(values: list[float]) -> None:
    numbers = torch.tensor(values, dtype=torch.float32)
    high, low = split(numbers)
    assert torch.equal(join(high, low), numbers)
    nearest = numbers.bfloat16()
    spacing = (nearest.double().abs() * 2.0**-7).clamp(min=2.0**-133)
    assert ((high.double() - numbers.double()).abs() < spacing).all()
    exact = nearest.float() == numbers
    assert torch.equal(high[exact], nearest[exact])
    again, low_again = split(join(high, low))
    assert torch.equal(again, high)
    assert torch.equal(low_again, low)


@pytest.mark.parametrize("shape", [(300,), (64, 48), (4, 32, 16), (1, 2000), (2000, 1)])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.97])
def test_rounding_moves_the_part_of_the_weights_that_their_masters_have_gone(
    shape: tuple[int, ...], part: float
) -> None:
    """In the whole, and in every line of it that is long enough to show it."""
    for sign in (1, -1):
        high, _ = split(torch.full(shape, sign * (1 + part * 2.0**-7)))
        moved = (high.float() != sign).double()
        assert moved.mean() == pytest.approx(part, abs=0.01)
        for axis, size in enumerate(shape):
            if size >= 48:
                assert (moved.mean(axis) - part).abs().max() < 0.06


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_in_8_bits_are_those_of_bitsandbytes(dtype: torch.dtype) -> None:
    """Also under weights in bfloat16, whose masters are stepped; small weights keep theirs in float32."""
    optim = pytest.importorskip("bitsandbytes").optim
    generator = torch.Generator().manual_seed(0)
    draw = lambda shape: torch.randn(shape, generator=generator)  # noqa: E731
    ours = [nn.Parameter(draw(shape).to(dtype)) for shape in ((70, 64), (4096,), (30, 20))]
    theirs = [nn.Parameter(parameter.detach().float()) for parameter in ours]
    own, other = MasterAdamW(ours, **SETTINGS, in_8bit=True), optim.AdamW8bit(theirs[:2], **SETTINGS)
    small = torch.optim.AdamW(theirs[2:], **SETTINGS, fused=True)
    for _ in range(4):
        for mine, its in zip(ours, theirs, strict=True):
            its.grad = draw(mine.shape)
            mine.grad = its.grad.clone()
        for optimizer in (own, other, small):
            optimizer.step()
    for mine, its in zip(ours, theirs, strict=True):
        assert torch.equal(mine if dtype == torch.float32 else join(mine, own.state[mine]["low"]), its)
    state = sum(value.nbytes for name, value in own.state[ours[0]].items() if name != "low")
    assert state == 2 * 4480 + 2 * 4 * 18 + 4, "a byte for each moment, and a scale for each block"


def test_float32_weights_are_stepped_as_torch_steps_them() -> None:
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    optimizers = MasterAdamW(ours, **SETTINGS), torch.optim.AdamW(theirs, **SETTINGS, fused=True)
    for step in range(5):
        for group, optimizer in zip((ours, theirs), optimizers, strict=True):
            for parameter, gradient in zip(group, gradients(step), strict=True):
                parameter.grad = gradient.clone()
            if step == 3:
                group[1].grad = None
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("rate", [1e-7, 1e-3])
def test_bfloat16_weights_are_what_a_float32_copy_of_them_becomes(rate: float) -> None:
    """At a rate of 1e-7, too: no single step of that size shows in bfloat16."""
    weights = parameters(torch.bfloat16)
    copies = [nn.Parameter(weight.detach().float()) for weight in weights]
    ours = MasterAdamW(weights, **{**SETTINGS, "lr": rate})
    theirs = torch.optim.AdamW(copies, **{**SETTINGS, "lr": rate}, fused=True)
    for step in range(50):
        for weight, copied, gradient in zip(weights, copies, gradients(step), strict=True):
            weight.grad, copied.grad = gradient.clone(), gradient.clone()
        ours.step()
        theirs.step()
    for weight, copied in zip(weights, copies, strict=True):
        high, low = split(copied.detach())
        assert torch.equal(weight, high)
        assert torch.equal(ours.state[weight]["low"], low)
        assert low.any()


def test_gradients_of_bfloat16_weights_add_up_in_float32() -> None:
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    MasterAdamW([weight])
    for share in (1.0, 1e-3, 1e-3):
        (weight * torch.tensor([share], dtype=torch.bfloat16)).sum().backward()
    assert weight.grad.dtype == torch.float32
    assert weight.grad.item() == pytest.approx(1.002, rel=1e-5)


def test_stochastic_rounding_is_right_on_average_and_never_leaves_the_neighbors() -> None:
    numbers = torch.tensor([1.0, 1.001, -1.001, 3e-5, -7.77, 0.0]).repeat(20_000, 1)
    found = stochastically_rounded(numbers, torch.Generator().manual_seed(0))
    assert found.dtype == torch.bfloat16
    spacing = 2.0 ** (torch.floor(torch.log2(numbers[0].abs().clamp(min=1e-30))) - 7)
    assert ((found.float() - numbers).abs() < spacing).all()
    error = (found.double().mean(0) - numbers[0].double()).abs()
    assert (error <= 5 * spacing / 2 / np.sqrt(len(numbers))).all()  # 5 standard errors at most
    assert torch.equal(found[:, 0], numbers[:, 0].bfloat16())  # what needs no rounding gets none


def test_stochastic_rounding_moves_weights_that_rounding_to_nearest_would_not() -> None:
    weight = nn.Parameter(torch.ones(10_000, dtype=torch.bfloat16))
    optimizer = MasterAdamW([weight], lr=1e-5, weight_decay=0.0, rounding="stochastic")
    for _ in range(20):
        weight.grad = torch.ones(10_000, dtype=torch.bfloat16)
        optimizer.step()
    assert set(optimizer.state[weight]) == {"step", "exp_avg", "exp_avg_sq"}
    # Twenty steps of 1e-5 each, in steps of 2^-8 below 1: about 5 % of the weights take one.
    assert 1 - weight.double().mean().item() == pytest.approx(20 * 1e-5, rel=0.2)


@pytest.mark.parametrize("rounding", ["exact", "stochastic"])
def test_a_loaded_state_goes_on_bit_by_bit(rounding: str) -> None:
    def steps(optimizer: MasterAdamW, weights: list[nn.Parameter], numbers: range) -> None:
        for step in numbers:
            for weight, gradient in zip(weights, gradients(step, rounding == "stochastic"), strict=True):
                weight.grad = gradient
            optimizer.step()

    whole, half = parameters(torch.bfloat16), parameters(torch.bfloat16)
    steps(MasterAdamW(whole, lr=1e-5, rounding=rounding), whole, range(8))  # pyright: ignore[reportArgumentType]
    first = MasterAdamW(half, lr=1e-5, rounding=rounding)  # pyright: ignore[reportArgumentType]
    steps(first, half, range(4))
    second = MasterAdamW(half, lr=1e-5, rounding=rounding)  # pyright: ignore[reportArgumentType]
    second.load_state_dict(first.state_dict())
    steps(second, half, range(4, 8))
    assert all(torch.equal(a, b) for a, b in zip(whole, half, strict=True))


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weights in torch\.float16 cannot be trained.*lora_rank"):
        MasterAdamW(parameters(torch.float16))
    with pytest.raises(ValueError, match="rounding must be one of exact, stochastic, got 'up'"):
        MasterAdamW(parameters(torch.float32), rounding="up")  # pyright: ignore[reportArgumentType]
