"""From other projects' checkpoints to our models."""

from sepc_zoo.checkpoints.convert.sepc_authors import from_authors

__all__ = ["from_authors"]
