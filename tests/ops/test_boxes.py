import pytest
import torch
import torchvision

from sepc_zoo.ops import boxes as boxes_module
from sepc_zoo.ops.boxes import (
    anchor_chunks,
    box_area,
    box_iof,
    box_iou,
    clip_boxes,
    paired_iou,
    shrink_boxes,
)


def random_boxes(count, seed=0, extent=100.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * extent
    size = torch.rand(count, 2, generator=generator) * extent / 2 + 1
    return torch.cat([corner, corner + size], dim=1)


def test_iou_equals_torchvisions():
    boxes, anchors = random_boxes(30, seed=1), random_boxes(70, seed=2)
    expected = torchvision.ops.box_iou(boxes, anchors)
    torch.testing.assert_close(box_iou(boxes, anchors), expected)


@pytest.mark.parametrize(
    ("box", "other", "expected"),
    [
        ([0, 0, 10, 10], [0, 0, 10, 10], 1),
        ([0, 0, 10, 10], [10, 0, 20, 10], 0),  # they touch along a side
        ([0, 0, 10, 10], [10, 10, 20, 20], 0),  # and in a corner
        ([5, 5, 5, 5], [5, 5, 5, 5], 0),  # without area
    ],
)
def test_iou_at_its_limits(box, other, expected):
    boxes, others = torch.tensor([box]).float(), torch.tensor([other]).float()
    assert box_iou(boxes, others).item() == paired_iou(boxes, others).item() == expected


def test_iou_leaves_its_arguments_alone():
    boxes, anchors = random_boxes(5, seed=1), random_boxes(5, seed=2)
    before = boxes.clone(), anchors.clone()
    box_iou(boxes, anchors)
    box_iof(boxes, anchors)
    assert torch.equal(boxes, before[0])
    assert torch.equal(anchors, before[1])


def test_iou_of_no_boxes_is_an_empty_table():
    assert box_iou(torch.zeros(0, 4), random_boxes(7)).shape == (0, 7)
    assert box_iou(random_boxes(7), torch.zeros(0, 4)).shape == (7, 0)


def test_iof_is_the_covered_part_of_the_anchor():
    anchor = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    box = torch.tensor([[5.0, 0.0, 100.0, 100.0]])
    assert box_iof(box, anchor).item() == pytest.approx(0.5)
    assert box_iof(anchor, anchor).item() == pytest.approx(1.0)


def test_area_is_width_times_height():
    assert box_area(torch.tensor([[1.0, 2.0, 4.0, 10.0]])).item() == 24


@pytest.mark.parametrize("cells", [1, 7, 50, 10**6])
def test_chunks_cover_every_anchor_once(cells, monkeypatch):
    monkeypatch.setattr(boxes_module, "TABLE_CELLS", cells)
    chunks = list(anchor_chunks(5, 101))
    assert torch.cat([torch.arange(101)[chunk] for chunk in chunks]).tolist() == list(range(101))
    assert all(5 * (c.stop - c.start) <= max(cells, 5) for c in chunks)


def test_clipped_boxes_lie_in_their_images():
    boxes = torch.stack([random_boxes(50, extent=300) - 100] * 2)
    sizes = torch.tensor([[40, 60], [90, 30]])
    clipped = clip_boxes(boxes, sizes)
    for image, (height, width) in zip(clipped, sizes.tolist(), strict=True):
        assert image.min() >= 0
        assert image[:, [0, 2]].max() <= width
        assert image[:, [1, 3]].max() <= height


def test_clipping_leaves_boxes_inside_alone():
    boxes = random_boxes(20, extent=50)[None]
    assert torch.equal(clip_boxes(boxes, torch.tensor([[100, 100]])), boxes)


def test_a_border_keeps_a_pixel_under_boxes_outside():
    boxes = torch.tensor([[[200.0, -50.0, 300.0, -20.0]]])
    clipped = clip_boxes(boxes, torch.tensor([[40, 60]]), border=1.0)
    assert clipped.tolist() == [[[59.0, 0.0, 60.0, 1.0]]]


def test_shrinking_keeps_the_centre_and_scales_the_sides():
    boxes = random_boxes(20)
    shrunk = shrink_boxes(boxes, 0.2)
    torch.testing.assert_close(shrunk[:, :2] + shrunk[:, 2:], boxes[:, :2] + boxes[:, 2:])
    sides = (boxes[:, 2:] - boxes[:, :2]) * 0.2
    torch.testing.assert_close(shrunk[:, 2:] - shrunk[:, :2], sides, rtol=0, atol=1e-4)
