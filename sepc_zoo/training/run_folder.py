"""The folder of a run: its lock, and the files that a new run may find there."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sepc_zoo.data.splitting import SPLIT_FILE
from sepc_zoo.files import TEMPORARY_NAME
from sepc_zoo.ops.distributed import on_main_process
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
        TrainError: another run has the lock; names its process and host. In other processes than
            the main one, UserError.
    """
    lock = FileLock(run / LOCK_FILE)
    try:
        on_main_process(_acquire, lock, run)
        yield
    finally:
        if lock.is_locked:
            for name in (OWNER_FILE, LOCK_FILE):
                (run / name).unlink(missing_ok=True)
            lock.release()


def _acquire(lock: FileLock, run: Path) -> None:
    """Take the lock and write who has it."""
    owner = run / OWNER_FILE
    run.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        name = owner.read_text() if owner.exists() else "another process"
        text = f"{run} is in use by {name}: let it end, or choose another --output"
        raise TrainError(text) from error
    owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
