"""Splits without images: annotations, and detections near to them."""

from pathlib import Path

import numpy as np
import torch

from sepc_zoo.data import Annotations, Record


def make_annotations(images, num_classes, federation=None):
    """A split of images 1, 2, …, each a list of (label, x y width height[, crowd])."""
    records = []
    for i, objects in enumerate(images, start=1):
        rows = [(*entry, False)[:3] for entry in objects]
        bbox = torch.tensor([box for _, box, _ in rows], dtype=torch.float64).reshape(-1, 4)
        boxes = torch.cat([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], dim=1).float()
        labels = torch.tensor([label for label, *_ in rows], dtype=torch.int64)
        crowd = torch.tensor([int(crowd) for *_, crowd in rows], dtype=torch.int64)
        path, area = Path(f"{i}.jpg"), bbox[:, 2:].prod(dim=1)
        records.append(Record(i, path, (500, 500), boxes, labels, crowd, area, bbox))
    names = tuple(f"class {label}" for label in range(num_classes))
    return Annotations(
        tuple(records), names, tuple(range(1, num_classes + 1)), federation=federation
    )


def result(image_id, label, box, score):
    """A COCO result for ``make_annotations``."""
    box = [float(value) for value in box]
    return {"image_id": image_id, "category_id": label + 1, "bbox": box, "score": float(score)}


def random_split(seed, images=12, classes=4, objects=6, detections=25, crowds=0.0):
    """A split with objects of all sizes in each image, and results of all kinds of errors.

    All scores differ; every class has objects.
    """
    rng = np.random.default_rng(seed)
    truth, rows = [], []
    for i in range(images):
        sides = np.exp(rng.uniform(2.5, 5.5, (objects, 2)))
        boxes = np.concatenate([rng.uniform(0, 300, (objects, 2)), sides], axis=1)
        labels = (np.arange(objects) + i) % classes
        crowd = rng.random(objects) < crowds
        truth.append(list(zip(labels.tolist(), boxes.tolist(), crowd.tolist(), strict=True)))
        for _ in range(detections):
            near = int(rng.integers(objects))
            noise = rng.normal(0, rng.choice([0.03, 0.15, 0.5]), 4)
            x, y, w, h = boxes[near]
            box = x + noise[0] * w, y + noise[1] * h, w * np.exp(noise[2]), h * np.exp(noise[3])
            label = labels[near] if rng.random() < 0.7 else rng.integers(classes)
            rows.append(result(i + 1, int(label), box, rng.random()))
    return make_annotations(truth, classes), rows
