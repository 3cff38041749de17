"""Prediction with models whose input is not RGB."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sepc_zoo.config import override
from sepc_zoo.inference.bulk import predict_files
from sepc_zoo.inference.predictor import predict
from sepc_zoo.inference.sources import FileList
from sepc_zoo.inference.tta import Views
from sepc_zoo.registry import model_config

MEAN, STD = (0.1, 0.2, 0.3, 0.4, 0.5), (0.2,) * 5
BOX = {
    "boxes": torch.tensor([[4.0, 6, 20, 30]]),
    "scores": torch.tensor([0.9]),
    "labels": torch.tensor([0]),
}


class Recorder:
    """A model of five channels that finds one box, and keeps its inputs."""

    def __init__(self):
        config = model_config("retinanet_r18_fpn")
        weights = {"mean": MEAN, "std": STD, "image_size": (40, 80)}
        backbone = {"kwargs": {"in_chans": 5}}
        self.config = override(config, {"weights": weights, "backbone": backbone})
        self.inputs = []

    def detect(self, images):
        self.inputs += images
        return [BOX for _ in images]


@pytest.fixture
def bands(tmp_path) -> tuple[Path, torch.Tensor]:
    """A TIFF of five channels, and its samples."""
    tifffile = pytest.importorskip("tifffile")
    samples = np.random.default_rng(0).integers(0, 256, (5, 40, 60), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "bands.tif", samples, planarconfig="separate")
    return tmp_path / "bands.tif", torch.from_numpy(samples)


def test_files_arrays_and_tensors_of_five_channels_reach_the_model(bands):
    file, samples = bands
    for source in (file, samples, samples.permute(1, 2, 0).numpy(), [file], file.parent):
        model = Recorder()
        predict(model, source)
        assert torch.equal(model.inputs[0], samples)


def test_views_of_five_channels_are_resized_and_mirrored(bands):
    model = Recorder()
    predict(model, bands[0], views=Views(flip=True, scales=(1.0, 0.5)))
    assert [image.shape for image in model.inputs] == [(5, 40, 60)] * 2 + [(5, 20, 30)] * 2
    assert torch.equal(model.inputs[1], bands[1].flip(-1))


def test_the_picture_of_five_channels_shows_the_first_three(bands):
    file, samples = bands
    for source in (file, samples):
        picture = np.asarray(predict(Recorder(), source).draw())
        assert picture.shape == (40, 60, 3)
        outside = picture[35:, 25:].astype(int)  # the line is a pixel wide, and no caption there
        expected = samples[:3, 35:, 25:].permute(1, 2, 0).numpy() * (255 / samples[:3].max().item())
        assert np.abs(outside - expected).max() <= 1


def test_many_files_of_five_channels_are_predicted_and_drawn(bands, tmp_path):
    model, output = Recorder(), tmp_path / "out"
    output.mkdir()
    wrong = tmp_path / "rgb.png"
    Image.new("RGB", (8, 8)).save(wrong)
    found = predict_files(model, FileList([bands[0], wrong], tmp_path), output, 0.3, workers=0)
    assert torch.equal(model.inputs[0], bands[1])
    assert (output / "bands_boxes.tif").is_file()
    assert found[1].rows is None
    assert "rgb.png: the model takes 5 channels" in found[1].problem
