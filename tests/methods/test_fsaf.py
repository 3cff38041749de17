import pytest
import torch
import torchvision
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
from sepc_zoo.methods.fsaf import best_level, distance_iou_loss
from sepc_zoo.methods.matching import IGNORE, match_by_centre
from sepc_zoo.methods.point_matching import match_by_centre_pairs
from sepc_zoo.methods.targets import collate_targets
from sepc_zoo.models.dense import DenseDetector
from sepc_zoo.ops.coders import decode_distance, encode_distance
from sepc_zoo.outputs import Predictions

LEVEL = [level for level, (h, w) in enumerate(SIZES) for _ in range(h * w)]
ANCHORS = anchors_of("fsaf").boxes


TARGETS = [
    target([[10, 12, 50, 60], [30, 20, 110, 90], [3, 3, 19, 18], [20, 25, 40, 45]], [0, 3, 1, 0]),
    target([[60, 10, 100, 80]], [2]),
]


def naive_box_loss(anchor, tblr, box):
    """In pixels of decoded boxes; the union counts as at least one anchor."""
    found = decode_distance(anchor, tblr)
    size = anchor[2:] - anchor[:2]
    inter = (torch.minimum(found[2:], box[2:]) - torch.maximum(found[:2], box[:2])).prod()
    areas = (found[2:] - found[:2]).prod() + (box[2:] - box[:2]).prod()
    iou = inter / (areas - inter).clamp(min=size.prod())
    return -iou.clamp(min=1e-6).log()


def naive_loss(predictions, targets):
    """Box by box and level by level, as the notes on the original say it."""
    focal = torchvision.ops.sigmoid_focal_loss
    loss_cls, loss_box, count = 0, 0, 0
    for logits, deltas, image in zip(predictions.logits, predictions.deltas, targets, strict=True):
        match = match_by_centre(image["boxes"], ANCHORS).tolist()
        terms = torch.zeros(len(ANCHORS), CLASSES, dtype=torch.float64)
        for anchor, box in enumerate(match):
            wanted = torch.zeros(CLASSES, dtype=torch.float64)
            if box >= 0:
                wanted[image["labels"][box]] = 1
            if box != IGNORE:
                terms[anchor] = focal(logits[anchor], wanted)
        for box, (corners, label) in enumerate(zip(image["boxes"], image["labels"], strict=True)):
            losses: dict[int, list] = {}
            for anchor in [a for a, b in enumerate(match) if b == box]:
                of_box = naive_box_loss(ANCHORS[anchor], deltas[anchor], corners)
                losses.setdefault(LEVEL[anchor], []).append((anchor, of_box))
            means = {
                level: sum((terms[a].sum() + loss).item() for a, loss in cells) / len(cells)
                for level, cells in losses.items()
            }
            for level, cells in losses.items():
                for anchor, of_box in cells:
                    if level == min(means, key=means.get):
                        loss_box, count = loss_box + of_box, count + 1
                    else:
                        terms[anchor, label] = 0
        loss_cls = loss_cls + terms.sum()
    return {"loss_cls": loss_cls / max(count, 1), "loss_box": loss_box / max(count, 1)}


@pytest.mark.parametrize("seed", range(3))
def test_loss_equals_the_naive_loop(seed):
    predictions = random_predictions("fsaf", seed=seed)
    losses = losses_of("fsaf", predictions, *TARGETS)
    torch.testing.assert_close(losses, naive_loss(predictions, TARGETS))


def test_level_choice_equals_the_naive_loop():
    generator = torch.Generator().manual_seed(0)
    box = torch.randint(0, 6, (60,), generator=generator)
    level = torch.randint(0, 5, (60,), generator=generator)
    loss = torch.rand(60, generator=generator)
    expected = []
    for i in range(6):
        means = []
        for k in range(5):
            cells = [
                v for v, b, at in zip(loss.tolist(), box, level, strict=True) if (b, at) == (i, k)
            ]
            means.append(sum(cells) / len(cells) if cells else float("inf"))
        expected.append(means.index(min(means)))
    assert best_level(loss, box, level, 6, 5).tolist() == expected


def test_a_level_without_cells_is_never_chosen():
    loss, box = torch.tensor([5.0, 9.0]), torch.tensor([0, 0])
    assert best_level(loss, box, torch.tensor([3, 1]), 1, 5).tolist() == [3]


def test_each_box_is_learned_on_one_level():
    predictions = random_predictions("fsaf", images=1)
    sum(losses_of("fsaf", predictions, TARGETS[0]).values()).backward()
    match = match_by_centre(TARGETS[0]["boxes"], ANCHORS)
    learned = predictions.deltas.grad[0].abs().sum(dim=1) > 0
    for box in match[match >= 0].unique():
        levels = {LEVEL[anchor] for anchor in (learned & (match == box)).nonzero().flatten()}
        assert len(levels) == 1


def test_distance_iou_loss_is_minus_log_iou_of_the_decoded_boxes():
    anchors = ANCHORS[:30]
    generator = torch.Generator().manual_seed(1)
    found, wanted = (
        torch.rand(30, 4, generator=generator, dtype=torch.float64) * 3 + 1 for _ in range(2)
    )
    iou = torchvision.ops.box_iou(decode_distance(anchors, found), decode_distance(anchors, wanted))
    torch.testing.assert_close(distance_iou_loss(found, wanted), -iou.diagonal().log())


def test_distance_iou_loss_of_a_point_is_finite_and_bounded():
    found, wanted = torch.zeros(1, 4, requires_grad=True), torch.ones(1, 4)
    loss = distance_iou_loss(found, wanted)
    loss.sum().backward()
    torch.testing.assert_close(loss, -torch.tensor([1e-6]).log())
    assert found.grad.isfinite().all()


def test_a_perfect_prediction_has_hardly_any_loss():
    boxes, labels = TARGETS[0].values()
    match = match_by_centre(boxes, ANCHORS)
    logits = torch.full((1, len(ANCHORS), CLASSES), -20.0, dtype=torch.float64)
    positive = (match >= 0).nonzero().squeeze(1)
    logits[0, positive, labels[match[positive]]] = 20
    deltas = encode_distance(ANCHORS, boxes[match.clamp(min=0)]).clamp(min=0)[None]
    losses = losses_of("fsaf", Predictions(logits, deltas, SIZES), TARGETS[0])
    assert sum(losses.values()) < 1e-10


OPENMMLAB = {"ignore": "pairs", "min_distance": 1e-4, "min_union": 0.0, "count_negatives": True}


def pairs_terms(predictions, *targets):
    """Sums and counts with the hyperparameters of openmmlab."""
    config = override(config_of("fsaf"), {"method": OPENMMLAB})
    collated = collate_targets(targets, like=predictions.deltas)
    return config.method.loss(predictions, anchors_of("fsaf"), collated, config.coder)


def test_where_pairs_are_ignored_a_cell_learns_its_other_classes():
    predictions = random_predictions("fsaf")
    terms = pairs_terms(predictions, *TARGETS)
    sum(total for total, _ in terms.values()).backward()
    _, pairs = match_by_centre_pairs(
        collate_targets(TARGETS, like=predictions.deltas), anchors_of("fsaf"), CLASSES
    )
    assert len(pairs)
    learned = predictions.logits.grad.flatten().abs() > 1e-14  # pairs are added and subtracted
    assert not learned[pairs].any()
    # Of all others, only the own classes of cells where another level was chosen learn nothing.
    rest = torch.ones_like(learned)
    rest[pairs] = False
    assert (~learned & rest).view(-1, CLASSES).sum(dim=1).max() == 1
    assert (learned | ~rest).float().mean() > 0.95


def test_a_batch_without_positive_cells_is_divided_by_the_negative_ones():
    predictions = random_predictions("fsaf")
    none = target([], [])
    assert {int(count) for _, count in pairs_terms(predictions, none, none).values()} == {
        2 * len(ANCHORS)
    }
    assert int(pairs_terms(predictions, *TARGETS)["loss_cls"][1]) < 100


def test_distances_are_learned_as_if_they_had_a_smallest_value():
    predictions = random_predictions("fsaf")
    with torch.no_grad():
        predictions.deltas[:] = 0
    expected, _ = pairs_terms(predictions, *TARGETS)["loss_box"]
    with torch.no_grad():
        predictions.deltas[:] = 1e-4
    torch.testing.assert_close(pairs_terms(predictions, *TARGETS)["loss_box"][0], expected)


def test_a_coder_of_another_order_is_refused():
    config = override(config_of("fsaf"), {"coder": {"order": "ltrb"}})
    with pytest.raises(ValueError, match=r"fsaf .*coder.order"):
        DenseDetector(config)
