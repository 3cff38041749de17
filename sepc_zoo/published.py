"""Published weights: one row for each checkpoint that somebody else trained and put on the net."""

from collections.abc import Mapping
from typing import Any, NamedTuple

DRIVE_URL = "https://drive.google.com/uc?id="


class Publisher(NamedTuple):
    """Who published a checkpoint, and under which terms."""

    title: str
    page: str
    license: str


class Published(NamedTuple):
    """A published checkpoint.

    Attributes:
        name: our name with its tag, ``"fsaf_r50_sepc.coco_1x"``.
        publisher: a key of ``PUBLISHERS``; it also says how the checkpoint is converted.
        url: where the checkpoint is.
        ap: on COCO val2017, in percent, as its publisher states it.
        conventions: entries of the config that these weights need.
        sha256: first digits of the file's hash, where the publisher names them.
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
    ),
    "torchvision": Publisher(
        "torchvision, whose weights may have terms of their own from the data they learned from",
        "https://github.com/pytorch/vision",
        "bsd-3-clause",
    ),
}

# The authors of SEPC train with boxes that include their last pixel, resize without antialiasing,
# and do not pad the last convolutions of the neck.
_SEPC_BOXES: dict[str, Any] = {
    "inclusive_boxes": True,
    "weights": {"antialias": False, "dataset": "COCO train2017"},
}
_SEPC = {**_SEPC_BOXES, "neck": {"padding": 0}}
_SEPC_FPN = {**_SEPC_BOXES, "weights": {**_SEPC_BOXES["weights"], "pad_multiple": 384}}


def _sepc(name: str, ap: float, drive_id: str, conventions: Mapping[str, Any] = _SEPC) -> Published:
    return Published(f"{name}.coco_1x", "sepc", DRIVE_URL + drive_id, ap, conventions)


# Images are resized in floats, without antialiasing, to sides cut to whole pixels.
_TORCHVISION: dict[str, Any] = {
    "weights": {
        "antialias": False,
        "resize_floats": True,
        "round_sides": False,
        "dataset": "COCO train2017",
    },
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


def _torchvision(name: str, file: str, ap: float, conventions: Mapping[str, Any]) -> Published:
    url = f"https://download.pytorch.org/models/{file}.pth"
    return Published(name, "torchvision", url, ap, conventions, file.rpartition("-")[2])


# The first row of an architecture is the one that `pretrained=True` loads.
_ROWS = (
    _sepc("freeanchor_r50_pconv", 39.7, "1rwZeuT-VDGgfdt7IPidIOMh_guaIjxcO"),
    _sepc("freeanchor_r50_ibn_pconv", 41.0, "148IsbWcRTCDg8TpGDNt3P4McV4kekMRl"),
    _sepc("freeanchor_r50_sepc_lite", 41.9, "1Qb7WYtQVGrLDMnRwSXC-wnI9Vf3oLs4o"),
    _sepc("freeanchor_r50_sepc", 43.0, "1rV7tZtjlfjdaNYeWKql1vhb1WPvjdWus"),
    _sepc("fsaf_r50_fpn", 36.8, "1XlFlz8u0IqRw-HKy95VUNFrx3IKWM3q0", _SEPC_FPN),
    _sepc("fsaf_r50_pconv", 38.6, "1jtWmlPmZtFgZxD2QAZzVCAN6BnoAgzTF"),
    _sepc("fsaf_r50_ibn_pconv", 39.1, "1d--0AjEdZEEbyP0JnFMmxyoIZUtpR9gj"),
    _sepc("fsaf_r50_sepc_lite", 40.5, "1ODiNv14Bb44-RQrz-9cHtoNlbVKSItN6"),
    _sepc("fsaf_r50_sepc", 41.6, "1iLWrfXssXoGhZAQg9_vNeZfuwi_kXZu4"),
    _sepc("retinanet_r50_pconv", 37.0, "19cO_jxSZbbeyR5N_DWDbgM2wcyJEiD94"),
    _sepc("retinanet_r50_ibn_pconv", 37.8, "12Mr2HG-0Qy_fkMDPw0eqtZ4t7G-M_pa6"),
    _sepc("retinanet_r50_sepc_lite", 38.5, "1gq6bdWDZ83-5RzSeuUTpnOEeUyJvl2Zy"),
    _sepc("retinanet_r50_sepc", 39.6, "1HSG7CVFzHtv3McJ60nBXFw6pk91H-ONv"),
    _torchvision(
        "retinanet_r50_fpn.tv_coco",
        "retinanet_resnet50_fpn_coco-eeacb38b",
        36.4,
        {**_TV_RETINANET, **_TV_FROZEN_NORMS},
    ),
    _torchvision(
        "retinanet_r50_fpn.tv_coco_v2",
        "retinanet_resnet50_fpn_v2_coco-5905b1c5",
        41.5,
        _TV_RETINANET_V2,
    ),
    _torchvision("fcos_r50_fpn.tv_coco", "fcos_resnet50_fpn_coco-99b0c9b7", 39.2, _TV_FCOS),
    _torchvision(
        "fasterrcnn_r50_fpn.tv_coco",
        "fasterrcnn_resnet50_fpn_coco-258fb6c6",
        37.0,
        {**_TV_FASTERRCNN, **_TV_FROZEN_NORMS},
    ),
    _torchvision(
        "fasterrcnn_r50_fpn.tv_coco_v2",
        "fasterrcnn_resnet50_fpn_v2_coco-dd69338a",
        46.7,
        _TV_FASTERRCNN_V2,
    ),
)
PUBLISHED = {row.name: row for row in _ROWS}


def find_row(name: str, publisher: str | None = None) -> Published | None:
    """The row of a name; without a tag its first one (of a publisher, where one is given)."""
    for row in PUBLISHED.values():
        if name in (row.name, row.architecture) and publisher in (None, row.publisher):
            return row
    return None
