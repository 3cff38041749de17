"""The base class of the methods of dense detectors."""

from torch import Tensor

from sepc_zoo.config import Coder, Entry, MethodConfig
from sepc_zoo.outputs import Anchors, Predictions, Targets, Terms

__all__ = ["Coder", "Method"]


class Method(Entry, MethodConfig, frozen=True):
    """Hyperparameters of matching and losses, as entries of the config, and the losses.

    Derive from it with ``tag="name"``, and call ``register_method`` with the class.
    """

    def loss(
        self, predictions: Predictions, anchors: Anchors, targets: Targets, coder: Coder
    ) -> Terms:
        """Return the terms ``{"loss_cls": (sum, count), ...}`` over the images of this process.

        The sums are differentiable. The caller divides them by the counts: the count of a large
        batch may be spread over processes and over accumulated batches.

        Args:
            predictions: ``logits (N, A, K)`` and ``deltas (N, A, 4 or 4 * bins)``.
            anchors: ``boxes (A, 4)``, the same for all images.
            targets: ``boxes (N, G, 4)`` and ``labels (N, G)``, padded.
            coder: how deltas stand for boxes, see ``ops.coders.encode`` and ``decode``.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no loss")

    def counts(self, anchors: Anchors, targets: Targets) -> dict[str, Tensor] | None:  # noqa: ARG002
        """The counts of ``loss``, where they depend on the targets alone; else None."""
        return None
