import math

import pytest
import torch
import torchvision
from small_batches import BOXES_OF_TWO_IMAGES as TARGETS
from small_batches import CLASSES, anchors_of, config_of, losses_of, random_predictions, target

from sepc_zoo.config import override
from sepc_zoo.methods.point_matching import match_atss
from sepc_zoo.models.dense import DenseDetector

ANCHORS = anchors_of("gfl")
BINS = 17


def naive_loss(predictions, targets, overlap=torchvision.ops.generalized_box_iou):
    loss_cls, loss_box, loss_dfl, count, weight = 0, 0, 0, 0, 0
    for i, image in enumerate(targets):
        match = match_atss(image["boxes"], *ANCHORS[:2]).tolist()
        for j, box in enumerate(match):
            wanted = [0.0] * CLASSES
            probs = predictions.logits[i, j].sigmoid()
            if box >= 0:
                label, box = image["labels"][box], image["boxes"][box]
                anchor = ANCHORS.boxes[j]
                stride, (x, y) = (anchor[2] - anchor[0]) / 8, (anchor[:2] + anchor[2:]) / 2
                sides = predictions.deltas[i, j].view(4, BINS).softmax(dim=1)
                left, top, right, bottom = [
                    sum(k * p for k, p in enumerate(side)) * stride for side in sides
                ]
                found = torch.stack([x - left, y - top, x + right, y + bottom])
                pair = found[None], box[None]
                score = probs.max().item()
                loss_box += 2 * score * (1 - overlap(*pair).squeeze())
                wanted[label] = torchvision.ops.box_iou(*pair).item()
                distances = torch.stack([x - box[0], y - box[1], box[2] - x, box[3] - y]) / stride
                for side, distance in zip(sides, distances.clamp(max=15.9).tolist(), strict=True):
                    low = math.floor(distance)
                    nats = side[low].log() * (low + 1 - distance)
                    nats = nats + side[low + 1].log() * (distance - low)
                    loss_dfl -= 0.25 * score * nats / 4
                weight += score
            for prob, q in zip(probs, wanted, strict=True):
                entropy = -q * prob.log() - (1 - q) * (1 - prob).log()
                loss_cls += (q - prob) ** 2 * entropy
        count += max(1, sum(box >= 0 for box in match))
    return {
        "loss_cls": loss_cls / count,
        "loss_box": loss_box / max(1, weight),
        "loss_dfl": loss_dfl / max(1, weight),
    }


@pytest.mark.parametrize(
    ("targets", "box_loss", "overlap"),
    [
        (TARGETS, "giou", torchvision.ops.generalized_box_iou),
        ([TARGETS[0], target([], [])], "giou", torchvision.ops.generalized_box_iou),
        (TARGETS, "diou", torchvision.ops.distance_box_iou),
    ],
    ids=["boxes", "one empty", "diou"],
)
def test_loss_and_its_gradient_equal_the_naive_loop(targets, box_loss, overlap):
    predictions = random_predictions("gfl")
    inputs = (predictions.logits, predictions.deltas)
    losses = losses_of("gfl", predictions, *targets, box_loss=box_loss)
    expected = naive_loss(predictions, targets, overlap)
    torch.testing.assert_close(losses, expected)
    ours, theirs = (torch.autograd.grad(sum(x.values()), inputs) for x in (losses, expected))
    torch.testing.assert_close(ours, theirs)


def test_a_coder_without_distributions_is_refused():
    config = override(config_of("gfl"), {"coder": {"type": "delta"}})
    with pytest.raises(ValueError, match=r"gfl .*coder.type must be"):
        DenseDetector(config)
