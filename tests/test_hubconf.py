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


def test_torch_hub_lists_the_detector_alone(hub):
    assert hub.list(str(REPO), source="local") == ["detector"]


def test_torch_hub_tells_its_arguments(hub):
    assert "num_classes" in hub.help(str(REPO), "detector", source="local")
