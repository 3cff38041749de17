"""What export writes, and when it writes nothing."""

import copy
import hashlib
import itertools
import json
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch
from commands import call
from timm.layers import Conv2dSame, get_same_padding, padding
from tiny_exports import LABELS, TorchFormat, tiny_detector
from torch.export import Dim
from torchvision.ops import nms

import sepc_zoo
from sepc_zoo.config import config_from_json
from sepc_zoo.errors import UserError
from sepc_zoo.export import exporter
from sepc_zoo.export.check import detection_differences
from sepc_zoo.export.exporter import export
from sepc_zoo.export.loaded import format_module, load_exported
from sepc_zoo.export.metadata import FORMAT, ExportError, parse
from sepc_zoo.export.trace import integer_padding


@pytest.fixture(scope="module")
def model():
    return tiny_detector("retinanet_fpn")


@pytest.fixture
def in_torch(monkeypatch, model):
    """Exports become files that PyTorch runs, in no time; a function may change their outputs."""

    def use(change=lambda outputs: outputs):
        format = TorchFormat(copy.deepcopy(model).eval(), change)
        monkeypatch.setattr(exporter, "trace", lambda *_: None)
        monkeypatch.setattr(exporter, "format_module", lambda _: format)

    use()
    return use


def test_the_package_is_the_function_and_has_its_modules():
    assert sepc_zoo.export.export is export
    assert sepc_zoo.export.metadata.FORMAT == FORMAT
    with pytest.raises(ExportError, match="--format tflite"):
        sepc_zoo.export(None, "model.tflite", "tflite")


@pytest.mark.usefixtures("in_torch")
def test_a_file_has_its_metadata_and_the_figures_of_the_comparison_beside_it(tmp_path, model):
    metrics = {"AP": 0.4, "AP50": 0.6, "per_class": {}}
    file = export(model, tmp_path / "new" / "model.onnx", metrics=metrics)
    assert sorted(f.name for f in file.parent.iterdir()) == [
        "export.json",
        "model.onnx",
        "model.onnx.json",
    ]
    metadata = json.loads((file.parent / "model.onnx.json").read_text())
    assert metadata["label_names"] == list(LABELS)
    assert config_from_json(metadata["config"]) == model.config
    assert metadata["metrics"] == {"AP": 0.4, "AP50": 0.6}
    assert metadata["input"]["pad_multiple"] == 32
    assert metadata["input"]["height"] is None
    figures = json.loads((file.parent / "export.json").read_text())["model.onnx"]
    assert figures["images"] == 4
    assert figures["detections"] > 0


@pytest.mark.usefixtures("in_torch")
def test_the_hash_is_that_of_the_saved_weights(tmp_path, model):
    folder = sepc_zoo.save_model(model, tmp_path / "saved")
    file = export(model, tmp_path)
    metadata = json.loads(file.with_name(f"{file.name}.json").read_text())
    content = (folder / "model.safetensors").read_bytes()
    assert metadata["weights_sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.usefixtures("in_torch")
def test_a_folder_gets_a_file_with_the_name_of_the_model(tmp_path, model):
    assert export(model, tmp_path).name == "retinanet_test_resnet_fpn.onnx"
    assert export(model, tmp_path / "new", "pt2").name == "retinanet_test_resnet_fpn.pt2"


@pytest.mark.usefixtures("in_torch")
def test_figures_of_several_files_stand_in_one_table(tmp_path, model):
    export(model, tmp_path / "a.onnx")
    export(model, tmp_path / "b.onnx", batch_size=1)
    assert [*json.loads((tmp_path / "export.json").read_text())] == ["a.onnx", "b.onnx"]


def test_a_damaged_table_of_figures_ends_the_export_before_it_starts(tmp_path, model):
    (tmp_path / "export.json").write_text('{"a.onnx": ')
    with pytest.raises(ExportError, match=r"export\.json cannot be read: .*; delete it"):
        export(model, tmp_path / "b.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["export.json"]


def with_other_labels(outputs):
    boxes, scores, labels = outputs
    return [boxes, scores, np.where(labels >= 0, (labels + 1) % 4, labels)]


def with_lower_scores(outputs):
    boxes, scores, labels = outputs
    return [boxes, scores * 0.99, labels]


def with_moved_boxes(outputs):
    boxes, scores, labels = outputs
    return [boxes * 1.05, scores, labels]


def without_the_best(outputs):
    boxes, scores, labels = outputs
    return [boxes[:, 1:], scores[:, 1:], labels[:, 1:]]


@pytest.mark.parametrize(
    "change", [with_other_labels, with_lower_scores, with_moved_boxes, without_the_best]
)
def test_a_file_that_is_not_the_model_is_not_written(tmp_path, model, in_torch, change):
    in_torch(change)
    with pytest.raises(ExportError, match="the exported file is not the model"):
        export(model, tmp_path / "model.onnx")
    assert [*tmp_path.iterdir()] == []


def with_one_label_changed(outputs):
    boxes, scores, labels = (values.copy() for values in outputs)
    labels[0, 0] = (labels[0, 0] + 1) % 4
    return [boxes, scores, labels]


def test_rounding_may_change_a_detection_in_float16_alone(tmp_path, model, in_torch):
    in_torch(with_one_label_changed)
    with pytest.raises(ExportError, match="is not the model"):
        export(model, tmp_path / "model.onnx")
    export(model, tmp_path / "model.onnx", half=True)


class Suppressing:
    """Suppresses given boxes of one class, in any image."""

    def __init__(self, config, boxes, scores):
        self.config, self.boxes, self.scores = config, torch.tensor(boxes), torch.tensor(scores)
        self.metadata = {"precision": "float32"}

    def detect(self, images):
        keep = nms(self.boxes, self.scores, self.config.postprocess.iou_threshold)
        labels = torch.zeros(len(keep), dtype=torch.int64)
        found = {"boxes": self.boxes[keep], "scores": self.scores[keep], "labels": labels}
        return [found] * len(images)


@pytest.mark.parametrize(
    ("move", "lower", "num_unmatched"), [(0, 0, 0), (5, 0, 1), (0, 0.01, 2)], ids=str
)
def test_of_two_boxes_with_one_score_rounding_chooses(model, move, lower, num_unmatched):
    boxes = [[0.0, 0.0, 90.0, 90.0], [20.0, 0.0, 110.0, 90.0], [200.0, 0.0, 290.0, 90.0]]
    ours = Suppressing(model.config, boxes, [0.5 + 1e-7, 0.5, 0.4])
    boxes[1] = [side + move for side in boxes[1]]
    theirs = Suppressing(model.config, boxes, [0.5 - lower, 0.5 + 1e-7 - lower, 0.4])
    figures = detection_differences(ours, theirs, [None])
    assert figures["detections"] == 2
    assert figures["unmatched"] == num_unmatched


def test_an_export_that_fails_keeps_the_older_file(tmp_path, model, in_torch):
    file = export(model, tmp_path / "model.onnx")
    content = file.read_bytes()
    in_torch(with_other_labels)
    with pytest.raises(ExportError):
        export(model, file, batch_size=2)
    assert file.read_bytes() == content


@pytest.mark.usefixtures("in_torch")
def test_the_model_stays_as_it_was(tmp_path, model):
    model.train()
    try:
        export(model, tmp_path / "model.onnx", half=True)
        assert model.training
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    finally:
        model.eval()


def test_a_comparison_without_detections_is_told(tmp_path, monkeypatch, capsys):
    silent = tiny_detector("retinanet_fpn")
    torch.nn.init.constant_(silent.head.cls.bias, -20)
    folder = sepc_zoo.save_model(silent, tmp_path / "saved")
    monkeypatch.setattr(exporter, "trace", lambda *_: None)
    monkeypatch.setattr(exporter, "format_module", lambda _: TorchFormat(silent))
    assert call("export", "--model", folder, "--output", tmp_path / "a b.onnx") == 0
    said = capsys.readouterr().out
    assert "finds nothing in the images of the comparison" in said
    assert f"use it: sepc-zoo predict IMAGE --model '{tmp_path}/a b.onnx'\n" in said


SOFT = {"postprocess": {"soft_nms": "linear"}}
CROPPED = {"neck": {"padding": 0}}
REFUSED = {
    "no multiple": ("retinanet_fpn", {}, {"image_size": (100, 128)}, "multiples of 32"),
    "too small": ("retinanet_pconv", CROPPED, {"image_size": (256, 288)}, "from 288 to"),
    "a batch of nothing": ("retinanet_fpn", {}, {"batch_size": 0}, "at least 1"),
    "raw of two stages": ("fasterrcnn_fpn", {}, {"raw": True}, "two-stage"),
    "soft suppression": ("retinanet_fpn", SOFT, {}, "soft_nms"),
    "a suffix": (
        "retinanet_fpn",
        {},
        {"format": "openvino"},
        r"format openvino ends in \.xml; --format onnx",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_refused_at_once(tmp_path, case):
    name, changes, options, message = REFUSED[case]
    with pytest.raises(ExportError, match=message):
        export(tiny_detector(name, **changes), tmp_path / "model.onnx", **options)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_missing_package_is_named_with_the_extra(monkeypatch, format):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(f"sepc_zoo.export.{format}.version", missing)
    with pytest.raises(ExportError, match=r'pip install "sepc_zoo\[export\]"'):
        format_module(format)


def test_a_path_without_an_exported_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no exported file"):
        load_exported(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"model\.onnx"):
        load_exported(file)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "no JSON"), ('{"format": 99}', "format 99"), ("[]", "format")]
)
def test_metadata_of_another_version_is_refused(tmp_path, text, message):
    with pytest.raises(ExportError, match=message):
        parse(text, tmp_path / "model.onnx.json")


@pytest.mark.parametrize("step", [1, 32])
def test_the_same_padding_of_timms_layers_is_that_of_timm(step):
    cases = [*itertools.product((8, 9, 127, 256), (1, 3), (1, 2), (1, 2))]
    expected = [get_same_padding(*case) for case in cases]
    with integer_padding(step):
        assert [padding.get_same_padding(*case) for case in cases] == expected
    assert padding.get_same_padding is get_same_padding


def test_the_same_padding_of_open_sizes_is_a_number():
    layers = torch.nn.Sequential(*(Conv2dSame(1, 1, 3, 2) for _ in range(5)))
    sides = {axis: 32 * Dim(f"steps{axis}", max=100) for axis in (2, 3)}
    with integer_padding(32):
        program = torch.export.export(layers, (torch.zeros(1, 1, 64, 96),), dynamic_shapes=(sides,))
    pads = [node.args[1] for node in program.graph.nodes if "pad" in str(node.target)]
    assert pads == [[0, 1, 0, 1]] * 5


def test_the_same_padding_fits_maps_of_odd_sides():
    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3, 2), Conv2dSame(1, 1, 5, 2))
    sides = {axis: 32 * Dim(f"steps{axis}", max=100) for axis in (2, 3)}
    with integer_padding(32):
        program = torch.export.export(layers, (torch.zeros(1, 1, 64, 96),), dynamic_shapes=(sides,))
    images = torch.rand(1, 1, 96, 32)
    assert torch.equal(program.module()(images), layers(images))
