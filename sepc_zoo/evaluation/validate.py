"""Validation: run a model on a data set and evaluate its detections."""

import os
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch.utils.data import DataLoader

from sepc_zoo.data import Annotations
from sepc_zoo.data.images import ImageError
from sepc_zoo.data.resilient_loader import ResilientLoader
from sepc_zoo.evaluation.metrics import Evaluation, evaluate
from sepc_zoo.evaluation.results import CocoResult, collect_detections
from sepc_zoo.inference.detections import coco_results
from sepc_zoo.inference.loader import ImageFiles, detect_files, image_loader
from sepc_zoo.inference.progress import progress_bar
from sepc_zoo.inference.tta import SINGLE_VIEW, Views
from sepc_zoo.models.detector import Detector
from sepc_zoo.terminal import printable

MAX_UNREADABLE = 10  # images that may have become unreadable since the data set was read


def validation_loader(
    annotations: Annotations,
    model: Detector,
    batch_size: int,
    workers: int,
    views: Views = SINGLE_VIEW,
) -> DataLoader:
    """Load this process's share of the images; do not pass it to ``accelerator.prepare``."""
    files = [annotations.records.path(i) for i in range(len(annotations.records))]
    return image_loader(ImageFiles(files, model.config, views), batch_size, workers)


def validate_model(
    accelerator: Accelerator,
    model: Detector,
    loader: DataLoader | ResilientLoader,
    annotations: Annotations,
    after_batch: Callable[[], object] = lambda: None,
) -> tuple[Evaluation, list[CocoResult]]:
    """Run a model on a split; return COCO's evaluation and the detections, in all processes.

    Arguments and errors are those of ``detect_split``.
    """
    results = detect_split(accelerator, model, loader, annotations, after_batch)
    return evaluate(collect_detections(results, annotations, "detections"), annotations), results


@torch.no_grad()
def detect_split(
    accelerator: Accelerator,
    model: Detector,
    loader: DataLoader | ResilientLoader,
    annotations: Annotations,
    after_batch: Callable[[], object] = lambda: None,
) -> list[CocoResult]:
    """Run a model on a split; return the detections by image id, in all processes.

    They do not depend on the number of processes. An image that can no longer be read counts as an
    image without detections, with a message on the main process.

    Args:
        model: on its device, and not passed to ``accelerator.prepare``; stays in eval mode. All
            processes get the buffers of the main one, among them the saved batch norm statistics.
        loader: what ``validation_loader`` returned for ``annotations``.
        annotations: the split, with the model's labels.
        after_batch: called after each batch by all processes, but for the last one of some of them;
            an exception that it raises in all of them ends the validation.

    Raises:
        ImageError: more than ``MAX_UNREADABLE`` images, or all of them, can no longer be read.
    """
    model.eval()
    broadcast(list(model.buffers()))  # changes them in place
    own: list[tuple[int, list[CocoResult], str]] = []
    bar = progress_bar(loader, "validate", leave=False, disable=not accelerator.is_main_process)
    num_common = min(gather_object([len(loader)]))  # some processes have a batch more
    for i, files in enumerate(bar, start=1):
        with accelerator.autocast():
            detected = detect_files(model, files)
        for file, detections in detected:
            image_id = int(annotations.records.image_ids[file.position])
            ids = annotations.category_ids
            results = coco_results(image_id, detections, ids) if detections is not None else []
            own.append((image_id, results, file.problem))
        if i <= num_common:
            after_batch()
    images = sorted(gather_object(own), key=lambda image: image[0])
    image_ids = [image_id for image_id, _, _ in images]
    if image_ids != sorted(annotations.records.image_ids.tolist()):
        raise RuntimeError(
            f"{len(images)} images were validated instead of {len(annotations.records)}: "
            "do not pass the loader of validation_loader to accelerator.prepare"
        )
    unreadable = [problem for _, _, problem in images if problem]
    _check_readable(unreadable, annotations)
    if accelerator.is_main_process:
        for problem in unreadable:
            bar.write(printable(f"counted as an image without detections: {problem}"))
    return [result for _, results, _ in images for result in results]


def _check_readable(unreadable: Sequence[str], annotations: Annotations) -> None:
    num_images = len(annotations.records)
    if unreadable and len(unreadable) >= min(num_images, MAX_UNREADABLE + 1):
        folder = os.path.commonpath([record.path.parent for record in annotations.records])
        first = "\n".join(unreadable[:MAX_UNREADABLE])
        raise ImageError(
            f"{folder}: {len(unreadable)} of {num_images} images can no longer be read, the first:"
            f"\n{first}\nCheck that the data set still exists."
        )
