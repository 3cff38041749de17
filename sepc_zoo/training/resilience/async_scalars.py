"""Scalars that a device computes while the host prepares the next step."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sepc_zoo.data import Batch


class AsyncScalars:
    """A device-to-host copy in flight; ``read()`` blocks until it has arrived."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=values.is_cuda)
        self._arrived = torch.cuda.Event() if values.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> list[float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()


class StepResult(NamedTuple):
    """A step that was started."""

    step: int
    batches: Sequence[Batch]
    losses: dict[str, Tensor]
    flags: AsyncScalars  # number of processes in which it failed, and ``host_flags`` of all


def max_in_flight(device: torch.device) -> int:
    """How many steps the host may start before it reads how they went."""
    return 1 if device.type == "cuda" else 0
