"""Sums over the processes of a run, and work of the main one alone."""

import itertools
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from sepc_zoo.errors import UserError

T = TypeVar("T")
POLL_INTERVAL = 0.1  # seconds
_calls = itertools.count()  # the same number for a call in all processes


def process_count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(x: Tensor) -> Tensor:
    """Sum ``x`` over all processes, differentiably; each process gets the sum.

    All processes must sum the same tensors in the same order, also in the backward pass.
    """
    return _Sum.apply(x) if process_count() > 1 else x


def on_main_process(work: Callable[..., T], *arguments: Any) -> T:
    """Call a function in the main process, and return its result in all of them.

    The others wait for as long as it takes: the timeout of collective operations, 10 minutes with
    NCCL, starts when the result is there.

    Raises:
        UserError: it failed, in the other processes; the main one raises the error itself.
    """
    if process_count() == 1:
        return work(*arguments)
    store, key = dist.distributed_c10d._get_default_store(), f"sepc_zoo/{next(_calls)}"
    answer: list[Any] = [None, "the main process failed"]
    if dist.get_rank() > 0:
        while not store.check([key]):
            time.sleep(POLL_INTERVAL)
        dist.broadcast_object_list(answer)
        if answer[1]:
            raise UserError(answer[1])
        return answer[0]
    try:
        answer = [work(*arguments), ""]
    except Exception as error:
        answer[1] = str(error) or repr(error)
        raise
    finally:
        store.set(key, "")
        dist.broadcast_object_list(answer)
    return answer[0]


class _Sum(torch.autograd.Function):
    """Each process's loss may depend on every process's summand, so gradients are summed too."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return _Sum.forward(None, grad)
