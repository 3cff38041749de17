from itertools import pairwise

import pytest
import torch

from sepc_zoo.config import AnchorConfig, FPNConfig
from sepc_zoo.ops.anchors import cell_anchors, existing_anchors, make_anchors

STRIDES = FPNConfig().strides

SIZES = ((6, 9), (3, 5), (2, 3), (1, 2), (1, 1))
SQUARE = AnchorConfig(base_scale=1.0, octaves=1, ratios=(1.0,))


CORNERS = AnchorConfig(base_scale=8.0, octaves=2, ratios=(0.7,), centre="corner", rounded=False)


def naive_anchors(config, sizes):
    """As the notes on the original say it, one anchor after the other."""
    anchors = []
    for (height, width), stride in zip(sizes, STRIDES, strict=True):
        for row in range(height):
            for column in range(width):
                for ratio in config.ratios:
                    for octave in range(config.octaves):
                        side = config.base_scale * stride * 2 ** (octave / config.octaves)
                        w, h = side / ratio**0.5, side * ratio**0.5
                        corners = (-w / 2, -h / 2, w / 2, h / 2)
                        middle = stride / 2 if config.centre == "cell" else 0
                        corners = [middle + c for c in corners]
                        corners = [round(c) for c in corners] if config.rounded else corners
                        shift = (column * stride, row * stride) * 2
                        anchors.append([c + s for c, s in zip(corners, shift, strict=True)])
    return torch.tensor(anchors, dtype=torch.float32)


@pytest.mark.parametrize(
    "config",
    [AnchorConfig(), SQUARE, AnchorConfig(base_scale=3.0, octaves=2, ratios=(0.25, 1.0)), CORNERS],
)
def test_anchors_equal_the_naive_loop(config):
    rounding = {"rtol": 0, "atol": 0 if config.rounded else 1e-4}
    expected = naive_anchors(config, SIZES)
    torch.testing.assert_close(make_anchors(config, SIZES, STRIDES), expected, **rounding)


def test_a_runs_over_levels_then_rows_then_columns_then_anchors_of_a_cell():
    config = AnchorConfig()
    anchors = make_anchors(config, SIZES, STRIDES)
    cell = 2 * SIZES[0][1] + 3  # row 2, column 3 of P3
    found = anchors[cell * config.per_cell + 4]  # the middle ratio and size
    centre = (found[:2] + found[2:]) / 2
    assert centre.tolist() == [3 * 8 + 4, 2 * 8 + 4]


def test_ratio_is_height_over_width():
    tall = cell_anchors(AnchorConfig(octaves=1, ratios=(4.0,)), 8)[0]
    assert tall[3] - tall[1] == 4 * (tall[2] - tall[0])


def test_fsafs_anchor_is_the_cell_itself():
    for stride in STRIDES:
        assert cell_anchors(SQUARE, stride).tolist() == [[0, 0, stride, stride]]


def test_sides_grow_by_octaves_and_strides():
    areas = [
        (a[:, 2:] - a[:, :2]).prod(1) for a in (cell_anchors(AnchorConfig(), s) for s in STRIDES)
    ]
    for fine, coarse in pairwise(areas):
        torch.testing.assert_close(coarse / fine, torch.full_like(fine, 4.0), rtol=0.05, atol=0)


def test_anchors_come_in_the_type_asked_for():
    assert make_anchors(AnchorConfig(), SIZES, STRIDES, dtype=torch.float64).dtype == torch.float64


def test_the_number_of_levels_must_fit():
    with pytest.raises(ValueError, match="zip"):
        make_anchors(AnchorConfig(), SIZES[:3], STRIDES)


def test_measured_strides_are_the_sides_of_the_batch_over_its_cells():
    """Torchvision's, at 800x1088 pixels: P7 has 7x9 cells, not 6.25x8.5."""
    sizes = [(100, 136), (50, 68), (25, 34), (13, 17), (7, 9)]
    config = AnchorConfig(
        base_scale=1.0, octaves=1, ratios=(1.0,), centre="corner", stride="measured"
    )
    anchors = make_anchors(config, sizes, STRIDES)
    last = (anchors[-1, :2] + anchors[-1, 2:]) / 2
    assert last.tolist() == [8 * 120, 6 * 114]
    assert (anchors[-1, 2:] - anchors[-1, :2]).tolist() == [128, 128]


def test_anchors_exist_on_cells_that_start_inside_of_their_image_and_its_own_padding():
    config = AnchorConfig()
    exists = existing_anchors(config, SIZES, STRIDES, [(48, 72), (20, 33)], pad_multiple=32)
    levels = exists.split([h * w * config.per_cell for h, w in SIZES], dim=1)
    for i, (height, width) in enumerate([(64, 96), (32, 64)]):  # padded
        for level, (h, w), stride in zip(levels, SIZES, STRIDES, strict=True):
            for row, cells in enumerate(level[i].view(h, w, -1)):
                for column, cell in enumerate(cells):
                    inside = row * stride < height and column * stride < width
                    assert cell.tolist() == [inside] * config.per_cell


def test_sizes_of_squares_may_be_whole_pixels_as_torchvisions():
    config = AnchorConfig(ratios=(1.0,), centre="corner", whole_sizes=True)
    found = cell_anchors(config, 8)
    assert (found[:, 2] - found[:, 0]).tolist() == [32, 40, 50]
    assert (found[:, :2] == -found[:, 2:]).all()
