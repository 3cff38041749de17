"""Convert checkpoints of other projects to our models."""

from collections.abc import Callable
from pathlib import Path

from sepc_zoo.checkpoints.convert import sepc_authors, torchvision
from sepc_zoo.checkpoints.convert.openmmlab import from_openmmlab
from sepc_zoo.checkpoints.convert.sepc_authors import from_authors
from sepc_zoo.checkpoints.convert.torchvision import from_torchvision
from sepc_zoo.models.detector import Detector

__all__ = ["from_authors", "from_openmmlab", "from_torchvision"]

# From a file and a model's name to the model, by the publisher of the file.
CONVERTERS: dict[str, Callable[[str | Path, str], Detector]] = {
    "sepc": sepc_authors.convert,
    "torchvision": torchvision.convert,
}
