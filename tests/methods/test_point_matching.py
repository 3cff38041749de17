import json
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sepc_zoo.config import AnchorConfig
from sepc_zoo.methods.matching import IGNORE, NEGATIVE, match_by_iou
from sepc_zoo.methods.point_matching import match_atss, match_by_centre_pairs, match_points
from sepc_zoo.ops import boxes as boxes_module
from sepc_zoo.ops.anchors import existing_anchors, make_anchors
from sepc_zoo.outputs import Anchors, Targets

STRIDES = (8, 16, 32, 64, 128)
SIZES = ((12, 16), (6, 8), (3, 4), (2, 2), (1, 1))
LENGTHS = [h * w for h, w in SIZES]


def squares(side, offset, sizes=SIZES):
    """One anchor a cell, ``side`` strides wide, its centre ``offset`` strides from the corner."""
    levels = []
    for (height, width), stride in zip(sizes, STRIDES, strict=True):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centre = (torch.stack([x, y], dim=-1).view(-1, 2).double() + offset) * stride
        levels.append(torch.cat([centre - side * stride / 2, centre + side * stride / 2], dim=1))
    return torch.cat(levels)


ATSS_ANCHORS, POINTS = squares(8, 0.0), squares(1, 0.5)
LEVELS = [level for level, length in enumerate(LENGTHS) for _ in range(length)]


def random_boxes(count, seed, images=()):
    generator = torch.Generator().manual_seed(seed)

    def uniform(low, high):
        shape = (*images, count, 2)
        values = torch.rand(shape, generator=generator, dtype=torch.float64)
        return values * (high - low) + low

    corner = uniform(-10, 100)
    return torch.cat([corner, corner + uniform(1.5, 9) ** 2], dim=-1)


def iou_of(box, anchor):
    width = max(0, min(box[2], anchor[2]) - max(box[0], anchor[0]))
    height = max(0, min(box[3], anchor[3]) - max(box[1], anchor[1]))
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box, anchor)]
    return width * height / (sum(areas) - width * height)


def side_distances(anchor, box):
    x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    return x - box[0], y - box[1], box[2] - x, box[3] - y


def naive_match_atss(boxes, anchors, exists, candidates=9):
    match, best = [NEGATIVE] * len(anchors), [-1.0] * len(anchors)
    for i, box in enumerate(boxes):
        chosen = []
        for level in range(len(LENGTHS)):
            distance = {}
            for j, anchor in enumerate(anchors):
                if LEVELS[j] == level and exists[j]:
                    left, top, right, bottom = side_distances(anchor, box)
                    distance[j] = math.hypot((left - right) / 2, (top - bottom) / 2)
            chosen += sorted(distance, key=distance.__getitem__)[:candidates]
        ious = {j: iou_of(box, anchors[j]) for j in chosen}
        mean = sum(ious.values()) / len(ious)
        spread = math.sqrt(sum((iou - mean) ** 2 for iou in ious.values()) / (len(ious) - 1))
        for j, iou in ious.items():
            inside = min(side_distances(anchors[j], box)) > 0.01
            if iou >= mean + spread and inside and iou > best[j]:
                match[j], best[j] = i, iou
    return match


def naive_match_points(boxes, points, radius=None, inclusive=True):
    match = []
    for level, point in zip(LEVELS, points, strict=True):
        stride = STRIDES[level]
        low = -1 if level == 0 else 4 * stride
        high = math.inf if level == len(STRIDES) - 1 else 8 * stride
        found, smallest = NEGATIVE, math.inf
        for i, box in enumerate(boxes):
            left, top, right, bottom = side_distances(point, box)
            farthest = max(left, top, right, bottom)
            near = radius is None or max(abs(left - right), abs(top - bottom)) < 2 * radius * stride
            reached = low <= farthest <= high if inclusive else low < farthest < high
            area = (box[2] - box[0]) * (box[3] - box[1])
            if min(left, top, right, bottom) > 0 and reached and near and area < smallest:
                found, smallest = i, area
        match.append(found)
    return match


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 5, 30])
def test_atss_matching_equals_the_naive_loop(count, seed):
    boxes = random_boxes(count, seed)
    generator = torch.Generator().manual_seed(seed)
    exists = torch.rand(len(ATSS_ANCHORS), generator=generator) > 0.2
    for which in (exists, torch.ones_like(exists)):
        expected = naive_match_atss(boxes.tolist(), ATSS_ANCHORS.tolist(), which.tolist())
        assert match_atss(boxes, ATSS_ANCHORS, LENGTHS, which).tolist() == expected
    assert match_atss(boxes, ATSS_ANCHORS, LENGTHS).tolist() == expected


@pytest.mark.parametrize("options", [{}, {"radius": 1.5}, {"radius": 1.5, "inclusive": False}])
@pytest.mark.parametrize("count", [1, 5, 30])
def test_point_matching_equals_the_naive_loop(count, options):
    boxes = random_boxes(count, count)
    boxes[0] = torch.tensor([4, 4, 68, 60])  # reaches just as far as the first level
    expected = naive_match_points(boxes.tolist(), POINTS.tolist(), **options)
    assert match_points(boxes, POINTS, LENGTHS, **options).tolist() == expected


def batched(match, boxes, exists):
    if match is match_atss:
        return match_atss(boxes, ATSS_ANCHORS, LENGTHS, exists)
    return match_points(boxes, POINTS, LENGTHS, radius=1.5)


@pytest.mark.parametrize("match", [match_atss, match_points])
@pytest.mark.parametrize("cells", [None, 1, 100, 3000])
def test_a_padded_batch_matches_as_its_images_alone(match, cells, monkeypatch):
    if cells is not None:
        monkeypatch.setattr(boxes_module, "TABLE_CELLS", cells)
    boxes = random_boxes(12, 0, images=(3,))
    boxes[1, 4:], boxes[2] = 0, 0
    exists = torch.rand(3, len(ATSS_ANCHORS), generator=torch.Generator().manual_seed(0)) > 0.2
    found = batched(match, boxes, exists)
    for i, count in enumerate((12, 4, 0)):
        alone = batched(match, boxes[i, :count], exists[i])
        assert torch.equal(found[i], alone)
    assert (found[2] == NEGATIVE).all()
    assert (found[0] >= 0).any()


def test_an_only_candidate_is_positive():
    anchor = torch.tensor([[0.0, 0, 10, 10]])
    assert match_atss(torch.tensor([[0.0, 0, 10, 7]]), anchor, [1]).tolist() == [0]


def test_an_anchor_goes_to_the_box_of_higher_iou_of_equal_ones_to_the_first():
    anchor = torch.tensor([[0.0, 0, 10, 10]])
    boxes = torch.tensor([[0.0, 0, 10, 8], [0, 0, 10, 9], [0, 1, 10, 10]])
    assert match_atss(boxes, anchor, [1]).tolist() == [1]


def test_an_anchor_centred_on_the_side_of_a_box_is_negative():
    anchor = torch.tensor([[0.0, 0, 10, 10]])
    assert match_atss(torch.tensor([[0.0, 0, 5.005, 10]]), anchor, [1]).tolist() == [NEGATIVE]
    assert match_atss(torch.tensor([[0.0, 0, 5.02, 10]]), anchor, [1]).tolist() == [0]


def test_coarse_areas_tie_within_some_pixels_in_single_precision():
    point = torch.tensor([[16.0, 16, 24, 24]])
    boxes = torch.tensor([[0.0, 0, 40, 40.05], [0, 0, 40, 40]])
    assert match_points(boxes, point, [1]).tolist() == [1]
    assert match_points(boxes, point, [1], coarse_areas=True).tolist() == [0]
    assert match_points(boxes.double(), point.double(), [1], coarse_areas=True).tolist() == [1]


@pytest.fixture(scope="module")
def given(shared_reference):
    return json.loads((shared_reference / "openmmlab" / "given" / "matching.json").read_text())


def grids(size):
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]


def exists_inside(grid, pad_shape):
    """Cells of the batch that lie in the padded image."""
    levels = []
    for (height, width), (rows, columns) in zip(grid, grids(pad_shape), strict=True):
        level = torch.zeros(height, width, dtype=torch.bool)
        level[:rows, :columns] = True
        levels.append(level.flatten())
    return torch.cat(levels)


def test_atss_matching_equals_openmmlabs(given):
    grid = grids(given["batch"])
    boxes = torch.tensor(given["boxes"], dtype=torch.float64)
    exists = exists_inside(grid, given["pad_shape"])
    lengths = [h * w for h, w in grid]
    match = match_atss(boxes, squares(8, 0.0, grid), lengths, exists)
    expected = given["atss_r50_fpn_1x_coco"]
    anchor = (match >= 0).nonzero().flatten()
    assert anchor.tolist() == expected["anchor"]
    assert match[anchor].tolist() == expected["box"]
    assert (~exists).sum() == expected["left_out"]


@pytest.mark.parametrize(
    ("name", "radius"), [("gn-head", None), ("gn-head-center-normbbox-centeronreg-giou", 1.5)]
)
def test_point_matching_equals_openmmlabs(given, name, radius):
    grid = grids(given["batch"])
    boxes = torch.tensor(given["boxes"], dtype=torch.float64)
    lengths = [h * w for h, w in grid]
    match = match_points(boxes, squares(1, 0.5, grid), lengths, radius=radius)
    expected = given[f"fcos_r50-caffe_fpn_{name}_1x_coco"]
    cell = (match >= 0).nonzero().flatten()
    assert cell.tolist() == expected["cell"]
    assert match[cell].tolist() == expected["box"]


def naive_match_by_centre_pairs(boxes, labels, cells, exists):
    match, ignored = [], []
    for j, (x1, y1, x2, y2) in enumerate(cells):
        covering = []
        for i, (bx1, by1, bx2, by2) in enumerate(boxes):
            mx, my, w, h = (bx1 + bx2) / 2, (by1 + by2) / 2, (bx2 - bx1) / 5, (by2 - by1) / 5
            width = max(0, min(mx + w / 2, x2) - max(mx - w / 2, x1))
            height = max(0, min(my + h / 2, y2) - max(my - h / 2, y1))
            if exists[j] and width * height > 0.01 * (x2 - x1) * (y2 - y1):
                inside = min(side_distances((x1, y1, x2, y2), (bx1, by1, bx2, by2))) > 0
                covering.append((not inside, (bx2 - bx1) * (by2 - by1), i))
        winner = min(covering, default=(True, 0, NEGATIVE))
        winner = NEGATIVE if winner[0] else winner[2]
        losers = {labels[i] for *_, i in covering if i != winner}
        match.append(NEGATIVE if winner >= 0 and labels[winner] in losers else winner)
        ignored += [(j, label) for label in sorted(losers)]
    return match, ignored


def targets_of(boxes, labels):
    return Targets(boxes, labels, boxes[:, :0], (boxes.shape[1],) * len(boxes))


@pytest.mark.parametrize("cells", [None, 500])
@pytest.mark.parametrize("count", [0, 1, 30])
def test_centre_matching_with_ignored_pairs_equals_the_naive_loop(count, cells, monkeypatch):
    if cells is not None:
        monkeypatch.setattr(boxes_module, "TABLE_CELLS", cells)
    boxes = random_boxes(max(1, count), count, images=(2,))
    boxes[0, count:], boxes[1, 4:] = 0, 0
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(0, 5, boxes.shape[:2], generator=generator)
    exists = torch.rand(2, len(POINTS), generator=generator) > 0.2
    match, ignored = match_by_centre_pairs(
        targets_of(boxes, labels), Anchors(POINTS, LENGTHS, exists), num_classes=5
    )
    for i in range(2):
        naive = naive_match_by_centre_pairs(
            boxes[i].tolist(), labels[i].tolist(), POINTS.tolist(), exists[i].tolist()
        )
        mine = ignored[ignored // (5 * len(POINTS)) == i] % (5 * len(POINTS))
        pairs = list(zip((mine // 5).tolist(), (mine % 5).tolist(), strict=True))
        assert (match[i].tolist(), pairs) == naive


def test_centre_matching_with_ignored_pairs_equals_openmmlabs(given):
    grid = grids(given["batch"])
    boxes = torch.tensor(given["boxes"], dtype=torch.float64)[None]
    exists = exists_inside(grid, given["pad_shape"])[None]
    anchors = Anchors(squares(1, 0.0, grid), [h * w for h, w in grid], exists)
    targets = targets_of(boxes, torch.tensor(given["labels"])[None])
    match, ignored = match_by_centre_pairs(targets, anchors, num_classes=80)
    expected = given["fsaf_r50_fpn_1x_coco"]
    anchor = (match[0] >= 0).nonzero().flatten()
    assert anchor.tolist() == expected["anchor"]
    assert match[0, anchor].tolist() == expected["box"]
    pairs = torch.stack([ignored // 80, ignored % 80], dim=1)
    assert pairs.tolist() == sorted(expected["ignored_pairs"])


@pytest.mark.parametrize("match", [match_atss, match_points])
def test_memory_is_bounded_for_500_boxes_on_a_large_image(match):
    grid = grids((800, 1344))
    boxes = random_boxes(500, 0, images=(2,)).float() * 8
    lengths, largest = [h * w for h, w in grid], LargestTensor()
    anchors = squares(8 if match is match_atss else 1, 0.5, grid).float()
    with largest:
        assert (match(boxes, anchors, lengths) >= 0).any()
    assert largest.cells <= boxes_module.CACHED_CELLS


class LargestTensor(TorchDispatchMode):
    """Keeps the size of the largest tensor that is made."""

    cells = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor) and not x._is_view()]
        self.cells = max([self.cells, *(x.numel() for x in made)])
        return out


def test_iou_matching_equals_openmmlabs(given):
    grid, expected = grids(given["batch"]), given["retinanet_r50_fpn_1x_coco"]
    config = AnchorConfig(centre="corner", rounded=False)
    anchors = make_anchors(config, grid, STRIDES, dtype=torch.float64)
    exists = existing_anchors(config, grid, STRIDES, [given["img_shape"]], pad_multiple=32)[0]
    boxes = torch.tensor(expected["boxes"], dtype=torch.float64)
    match = match_by_iou(boxes, anchors, 0.5, 0.4, exists)
    anchor = (match >= 0).nonzero().flatten()
    assert anchor.tolist() == expected["anchor"]
    assert match[anchor].tolist() == expected["box"]
    assert (match == IGNORE).nonzero().flatten().tolist() == expected["ignored"]
    assert (~exists).sum() == expected["left_out"]
