"""openmmlab's names and conventions: from the name of a config of theirs to entries of ours.

These are the conventions of mmdetection 2 and 3. ATSS, GFL and FCOS have them by default; the
tables below list the entries in which the other methods, and variants, differ. UniverseNet's models
are made with mmdetection 2, too.
"""

import re
from collections.abc import Mapping
from typing import Any

CONFIG_NAME = re.compile(
    r"(?P<method>retinanet|freeanchor|fsaf|atss|gfl|fcos)"
    r"_(?P<backbone>r\d+|x101-\d+x4d|pvtv2-b\d)(?P<caffe>-caffe)?_fpn(?P<variant>_.*)?_coco"
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
# UniverseNet-20.08s: our name, and the input by the middle part of their names.
UNIVERSENET = "gfl_resnet50c_sepc_lite"
UNIVERSENET_WEIGHTS: dict[str, Mapping[str, Any]] = {
    "fp16_4x4_mstrain_480_960": {},
    "fp16_4x16_mini_mstrain_320_640": {"image_size": (512, 512), "keep_ratio": False},
    "fp16_4x16_micro_mstrain_128_256": {"image_size": (224, 224), "keep_ratio": False},
}
UNIVERSENET_NAME = re.compile(rf"universenet50_2008s_({'|'.join(UNIVERSENET_WEIGHTS)})_2x_coco")
# Their names by ours, where no rule gives them.
CONFIG_NAMES = {
    "atss_r50_sepc": "atss_r50_fpn_sepc_noibn_1x_coco",
    UNIVERSENET: "universenet50_2008s_fp16_4x4_mstrain_480_960_2x_coco",
}


def our_name(config_name: str) -> str | None:
    """Our name for one of their configs, such as ``"atss_r50_fpn"``; None if it is not covered."""
    if UNIVERSENET_NAME.fullmatch(config_name):
        return UNIVERSENET
    match = CONFIG_NAME.fullmatch(config_name)
    if match is None or "dcn" in config_name or "dconv" in config_name:
        return None
    neck = "sepc" if "sepc" in (match["variant"] or "") else "fpn"
    backbone = match["backbone"].replace("pvtv2", "pvt_v2").replace("-", "_")
    return f"{match['method']}_{backbone}_{neck}"


def config_name(our_name: str) -> str:
    """Their name for the plain recipe of a model, from our name without tag."""
    if our_name in CONFIG_NAMES:
        return CONFIG_NAMES[our_name]
    for ours, theirs in (("_32x", "-32x"), ("_64x", "-64x"), ("pvt_v2_", "pvtv2-")):
        our_name = our_name.replace(ours, theirs)
    return f"{our_name}_1x_coco"


def conventions(config_name: str) -> dict[str, Any]:
    """Entries of ``DetectorConfig`` that one of their models needs beside those of our name."""
    weights: dict[str, Any] = {"antialias": False}
    universenet = UNIVERSENET_NAME.fullmatch(config_name)
    if universenet is not None:
        weights |= UNIVERSENET_WEIGHTS[universenet[1]]
        return {"backbone": {"deform_stages": (4,)}, "weights": weights}
    match = CONFIG_NAME.fullmatch(config_name)
    assert match is not None, config_name
    variant = match["variant"] or ""
    has_tricks = FCOS_TRICKS in variant
    changes: dict[str, Any] = {} if has_tricks else dict(METHODS[match["method"]])
    changes["weights"] = weights
    if "sepc_noibn" in variant:
        changes["neck"] = SEPC_WITHOUT_NORM
    if match["caffe"]:
        changes["backbone"] = {"stride_in_1x1": True}
        if match["method"] == "fcos" and not has_tricks:
            changes["weights"]["mean"] = DETECTRON_MEAN
    return changes
