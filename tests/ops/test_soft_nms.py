"""Soft-NMS against the loop of its paper, and weighted boxes fusion likewise."""

import math

import pytest
import torch
from torchvision.ops import box_iou

from sepc_zoo.config import PostprocessConfig
from sepc_zoo.ops.nms import MIN_SOFT_SCORE, best_boxes, fuse_boxes


def random_boxes(count, groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 60
    side = 10 + 30 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    group = torch.randint(0, groups, (count,), generator=generator)
    return torch.cat([corner, corner + side], dim=1), scores, group


def naive_soft_nms(boxes, scores, group, config):
    """Bodla et al. 2017, figure 2, one class after the other."""
    overlaps, found = box_iou(boxes, boxes).tolist(), []
    for g in group.unique().tolist():
        left = {i: scores[i].item() for i in (group == g).nonzero().flatten().tolist()}
        while left:
            best = max(left, key=left.get)
            score = left.pop(best)
            if score > MIN_SOFT_SCORE:
                found.append((score, best))
            for i in left:
                iou = overlaps[best][i]
                if config.soft_nms == "gaussian":
                    left[i] *= math.exp(-(iou**2) / config.soft_nms_sigma)
                elif iou > config.iou_threshold:
                    left[i] *= 1 - iou
    return sorted(found, reverse=True)


@pytest.mark.parametrize("groups", [1, 7])
@pytest.mark.parametrize(
    "entries",
    [
        {"soft_nms": "linear", "iou_threshold": 0.3},
        {"soft_nms": "gaussian"},
        {"soft_nms": "gaussian", "soft_nms_sigma": 0.1},
    ],
)
def test_soft_nms_equals_the_naive_loop(entries, groups):
    boxes, scores, group = random_boxes(150, groups)
    config = PostprocessConfig(**entries, max_detections=1000)
    keep, final = best_boxes(boxes, scores, group, config)
    naive = naive_soft_nms(boxes, scores, group, config)
    assert keep.tolist() == [i for _, i in naive]
    expected = torch.tensor([score for score, _ in naive], dtype=torch.float64)
    torch.testing.assert_close(final[keep], expected)
    assert (final[keep] < scores[keep] - 1e-6).any()


def test_the_first_detections_do_not_depend_on_their_limit():
    boxes, scores, group = random_boxes(150, 3)
    few, many = (PostprocessConfig(soft_nms="gaussian", max_detections=n) for n in (20, 1000))
    (keep, final), (all_kept, expected) = (best_boxes(boxes, scores, group, c) for c in (few, many))
    assert torch.equal(keep[:20], all_kept[:20])
    assert torch.equal(final[keep[:20]], expected[all_kept[:20]])


def test_no_more_steps_than_the_largest_class_or_the_limit_needs(monkeypatch):
    boxes, scores, group = random_boxes(150, 50)
    steps = []
    monkeypatch.setattr(torch.Tensor, "exp", lambda x: steps.append(len(x)) or torch.exp(x))
    best_boxes(boxes, scores, group, PostprocessConfig(soft_nms="gaussian"))
    assert len(steps) <= group.bincount().max()
    assert steps == sorted(steps, reverse=True)  # boxes that are done are not looked at again


def test_equal_boxes_with_equal_scores_are_taken_one_by_one():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(3, 4)
    config = PostprocessConfig(soft_nms="gaussian")
    keep, final = best_boxes(boxes, torch.full((3,), 0.9), torch.zeros(3, dtype=torch.long), config)
    assert keep.tolist() == [0, 1, 2]
    torch.testing.assert_close(final, 0.9 * torch.tensor([0.0, -2.0, -4.0]).exp())


def test_no_boxes_and_no_numbers_are_no_detections():
    boxes, scores, group = random_boxes(4, 2)
    config = PostprocessConfig(soft_nms="linear")
    assert len(best_boxes(boxes[:0], scores[:0], group[:0], config)[0]) == 0
    assert len(best_boxes(boxes, scores * torch.nan, group, config)[0]) == 0


def naive_fusion(boxes, scores, labels, num_views, threshold):
    """Solovyev et al. 2021, section 3, with lists of boxes."""
    clusters = []
    for i in scores.argsort(descending=True).tolist():
        fused = [fused_box(boxes[c], scores[c]) for c in clusters]
        overlaps = [
            box_iou(box[None], boxes[i][None]).item() if labels[c[0]] == labels[i] else 0
            for box, c in zip(fused, clusters, strict=True)
        ]
        best = max(range(len(clusters)), key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] > threshold:
            clusters[best].append(i)
        else:
            clusters.append([i])
    found = [
        (
            (scores[c].mean() * min(len(c), num_views) / num_views).item(),
            labels[c[0]].item(),
            fused_box(boxes[c], scores[c]),
        )
        for c in clusters
    ]
    return sorted(found, key=lambda row: -row[0])


def fused_box(boxes, scores):
    return (boxes * scores[:, None]).sum(dim=0) / scores.sum()


@pytest.mark.parametrize("threshold", [0.3, 0.55])
def test_weighted_boxes_fusion_equals_the_naive_loop(threshold):
    boxes, scores, labels = random_boxes(120, 3)
    fused = fuse_boxes(boxes, scores, labels, 3, threshold)
    naive = naive_fusion(boxes, scores, labels, 3, threshold)
    assert 10 < len(naive) < 110
    assert fused["labels"].tolist() == [label for _, label, _ in naive]
    expected = torch.tensor([score for score, _, _ in naive], dtype=torch.float64)
    torch.testing.assert_close(fused["scores"], expected)
    torch.testing.assert_close(fused["boxes"], torch.stack([box for _, _, box in naive]))


def test_views_that_agree_keep_box_and_score_and_a_single_one_loses():
    box, score, label = random_boxes(1, 1)
    agreed = fuse_boxes(box.repeat(2, 1), score.repeat(2), label.repeat(2), 2, 0.5)
    torch.testing.assert_close(agreed["boxes"], box)
    torch.testing.assert_close(agreed["scores"], score)
    torch.testing.assert_close(fuse_boxes(box, score, label, 2, 0.5)["scores"], score / 2)


def test_nothing_is_fused_to_nothing():
    boxes, scores, labels = random_boxes(0, 1)
    assert fuse_boxes(boxes, scores, labels, 2, 0.5)["boxes"].shape == (0, 4)
