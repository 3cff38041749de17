"""Published weights: one row for each checkpoint that somebody else trained and published.

The rows are in ``table.csv``: our name with its tag, the publisher, the name of the conventions
that the weights need, AP and address. ``pretrained=True`` loads the first row of a model.
"""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sepc_zoo.config import merge_entries
from sepc_zoo.published import openmmlab

TABLE = Path(__file__).with_name("table.csv")
HASH = re.compile(r"-([0-9a-f]{8})\.pth$")


class Publisher(NamedTuple):
    """A publisher of checkpoints, and its terms as far as they are known."""

    title: str
    page: str
    license: str  # licence of the weights, by its id on the hub
    terms: str


class Published(NamedTuple):
    """A published checkpoint.

    Attributes:
        name: our name with its tag, ``"fsaf_r50_sepc.coco_1x"``.
        publisher: a key of ``PUBLISHERS``; it also says how the checkpoint is converted.
        url: where the checkpoint is.
        ap: on COCO val2017, in percent, as its publisher states it.
        conventions: entries of the config that these weights need.
        sha256: first digits of the file's hash, if the publisher states them.
    """

    name: str
    publisher: str
    url: str
    ap: float
    conventions: Mapping[str, Any] = {}
    sha256: str = ""

    @property
    def architecture(self) -> str:
        return self.name.partition(".")[0]

    @property
    def tag(self) -> str:
        return self.name.partition(".")[2]


PUBLISHERS = {
    "sepc": Publisher(
        "the authors of SEPC (Wang et al., CVPR 2020)",
        "https://github.com/jshilong/SEPC",
        "apache-2.0",
        "the project's licence is Apache-2.0",
    ),
    "openmmlab": Publisher(
        "openmmlab (MMDetection)",
        "https://github.com/open-mmlab/mmdetection",
        "apache-2.0",
        "the project's licence is Apache-2.0",
    ),
    "universenet": Publisher(
        "UniverseNet (shinya7y)",
        "https://github.com/shinya7y/UniverseNet",
        "apache-2.0",
        "the project's licence is Apache-2.0",
    ),
    "torchvision": Publisher(
        "torchvision",
        "https://github.com/pytorch/vision",
        "other",
        "its code's licence is BSD-3-Clause; the weights may have terms of their own, says its "
        "README",
    ),
}

# The authors of SEPC train with boxes that include their last pixel, resize without antialiasing,
# and do not pad the last convolutions of the neck.
_SEPC: dict[str, Any] = {
    "inclusive_boxes": True,
    "weights": {"antialias": False},
    "neck": {"padding": 0},
}
_SEPC_FPN: dict[str, Any] = {
    "inclusive_boxes": True,
    "weights": {"antialias": False, "pad_multiple": 384},
}
# Images are resized in floats, without antialiasing, to sides cut to whole pixels.
_TORCHVISION: dict[str, Any] = {
    "weights": {"antialias": False, "resize_floats": True, "round_sides": False},
    "anchors": {"centre": "corner", "stride": "measured"},
    "coder": {"clamp_shrinking": False},
}
# The softmax has 91 classes: the background and 90 ids, of which COCO uses 80.
_TV_FASTERRCNN: dict[str, Any] = {
    **_TORCHVISION,
    "method": {"rpn_low_quality": "own"},
    "head": {"roi": {"aligned": False, "unused_classes": 10, "coder": {"clamp_shrinking": False}}},
}
_TV_FASTERRCNN_V2: dict[str, Any] = {
    **_TV_FASTERRCNN,
    "fpn": {"norm": True},
    "head": {
        "rpn": {"convs": 2},
        "roi": {**_TV_FASTERRCNN["head"]["roi"], "convs": 4, "norm": True, "linears": 1},
    },
}
_TV_FROZEN_NORMS = {"backbone": {"norm_eps": 0.0}}
_TV_RETINANET: dict[str, Any] = {
    **_TORCHVISION,
    "fpn": {"p6_from": "p5", "relu_before_p7": True},
    "method": {"low_quality": "own", "mean_of_images": True, "smooth_l1_beta": 0.0},
    "anchors": {**_TORCHVISION["anchors"], "whole_sizes": True},
    "postprocess": {"candidates": "pairs", "empty_boxes": True, "max_detections": 300},
}
_TV_RETINANET_V2: dict[str, Any] = {
    **_TV_RETINANET,
    "fpn": {"p6_from": "c5", "relu_before_p7": True},
    "method": {**_TV_RETINANET["method"], "box_loss": "giou"},
    "head": {"norm": "group"},
}
_TV_FCOS: dict[str, Any] = {
    **_TORCHVISION,
    "method": {"coarse_areas": True, "weighted_boxes": False, "eps": 1e-7},
    "head": {"box_scales": False},
    "coder": {},
    "postprocess": {"quality": "root", "score_threshold": 0.2, "empty_boxes": True},
}


CONVENTIONS: dict[str, Mapping[str, Any]] = {
    "sepc": _SEPC,
    "sepc_fpn": _SEPC_FPN,
    "retinanet_resnet50_fpn": {**_TV_RETINANET, **_TV_FROZEN_NORMS},
    "retinanet_resnet50_fpn_v2": _TV_RETINANET_V2,
    "fcos_resnet50_fpn": _TV_FCOS,
    "fasterrcnn_resnet50_fpn": {**_TV_FASTERRCNN, **_TV_FROZEN_NORMS},
    "fasterrcnn_resnet50_fpn_v2": _TV_FASTERRCNN_V2,
}


def _read_table() -> dict[str, Published]:
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = [_row(**columns) for columns in csv.DictReader(file)]
    return {row.name: row for row in rows}


def _row(name: str, publisher: str, conventions: str, ap: str, url: str) -> Published:
    """Build a row; ``conventions`` is a key of ``CONVENTIONS`` or a config name of openmmlab."""
    entries = CONVENTIONS.get(conventions) or openmmlab.conventions(conventions)
    entries = merge_entries({"weights": {"dataset": "COCO train2017"}}, entries)
    sha256 = HASH.search(url)
    return Published(name, publisher, url, float(ap), entries, sha256[1] if sha256 else "")


PUBLISHED = _read_table()


def find_row(name: str, publisher: str | None = None) -> Published | None:
    """Find the row of a name; without a tag the first row, optionally of one publisher."""
    for row in PUBLISHED.values():
        if name in (row.name, row.architecture) and publisher in (None, row.publisher):
            return row
    return None


def publisher_of(name: str) -> str:
    """Find the publisher of a name, ours or a publisher's own; unknown names are the authors'."""
    row = find_row(name)
    if row is not None:
        return row.publisher
    if openmmlab.our_name(name) is not None:
        return "openmmlab"
    return "torchvision" if name in CONVENTIONS else "sepc"
