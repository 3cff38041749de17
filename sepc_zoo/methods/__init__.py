"""The detection methods: targets, losses and box coding, one file each."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from torch import Tensor

from sepc_zoo.config import AnchorConfig
from sepc_zoo.methods.freeanchor import FreeAnchor
from sepc_zoo.methods.fsaf import FSAF
from sepc_zoo.methods.retinanet import RetinaNet
from sepc_zoo.methods.targets import Truth
from sepc_zoo.outputs import Predictions


class Method(Protocol):
    """What a detector asks of its method."""

    anchors: ClassVar[AnchorConfig]  # laid on the cells, unless the config says otherwise
    box_bias: ClassVar[float]  # of the last convolution for boxes, at the start
    positive_deltas: ClassVar[bool]  # whether deltas pass a ReLU

    def decode(self, anchors: Tensor, deltas: Tensor) -> Tensor:
        """Boxes from anchors and deltas, all ``(..., 4)``."""

    def loss_sums(
        self, predictions: Predictions, anchors: Tensor, truths: Sequence[Truth]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Differentiable scalars, and the count ``()`` by which each is to be divided.

        The caller divides, since the count of a large batch may be spread over processes and over
        accumulated batches.
        """


METHODS: dict[str, type[Method]] = {
    "retinanet": RetinaNet,
    "freeanchor": FreeAnchor,
    "fsaf": FSAF,
}
