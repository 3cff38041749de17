"""Gradient checkpointing: activations are recomputed in the backward pass instead of stored."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run(module: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """``module(*inputs)``; with ``recompute`` the activations inside are not stored.

    Batch norms update their running statistics once.
    """
    if not (recompute and torch.is_grad_enabled()):
        return module(*inputs)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), copied_statistics(module)

    # torch.compile does not support checkpoints with contexts.
    compiling = torch.compiler.is_compiling()
    checkpointed = torch.compiler.disable(checkpoint) if compiling else checkpoint
    return checkpointed(module, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def copied_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch norms update copies of their running statistics."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        for name, buffer in norm.named_buffers():
            norm._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
