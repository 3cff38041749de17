"""The base of callbacks, for those of the package and those of users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from sepc_zoo.data import Batch
    from sepc_zoo.training.run import Run


class Stop(Exception):  # noqa: N818
    """Raise it in a callback, in every process, to end the run; the message is logged."""


class Callback:
    """Base class of callbacks; all its methods do nothing.

    Every process calls them, with the same arguments but for its own batches; ``Stop`` ends the
    run. A callback with ``state_dict`` and ``load_state_dict`` is saved with the run, at most one
    of each class.
    """

    def before_epoch(self, run: Run) -> None:
        """Called before the first step of an epoch, and before what is left of a resumed one.

        Args:
            run: the run, with its ``progress``, ``detector``, ``optimizer``, ``log``, ….
        """

    def after_epoch(self, run: Run) -> None:
        """Called when an epoch is trained, validated where that is due, and saved.

        Args:
            run: the run; ``run.progress.epoch`` counts the epoch.
        """

    def before_step(self, run: Run, batches: Sequence[Batch]) -> None:
        """Called before each step.

        Args:
            run: the run.
            batches: those of the step, several where gradients are accumulated, with
                ``images (N, C, H, W)`` normalized on the device, and ``targets`` in their pixels.
        """

    def after_step(self, run: Run, failed: Tensor) -> None:
        """Called after each step.

        Args:
            run: the run; ``run.losses`` are those of the step.
            failed: ``()`` on the device, whether the step was skipped because its loss or gradient
                is not finite; reading it waits for the device.
        """

    def after_validation(self, run: Run, metrics: Mapping[str, Any]) -> None:
        """Called when the metrics are logged and the models of the epoch are saved.

        Args:
            run: the run; ``run.evaluated`` is the model that was validated.
            metrics: ``AP``, ``AP50``, … from 0 to 1, and ``per_class``.
        """

    def after_save(self, run: Run) -> None:
        """Called when the state of the run is on the disk.

        Args:
            run: the run.
        """

    def after_training(self, run: Run) -> None:
        """Called when the run has come to its end, by its last epoch or by ``Stop``.

        Args:
            run: the run.
        """
