"""The folder of a run: its lock, and the files that a new run may find there."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from sepc_zoo.data.splitting import SPLIT_FILE
from sepc_zoo.files import TEMPORARY_NAME
from sepc_zoo.terminal import quoted, shorten
from sepc_zoo.training.checkpoint import ResumeError, is_saved
from sepc_zoo.training.config_file import OPTIONS_FILE, read_options
from sepc_zoo.training.logging import LOG_FILE
from sepc_zoo.training.options import TrainError
from sepc_zoo.training.resilience.faults import FAULTS_FILE, SKIPPED_FOLDER

MODEL_FILE = "model.json"  # config of the run's model, so that resuming needs no other weights
LOCK_FILE, OWNER_FILE = ".sepc_zoo.lock", ".sepc_zoo.owner"
# Files and folders that a run writes before its first state.
FIRST_NAMES = {OPTIONS_FILE, MODEL_FILE, SPLIT_FILE, LOG_FILE, FAULTS_FILE}
FIRST_NAMES |= {SKIPPED_FOLDER, "batches", "tracking"}


def check_output(output: Path, resume: bool) -> None:
    """Refuse to overwrite a run or other files, and to resume a run that does not exist.

    A run that ended before its first save may be started again.
    """
    if resume and not is_saved(output):
        raise ResumeError(f"{output} has no state to resume from; start it again without --resume")
    if resume or not output.is_dir():
        return
    if is_saved(output):
        raise TrainError(
            f"{output} holds a run: go on with --resume {quoted(output)}, or choose another "
            "--output"
        )
    there = {p.name for p in output.iterdir() if not TEMPORARY_NAME.fullmatch(p.name)}
    there -= {LOCK_FILE, OWNER_FILE}
    if there <= FIRST_NAMES:
        with suppress(TrainError):
            read_options(output)
            return
    if there:
        raise TrainError(
            f"{output} is not empty: {shorten(sorted(there - FIRST_NAMES or there))} would be "
            "mixed with the run; choose another --output"
        )


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the lock of a run folder; the system frees it when the main process dies.

    Called by all processes.

    Raises:
        TrainError: another run has the lock; names its process and host.
    """
    lock = FileLock(run / LOCK_FILE)
    try:
        refusal = [_acquire(lock, run) if PartialState().is_main_process else ""]
        broadcast_object_list(refusal)
        if refusal[0]:
            raise TrainError(refusal[0])
        yield
    finally:
        if lock.is_locked:
            for name in (OWNER_FILE, LOCK_FILE):
                (run / name).unlink(missing_ok=True)
            lock.release()


def _acquire(lock: FileLock, run: Path) -> str:
    """Take the lock and write who has it; the reason where another process has it, else ""."""
    owner = run / OWNER_FILE
    run.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        name = owner.read_text() if owner.exists() else "another process"
        return f"{run} is in use by {name}: let it end, or choose another --output"
    owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    return ""
