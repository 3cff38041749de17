"""The state of a run: saved as a whole, and loaded to resume it."""

import hashlib
import io
import math
import pickle
import random
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from sepc_zoo.data import Annotations
from sepc_zoo.errors import UserError
from sepc_zoo.files import write_atomically
from sepc_zoo.terminal import quoted

STATE_FILE, PREVIOUS_FILE = "state.pt", "state.previous.pt"
RANDOM = "random"  # entry of the state: the random numbers of each process


class ResumeError(UserError, ValueError):
    """The run in a folder cannot be resumed."""


@runtime_checkable
class Stateful(Protocol):
    """A part of a run that can be saved: a model, an optimizer, a scheduler, a scaler."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


@dataclass
class Progress:
    """The position of a run, saved with it."""

    images: int = 0  # images of the training split
    train_data: str = ""  # ``digest`` of the training split
    val_data: str = ""  # ``digest`` of the validation split
    transform: str = ""  # name of the user's transform
    step: int = 0  # finished steps of the optimizer
    epoch: int = 0  # finished epochs, with their validation
    best_ap: float = -math.inf  # COCO's AP is -1 where there is nothing to find
    best_epoch: int = 0
    skipped_in_a_row: int = 0  # last steps whose loss or gradient was not finite

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["images"] != self.images:
            raise ResumeError(
                f"an epoch had {state['images']} images when the run was saved, now it has "
                f"{self.images}: resume with the same data"
            )
        for split in ("train", "val"):
            if state[f"{split}_data"] != getattr(self, f"{split}_data"):
                raise ResumeError(
                    f"the {split} split is not the one that the run was saved with: classes, image "
                    "files, boxes or their order differ; resume with the same data"
                )
        if state["transform"] != self.transform:
            was, now = (name or "none" for name in (state["transform"], self.transform))
            raise ResumeError(
                f"the run was started with transform {was}, not with {now}: resume it in Python "
                "with the same one"
            )
        for entry in fields(self):
            setattr(self, entry.name, state[entry.name])


def save_state(parts: Mapping[str, Stateful], run: Path) -> None:
    """Save all parts of a run, and the random numbers of each process; called by all processes.

    Raises:
        OSError: the disk is full or cannot be written to; the previous state is still there.
    """
    random_numbers = gather_object([random_state()])
    process = PartialState()
    if process.is_main_process:
        state = {name: part.state_dict() for name, part in parts.items()} | {RANDOM: random_numbers}
        previous = run / PREVIOUS_FILE
        try:
            previous.unlink(missing_ok=True)  # three states at a time may not fit on the disk
            write_atomically(run / STATE_FILE, lambda file: write_state(state, file), previous)
        except OSError as error:
            raise OSError(f"the state of the run cannot be written to {run}: {error}") from error
    process.wait_for_everyone()


def write_state(state: Mapping[str, Any], file: Path) -> None:
    content = io.BytesIO()  # torch.save would report a full disk as "unexpected pos"
    torch.save(state, content)
    file.write_bytes(content.getbuffer())


def is_saved(run: Path) -> bool:
    """Whether a folder has a state to resume from."""
    return any((run / name).is_file() for name in (STATE_FILE, PREVIOUS_FILE))


def load_state(parts: Mapping[str, Stateful], run: Path) -> str:
    """Load the last state of a run into its parts, or the one before where it is damaged.

    Returns:
        What is damaged, or "".

    Raises:
        ResumeError: both are damaged, or it was saved by another number of processes or with other
            data.
    """
    file, damage = run / STATE_FILE, ""
    try:
        state = read_state(file)
    except ResumeError as error:
        if zipfile.is_zipfile(file) or not (run / PREVIOUS_FILE).is_file():
            raise  # a whole file that was refused, or the only one
        file = run / PREVIOUS_FILE
        state, damage = read_state(file), f"{str(error).partition('. ')[0]}; took {file} instead"
    process = PartialState()
    random_numbers = state.pop(RANDOM, [])
    if len(random_numbers) != process.num_processes:
        raise ResumeError(
            f"{run} was saved by {len(random_numbers)} processes and needs as many to resume, but "
            f"there are {process.num_processes}"
        )
    for names, what in (
        (set(state) - set(parts), "has the state of callback {}: give it again, in Python"),
        (set(parts) - set(state), "has no state of callback {}: leave it out"),
    ):
        if names:
            raise ResumeError(f"{file} {what.format(', '.join(sorted(names)))}")
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        set_random_state(random_numbers[process.process_index])
    except ResumeError:
        raise
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ResumeError(f"{file} does not fit the run: {error}") from error
    return damage


def read_state(file: Path) -> dict[str, Any]:
    """Read a file of ``write_state``; code in it is not run."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = f"it is damaged ({str(error).partition('. ')[0]})"  # without torch's advice
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds code, or is no state"
        raise ResumeError(
            f"{file} cannot be resumed from: {reason}. Start a new run, perhaps from --model "
            f"{quoted(file.parent / 'last')}"
        ) from error


def random_state() -> dict[str, Any]:
    """The state of this process's random generators, in types that load without code."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.array(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])


def digest(annotations: Annotations) -> str:
    """Identify a split by its classes, images and boxes in their order; folders do not count."""
    records = annotations.records
    names = [records.path(i).name for i in range(len(records))]
    content = hashlib.sha256(repr((annotations.label_names, names)).encode())
    for column in (records.image_ids, records.sizes, records.starts, *records.columns()):
        content.update(column.tobytes())
    return content.hexdigest()
