import pytest
import torch
import torch.nn.functional as F
import torchvision
from small_batches import CLASSES, SIZES, anchors_of, random_predictions, truth

from sepc_zoo.methods.losses import normalized
from sepc_zoo.methods.matching import NEGATIVE, match_by_iou
from sepc_zoo.methods.retinanet import RetinaNet
from sepc_zoo.ops.coders import encode_delta
from sepc_zoo.outputs import Predictions

ANCHORS = anchors_of(RetinaNet)


TRUTHS = [
    truth([[10, 12, 50, 60], [30, 20, 110, 90], [3, 3, 9, 8]], [0, 3, 1]),
    truth([[60, 10, 100, 80]], [2]),
]


def naive_loss(predictions, truths):
    loss_cls, loss_box, count = 0, 0, 0
    for logits, deltas, image in zip(predictions.logits, predictions.deltas, truths, strict=True):
        match = match_by_iou(image.boxes, ANCHORS, 0.5, 0.4).tolist()
        for anchor, box in enumerate(match):
            wanted = torch.zeros(CLASSES, dtype=torch.float64)
            if box >= 0:
                wanted[image.labels[box]] = 1
                delta = encode_delta(ANCHORS[anchor], image.boxes[box])
                loss_box += F.smooth_l1_loss(deltas[anchor], delta, beta=0.11, reduction="sum")
            if box >= NEGATIVE:
                loss_cls += torchvision.ops.sigmoid_focal_loss(
                    logits[anchor], wanted, reduction="sum"
                )
        count += max(1, sum(box >= 0 for box in match))
    return {"loss_cls": loss_cls / count, "loss_box": loss_box / count}


@pytest.mark.parametrize("truths", [TRUTHS, [TRUTHS[0], truth([], [])]], ids=["boxes", "one empty"])
def test_loss_equals_the_naive_loop(truths):
    predictions = random_predictions(RetinaNet)
    losses = normalized(*RetinaNet().loss_sums(predictions, ANCHORS, truths))
    expected = naive_loss(predictions, truths)
    assert list(losses) == ["loss_cls", "loss_box"]
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name])


def test_a_perfect_prediction_has_hardly_any_loss():
    match = match_by_iou(TRUTHS[0].boxes, ANCHORS, 0.5, 0.4)
    logits = torch.full((1, len(ANCHORS), CLASSES), -20.0, dtype=torch.float64)
    positive = (match >= 0).nonzero().squeeze(1)
    logits[0, positive, TRUTHS[0].labels[match[positive]]] = 20
    deltas = encode_delta(ANCHORS, TRUTHS[0].boxes[match.clamp(min=0)])[None]
    losses = normalized(
        *RetinaNet().loss_sums(Predictions(logits, deltas, SIZES), ANCHORS, TRUTHS[:1])
    )
    assert sum(losses.values()) < 1e-10


def test_only_positive_anchors_learn_boxes():
    predictions = random_predictions(RetinaNet)
    sum(normalized(*RetinaNet().loss_sums(predictions, ANCHORS, TRUTHS)).values()).backward()
    for grad, image in zip(predictions.deltas.grad, TRUTHS, strict=True):
        positive = match_by_iou(image.boxes, ANCHORS, 0.5, 0.4) >= 0
        assert torch.equal(grad.abs().sum(dim=1) > 0, positive)


def test_ignored_anchors_learn_nothing():
    predictions = random_predictions(RetinaNet)
    sum(normalized(*RetinaNet().loss_sums(predictions, ANCHORS, TRUTHS)).values()).backward()
    for grad, image in zip(predictions.logits.grad, TRUTHS, strict=True):
        counted = match_by_iou(image.boxes, ANCHORS, 0.5, 0.4) >= NEGATIVE
        assert not counted.all()
        assert torch.equal(grad.abs().sum(dim=1) > 0, counted)
