"""Faster R-CNN small enough for tests, and a batch for it."""

import torch

from sepc_zoo.factory import create_model

NECKS = ("fpn", "pconv", "ibn_pconv")
LOSSES = ("loss_rpn_cls", "loss_rpn_box", "loss_cls", "loss_box")


def tiny_model(neck="pconv", **changes):
    """Four classes, 16 channels, few proposals and samples."""
    torch.manual_seed(0)
    small = {
        "channels": 16,
        "head": {
            "rpn": {"train_max_proposals": 100, "max_proposals": 60},
            "roi": {"width": 32, "size": 3},
        },
        "method": {"rpn_samples": 64, "roi_samples": 32},
    }
    return create_model(f"fasterrcnn_r18_{neck}", num_classes=4, **{**small, **changes})


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
