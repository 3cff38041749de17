"""torchvision's published detectors on COCO: addresses, and the conventions of their weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sepc_zoo.config import merge_entries

URL = "https://download.pytorch.org/models/"


class TorchvisionWeights(NamedTuple):
    """A published checkpoint.

    Attributes:
        model: torchvision's name of the model.
        url: address of the file; its last eight digits begin the SHA-256 of the file.
        ap: COCO val2017 AP that torchvision states.
        conventions: entries of the config that the weights were trained with.
    """

    model: str
    url: str
    ap: float
    conventions: Mapping[str, Any]


def _row(file: str, ap: float, *conventions: Mapping[str, Any]) -> TorchvisionWeights:
    entries: dict[str, Any] = dict(_INPUT)
    for changes in conventions:
        entries = merge_entries(entries, changes)
    return TorchvisionWeights(file.rpartition("_coco")[0], f"{URL}{file}.pth", ap, entries)


# Images are resized in floats, without antialiasing, to sides cut to whole pixels.
_INPUT = {
    "weights": {
        "antialias": False,
        "resize_floats": True,
        "round_sides": False,
        "dataset": "COCO train2017",
    },
    "anchors": {"centre": "corner", "stride": "measured"},
    "coder": {"clamp_shrinking": False},
}
_FROZEN_NORMS = {"backbone": {"norm_eps": 0.0}}
# The softmax has 91 classes: the background and 90 ids, of which COCO uses 80.
_FASTER_RCNN = {
    "method": {"rpn_low_quality": "own"},
    "head": {
        "roi": {"aligned": False, "unused_classes": 10, "coder": {"clamp_shrinking": False}},
    },
}
_FASTER_RCNN_V2 = {
    "fpn": {"norm": True},
    "head": {"rpn": {"convs": 2}, "roi": {"convs": 4, "norm": True, "linears": 1}},
}

# By our name with tag.
TORCHVISION = {
    "fasterrcnn_r50_fpn.tv_coco": _row(
        "fasterrcnn_resnet50_fpn_coco-258fb6c6", 37.0, _FASTER_RCNN, _FROZEN_NORMS
    ),
    "fasterrcnn_r50_fpn.tv_coco_v2": _row(
        "fasterrcnn_resnet50_fpn_v2_coco-dd69338a", 46.7, _FASTER_RCNN, _FASTER_RCNN_V2
    ),
}
