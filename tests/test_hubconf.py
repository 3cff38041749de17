import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from sepc_zoo import Detector, list_models

REPO = Path(__file__).parents[1]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's own folder and the working one are elsewhere."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return torch.hub


@pytest.fixture
def downloaded(hub):
    """A copy of the repository where torch.hub would put it; it lists no local folder."""
    folder = Path(hub.get_dir())
    folder.mkdir()
    (folder / "owner_sepc_zoo_main").symlink_to(REPO)
    return "owner/sepc_zoo:main", {"skip_validation": True, "trust_repo": True}


def test_torch_hub_builds_a_detector_by_name(hub):
    model = hub.load(str(REPO), "retinanet_r18_sepc", source="local", num_classes=3, channels=16)
    assert isinstance(model, Detector)
    assert model.config.architecture == "retinanet_r18_sepc"
    assert (model.config.num_classes, model.config.channels) == (3, 16)


def test_torch_hub_lists_the_curated_models_and_nothing_else(downloaded):
    repo, options = downloaded
    assert sorted(torch.hub.list(repo, **options)) == list_models()


def test_torch_hub_tells_what_a_model_takes(downloaded):
    repo, options = downloaded
    text = torch.hub.help(repo, "retinanet_r50_sepc", **options)
    for word in ("pretrained", "num_classes", "label_names", "AP 39.6 by their authors"):
        assert word in text


def test_what_torch_hub_asks_for_is_there():
    needed = runpy.run_path(str(REPO / "hubconf.py"))["dependencies"]
    assert [name for name in needed if find_spec(name) is None] == []
