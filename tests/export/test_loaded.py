"""Exported files with the interface of a model."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from attacks import Call
from tiny_exports import in_torch, tiny_detector

from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.config import override
from sepc_zoo.export.loaded import find_exported
from sepc_zoo.export.metadata import ExportError
from sepc_zoo.inference.preprocess import plan_resize


@pytest.fixture(scope="module")
def model():
    return tiny_detector("retinanet_fpn", weights={"image_size": (128, 192)})


def picture(height=150, width=210, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def test_predict_is_that_of_the_model(model):
    ours = model.predict(picture(), score_threshold=0.06)
    theirs = in_torch(model).predict(picture(), score_threshold=0.06)
    assert len(ours.scores) > 0
    assert torch.allclose(ours.boxes, theirs.boxes, atol=1e-3)
    assert torch.equal(ours.labels, theirs.labels)
    assert theirs.label_names == ours.label_names


def test_images_of_one_padded_size_go_through_together(model):
    exported = in_torch(model)
    sizes = [(128, 160), (120, 150), (160, 128), (97, 129)]
    exported.detect([picture(*size) for size in sizes])
    assert exported.network.shapes == [(3, 128, 160, 3), (1, 160, 128, 3)]


def test_a_fixed_batch_is_filled_up(model):
    images = [picture(128, 160, seed) for seed in range(3)]
    fixed, free = in_torch(model, batch_size=2), in_torch(model)
    found, wanted = fixed.detect(images), free.detect(images)
    assert fixed.network.shapes == [(2, 128, 160, 3)] * 2
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one["boxes"], other["boxes"], atol=1e-3)


def test_a_fixed_input_is_the_size_that_images_are_resized_to(model):
    exported = in_torch(model, image_size=(128, 160))
    assert exported.config.weights.image_size == (128, 160)
    exported.predict(picture(300, 400))
    assert exported.network.shapes == [(1, 128, 160, 3)]


@pytest.mark.parametrize("fixed", [(64, 128), (128, 64), (64, 64)])
@pytest.mark.parametrize("size", [(200, 90), (90, 200), (150, 150)])
def test_an_image_is_resized_as_large_as_a_fixed_input_allows(model, size, fixed):
    config = in_torch(model, image_size=fixed).config
    scale = min(fixed[0] / size[0], fixed[1] / size[1])
    expected = tuple(int(side * scale + 0.5) for side in size)
    assert plan_resize(size, config).input_size == expected
    stretching = override(config, {"weights": {"keep_ratio": False}})
    assert plan_resize(size, stretching).input_size == fixed


def test_boxes_of_an_upright_image_in_a_fixed_input_that_lies_are_in_its_pixels(model):
    exported = in_torch(model, image_size=(128, 160))
    found = exported.predict(picture(320, 256), score_threshold=0.06)
    assert exported.network.shapes == [(1, 128, 160, 3)]
    assert found.boxes[:, 3].max() > 160


def test_an_input_larger_than_a_fixed_one_is_refused(model):
    with pytest.raises(ExportError, match=r"160 x 128 .* fixed 128 x 160"):
        in_torch(model, image_size=(128, 160)).detect([picture(160, 128)])


def test_a_file_of_raw_outputs_gives_no_detections(model):
    with pytest.raises(ExportError, match="--raw"):
        in_torch(model, raw=True).detect([picture()])


def test_a_model_folder_is_never_taken_for_an_export_in_it(model, tmp_path):
    (tmp_path / "model.onnx").touch()
    assert find_exported(tmp_path) == tmp_path / "model.onnx"
    save_model(model, tmp_path)
    assert find_exported(tmp_path) is None
    assert find_exported(tmp_path / "model.onnx") == tmp_path / "model.onnx"


def test_an_archive_with_code_in_it_is_refused(tmp_path, monkeypatch):
    pt2 = pytest.importorskip("sepc_zoo.export.pt2")
    monkeypatch.chdir(tmp_path)
    program = torch.export.export(torch.nn.ReLU(), (torch.ones(2),))
    torch.export.save(program, "good.pt2")
    torch.save(Call(os.mkdir, "harm"), "evil.pt")
    shutil.copy("good.pt2", "evil.pt2")
    names = zipfile.ZipFile("good.pt2").namelist()
    with zipfile.ZipFile("good.pt2") as good, zipfile.ZipFile("evil.pt2", "w") as evil:
        for name in names:
            is_pickle = name.endswith(".pt")
            evil.writestr(name, Path("evil.pt").read_bytes() if is_pickle else good.read(name))
    assert any(name.endswith(".pt") for name in names)
    with pytest.raises(ExportError, match="cannot load it"):
        pt2.Network(tmp_path / "evil.pt2")
    assert not (tmp_path / "harm").exists()
