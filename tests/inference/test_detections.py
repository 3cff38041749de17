import sys

import pytest
import torch
from PIL import Image

from sepc_zoo.data.images import IMAGE_SUFFIXES
from sepc_zoo.inference.detections import Detections, coco_results


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
    return make([[4, 8, 20, 30.5], [30, 10, 60, 40]], [0.91, 0.55], [0, 1])


@pytest.fixture
def nothing():
    return make([], [], [])


def test_length_is_the_number_of_boxes(found, nothing):
    assert (len(found), len(nothing)) == (2, 0)


def test_repr_names_what_was_found(found, nothing):
    assert repr(found) == "Detections(2: cat 0.91, dog 0.55)"
    assert repr(nothing) == "Detections(0)"
    assert repr(make([[0, 0, 1, 1]] * 9, [0.5] * 9, [0] * 9)).endswith("cat 0.50, …)")


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_makes_a_picture_of_the_photos_size(found, tmp_path, suffix):
    found.save(tmp_path / f"x{suffix}")
    with Image.open(tmp_path / f"x{suffix}") as image:
        assert image.size == (64, 48)


def test_unknown_suffix_is_refused_before_anything_is_written(found, tmp_path):
    with pytest.raises(ValueError, match=r"use one of .*\.jpg"):
        found.save(tmp_path / "x.txt")
    assert not list(tmp_path.iterdir())


def test_photo_may_be_a_file(tmp_path):
    Image.new("RGB", (32, 24), "blue").save(tmp_path / "photo.png")
    drawn = make([], [], [], image=tmp_path / "photo.png").draw()
    assert drawn.size == (32, 24)
    assert drawn.getpixel((5, 5)) == (0, 0, 255)


def test_surest_detection_lies_on_top():
    drawn = make([[10, 20, 40, 40]] * 2, [0.9, 0.3], [0, 1]).draw()
    alone = make([[10, 20, 40, 40]], [0.9], [0]).draw()
    assert drawn.getpixel((25, 39)) == alone.getpixel((25, 39))


def test_coco_results_are_xywh_under_the_datasets_ids(found):
    assert found.to_coco(7) == [
        {
            "image_id": 7,
            "category_id": 17,
            "bbox": [4.0, 8.0, 16.0, 22.5],
            "score": pytest.approx(0.91),
        }
    ]


def test_coco_results_keep_scores_and_boxes_exact():
    generator = torch.Generator().manual_seed(0)
    boxes, scores = (
        torch.rand(50, 4, generator=generator) * 640,
        torch.rand(50, generator=generator),
    )
    found = {"boxes": boxes, "scores": scores, "labels": torch.zeros(50).long()}
    results = coco_results(1, found, [1])
    assert [result["score"] for result in results] == scores.tolist()
    bbox = torch.tensor([result["bbox"] for result in results], dtype=torch.float64)
    bbox[:, 2:] += bbox[:, :2]
    torch.testing.assert_close(bbox, boxes.double(), rtol=0, atol=2e-5)


def test_supervision_gets_names(found, nothing):
    pytest.importorskip("supervision")
    detections = found.to_supervision()
    assert detections.data["class_name"].tolist() == ["cat", "dog"]
    assert detections.xyxy.tolist() == found.boxes.tolist()
    assert len(nothing.to_supervision()) == 0


def test_missing_supervision_is_named(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"sepc_zoo\[supervision\]"):
        found.to_supervision()
