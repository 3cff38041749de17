"""How steps ended, which a GPU knows later than the host that gives it work."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sepc_zoo.data import Batch


class Later:
    """Numbers that a GPU may still compute; only who reads them waits, and not for what follows."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=values.is_cuda)
        self._there = torch.cuda.Event() if values.is_cuda else None
        if self._there is not None:
            self._there.record()

    def read(self) -> list[float]:
        if self._there is not None:
            self._there.synchronize()
        return self._values.tolist()


class Outcome(NamedTuple):
    """A step that was begun."""

    step: int
    batches: Sequence[Batch]
    losses: dict[str, Tensor]
    flags: Later  # of how many processes it failed, and what they told; see ``train_step``


def steps_ahead(device: torch.device) -> int:
    """How many steps the host may begin before it asks how they went."""
    return 1 if device.type == "cuda" else 0
