"""Callbacks: what a run does beside training, and what users may add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from timm.utils import ModelEmaV3
from torch import Tensor

from sepc_zoo.data import Batch
from sepc_zoo.data.images import ImageError
from sepc_zoo.data.pixels import pad_and_stack
from sepc_zoo.evaluation.plots import plot_curves
from sepc_zoo.files import write_atomically
from sepc_zoo.inference.drawing import contact_sheet, draw_batch

if TYPE_CHECKING:
    from PIL import Image

    from sepc_zoo.models.detector import Detector
    from sepc_zoo.training.run import Run

NUM_SAMPLES = 8  # validation images that are drawn after each validation


class Stop(Exception):  # noqa: N818
    """Raise it in a callback, in every process, to end the run; the message is logged."""


class Callback:
    """Base class of callbacks; all its methods do nothing.

    Every process calls them, with the same arguments but for its own batches; ``Stop`` ends the
    run. One with ``state_dict`` and ``load_state_dict`` is saved with the run, at most one of each
    class.
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


class MovingAverage(Callback):
    """Exponential moving average of the weights, for validation and the saved models.

    A step that was skipped does not enter it, so each step waits for the device.
    """

    def __init__(self, detector: Detector, decay: float) -> None:
        self.ema = ModelEmaV3(detector, decay, use_warmup=True)
        self.state_dict = self.ema.state_dict
        self.load_state_dict = self.ema.load_state_dict

    def after_step(self, run: Run, failed: Tensor) -> None:
        if not failed.item():
            self.ema.update(run.detector, run.progress.step)


class EarlyStopping(Callback):
    """Stop after ``patience`` validations in a row without a better AP."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def before_epoch(self, run: Run) -> None:
        epochs = run.progress.epoch - run.progress.best_epoch
        if epochs // run.options.val_interval >= self.patience:
            raise Stop(f"no better AP since epoch {run.progress.best_epoch}: stopped early")


class DrawBatches(Callback):
    """Draw the main process's batches of the first steps, as the network gets them."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def before_step(self, run: Run, batches: Sequence[Batch]) -> None:
        if run.progress.step < self.num_steps and run.accelerator.is_main_process:
            path = run.output / "batches" / f"step_{run.progress.step + 1:03d}.png"
            write_atomically(path, draw_inputs(run, batches).save)


class DrawSamples(Callback):
    """Draw detections in the first validation images, and the curves of the log."""

    def after_validation(self, run: Run, metrics: Mapping[str, Any]) -> None:  # noqa: ARG002
        if not run.accelerator.is_main_process:
            return
        drawn = []
        for record in run.val_data.records[:NUM_SAMPLES]:
            with suppress(ImageError):  # the file may have become unreadable
                drawn.append(run.evaluated.predict(record.path).draw())
        if drawn:
            path = run.output / "samples" / f"epoch_{run.progress.epoch + 1:03d}.png"
            write_atomically(path, contact_sheet(drawn).save)
        if find_spec("matplotlib"):
            plot_curves(run.log.steps.path, run.output / "curves.png")


def draw_inputs(run: Run, batches: Sequence[Batch]) -> Image.Image:
    """Draw the images of a step with their targets."""
    targets = [target for batch in batches for target in batch.targets]
    images = pad_and_stack([image for batch in batches for image in batch.images], 1)
    weights = run.detector.config.weights
    return draw_batch(images, targets, weights.mean, weights.std, run.detector.config.label_names)
