"""Detectors of all methods small enough for tests, and a batch for them."""

import torch

from sepc_zoo.config import METHOD_TYPES, resolve
from sepc_zoo.factory import create_model
from sepc_zoo.registry import NECKS

LOSSES = {
    "retinanet": ["loss_cls", "loss_box"],
    "freeanchor": ["loss_positive_bag", "loss_negative_bag"],
    "fsaf": ["loss_cls", "loss_box"],
    "atss": ["loss_cls", "loss_box", "loss_quality"],
    "gfl": ["loss_cls", "loss_box", "loss_dfl"],
    "fcos": ["loss_cls", "loss_box", "loss_quality"],
    "fasterrcnn": ["loss_rpn_cls", "loss_rpn_box", "loss_cls", "loss_box"],
}
DENSE = [m for m, address in METHOD_TYPES.items() if resolve(address).head == "dense"]
TWO_STAGE_NECKS = ["fpn", "pconv", "ibn_pconv"]
COMBINATIONS = [(method, neck) for method in DENSE for neck in NECKS]
COMBINATIONS += [("fasterrcnn", neck) for neck in TWO_STAGE_NECKS]


def tiny_model(method="retinanet", neck=None, /, padding=1, **changes):
    """Four classes, 16 channels, few blocks, proposals and samples."""
    torch.manual_seed(0)
    if method == "fasterrcnn":
        neck, roi = neck or "pconv", {"width": 32, "size": 3}
        small = {
            "head": {"rpn": {"train_max_proposals": 100, "max_proposals": 60}, "roi": roi},
            "method": {"rpn_samples": 10**5, "roi_samples": 32},
        }
    else:
        neck = neck or "sepc"
        small = {} if neck == "fpn" else {"neck": {"blocks": 2, "padding": padding}}
    changes = {"channels": 16, **small, **changes}
    return create_model(f"{method}_r18_{neck}", num_classes=4, **changes)


def some_images(count=2, height=96, width=128):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, height, width, generator=generator)


def some_targets():
    return [
        {
            "boxes": torch.tensor([[8.0, 8, 60, 50], [70, 20, 120, 90]]),
            "labels": torch.tensor([1, 3]),
        },
        {"boxes": torch.tensor([[20.0, 10, 90, 90]]), "labels": torch.tensor([0])},
    ]


def no_boxes():
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
