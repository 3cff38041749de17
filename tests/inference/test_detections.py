import io
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sepc_zoo.data.images import IMAGE_SUFFIXES
from sepc_zoo.inference.detections import Detection, Detections, coco_results
from sepc_zoo.inference.drawing import class_color


def make(boxes, scores, labels, image=None):
    return Detections(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores),
        labels=torch.tensor(labels, dtype=torch.int64),
        label_names=("cat", "dog"),
        category_ids=(17, None),
        image=torch.zeros(3, 48, 64, dtype=torch.uint8) if image is None else image,
    )


@pytest.fixture
def found():
    return make([[4, 8, 20, 30.5], [30, 10, 60, 40], [1, 2, 3, 4]], [0.75, 0.5, 0.25], [0, 1, 0])


@pytest.fixture
def nothing():
    return make([], [], [])


# A sequence


def test_iterating_gives_every_detection(found, nothing):
    assert (len(found), len(nothing)) == (3, 0)
    assert list(nothing) == []
    first, second, _ = found
    assert first == Detection((4.0, 8.0, 20.0, 30.5), 0.75, 0, "cat")
    assert second.name == "dog"
    assert [found[i] for i in range(3)] == list(found)
    assert found[-1] == found[np.int64(2)] == found[found.scores.argmin()] == found[2]
    with pytest.raises(IndexError):
        found[3]


def test_slices_masks_and_indices_give_detections(found):
    for index in (slice(0, 3, 2), found.labels == 0, torch.tensor([0, 2]), [0, 2]):
        cats = found[index]
        assert isinstance(cats, Detections)
        assert list(cats) == [found[0], found[2]]
        assert cats.image is found.image
    assert len(found[found.scores > 0.9]) == 0


def test_tracks_go_with_their_detections_and_are_named(found):
    tracked = replace(found, track_ids=torch.tensor([3, -1, 0]))
    assert tracked[1:].track_ids.tolist() == [-1, 0]
    assert tracked[tracked.labels == 0].track_ids.tolist() == [3, 0]
    assert found[1:].track_ids is None
    assert tracked.summary() == "3: cat #3 0.75, dog 0.50, cat #0 0.25"
    assert list(tracked) == list(found)


def test_detections_are_frozen_and_equal_only_to_themselves(found):
    with pytest.raises(AttributeError):
        found.boxes = torch.zeros(0, 4)
    assert found == found
    assert found != found[:]


def test_repr_names_the_detections_and_the_fields(found, nothing):
    assert found[:2].summary() == "2: cat 0.75, dog 0.50"
    assert nothing.summary() == "0"
    assert make([[0, 0, 1, 1]] * 9, [0.5] * 9, [0] * 9).summary().endswith("cat 0.50, …")
    for field in ("boxes (3, 4)", "scores", "labels", "label_names", "category_ids", "image"):
        assert field in repr(found)
    assert repr(found).startswith("Detections(3: cat 0.75, dog 0.50, cat 0.25; ")
    assert repr(nothing).startswith("Detections(0; ")


# Pictures


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_gives_a_picture_of_the_images_size(found, tmp_path, suffix):
    found.save(tmp_path / f"x{suffix}")
    with Image.open(tmp_path / f"x{suffix}") as image:
        assert image.size == (64, 48)


def test_an_unknown_suffix_is_refused_before_anything_is_written(found, tmp_path):
    with pytest.raises(ValueError, match=r"use one of .*\.jpg"):
        found.save(tmp_path / "x.txt")
    assert not list(tmp_path.iterdir())


def test_the_image_may_be_a_file(tmp_path):
    Image.new("RGB", (32, 24), "blue").save(tmp_path / "image.png")
    drawn = make([], [], [], image=tmp_path / "image.png").draw()
    assert drawn.size == (32, 24)
    assert drawn.getpixel((5, 5)) == (0, 0, 255)


def test_the_highest_score_is_drawn_last():
    drawn = make([[10, 20, 40, 40]] * 2, [0.9, 0.3], [0, 1]).draw()
    alone = make([[10, 20, 40, 40]], [0.9], [0]).draw()
    assert drawn.getpixel((25, 39)) == alone.getpixel((25, 39))


def test_boxes_are_drawn_after_the_image_is_resized():
    image = torch.zeros(3, 60, 100, dtype=torch.uint8)
    found = make([[10, 20, 50, 40]], [0.9], [0], image=image)
    drawn = found.draw(size=(400, 400))
    assert drawn.size == (400, 240)
    assert drawn.getpixel((199, 159)) == class_color(0)  # the corner at (50, 40)
    assert drawn.getpixel((190, 150)) == (0, 0, 0)  # a thin line and small letters
    assert found.draw().size == (100, 60)


def test_a_notebook_shows_the_drawn_image(found):
    with Image.open(io.BytesIO(found._repr_png_())) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(found.draw()))
    large = make([], [], [], image=torch.zeros(3, 1024, 4096, dtype=torch.uint8))
    with Image.open(io.BytesIO(large._repr_png_())) as picture:
        assert picture.size == (1024, 256)


# Other formats


def test_coco_results_are_xywh_under_the_data_sets_ids(found):
    row = {"image_id": 7, "category_id": 17, "bbox": [4.0, 8.0, 16.0, 22.5], "score": 0.75}
    assert found[:2].to_coco(7) == [row]  # the data set lacks dogs


def test_coco_results_keep_scores_and_boxes_exact():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(50, 4, generator=generator) * 640
    scores = torch.rand(50, generator=generator)
    columns = {"boxes": boxes, "scores": scores, "labels": torch.zeros(50).long()}
    results = coco_results(1, columns, [1])
    assert [result["score"] for result in results] == scores.tolist()
    bbox = torch.tensor([result["bbox"] for result in results], dtype=torch.float64)
    bbox[:, 2:] += bbox[:, :2]
    torch.testing.assert_close(bbox, boxes.double(), rtol=0, atol=2e-5)


def test_supervision_gets_boxes_scores_and_names(found, nothing):
    pytest.importorskip("supervision")
    detections = found.to_supervision()
    assert detections.data["class_name"].tolist() == ["cat", "dog", "cat"]
    assert detections.xyxy.tolist() == found.boxes.tolist()
    assert detections.confidence.tolist() == found.scores.tolist()
    assert detections.tracker_id is None
    tracked = replace(found, track_ids=torch.tensor([3, -1, 0])).to_supervision()
    assert tracked.tracker_id.tolist() == [3, -1, 0]
    assert len(nothing.to_supervision()) == 0


def test_missing_supervision_is_named(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"sepc_zoo\[supervision\]"):
        found.to_supervision()
