"""The state of a run: saved whole, and picked up where it was."""

import math
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import PartialState

from sepc_zoo.errors import UserError

STATE, NEW_STATE, OLD_STATE = "state", ".state.new", ".state.old"


class ResumeError(UserError, ValueError):
    """A run folder that cannot be resumed."""


class SaveError(UserError, OSError):
    """A state that could not be written; the one before it is still there."""


class Stateful(Protocol):
    """What can be saved: a model, an optimizer, a scheduler, a scaler."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


@dataclass
class Progress:
    """How far a run has come."""

    batches: int = 0  # in an epoch, of each process
    step: int = 0  # of the optimizer, done
    epoch: int = 0  # done and validated
    best_ap: float = -math.inf  # of no validation yet; COCO's AP of nothing to find is -1
    best_epoch: int = 0
    skipped_in_a_row: int = 0  # steps whose loss or gradient was not finite

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["batches"] != self.batches:
            raise ResumeError(
                f"an epoch had {state['batches']} batches when the run was saved, now it has "
                f"{self.batches}: resume with the same data and as many processes"
            )
        for entry in fields(self):
            setattr(self, entry.name, state[entry.name])


def save_state(parts: Mapping[str, Stateful], run: Path) -> None:
    """Save all parts and the random numbers of each process; always one whole state is there.

    To be called by all processes.

    Raises:
        SaveError: the disk is full, or not to be written to.
    """
    processes = PartialState()
    folder = run / NEW_STATE
    try:
        if processes.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            torch.save({name: part.state_dict() for name, part in parts.items()}, folder / "run.pt")
        processes.wait_for_everyone()
        torch.save(random_state(), folder / f"random_{processes.process_index}.pt")
        processes.wait_for_everyone()
        if processes.is_main_process:
            replace_state(run)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        shutil.rmtree(folder, ignore_errors=True)
        raise SaveError(f"the state of the run cannot be written to {run}: {error}") from error
    processes.wait_for_everyone()


def replace_state(run: Path) -> None:
    """The new state takes the place of the old one."""
    if (run / STATE).exists():
        shutil.rmtree(run / OLD_STATE, ignore_errors=True)
        (run / STATE).rename(run / OLD_STATE)
    (run / NEW_STATE).rename(run / STATE)
    shutil.rmtree(run / OLD_STATE, ignore_errors=True)


def load_state(parts: Mapping[str, Stateful], run: Path) -> None:
    """Load what ``save_state`` saved last.

    Raises:
        ResumeError: it was saved by another number of processes, or with other data.
    """
    folder = saved_state(run) or run / STATE
    file = folder / f"random_{PartialState().process_index}.pt"
    if len(list(folder.glob("random_*.pt"))) != PartialState().num_processes or not file.exists():
        raise ResumeError(f"{run} was not saved by {PartialState().num_processes} processes")
    state = torch.load(folder / "run.pt", map_location="cpu", weights_only=True)
    if set(state) != set(parts):
        raise ResumeError(f"{folder} holds {sorted(state)}, but the run has {sorted(parts)}")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    set_random_state(torch.load(file, weights_only=True))


def saved_state(run: Path) -> Path | None:
    """The whole state that a run folder holds."""
    return next((run / name for name in (STATE, OLD_STATE) if (run / name).is_dir()), None)


def random_state() -> dict[str, Any]:
    """Where the random numbers of this process stand, in types that need no code to be loaded."""
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
