"""A method of your own: cells inside the middle of a box learn it (in the spirit of CenterNet).

    import own_method  # registers "middle"
    model = sepc_zoo.create_model("middle_r18_sepc_lite", num_classes=3)

Run as a program it trains on your data with all options of ``sepc-zoo train``:

    python examples/own_method.py --data cells --model middle_r18_sepc_lite --epochs 12
"""

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F

import sepc_zoo
from sepc_zoo.config import Fraction
from sepc_zoo.methods.losses import focal_loss
from sepc_zoo.methods.matching import IGNORE, inside_crowd, match_by_centre
from sepc_zoo.methods.method import Coder, Method
from sepc_zoo.methods.targets import positives
from sepc_zoo.ops.coders import encode
from sepc_zoo.outputs import Anchors, Predictions, Targets, Terms


class Middle(Method, frozen=True, tag="middle"):
    """Hyperparameters, which are entries of ``config.json``, and the losses."""

    middle: Fraction = 0.3  # part of a box, by side, whose cells learn it
    box_weight: float = 0.1

    defaults: ClassVar[Mapping[str, Any]] = {
        "anchors": {"base_scale": 2.0, "octaves": 1, "ratios": (1.0,)},  # one square a cell
        "coder": {"scale": (0.1, 0.1, 0.2, 0.2)},
    }

    def loss(
        self, predictions: Predictions, anchors: Anchors, targets: Targets, coder: Coder
    ) -> Terms:
        """``loss_cls`` and ``loss_box``, each a sum and the count to divide it by."""
        match = match_by_centre(targets.boxes, anchors.boxes, self.middle)  # N, A
        crowd = inside_crowd(targets.crowds, anchors.boxes)
        match = match.masked_fill((match < 0) & crowd, IGNORE)
        pos = positives(match, targets)
        loss_cls = focal_loss(predictions.logits, pos, ignored=match == IGNORE)

        wanted = encode(coder, anchors.boxes[pos.anchor], pos.boxes)  # P, 4
        distance = F.l1_loss(predictions.deltas[pos.image, pos.anchor], wanted, reduction="none")
        loss_box = self.box_weight * pos.sum(distance)
        count = (match >= 0).sum()
        return {"loss_cls": (loss_cls, count), "loss_box": (loss_box, count)}


sepc_zoo.register_method(Middle)

if __name__ == "__main__":
    from sepc_zoo.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
