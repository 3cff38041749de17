"""A run on images of five channels, from files to detections."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import copy_of, edit_json, options, read_log

from sepc_zoo.data.images import ImageError
from sepc_zoo.factory import load_model
from sepc_zoo.training.advice import advise
from sepc_zoo.training.dry_run import list_needs
from sepc_zoo.training.run import Run
from sepc_zoo.training.summary import describe
from sepc_zoo.training.trainer import train

tifffile = pytest.importorskip("tifffile")


@pytest.fixture
def five(shapes, tmp_path):
    """The shapes as TIFF files of five channels."""
    data = copy_of(shapes, tmp_path)
    for file in data.rglob("*.jpg"):
        rgb = np.asarray(Image.open(file))
        more = np.concatenate([rgb, 255 - rgb[..., :2]], axis=2)
        tifffile.imwrite(file.with_suffix(".tif"), more, planarconfig="contig")
        file.unlink()

    def rename(content):
        for image in content["images"]:
            image["file_name"] = image["file_name"].replace(".jpg", ".tif")

    for file in data.rglob("*.json"):
        if "images" in json.loads(file.read_text()):
            edit_json(file, rename)
    return data


def test_a_model_of_five_channels_is_trained_saved_and_used(five, tmp_path):
    run = tmp_path / "run"
    train(options(five, run, backbone_kwargs={"in_chans": 5}, epochs=1, log_interval=1))
    assert all(float(row["loss"]) > 0 for row in read_log(run) if row["loss"])
    model = load_model(run / "last")
    assert len(model.config.weights.mean) == len(model.config.weights.std) == 5
    file = next(five.rglob("*.tif"))
    pixels = torch.from_numpy(tifffile.imread(file)).permute(2, 0, 1)
    found = model.predict(file, 0.0)
    assert torch.equal(found.scores, model.predict(pixels, 0.0).scores)


def test_their_batches_need_more_shared_memory(five, shapes, tmp_path):
    kwargs = {"workers": 1, "backbone_kwargs": {"in_chans": 5}}
    run = tmp_path / "run"
    runs = Run(options(shapes, run, workers=1)), Run(options(five, run, **kwargs))
    of_rgb, of_five = ({n.what: n.needed for n in list_needs(r)}["shared memory"] for r in runs)
    assert of_five == pytest.approx(of_rgb * 5 / 3)


def test_a_detector_of_rgb_is_fine_tuned_to_five_channels(five, shapes, tmp_path):
    train(options(shapes, tmp_path / "rgb", epochs=1))
    start = {"model": f"local-dir:{tmp_path / 'rgb/last'}", "model_kwargs": {}}
    train(options(five, tmp_path / "run", **start, backbone_kwargs={"in_chans": 5}, epochs=1))
    assert load_model(tmp_path / "run/last").config.backbone.in_chans == 5


def test_colours_are_described_where_there_are_some(five, shapes, tmp_path):
    for data, channels, has_hue in ((shapes, 3, True), (five, 5, False)):
        kwargs = {"backbone_kwargs": {"in_chans": channels}, "hue": 0.1, "brightness": 0.2}
        row = describe(Run(options(data, tmp_path / "run", **kwargs)))["augmentation"]
        assert ("hue 0.1" in row, "brightness 0.2" in row) == (has_hue, True)


def test_images_and_model_of_other_channels_are_told_at_the_start(five, shapes, tmp_path):
    hint = r"\.tif: has 5 channels.*--backbone-kwargs in_chans=5"
    for data, in_chans, text in ((shapes, 5, "channels"), (five, 4, "channels"), (five, 3, hint)):
        with pytest.raises(ImageError, match=text):
            Run(options(data, tmp_path / "run", backbone_kwargs={"in_chans": in_chans}))


def test_pages_that_a_model_of_rgb_does_not_get_are_told(five, tmp_path):
    for file in five.rglob("*.tif"):
        tifffile.imwrite(file, tifffile.imread(file).transpose(2, 0, 1), photometric="minisblack")
    for kwargs, is_told in (({}, True), ({"in_chans": 5}, False)):
        run = Run(options(five, tmp_path / "run", backbone_kwargs=kwargs))
        lines = advise(run.options, run.detector.config, run.train_data)
        assert any("--backbone-kwargs in_chans=5" in line for line in lines) == is_told
