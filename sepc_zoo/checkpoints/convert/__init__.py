"""Convert checkpoints of other projects to our models."""

from collections.abc import Callable, Mapping

from torch import Tensor

from sepc_zoo.checkpoints.convert.openmmlab import from_openmmlab
from sepc_zoo.checkpoints.convert.sepc_authors import from_authors
from sepc_zoo.checkpoints.convert.torchvision import from_torchvision
from sepc_zoo.models.detector import Detector

__all__ = ["from_authors", "from_openmmlab", "from_torchvision"]

# From tensors and a model's name with its tag to the model, by the publisher of the tensors.
CONVERTERS: dict[str, Callable[[Mapping[str, Tensor], str], Detector]] = {
    "sepc": from_authors,
    "openmmlab": from_openmmlab,
    "universenet": from_openmmlab,
    "torchvision": from_torchvision,
}
