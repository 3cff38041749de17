import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sepc_zoo.config import AnchorConfig
from sepc_zoo.data.listing import ListedBox, ListedImage, ListedImages, Listing
from sepc_zoo.data.quality.statistics import (
    anchor_reach,
    anchor_reaches,
    class_counts,
    describe,
    quantiles,
)
from sepc_zoo.evaluation.plots import plot_statistics


def make_listing(*images, size=(480, 640)):
    """Images of boxes (width, height, label, area, iscrowd)."""
    listed = [
        ListedImage(
            i,
            Path(f"{i}.jpg"),
            size,
            [
                ListedBox("", (3.0, 4.0, 3.0 + width, 4.0 + height), label, "", iscrowd, area)
                for width, height, label, area, iscrowd in boxes
            ],
        )
        for i, boxes in enumerate(images)
    ]
    return Listing(listed, ["cat", "dog"], [7, 9], [])


def images_of(listing):
    return ListedImages.of(listing.images)


BUSY = [(20, 10, 0, 200, 0), (40, 40, 0, 1500, 0), (200, 100, 1, 9216, 1)]


@pytest.fixture
def figures():
    listing = make_listing(BUSY, [], [(10, 30, 0, 1024, 0)])
    return describe(listing)


def test_images_boxes_and_crowds_are_counted(figures):
    found = [figures[key] for key in ("images", "images_without_boxes", "boxes", "crowds")]
    assert found == [3, 1, 4, 1]


def test_sizes_are_those_of_the_annotated_areas(figures):
    assert [figures[key] for key in ("small", "medium", "large")] == [1, 2, 1]


def test_classes_have_their_boxes_images_and_sizes(figures):
    assert figures["classes"] == {
        "cat": {
            **{"category_id": 7, "boxes": 3, "images": 2},
            **{"small": 1, "medium": 2, "large": 0},
        },
        "dog": {
            **{"category_id": 9, "boxes": 1, "images": 1},
            **{"small": 0, "medium": 0, "large": 1},
        },
    }


def test_aspects_are_height_over_width(figures):
    assert (figures["box_aspects"]["min"], figures["box_aspects"]["max"]) == (0.5, 3)
    assert figures["image_aspects"]["median"] == 0.75


def test_quantiles_have_their_bounds_and_mean():
    found = quantiles(np.arange(101))
    assert found == {
        **{"min": 0, "5%": 5, "25%": 25, "median": 50, "75%": 75, "95%": 95, "max": 100},
        "mean": 50,
    }


def test_data_without_boxes_or_images_has_statistics():
    for listing in (make_listing([]), make_listing()):
        figures = describe(listing)
        assert figures["boxes"] == 0
        assert figures["box_sides"] == {}
        json.dumps(figures, allow_nan=False)


def test_class_counts_are_by_split_the_most_frequent_first():
    listing = make_listing([(1, 1, 1, 1, 0)], [(1, 1, 1, 1, 0)])
    figures = describe(listing)
    other = {"classes": {"owl": {"boxes": 5}, "cat": {"boxes": 1}}}
    assert class_counts([figures, other]) == {"owl": [0, 5], "dog": [2, 0], "cat": [0, 1]}


@pytest.mark.parametrize(
    ("width", "height", "reached"),
    [
        (32, 32, True),  # an anchor exactly
        (16, 16, False),  # a quarter of the smallest anchor
        (640, 20, False),  # 32 times as wide as high
        (64, 128, True),
    ],
)
def test_a_box_is_reached_where_some_anchor_of_its_centre_overlaps_by_half(width, height, reached):
    columns = images_of(make_listing([(width, height, 0, 1, 0)], size=(800, 1333)))
    assert anchor_reach(columns, (800, 1333), AnchorConfig()) == reached


def test_the_reach_is_computed_at_the_resized_size():
    columns = images_of(make_listing([(16, 16, 0, 1, 0)], size=(400, 600)))
    assert anchor_reach(columns, (400, 1333), AnchorConfig()) == 0
    assert anchor_reach(columns, (800, 1333), AnchorConfig()) == 1


def test_crowds_need_no_anchor():
    columns = images_of(make_listing([(640, 20, 0, 1, 1)], size=(800, 1333)))
    assert anchor_reach(columns, (800, 1333), AnchorConfig()) == 1


def test_a_sample_of_many_boxes_has_their_reach(monkeypatch):
    monkeypatch.setattr("sepc_zoo.data.quality.statistics.MAX_SAMPLE", 10)
    boxes = [(32, 32, 0, 1, 0)] * 50 + [(640, 20, 0, 1, 0)] * 50
    columns = images_of(make_listing(boxes, size=(800, 1333)))
    assert anchor_reach(columns, (800, 1333), AnchorConfig()) == 0.5


def test_other_anchors_reach_what_the_default_ones_do_not():
    boxes = [(32, 32, 0, 1, 0), (128, 16, 0, 1, 0), (16, 16, 0, 1, 0)]
    reaches = anchor_reaches(images_of(make_listing(boxes, size=(800, 1333))), (800, 1333))
    assert reaches == {
        "default": 0.3333,
        "anchors.base_scale=2": 0.6667,  # the small box too
        "anchors.ratios=0.25,0.5,1,2,4": 0.6667,  # the flat box too
    }


@pytest.mark.parametrize(
    "listing",
    [make_listing(BUSY, []), make_listing([]), make_listing(), make_listing([BUSY[0]])],
    ids=["busy", "no boxes", "no images", "one box"],
)
def test_figures_of_any_data_are_drawn(listing, tmp_path):
    columns = {"train": images_of(listing), "val": images_of(make_listing())}
    figures = [describe(own) for own in (listing, make_listing())]
    plot_statistics(columns, class_counts(figures), tmp_path / "figures.png")
    assert Image.open(tmp_path / "figures.png").width == 1950
