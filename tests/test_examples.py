"""The examples build, learn, are saved and come back; each has at most 80 lines of code."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import sepc_zoo
from sepc_zoo import config, registry
from sepc_zoo.data.transforms.own import OwnTransform

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


@pytest.fixture
def wrapper(load_example, monkeypatch):
    """The example that wraps Albumentations, which asks no server for a newer version."""
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    pytest.importorskip("albumentations")
    return load_example("albumentations_transform")


def test_albumentations_moves_boxes_with_the_pixels(wrapper):
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, 5:15, 40:60] = 255
    target = {
        "boxes": torch.tensor([[40.0, 5, 60, 15], [0, 30, 10, 40]]),
        "labels": torch.tensor([2, 1]),
        "iscrowd": torch.tensor([0, 1]),
        "area": torch.tensor([200.0, 100]),
        "image_id": 1,
        "unreadable": [],
    }
    flip = wrapper.Albumentations([wrapper.A.HorizontalFlip(p=1), wrapper.A.Crop(0, 0, 30, 20)])
    image, target = OwnTransform(flip, 3)(image, target)
    assert target["boxes"].flatten().tolist() == pytest.approx([0, 5, 20, 15])
    assert (target["labels"].tolist(), target["iscrowd"].tolist()) == ([2], [0])
    assert (image[:, 5:15, :20] == 255).all()
    assert image.sum() == 3 * 255 * 200


def test_albumentations_repeats_with_the_seed(wrapper):
    transform = wrapper.Albumentations([wrapper.A.Rotate(45, p=1)])
    image = torch.arange(3 * 32 * 32).reshape(3, 32, 32).to(torch.uint8)
    boxes = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "iscrowd": torch.zeros(0)}
    turned = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        turned.append(transform(image, boxes)[0])
    assert torch.equal(turned[0], turned[1])
    assert not torch.equal(turned[0], turned[2])


@pytest.mark.parametrize("example", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_an_example_has_at_most_80_lines(example):
    lines = (EXAMPLES / f"{example}.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 80
