import os
import shutil
import signal

import pytest
import torch
from PIL import Image

from sepc_zoo.data.images import list_images
from sepc_zoo.factory import create_model
from sepc_zoo.inference.detections import Detections
from sepc_zoo.inference.predictor import picture_path, predict_files
from sepc_zoo.inference.tta import Views
from sepc_zoo.training.resilience.signals import Interrupted

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def model():
    """Small, and sure enough of itself to find something everywhere."""
    torch.manual_seed(0)
    changes = {"channels": 16, "neck": {"blocks": 1}, "weights": {"image_size": (64, 64)}}
    model = create_model("retinanet_mnv4s_pconv", num_classes=4, **changes).eval()
    torch.nn.init.normal_(model.head.cls.weight, std=0.3)
    torch.nn.init.zeros_(model.head.cls.bias)
    return model


@pytest.fixture
def files(shapes, tmp_path):
    """Four photos, the second in a size of its own."""
    files = list_images(shutil.copytree(shapes / "val", tmp_path / "photos"))
    with Image.open(files[1]) as photo:
        photo.resize((64, 40)).save(files[1])
    return files


def scores(rows):
    return [row["score"] for row in rows]


@pytest.mark.parametrize("views", [Views(), Views(flip=True, scales=(1.0, 1.5))])
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 2)])
def test_photos_in_bulk_give_what_each_gives_alone(
    batch_size, workers, views, model, files, tmp_path
):
    done = predict_files(
        model, files, tmp_path / "out", 0.5, batch_size=batch_size, workers=workers, views=views
    )
    assert [prediction.position for prediction in done] == [0, 1, 2, 3]
    for i, (prediction, file) in enumerate(zip(done, files, strict=True), start=1):
        expected = model.predict(file, 0.5, views=views)
        assert len(expected) > 0
        assert prediction.text.startswith(f"Detections({len(expected)}: ")
        assert {row["image_id"] for row in prediction.rows} == {i}
        assert scores(prediction.rows) == pytest.approx(expected.scores.tolist(), abs=1e-5)
        with Image.open(tmp_path / "out" / f"{file.stem}_boxes.jpg") as picture:
            assert (picture.height, picture.width) == Image.open(file).size[::-1]


def test_a_photo_keeps_its_id_where_another_cannot_be_read(model, files, tmp_path):
    before = predict_files(model, files, tmp_path / "out", 0.5)
    files[1].write_bytes(b"no image")
    done = predict_files(model, files, tmp_path / "out", 0.5)
    assert done[1].rows is None
    assert str(files[1]) in done[1].text
    assert [p.position for p in done] == [0, 1, 2, 3]
    assert scores(done[2].rows) == pytest.approx(scores(before[2].rows), abs=1e-5)


def test_no_photo_overwrites_the_picture_of_another(tmp_path):
    names = ["a.jpg", "a.JPG", "a.jpeg", "a.png", "a.b.png", "a_boxes.jpg", "a_boxes.png", "b.jpg"]
    paths = {picture_path(tmp_path, tmp_path / name) for name in names}
    assert len(paths) == len(names)


def test_a_signal_ends_it_with_whole_pictures_only(model, files, tmp_path, monkeypatch):
    save = Detections.save

    def save_with_signal(found, path):
        os.kill(os.getpid(), signal.SIGTERM)
        save(found, path)

    monkeypatch.setattr(Detections, "save", save_with_signal)
    with pytest.raises(Interrupted, match="is not written") as stop:
        predict_files(model, files[:1] * 50, tmp_path / "out", 0.5, batch_size=1, workers=0)
    assert stop.value.status == 128 + signal.SIGTERM
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert names == [f"{files[0].stem}_boxes.jpg"]


def test_a_picture_that_cannot_be_written_is_an_error(model, files, tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="out"):
        predict_files(model, files, tmp_path / "out", 0.5)
