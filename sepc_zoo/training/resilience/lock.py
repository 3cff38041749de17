"""The lock of a run folder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from sepc_zoo.training.options import TrainError

LOCK_FILE, OWNER_FILE = ".sepc_zoo.lock", ".sepc_zoo.owner"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the lock of a run folder; the system frees it when the main process dies.

    Must be called by all processes.

    Raises:
        TrainError: another run has the lock; names its process and host.
    """
    lock = FileLock(run / LOCK_FILE)
    try:
        refusal = [acquire(lock, run) if PartialState().is_main_process else ""]
        broadcast_object_list(refusal)
        if refusal[0]:
            raise TrainError(refusal[0])
        yield
    finally:
        if lock.is_locked:
            for name in (OWNER_FILE, LOCK_FILE):
                (run / name).unlink(missing_ok=True)
            lock.release()


def acquire(lock: FileLock, run: Path) -> str:
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
