import pytest
import torch
import torch.nn.functional as F
import torchvision
from small_batches import BOXES_OF_TWO_IMAGES as TARGETS
from small_batches import CLASSES, anchors_of, config_of, losses_of, random_predictions, target

from sepc_zoo.config import override
from sepc_zoo.methods.matching import IGNORE, NEGATIVE
from sepc_zoo.methods.point_matching import match_atss
from sepc_zoo.methods.targets import collate_targets
from sepc_zoo.models.dense import DenseDetector
from sepc_zoo.ops.coders import decode_delta

SCALE = (0.1, 0.1, 0.2, 0.2)
ANCHORS = anchors_of("atss")


def naive_centerness(anchor, box):
    x, y = (anchor[:2] + anchor[2:]) / 2
    across, down = (x - box[0], box[2] - x), (y - box[1], box[3] - y)
    return (min(across) / max(across) * min(down) / max(down)).sqrt()


def naive_loss(predictions, targets):
    loss_cls, loss_box, loss_quality, count, weight = 0, 0, 0, 0, 0
    for i, image in enumerate(targets):
        match = match_atss(image["boxes"], *ANCHORS[:2]).tolist()
        for j, box in enumerate(match):
            wanted = torch.zeros(CLASSES, dtype=torch.float64)
            if box >= 0:
                wanted[image["labels"][box]] = 1
                anchor, box = ANCHORS.boxes[j], image["boxes"][box]
                central = naive_centerness(anchor, box)
                found = decode_delta(anchor, predictions.deltas[i, j], SCALE)
                giou = torchvision.ops.generalized_box_iou(found[None], box[None]).squeeze()
                loss_box += 2 * (1 - giou) * central
                loss_quality += F.binary_cross_entropy_with_logits(
                    predictions.quality[i, j], central
                )
                weight += central
            loss_cls += torchvision.ops.sigmoid_focal_loss(
                predictions.logits[i, j], wanted, reduction="sum"
            )
        count += max(1, sum(box >= 0 for box in match))
    return {
        "loss_cls": loss_cls / count,
        "loss_box": loss_box / max(1, weight),
        "loss_quality": loss_quality / count,
    }


@pytest.mark.parametrize(
    "targets", [TARGETS, [TARGETS[0], target([], [])]], ids=["boxes", "one empty"]
)
def test_loss_equals_the_naive_loop(targets):
    predictions = random_predictions("atss")
    losses = losses_of("atss", predictions, *targets)
    torch.testing.assert_close(losses, naive_loss(predictions, targets))


@pytest.mark.parametrize("method", ["atss", "fcos", "retinanet", "freeanchor"])
@pytest.mark.parametrize("targets", [TARGETS, [TARGETS[0], target([], [])]])
def test_counts_are_those_of_the_loss(method, targets):
    predictions, config = random_predictions(method), config_of(method)
    anchors, collated = anchors_of(method), collate_targets(targets, like=predictions.deltas)
    counts = config.method.counts(anchors, collated)
    terms = config.method.loss(predictions, anchors, collated, config.coder)
    assert counts == {name: count for name, (_, count) in terms.items()}


def test_anchors_on_the_padding_of_an_image_do_not_count():
    config = override(config_of("atss"), {"channels": 32, "head": {"convs": 0}})
    model = DenseDetector(config)
    sizes = model.level_sizes((96, 128))
    anchors = model.anchors(sizes, torch.zeros(()), [(96, 128), (40, 70)])
    targets = collate_targets([TARGETS[0], target([[3, 3, 60, 38]], [1])], torch.zeros(()))
    match = config.method.match(anchors, targets)
    assert torch.equal(match == IGNORE, ~anchors.exists)
    assert anchors.exists[0].all()
    assert anchors.exists[1, : 12 * 16].view(12, 16).nonzero().amax(dim=0).tolist() == [7, 11]
    assert (match[1] >= 0).any()
    assert (match[1] == NEGATIVE).any()


def test_a_head_without_quality_is_refused():
    config = override(config_of("atss"), {"head": {"quality": "none"}})
    with pytest.raises(ValueError, match=r"method atss .*head.quality must be"):
        DenseDetector(config)
