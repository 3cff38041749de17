"""Int8 is written where it costs little AP, and refused where it costs more."""

import json
import shutil

import pytest
from tiny_exports import TorchNetwork, tiny_detector

from sepc_zoo.cli.export import Arguments
from sepc_zoo.data.images import list_images
from sepc_zoo.export.exporter import export
from sepc_zoo.export.int8 import Int8, quantize
from sepc_zoo.export.loaded import ExportedModel
from sepc_zoo.export.metadata import ExportError, describe
from sepc_zoo.options import OptionError


class CopyFormat:
    """Stands for the module of a format; its int8 file is a copy with other metadata."""

    def __init__(self, model):
        self.model, self.inputs = model, []

    def quantize(self, source, target, inputs, metadata):
        self.inputs = [*inputs]
        shutil.copyfile(source, target)
        target.write_text(json.dumps(metadata))

    def Network(self, path):  # noqa: N802
        return TorchNetwork(self.model, json.loads(path.read_text()))


@pytest.fixture(scope="module")
def model():
    return tiny_detector("retinanet_fpn", weights={"image_size": (64, 96)})


@pytest.fixture
def draft(tmp_path, model):
    file = tmp_path / "model.onnx"
    file.write_text(json.dumps(describe(model, None, 2, False, "float32", {}, None)))
    return file


@pytest.fixture(scope="module")
def images(shapes):
    return list_images(next(p.parent for p in shapes.rglob("*.jpg")))[:3]


def ap_of(exported: ExportedModel) -> float:
    return {"float32": 0.5, "int8": 0.48}[exported.metadata["precision"]]


def test_the_images_become_inputs_of_the_graph(draft, model, images):
    module = CopyFormat(model)
    file, figures = quantize(module, draft, Int8(images, ap_of, max_drop=0.03))
    assert figures == {"AP": 0.5, "AP_int8": 0.48, "calibration_images": 3}
    assert json.loads(file.with_name(f"{file.name}.json").read_text())["precision"] == "int8"
    assert [x["images"].shape for x in module.inputs] == [(2, 64, 64, 3)] * 3
    assert [x["sizes"].tolist() for x in module.inputs] == [[[64, 64]] * 2] * 3


def test_a_loss_of_ap_over_the_limit_is_refused(draft, model, images):
    with pytest.raises(ExportError, match=r"from 0\.5000 to 0\.4800.*--max-drop 0\.01"):
        quantize(CopyFormat(model), draft, Int8(images, ap_of))


def test_calibration_needs_images(draft, model):
    with pytest.raises(ExportError, match="no images"):
        quantize(CopyFormat(model), draft, Int8([], ap_of))


@pytest.mark.parametrize("options", [{"format": "pt2"}, {"half": True}, {"raw": True}])
def test_int8_excludes_other_forms(tmp_path, model, images, options):
    with pytest.raises(ExportError, match="--int8 is for"):
        export(model, tmp_path / "new", int8=Int8(images, ap_of), **options)


@pytest.mark.parametrize("options", [{"int8": True}, {"calibrate": ("data",)}])
def test_int8_and_its_images_go_together(options):
    with pytest.raises(OptionError, match="go together"):
        Arguments(model="m", output="o", **options)
