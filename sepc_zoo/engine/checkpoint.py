"""The state of a run: saved whole, and picked up where it was."""

import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from sepc_zoo.errors import UserError

STATE, NEW_STATE, OLD_STATE = "state", ".state.new", ".state.old"


class ResumeError(UserError, ValueError):
    """A run folder that cannot be resumed."""


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0  # of the optimizer, done
    epoch: int = 0  # done and validated
    best_ap: float = -math.inf  # of no validation yet; COCO's AP of nothing to find is -1

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.epoch = state["step"], state["epoch"]
        self.best_ap = state["best_ap"]


def save_state(accelerator: Accelerator, run: Path) -> None:
    """Save all that ``accelerator`` holds; at every moment one whole state is there."""
    accelerator.save_state(str(run / NEW_STATE))
    accelerator.wait_for_everyone()  # each process writes its random state into the folder
    if accelerator.is_main_process:
        if (run / STATE).exists():
            shutil.rmtree(run / OLD_STATE, ignore_errors=True)
            (run / STATE).rename(run / OLD_STATE)
        (run / NEW_STATE).rename(run / STATE)
        shutil.rmtree(run / OLD_STATE, ignore_errors=True)
    accelerator.wait_for_everyone()


def load_state(accelerator: Accelerator, run: Path) -> None:
    """Load what ``save_state`` saved last.

    Raises:
        ResumeError: the run saved none.
    """
    state = saved_state(run)
    if state is None:
        raise ResumeError(
            f"{run} has no {STATE} folder to resume from; start it anew without --resume"
        )
    accelerator.load_state(str(state))


def saved_state(run: Path) -> Path | None:
    """The whole state that a run folder holds."""
    return next((run / name for name in (STATE, OLD_STATE) if (run / name).is_dir()), None)
