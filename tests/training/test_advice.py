"""What the sizes of the boxes suggest."""

import re

import numpy as np
import pytest
import torch

from sepc_zoo.config import AnchorConfig, ConfigError, override
from sepc_zoo.data.annotations import Annotations, Records
from sepc_zoo.data.quality.statistics import best_ious
from sepc_zoo.ops.boxes import box_iou
from sepc_zoo.registry import model_config
from sepc_zoo.training.advice import (
    advise,
    advise_image_size,
    fit_anchors,
    fitted_anchors,
    fitting_size,
    resized_boxes,
    share_missed,
)
from sepc_zoo.training.options import TrainOptions

STRIDES = (8, 16, 32, 64, 128)


def data_of(*sides, image=(200, 400), crowds=0):
    """One image with a box of each height and width, the first of them crowds."""
    bbox = np.array([[0.0, 0.0, width, height] for height, width in sides]).reshape(-1, 4)
    iscrowd, area = np.arange(len(bbox)) < crowds, bbox.prod(axis=1)
    columns = bbox, np.zeros(len(bbox)), iscrowd, area, bbox
    return Annotations(Records.make([1], [image], ["1.jpg"], [len(bbox)], *columns), ("cat",), (1,))


def squares(low, high, count=200):
    """Heights and widths of squares, evenly spread over the octaves between two sides."""
    return np.repeat(np.geomspace(low, high, count)[:, None], 2, axis=1)


def config_of(name="retinanet_r18_sepc", size=(200, 400), **changes):
    return override(model_config(name), {"weights": {"image_size": size}} | changes)


def options(**changes):
    return TrainOptions(data="d", model="retinanet_r18_sepc", output="o", **changes)


def test_the_best_iou_is_that_of_boxes_laid_at_the_offset():
    anchors = AnchorConfig(octaves=1, ratios=(1.0,))
    boxes = np.array([[32.0, 32.0], [20.0, 50.0]])
    for offset in (0.0, 0.25):
        centre, moved = 16.0, 16.0 + 8 * offset
        anchor = torch.tensor([[centre - 16, centre - 16, centre + 16, centre + 16]])
        height, width = torch.tensor(boxes).T.float() / 2
        laid = torch.stack([moved - width, moved - height, moved + width, moved + height], dim=1)
        expected = box_iou(laid, anchor)[:, 0].numpy()
        assert best_ious(boxes, anchors, (8,), offset) == pytest.approx(expected)


def test_boxes_are_measured_in_resized_images_without_crowds():
    data = data_of((10, 20), (30, 40), (50, 60), image=(200, 400), crowds=1)
    assert resized_boxes(data, (100, 200)).tolist() == [[15, 20], [25, 30]]
    assert resized_boxes(data, (200, 200)).tolist() == [[15, 20], [25, 30]]
    assert resized_boxes(data_of(), (100, 200)).shape == (0, 2)


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0])
def test_fitted_anchors_follow_the_size_of_the_boxes(factor):
    boxes = factor * squares(32, 400)
    fitted = fit_anchors(boxes, AnchorConfig(), STRIDES)
    assert fitted.base_scale == pytest.approx(4 * factor, rel=0.5)
    assert share_missed(boxes, fitted, STRIDES) <= share_missed(boxes, AnchorConfig(), STRIDES)


def test_anchors_that_fit_stay():
    assert fit_anchors(squares(32, 800), AnchorConfig(), STRIDES) == AnchorConfig()


def test_long_boxes_get_long_anchors_of_the_same_number():
    boxes = squares(32, 400) * np.array([4.0, 1.0])
    fitted = fit_anchors(boxes, AnchorConfig(), STRIDES)
    assert fitted.per_cell == AnchorConfig().per_cell
    assert min(abs(ratio - 4) for ratio in fitted.ratios) < 0.5


def test_entries_that_were_given_stay():
    data = data_of(*[(12, 12)] * 5)
    given = options(auto_anchors=True, model_kwargs={"anchors": {"base_scale": 3.0}})
    assert fitted_anchors(given, config_of(anchors={"base_scale": 3.0}), data).base_scale == 3.0
    assert fitted_anchors(options(), config_of(), data).base_scale < 3.0


@pytest.mark.parametrize("method", ["fcos", "fsaf", "atss", "gfl"])
def test_methods_without_anchors_to_fit_say_so(method):
    data = data_of((12, 12))
    config = config_of(f"{method}_r18_sepc")
    with pytest.raises(ConfigError, match=f"--auto-anchors: {method} has one point or square"):
        fitted_anchors(options(), config, data)
    assert not any("anchors" in line for line in advise(options(), config, data))


def test_a_trained_detector_keeps_its_anchors():
    with pytest.raises(ConfigError, match="has learned with its anchors"):
        fitted_anchors(options(pretrained=True), config_of(), data_of((12, 12)))
    assert not any(
        "anchors" in line
        for line in advise(options(pretrained=True), config_of(), data_of((12, 12)))
    )


@pytest.mark.parametrize("name", ["retinanet_r18_sepc", "fasterrcnn_r18_fpn"])
def test_a_bad_fit_is_told_with_the_way_out(name):
    (size, anchors) = advise(options(), config_of(name), data_of(*[(12, 12)] * 9))
    assert "100% of the boxes reach no IoU of 0.4 with an anchor; --auto-anchors makes" in anchors
    assert "half of the boxes have sides below 12 pixels; --image-size 544 1056" in size


@pytest.mark.parametrize("size", [(64, 96), (96, 160), (200, 400)])
@pytest.mark.parametrize("image", [(200, 400), (400, 300), (60, 1200)])
def test_advice_on_the_image_size_says_what_it_reaches(image, size):
    data = data_of(*[(12, 12)] * 9, image=image)
    said = advise_image_size(data, size)
    found = re.search(r"--image-size (\d+) (\d+) makes that (\d+), and a step ([\d.]+) times", said)
    *larger, side, cost = map(float, found.groups())
    factor = resized_boxes(data, larger)[0, 0] / resized_boxes(data, size)[0, 0]
    assert round(resized_boxes(data, larger)[0, 0]) == side
    assert factor**2 == pytest.approx(cost, abs=0.06)


@pytest.mark.parametrize("image", [(60, 1200), (1200, 70), (500, 500), (333, 500), (480, 640)])
@pytest.mark.parametrize("side", [5, 12, 40])
def test_a_size_that_fits_needs_no_larger_one(image, side):
    data = data_of(*[(side, side)] * 9, image=image)
    short, long = fitting_size(data, (32, 16384))
    assert short <= long
    assert short % 32 == long % 32 == 0
    assert advise_image_size(data, (short, long)) == ""


@pytest.mark.parametrize("image", [(96, 96), (60, 120)])
def test_images_that_are_enlarged_far_get_a_smaller_size(image):
    data, size = data_of(*[(40, 40)] * 9, image=image), (800, 1333)
    text = r"enlarged ([\d.]+) times; --image-size (\d+) (\d+) makes a step (\d+) times cheaper"
    enlarged, *smaller, gain = map(float, re.search(text, advise_image_size(data, size)).groups())
    before, after = (resized_boxes(data, lengths)[0, 0] for lengths in (size, smaller))
    assert before / 40 == pytest.approx(enlarged, abs=0.06)
    assert (before / after) ** 2 == pytest.approx(gain, abs=0.51)
    assert advise_image_size(data, smaller) == ""


def test_a_good_fit_is_not_worth_a_line():
    assert advise(options(), config_of(), data_of((40, 40), (90, 80))) == []
    assert advise(options(), config_of(), data_of()) == []


def test_fitted_anchors_are_told():
    config = config_of(anchors={"base_scale": 1.5})
    lines = advise(options(auto_anchors=True), config, data_of((12, 12)))
    assert "anchors.base_scale=1.5 anchors.ratios=(0.5,1,2); 0% of the boxes" in lines[1]
