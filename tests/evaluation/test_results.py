import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sepc_zoo.data import Annotations, DataError, Record
from sepc_zoo.evaluation.results import (
    collect_detections,
    collect_targets,
    indices_by_image,
    read_results,
)

ROW = {"image_id": 7, "category_id": 20, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.fixture
def split():
    """Image 7 with two boxes, image 3 with none; three classes, the last without an id."""
    return Annotations((record(7, 2), record(3, 0)), ("cat", "dog", "cow"), (10, 20, None))


def record(image_id, count, path=None):
    bbox = torch.arange(4 * count).reshape(-1, 4).double() / 3
    zeros = torch.zeros(count, dtype=torch.int64)
    path = path or Path("images") / f"{image_id}.jpg"
    return Record(image_id, path, (9, 9), bbox.float(), zeros, zeros, zeros.double(), bbox)


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def predicted(*rows, files=("7.jpg", "3.jpg"), classes=("dog", "cat")):
    """A file of ``predict`` with its own ids."""
    return {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(files, start=1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, start=1)],
        "annotations": [ROW | {"image_id": image, "category_id": label} for image, label in rows],
    }


def test_boxes_keep_the_precision_of_the_annotations(split):
    truth = collect_targets(split)
    assert truth.bbox.tolist() == split.records[0].bbox.tolist()
    assert truth.image.tolist() == [0, 0]


def test_ids_of_results_become_indices_and_labels(split):
    found = collect_detections([ROW, ROW | {"image_id": 3, "category_id": 10}], split)
    assert (found.image.tolist(), found.labels.tolist()) == ([1, 0], [0, 1])
    assert found.bbox.tolist() == [[1, 2, 3, 4]] * 2


def test_detections_come_by_image_id_in_the_order_of_the_file(split):
    rows = [ROW | {"image_id": i, "score": score} for i, score in ((7, 1), (3, 2), (7, 3), (3, 4))]
    found = collect_detections(rows, split)
    assert found.scores.tolist() == [2, 4, 1, 3]


def test_indices_by_image_keep_their_order():
    parts = indices_by_image(np.array([2, 0, 2, 0]), 4)
    assert [part.tolist() for part in parts] == [[1, 3], [], [0, 2], []]
    assert indices_by_image(np.array([], dtype=int), 0) == []


def test_a_list_is_returned_unchanged(split, tmp_path):
    assert read_results(write(tmp_path / "a.json", [ROW]), split) == ([ROW], 0)


def test_a_file_of_predict_is_translated_by_names_of_images_and_classes(split, tmp_path):
    rows, left_out = read_results(write(tmp_path / "a.json", predicted((2, 1), (1, 2))), split)
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(3, 20), (7, 10)]
    assert left_out == 0


def test_detections_in_images_of_another_split_are_left_out_and_counted(split, tmp_path):
    content = predicted((1, 1), (2, 1), (2, 2), files=("7.jpg", "of_train.jpg"))
    rows, left_out = read_results(write(tmp_path / "a.json", content), split)
    assert ([row["image_id"] for row in rows], left_out) == ([7], 2)


def test_a_file_without_any_image_of_the_split_is_refused(split, tmp_path):
    file = write(tmp_path / "a.json", predicted((1, 1), files=("x.jpg", "y.jpg")))
    with pytest.raises(DataError, match=r"a\.json: the split has none of its 2 images"):
        read_results(file, split)


def test_an_unknown_class_is_named(split, tmp_path):
    file = write(tmp_path / "a.json", predicted((1, 1), classes=("unicorn",)))
    with pytest.raises(DataError, match="no category 'unicorn'"):
        collect_detections(read_results(file, split)[0], split)


def test_images_of_the_same_name_are_not_confused(split, tmp_path):
    records = (record(1, 1, Path("a/7.jpg")), record(2, 1, Path("b/7.jpg")))
    twice = Annotations(records, split.label_names, split.category_ids)
    with pytest.raises(DataError, match=r"several images 7\.jpg"):
        read_results(write(tmp_path / "a.json", predicted((1, 1))), twice)
    assert read_results(write(tmp_path / "b.json", [ROW]), twice)[0] == [ROW]


@pytest.mark.parametrize(
    "content",
    [
        {"annotations": [ROW], "images": [{"id": 1}]},
        {"annotations": [ROW], "categories": [3]},
        {"annotations": [3]},
        {"annotations": [{"image_id": 1}]},
    ],
)
def test_a_malformed_file_is_named(content, split, tmp_path):
    with pytest.raises(DataError, match=r"a\.json: malformed"):
        read_results(write(tmp_path / "a.json", content), split)
