"""Language models by name, with their tokenizers: built-in, any Hugging Face causal LM, GGUF files; LoRA on top."""

import logging
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from ..extras import need
from ..files import naming
from ..registry import UnknownNameError, unknown_name
from ..settings import kinds_checked
from .adapters import FOLDER, base_name, is_adapter, with_saved_adapters
from .engine.self_check import check_training
from .head import trained_rows
from .layers import model_name, short_pass
from .linear import use_onednn
from .quantized import check_loaded, loading_in_4bit
from .tokenizers import CHARS, load_tokenizer, locate, name_built_in, needed_tokens, not_loaded
from .vocabulary import num_embeddings, num_token_ids

_logger = logging.getLogger(__name__)

# Layers of Mamba whose weights its kernels read.
_MAMBA = ("conv1d", "x_proj", "dt_proj", "out_proj")

OUTCOME_RECORD = "outcome_model.json"
"""File that says of a folder that it holds an outcome model."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_device(name: str | None) -> str:
    """Device to use: the given one, or by default a GPU if there is one.

    Raises:
        ValueError: It is no device, or cannot be used here.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter from PyTorch built without it
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"the device {name!r} cannot be used: {textwrap.shorten(cause, 200)}") from error
    return name


@kinds_checked
def load(
    name_or_path: str | Path,
    *,
    device: str | None = None,
    dtype: str = "float32",
    lora_rank: int | None = None,
    lora_alpha: float | None = None,
    lora_targets: str | Sequence[str] = "all-linear",
    lora_rank_stabilized: bool = False,
    lora_seed: int = 0,
    load_in_4bit: bool = False,
    attn: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model of that name and its tokenizer; the model is in evaluation mode.

    With `lora_rank` the weights are frozen, and low-rank adapters are added that start as the identity: the model is
    then a `peft.PeftModel`, and inside `model.disable_adapter()` it is the model as loaded.

    A folder of LoRA adapters gives the model that they were trained on with these adapters, which training continues
    with. What agents save holds both: weights in float32 with adapters merged, and `adapter`, a folder of the adapters
    alone, which is what to load in lower precision.

    Args:
        name_or_path: Model to load: "tokengym/tiny", a name on the Hugging Face hub, a local folder, or a *.gguf file,
            whose quantized weights are expanded to `dtype`.
        device: Device of the model, such as "cpu" or "cuda:1"; by default a GPU if there is one.
        dtype: Data type of the weights: "float32", "bfloat16" or "float16", regardless of the one that they were saved
            in.
        lora_rank: Rank of the adapters; `None` trains the weights themselves. Havrilla et al. 2024 have rank 128 for
            policies of 7 and 13 billion parameters.
        lora_alpha: Scale of the adapters times their rank; by default the rank itself, a scale of 1. [choice]
        lora_targets: Names of the layers that get adapters; "all-linear" is all linear ones but the output head.
            [choice]
        lora_rank_stabilized: Divide the scale by the square root of the rank instead of the rank (rsLoRA, Kalajdzievski
            2023); the default `lora_alpha` is then sqrt(lora_rank), again a scale of 1.
        lora_seed: Seed of the adapters' first values.
        load_in_4bit: Keep the weights of linear layers, but of the output head, in 4 bits (NF4 with double
            quantization, as QLoRA); they are frozen, and products run in `dtype`. Needs the extra "quantization".
        attn: Attention implementation, such as "sdpa", "eager" or "flash_attention_2"; by default the choice of
            transformers for the model, which is "sdpa" if the model supports it.

    Raises:
        UnknownNameError: There is no such model or dtype.
        FileNotFoundError: The *.gguf file does not exist, or the folder holds no model.
        ImportError: The package of an extra is not installed.
        ValueError: The device cannot be used; the tokenizer has no end-of-sequence token, or has ids that the model
            lacks; `lora_rank` is below 1, is given for a folder of adapters, or is missing beside other settings of
            LoRA; adapters were trained on another model; the model is an outcome model or lacks weights; it does not
            support the attention implementation or 4 bits, or its outputs for padded batches differ from those for
            single rows.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    device = find_device(device)
    if lora_rank is not None and lora_rank < 1:
        raise ValueError(f"lora_rank is {lora_rank}: give at least 1, or None to train without LoRA")
    name = str(name_or_path)
    if name.startswith(CHARS):
        raise UnknownNameError(f"no model {name!r}: this names a tokenizer alone")
    shaped = (lora_alpha, lora_targets, lora_rank_stabilized) != (None, "all-linear", False)
    if is_adapter(adapter := Path(name).expanduser()):
        if lora_rank is not None or shaped:
            raise ValueError(
                f"{name!r} holds adapters, and training continues them: leave out lora_rank and other settings of LoRA"
            )
        base, tokenizer = load(base_name(adapter), device=device, dtype=dtype, load_in_4bit=load_in_4bit, attn=attn)
        model = with_saved_adapters(base, adapter)
        _adapter_config(model).base_model_name_or_path = base_name(adapter)
        return model.eval(), tokenizer
    if lora_rank is None and shaped:
        raise ValueError("lora_alpha, lora_targets and lora_rank_stabilized shape adapters: give lora_rank, too")
    tokenizer = load_tokenizer(name)
    model: Any = _pretrained(name, device, dtype, load_in_4bit, attn)
    check_vocabulary(model, tokenizer)
    model.eval()
    check_training(model)
    if lora_rank is not None:
        model = with_lora(model, lora_rank, lora_alpha, lora_targets, lora_seed, rank_stabilized=lora_rank_stabilized)
        model = model.eval()
        local = Path(name).expanduser()
        _adapter_config(model).base_model_name_or_path = str(local.resolve()) if local.exists() else name
    return model, tokenizer


def _pretrained(name: str, device: str, dtype: str, load_in_4bit: bool, attn: str | None) -> PreTrainedModel:
    """The model of that name as transformers loads it, on its device; see `load`."""
    location = locate(name)
    folder = Path(location["pretrained_model_name_or_path"])
    if "gguf_file" not in location and folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"the folder {str(folder)!r} holds no model: it has no config.json")
    check_no_outcome_model(name, location)
    if dtype != "float32" and is_adapter(folder / FOLDER):
        _logger.warning(
            "%s has adapters merged in float32, and %s rounds part of what they learned away: load them from %s, or "
            "load in float32", name, dtype, folder / FOLDER,
        )  # fmt: skip
    # Weights of other shapes are refused below, with their name.
    arguments: dict[str, Any] = {**location, "dtype": DTYPES[dtype], "ignore_mismatched_sizes": True}
    if attn is not None:
        arguments["attn_implementation"] = attn
    if load_in_4bit:
        if "gguf_file" in location:
            raise ValueError(
                f"{name!r} is quantized already, and is expanded when it is loaded: leave out load_in_4bit, or save "
                "the model to a folder and load that"
            )
        arguments |= loading_in_4bit(DTYPES[dtype], device)
    if "gguf_file" in location:
        # Packed weights can be neither trained nor saved.
        arguments["quantization_config"] = GgufConfig(dequantize=True)
    try:
        with no_progress_bars(), naming(folder):
            loaded: Any = AutoModelForCausalLM.from_pretrained(**arguments, output_loading_info=True)
    except OSError as error:
        raise not_loaded("model", name, location, error) from error
    except (ValueError, ImportError, TypeError) as error:
        cause = textwrap.shorten(str(error), 300)
        if attn is None or "attention" not in str(error).lower():
            raise ValueError(f"transformers cannot load {name!r} as a causal language model: {cause}") from error
        raise ValueError(f"the model {name!r} cannot run with attn={attn!r}; leave attn out. {cause}") from error
    model, report = loaded
    check_shapes(name, report)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{name!r} lacks {len(missing)} weights of a {type(model).__name__}, the first {missing[0]!r}, and random "
            "ones would take their place: give a language model with all of its weights"
        )
    name_built_in(model)
    if load_in_4bit:
        check_loaded(model)
        return model
    return use_onednn(model.to(device))


def check_no_outcome_model(name: str, location: Mapping[str, str]) -> None:
    """Raises `ValueError` if the model of a name, at a `location`, is an outcome model."""
    if Path(location["pretrained_model_name_or_path"], OUTCOME_RECORD).is_file():
        raise ValueError(f"{name!r} is an outcome model, which scores text and writes none: give a language model")


def check_shapes(name: str, report: Mapping[str, Any]) -> None:
    """Raises `ValueError` if weights in a model's files have other shapes than its configuration says.

    Args:
        name: Name of the model.
        report: Loading information that `from_pretrained` of transformers returns.
    """
    for weight, saved, expected in sorted(report["mismatched_keys"]):
        raise ValueError(
            f"{name!r} has weights of another shape than its config.json says: {weight} is {[*saved]}, not "
            f"{[*expected]}. Restore the configuration that the weights were saved with"
        )


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, added: bool = True) -> None:
    """Raises `ValueError` unless `model` has an embedding for every token of `tokenizer`.

    A model may have more rows than the tokenizer has tokens: many are padded to a round number.

    Args:
        model: Language model.
        tokenizer: Tokenizer of the model.
        added: Check added tokens, too, that occur only where a text has them or at padding; see `needed_tokens`.
    """
    rows = num_embeddings(model)
    if num_token_ids(tokenizer) <= rows:
        return
    vocabulary = tokenizer.get_vocab()
    tokens = vocabulary.keys() if added else vocabulary.keys() & needed_tokens(tokenizer)
    token, largest = max(((token, vocabulary[token]) for token in tokens), key=lambda item: item[1])
    if largest >= rows:
        raise ValueError(
            f"the tokenizer does not fit the model: its token {token!r} has id {largest}, but the model has embeddings "
            f"for ids 0 to {rows - 1} only. Use the tokenizer that the model was trained with"
        )


def with_lora(
    model: PreTrainedModel,
    rank: int,
    alpha: float | None = None,
    targets: str | Sequence[str] = "all-linear",
    seed: int = 0,
    *,
    rank_stabilized: bool = False,
    trainable_tokens: Sequence[int] = (),
) -> PreTrainedModel:
    """The model with frozen weights and low-rank adapters that start as the identity; see `load`.

    Args:
        model: Model whose layers are wrapped in place.
        rank: Rank of the adapters, `lora_rank` of `load`.
        alpha: Scale of the adapters times their rank, `lora_alpha` of `load`.
        targets: Names of the layers that get adapters, `lora_targets` of `load`.
        seed: Seed of the adapters' first values.
        rank_stabilized: Divide the scale by the square root of the rank, `lora_rank_stabilized` of `load`.
        trainable_tokens: Ids of new tokens, whose rows are trained too, in the embeddings and in the output head.

    Raises:
        ValueError: The model has adapters already, or no layer has such a name.
    """
    if hasattr(model, "peft_config"):
        raise ValueError("the model has adapters already: train these, or load the weights that they are merged into")
    need("lora", "training adapters")
    from peft import LoraConfig, get_peft_model  # slow to import

    inputs, head = model.get_input_embeddings(), cast(Any, model.get_output_embeddings())
    tied = head.weight is cast(Any, inputs).weight  # peft then trains the rows of both as one
    rows = [inputs] if tied else [inputs, head]
    names = [name for name, module in model.named_modules() if any(module is part for part in rows)]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=(math.sqrt(rank) if rank_stabilized else rank) if alpha is None else alpha,  # pyright: ignore[reportArgumentType]  # a float works
        use_rslora=rank_stabilized,
        lora_dropout=0.0,  # rollouts and updates must see the same policy
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=_without_adapters(model) or None,
        trainable_token_indices={name: list(trainable_tokens) for name in names} if trainable_tokens else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(model, config)
    _check_unshared(adapted)
    head = adapted.get_output_embeddings()
    rows = trained_rows(head)
    if rows is not None and rows.get_base_layer().bias is not None:
        head.register_forward_hook(_add_bias)
    return adapted


def _check_unshared(adapted: PreTrainedModel) -> None:
    """Raises `ValueError` if layers with adapters share their weights."""
    owners: dict[int, str] = {}
    for name, module in adapted.named_modules():
        weight = getattr(cast(Any, module).get_base_layer(), "weight", None) if hasattr(module, "lora_A") else None
        if isinstance(weight, Tensor) and (other := owners.setdefault(id(weight), name)) != name:
            raise ValueError(
                f"{model_name(adapted)}, of type {adapted.config.model_type!r}, cannot have adapters on {name}, which "
                f"shares its weights with {other}: merged, each would get the other's, too. Name other lora_targets"
            )


@torch.no_grad()
def _without_adapters(model: PreTrainedModel) -> list[str]:
    """Names of layers that take no adapters: those that make something else than a product, and those never called.

    The weights of the latter are read by others, so that adapters would never run. A short forward pass shows them:
    they lie in a module that is called, and are not. What Mamba's kernels read is called where there are no kernels.
    """
    called: set[nn.Module] = set()
    fitting: set[nn.Module] = set()

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        called.add(module)
        if isinstance(module, nn.Linear) and inputs and isinstance(output, Tensor):
            if output.shape == (*inputs[0].shape[:-1], module.out_features):
                fitting.add(module)
        elif isinstance(module, Conv1D):
            fitting.add(module)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        short_pass(model)
    finally:
        for hook in hooks:
            hook.remove()
    found: list[str] = []
    for name, module in model.named_modules():
        by_kernels = _MAMBA if all(hasattr(module, part) for part in ("conv1d", "out_proj", "D")) else ()
        for part, child in module.named_children() if module in called else ():
            if part in by_kernels or (isinstance(child, nn.Linear | Conv1D) and child not in fitting):
                found.append(f"{name}.{part}".removeprefix("."))
    return found


def _add_bias(head: nn.Module, _: Any, logits: Tensor) -> Tensor:
    """Adds the bias of a head whose rows are trained: peft leaves it out then."""
    rows = trained_rows(head)
    return logits if rows.disable_adapters or rows.merged else logits + rows.get_base_layer().bias.to(logits.dtype)


def _adapter_config(model: Any) -> Any:
    return model.peft_config["default"]


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keeps transformers from showing progress of its own meanwhile."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
