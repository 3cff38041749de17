import pytest
import torch
import torch.nn.functional as F
import torchvision
from small_batches import CLASSES, SIZES, anchors_of, config_of, random_predictions, target
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS

from sepc_zoo.config import override
from sepc_zoo.methods.losses import mean_terms
from sepc_zoo.methods.point_matching import match_points
from sepc_zoo.methods.targets import collate_targets
from sepc_zoo.ops.anchors import make_anchors
from sepc_zoo.outputs import Anchors

POINTS = anchors_of("fcos")
PLAIN = {  # the paper's first version
    "method": {"radius": None, "box_loss": "iou"},
    "coder": {"in_pixels": True},
}
TORCHVISION = {
    "method": {"reach_inclusive": False, "weighted_boxes": False, "eps": 1e-7},
    "anchors": {"centre": "corner"},
}
TARGETS = [
    target([[10, 12, 50, 60], [30, 20, 110, 90], [3, 3, 19, 18]], [0, 3, 1]),
    target([[60, 10, 100, 80]], [2]),
]


def losses_of(config, predictions, *targets):
    boxes = make_anchors(config.anchors, SIZES, config.fpn.strides, dtype=torch.float64)
    anchors = Anchors(boxes, [h * w for h, w in SIZES])
    collated = collate_targets(targets, like=predictions.deltas)
    return mean_terms(config.method.loss(predictions, anchors, collated, config.coder))


def naive_loss(predictions, targets, radius, in_pixels):
    loss_cls, loss_box, loss_quality, count, weight = 0, 0, 0, 0, 0
    for i, image in enumerate(targets):
        match = match_points(image["boxes"], *POINTS[:2], radius=radius).tolist()
        for j, box in enumerate(match):
            wanted = torch.zeros(CLASSES, dtype=torch.float64)
            if box >= 0:
                wanted[image["labels"][box]] = 1
                cell, box = POINTS.boxes[j], image["boxes"][box]
                x, y = (cell[:2] + cell[2:]) / 2
                across, down = (x - box[0], box[2] - x), (y - box[1], box[3] - y)
                central = (min(across) / max(across) * min(down) / max(down)).sqrt()
                unit = 1 if in_pixels else cell[2] - cell[0]
                left, top, right, bottom = predictions.deltas[i, j] * unit
                found = torch.stack([x - left, y - top, x + right, y + bottom])
                pair = found[None], box[None]
                if in_pixels:
                    loss_box -= torchvision.ops.box_iou(*pair).squeeze().log() * central
                else:
                    giou = torchvision.ops.generalized_box_iou(*pair).squeeze()
                    loss_box += (1 - giou) * central
                loss_quality += F.binary_cross_entropy_with_logits(
                    predictions.quality[i, j], central
                )
                count, weight = count + 1, weight + central
            loss_cls += torchvision.ops.sigmoid_focal_loss(
                predictions.logits[i, j], wanted, reduction="sum"
            )
    return {
        "loss_cls": loss_cls / max(1, count),
        "loss_box": loss_box / weight,
        "loss_quality": loss_quality / max(1, count),
    }


@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize(
    "targets", [TARGETS, [TARGETS[0], target([], [])]], ids=["boxes", "one empty"]
)
def test_loss_equals_the_naive_loop(is_plain, targets):
    predictions = random_predictions("fcos", scale=10 if is_plain else 2)
    config = override(config_of("fcos"), PLAIN if is_plain else {})
    losses = losses_of(config, predictions, *targets)
    expected = naive_loss(predictions, targets, config.method.radius, is_plain)
    torch.testing.assert_close(losses, expected)


def _backbone():
    backbone = torch.nn.Identity()
    backbone.out_channels = 32
    return backbone


def test_the_loss_equals_torchvisions_with_its_hyperparameters():
    predictions = random_predictions("fcos", scale=2)
    losses = losses_of(override(config_of("fcos"), TORCHVISION), predictions, *TARGETS)

    strides = config_of("fcos").fpn.strides
    generator = AnchorGenerator(tuple((s,) for s in strides), ((1.0,),) * len(strides))
    images = torchvision.models.detection.image_list.ImageList(
        torch.zeros(2, 3, 96, 128, dtype=torch.float64), [(96, 128)] * 2
    )
    sizes = [torch.zeros(2, 1, h, w, dtype=torch.float64) for h, w in SIZES]
    anchors = generator(images, sizes)
    model = FCOS(_backbone(), CLASSES, anchor_generator=generator)
    outputs = {
        "cls_logits": predictions.logits,
        "bbox_regression": predictions.deltas,
        "bbox_ctrness": predictions.quality[..., None],
    }
    theirs = model.compute_loss(TARGETS, outputs, anchors, [h * w for h, w in SIZES])
    for ours, name in zip(
        losses.values(), ("classification", "bbox_regression", "bbox_ctrness"), strict=True
    ):
        torch.testing.assert_close(ours, theirs[name])


def test_weights_that_sum_to_less_than_one_divide_all_the_same():
    """One point near the corner of its box: the loss of its box counts in full."""
    predictions = random_predictions("fcos", images=1, scale=2)
    corner = target([[3.8, 3.8, 11, 11]], [0])
    config = override(config_of("fcos"), {"method": {"radius": None}})
    expected = naive_loss(predictions, [corner], None, False)
    torch.testing.assert_close(
        losses_of(config, predictions, corner)["loss_box"], expected["loss_box"]
    )
