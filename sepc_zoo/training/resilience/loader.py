"""Batches that keep coming, from any point of an epoch on, also when workers die."""

import signal
from collections.abc import Iterator
from typing import Any

from accelerate import skip_first_batches
from accelerate.data_loader import DataLoaderShard
from torch.utils.data import DataLoader

from sepc_zoo.data import Batch
from sepc_zoo.training.resilience.faults import Faults

WORKER_DIED = "DataLoader worker"  # how torch's message begins
PASSED_ON = "Caught "  # the same of what went wrong in a worker that lives


class SturdyLoader:
    """The batches of a loader; where a worker dies, new workers go on with the next batch.

    Args:
        loader: of ``Batch`` as ``accelerator.prepare`` gave it, or of lists of ``ImageFile``.
        faults: is told of dead workers and of images that could not be read.
    """

    def __init__(self, loader: DataLoader, faults: Faults) -> None:
        self.loader = loader
        self.faults = faults

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return self.batches()

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from ``start`` on, those before it are not read."""
        loader = skip_first_batches(self.loader, start) if start else self.loader
        while True:
            if isinstance(loader, DataLoaderShard):
                loader.set_epoch(epoch)
            try:
                for batch in loader:
                    # torch would raise at any place of the step; so only the loader does.
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    start += 1
                    self.faults.look_at(unreadable_in(batch))
                    yield batch
                return
            except (RuntimeError, ConnectionError, EOFError) as error:
                if not is_worker_death(error):
                    raise
                self.faults.worker_died(str(error) or repr(error))
                self.loader = skip_first_batches(self.loader, 0)  # a copy that has no dead workers
                loader = skip_first_batches(self.loader, start)


def is_worker_death(error: Exception) -> bool:
    """Whether a loader's error is that a worker is gone, perhaps as it handed a batch over."""
    text = str(error)
    if isinstance(error, RuntimeError):
        return text.startswith(WORKER_DIED)
    return not text.startswith(PASSED_ON)


def unreadable_in(batch: Any) -> list[str]:
    """What is said of the images of a batch that could not be read."""
    if isinstance(batch, Batch):
        return [text for target in batch.targets for text in target["unreadable"]]
    return [photo.problem for photo in batch if photo.problem]
