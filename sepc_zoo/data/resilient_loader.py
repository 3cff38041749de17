"""Loading batches through interruptions: signals to the process group, and workers that die.

A batch that does not fit into the shared memory (64 MiB in Docker) is copied through a pipe.
"""

import atexit
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from accelerate import skip_first_batches
from accelerate.data_loader import DataLoaderShard
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor
from torch.utils.data import DataLoader

WORKER_DIED = "DataLoader worker"  # start of torch's message about a dead worker
MIN_SHARED = 2**16  # bytes from which a tensor goes into shared memory
PASSED_ON = "Caught "  # start of torch's message about an error in a living worker


@dataclass(eq=False)
class ResilientLoader:
    """The batches of a loader; after the death of a worker, new workers go on at the next batch.

    Torch's handler of SIGCHLD, which raises at any line of the main thread, is replaced by the
    handler from before; a loader finds dead workers without it, within seconds.

    Args:
        loader: Loads batches, as torch or ``accelerator.prepare`` returns it.
        on_worker_death: Called with torch's message; raises to give up.
        waiting: Returns a context that is entered while a batch is waited for.
        on_batch: Called with each batch before it is used.
    """

    loader: DataLoader
    on_worker_death: Callable[[str], object]
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext
    on_batch: Callable[[Any], object] = lambda _: None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return self.batches()

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """Load the batches of an epoch from number ``start`` on, without reading those before."""
        loader = skip_first_batches(self.loader, start) if start else self.loader
        handler = child_handler()
        while True:
            if isinstance(loader, DataLoaderShard):
                loader.set_epoch(epoch)
            first = start
            try:
                batches = None
                while True:
                    with self.waiting():
                        batches = iter(loader) if batches is None else batches
                        batch = next(batches, None)
                    if batch is None:
                        return
                    if start == first:  # the workers have just been started
                        restore_child_handler(handler)
                    start += 1
                    self.on_batch(batch)
                    yield batch
            except (RuntimeError, ConnectionError, EOFError) as error:
                if not is_worker_death(error):
                    raise
                self.on_worker_death(str(error) or repr(error))
                self.loader = skip_first_batches(self.loader, 0)  # a copy without dead workers
                loader = skip_first_batches(self.loader, start)


def is_worker_death(error: Exception) -> bool:
    """Whether a loader's error means a dead worker, perhaps one that was sending a batch."""
    text = str(error)
    if isinstance(error, RuntimeError):
        return text.startswith(WORKER_DIED)
    return not text.startswith(PASSED_ON)


def child_handler() -> Any:
    """Get the handler of SIGCHLD to restore; None where it cannot be changed."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() != threading.main_thread():
        return None  # torch sets no handler on Windows and in other threads
    handler = signal.getsignal(signal.SIGCHLD)
    return signal.SIG_DFL if _is_torchs(handler) else handler


def restore_child_handler(handler: Any) -> None:
    """Replace torch's handler of SIGCHLD by ``handler``; do nothing if torch's is not set."""
    if handler is not None and _is_torchs(signal.getsignal(signal.SIGCHLD)):
        signal.signal(signal.SIGCHLD, handler)


def _is_torchs(handler: Any) -> bool:
    return (getattr(handler, "__module__", None) or "").startswith("torch.")


def shield_workers(loader: DataLoader) -> DataLoader:
    """Let workers survive signals to the whole process group, and a full shared memory.

    After Ctrl-C, a timeout or a signal of Slurm, the step in progress still needs them. They end
    with this process.
    """
    loader.worker_init_fn = _prepare_worker
    atexit.unregister(kill_workers)
    atexit.register(kill_workers)
    return loader


def _prepare_worker(_: int) -> None:
    ForkingPickler.register(Tensor, _send_tensor)
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, signal.SIG_IGN)


def kill_workers() -> None:
    """Kill all workers, which ignore the SIGTERM that Python sends at exit, and may be stuck."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _send_tensor(tensor: Tensor) -> tuple[Any, ...]:
    """Pickle a worker's tensor: in shared memory, or as bytes if that is full.

    Torch alone would drop the batch, and the loader would wait for ever. Small tensors are sent as
    bytes, because each would take a file descriptor.
    """
    if tensor.nbytes >= MIN_SHARED:
        with suppress(RuntimeError, OSError):
            return reduce_tensor(tensor.share_memory_())
    return torch.from_numpy, (tensor.detach().numpy(),)
