"""Predictions and boxes of small images, in float64, as the tests of every method take them."""

import torch

from sepc_zoo.methods.targets import Truth
from sepc_zoo.ops.anchors import make_anchors
from sepc_zoo.outputs import Predictions

SIZES = ((12, 16), (6, 8), (3, 4), (2, 2), (1, 1))
CLASSES = 4
NONE = torch.zeros(0, 4, dtype=torch.float64)


def anchors_of(method):
    return make_anchors(method.anchors, SIZES, dtype=torch.float64)


def random_predictions(method, images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = len(anchors_of(method))

    def some(values):
        return torch.randn(images, count, values, generator=generator, dtype=torch.float64)

    logits, deltas = some(CLASSES) - 1, some(4)
    if method.positive_deltas:
        deltas = deltas.abs()
    return Predictions(logits.requires_grad_(), deltas.requires_grad_(), SIZES)


def truth(boxes, labels):
    boxes = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return Truth(boxes, torch.tensor(labels, dtype=torch.long), NONE)
