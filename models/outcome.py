"""Outcome models: how likely an attempt is to end in the correct answer, judged from what has been written so far.

An outcome reward model (ORM) of Havrilla et al. 2024 predicts p(correct | question, prefix) for a prefix of an attempt,
which may be the whole of it. Here it is a causal language model with a head of one logit in place of its own: causal
attention makes the logit at a token depend on the text up to that token alone, so one forward pass judges every prefix,
and a key-value cache judges an attempt while it is being written.

A preference model has the same form. Its logit is a reward, which is comparable among attempts at one problem.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..arrays import FloatArray, IntArray
from ..files import naming, read_object
from ..registry import unknown_name
from .engine.scorer import SlotScorer
from .engine.self_check import check_training, fits_slots
from .forward import Index, default_micro_batch_tokens, micro_batches, selected_logits, sigmoid
from .layers import deep_copy, trunk
from .linear import use_onednn
from .loading import DTYPES, OUTCOME_RECORD, check_shapes, check_vocabulary, find_device, no_progress_bars
from .positions import check_length, position_limit
from .token_scorer import TokenScorer
from .tokenizers import TINY_ORM, TINY_ORM_FOLDER, load_tokenizer, model_folder, name_built_in

if TYPE_CHECKING:
    from peft import PeftModel


KINDS = ("orm", "sorm", "preference", "prm")
"""What a model learned: the chance that an attempt succeeds, whether any continuation of the prefix was correct, which
of two attempts at one problem is right, or whether the last step is right. Scores of preference models compare attempts
at one problem, and are no probabilities; those of process reward models (PRM) are probabilities of steps."""


class OutcomeModel:
    """p(correct | question, prefix), read at chosen tokens.

    Args:
        model: Model with one logit per token: a `TokenScorer`, or a `*ForTokenClassification` of transformers with one
            label and causal attention.
        tokenizer: Tokenizer of the model.
        kind: Kind of outcome model: "orm", "sorm", "preference" or "prm"; see `KINDS`.

    Raises:
        UnknownNameError: There is no such kind.
        ValueError: The model has another number of labels, or lacks ids of the tokenizer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
        if kind not in KINDS:
            raise unknown_name("kind of outcome model", kind, KINDS)
        if model.config.num_labels != 1:
            raise ValueError(f"an outcome model has one label, this {type(model).__name__} {model.config.num_labels}")
        check_vocabulary(model, tokenizer)
        check_training(model)
        self.model = model
        self.tokenizer = tokenizer
        self.kind = kind

    @classmethod
    def from_causal_lm(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str, seed: int = 0
    ) -> Self:
        """An untrained outcome model: a copy of a language model's trunk, LoRA adapters merged, under a new head.

        It has no dropout, is in evaluation mode, and is on the device and of the precision of `model`.

        Args:
            model: Language model, which is not changed.
            tokenizer: Tokenizer of the model.
            kind: Kind of outcome model: "orm", "sorm", "preference" or "prm".
            seed: Seed of the head's weights.

        Raises:
            ValueError: Padding or later tokens change what the model computes at a token; see `self_check`.
        """
        if hasattr(model, "merge_and_unload"):
            model = cast("PeftModel", deep_copy(model)).merge_and_unload()  # pyright: ignore[reportAssignmentType]
        config = copy.deepcopy(model.config)
        config.num_labels = 1
        _remove_dropout(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            scorer: Any = TokenScorer._from_config(config, dtype=model.dtype)
        scorer.base_model.load_state_dict(trunk(model).state_dict())
        return cls(use_onednn(scorer.to(model.device)).eval(), tokenizer, kind)

    @classmethod
    def load(
        cls,
        path: str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> Self:
        """Reads what `save` wrote; the model is in evaluation mode.

        Args:
            path: Folder that `save` wrote, or that of the run which did, or "tokengym/tiny-orm".
            tokenizer: Tokenizer of the attempts to be scored, if the model must fit them.
            device: Device of the model; by default a GPU if there is one.
            dtype: Data type of the weights, "float32" or "bfloat16"; by default that which they were saved in, and
                float32 for "tokengym/tiny-orm".

        Raises:
            FileNotFoundError: There is no such folder.
            UnknownNameError: There is no such built-in outcome model or dtype.
            ValueError: The folder holds no outcome model, or one that was trained with another tokenizer.
        """
        if dtype is not None and dtype not in DTYPES:
            raise unknown_name("dtype", dtype, DTYPES)
        folder, (kind, own) = _locate(path), saved_kind(path, tokenizer)
        with no_progress_bars(), naming(folder):
            config = AutoConfig.from_pretrained(folder)
            # The built-in model's file is in bfloat16 to be small, as the built-in policy's is.
            precision = dtype or ("float32" if folder == TINY_ORM_FOLDER else "auto")
            loaded: Any = TokenScorer.from_pretrained(
                folder, config=config, dtype=precision, output_loading_info=True, ignore_mismatched_sizes=True
            )
        model, report = loaded
        check_shapes(str(path), report)
        name_built_in(model)
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"the outcome model {str(path)!r} lacks {len(missing)} weights, the first {missing[0]!r}")
        return cls(use_onednn(model.to(find_device(device))).eval(), own, kind)

    def save(self, folder: str | Path) -> None:
        """Writes weights, configuration, tokenizer and kind into `folder`."""
        folder = Path(folder)
        with no_progress_bars():
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (folder / OUTCOME_RECORD).write_text(json.dumps({"kind": self.kind}) + "\n")

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises `ValueError` unless `tokenizer` has the tokens that the model was trained on."""
        _check_same_tokens(str(self.model.name_or_path), self.tokenizer, tokenizer)

    def check_probability(self, use: str) -> None:
        """Raises `ValueError` if scores are not p(correct), and a `use` that needs it is named."""
        check_probability(self.kind, str(self.model.name_or_path), use)

    @property
    def aggregate(self) -> Literal["last", "product"]:
        """Score of a whole attempt: its last step's, or for models that judge single steps the product of all."""
        return "product" if self.kind == "prm" else "last"

    @property
    def head(self) -> nn.Linear:
        """The layer from a hidden state to the logit."""
        trunk = self.model.base_model
        (head,) = (part for part in self.model.children() if part is not trunk and isinstance(part, nn.Linear))
        return head

    @property
    def limit(self) -> int:
        """The longest sequence, in tokens, that the model can judge."""
        return position_limit(self.model.config)[0]

    def logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        select: Index,
        model: nn.Module | None = None,
        **inputs: Tensor,
    ) -> Tensor:
        """Logits `[A]`, float32, of p(correct) after each of the A selected tokens.

        Args:
            input_ids: `[B, T]` right-padded tokens.
            attention_mask: `[B, T]` with 1 at tokens, or a mask for attention itself, `[B, 1, T, T]`.
            select: Positions at which the head runs, and nowhere else.
            model: Module to call instead of `self.model`: a wrapper of it for data-parallel training.
            inputs: Further arguments of the model.
        """
        model = self.model if model is None else model
        return selected_logits(model, self.head, input_ids, attention_mask, select, **inputs)[:, 0].float()

    @torch.inference_mode()
    def score(
        self, sequences: Sequence[IntArray], positions: Sequence[IntArray], micro_batch_tokens: int | None = None
    ) -> list[FloatArray]:
        """p(correct) at chosen tokens of whole sequences, each in one forward pass.

        Args:
            sequences: S of them, prompt and completion `[T]` each.
            positions: Indices `[P]` of the tokens of each sequence after which to read the score; P may be 0.
            micro_batch_tokens: Tokens in one forward pass, padding included; by default what suits the device.

        Returns:
            Scores `[P]` of each sequence.

        Raises:
            ValueError: A position is outside its sequence, or past the model's positions.
        """
        scores = [np.empty(0)] * len(sequences)
        for rows, select, logits in self._passes(sequences, positions, micro_batch_tokens):
            # Selected logits come in the order of the positions, each once: spread them before they are read.
            table = np.zeros(select.shape)
            table[select] = logits
            for row, i in enumerate(rows):
                scores[i] = sigmoid(table[row, positions[i]])
        return scores

    @torch.inference_mode()
    def features(self, sequences: Sequence[IntArray], micro_batch_tokens: int | None = None) -> FloatArray:
        """Hidden states `[S, H]` that the head reads at the last token of whole sequences.

        Args:
            sequences: S of them, prompt and completion `[T]` each.
            micro_batch_tokens: Tokens in one forward pass, padding included; by default what suits the device.

        Raises:
            ValueError: A sequence is empty, or longer than the model's positions.
        """
        states: list[Tensor] = []
        found = np.empty((len(sequences), self.head.in_features))
        hook = self.head.register_forward_hook(lambda _, inputs, __: states.append(inputs[0]))
        try:
            lasts = [np.array([len(sequence) - 1]) for sequence in sequences]
            for rows, _, _ in self._passes(sequences, lasts, micro_batch_tokens):
                found[rows] = states.pop().double().cpu().numpy()
        finally:
            hook.remove()
        return found

    def _passes(
        self, sequences: Sequence[IntArray], positions: Sequence[IntArray], micro_batch_tokens: int | None
    ) -> Iterator[tuple[IntArray, NDArray[np.bool_], FloatArray]]:
        """Forward passes over sequences: their numbers `[B]`, the positions `[B, T]` that are read, and logits there.

        Raises:
            ValueError: A position is outside its sequence, or past the model's positions.
        """
        # Nothing after the last position that is read has any part in the logits.
        lengths = np.zeros(len(sequences), np.int64)
        for i, (sequence, wanted) in enumerate(zip(sequences, positions, strict=True)):
            lengths[i] = max(wanted, default=-1) + 1
            if lengths[i] > len(sequence) or min(wanted, default=0) < 0:
                raise ValueError(f"sequence {i} has {len(sequence)} tokens: none at positions {list(wanted)}")
        if len(sequences):
            check_length(self.model.config, int(lengths.max()))
        read = np.flatnonzero(lengths)
        at_once = micro_batch_tokens or default_micro_batch_tokens(self.model.device)
        for group in micro_batches(lengths[read].tolist(), at_once):
            rows = read[group]
            width = int(lengths[rows].max())
            ids, mask = np.zeros((2, len(rows), width), np.int64)
            select = np.zeros((len(rows), width), bool)
            for row, i in enumerate(rows):
                ids[row, : lengths[i]] = sequences[i][: lengths[i]]
                mask[row, : lengths[i]] = 1
                select[row, positions[i]] = True
            logits = self.logits(self._tensor(ids), self._tensor(mask), self._tensor(select))
            yield rows, select, logits.cpu().numpy()

    def scorer(self, num_slots: int) -> "SlotScorer | WholeScorer":
        """Scores the attempts in an environment's slots as they grow; the model is put in evaluation mode."""
        self.model.eval()
        return SlotScorer(self.model, self.head, num_slots) if fits_slots(self.model) else WholeScorer(self)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.model.device, non_blocking=True)


class WholeScorer:
    """The interface of `SlotScorer` by passes over whole sequences, for models whose caches take no batch of slots."""

    def __init__(self, outcome_model: OutcomeModel) -> None:
        self._outcome_model = outcome_model

    def begin(self, slots: IntArray, prompts: Sequence[IntArray]) -> None:
        """New sequences begin in `slots` `[M]`; see `SlotScorer.begin`."""
        check_length(self._outcome_model.model.config, max(len(prompt) for prompt in prompts))

    def score(self, slots: IntArray, sequences: Sequence[IntArray], positions: Sequence[IntArray]) -> list[FloatArray]:
        """p(correct) at chosen tokens of the sequences in some slots; see `SlotScorer.score`."""
        return self._outcome_model.score(sequences, positions)


def saved_kind(
    path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[str, PreTrainedTokenizerBase]:
    """Kind and tokenizer of a saved outcome model, whose weights are not read.

    Args:
        path: Folder that `OutcomeModel.save` wrote, or "tokengym/tiny-orm".
        tokenizer: Tokenizer of the attempts to be scored, if the model must fit them.

    Raises:
        FileNotFoundError: There is no such folder.
        UnknownNameError: There is no such built-in outcome model.
        ValueError: The folder holds no outcome model, or one that was trained with another tokenizer.
    """
    folder = _locate(path)
    if not folder.exists():
        if str(path).startswith("tokengym/"):
            raise unknown_name("outcome model", str(path), (TINY_ORM,))
        raise FileNotFoundError(f"there is no outcome model {str(path)!r}: no such folder as {folder.absolute()}")
    if not is_outcome_model(folder):
        raise ValueError(
            f"{str(path)!r} is not an outcome model: it holds no {OUTCOME_RECORD}. `tokengym train orm` trains one"
        )
    own = load_tokenizer(folder)
    if tokenizer is not None:
        _check_same_tokens(str(path), own, tokenizer)
    return read_object(folder / OUTCOME_RECORD, "kind")["kind"], own


def check_probability(kind: str, name: str, use: str) -> None:
    """Raises `ValueError` if scores of a kind of outcome model are not p(correct); names the model and its `use`."""
    what = {
        "preference": "preference model, whose scores only compare attempts at one problem",
        "prm": "process reward model, whose scores say whether a single step is right",
    }.get(kind)
    if what is not None:
        raise ValueError(
            f"{use} needs p(correct), and {name!r} is a {what}: train an outcome model with `tokengym train orm`"
        )


def is_outcome_model(path: str | Path) -> bool:
    """True if a path is a folder that `OutcomeModel.save` wrote, or names the built-in outcome model."""
    return (_locate(path) / OUTCOME_RECORD).is_file()


def _locate(path: str | Path) -> Path:
    folder = Path(path).expanduser()
    return TINY_ORM_FOLDER if str(path) == TINY_ORM and not folder.exists() else model_folder(folder)


def _remove_dropout(config: PreTrainedConfig) -> None:
    """Sets every dropout rate of `config` to 0, that of the head included: scores must not be random."""
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    config.classifier_dropout = 0.0  # transformers' own default is 0.1


def _check_same_tokens(path: str, own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> None:
    if own is other:
        return
    ours, theirs = own.get_vocab(), other.get_vocab()
    if ours == theirs:
        return
    first = min({*ours.items()} ^ {*theirs.items()}, key=lambda item: item[1])[1]
    mine, yours = own.convert_ids_to_tokens([first])[0], other.convert_ids_to_tokens([first])[0]
    raise ValueError(
        f"the outcome model {path!r} was trained with another tokenizer, of {len(ours)} tokens, than the attempts', "
        f"{other.name_or_path!r} of {len(theirs)}: id {first} is {mine!r} to the one and {yours!r} to the other. Train "
        "an outcome model on attempts of the policy that it is to judge"
    )
