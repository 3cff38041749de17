"""The examples build, learn, are saved and come back; each has at most 80 lines of code."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import sepc_zoo
from sepc_zoo import config, registry

EXAMPLES = Path(__file__).parents[1] / "examples"
MODELS = {"bifpn_neck": "retinanet_r18_bifpn", "own_method": "middle_r18_sepc_lite"}


@pytest.fixture
def load_example(monkeypatch):
    """Runs an example as a module; what it registers is gone after the test."""
    for module, table in ((registry, "NECKS"), (config, "NECK_TYPES"), (config, "METHOD_TYPES")):
        copy = dict(getattr(module, table))
        monkeypatch.setattr(module, table, copy)
        if hasattr(registry, table):
            monkeypatch.setattr(registry, table, copy)

    def load(name):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def targets():
    boxes = torch.tensor([[8.0, 8, 60, 50], [30, 20, 62, 60]])
    return [{"boxes": boxes, "labels": torch.tensor([0, 2])}] * 2


@pytest.mark.parametrize("example", MODELS)
def test_an_example_learns_is_saved_and_comes_back(example, load_example, tmp_path):
    load_example(example)
    torch.manual_seed(0)
    model = sepc_zoo.create_model(MODELS[example], num_classes=3, channels=16).train()
    images = torch.randn(2, 3, 64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(8):
        loss = sum(model.loss(model(images), targets()).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.9 * totals[0]

    sepc_zoo.save_model(model.eval(), tmp_path)
    again = sepc_zoo.load_model(tmp_path)
    assert again.config == model.config
    assert torch.equal(again(images).logits, model(images).logits)


def test_a_folder_with_a_part_that_is_not_registered_says_so(load_example, tmp_path):
    load_example("bifpn_neck")
    sepc_zoo.save_model(sepc_zoo.create_model("fsaf_r18_bifpn", channels=8), tmp_path)
    del config.NECK_TYPES["bifpn"]
    with pytest.raises(sepc_zoo.HubError, match=r"neck.*bifpn.*fpn, sepc.*import.*register_neck"):
        sepc_zoo.load_model(tmp_path)


def test_the_same_name_is_refused_twice(load_example):
    load_example("bifpn_neck")
    with pytest.raises(config.ConfigError, match="there is a neck 'bifpn' already"):
        load_example("bifpn_neck")


@pytest.mark.parametrize("example", MODELS)
def test_an_example_has_at_most_80_lines(example):
    lines = (EXAMPLES / f"{example}.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 80
