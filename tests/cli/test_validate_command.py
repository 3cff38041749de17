"""`sepc-zoo validate`: of a model and of saved detections."""

import json
import shutil

import pytest
import torch
from commands import SHAPES, assert_refused, call
from PIL import Image

from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.cli.validate import intervals_line
from sepc_zoo.factory import create_model
from sepc_zoo.metric_names import AP_METRICS, METRICS


@pytest.fixture(scope="module")
def validated(model, shapes, tmp_path_factory):
    """The folder that ``validate`` left."""
    folder = tmp_path_factory.mktemp("validation")
    flags = ("--split", "val", "--workers", 0, "--device", "cpu", "--output", folder)
    assert call("validate", "--model", model, "--data", shapes, *flags) == 0
    return folder


def test_validate_writes_metrics_detections_and_a_page_named_after_the_model(validated, model):
    metrics = json.loads((validated / "metrics.json").read_text())
    assert list(metrics) == [*METRICS, "per_class", "errors"]
    assert list(metrics["per_class"]) == SHAPES
    assert metrics["AR100"] > 0
    results = json.loads((validated / "detections.json").read_text())
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score"}
    assert {row["image_id"] for row in results} == {1, 2, 3, 4}
    assert {row["category_id"] for row in results} <= {1, 2, 3, 4}
    page = (validated / "report.html").read_text()
    assert f"<h1>{model}</h1>" in page
    assert "Objects not found" in page


def test_saved_detections_give_the_same_files(validated, shapes, tmp_path, capsys):
    file = validated / "detections.json"
    assert call("validate", "--from-json", file, "--data", shapes, "--output", tmp_path) == 0
    assert "4 images; metrics.json, detections.json, report.html are in" in capsys.readouterr().out
    names = ("metrics.json", "detections.json", "report.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for name in names[:2]:
        assert (tmp_path / name).read_text() == (validated / name).read_text()


def test_saved_detections_stay_as_they_are_where_results_go_to_their_folder(
    validated, shapes, tmp_path
):
    file = tmp_path / "detections.json"
    file.write_text(
        json.dumps({"annotations": json.loads((validated / "detections.json").read_text())})
    )
    before = file.read_text()
    flags = ("--data", shapes, "--output", tmp_path, "--no-report")
    assert call("validate", "--from-json", file, *flags) == 0
    assert file.read_text() == before


def test_further_figures_are_written_and_shown_at_request(validated, shapes, tmp_path, capsys):
    file = validated / "detections.json"
    flags = ("--voc-ap", "--bootstrap", 20, "--frequency-split", "train", "--output", tmp_path)
    assert call("validate", "--from-json", file, "--data", shapes, *flags) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics["voc"]["per_class"]) == list(metrics["intervals"]["per_class"]) == SHAPES
    low, high = metrics["intervals"]["AP"]
    assert low <= metrics["AP"] <= high
    assert metrics["APr"] == pytest.approx(metrics["AP"])  # eight images
    assert metrics["APf"] == -1
    said = capsys.readouterr().out
    assert "AP50 that each kind of error costs: Cls " in said
    assert f"95% intervals: AP {low:.3f} to {high:.3f}, AP50 " in said
    area, points = metrics["voc"]["AP"], metrics["voc"]["AP_11_points"]
    assert f"Pascal VOC's AP at an IoU of 0.5: {area:.3f}, with 11 points {points:.3f}\n" in said
    page = (tmp_path / "report.html").read_text()
    assert "95% intervals" in page
    assert "with 11 points" in page
    plain = json.loads((validated / "metrics.json").read_text())
    assert {key: metrics[key] for key in plain} == plain


def test_without_matplotlib_there_is_all_but_the_page(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sepc_zoo.evaluation.report.charts.find_spec", lambda _: None)
    (tmp_path / "none.json").write_text("[]")
    flags = ("--data", shapes, "--output", tmp_path)
    assert call("validate", "--from-json", tmp_path / "none.json", *flags) == 0
    says = 'no report.html: a report needs matplotlib: pip install "sepc_zoo[plots]"'
    assert says in capsys.readouterr().out
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "metrics.json").exists()


def test_what_predict_writes_can_be_validated(model, shapes, tmp_path, capsys):
    """Its images go by their names, and those of another split do not count."""
    images, seen = tmp_path / "images", tmp_path / "seen"
    shutil.copytree(shapes / "val", images)
    shutil.copy(next((shapes / "train").iterdir()), images / "0_of_train.jpg")
    flags = ("--score-threshold", 0, "--device", "cpu", "--output", seen)
    assert call("predict", images, "--model", model, *flags) == 0
    whole = json.loads((seen / "detections.json").read_text())["annotations"]
    flags = ("--data", shapes, "--output", tmp_path, "--no-report")
    assert call("validate", "--from-json", seen / "detections.json", *flags) == 0
    elsewhere = [row for row in whole if row["image_id"] == 1]
    assert f"left out {len(elsewhere)} detections" in capsys.readouterr().out
    rows = json.loads((tmp_path / "detections.json").read_text())
    assert len(rows) == len(whole) - len(elsewhere)
    assert {row["image_id"] for row in rows} == {1, 2, 3, 4}
    assert json.loads((tmp_path / "metrics.json").read_text())["AR100"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_validate_refuses_fp16_on_the_cpu(model, shapes, tmp_path, capsys):
    flags = ("--data", shapes, "--output", tmp_path / "out", "--amp", "fp16")
    assert call("validate", "--model", model, *flags) == 2
    assert_refused(capsys, "--amp fp16 needs a GPU")


def test_undefined_figures_have_no_interval_on_the_terminal():
    known, undefined = [0.25, 0.5], [-1, -1]
    spans = dict.fromkeys(AP_METRICS, undefined) | {"AP": known, "APs": known, "level": 0.9}
    assert intervals_line(spans) == "90% intervals: AP 0.250 to 0.500, APs 0.250 to 0.500"
    none = dict.fromkeys(AP_METRICS, undefined) | {"level": 0.9}
    assert intervals_line(none) == "90% intervals: undefined"


GOOD = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


def test_every_bad_entry_of_saved_detections_is_listed(shapes, tmp_path, capsys):
    bad = {
        1: "x",
        2: {"image_id": 1},
        3: GOOD | {"image_id": 99},
        4: GOOD | {"image_id": [1]},
        5: GOOD | {"category_id": 0},
        6: GOOD | {"category_id": None},
        7: GOOD | {"bbox": [1, 2, 3]},
        8: GOOD | {"bbox": [1, 2, 3, "4"]},
        9: GOOD | {"bbox": [1, 2, 3, float("nan")]},
        10: GOOD | {"score": "high"},
        11: GOOD | {"score": float("inf")},
        12: GOOD | {"bbox": [1, 2, -3, 4]},
        13: GOOD | {"bbox": [1, 2, 3, -1e-9]},
    }
    file = tmp_path / "detections.json"
    file.write_text(json.dumps([GOOD, *bad.values()]))
    assert call("validate", "--from-json", file, "--data", shapes, "--output", tmp_path) == 2
    assert_refused(capsys, *(f"{file}: entry {i}: " for i in bad))
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("entry", [{"score": 97.5}, {"score": -3}, {"bbox": [1, 2, 0, 4]}])
def test_what_pycocotools_takes_is_no_bad_entry(entry, shapes, tmp_path):
    file = tmp_path / "detections.json"
    file.write_text(json.dumps([GOOD | entry]))
    flags = ("--data", shapes, "--output", tmp_path, "--no-report")
    assert call("validate", "--from-json", file, *flags) == 0


@pytest.mark.parametrize("content", ["[", "3", "{}", None])
def test_a_file_without_results_is_refused(content, shapes, tmp_path, capsys):
    file = tmp_path / "detections.json"
    if content is not None:
        file.write_text(content)
    assert call("validate", "--from-json", file, "--data", shapes, "--output", tmp_path) == 2
    assert_refused(capsys, file)


@pytest.mark.parametrize("page", [(), ("--no-report",)])
def test_no_detections_at_all_have_metrics_and_the_page_can_be_left_out(page, shapes, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    flags = ("--data", shapes, "--output", tmp_path, *page)
    assert call("validate", "--from-json", tmp_path / "none.json", *flags) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["AP"] == 0
    assert (tmp_path / "report.html").exists() == (not page)


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_a_model_that_does_not_exist_is_named(command, shapes, tmp_path, capsys):
    source = ("--data", shapes) if command == "validate" else (shapes / "val",)
    for name in ("retinanet_r18_pconv", "fsaf_bogus_sepc", f"local-dir:{tmp_path}"):
        flags = ("--model", name, "--output", tmp_path / "out")
        assert call(command, *source, *flags) == 2
        assert_refused(capsys, f"sepc-zoo {command}: ", name.removeprefix("local-dir:"))


def test_detections_of_a_model_with_other_class_order_read_back_on_voc(tmp_path):
    data = write_voc(tmp_path / "voc", {"a": "cat", "b": "dog"})
    names = ["dog", "zebra", "cat"]
    small = {"channels": 16, "neck": {"blocks": 1}, "weights": {"image_size": (64, 64)}}
    folder = save_model(create_model("retinanet_mnv4s_pconv", label_names=names, **small), tmp_path)
    out, again = tmp_path / "out", tmp_path / "again"
    where = ("--data", data, "--workers", 0, "--device", "cpu")
    assert call("validate", "--model", folder, "--output", out, "--no-report", *where) == 0
    saved = [{"image_id": i, "category_id": i, "bbox": [8, 8, 20, 20], "score": 1} for i in (1, 2)]
    (out / "perfect.json").write_text(json.dumps(saved))
    flags = ("--from-json", out / "perfect.json", "--output", again, "--no-report")
    assert call("validate", *flags, *where) == 0
    assert json.loads((again / "metrics.json").read_text())["AP"] == pytest.approx(1)
    ids = {row["category_id"] for row in json.loads((out / "detections.json").read_text())}
    assert ids <= {1, 2}


def write_voc(root, images):
    """A Pascal VOC folder with an object of 20 pixels in each image, the same place in all."""
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for stem, name in images.items():
        Image.new("RGB", (64, 64)).save(root / "JPEGImages" / f"{stem}.jpg")
        box = "<xmin>9</xmin><ymin>9</ymin><xmax>28</xmax><ymax>28</ymax>"
        objects = f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
        size = "<size><width>64</width><height>64</height></size>"
        text = f"<annotation><filename>{stem}.jpg</filename>{size}{objects}</annotation>"
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    (root / "ImageSets" / "Main" / "val.txt").write_text("\n".join(images))
    return root
