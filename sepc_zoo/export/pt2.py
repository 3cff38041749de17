"""Archives of torch.export; import ``sepc_zoo.export.suppression`` before you load one yourself."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision  # noqa: F401  # registers operators that the archive uses
from torch.export import ExportedProgram

from sepc_zoo.export import suppression  # noqa: F401
from sepc_zoo.export.metadata import KEY, ExportError, parse


def packages() -> dict[str, Any]:
    """Versions of packages that write the file; those of PyTorch are in all metadata."""
    return {}


def write(program: ExportedProgram, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a program with its weights and metadata in one file."""
    torch.export.save(program, path, extra_files={KEY: json.dumps(metadata)})


class Network:
    """An archive of torch.export that runs."""

    def __init__(self, path: Path) -> None:
        extra = {KEY: ""}
        try:
            with without_pickles():
                program = torch.export.load(path, extra_files=extra)
            # Without guards, which refuse sizes for a mere difference of the memory format.
            self.module = program.module(check_guards=False)
        except Exception as error:  # many types without a common base
            raise ExportError(f"{path}: torch.export cannot load it: {error!s:.1000}") from error
        self.metadata = parse(extra[KEY], path)

    @torch.no_grad()
    def __call__(self, images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        return [y.numpy() for y in self.module(torch.from_numpy(images), torch.from_numpy(sizes))]


@contextmanager
def without_pickles() -> Iterator[None]:
    """Make torch.load refuse code in a file: torch.export would load it again without safety."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
