import pytest
import torch
import torchvision

from sepc_zoo.config import AnchorConfig, FPNConfig, PostprocessConfig
from sepc_zoo.ops import nms as postprocess_module
from sepc_zoo.ops.anchors import make_anchors
from sepc_zoo.ops.coders import decode_delta
from sepc_zoo.ops.nms import select_detections
from sepc_zoo.outputs import Predictions

STRIDES = FPNConfig().strides

SIZES = ((8, 8), (4, 4), (2, 2), (1, 1), (1, 1))
ANCHORS = make_anchors(AnchorConfig(), SIZES, STRIDES)


def random_predictions(images=3, classes=5, seed=0, mean=-2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, len(ANCHORS), classes, generator=generator) + mean
    deltas = torch.randn(images, len(ANCHORS), 4, generator=generator) * 0.3
    return Predictions(logits, deltas, SIZES)


def select(predictions, sizes=None, **changes):
    sizes = sizes or [(64, 64)] * len(predictions.logits)
    return select_detections(
        predictions, ANCHORS, decode_delta, sizes, PostprocessConfig(**changes)
    )


def iou(box, other):
    width = max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
    height = max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
    inter = width * height
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return inter / max(sum(areas) - inter, 1e-9)


def naive_selection(logits, deltas, size, config, quality=None):
    """One image, one class after the other."""
    lengths = [h * w * 9 for h, w in SIZES]
    candidates, scores, most = [], logits.sigmoid(), config.candidates_per_level
    if config.quality == "root":
        scores = (scores * quality.sigmoid()[:, None]).sqrt()
    scores = scores * (scores > config.score_threshold)
    for level, start in zip(lengths, torch.tensor([0, *lengths]).cumsum(0).tolist(), strict=False):
        part = scores[start : start + level]
        if config.candidates == "pairs":
            part *= part >= part.flatten().sort(descending=True).values[:most][-1]
            candidates += range(start, start + level)
        else:
            order = part.amax(dim=1).sort(descending=True, stable=True).indices[:most]
            candidates += (order + start).tolist()
    if quality is not None and config.quality == "factor":
        scores = scores * quality.sigmoid()[:, None]
    boxes = decode_delta(ANCHORS[candidates], deltas[candidates])
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, size[1])
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, size[0])
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    boxes, scores = boxes.tolist(), scores[candidates] * has_area[:, None]
    found = []
    for label in range(logits.shape[1]):
        kept = []
        for i in scores[:, label].argsort(descending=True).tolist():
            score = scores[i, label].item()
            if score > 0 and all(iou(boxes[i], other) <= config.iou_threshold for other in kept):
                kept.append(boxes[i])
                found.append((score, label, boxes[i]))
    return sorted(found, reverse=True)[: config.max_detections]


@pytest.mark.parametrize("candidates", ["anchors", "pairs"])
@pytest.mark.parametrize("quality", [None, "factor", "root"])
def test_detections_equal_the_naive_loop(candidates, quality):
    predictions, sizes = random_predictions(), [(64, 64), (50, 61), (33, 64)]
    changes = {"candidates_per_level": 40, "max_detections": 30}
    changes |= {"candidates": candidates, "score_threshold": 0.1}
    if quality is not None:
        generator = torch.Generator().manual_seed(1)
        values = torch.randn(predictions.logits.shape[:2], generator=generator)
        predictions, changes = predictions._replace(quality=values), changes | {"quality": quality}
    found = select(predictions, sizes, **changes)
    for i, ours in enumerate(found):
        naive = naive_selection(
            predictions.logits[i],
            predictions.deltas[i],
            sizes[i],
            PostprocessConfig(**changes),
            None if quality is None else predictions.quality[i],
        )
        assert ours["labels"].tolist() == [label for _, label, _ in naive]
        torch.testing.assert_close(ours["scores"], torch.tensor([score for score, _, _ in naive]))
        torch.testing.assert_close(ours["boxes"], torch.tensor([box for _, _, box in naive]))


@pytest.mark.parametrize(
    ("how", "changes"),
    [
        ({}, {}),
        ({}, {"soft_nms": "linear"}),
        ({}, {"soft_nms": "gaussian"}),
        # An offset per class and image in float32 would blur the boxes' sides.
        ({"classes": 4000, "mean": -6.0}, {"max_detections": 1000}),
        ({"classes": 40}, {}),
    ],
)
def test_a_batch_is_its_images_one_by_one(how, changes):
    """One image has many more candidates, and leaves the others theirs."""
    predictions, sizes = random_predictions(**how), [(64, 64), (40, 60), (64, 30)]
    predictions.logits[1] += 1
    batch = select(predictions, sizes, **changes)
    for i, found in enumerate(batch):
        alone = Predictions(predictions.logits[i : i + 1], predictions.deltas[i : i + 1], SIZES)
        [expected] = select(alone, sizes[i : i + 1], **changes)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_device_that_should_not_be_waited_for_finds_the_same(monkeypatch):
    predictions = random_predictions(mean=-3.0)
    expected = select(predictions)
    monkeypatch.setattr(postprocess_module, "counting_is_free", lambda _: False)
    torch.testing.assert_close(select(predictions), expected, rtol=0, atol=0)


def test_scores_fall():
    for found in select(random_predictions()):
        assert len(found["scores"]) > 1
        assert (found["scores"].diff() <= 0).all()


def test_boxes_lie_in_their_images():
    sizes = [(64, 64), (20, 60), (64, 10)]
    for found, (height, width) in zip(select(random_predictions(), sizes), sizes, strict=True):
        boxes = found["boxes"]
        assert boxes.min() >= 0
        assert (boxes[:, [0, 2]] <= width).all()
        assert (boxes[:, [1, 3]] <= height).all()


def test_nothing_over_the_threshold_gives_no_detections():
    for found in select(random_predictions(mean=-50.0)):
        assert found["boxes"].shape == (0, 4)
        assert found["scores"].shape == found["labels"].shape == (0,)


def test_one_image_of_a_batch_may_be_empty():
    predictions = random_predictions()
    predictions.logits[1] = -50
    assert [len(found["boxes"]) > 0 for found in select(predictions)] == [True, False, True]


def test_no_more_than_max_detections():
    assert all(len(found["boxes"]) == 7 for found in select(random_predictions(), max_detections=7))


def test_candidates_are_counted_per_level():
    predictions = random_predictions(images=1, classes=1, mean=5.0)
    [found] = select(predictions, candidates_per_level=1, iou_threshold=1.0)
    assert len(found["boxes"]) == len(SIZES)


def test_classes_do_not_suppress_each_other():
    predictions = random_predictions(images=1, classes=3)
    predictions.logits[:] = -50
    predictions.logits[0, 100, [0, 2]] = 4.0
    predictions.deltas[:] = 0
    [found] = select(predictions)
    assert sorted(found["labels"].tolist()) == [0, 2]
    assert torch.equal(found["boxes"][0], found["boxes"][1])


def test_the_same_box_twice_in_a_class_is_found_once():
    predictions = random_predictions(images=1, classes=3)
    predictions.logits[:] = -50
    predictions.logits[0, [100, 101], 1] = torch.tensor([2.0, 3.0])
    predictions.deltas[0, 100:102] = 0
    box = ANCHORS[100].clamp(0, 64)
    to_box, sizes = lambda _, deltas: box.expand_as(deltas), [(64, 64)]
    [found] = select_detections(predictions, ANCHORS, to_box, sizes, PostprocessConfig())
    assert found["scores"].tolist() == [pytest.approx(torch.tensor(3.0).sigmoid().item())]


def test_nan_is_no_detection():
    predictions = random_predictions(images=1)
    predictions.logits[:] = torch.nan
    assert len(select(predictions)[0]["boxes"]) == 0


def test_no_gradient_is_kept():
    predictions = random_predictions()
    predictions.logits.requires_grad_()
    assert not any(found["scores"].requires_grad for found in select(predictions))


def test_suppression_by_sorted_groups_is_torchvisions():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(500, 2, generator=generator, dtype=torch.float64) * 60
    boxes = torch.cat([corner, corner + 30], dim=1)
    scores = torch.rand(500, generator=generator, dtype=torch.float64)
    group = torch.randint(0, 7, (500,), generator=generator)
    expected = torchvision.ops.batched_nms(boxes, scores, group, 0.5)
    assert 7 < len(expected) < 400
    assert torch.equal(postprocess_module.suppress(boxes, scores, group, 0.5), expected)


def test_a_box_without_area_is_no_detection():
    predictions = random_predictions(images=1, mean=3.0)
    [found] = select(predictions, sizes=[(20, 64)], iou_threshold=1.0, max_detections=10_000)
    assert (found["boxes"][:, 2:] > found["boxes"][:, :2]).all()
