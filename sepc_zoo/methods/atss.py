"""ATSS: the statistics of an object decide which anchors learn it (Zhang et al. 2020).

The losses are those of FCOS (section 4.1).
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from msgspec import Meta
from torch import Tensor

from sepc_zoo.config import NonNegative
from sepc_zoo.methods.box_losses import overlap_loss
from sepc_zoo.methods.fcos import CenternessMethod
from sepc_zoo.methods.matching import count_positives, ignore_negatives
from sepc_zoo.methods.point_matching import match_atss
from sepc_zoo.methods.targets import Positives
from sepc_zoo.outputs import Anchors, Targets

SQUARES = {
    "base_scale": 8.0,
    "octaves": 1,
    "ratios": (1.0,),
    "centre": "corner",
    "rounded": False,
    "in_padding": False,
}


class ATSS(CenternessMethod, frozen=True, tag="atss"):
    candidates: Annotated[int, Meta(ge=1, le=1000)] = 9  # nearest anchors of each level
    box_weight: NonNegative = 2.0

    defaults: ClassVar[Mapping[str, Any]] = {
        "fpn": {"p6_from": "p5"},
        "head": {"norm": "group", "box_scales": True, "quality": "box"},
        "anchors": SQUARES,
        "coder": {"scale": (0.1, 0.1, 0.2, 0.2)},
        "postprocess": {"candidates": "pairs", "iou_threshold": 0.6},
    }

    def sum_boxes(self, boxes: Tensor, pos: Positives, central: Tensor) -> Tensor:
        distance = overlap_loss(self.box_loss, boxes, pos.boxes)
        return self.box_weight * pos.sum(central * distance)

    def count_terms(self, match: Tensor, pos: Positives, central: Tensor) -> dict[str, Tensor]:
        """The number of positives, at least one an image; for ``loss_box`` their centerness."""
        count = count_positives(match)
        return {"loss_cls": count, "loss_box": pos.sum(central), "loss_quality": count}

    def match(self, anchors: Anchors, targets: Targets) -> Tensor:
        match = match_atss(
            targets.boxes, anchors.boxes, anchors.lengths, anchors.exists, self.candidates
        )
        return ignore_negatives(match, anchors, targets)
