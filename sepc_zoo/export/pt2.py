"""Archives of torch.export; to load one elsewhere, ``import sepc_zoo.export.suppression`` first."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision  # noqa: F401  # its operators are those of the archive
from torch.export import ExportedProgram

from sepc_zoo.export import suppression  # noqa: F401
from sepc_zoo.export.metadata import KEY, ExportError, parse


def packages() -> dict[str, Any]:
    """Versions of what writes the file, beside those of all files."""
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
            # Its guards also refuse sizes at which only the reported memory format differs.
            self.module = program.module(check_guards=False)
        except Exception as error:  # many types without a common base
            raise ExportError(f"{path}: torch.export cannot load it: {error!s:.1000}") from error
        self.metadata = parse(extra[KEY], path)

    @torch.no_grad()
    def __call__(self, images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        return [y.numpy() for y in self.module(torch.from_numpy(images), torch.from_numpy(sizes))]


@contextmanager
def without_pickles() -> Iterator[None]:
    """Keep torch.export from running code in a file: it would load again what is not safe."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
