"""Exported files themselves: written, loaded and used by the commands."""

import csv
import json
from pathlib import Path

import pytest
import torch
from commands import SHAPES, assert_refused, call
from tiny_exports import METHODS, tiny_detector

import sepc_zoo
from sepc_zoo.evaluation.speed import Setting, compare
from sepc_zoo.registry import NECKS

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
SMALL = {"fpn": {"levels": (3, 5)}, "head": {"convs": 1}, "weights": {"image_size": (64, 96)}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder, and beside it the exported file of the same model."""
    folder = tmp_path_factory.mktemp("export")
    model = tiny_detector("fsaf_sepc_lite", **SMALL)
    model.reset_classifier(SHAPES)
    model.head.cls.bias.data.fill_(-2)
    sepc_zoo.save_model(model, folder / "model", metrics={"AP": 0.25})
    (folder / "model" / "metrics.json").write_text('{"AP": 0.25, "per_class": {}}')
    assert call("export", "--model", folder / "model", "--output", folder / "model.onnx") == 0
    return folder


def test_an_exported_file_describes_itself(folder):
    properties = onnx.load(folder / "model.onnx").metadata_props
    [text] = [entry.value for entry in properties if entry.key == "sepc_zoo"]
    metadata = json.loads(text)
    assert metadata == json.loads((folder / "model.onnx.json").read_text())
    assert metadata["versions"]["opset"] == 20
    assert metadata["metrics"] == {"AP": 0.25}
    figures = json.loads((folder / "export.json").read_text())["model.onnx"]
    assert figures["images"] == 4
    assert figures["detections"] > 0
    assert figures["unmatched"] == 0
    assert figures["max_score_difference"] < 1e-3


def test_an_exported_file_predicts_what_its_model_predicts(folder):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 100, 140), dtype=torch.uint8, generator=generator)
    model = sepc_zoo.load_model(folder / "model")
    ours = model.predict(image, score_threshold=0.07)
    theirs = sepc_zoo.load_exported(folder / "model.onnx").predict(image, score_threshold=0.07)
    assert len(ours.scores) > 0
    assert torch.allclose(ours.scores, theirs.scores, atol=1e-3)
    assert torch.allclose(ours.boxes, theirs.boxes, atol=0.1)
    assert theirs.label_names == tuple(SHAPES)


def test_validate_gives_an_exported_file_the_metrics_of_its_model(folder, shapes, tmp_path):
    metrics = []
    for name in ("model", "model.onnx"):
        flags = ("--workers", 0, "--device", "cpu", "--no-report", "--output", tmp_path)
        assert call("validate", "--model", folder / name, "--data", shapes, *flags) == 0
        metrics.append(json.loads((tmp_path / "metrics.json").read_text()))
    assert metrics[1]["AR100"] == pytest.approx(metrics[0]["AR100"], abs=1e-3)
    assert metrics[1]["AR100"] > 0
    exported = sepc_zoo.load_exported(folder / "model.onnx")
    again = sepc_zoo.validate(exported, data=shapes, workers=0, device="cpu", no_report=True)
    assert again["AR100"] == metrics[1]["AR100"]


def test_predict_takes_an_exported_file_but_not_with_soft_suppression(
    folder, shapes, tmp_path, capsys
):
    image = next((shapes / "val").rglob("*.jpg"), None) or next(shapes.rglob("*.png"))
    flags = ("--model", folder / "model.onnx", "--output", tmp_path, "--device", "cpu")
    assert call("predict", image, *flags, "--workers", 0) == 0
    assert (tmp_path / f"{image.stem}_boxes{image.suffix}").is_file()
    assert call("predict", image, *flags, "--soft-nms", "linear") == 2
    assert_refused(capsys, "--soft-nms")


def test_benchmark_takes_an_exported_file_but_does_not_train_it(folder, capsys):
    file, setting = str(folder / "model.onnx"), Setting(height=64, width=96)
    [forward, detect] = compare([file], setting, ["forward", "detect"], rounds=1, memory=False)
    assert forward.timing.median > 0 < detect.timing.median
    assert (
        call("benchmark", "--model", file, "--train", "--rounds", 1, "--image-size", "64x96") == 2
    )
    assert_refused(capsys, "cannot be trained")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_int8_is_written_with_the_ap_that_it_has(folder, shapes, tmp_path, format, caplog):
    flags = ("--model", folder / "model", "--format", format, "--int8", "--calibrate", shapes)
    assert call("export", *flags, "--output", tmp_path / "new", "--max-drop", 1) == 0
    assert "pre-processing" not in caplog.text
    [file] = [f for f in (tmp_path / "new").iterdir() if f.suffix in (".onnx", ".xml")]
    assert json.loads(file.with_name(f"{file.name}.json").read_text())["precision"] == "int8"
    figures = json.loads((tmp_path / "new" / "export.json").read_text())[file.name]
    assert figures["calibration_images"] == 8
    assert 0 <= figures["AP_int8"] <= 1
    assert sepc_zoo.load_exported(file).metadata["precision"] == "int8"
    if format == "onnx":
        kinds = kinds_of_optimized_nodes(file, tmp_path / "optimized.onnx")
        assert "QLinearConv" in kinds
        assert "Conv" not in kinds  # onnxruntime computes none of them in float32


def kinds_of_optimized_nodes(file: Path, optimized: Path) -> set[str]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(optimized)
    onnxruntime.InferenceSession(file, options)
    return {node.op_type for node in onnx.load(optimized).graph.node}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "name"),
    [
        *(("openvino", name) for name in ("fsaf_sepc_lite", "fasterrcnn_fpn")),
        ("pt2", "fsaf_sepc_lite"),
    ],
)
def test_a_file_of_every_format_is_the_model(tmp_path, format, name):
    changes = {} if name.startswith("fasterrcnn") else SMALL
    file = sepc_zoo.export(tiny_detector(name, **changes), tmp_path, format)
    exported = sepc_zoo.load_exported(tmp_path)
    assert exported.metadata == json.loads(file.with_name(f"{file.name}.json").read_text())


# All pairs take ten minutes: benchmarks/export.csv has them.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *(f"{method}_fpn" for method in METHODS),
        *(f"gfl_{neck}" for neck in NECKS if neck != "fpn"),
        "fasterrcnn_pconv",
    ],
)
def test_every_method_and_every_neck_is_exported(tmp_path, name):
    sepc_zoo.export(tiny_detector(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino", "pt2"])
def test_half_and_fixed_sizes_are_the_model_too(tmp_path, format):
    fixed = {"image_size": (64, 96), "batch_size": 2}
    model = tiny_detector("retinanet_fpn", **SMALL)
    file = sepc_zoo.export(model, tmp_path / "half", format, half=True, **fixed)
    metadata = json.loads(file.with_name(f"{file.name}.json").read_text())
    assert metadata["precision"] == "float16"
    assert metadata["input"]["batch"] == 2


@pytest.mark.slow
def test_raw_outputs_are_exported(tmp_path):
    file = sepc_zoo.export(tiny_detector("fcos_fpn", **SMALL), tmp_path, raw=True)
    figures = json.loads((tmp_path / "export.json").read_text())[file.name]
    assert figures["unmatched"] == 0


def test_the_recorded_exports_are_equal_to_their_models():
    from benchmarks.export import TABLE

    with TABLE.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert {row["model"].partition("_")[0] for row in rows} == {*METHODS}
    assert [row for row in rows if row["sets_equal"] != "yes"] == []
