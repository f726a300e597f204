"""Checkpoints of training in progress: a learner's state and JSON values, the newest kept, written all at once."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ...files import DamagedFileError, new_folder, read_object, read_tensors, remove_folder, write_json
from .learner import Learner
from .sharding import gathered


def save_checkpoint(
    learner: Learner,
    folder: Path,
    state: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes `step-<updates>` into `folder` and removes the older ones.

    All processes may call it, and must where the model is sharded; the main one writes.

    Args:
        learner: Learner whose weights and optimizer state are written.
        folder: Folder to write to; it is made if it does not exist.
        state: JSON values to keep with them.
        tensors: Tensors to save with them, by name.
    """
    tensors = gathered(tensors or {}, learner.ranks.is_main)
    if not learner.ranks.is_main:
        learner.save(None)
        return
    with new_folder(folder / f"step-{learner.steps}") as checkpoint:
        learner.save(checkpoint)
        if tensors:
            save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, checkpoint / _TENSORS)
        write_json(checkpoint / "state.json", {"steps": learner.steps, **(state or {})})
    for older in _saved(folder)[:-1]:
        remove_folder(older)
    for leftover in folder.glob(".step-*.old"):  # of a process that was killed while it removed one
        shutil.rmtree(leftover, ignore_errors=True)


def load_checkpoint(learner: Learner, folder: Path | None) -> dict[str, Any]:
    """Restores the newest checkpoint in `folder`; its JSON values, none where there is no checkpoint.

    Raises:
        DamagedFileError: A file of it is damaged or missing.
    """
    saved = _saved(folder) if folder is not None else []
    if not saved:
        return {}
    try:
        state = read_object(saved[-1] / "state.json", "steps")
        learner.load(saved[-1], state["steps"])
    except (DamagedFileError, FileNotFoundError) as error:
        raise DamagedFileError(
            f"the checkpoint {saved[-1]} cannot be read ({error}). Delete that folder, and learning continues from the "
            "checkpoint before it, or from the beginning where there is none"
        ) from error
    return state


def load_tensors(folder: Path | None) -> dict[str, Tensor]:
    """The tensors that were kept with the newest checkpoint in `folder`; none where there are none."""
    saved = _saved(folder) if folder is not None else []
    return read_tensors(saved[-1] / _TENSORS) if saved and (saved[-1] / _TENSORS).exists() else {}


_TENSORS = "tensors.safetensors"


def _saved(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal())
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))
