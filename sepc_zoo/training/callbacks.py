"""Callbacks of the package: what a run does beside training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from timm.utils import ModelEmaV3
from torch import Tensor

from sepc_zoo.data import Batch
from sepc_zoo.data.images import ImageError, read_image
from sepc_zoo.data.pixels import pad_and_stack
from sepc_zoo.evaluation.diagnosis import diagnose_split
from sepc_zoo.evaluation.errors import ErrorCosts
from sepc_zoo.evaluation.metrics import evaluate
from sepc_zoo.evaluation.plots import plot_curves
from sepc_zoo.evaluation.report.page import write_report
from sepc_zoo.evaluation.results import collect_detections, read_results
from sepc_zoo.files import write_atomically
from sepc_zoo.inference.drawing import TILE, contact_sheet, draw_batch, draw_targets
from sepc_zoo.ops.distributed import on_main_process
from sepc_zoo.training.callback import Callback, Stop

if TYPE_CHECKING:
    from PIL import Image

    from sepc_zoo.models.detector import Detector
    from sepc_zoo.training.options import TrainOptions
    from sepc_zoo.training.run import Run

REPORT_FILE = "report.html"
NUM_SAMPLES = 8  # validation images that are drawn after each validation
SAMPLE_HEADINGS = ("ground truth", "detected") * 2  # a title for each column


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

    def before_epoch(self, run: Run) -> None:
        patience, epochs = run.options.patience, run.progress.epoch - run.progress.best_epoch
        if patience is not None and epochs // run.options.val_interval >= patience:
            raise Stop(f"no better AP since epoch {run.progress.best_epoch}: stopped early")


class DrawBatches(Callback):
    """Draw the main process's batches of the first steps, as the network gets them."""

    def before_step(self, run: Run, batches: Sequence[Batch]) -> None:
        is_first = run.progress.step < run.options.draw_batches
        if is_first and run.accelerator.is_main_process:
            path = run.output / "batches" / f"step_{run.progress.step + 1:03d}.png"
            write_atomically(path, draw_inputs(run, batches).save)


class DrawSamples(Callback):
    """Draw ground truth and detections of the first validation images, and the curves."""

    def after_validation(self, run: Run, metrics: Mapping[str, Any]) -> None:  # noqa: ARG002
        if not run.accelerator.is_main_process:
            return
        drawn = []
        for record in run.val_data.records[:NUM_SAMPLES]:
            with suppress(ImageError):  # the file may have become unreadable
                detections = run.evaluated.predict(record.path).draw(TILE)
                image = read_image(record.path, channels=None)
                targets = draw_targets(image, vars(record), run.val_data.label_names)
                drawn += [targets, detections]
        if drawn:
            path = run.output / "samples" / f"epoch_{run.progress.epoch + 1:03d}.png"
            write_atomically(path, contact_sheet(drawn, headings=SAMPLE_HEADINGS).save)
        if find_spec("matplotlib"):
            plot_curves(run.log.steps.path, run.output / "curves.png")


class WriteReport(Callback):
    """Write ``report.html``, from what the validation of the best model has saved."""

    def after_training(self, run: Run) -> None:
        on_main_process(self._write, run)

    def _write(self, run: Run) -> None:
        saved = run.output / "best" / "detections.json"
        if not (find_spec("matplotlib") and saved.exists()):
            return
        data, options = run.val_data, run.options
        results, _ = read_results(saved, data)
        detections = collect_detections(results, data, str(saved))
        diagnosis, evaluation = diagnose_split(detections, data), evaluate(detections, data)
        evaluation.metrics["errors"] = ErrorCosts(diagnosis, len(data.label_names)).costs()
        facts = {
            "model": run.detector.config.architecture,
            "data": ", ".join(options.data),
            "split": options.val_split,
            "best epoch": f"{run.progress.best_epoch} of {run.num_epochs}",
        }
        write_report(run.output / REPORT_FILE, data, evaluation, diagnosis, facts)


def make_callbacks(options: TrainOptions, model: Detector) -> tuple[list[Callback], Detector]:
    """Make the callbacks that the options ask for; also return the model to validate and save."""
    own: list[Callback] = [DrawSamples(), DrawBatches(), WriteReport(), EarlyStopping()]
    if not options.model_ema:
        return own, model
    average = MovingAverage(model, options.model_ema_decay)
    return [*own, average], average.ema.module


def draw_inputs(run: Run, batches: Sequence[Batch]) -> Image.Image:
    """Draw the images of a step with their targets."""
    targets = [target for batch in batches for target in batch.targets]
    images = pad_and_stack([image for batch in batches for image in batch.images], 1)
    weights = run.detector.config.weights
    return draw_batch(images, targets, weights.mean, weights.std, run.detector.config.label_names)
