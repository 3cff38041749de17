import json
import shutil

import pytest
import torch

from sepc_zoo.data import read_data
from sepc_zoo.data.images import ImageError
from sepc_zoo.evaluation import validate as validation
from sepc_zoo.evaluation.validate import MAX_UNREADABLE, validate_model, validation_loader
from sepc_zoo.factory import create_model
from sepc_zoo.inference.tta import Views
from sepc_zoo.training.accelerator import make_accelerator


@pytest.fixture(scope="module")
def model():
    """A small model that detects something in every image."""
    torch.manual_seed(0)
    changes = {"channels": 16, "neck": {"blocks": 1}, "weights": {"image_size": (64, 64)}}
    model = create_model("retinanet_mnv4s_pconv", num_classes=4, **changes)
    torch.nn.init.normal_(model.head.cls.weight, std=0.3)
    torch.nn.init.zeros_(model.head.cls.bias)
    return model


@pytest.fixture
def data(shapes, tmp_path):
    """A data set with four images in its split val."""
    return shutil.copytree(shapes, tmp_path / "data")


def validate(model, annotations, batch_size=3, views=None):
    accelerator = make_accelerator(None, device="cpu")
    loader = validation_loader(annotations, model, batch_size, 0, views or Views())
    return validate_model(accelerator, model, loader, annotations)


def by_image(rows):
    return {image_id: [r for r in rows if r["image_id"] == image_id] for image_id in range(1, 5)}


def test_validation_and_prediction_have_the_same_detections(model, data):
    annotations = read_data(data, "val")
    found = by_image(validate(model, annotations)[1])
    for record in annotations.records:
        expected = model.predict(record.path, 0.0).to_coco(record.image_id)
        ours = found[record.image_id]
        assert len(ours) == len(expected) > 0
        scores = [[row["score"] for row in rows] for rows in (ours, expected)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_views_are_applied_in_validation(model, data):
    annotations = read_data(data, "val")
    views = Views(flip=True, scales=(1.0, 1.5))
    found = by_image(validate(model, annotations, views=views)[1])
    for record in annotations.records:
        expected = model.predict(record.path, 0.0, views=views).to_coco(record.image_id)
        scores = [[row["score"] for row in rows] for rows in (found[record.image_id], expected)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def perfect(annotations):
    """Detect every object in the readable images."""

    def find(_, photos):
        truth = [annotations.records[photo.position] for photo in photos]
        found = [
            {"boxes": r.boxes, "scores": torch.ones(len(r.boxes)), "labels": r.labels}
            for r in truth
        ]
        return [(p, f if p.views else None) for p, f in zip(photos, found, strict=True)]

    return find


def test_objects_of_an_image_that_became_unreadable_are_missed(model, data, monkeypatch, capsys):
    annotations = read_data(data, "val")
    monkeypatch.setattr(validation, "detect_files", perfect(annotations))
    assert validate(model, annotations)[0].metrics["AR100"] == pytest.approx(1)
    broken = annotations.records[1]
    broken.path.write_bytes(b"no image")
    evaluation, rows = validate(model, annotations)
    count = [sum(int((r.labels == i).sum()) for r in annotations.records) for i in range(4)]
    missed = [int((broken.labels == i).sum()) for i in range(4)]
    assert sum(missed) > 0
    assert len(rows) == sum(count) - sum(missed)
    for i, name in enumerate(annotations.label_names):
        recall = evaluation.metrics["per_class"][name]["AR100"]
        assert recall == (pytest.approx(1 - missed[i] / count[i]) if count[i] else -1)
    messages = [
        line for line in capsys.readouterr().out.splitlines() if "without detections" in line
    ]
    assert len(messages) == 1
    assert str(broken.path) in messages[0]


def test_a_deleted_split_is_an_error_that_names_the_folder(model, data):
    annotations = read_data(data, "val")
    shutil.rmtree(data / "val")
    with pytest.raises(ImageError, match=f"{data / 'val'}: 4 of 4 images can no longer be read"):
        validate(model, annotations)


def test_too_many_unreadable_images_are_an_error(model, data):
    path = data / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    for i in range(10, 12 + MAX_UNREADABLE):
        shutil.copy(data / "val" / "000001.jpg", data / "val" / f"{i}.jpg")
        content["images"].append(content["images"][0] | {"id": i, "file_name": f"{i}.jpg"})
    path.write_text(json.dumps(content))
    annotations = read_data(data, "val")
    for i in range(10, 10 + MAX_UNREADABLE):
        (data / "val" / f"{i}.jpg").unlink()
    validate(model, annotations)
    (data / "val" / f"{10 + MAX_UNREADABLE}.jpg").unlink()
    with pytest.raises(ImageError, match=f"{MAX_UNREADABLE + 1} of {len(annotations.records)}"):
        validate(model, annotations)


def test_a_loader_that_misses_or_repeats_images_is_refused(model, data):
    annotations = read_data(data, "val")
    accelerator = make_accelerator(None, device="cpu")
    loader = list(validation_loader(annotations, model, 3, 0))
    for wrong in (loader[:-1], loader + loader[:1]):
        with pytest.raises(RuntimeError, match="instead of 4"):
            validate_model(accelerator, model, wrong, annotations)
