import math

import pytest
import torch
import torchvision

from sepc_zoo.methods.box_losses import (
    centerness,
    ciou_loss,
    diou_loss,
    distribution_focal_loss,
    giou_loss,
    iou_loss,
)


def random_boxes(count, seed, shift=60.0):
    generator = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(2, count, 2, generator=generator, dtype=torch.float64)
    return torch.cat([corner * shift, corner * shift + size * 50 + 1], dim=1)


BOXES, TARGETS = random_boxes(200, 0), random_boxes(200, 1)  # some pairs do not overlap


def naive_iou(box, target):
    width = max(0, min(box[2], target[2]) - max(box[0], target[0]))
    height = max(0, min(box[3], target[3]) - max(box[1], target[1]))
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box, target)]
    return width * height / (sum(areas) - width * height)


def test_iou_loss_equals_the_naive_loop():
    pairs = zip(BOXES.tolist(), TARGETS.tolist(), strict=True)
    expected = [-math.log(max(naive_iou(*pair), 1e-6)) for pair in pairs]
    torch.testing.assert_close(
        iou_loss(BOXES, TARGETS), torch.tensor(expected, dtype=torch.float64)
    )


@pytest.mark.parametrize("eps", [0.0, 1e-7])
def test_giou_loss_equals_torchvisions(eps):
    expected = torchvision.ops.generalized_box_iou_loss(BOXES, TARGETS, eps=eps)
    torch.testing.assert_close(giou_loss(BOXES, TARGETS, eps), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("loss", "theirs", "rtol"),
    [
        (diou_loss, torchvision.ops.distance_box_iou_loss, 1e-12),
        # torchvision adds 1e-7 to areas here, whatever its eps is
        (ciou_loss, torchvision.ops.complete_box_iou_loss, 1e-9),
    ],
)
def test_diou_and_ciou_losses_and_their_gradients_equal_torchvisions(loss, theirs, rtol):
    boxes = BOXES.clone().requires_grad_()
    found, expected = loss(boxes, TARGETS), theirs(boxes, TARGETS, eps=0)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=0)
    gradients = (torch.autograd.grad(x.sum(), boxes)[0] for x in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", [iou_loss, giou_loss, diou_loss, ciou_loss])
def test_losses_of_wild_boxes_and_their_gradients_are_finite(loss):
    wild = torch.tensor([[5.0, 5, 5, 5], [9, 9, 3, 3], [-1e6, -1e6, 1e6, 1e6], [0, 0, 0, 0]])
    wild.requires_grad_()
    values = loss(wild, torch.tensor([[0.0, 0, 10, 10]] * 3 + [[0.0, 0, 0, 0]]))
    values.sum().backward()
    assert values.isfinite().all()
    assert wild.grad.isfinite().all()


@pytest.mark.parametrize("loss", [iou_loss, giou_loss, diou_loss])
def test_gradients_are_those_of_the_loss(loss):
    boxes = BOXES[:20].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, TARGETS[:20]), boxes)


def test_distribution_focal_loss_equals_the_naive_loop():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 4, 17, generator=generator, dtype=torch.float64) * 3
    targets = torch.rand(30, 4, generator=generator, dtype=torch.float64) * 15.9
    targets[0] = torch.tensor([0.0, 1.0, 15.9, 7.5])
    found = distribution_focal_loss(logits, targets)
    for row, target, loss in zip(
        logits.view(-1, 17).tolist(), targets.flatten().tolist(), found.flatten(), strict=True
    ):
        total = math.log(sum(math.exp(x) for x in row))
        bin = int(target)
        expected = (total - row[bin]) * (bin + 1 - target) + (total - row[bin + 1]) * (target - bin)
        assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_distribution_focal_loss_is_least_where_the_expectation_is_the_target():
    weights = torch.tensor([0.0, 0.0, 0.75, 0.25, 0.0]).clamp(min=1e-6).log().requires_grad_()
    distribution_focal_loss(weights, torch.tensor(2.25)).backward()
    assert weights.grad.abs().max() < 1e-5


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([0, 0, 10, 10], 1.0),
        ([4, 0, 10, 10], math.sqrt(1 / 5)),
        ([4, 4, 10, 7], math.sqrt(1 / 5 * 1 / 2)),
        ([5, 0, 10, 10], 0.0),
        ([6, 0, 10, 10], 0.0),  # its centre lies outside
    ],
)
def test_centerness_falls_from_the_middle_of_a_box_to_its_sides(box, expected):
    anchor = torch.tensor([[0.0, 0, 10, 10]])
    found = centerness(anchor, torch.tensor([box], dtype=torch.float32))
    assert found.item() == pytest.approx(expected)
