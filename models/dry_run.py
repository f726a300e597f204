"""Dry runs: a model's own code on tensors that have shapes and no data, and the bytes that it would hold.

PyTorch's fake tensors make modules of any size without memory, and choose kernels as real ones do. Code that asks them
for their values is answered as if all were well. So training's forward and backward passes, checkpointing, autocast and
key-value caches run as they are written, in about a second, and no architecture has to be put into formulas.
"""

import copy
import textwrap
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..registry import unknown_name
from .adapters import base_name, is_adapter
from .attention import ATTENTION
from .layers import without_graphs
from .loading import DTYPES, check_no_outcome_model, no_progress_bars, with_lora
from .quantized import counted, stand_ins
from .tokenizers import locate, not_loaded

_Module = TypeVar("_Module", bound=nn.Module)
_aten = torch.ops.aten


class ByteCounter(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is active, as PyTorch's allocator would.

    Attributes:
        live: Bytes that are held now.
        peak: Largest number of bytes held at a time since the last `restart`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def restart(self) -> int:
        """Begins a new peak; returns the bytes that are held now."""
        self.peak = self.live
        return self.live

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.prim.device.default:  # asked far more often than anything is computed
            return args[0].fake_device
        if function is _aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 1
        if function is _aten.equal.default:
            return args[0].untyped_storage()._cdata == args[1].untyped_storage()._cdata
        if function in (_aten.allclose.default, _aten.is_nonzero.default):
            return True
        if function is _aten.index.Tensor:
            args = (args[0], [part for index in args[1] for part in _as_positions(index)])
        made = function(*args, **(kwargs or {}))
        for value in tree_iter(made):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if (key := storage._cdata) not in self._known:
                    self._known.add(key)
                    self.live += (size := storage.nbytes())
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._free, key, size)
        return made

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _as_positions(index: Tensor | None) -> list[Tensor | None]:
    """A mask as the positions of its elements, all of which count; another index as it is."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return [torch.empty(index.numel(), dtype=torch.long, device=index.device) for _ in range(index.dim())]


class _NoData(FakeTensorMode):
    """Makes tensors without data; their copies belong to it as they do."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_NoData":
        return self


@contextmanager
def dry_run() -> Iterator[ByteCounter]:
    """Within the block, tensors that are made have no data, and their bytes are counted."""
    with warnings.catch_warnings(), _NoData(allow_non_fake_inputs=True), ByteCounter() as counter:
        warnings.simplefilter("ignore")  # about data that copies would need
        yield counter


def without_weights(module: _Module) -> _Module:
    """A copy of a module, on the CPU and without data; only inside of `dry_run`."""
    memo: dict[int, Any] = stand_ins(module)
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(_empty(parameter), requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = _empty(buffer)
    return copy.deepcopy(module, memo | without_graphs(module))


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def read_config(name: str | Path) -> PreTrainedConfig:
    """The configuration of the model of that name, as `models.load` takes it; no weights are read.

    Raises:
        UnknownNameError: There is no such model.
        FileNotFoundError: The folder or file holds no configuration that can be read.
        ValueError: It is an outcome model.
    """
    name = str(name)
    if is_adapter(folder := Path(name).expanduser()):
        name = base_name(folder)
    location = locate(name)
    check_no_outcome_model(name, location)
    try:
        with no_progress_bars():
            return AutoConfig.from_pretrained(**location)
    except (OSError, ValueError, KeyError) as error:
        raise not_loaded("model configuration", name, location, error) from error


def model_on_meta(
    config: PreTrainedConfig,
    *,
    dtype: str = "float32",
    attn: str | None = None,
    lora_rank: int | None = None,
    lora_targets: str | Sequence[str] = "all-linear",
    load_in_4bit: bool = False,
) -> PreTrainedModel:
    """The causal language model of a configuration on the meta device, for `without_weights`; not inside of `dry_run`.

    Args:
        config: Configuration of the model.
        dtype: Data type of the weights.
        attn: Attention implementation; kernels that keep no scores count as "sdpa".
        lora_rank: Rank of adapters, which are float32; `None` trains the weights themselves.
        lora_targets: Names of the layers that get adapters.
        load_in_4bit: Have stand-ins for layers in 4 bits, whose bytes are counted as theirs.

    Raises:
        UnknownNameError: There is no such attention implementation.
        ValueError: There is no causal language model of that configuration.
    """
    arguments: dict[str, Any] = {"dtype": DTYPES[dtype]}
    known = ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys())
    if attn is not None and attn not in known and "/" not in attn:  # which names a kernel on the hub
        raise unknown_name("attention implementation", attn, [name for name in known if "|" not in name])
    if attn is not None:
        arguments["attn_implementation"] = attn if attn in ATTENTION else "sdpa"
    with torch.device("meta"), ByteCounter():
        try:
            model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config), **arguments)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            cause = textwrap.shorten(str(error), 300)
            raise ValueError(f"no language model can be made of a {type(config).__name__}: {cause}") from error
        if load_in_4bit:
            counted(model)
        return (model if lora_rank is None else with_lora(model, lora_rank, targets=lora_targets)).eval()
