import pytest
import torch

from sepc_zoo.config import AnchorConfig, FPNConfig
from sepc_zoo.methods.matching import (
    IGNORE,
    NEGATIVE,
    inside_crowd,
    match_by_centre,
    match_by_iou,
)
from sepc_zoo.ops import boxes as boxes_module
from sepc_zoo.ops.anchors import make_anchors
from sepc_zoo.ops.boxes import box_iou

STRIDES = FPNConfig().strides

SIZES = ((12, 16), (6, 8), (3, 4), (2, 2), (1, 1))
ANCHORS = make_anchors(AnchorConfig(), SIZES, STRIDES)
CELLS = make_anchors(
    AnchorConfig(base_scale=1.0, octaves=1, ratios=(1.0,)), SIZES, STRIDES, dtype=torch.float64
)


def random_boxes(count, seed):
    """Boxes of all sizes on whole and half pixels, so that IoUs tie."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(-10, 110, (count, 2), generator=generator)
    size = torch.randint(2, 8, (count, 2), generator=generator) ** 2
    return torch.cat([corner, corner + size], dim=1).float() / 2 + 0.5


def naive_match_by_iou(boxes, anchors, positive=0.5, negative=0.4):
    iou = box_iou(boxes, anchors)
    match = []
    for overlaps in iou.T.tolist():
        best = max(overlaps)
        found = overlaps.index(best) if best >= positive else IGNORE
        match.append(NEGATIVE if best < negative else found)
    for box, overlaps in enumerate(iou.tolist()):
        best = max(overlaps)
        for anchor, overlap in enumerate(overlaps):
            if overlap == best and best > 0:
                match[anchor] = box
    return torch.tensor(match)


def naive_match_by_centre(boxes, anchors, central=0.2, min_cover=0.01):
    match = []
    for x1, y1, x2, y2 in anchors.tolist():
        found, smallest = NEGATIVE, float("inf")
        cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
        for i, (bx1, by1, bx2, by2) in enumerate(boxes.tolist()):
            mx, my = (bx1 + bx2) / 2, (by1 + by2) / 2
            hw, hh = (bx2 - bx1) * central / 2, (by2 - by1) * central / 2
            width = max(0, min(mx + hw, x2) - max(mx - hw, x1))
            height = max(0, min(my + hh, y2) - max(my - hh, y1))
            if width * height / ((x2 - x1) * (y2 - y1)) <= min_cover:
                continue
            area = (bx2 - bx1) * (by2 - by1)
            if bx1 < cx < bx2 - 1 and by1 < cy < by2 - 1:
                if area < smallest:
                    found, smallest = i, area
            elif found == NEGATIVE:
                found = IGNORE
        match.append(found)
    return torch.tensor(match)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 5, 40])
def test_iou_matching_equals_the_naive_loop(count, seed):
    boxes = random_boxes(count, seed)
    assert torch.equal(match_by_iou(boxes, ANCHORS, 0.5, 0.4), naive_match_by_iou(boxes, ANCHORS))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 5, 40])
def test_centre_matching_equals_the_naive_loop(count, seed):
    boxes = random_boxes(count, seed).double()
    boxes += torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))  # none at a limit
    assert torch.equal(match_by_centre(boxes, CELLS), naive_match_by_centre(boxes, CELLS))


@pytest.mark.parametrize("cells", [1, 100, 3000])
def test_chunks_of_anchors_match_as_all_at_once(cells, monkeypatch):
    boxes = random_boxes(20, 0)
    by_iou, by_centre = (
        match_by_iou(boxes, ANCHORS, 0.5, 0.4),
        match_by_centre(boxes.double(), CELLS),
    )
    crowd = inside_crowd(boxes, ANCHORS)
    monkeypatch.setattr(boxes_module, "TABLE_CELLS", cells)
    assert torch.equal(match_by_iou(boxes, ANCHORS, 0.5, 0.4), by_iou)
    assert torch.equal(match_by_centre(boxes.double(), CELLS), by_centre)
    assert torch.equal(inside_crowd(boxes, ANCHORS), crowd)


@pytest.mark.parametrize("seed", range(2))
def test_anchors_that_do_not_exist_are_matched_as_if_they_were_not_there(seed):
    boxes = random_boxes(20, seed)
    exists = torch.rand(len(ANCHORS), generator=torch.Generator().manual_seed(seed)) > 0.3
    match = match_by_iou(boxes, ANCHORS, 0.5, 0.4, exists)
    assert torch.equal(match[exists], match_by_iou(boxes, ANCHORS[exists], 0.5, 0.4))
    assert (match[~exists] == NEGATIVE).all()
    here = exists[: len(CELLS)]
    match = match_by_centre(boxes.double(), CELLS, exists=here)
    assert torch.equal(match[here], match_by_centre(boxes.double(), CELLS[here]))
    assert (match[~here] == NEGATIVE).all()


def test_no_boxes_make_every_anchor_negative():
    none = torch.zeros(0, 4)
    assert (match_by_iou(none, ANCHORS, 0.5, 0.4) == NEGATIVE).all()
    assert (match_by_centre(none.double(), CELLS) == NEGATIVE).all()
    assert not inside_crowd(none, ANCHORS).any()


def test_a_box_under_the_threshold_keeps_its_best_anchors_all_that_tie():
    anchors = torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [50.0, 0.0, 60.0, 9.0]]
    )
    box = torch.tensor([[8.0, 0.0, 22.0, 10.0]])  # 2 columns of each of the first two
    assert match_by_iou(box, anchors, 0.5, 0.4).tolist() == [0, 0, NEGATIVE]


def test_of_two_boxes_that_claim_one_anchor_the_later_gets_it():
    anchor = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    boxes = torch.tensor([[0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 3.0]])
    assert match_by_iou(boxes, anchor, 0.5, 0.4).tolist() == [1]
    assert match_by_iou(boxes.flip(0), anchor, 0.5, 0.4).tolist() == [1]


def test_a_box_that_no_anchor_overlaps_takes_none():
    far = torch.tensor([[5000.0, 5000.0, 5010.0, 5010.0]])
    assert (match_by_iou(far, ANCHORS, 0.5, 0.4) == NEGATIVE).all()
    boxes = torch.cat([random_boxes(3, 0), far])
    expected = match_by_iou(boxes[:3], ANCHORS, 0.5, 0.4)
    assert torch.equal(match_by_iou(boxes, ANCHORS, 0.5, 0.4), expected)


@pytest.mark.parametrize(
    ("bottom", "expected"), [(5, 0), (4.5, IGNORE), (4, IGNORE), (3.9, NEGATIVE)]
)
def test_thresholds_are_where_they_are(bottom, expected):
    """The second box takes the anchor of its own, so that the first is judged by its IoU."""
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, bottom]])
    box = torch.tensor([[0.0, 0.0, 10.0, bottom]])
    assert match_by_iou(box, anchors, 0.5, 0.4).tolist() == [expected, 0]


def test_the_smallest_of_nested_boxes_wins_its_centre():
    boxes = torch.tensor([[0.0, 0.0, 96.0, 96.0], [30.0, 30.0, 66.0, 66.0]])
    for order in ([0, 1], [1, 0]):
        match = match_by_centre(boxes[order].double(), CELLS)
        centre = 5 * SIZES[0][1] + 5  # the cell of P3 over 40 ... 48
        assert order[match[centre]] == 1


def test_cells_whose_centre_lies_outside_of_a_thin_box_are_ignored():
    thin = torch.tensor([[0.0, 14.0, 128.0, 17.0]])  # between the centres of two rows of P3
    match = match_by_centre(thin.double(), CELLS)[: 12 * 16].view(12, 16)
    assert set(match[1].tolist()) | set(match[2].tolist()) == {IGNORE, NEGATIVE}


def test_a_crowd_takes_anchors_that_lie_in_it_by_more_than_half():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [4.0, 0.0, 14.0, 10.0], [5.0, 0.0, 15.0, 10.0]])
    crowd = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert inside_crowd(crowd, anchors).tolist() == [True, True, False]


@pytest.mark.parametrize("seed", range(3))
def test_low_quality_matches_may_stay_with_the_box_they_overlap_most_or_be_none(seed):
    boxes = random_boxes(12, seed)
    iou = box_iou(boxes, ANCHORS)
    best, own = iou.max(dim=0)
    plain = own.masked_fill(best < 0.5, IGNORE).masked_fill(best < 0.4, NEGATIVE)
    assert torch.equal(match_by_iou(boxes, ANCHORS, 0.5, 0.4, low_quality="none"), plain)
    kept = (iou == iou.amax(dim=1, keepdim=True)).any(dim=0)
    expected = torch.where(kept, own, plain)
    assert torch.equal(match_by_iou(boxes, ANCHORS, 0.5, 0.4, low_quality="own"), expected)
    padded = torch.cat([boxes, torch.zeros(2, 4)])
    assert torch.equal(match_by_iou(padded, ANCHORS, 0.5, 0.4, low_quality="own"), expected)


def test_each_image_may_have_anchors_of_its_own():
    boxes = torch.stack([random_boxes(5, 0), random_boxes(5, 1)])
    anchors = torch.stack([ANCHORS[:60], ANCHORS[60:120]])
    match = match_by_iou(boxes, anchors, 0.5, 0.4)
    for row, b, a in zip(match, boxes, anchors, strict=True):
        assert torch.equal(row, match_by_iou(b, a, 0.5, 0.4))
