"""Weights in shards over processes by PyTorch's `fully_shard` (FSDP2), and whole again where attempts are sampled.

A process keeps a part of every weight, of its gradient and of its optimizer state, as a `DTensor`. In training the
weights of a layer are gathered when a pass comes to it. All processes run the same number of passes, so that none waits
for a gather that another never makes.

Sampling takes another way, because processes sample different numbers of tokens: a gather inside of a decoding step
would wait forever for those that have finished. Rollouts, validation and saving read a whole copy of the policy, which
all processes fill together and empty before they train on. It has no gradients and no optimizer state, and decodes as
fast as any model.
"""

import copy
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ...models.forward import ends_with_its_head
from ...models.layers import model_name, short_pass, without_adapters, without_graphs

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sharding:
    """Settings of sharding, those of `accelerate launch --use_fsdp`.

    Attributes:
        accelerator: Accelerator that knows the processes and the device of this one.
        reshard_after_forward: Drop a layer's gathered weights after the forward pass and gather them again in the
            backward pass, which takes less memory and more communication.
    """

    accelerator: Accelerator
    reshard_after_forward: bool = True

    @classmethod
    def of(cls, accelerator: Accelerator) -> "Sharding | None":
        """The sharding that a run was launched with; `None` if each process has a whole model.

        Raises:
            ValueError: FSDP's first version is asked for, or a setting that is not supported.
        """
        # Models are tried before they are sharded, on every process: none may come without weights.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        # On CPUs accelerate leaves FSDP out without a word, and has no plugin then: its settings are read here.
        if accelerator.num_processes == 1 or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
            return None
        plugin: Any = getattr(accelerator.state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()
        if plugin.fsdp_version != 2:
            raise ValueError("models are sharded by FSDP2: launch with --fsdp_version 2")
        if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
            raise ValueError("shards stay on their devices: launch without --fsdp_offload_params")
        if accelerator.mixed_precision != "no":
            raise ValueError(
                "precision is a setting of the agent: launch sharded runs without --mixed_precision, and set "
                'dtype="bfloat16"'
            )
        return cls(accelerator, bool(plugin.reshard_after_forward))

    @property
    def mesh(self) -> DeviceMesh:
        """All processes in a row."""
        return _mesh(self.accelerator.device.type, self.accelerator.num_processes)

    def shard(self, module: nn.Module) -> None:
        """Shards a module in place, on this process's device: each layer is a unit, and all around the layers is one.

        A module that is sharded already is left as it is. All processes call it together, with equal weights.

        Args:
            module: Language model, with adapters or without, or a critic.

        Raises:
            ValueError: Weights are not floating-point numbers, layers share them, or the sharded model computes
                something else than before.
        """
        if is_sharded(module):
            return
        units = gathered_units(module)
        _check_weights(module, units)
        expected: Tensor | None = None
        if isinstance(model := without_adapters(cast(Any, module)), PreTrainedModel) and _has_head(model):
            expected = short_pass(cast(Any, module)).logits
            for part in {id(part): part for part in (module, model)}.values():
                ends_with_its_head(cast(Any, part))  # tried and remembered, which takes a pass of its own
        whole = _empty_copy(module, self.accelerator.device)
        settings: dict[str, Any] = {"mesh": self.mesh, "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32)}
        for unit in units:
            fully_shard(unit, **settings, reshard_after_forward=self.reshard_after_forward)
        root = _Root(module)
        # The head runs after the forward pass, too: its weights stay until the backward pass is over.
        fully_shard(root, **settings, reshard_after_forward=False)
        setattr(module, _SHARDS, _Shards(root, dict(module.named_parameters()), whole))
        with torch.no_grad():
            try:
                found = run(module, lambda: None if expected is None else short_pass(cast(Any, module)).logits)
            except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(f"{_name(module)} cannot be sharded: {error}") from error
        if expected is not None and _differ(cast(Tensor, found), expected):
            raise ValueError(
                f"{_name(module)} computes other logits when it is sharded: the processes have loaded different "
                "weights, or its layers read weights of one another"
            )


class _Root(nn.Module):
    """FSDP's root of a module: in its forward pass the weights outside of layers are whole.

    Args:
        module: Module whose layers are sharded.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[[], T]) -> T:
        """Output of a function that runs the module."""
        return function()


@dataclass(eq=False)
class _Shards:
    """The shards of a module.

    Attributes:
        root: FSDP's root.
        parameters: Shards of all parameters, by name.
        whole: Copy of the module, without memory for its weights unless it is filled.
        filled: True if the copy has the weights of the module as it is.
    """

    root: Any
    parameters: dict[str, nn.Parameter]
    whole: nn.Module
    filled: bool = False

    @torch.no_grad()
    def fill(self) -> None:
        """Gathers the weights into the copy."""
        for target, shard in zip(self.whole.parameters(), self.parameters.values(), strict=True):
            target.untyped_storage().resize_(target.numel() * target.itemsize)
            target.copy_(full(shard))
        self.filled = True

    def empty(self) -> None:
        """Frees the weights of the copy."""
        for parameter in self.whole.parameters():
            parameter.untyped_storage().resize_(0)
        self.filled = False


_SHARDS = "_tokengym_shards"


def is_sharded(module: nn.Module) -> bool:
    """True if a module, or a part of it, is sharded."""
    return bool(_parts(module))


def run(module: nn.Module, function: Callable[[], T]) -> T:
    """Output of a function that runs a module's forward passes; of a sharded one, inside of its root's forward pass.

    Without gradients the weights are shards again afterwards. Whole copies are emptied first.

    Args:
        module: Module, or a pair of policy and critic.
        function: Function without arguments, which returns tensors.
    """
    shards = [shards for _, shards in _parts(module)]
    for part in shards:
        part.empty()
        function = functools.partial(part.root, function)
    found = function()
    if not torch.is_grad_enabled():
        for part in shards:
            part.root.reshard()
    return found


def whole(module: M) -> M:
    """A module with whole weights: itself or, of a sharded one, a copy, good until the module is trained or restored.

    Unless it is filled already, all processes must call it together.
    """
    shards: _Shards | None = vars(module).get(_SHARDS)
    if shards is None:
        return module
    if not shards.filled:
        shards.fill()
    return cast(M, shards.whole)


def release(module: nn.Module) -> None:
    """Frees the whole copies of a module; its weights are about to change."""
    for _, shards in _parts(module):
        shards.empty()


def named_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A module's parameters by name; shards where it is sharded."""
    parts = _parts(module)
    if not parts:
        yield from module.named_parameters()
    for prefix, shards in parts:
        yield from ((prefix + name, parameter) for name, parameter in shards.parameters.items())


# -------------------------------------------------------------------------------------------------------------- tensors


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is in this process, which shares its memory; all of it unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor; all processes must ask for that of a sharded one together."""
    if not isinstance(tensor, DTensor):
        return tensor
    if tensor.dtype == torch.int16:  # which NCCL cannot send
        return full(as_shard(local(tensor).view(torch.bfloat16), tensor)).view(torch.int16)
    return tensor.full_tensor()


def rows(tensor: Tensor) -> slice:
    """The rows of a tensor that are in this process."""
    if not isinstance(tensor, DTensor):
        return slice(None)
    size = -(-len(tensor) // tensor.device_mesh.size())
    first = min(tensor.device_mesh.get_local_rank() * size, len(tensor))
    return slice(first, min(first + size, len(tensor)))


def as_shard(part: Tensor, owner: Tensor) -> Tensor:
    """The part of a tensor that is in this process, as a tensor in the shards of another; itself if that has none."""
    if not isinstance(owner, DTensor):
        return part
    stride = torch.empty(owner.shape, device="meta").stride()
    return DTensor.from_local(
        part, owner.device_mesh, owner.placements, run_check=False, shape=owner.shape, stride=stride
    )


def sharded_as(value: Tensor, owner: Tensor) -> Tensor:
    """A whole tensor in the shards, or simply on the device, of another of its shape."""
    if isinstance(value, DTensor) or not isinstance(owner, DTensor) or value.shape != owner.shape:
        return value.to(owner.device)
    return as_shard(value[rows(owner)].to(owner.device, copy=True), owner)


def gathered(tensors: Mapping[str, Tensor], wanted: bool) -> dict[str, Tensor]:
    """The whole of tensors, sharded ones on the CPU; all processes must call it together, with the same names.

    Args:
        tensors: Tensors by name.
        wanted: False on processes that only take part; they get nothing.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            tensor = full(tensor.detach())
            if wanted:
                tensor = tensor.cpu()
        if wanted:
            found[name] = tensor
    return found


def keep_gradients(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    """Adds up the gradients of a sharded parameter in a data type; PyTorch would round each to that of the weights."""
    known = hasattr(parameter, _GRADIENTS)
    setattr(parameter, _GRADIENTS, dtype)
    if not known:
        parameter.grad_dtype = None  # any
        parameter.register_post_accumulate_grad_hook(_widen)


_GRADIENTS = "_tokengym_grad_dtype"


def _widen(parameter: Tensor) -> None:
    gradient, dtype = cast(Tensor, parameter.grad), getattr(parameter, _GRADIENTS)
    if gradient.dtype != dtype:
        parameter.grad = gradient.to(dtype)


# -------------------------------------------------------------------------------------------------------------- modules


@functools.cache
def _mesh(device: str, processes: int) -> DeviceMesh:
    return init_device_mesh(device, (processes,))


def _parts(module: nn.Module) -> list[tuple[str, _Shards]]:
    """The sharded parts of a module with the prefixes of their names: itself, or some of its children."""
    if _SHARDS in vars(module):
        return [("", vars(module)[_SHARDS])]
    parts = ((f"{name}.", vars(part).get(_SHARDS)) for name, part in module.named_children())
    return [(prefix, shards) for prefix, shards in parts if shards is not None]


def gathered_units(module: nn.Module) -> list[nn.Module]:
    """The parts that are gathered one after the other: layers, and modules of another precision than the rest."""
    dtypes = [parameter.dtype for parameter in module.parameters() if parameter.requires_grad]
    units: list[nn.Module] = []

    def walk(part: nn.Module) -> None:
        own = {parameter.dtype for parameter in part.parameters(recurse=False) if parameter.requires_grad}
        if own - set(dtypes[:1]) and not list(part.children()):
            units.append(part)
        elif isinstance(part, nn.ModuleList):
            units.extend(part)
        else:
            for child in part.children():
                walk(child)

    walk(module)
    return units


def _check_weights(module: nn.Module, units: list[nn.Module]) -> None:
    """Raises `ValueError` for weights that cannot be sharded."""
    owners: dict[int, nn.Module] = {}
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point() or not parameter.dim():
            kind = f"{parameter.dtype}" if parameter.dim() else "a single number"
            raise ValueError(f"{_name(module)} cannot be sharded: its weight {name} is {kind}")
    for unit in units:
        for name, parameter in unit.named_parameters():
            if owners.setdefault(id(parameter), unit) is not unit:
                raise ValueError(f"{_name(module)} cannot be sharded: layers share the weight {name}")


def _differ(found: Tensor, expected: Tensor) -> bool:
    """True if logits differ by more than what devices and bfloat16 explain."""
    error = (found.cpu().float() - expected.float()).abs().max()
    return not bool(error <= 0.05 * expected.float().abs().max())


def _has_head(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings() is not None


def _name(module: nn.Module) -> str:
    model = without_adapters(cast(Any, module))
    return model_name(model) if isinstance(model, PreTrainedModel) else "the critic"


def _empty_copy(module: M, device: torch.device) -> M:
    """A copy of a module on a device, whose weights have a shape and no memory."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = empty = nn.Parameter(torch.empty_like(parameter, device=device), requires_grad=False)
        empty.untyped_storage().resize_(0)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach().to(device, copy=True)
    return copy.deepcopy(module, memo | without_graphs(module))
