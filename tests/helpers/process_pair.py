"""Two processes that live on and call functions together, as if a launcher had started them."""

import os
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

COUNT = 2
GRACE = 10  # seconds for the other process once one has failed


class Failure(NamedTuple):
    """A function raised in a process; its traceback."""

    traceback: str


class ProcessPair:
    """Starts its processes with the first call, and again after a call that failed."""

    def __init__(self) -> None:
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def __call__(self, function: Callable[..., Any], *args: Any, seconds: float = 120) -> list[Any]:
        """Return ``function(*args)`` of each process; it must be a function of a module.

        Raises:
            AssertionError: it raised in one of them, or took longer than ``seconds``.
        """
        self._start()
        for pipe in self._pipes:
            pipe.send((function, args))
        results: list[Any] = []
        deadline = time.monotonic() + seconds
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(max(0, deadline - time.monotonic())):
                results.append(Failure(f"process {rank} did not come to an end"))
            else:
                results.append(_received(pipe))
            if isinstance(results[-1], Failure):
                deadline = min(deadline, time.monotonic() + GRACE)
        failures = [result.traceback for result in results if isinstance(result, Failure)]
        if failures:
            self.close()
            raise AssertionError("\n".join(failures))
        return results

    def _start(self) -> None:
        if self._processes:
            return
        context, port = get_context("spawn"), free_port()
        for rank in range(COUNT):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, port, theirs), daemon=False)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def close(self) -> None:
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            pipe.close()
            process.join(timeout=1)
            process.kill()
            process.join()
        self._processes, self._pipes = [], []


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _received(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        return Failure("a process died")


def _serve(rank: int, port: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    os.environ |= {"WORLD_SIZE": str(COUNT), "LOCAL_WORLD_SIZE": str(COUNT)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    set_start_method("fork", force=True)  # of workers, as in a process that a launcher has started
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            result = function(*args)
        except BaseException:
            result = Failure(f"process {rank}: {traceback.format_exc()}")
        pipe.send(result)
