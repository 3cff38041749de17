"""Validation: a model over a data set, its metrics and its detections."""

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader

from sepc_zoo.data import Annotations, Batch, DetectionDataset, eval_transform, make_loader
from sepc_zoo.detections import coco_results
from sepc_zoo.engine.evaluate import CocoMetrics
from sepc_zoo.engine.interrupt import shield_workers
from sepc_zoo.engine.log import progress_bar
from sepc_zoo.model.detector import Detector
from sepc_zoo.photos import to_photo


def validation_loader(
    annotations: Annotations, model: Detector, batch_size: int, workers: int
) -> DataLoader:
    """Photos as the model expects them, with boxes in their own pixels."""
    weights = model.config.weights
    transform = eval_transform(
        *weights.image_size, weights.mean, weights.std, antialias=weights.antialias
    )
    loader = make_loader(
        DetectionDataset(annotations, transform),
        batch_size,
        shuffle=False,
        seed=0,
        workers=workers,
        multiple=weights.pad_multiple,
        drop_last=False,
    )
    return shield_workers(loader)


@torch.no_grad()
def validate_model(
    accelerator: Accelerator, model: nn.Module, loader: Iterable[Batch], annotations: Annotations
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO metrics over all processes, and the detections as COCO results.

    Args:
        model: as ``accelerator.prepare`` gave it; left in eval mode.
        annotations: whose labels are the model's.
    """
    detector: Detector = accelerator.unwrap_model(model)
    model.eval()
    metrics = CocoMetrics()
    results: dict[int, list[dict[str, Any]]] = {}
    bar = progress_bar(loader, "validate", leave=False, disable=not accelerator.is_main_process)
    for batch in bar:
        found = detector.postprocess(model(batch.images), batch.image_sizes)
        for detection, target, size in zip(found, batch.targets, batch.image_sizes, strict=True):
            boxes = to_photo(detection["boxes"], target["photo_size"], size, detector.config)
            detection = detection | {"boxes": boxes}
            metrics.update([detection], [target])
            image_id = target["image_id"]
            results[image_id] = coco_results(image_id, detection, annotations.category_ids)
    everything = dict(gather_object(list(results.items())))  # an image padded in twice counts once
    rows = [row for image_id in sorted(everything) for row in everything[image_id]]
    return metrics.compute(annotations.label_names), rows
