"""Linear layers whose products come from oneDNN."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from tokengym import models
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.models import linear
from tokengym.models.linear import LEAST, OneDNNConv1D, OneDNNLinear, PackedWeights, packed_weights, use_onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
SHAPES = [(96, 96, 128), (8, 12, 96, 128), (1, 9216, 128)]  # [..., K]; with N = 96 all are large enough


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the products that oneDNN was asked for."""
    shapes: list[torch.Size] = []
    product = linear._product

    def noted(*given: torch.Tensor) -> torch.Tensor:
        shapes.append(given[0].shape)
        return product(*given)

    monkeypatch.setattr(linear, "_product", noted)
    return shapes


def _pair(bias: bool) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    usual = nn.Linear(128, 96, bias=bias)
    return usual, use_onednn(copy.deepcopy(usual))


LAYERS = {
    "fewer outputs": lambda: nn.Linear(128, 96, bias=False),
    "more outputs": lambda: nn.Linear(128, 200),
    "gpt2": lambda: Conv1D(96, 128),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_are_those_of_pytorch(
    faster: None, products: list[torch.Size], shape: tuple[int, ...], kind: str
) -> None:
    torch.manual_seed(0)
    usual = LAYERS[kind]()
    fast = use_onednn(copy.deepcopy(usual))
    values = torch.randn(shape)
    weights = torch.randn_like(usual(values))
    found = []
    for layer in (usual, fast):
        given = values.clone().requires_grad_()
        output = layer(given)
        (output * weights).sum().backward()
        found.append([output.detach(), given.grad, *(parameter.grad for parameter in layer.parameters())])
    assert len(products) == 3  # the output, and the gradients of input and weight
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_inputs_that_are_no_rows_in_order_are_read_right(faster: None, products: list[torch.Size]) -> None:
    usual, fast = _pair(bias=True)
    values = torch.randn(128, 96, 100).transpose(0, 2)  # [100, 96, 128]
    weights = torch.randn(96, 9600).t().unflatten(0, (100, 96))
    found = []
    for layer in (usual, fast):
        given = values.detach().requires_grad_()
        output = layer(given)
        output.backward(weights)
        found.append([output.detach(), given.grad, layer.weight.grad, layer.bias.grad])
        given.grad = None
    assert len(products) == 3
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_frozen_weights_get_no_gradient_and_take_no_product(faster: None, products: list[torch.Size]) -> None:
    _, fast = _pair(bias=True)
    fast.requires_grad_(False)
    given = torch.randn(9216, 128, requires_grad=True)
    fast(given).sum().backward()
    assert given.grad is not None
    assert fast.weight.grad is None
    assert fast.bias.grad is None
    assert len(products) == 2


def test_small_products_and_other_types_are_pytorchs(faster: None, products: list[torch.Size]) -> None:
    _, fast = _pair(bias=False)
    rows = LEAST // (128 * 96)
    fast(torch.randn(rows, 128))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast(torch.randn(9216, 128)).dtype == torch.bfloat16
    copy.deepcopy(fast).double()(torch.randn(9216, 128, dtype=torch.float64))
    with torch.device("meta"):
        assert OneDNNLinear(128, 96)(torch.empty(9216, 128)).device.type == "meta"
    assert products == []
    fast(torch.randn(rows + 1, 128))
    assert len(products) == 1


def test_all_linear_layers_of_a_model_change(faster: None) -> None:
    model, _ = models.load("tokengym/tiny", device="cpu")
    names = [name for name, module in model.named_modules() if isinstance(module, OneDNNLinear)]
    assert len(names) == 1 + 7 * model.config.num_hidden_layers  # attention, gated feed-forward, head
    assert not any(type(module) is nn.Linear for module in model.modules())


def test_a_model_that_is_saved_is_the_same(faster: None, tmp_path: Path) -> None:
    model, tokenizer = models.load("tokengym/tiny", device="cpu")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = models.load(str(tmp_path), device="cpu")
    for ours, theirs in zip(again.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("layer", [nn.Linear(256, 512), Conv1D(512, 256)])
def test_copies_of_weights_are_read_and_follow_the_weights(
    faster: None, monkeypatch: pytest.MonkeyPatch, layer: nn.Module
) -> None:
    made: list[int] = []
    reorder = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(
        torch.ops.mkldnn, "_reorder_linear_weight", lambda *given: made.append(1) or reorder(*given), raising=False
    )
    fast, values, packed = use_onednn(copy.deepcopy(layer)), torch.randn(32, 256), PackedWeights()

    def check(count: int) -> None:
        with torch.no_grad():
            expected = fast(values)
            with packed.read():
                torch.testing.assert_close(fast(values), expected, rtol=1e-5, atol=1e-5)
                fast(values)
        assert len(made) == count

    check(1)
    with torch.no_grad():
        fast.weight.mul_(2)
    check(2)
    fast.weight = nn.Parameter(torch.randn(fast.weight.shape))
    check(3)
    with packed.read():
        assert fast(values).requires_grad  # where gradients are wanted, the weights themselves are read
        fast(values[:1])
    assert len(made) == 3


def test_weights_that_were_made_in_inference_mode_are_read_as_they_are_now(faster: None) -> None:
    with torch.inference_mode():
        fast, values, packed = use_onednn(nn.Linear(256, 512)), torch.randn(32, 256), PackedWeights()
        for _ in range(2):
            with packed.read():
                found = fast(values)
            torch.testing.assert_close(found, fast(values), rtol=1e-5, atol=1e-5)
            fast.weight.mul_(2)


def _second_order(layer: nn.Module, values: Tensor) -> list[Tensor]:
    values = values.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.tanh(layer(values)).sum(), values, create_graph=True)
    return list(torch.autograd.grad(gradient.square().sum(), [values, *layer.parameters()]))


def _by_problem(layer: nn.Module, values: Tensor) -> list[Tensor]:
    def loss(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(layer, weights, (row,)).square().sum()

    weights = {name: weight.detach() for name, weight in layer.named_parameters()}
    return list(torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, values.expand(2, -1, -1)).values())


def _tangent(layer: nn.Module, values: Tensor) -> list[Tensor]:
    with torch.autograd.forward_ad.dual_level():
        output = layer(torch.autograd.forward_ad.make_dual(values, values))
        return [torch.autograd.forward_ad.unpack_dual(output).tangent]


def _tangent_without_graph(layer: nn.Module, values: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [torch.func.jvp(layer, (values,), (values,))[1], *_tangent(layer, values)]


def _batch_of_gradients(layer: nn.Module, values: Tensor) -> list[Tensor]:
    values, batch = values.clone().requires_grad_(), torch.eye(len(values))
    return list(torch.autograd.grad(layer(values).sum(1), [values, *layer.parameters()], batch, is_grads_batched=True))


def _of_one_row(layer: nn.Module, values: Tensor) -> list[Tensor]:
    output = layer(values.flatten()[:256].repeat(16).requires_grad_())
    return [output, *torch.autograd.grad(output.square().sum(), list(layer.parameters()))]


def _traced(layer: nn.Module, values: Tensor) -> list[Tensor]:
    traced: list[Any] = [torch.jit.trace(layer, values), torch.fx.symbolic_trace(nn.Sequential(layer))]
    return [each(values) for each in traced]


@pytest.mark.parametrize(
    "use",
    [_second_order, _by_problem, _tangent, _tangent_without_graph, _batch_of_gradients, _of_one_row, _traced],
    ids=lambda use: use.__name__,
)
def test_whatever_else_pytorch_does_with_a_layer_it_still_does(
    faster: None, use: Callable[[nn.Module, Tensor], list[Tensor]]
) -> None:
    torch.manual_seed(0)
    usual, values = nn.Linear(4096 if use is _of_one_row else 256, 512), torch.randn(32, 256)
    expected = use(usual, values)
    for found, right in zip(use(use_onednn(usual), values), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_weights_that_small_products_read_have_no_copies(faster: None) -> None:
    model = use_onednn(nn.Sequential(nn.Linear(256, 512), nn.Linear(8, 8), nn.Linear(256, 512).bfloat16()))
    assert packed_weights(model, LEAST // (256 * 512)) == [model[0].weight]
    assert packed_weights(model, LEAST // (256 * 512) - 1) == []
    assert packed_weights(nn.Linear(256, 512), 1000) == []


def test_gpt2_has_layers_of_onednn_in_a_policy(faster: None) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=64))
    policy = CausalLMPolicy(model, models.load_tokenizer("chars:0123"))
    assert sum(isinstance(module, OneDNNConv1D) for module in policy.model.modules()) == 2 * 4
    assert not any(type(module) in (nn.Linear, Conv1D) for module in policy.model.modules())


def test_layers_elsewhere_than_on_a_cpu_are_pytorchs(faster: None) -> None:
    assert type(use_onednn(nn.Linear(4, 4, device="meta"))) is nn.Linear


def test_other_processors_keep_pytorchs_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: False)
    assert type(use_onednn(nn.Linear(4, 4))) is nn.Linear


@pytest.mark.parametrize(
    ("name", "avx512", "faster"),
    [("AMD EPYC", True, True), ("AMD EPYC", False, False), ("Intel Xeon", True, False), ("", True, False)],
)
def test_onednn_is_taken_on_amds_processors_with_avx512(
    monkeypatch: pytest.MonkeyPatch, name: str, avx512: bool, faster: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name, "avx512_f": avx512})
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert linear.onednn_is_faster.__wrapped__() is faster


def test_processors_that_say_nothing_of_themselves_keep_pytorchs_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert not linear.onednn_is_faster.__wrapped__()


def test_a_pytorch_that_cannot_tell_keeps_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not linear.onednn_is_faster.__wrapped__()
