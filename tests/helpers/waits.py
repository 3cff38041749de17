"""Find operators that make the host wait for a GPU, without a GPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Records operators whose values the host or a tensor's size needs, and blocking copies."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if waits(func.overloadpacket.__name__, args, kwargs):
            self.seen.append(str(func))
        return func(*args, **kwargs)


def waits(name, args, kwargs):
    if name in ("index", "index_put_", "index_put"):
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    if name == "_to_copy" and not kwargs.get("non_blocking"):
        here = args[0].device
        return torch.device(kwargs.get("device") or here).type != here.type
    return name in ("nonzero", "_local_scalar_dense", "masked_select", "unique")
