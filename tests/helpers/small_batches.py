"""Predictions and boxes of small images, as the tests of every method take them."""

import torch

from sepc_zoo.config import override
from sepc_zoo.methods.losses import mean_terms
from sepc_zoo.methods.targets import collate_targets
from sepc_zoo.ops.anchors import make_anchors
from sepc_zoo.outputs import Anchors, Predictions
from sepc_zoo.registry import model_config

SIZES = ((12, 16), (6, 8), (3, 4), (2, 2), (1, 1))
CLASSES = 4


def config_of(method):
    return model_config(f"{method}_r18_fpn")


def anchors_of(method, sizes=SIZES, dtype=torch.float64):
    config = config_of(method)
    boxes = make_anchors(config.anchors, sizes, config.fpn.strides, dtype=dtype)
    return Anchors(boxes, [h * w * config.anchors.per_cell for h, w in sizes])


def random_predictions(
    method, images=2, classes=CLASSES, sizes=SIZES, seed=0, dtype=torch.float64, scale=1.0
):
    config, generator = config_of(method), torch.Generator().manual_seed(seed)
    count = len(anchors_of(method, sizes).boxes)

    def some(values):
        return torch.randn(images, count, values, generator=generator, dtype=dtype)

    logits, deltas = some(classes) - 1, some(config.box_values) * scale
    if config.head.box_activation == "relu":
        deltas = deltas.abs()
    quality = None if config.head.quality == "none" else some(1).squeeze(2).requires_grad_()
    return Predictions(logits.requires_grad_(), deltas.requires_grad_(), sizes, quality)


def rows(predictions, images):
    """The predictions of these images of a batch."""
    logits, deltas, sizes, quality = predictions
    quality = None if quality is None else quality[images]
    return Predictions(logits[images], deltas[images], sizes, quality)


def target(boxes, labels):
    boxes = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.long)}


BOXES_OF_TWO_IMAGES = [
    target([[10, 12, 50, 60], [30, 20, 110, 90], [3, 3, 9, 8]], [0, 3, 1]),
    target([[60, 10, 100, 80]], [2]),
]


def losses_of(method, predictions, *targets, **changes):
    """The losses of a batch by a method with its default hyperparameters, but for changes."""
    config, deltas = config_of(method), predictions.deltas
    anchors = anchors_of(method, predictions.sizes, deltas.dtype)
    terms = override(config.method, changes).loss(
        predictions, anchors, collate_targets(targets, like=deltas), config.coder
    )
    return mean_terms(terms)
