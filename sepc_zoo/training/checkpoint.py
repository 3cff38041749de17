"""The state of a run: saved as a whole, and loaded to resume it."""

import io
import math
import pickle
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from accelerate import PartialState

from sepc_zoo.errors import UserError

STATE, NEW_STATE, OLD_STATE = "state", ".state.new", ".state.old"
RUN_FILE = "run.pt"  # file in a state, beside the random numbers of each process


class ResumeError(UserError, ValueError):
    """The run in a folder cannot be resumed."""


class SaveError(UserError, OSError):
    """The state could not be written; the previous one is still there."""


@runtime_checkable
class Stateful(Protocol):
    """A part of a run that can be saved: a model, an optimizer, a scheduler, a scaler."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


@dataclass
class Progress:
    """How far a run has come; saved with it."""

    images: int = 0  # images of the training split
    batches: int = 0  # batches per epoch of each process
    step: int = 0  # finished steps of the optimizer
    epoch: int = 0  # finished epochs, with their validation
    best_ap: float = -math.inf  # COCO's AP is -1 where there is nothing to find
    best_epoch: int = 0
    skipped_in_a_row: int = 0  # last steps whose loss or gradient was not finite

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("images", "batches"):
            now = getattr(self, name)
            if state[name] != now:
                raise ResumeError(
                    f"an epoch had {state[name]} {name} when the run was saved, now it has {now}: "
                    "resume with the same data"
                )
        for entry in fields(self):
            setattr(self, entry.name, state[entry.name])


def save_state(parts: Mapping[str, Stateful], run: Path) -> None:
    """Save all parts of a run and the random numbers of each process.

    At any moment one whole state is on the disk. Must be called by all processes.

    Raises:
        SaveError: the disk is full or cannot be written to.
    """
    processes = PartialState()
    folder = run / NEW_STATE
    try:
        if processes.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            states = {name: part.state_dict() for name, part in parts.items()}
            write_state(states, folder / RUN_FILE)
        processes.wait_for_everyone()
        write_state(random_state(), folder / f"random_{processes.process_index}.pt")
        processes.wait_for_everyone()
        if processes.is_main_process:
            replace_state(run)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise SaveError(f"the state of the run cannot be written to {run}: {error}") from error
    processes.wait_for_everyone()


def write_state(state: Mapping[str, Any], file: Path) -> None:
    """Write a file that ``read_state`` reads."""
    content = io.BytesIO()  # torch.save would report a full disk as "unexpected pos"
    torch.save(state, content)
    file.write_bytes(content.getbuffer())


def replace_state(run: Path) -> None:
    """Replace the old state of a run by the new one."""
    if (run / STATE).exists():
        shutil.rmtree(run / OLD_STATE, ignore_errors=True)
        (run / STATE).rename(run / OLD_STATE)
    (run / NEW_STATE).rename(run / STATE)
    shutil.rmtree(run / OLD_STATE, ignore_errors=True)


def load_state(parts: Mapping[str, Stateful], run: Path) -> None:
    """Load the last state of a run into its parts.

    Raises:
        ResumeError: it is damaged, or was saved by another number of processes or with other data.
    """
    folder = saved_state(run) or run / STATE
    processes = PartialState()
    saved_by = len(list(folder.glob("random_*.pt")))
    if saved_by != processes.num_processes:
        raise ResumeError(
            f"{run} was saved by {saved_by} processes, and can be resumed by as many; there are "
            f"{processes.num_processes}"
        )
    state = read_state(folder / RUN_FILE)
    random_numbers = read_state(folder / f"random_{processes.process_index}.pt")
    if set(state) != set(parts):
        raise ResumeError(f"{folder} holds {sorted(state)}, but the run has {sorted(parts)}")
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        set_random_state(random_numbers)
    except ResumeError:
        raise
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ResumeError(f"{folder} does not fit the run: {error}") from error


def read_state(file: Path) -> dict[str, Any]:
    """Read a file of ``write_state``; code in it is not run.

    Raises:
        ResumeError: the file is damaged or holds code.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        is_no_state = isinstance(error, pickle.UnpicklingError)
        first, *_ = str(error).split(". ")  # the rest of torch's message is advice
        reason = "it holds code, or is no state" if is_no_state else f"it is damaged ({first})"
        raise ResumeError(
            f"{file} cannot be resumed from: {reason}. Start a new run, perhaps from --model "
            f"{file.parents[1] / 'last'}"
        ) from error


def saved_state(run: Path) -> Path | None:
    """Find the last whole state in a run folder."""
    return next((run / name for name in (STATE, OLD_STATE) if (run / name).is_dir()), None)


def random_state() -> dict[str, Any]:
    """Return the state of this process's random generators, in types that load without code."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.array(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore the random generators of this process from ``random_state``."""
    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
