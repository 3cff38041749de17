import pytest
import torch
import torch.nn.functional as F
import torchvision
from msgspec.structs import replace
from small_batches import BOXES_OF_TWO_IMAGES as TARGETS
from small_batches import CLASSES, SIZES, anchors_of, losses_of, random_predictions, target

from sepc_zoo.config import DeltaCoder
from sepc_zoo.methods.losses import mean_terms
from sepc_zoo.methods.matching import NEGATIVE, match_by_iou
from sepc_zoo.methods.retinanet import RetinaNet
from sepc_zoo.methods.targets import collate_targets
from sepc_zoo.ops.coders import decode_delta, encode_delta
from sepc_zoo.outputs import Predictions

ANCHORS = anchors_of("retinanet").boxes


def naive_loss(predictions, targets):
    loss_cls, loss_box, count = 0, 0, 0
    for logits, deltas, image in zip(predictions.logits, predictions.deltas, targets, strict=True):
        match = match_by_iou(image["boxes"], ANCHORS, 0.5, 0.4).tolist()
        for anchor, box in enumerate(match):
            wanted = torch.zeros(CLASSES, dtype=torch.float64)
            if box >= 0:
                wanted[image["labels"][box]] = 1
                delta = encode_delta(ANCHORS[anchor], image["boxes"][box])
                loss_box += F.smooth_l1_loss(deltas[anchor], delta, beta=0.11, reduction="sum")
            if box >= NEGATIVE:
                loss_cls += torchvision.ops.sigmoid_focal_loss(
                    logits[anchor], wanted, reduction="sum"
                )
        count += max(1, sum(box >= 0 for box in match))
    return {"loss_cls": loss_cls / count, "loss_box": loss_box / count}


@pytest.mark.parametrize(
    "targets", [TARGETS, [TARGETS[0], target([], [])]], ids=["boxes", "one empty"]
)
def test_loss_equals_the_naive_loop(targets):
    predictions = random_predictions("retinanet")
    losses = losses_of("retinanet", predictions, *targets)
    torch.testing.assert_close(losses, naive_loss(predictions, targets))


def test_a_perfect_prediction_has_hardly_any_loss():
    match = match_by_iou(TARGETS[0]["boxes"], ANCHORS, 0.5, 0.4)
    logits = torch.full((1, len(ANCHORS), CLASSES), -20.0, dtype=torch.float64)
    positive = (match >= 0).nonzero().squeeze(1)
    logits[0, positive, TARGETS[0]["labels"][match[positive]]] = 20
    deltas = encode_delta(ANCHORS, TARGETS[0]["boxes"][match.clamp(min=0)])[None]
    losses = losses_of("retinanet", Predictions(logits, deltas, SIZES), *TARGETS[:1])
    assert sum(losses.values()) < 1e-10


def test_only_positive_anchors_learn_boxes():
    predictions = random_predictions("retinanet")
    sum(losses_of("retinanet", predictions, *TARGETS).values()).backward()
    for grad, image in zip(predictions.deltas.grad, TARGETS, strict=True):
        positive = match_by_iou(image["boxes"], ANCHORS, 0.5, 0.4) >= 0
        assert torch.equal(grad.abs().sum(dim=1) > 0, positive)


def test_ignored_anchors_learn_nothing():
    predictions = random_predictions("retinanet")
    sum(losses_of("retinanet", predictions, *TARGETS).values()).backward()
    for grad, image in zip(predictions.logits.grad, TARGETS, strict=True):
        counted = match_by_iou(image["boxes"], ANCHORS, 0.5, 0.4) >= NEGATIVE
        assert not counted.all()
        assert torch.equal(grad.abs().sum(dim=1) > 0, counted)


@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
def test_a_mean_of_images_is_that_of_each_alone(box_loss):
    method = RetinaNet(box_loss=box_loss)
    targets, predictions = [*TARGETS, target([], [])], random_predictions("retinanet", images=3)
    anchors, coder = anchors_of("retinanet"), DeltaCoder()

    def losses(method, part):
        cut = predictions._replace(logits=predictions.logits[part], deltas=predictions.deltas[part])
        collated = collate_targets(targets[part], predictions.deltas)
        return mean_terms(method.loss(cut, anchors, collated, coder))

    found = losses(replace(method, mean_of_images=True), slice(None))
    alone = [losses(method, slice(i, i + 1)) for i in range(3)]
    mean = {name: sum(part[name] for part in alone) / 3 for name in alone[0]}
    torch.testing.assert_close(found, mean)
    counts = replace(method, mean_of_images=True).counts(
        anchors, collate_targets(targets, predictions.deltas)
    )
    assert {name: count.item() for name, count in counts.items()} == dict.fromkeys(found, 3)


def test_giou_is_that_of_the_decoded_boxes():
    predictions, anchors = random_predictions("retinanet"), anchors_of("retinanet")
    collated = collate_targets(TARGETS, predictions.deltas)
    total, _ = RetinaNet(box_loss="giou").loss(predictions, anchors, collated, DeltaCoder())[
        "loss_box"
    ]
    expected = 0
    for deltas, image in zip(predictions.deltas, TARGETS, strict=True):
        match = match_by_iou(image["boxes"], ANCHORS, 0.5, 0.4)
        positive = match >= 0
        boxes = decode_delta(ANCHORS[positive], deltas[positive])
        expected = expected + torchvision.ops.generalized_box_iou_loss(
            boxes, image["boxes"][match[positive]], reduction="sum"
        )
    torch.testing.assert_close(total, expected)
