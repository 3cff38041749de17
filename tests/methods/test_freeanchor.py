import pytest
import torch
import torch.nn.functional as F
from small_batches import (
    CLASSES,
    SIZES,
    anchors_of,
    config_of,
    losses_of,
    random_predictions,
    target,
)

from sepc_zoo.config import override
from sepc_zoo.methods.freeanchor import (
    FreeAnchor,
    mean_max,
    nearest_anchors,
    partly_background,
)
from sepc_zoo.methods.targets import collate_targets
from sepc_zoo.ops import boxes as boxes_module
from sepc_zoo.ops.boxes import box_iou
from sepc_zoo.ops.coders import decode_delta, encode_delta
from sepc_zoo.outputs import Predictions

DELTA_SCALE = (0.1, 0.1, 0.2, 0.2)
ANCHORS = anchors_of("freeanchor").boxes


TARGETS = [
    target([[57.3, 3.1, 103.4, 44.2], [6.3, 39.1, 62.4, 68.2], [18.3, 3.1, 64.4, 47.2]], [0, 3, 0]),
    target([[29.3, 40.1, 55.4, 92.2]], [2]),
]


def naive_object_prob(target, boxes):
    """The image_box_prob of the authors, box by box: linear in IoU, the best of a class wins."""
    prob = torch.zeros(len(boxes), CLASSES, dtype=torch.float64)
    for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
        iou = box_iou(box[None], boxes)[0]
        best = max(iou.max().item(), 0.6 + 1e-12)
        for anchor, value in enumerate(iou.tolist()):
            linear = min(max((value - 0.6) / (best - 0.6), 0.0), 1.0)
            prob[anchor, label] = max(prob[anchor, label].item(), linear)
    return prob


def naive_loss(predictions, targets):
    positive, negative, count = 0, 0, 0
    for logits, deltas, image in zip(predictions.logits, predictions.deltas, targets, strict=True):
        prob = logits.sigmoid()
        for box, label in zip(image["boxes"], image["labels"], strict=True):
            iou, order = box_iou(box[None], ANCHORS)[0].sort(descending=True)
            assert iou[49] > iou[50], "a bag that ends in a tie is not the only right one"
            scores = []
            for anchor in order[:50]:
                wanted = encode_delta(ANCHORS[anchor], box, DELTA_SCALE)
                loss = F.smooth_l1_loss(deltas[anchor], wanted, beta=0.11, reduction="sum")
                scores.append(prob[anchor, label] * (-0.75 * loss).exp())
            weights = [1 / max(1 - score, 1e-12) for score in scores]
            mean = sum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights)
            positive = positive - 0.5 * mean.log().clamp(min=-100)
            count += 1
        meant = naive_object_prob(image, decode_delta(ANCHORS, deltas.detach(), DELTA_SCALE))
        wrong = prob * (1 - meant)
        negative = negative - 0.5 * (wrong**2 * (1 - wrong).log()).sum()
    return {
        "loss_positive_bag": positive / count,
        "loss_negative_bag": negative / (count * 50),
    }


def test_loss_equals_the_naive_loop():
    predictions = random_predictions("freeanchor")
    losses = losses_of("freeanchor", predictions, *TARGETS)
    torch.testing.assert_close(losses, naive_loss(predictions, TARGETS))


def object_prob(boxes, *targets):
    """The cells that mean an object, as a table ``(N, A, K)``."""
    cells, prob = FreeAnchor().meant_cells(boxes, collate_targets(targets, boxes), CLASSES)
    assert len(set(cells.tolist())) == len(cells)
    table = torch.zeros(*boxes.shape[:2], CLASSES, dtype=torch.float64)
    table.view(-1)[cells] = prob
    return table


def test_object_prob_equals_the_naive_loop():
    generator = torch.Generator().manual_seed(0)
    near = TARGETS[0]["boxes"][torch.randint(0, 3, (2, 300), generator=generator)]
    boxes = near + torch.randn(2, 300, 4, generator=generator, dtype=torch.float64)
    other = target([[58.0, 4.0, 104.0, 45.0]], [3])
    prob = object_prob(boxes, TARGETS[0], other)
    assert ((prob > 0).sum(dim=(1, 2)) > 90).all()
    torch.testing.assert_close(prob[0], naive_object_prob(TARGETS[0], boxes[0]))
    torch.testing.assert_close(prob[1], naive_object_prob(other, boxes[1]))


def test_object_prob_is_one_for_the_best_box_and_zero_under_the_threshold():
    box = torch.tensor([[0.0, 0.0, 100.0, 100.0]], dtype=torch.float64)
    boxes = torch.tensor([[0, 0, 100, 90], [0, 0, 100, 75], [0, 0, 100, 55]], dtype=torch.float64)
    [prob] = object_prob(boxes[None], target(box.tolist(), [1]))
    assert prob[:, 1].tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert prob[:, [0, 2, 3]].sum() == 0


def test_an_image_without_boxes_means_nothing():
    boxes = TARGETS[0]["boxes"].expand(2, -1, -1)
    prob = object_prob(boxes, TARGETS[0], target([], []))
    assert prob[0].any()
    assert not prob[1].any()


@pytest.mark.parametrize("meant", [1e-6, 0.3, 1.0])
def test_part_of_a_probability_is_background(meant):
    logits = torch.linspace(-20, 20, 41, dtype=torch.float64, requires_grad=True)
    prob = logits.detach().sigmoid() * (1 - meant)
    expected = -(prob**2) * torch.log1p(-prob)
    found = partly_background(logits, torch.tensor(meant, dtype=torch.float64), gamma=2.0)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(
        lambda x: partly_background(x, torch.full_like(x, meant), 2.0), logits
    )


def test_bags_are_the_anchors_of_highest_iou():
    boxes = TARGETS[0]["boxes"]
    bags = nearest_anchors(boxes, ANCHORS, 50)
    iou = box_iou(boxes, ANCHORS)
    assert bags.shape == (3, 50)
    assert all(len(set(bag)) == 50 for bag in bags.tolist())
    torch.testing.assert_close(iou.gather(1, bags), iou.topk(50, dim=1).values)


def test_bags_end_in_a_tie_as_those_of_the_original():
    """It takes ``topk`` of all anchors; which of many equal ones that is says torch alone."""
    boxes = torch.tensor([[16.0, 16.0, 48.0, 48.0], [3.0, 5.0, 7.0, 8.0]], dtype=torch.float64)
    iou = box_iou(boxes, ANCHORS)
    ordered = iou.sort(dim=1, descending=True).values
    assert (ordered[:, 49] == ordered[:, 50]).any()
    assert torch.equal(nearest_anchors(boxes, ANCHORS, 50), iou.topk(50, dim=1).indices)


@pytest.mark.parametrize("cells", [1, 100, 1000])
def test_chunks_of_anchors_do_not_change_bags_and_object_prob(cells, monkeypatch):
    boxes = TARGETS[0]["boxes"]
    iou = box_iou(boxes, ANCHORS)
    expected = iou.gather(1, nearest_anchors(boxes, ANCHORS, 50))
    moved = boxes[torch.arange(200) % 3] + torch.randn(200, 4, dtype=torch.float64)
    prob = object_prob(moved[None], TARGETS[0])
    monkeypatch.setattr(boxes_module, "TABLE_CELLS", cells)
    assert torch.equal(iou.gather(1, nearest_anchors(boxes, ANCHORS, 50)), expected)
    assert torch.equal(object_prob(moved[None], TARGETS[0]), prob)


def test_a_bag_larger_than_the_image_holds_every_anchor():
    bags = nearest_anchors(TARGETS[0]["boxes"], ANCHORS[:20], 50)
    assert [sorted(bag) for bag in bags.tolist()] == [list(range(20))] * 3


def test_mean_max_is_the_mean_while_all_are_poor():
    prob = torch.tensor([[0.001, 0.002, 0.003]])
    torch.testing.assert_close(mean_max(prob), prob.mean(dim=1), rtol=1e-2, atol=0)


def test_mean_max_is_the_max_once_one_is_good():
    prob = torch.tensor([[0.1, 0.2, 1.0]])
    torch.testing.assert_close(mean_max(prob), torch.tensor([1.0]))


def test_mean_max_of_certainty_is_one_and_no_more():
    prob = torch.rand(2000, 50) ** 0.001
    prob[::2] = 1
    assert (mean_max(prob) <= 1).all()


def test_the_positive_term_does_not_need_a_certain_anchor():
    """An object is found once one anchor of its bag finds it; the others need not."""
    logits = torch.full((1, len(ANCHORS), CLASSES), -20.0, dtype=torch.float64)
    deltas = encode_delta(ANCHORS, TARGETS[1]["boxes"].expand_as(ANCHORS), DELTA_SCALE)[None]
    best = box_iou(TARGETS[1]["boxes"], ANCHORS).argmax()
    logits[0, best, 2] = 30
    losses = losses_of("freeanchor", Predictions(logits, deltas, SIZES), *TARGETS[1:])
    assert sum(losses.values()) < 1e-6


def test_images_without_boxes_may_count_for_no_bag():
    predictions = random_predictions("freeanchor")
    config = override(config_of("freeanchor"), {"method": {"count_empty_images": False}})
    for targets, bags in ((TARGETS, 4), ([TARGETS[0], target([], [])], 3)):
        collated = collate_targets(targets, like=predictions.deltas)
        counts = config.method.counts(anchors_of("freeanchor"), collated)
        assert counts == {"loss_positive_bag": bags, "loss_negative_bag": 50 * bags}
