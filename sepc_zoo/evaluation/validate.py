"""Validation: a model over a data set, its metrics and its detections."""

import os
from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import nn
from torch.utils.data import DataLoader

from sepc_zoo.data import Annotations
from sepc_zoo.data.images import ImageError
from sepc_zoo.evaluation.metrics import Evaluation, evaluate
from sepc_zoo.evaluation.results import Row, found_in
from sepc_zoo.inference.detections import DetectionDict, coco_results
from sepc_zoo.inference.loader import ImageFile, ImageFiles, detect_files, image_loader
from sepc_zoo.inference.progress import progress_bar
from sepc_zoo.inference.tta import SINGLE_VIEW, Views
from sepc_zoo.models.dense import Detector

MOST_UNREADABLE = 10  # images that may have broken since the data set was read


def validation_loader(
    annotations: Annotations,
    model: Detector,
    batch_size: int,
    workers: int,
    views: Views = SINGLE_VIEW,
) -> DataLoader:
    """This process's share of the images, for ``validate_model``. Not for accelerate to prepare."""
    files = [record.path for record in annotations.records]
    return image_loader(ImageFiles(files, model.config, views), batch_size, workers)


@torch.no_grad()
def validate_model(
    accelerator: Accelerator,
    model: nn.Module,
    loader: Iterable[list[ImageFile]],
    annotations: Annotations,
) -> tuple[Evaluation, list[Row]]:
    """COCO's evaluation over all processes, and the detections that it is of.

    The numbers are the same with any number of processes. An image that can no longer be read
    counts as one without detections, and the main process says so.

    Args:
        model: as ``accelerator.prepare`` gave it; left in eval mode, in all processes with the
            running statistics of the main one, which are those that are saved.
        loader: of ``validation_loader``.
        annotations: the loader's, whose labels are the model's.

    Raises:
        ImageError: more than ``MOST_UNREADABLE`` images, or all of them, can no longer be read.
    """
    detector: Detector = accelerator.unwrap_model(model)
    detector.eval()
    broadcast(list(detector.buffers()))  # in place
    seen: list[tuple[int, list[Row], str]] = []
    bar = progress_bar(loader, "validate", leave=False, disable=not accelerator.is_main_process)
    for photos in bar:  # as many as there happen to be: no process waits for another in here
        with accelerator.autocast():
            found = detect_files(detector, photos)
        for photo, detections in found:
            record = annotations.records[photo.position]
            detections = detections or _nothing()
            rows = coco_results(record.image_id, detections, annotations.category_ids)
            seen.append((record.image_id, rows, photo.problem))
    everything = sorted(gather_object(seen), key=lambda image: image[0])
    _check_complete([image_id for image_id, _, _ in everything], annotations)
    unreadable = [problem for _, _, problem in everything if problem]
    _check_readable(unreadable, annotations)
    if accelerator.is_main_process:
        for problem in unreadable:
            bar.write(f"counted as an image without detections: {problem}")
    rows = [row for _, rows, _ in everything for row in rows]
    return evaluate(found_in(rows, annotations, "detections"), annotations), rows


def _nothing() -> DetectionDict:
    labels = torch.zeros(0, dtype=torch.int64)
    return {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": labels}


def _check_complete(image_ids: Sequence[int], annotations: Annotations) -> None:
    if sorted(image_ids) != sorted(record.image_id for record in annotations.records):
        raise RuntimeError(
            f"{len(image_ids)} images were validated instead of {len(annotations.records)}: the "
            "loader of validation_loader is a process's share already, not to be prepared"
        )


def _check_readable(unreadable: Sequence[str], annotations: Annotations) -> None:
    images = len(annotations.records)
    if unreadable and len(unreadable) >= min(images, MOST_UNREADABLE + 1):
        folder = os.path.commonpath([record.path.parent for record in annotations.records])
        first = "\n".join(unreadable[:MOST_UNREADABLE])
        raise ImageError(
            f"{folder}: {len(unreadable)} of {images} images can no longer be read, the first:\n"
            f"{first}\nIs the data set still there?"
        )
