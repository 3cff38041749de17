"""An object is painted as a bright rectangle, so its box can be compared with its warped pixels."""

import math

import pytest
import torch
from test_transforms import bright_box, image_with, transformer

from sepc_zoo.data.transforms.mixing import GREY
from sepc_zoo.data.transforms.warp import Warp, warp_image, warp_target

WARPS = {
    "degrees": {"degrees": 40},
    "shear": {"shear": 20},
    "translate": {"translate": 0.2},
    "perspective": {"perspective": 0.3},
    "all": {"degrees": 25, "shear": 15, "translate": 0.1, "perspective": 0.2},
}
OFF = {"degrees": 0, "shear": 0, "translate": 0, "perspective": 0}
BORDER = torch.tensor([0.0, 0, 160, 100])


def warper(name):
    return transformer(100, 160, hflip=0, **WARPS[name])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", WARPS)
def test_the_box_is_the_extent_of_the_warped_object(name, seed):
    """Of an object in the middle; half a pixel at each side is the interpolation's."""
    torch.manual_seed(seed)
    image, target = warper(name)(*image_with((60, 30, 100, 70)))
    assert image.shape == (3, 100, 160)
    torch.testing.assert_close(target["boxes"][0], bright_box(image), atol=1.0, rtol=0)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", WARPS)
def test_a_box_holds_all_pixels_of_an_object_that_is_cut_off(name, seed):
    torch.manual_seed(seed)
    for box in [(0, 0, 40, 30), (110, 20, 160, 90), (30, 60, 90, 100)]:
        image, target = warper(name)(*image_with(box))
        for x1, y1, x2, y2 in target["boxes"].tolist():  # none, where its centre is outside
            outer = [max(0, math.floor(x1)), max(0, math.floor(y1)), math.ceil(x2), math.ceil(y2)]
            image[:, outer[1] : outer[3], outer[0] : outer[2]] = 0
            assert (image <= 127).all()


def test_the_extremes_of_all_strengths_together_keep_boxes_inside():
    extreme = {"degrees": 180, "shear": 30, "translate": 0.5, "perspective": 0.4}
    for size in [(100, 160), (30, 900), (1, 200), (7, 3)]:
        transform = transformer(*sorted(size), **extreme)
        for seed in range(20):
            torch.manual_seed(seed)
            image, target = transform(*image_with((0, 0, size[1], size[0]), size=size))
            height, width = image.shape[-2:]
            assert target["boxes"].isfinite().all()
            assert (target["boxes"] >= 0).all()
            assert (target["boxes"] <= torch.tensor([width, height] * 2)).all()


def test_a_shift_moves_the_box_and_cuts_it_off():
    warp, seen = Warp(**OFF | {"translate": 0.4}), set()
    for seed in range(30):
        torch.manual_seed(seed)
        x, y = warp.draw_matrix(100, 160)[:2, 2].tolist()
        moved = torch.tensor([60.0, 30, 100, 70]) + torch.tensor([x, y, x, y])
        torch.manual_seed(seed)
        _, target = warp(*image_with((60, 30, 100, 70)))
        cut = moved.clamp(min=0).minimum(BORDER[2:].repeat(2))
        assert abs(x) <= 0.4 * 160
        assert abs(y) <= 0.4 * 100
        torch.testing.assert_close(target["boxes"][0], cut)
        area = (cut[2:] - cut[:2]).prod() / 1600 * 100  # image_with says 100
        torch.testing.assert_close(target["area"][0], area)
        seen.add(bool((cut == moved).all()))
    assert seen == {True, False}


def test_boxes_whose_centres_leave_the_image_are_left_out_and_crowds_stay_crowds(monkeypatch):
    matrix = torch.tensor([[1.0, 0, 70], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    boxes = (0, 10, 40, 50), (60, 10, 100, 50), (80, 10, 110, 50)  # move 70 to the right
    monkeypatch.setattr(Warp, "draw_matrix", lambda *_: matrix)
    image, target = Warp(**OFF)(*image_with(*boxes))  # the second is a crowd
    assert target["boxes"].tolist() == [[70, 10, 110, 50], [130, 10, 160, 50]]
    assert target["labels"].tolist() == [0, 1]
    assert target["iscrowd"].tolist() == [0, 1]
    assert target["area"].tolist() == [100, 101 * 30 / 40]
    assert (image[:, :, :70] == GREY).all()


def test_areas_turn_unchanged_and_grow_with_the_scale():
    _, target = image_with((60, 30, 100, 70))
    turn = Warp(**OFF | {"degrees": 180}).draw_matrix(100, 160)
    torch.testing.assert_close(warp_target(target, turn)["area"], target["area"])
    double = torch.diag(torch.tensor([2.0, 2, 1], dtype=torch.float64))
    torch.testing.assert_close(warp_target(target, double)["area"], 4 * target["area"])


def test_no_strength_changes_nothing():
    image, target = image_with((60, 30, 100, 70), (0, 0, 160, 100))
    matrix = Warp(**OFF).draw_matrix(100, 160)
    assert torch.equal(matrix, torch.eye(3, dtype=torch.float64))
    assert torch.equal(warp_image(image, matrix), image)
    assert torch.equal(warp_target(target, matrix)["boxes"], target["boxes"])


@pytest.mark.parametrize("angle", [90, -90, 180])
def test_a_quarter_turn_moves_pixels_as_torch_does(angle):
    """Positive angles turn clockwise, as x points right and y down."""
    image = torch.randint(256, (3, 40, 40), dtype=torch.uint8)
    turn = torch.tensor(math.radians(angle), dtype=torch.float64)
    cos, sin = turn.cos(), turn.sin()
    matrix = torch.tensor(
        [[cos, -sin, 20 - 20 * cos + 20 * sin], [sin, cos, 20 - 20 * sin - 20 * cos], [0, 0, 1]],
        dtype=torch.float64,
    )
    expected = torch.rot90(image, -angle // 90, dims=(1, 2))
    assert (warp_image(image, matrix).int() - expected.int()).abs().max() <= 1
