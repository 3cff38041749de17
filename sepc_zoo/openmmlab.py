"""openmmlab's names and conventions: from the name of a config of theirs to entries of ours.

These are the conventions of mmdetection 2 and 3. ATSS, GFL and FCOS have them by default; the
tables below list the entries in which the other methods, and variants, differ.
"""

import re
from collections.abc import Mapping
from typing import Any

CONFIG_NAME = re.compile(
    r"(?P<method>retinanet|freeanchor|fsaf|atss|gfl|fcos)"
    r"_(?P<backbone>r\d+|x101-\d+x4d)(?P<caffe>-caffe)?_fpn(?P<variant>_.*)?_coco"
)
_GRID: dict[str, Any] = {
    "anchors": {"centre": "corner", "rounded": False, "in_padding": False},
    "postprocess": {"candidates": "pairs"},
}
METHODS: dict[str, Mapping[str, Any]] = {
    "retinanet": {**_GRID, "method": {"smooth_l1_beta": 0.0}},
    "freeanchor": {
        **_GRID,
        "anchors": {"centre": "corner", "rounded": False},
        "method": {"count_empty_images": False},
    },
    "fsaf": {
        **_GRID,
        "method": {
            "ignore": "pairs",
            "min_distance": 1e-4,
            "min_union": 0.0,
            "count_negatives": True,
        },
        "head": {"box_bias": 0.25},
        "coder": {"unit": 4.0},
    },
    "atss": {},
    "gfl": {},
    "fcos": {
        "method": {"radius": None, "box_loss": "iou"},
        "head": {"norm_bias": False, "box_activation": "exp", "quality": "cls"},
        "coder": {"in_pixels": True},
        "postprocess": {"iou_threshold": 0.5},
    },
}
# FCOS's improvements of the arXiv version, which are the defaults of our method.
FCOS_TRICKS = "center-normbbox-centeronreg-giou"
SEPC_WITHOUT_NORM = {"norm": False, "padding": 0}
# Caffe's backbones take BGR in 0..255 without deviation, which is folded into their first
# convolution. That of FCOS without tricks has Detectron's mean.
DETECTRON_MEAN = (122.7717 / 255, 115.9465 / 255, 102.9801 / 255)


def our_name(config_name: str) -> str | None:
    """Our name of a config of theirs, ``"atss_r50_fpn"``; None if it is not covered."""
    match = CONFIG_NAME.fullmatch(config_name)
    if match is None or "dcn" in config_name or "dconv" in config_name:
        return None
    neck = "sepc" if "sepc" in (match["variant"] or "") else "fpn"
    return f"{match['method']}_{match['backbone'].replace('-', '_')}_{neck}"


def conventions(config_name: str) -> dict[str, Any]:
    """Entries of ``DetectorConfig`` that a model of theirs needs, beside those of our name."""
    match = CONFIG_NAME.fullmatch(config_name)
    assert match is not None, config_name
    variant = match["variant"] or ""
    has_tricks = FCOS_TRICKS in variant
    changes: dict[str, Any] = {} if has_tricks else dict(METHODS[match["method"]])
    changes["weights"] = {"antialias": False}
    if "sepc_noibn" in variant:
        changes["neck"] = SEPC_WITHOUT_NORM
    if match["caffe"]:
        changes["backbone"] = {"stride_in_1x1": True}
        if match["method"] == "fcos" and not has_tricks:
            changes["weights"]["mean"] = DETECTRON_MEAN
    return changes
