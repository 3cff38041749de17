import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from sepc_zoo import Detector

REPO = Path(__file__).parents[1]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's own folder and the working one are elsewhere."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return torch.hub


def test_torch_hub_builds_a_detector_by_name(hub):
    model = hub.load(
        str(REPO), "detector", "retinanet_r18_sepc", source="local", num_classes=3, channels=16
    )
    assert isinstance(model, Detector)
    assert model.config.architecture == "retinanet_r18_sepc"
    assert (model.config.num_classes, model.config.channels) == (3, 16)


def test_the_detector_is_the_only_entry_and_says_what_it_takes():
    hubconf = runpy.run_path(str(REPO / "hubconf.py"))
    entries = [name for name, value in hubconf.items() if callable(value) and name[0] != "_"]
    assert entries == ["detector"]  # what torch.hub.list would print
    assert "num_classes" in hubconf["detector"].__doc__


def test_what_torch_hub_asks_for_is_there():
    needed = runpy.run_path(str(REPO / "hubconf.py"))["dependencies"]
    assert [name for name in needed if find_spec(name) is None] == []
