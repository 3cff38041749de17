"""A tiny model and images that all tests of commands share."""

import pytest
from made_up_models import finds_everywhere

from sepc_zoo.checkpoints.folder import save_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a model that finds something everywhere."""
    return save_model(finds_everywhere(), tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def images(shapes, tmp_path):
    """A folder of two images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes((shapes / "val" / "000001.jpg").read_bytes())
    return folder
