from itertools import pairwise

import pytest
import torch

from sepc_zoo.config import AnchorConfig, FPNConfig
from sepc_zoo.ops.anchors import cell_anchors, make_anchors

STRIDES = FPNConfig().strides

SIZES = ((6, 9), (3, 5), (2, 3), (1, 2), (1, 1))
SQUARE = AnchorConfig(base_scale=1.0, octaves=1, ratios=(1.0,))


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
                        corners = [round(stride / 2 + c) for c in corners]
                        shift = (column * stride, row * stride) * 2
                        anchors.append([c + s for c, s in zip(corners, shift, strict=True)])
    return torch.tensor(anchors, dtype=torch.float32)


@pytest.mark.parametrize("config", [AnchorConfig(), SQUARE, AnchorConfig(3.0, 2, (0.25, 1.0))])
def test_anchors_equal_the_naive_loop(config):
    assert torch.equal(make_anchors(config, SIZES, STRIDES), naive_anchors(config, SIZES))


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
