"""A tiny model and images that all tests of commands share."""

import pytest
import torch
from commands import SHAPES

from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.factory import create_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a model that finds something everywhere."""
    changes = {"channels": 16, "neck": {"blocks": 1}, "weights": {"image_size": (64, 64)}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = create_model("retinanet_mnv4s_pconv", label_names=SHAPES, **changes)
        for parameter in detector.head.cls.parameters():
            torch.nn.init.normal_(parameter)
    return save_model(detector, tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def images(shapes, tmp_path):
    """A folder of two images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes((shapes / "val" / "000001.jpg").read_bytes())
    return folder
