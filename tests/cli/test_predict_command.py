"""`sepc-zoo predict`: from images to pictures and a file of detections."""

import json
import os
import signal
from unittest.mock import Mock

import pytest
import torch
from commands import SHAPES, assert_refused, call
from PIL import Image

from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.factory import load_model
from sepc_zoo.inference.detections import Detections
from sepc_zoo.inference.tiles import Tiles
from sepc_zoo.inference.tta import Views
from sepc_zoo.published import PUBLISHED, PUBLISHERS
from sepc_zoo.registry import RECOMMENDED


def test_predict_draws_an_image_and_writes_its_boxes(model, images, tmp_path, capsys):
    flags = ("--output", tmp_path / "out", "--score-threshold", 0.5, "--device", "cpu")
    assert call("predict", images / "a.jpg", "--model", model, *flags) == 0
    with Image.open(tmp_path / "out" / "a_boxes.jpg") as picture:
        assert picture.size == (64, 64)
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "a.jpg"}]
    assert content["categories"] == [{"id": i, "name": n} for i, n in enumerate(SHAPES, start=1)]
    found = load_model(model).predict(images / "a.jpg", 0.5)
    assert content["annotations"] == found.to_coco(1)
    assert len(found) > 0
    assert f"a.jpg: {len(found)}: " in capsys.readouterr().out


def test_images_without_a_box_are_told_with_the_highest_score(model, images, tmp_path, capsys):
    unsure = load_model(model)
    torch.nn.init.zeros_(unsure.head.cls.bias)
    torch.nn.init.normal_(unsure.head.cls.weight, std=1e-3)
    flags = ("--output", tmp_path / "out", "--score-threshold", 0.9, "--device", "cpu")
    assert call("predict", images, "--model", save_model(unsure, tmp_path / "unsure"), *flags) == 0
    best = max(found.scores.max() for found in unsure.predict(images, 0.0))
    said = f"no score reaches 0.9; the highest is {best:.3f}: lower --score-threshold"
    assert said in capsys.readouterr().out
    torch.nn.init.constant_(unsure.head.cls.bias, -9)
    save_model(unsure, tmp_path / "unsure")
    assert call("predict", images, "--model", tmp_path / "unsure", *flags) == 0
    assert (
        "no score reaches 0.9; none reaches the model's own limit of 0.05 ("
        in capsys.readouterr().out
    )


def test_without_a_model_the_recommended_one_is_taken_and_named(
    model, images, tmp_path, monkeypatch, capsys
):
    asked = Mock(return_value=load_model(model))
    monkeypatch.setattr("sepc_zoo.api.models.model_with_weights", asked)
    assert call("predict", images / "a.jpg", "--output", tmp_path / "out", "--device", "cpu") == 0
    asked.assert_called_once_with(RECOMMENDED)
    row = PUBLISHED[RECOMMENDED]
    out = capsys.readouterr().out
    assert f"no --model given: taking {RECOMMENDED}, AP {row.ap} on COCO val2017" in out
    assert PUBLISHERS[row.publisher].title in out


def test_a_model_folder_that_is_not_there_ends_with_2(images, tmp_path, capsys):
    flags = ("--model", "runs/none", "--output", tmp_path / "out")
    assert call("predict", images, *flags) == 2
    assert_refused(capsys, "runs/none: no such folder")


def test_views_and_batches_reach_predict(model, images, tmp_path, monkeypatch):
    predict = Mock(return_value=[])
    monkeypatch.setattr("sepc_zoo.inference.bulk.predict_files", predict)
    flags = ("--tta-flip", "--tta-scales", 0.8, 1, "--tile", 64, "--overlap", 0.5)
    flags += ("--batch-size", 7, "--workers", 3)
    assert call("predict", images, "--model", model, "--output", tmp_path / "out", *flags) == 0
    views = Views(True, (0.8, 1.0), Tiles(64, 0.5))
    expected = {"batch_size": 7, "workers": 3, "views": views}
    assert predict.call_args.kwargs.items() >= expected.items()


def test_soft_nms_and_fusion_replace_those_of_the_model(model, images, tmp_path):
    flags = ("--tta-flip", "--tta-fusion", "wbf", "--soft-nms", "linear", "--device", "cpu")
    flags += ("--output", tmp_path, "--score-threshold", 0.2)
    assert call("predict", images / "a.jpg", "--model", model, *flags) == 0
    found = json.loads((tmp_path / "detections.json").read_text())["annotations"]
    other = load_model(model, postprocess={"soft_nms": "linear", "view_fusion": "wbf"})
    expected = other.predict(images / "a.jpg", 0.2, views=Views(flip=True))
    assert found == expected.to_coco(1)
    assert found != load_model(model).predict(images / "a.jpg", 0.2, views=Views(flip=True))


def test_an_interrupted_prediction_ends_with_the_status_of_the_signal(
    model, images, tmp_path, monkeypatch, capsys
):
    save = Detections.save

    def save_with_signal(detections, path):
        os.kill(os.getpid(), signal.SIGTERM)
        save(detections, path)

    monkeypatch.setattr(Detections, "save", save_with_signal)
    flags = ("--output", tmp_path / "out", "--batch-size", 1, "--workers", 0)
    assert call("predict", images, "--model", model, *flags) == 143
    assert_refused(capsys, "stopped; pictures made until then", "detections.json is not written")
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert set(names) <= {"a_boxes.jpg", "b_boxes.jpg"}


def test_more_views_change_the_metrics(model, shapes, tmp_path):
    found = []
    more = [("--tta-flip",), ("--tta-scales", 1, 1.5), ("--tile", 48)]
    for flags in ((), ("--tta-scales", 1), ("--tile", 64), *more):
        machine = ("--device", "cpu", "--workers", 0)
        where = ("--data", shapes, "--output", tmp_path, "--no-report")
        assert call("validate", "--model", model, *where, *machine, *flags) == 0
        found.append((tmp_path / "detections.json").read_text())
    assert found[0] == found[1] == found[2]
    assert len(set(found)) == 1 + len(more)


def test_an_unreadable_image_is_reported_and_the_others_are_done(model, images, tmp_path, capsys):
    (images / "aa.jpg").write_bytes(b"no image")
    assert call("predict", images, "--model", model, "--output", tmp_path / "out") == 1
    assert_refused(capsys, f"not done: {images / 'aa.jpg'}")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a_boxes.jpg", "b_boxes.jpg", "detections.json"]
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [row["file_name"] for row in content["images"]] == ["a.jpg", "b.jpg"]


def test_a_single_unreadable_image_ends_with_1(model, images, tmp_path, capsys):
    (images / "a.jpg").write_bytes(b"no image")
    flags = ("--model", model, "--output", tmp_path / "out")
    assert call("predict", images / "a.jpg", *flags) == 1
    assert_refused(capsys, "not done: ", "a.jpg")


@pytest.mark.parametrize("name", ["missing.jpg", "empty"])
def test_a_source_without_images_ends_with_2(name, model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    flags = ("--model", model, "--output", tmp_path / "out")
    assert call("predict", tmp_path / name, *flags) == 2
    assert_refused(capsys, tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_a_image_of_an_uncommon_format_gives_a_png(model, shapes, tmp_path):
    Image.open(shapes / "val" / "000001.jpg").save(tmp_path / "image.ppm")
    assert (
        call("predict", tmp_path / "image.ppm", "--model", model, "--output", tmp_path / "o") == 0
    )
    assert (tmp_path / "o" / "image.ppm_boxes.png").exists()


def test_pictures_are_not_written_among_the_images(model, images, capsys):
    assert call("predict", images, "--model", model, "--output", images) == 2
    assert_refused(capsys, "--output")


def test_several_sources_and_their_folders_keep_their_names(model, images, tmp_path, monkeypatch):
    inner = images / "inner"
    inner.mkdir()
    (images / "b.jpg").rename(inner / "a.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = ("--recursive", "--output", "~/out", "--workers", 0)
    assert call("predict", "~/images/a.jpg", "~/images/inner", "--model", model, *flags) == 0
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [row["file_name"] for row in content["images"]] == ["a.jpg", "inner/a.jpg"]
    assert (tmp_path / "out" / "inner" / "a_boxes.jpg").exists()


def test_a_full_disk_is_told_for_each_file_that_it_costs(model, images, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_boxes.jpg").mkdir()  # stands for a picture that cannot be written
    (tmp_path / "out" / "detections.json").mkdir()
    assert call("predict", images, "--model", model, "--output", tmp_path / "out") == 1
    assert_refused(capsys, "a.jpg: its picture cannot be written", "detections.json: cannot be")
    assert (tmp_path / "out" / "b_boxes.jpg").is_file()


def test_names_that_are_no_utf8_or_control_a_terminal_are_escaped(model, images, tmp_path, capsys):
    odd = os.fsdecode(b"caf\xe9 \x1b[31m.jpg")
    (images / "a.jpg").rename(images / odd)
    (images / "b.jpg").write_bytes(b"no image \x1b]0;title\x07")
    (images / "b.jpg").rename(images / "\x1b[2J.jpg")
    assert call("predict", images, "--model", model, "--output", tmp_path / "out") == 1
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [row["file_name"] for row in content["images"]] == [odd]
    said = "".join(capsys.readouterr())
    assert "\x1b" not in said
    assert r"\x1b[2J.jpg: not an image" in said
